//! Logits of decoders match those of transformers and sentence-transformers, whatever is in a batch beside them and
//! however much of it is shared.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde::Deserialize;

use crate::support::packed::library;
use crate::support::reference::{fixture, model_dir, rank_correlation};
use rerankd_core::{Batch, Encoding, Instruction, Pair, TruncationOptions};
use rerankd_kernels::compute_pool::ComputePool;
use rerankd_kernels::isa::InstructionSet;
use rerankd_model::graph::{self, Precision, Rows};
use rerankd_model::prompt::PromptEncoder;
use rerankd_model::rotary::Scaling;
use rerankd_model::{Decoder, HiddenAct, LayerForm, Model};
use rerankd_runtime::Scorer;
use rerankd_runtime::onnx::{Layout, OnnxModel, OnnxScorer};

/// Of the size of a logit, or of a tenth.
const TOLERANCE: f32 = 1e-4;
/// A fault must change some logit by more than ten times the tolerance.
const NOTICED: f32 = 10.0 * TOLERANCE;
/// Least rank correlation of bf16 with the reference.
const LEAST_BF16_CORRELATION: f64 = 0.998;
/// Least rank correlation of int8 with the reference.
const LEAST_CORRELATION: f64 = 0.98;
/// Sequences per batch.
const BATCH: usize = 16;

pub const MODELS: [&str; 11] = [
    "causal-qwen3",
    "causal-qwen3-yarn",
    "causal-qwen2",
    "causal-llama",
    "causal-mistral",
    "causal-gemma",
    "seqcls-qwen3",
    "seqcls-qwen2",
    "seqcls-llama",
    "seqcls-mistral",
    "seqcls-gemma",
];

/// The reference of a model.
#[derive(Debug, Deserialize)]
pub struct Reference {
    vocabulary: u32,
    /// Seed and length of ids that a generator makes.
    made_up: Vec<[u64; 2]>,
    /// More ids.
    plain: Vec<Vec<u32>>,
    /// Of all ids, one list for each.
    logits: Vec<Vec<f32>>,
    /// Ids and logits that sentence-transformers gives for pairs.
    #[serde(default)]
    pair_ids: Vec<Vec<u32>>,
    #[serde(default)]
    pair_logits: Vec<f32>,
}

