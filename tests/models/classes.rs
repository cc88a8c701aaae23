//! Decoders read texts as the tokenizer class says, not as `tokenizer.json` does.

use std::sync::atomic::AtomicBool;

use serde::Deserialize;

use crate::support::packed::library;
use crate::support::reference::{fixture, model_dir};
use rerankd_core::{Batch, Pair};
use rerankd_kernels::compute_pool::ComputePool;
use rerankd_model::Model;
use rerankd_model::encoder::{EncodedPair, Encoder};
use rerankd_model::graph::{self, Precision, Rows};
use rerankd_model::tokenizer_class::{DecoderTokenizer, TokenizerClass};
use rerankd_runtime::Scorer;
use rerankd_runtime::onnx::{Layout, OnnxModel};

const MODELS: [&str; 4] = [
    "class-llama",
    "class-llama-legacy",
    "class-qwen2",
    "class-gemma",
];
/// Of the size of a score, or of a tenth.
const TOLERANCE: f32 = 1e-4;

/// What sentence-transformers gives for pairs.
#[derive(Deserialize)]
struct Reference {
    pairs: Vec<[String; 2]>,
    ids: Vec<Vec<u32>>,
    logits: Vec<f32>,
}

fn read(name: &str) -> (Model, Reference) {
    let model = Model::open(&model_dir(name)).unwrap_or_else(|error| panic!("{error}"));
    let text = std::fs::read_to_string(fixture(&format!("{name}.json"))).unwrap();
    let reference: Reference = serde_json::from_str(&text).unwrap();
    assert!(reference.pairs.len() >= 60, "{name}");
    (model, reference)
}

fn encoded(model: &Model, reference: &Reference) -> Vec<EncodedPair> {
    let pair = |[query, document]: &[String; 2]| Pair {
        query: query.as_str().into(),
        document: document.as_str().into(),
    };
    let pairs: Vec<Pair> = reference.pairs.iter().map(pair).collect();
    let encoder = Encoder::for_model(model).unwrap_or_else(|error| panic!("{error}"));
    encoder.encode(&pairs, &AtomicBool::new(false)).unwrap()
}

/// The number of pairs whose ids differ from the reference.
fn differences(model: &Model, reference: &Reference) -> usize {
    let encoded = encoded(model, reference);
    let ids = encoded.iter().map(|pair| &pair.encoding.ids);
    ids.zip(&reference.ids).filter(|(a, b)| a != b).count()
}

#[test]
fn classes_give_the_reference_ids_and_scores() {
    for name in MODELS {
        let (model, reference) = read(name);
        let encoded = encoded(&model, &reference);
        for ((pair, ids), texts) in encoded.iter().zip(&reference.ids).zip(&reference.pairs) {
            assert_eq!(pair.encoding.ids, *ids, "{name}: {texts:?}");
        }
        let graph = graph::build(&model, Rows::FirstOfEach, Precision::Fp32).unwrap();
        let layout = Layout::of(&model.manifest);
        let pool = ComputePool::new(1).unwrap();
        let session = OnnxModel::new(&library(), graph, layout, pool).unwrap();
        let mut session = session.session(1).unwrap();
        for (pair, expected) in encoded.iter().zip(&reference.logits) {
            let logit = session.score(&Batch::pack([&pair.encoding])).unwrap()[0];
            let score = model.manifest.activation.apply(logit);
            let off = (score - expected).abs() / expected.abs().max(0.1);
            assert!(off <= TOLERANCE, "{name}: {score} is not {expected}");
        }
    }
}

#[test]
fn another_reading_is_noticed() {
    for name in MODELS {
        let (mut model, reference) = read(name);
        assert_eq!(differences(&model, &reference), 0);
        let class = model.manifest.tokenizer.class.clone();
        model.manifest.tokenizer.class = TokenizerClass::AsSaved;
        assert!(differences(&model, &reference) >= 20, "{name}");

        let TokenizerClass::Decoder { form, mut added } = class else {
            panic!("{name}: {class:?}");
        };
        let mut read_as = |form, added| {
            model.manifest.tokenizer.class = TokenizerClass::Decoder { form, added };
            differences(&model, &reference)
        };
        match form.clone() {
            DecoderTokenizer::Llama { legacy, .. } => {
                let other = DecoderTokenizer::Llama {
                    add_prefix_space: true,
                    legacy: !legacy,
                };
                assert!(read_as(other, added.clone()) >= 3, "{name}");
                let other = DecoderTokenizer::Llama {
                    add_prefix_space: false,
                    legacy,
                };
                // A prompt that starts with `<s>` has no first word to put a space before.
                assert_eq!(read_as(other, added) > 0, legacy, "{name}");
            }
            DecoderTokenizer::Qwen2 { .. } => {
                let other = DecoderTokenizer::Qwen2 {
                    add_prefix_space: true,
                };
                assert!(read_as(other, added.clone()) >= 3, "{name}");
            }
            DecoderTokenizer::Gemma { .. } => {
                // `<mask>` strips the space before it only as the list says.
                added.listed = None;
                assert!(read_as(form, added) >= 3, "{name}");
            }
        }
    }
}

#[test]
fn other_classes_leave_the_file_alone() {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(model_dir("class-gemma")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let class = |settings: &str| {
        std::fs::write(copy.path().join("tokenizer_config.json"), settings).unwrap();
        Model::open(copy.path()).unwrap().manifest.tokenizer.class
    };
    for other in [
        "PreTrainedTokenizerFast",
        "TokenizersBackend",
        "LlamaTokenizer",
    ] {
        let settings = format!(r#"{{"tokenizer_class": "{other}"}}"#);
        assert_eq!(class(&settings), TokenizerClass::AsSaved, "{other}");
    }
    for same in ["{}", r#"{"tokenizer_class": "GemmaTokenizerFast"}"#] {
        let found = class(same);
        let TokenizerClass::Decoder { form, added } = found else {
            panic!("{same}: {found:?}");
        };
        let unknown = "<unk>".to_owned();
        assert_eq!(form, DecoderTokenizer::Gemma { unknown }, "{same}");
        assert_eq!((added.listed, added.special.len()), (None, 5), "{same}");
    }
}