impl Reference {
    pub fn read(name: &str) -> Self {
        let text = std::fs::read_to_string(fixture(&format!("{name}.json"))).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    pub fn encodings(&self) -> Vec<Encoding> {
        let made_up = self.made_up.iter().map(|&[seed, length]| {
            let mut state = seed;
            let id = || {
                state = (state * 1_103_515_245 + 12_345) % (1 << 31);
                ((state >> 8) % u64::from(self.vocabulary)) as u32
            };
            std::iter::repeat_with(id).take(length as usize).collect()
        });
        let all = made_up.chain(self.plain.iter().cloned());
        all.chain(self.pair_ids.iter().cloned())
            .map(encoding)
            .collect()
    }

    pub fn logits(&self) -> Vec<f32> {
        let mut logits = self.logits.concat();
        logits.extend(&self.pair_logits);
        logits
    }
}

fn encoding(ids: Vec<u32>) -> Encoding {
    Encoding {
        type_ids: vec![0; ids.len()],
        ids,
    }
}

fn open(model: &Model, layout: Layout, precision: Precision, set: InstructionSet) -> OnnxScorer {
    let graph = graph::build(model, Rows::FirstOfEach, precision).unwrap();
    let model = OnnxModel::new(&library(), graph, layout, ComputePool::one_core(set)).unwrap();
    model.session(1).unwrap()
}

fn best(model: &Model) -> OnnxScorer {
    let layout = Layout::of(&model.manifest);
    open(model, layout, Precision::Fp32, InstructionSet::best())
}

fn score(scorer: &mut OnnxScorer, encodings: &[Encoding]) -> Vec<f32> {
    let batches = encodings.chunks(BATCH);
    batches
        .flat_map(|chunk| scorer.score(&Batch::pack(chunk)).unwrap())
        .collect()
}

/// The largest difference, of the size of the expected logit or of a tenth.
fn worst(ours: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(ours.len(), expected.len());
    let off = |(a, b): (&f32, &f32)| (a - b).abs() / b.abs().max(0.1);
    ours.iter().zip(expected).map(off).fold(0.0, f32::max)
}

#[test]
fn decoders_give_the_reference_logits() {
    for name in MODELS {
        let model = Model::open(&model_dir(name)).unwrap();
        let reference = Reference::read(name);
        let encodings = reference.encodings();
        let expected = reference.logits();
        assert!(encodings.len() >= 60, "{name}");
        assert_eq!(encodings.iter().map(Encoding::len).max(), Some(3000));
        let layout = Layout::of(&model.manifest);
        for set in InstructionSet::available() {
            let mut scorer = open(&model, layout, Precision::Fp32, set);
            let worst = worst(&score(&mut scorer, &encodings), &expected);
            assert!(worst <= TOLERANCE, "{name}, {}: off by {worst}", set.name());
        }
    }
}

/// Documents of two queries behind one template, mixed; some of them are equal, or the beginning of another.
fn requests(vocabulary: u32) -> Vec<Encoding> {
    let ids = |seed: u32, length: u32| {
        let id = move |i: u32| (seed * 7919 + i * i * 31 + i * 17) % vocabulary;
        (0..length).map(id).collect::<Vec<_>>()
    };
    let mut encodings = Vec::new();
    for document in 0..13_u32 {
        for query in 0..2 {
            let template = ids(1, 41);
            let query = ids(2 + query, 9);
            let document = ids(100 + document % 11, 1 + document * 7 % 60);
            encodings.push(encoding([template, query, document].concat()));
        }
    }
    encodings
}

#[test]
fn a_score_depends_neither_on_its_batch_nor_on_what_is_shared() {
    for name in MODELS {
        let model = Model::open(&model_dir(name)).unwrap();
        let encodings = requests(model.manifest.encoder.vocab_size as u32);
        let shared = Layout::of(&model.manifest);
        let mut apart = shared;
        let causal = apart.causal.as_mut().unwrap();
        (causal.shares, causal.keeps) = (false, 0);
        for precision in [Precision::Fp32, Precision::Bf16, Precision::Int8] {
            let set = InstructionSet::best();
            let mut alone = open(&model, apart, precision, set);
            let expected: Vec<f32> = encodings
                .iter()
                .flat_map(|one| alone.score(&Batch::pack([one])).unwrap())
                .collect();
            assert!(expected.iter().any(|logit| *logit != expected[0]));
            let mut scorer = open(&model, shared, precision, set);
            for count in [1, 3, 10, encodings.len()] {
                let ours: Vec<f32> = encodings
                    .chunks(count)
                    .flat_map(|chunk| scorer.score(&Batch::pack(chunk)).unwrap())
                    .collect();
                assert_eq!(ours, expected, "{name}, {precision:?}, {count} at a time");
            }
            let together = alone.score(&Batch::pack(&encodings)).unwrap();
            assert_eq!(together, expected, "{name}, {precision:?}, without sharing");
        }
    }
}

#[test]
fn cores_change_no_score() {
    let model = Model::open(&model_dir("causal-qwen3")).unwrap();
    let encodings = requests(model.manifest.encoder.vocab_size as u32);
    let expected = score(&mut best(&model), &encodings);
    let graph = graph::build(&model, Rows::FirstOfEach, Precision::Fp32).unwrap();
    let pool = ComputePool::new(3).unwrap();
    let layout = Layout::of(&model.manifest);
    let model = OnnxModel::new(&library(), graph, layout, pool).unwrap();
    let mut scorer = model.session(1).unwrap();
    let ours = scorer.score_alone(&Batch::pack(&encodings)).unwrap();
    assert_eq!(ours, expected);
}

/// The largest error of the logits, up to 200 tokens, of a model with a fault.
fn planted(name: &str, fault: impl FnOnce(&mut Model)) -> f32 {
    let mut model = Model::open(&model_dir(name)).unwrap();
    fault(&mut model);
    let reference = Reference::read(name);
    let encodings = reference.encodings();
    let short = encodings.iter().zip(reference.logits());
    let (encodings, expected): (Vec<_>, Vec<_>) = short
        .filter(|(encoding, _)| encoding.len() <= 200)
        .map(|(encoding, logit)| (encoding.clone(), logit))
        .unzip();
    worst(&score(&mut best(&model), &encodings), &expected)
}

fn change(model: &mut Model, fault: impl FnOnce(&mut Decoder)) {
    let LayerForm::Decoder(decoder) = &mut model.manifest.encoder.form else {
        panic!("the model is a decoder");
    };
    fault(decoder);
}

#[test]
fn faults_are_noticed() {
    type Fault = (&'static str, &'static str, fn(&mut Model));
    let faults: [Fault; 14] = [
        ("nothing", "causal-qwen3", |_| {}),
        ("epsilon", "causal-qwen3", |model| {
            model.manifest.encoder.layer_norm_eps *= 3.0;
        }),
        ("no head norms", "causal-qwen3", |model| {
            change(model, |decoder| decoder.head_norms = false);
        }),
        ("base", "causal-qwen3", |model| {
            change(model, |decoder| decoder.rotary.theta *= 1.1);
        }),
        ("no biases", "causal-qwen2", |model| {
            change(model, |decoder| decoder.input_bias = false);
        }),
        ("linear scaling", "causal-qwen2", |model| {
            change(model, |decoder| decoder.rotary.scaling = Scaling::None);
        }),
        ("no output bias", "causal-llama", |model| {
            change(model, |decoder| decoder.output_bias = false);
        }),
        ("no feed-forward bias", "causal-llama", |model| {
            change(model, |decoder| decoder.feed_forward_bias = false);
        }),
        ("llama3 scaling", "causal-llama", |model| {
            change(model, |decoder| decoder.rotary.scaling = Scaling::None);
        }),
        ("yarn scaling", "causal-qwen3-yarn", |model| {
            change(model, |decoder| decoder.rotary.scaling = Scaling::None);
        }),
        ("window", "causal-mistral", |model| {
            change(model, |decoder| decoder.windows.fill(Some(21)));
        }),
        ("window in every layer", "seqcls-qwen2", |model| {
            change(model, |decoder| decoder.windows.fill(Some(16)));
        }),
        ("norms without one", "causal-gemma", |model| {
            change(model, |decoder| decoder.is_gemma = false);
        }),
        ("exact GELU", "seqcls-gemma", |model| {
            model.manifest.encoder.hidden_act = HiddenAct::Gelu;
        }),
    ];
    for (fault, name, plant) in faults {
        let off = planted(name, plant);
        let noticed = if fault == "nothing" { 0.0 } else { NOTICED };
        assert!(off > noticed, "{fault} moves no logit by more than {off}");
    }
}

/// On random weights that are designed to show small changes.
fn check_order(precision: Precision, least: f64) {
    for name in MODELS {
        let model = Model::open(&model_dir(name)).unwrap();
        let reference = Reference::read(name);
        let layout = Layout::of(&model.manifest);
        let set = InstructionSet::best();
        let mut scorer = open(&model, layout, precision, set);
        let ours = score(&mut scorer, &reference.encodings());
        let correlation = rank_correlation(&ours, &reference.logits());
        println!("{name}, {precision:?}: rank correlation {correlation:.5}");
        assert!(correlation >= least, "{name}: {correlation}");
    }
}

#[test]
fn bf16_keeps_the_order_of_the_reference() {
    check_order(Precision::Bf16, LEAST_BF16_CORRELATION);
}

#[test]
fn int8_keeps_the_order_of_the_reference() {
    check_order(Precision::Int8, LEAST_CORRELATION);
}

#[test]
fn the_last_token_counts() {
    let model = Model::open(&model_dir("causal-qwen3")).unwrap();
    let mut scorer = best(&model);
    let whole = score(&mut scorer, &[encoding(vec![5, 9, 70, 8])]);
    let before = score(&mut scorer, &[encoding(vec![5, 9, 70])]);
    assert!((whole[0] - before[0]).abs() > NOTICED);
}

/// Published scores of Qwen3-Reranker-0.6B in fp32, for the pairs of sentence-transformers' own tests.
#[test]
fn real_weights_give_the_published_scores() {
    const QUERY: &str = "Which planet is known as the Red Planet?";
    const SCORES: [(&str, f32); 4] = [
        (
            "Venus is often called Earth's twin because of its similar size and proximity.",
            -3.109_297_8,
        ),
        (
            "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
            7.120_39,
        ),
        (
            "Jupiter, the largest planet in our solar system, has a prominent red spot.",
            -0.378_754_6,
        ),
        (
            "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
            3.541_637_4,
        ),
    ];
    let Some(dir) = std::env::var_os("RERANKD_TEST_QWEN3") else {
        eprintln!("skipped: RERANKD_TEST_QWEN3 does not name a directory with Qwen3-Reranker-0.6B");
        return;
    };
    let model = Model::open(Path::new(&dir)).unwrap();
    let manifest = &model.manifest;
    let prompts = manifest.prompts.as_ref().unwrap();
    let length = manifest.max_length;
    let encoder =
        PromptEncoder::new(&model.tokenizer, &manifest.tokenizer, prompts, length).unwrap();
    let pairs = SCORES.map(|(document, _)| Pair {
        query: QUERY.into(),
        document: document.into(),
    });
    let bound = encoder
        .bind(TruncationOptions::default(), &Instruction::Default)
        .unwrap();
    let encoded = bound.encode(&pairs, &AtomicBool::new(false)).unwrap();
    let encodings: Vec<Encoding> = encoded.into_iter().map(|pair| pair.encoding).collect();
    let ours = score(&mut best(&model), &encodings);
    for (ours, (document, expected)) in ours.iter().zip(SCORES) {
        assert!(
            (ours - expected).abs() <= TOLERANCE,
            "{ours} for {expected}: {document}"
        );
    }
}
