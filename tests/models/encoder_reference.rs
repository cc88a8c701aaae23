//! Configurations and token ids match those of sentence-transformers.

use std::sync::atomic::AtomicBool;

use crate::support::reference::{Reference, model_dir};
use rerankd_core::Activation;
use rerankd_model::encoder::PairEncoder;
use rerankd_model::{HiddenAct, Model, TokenizerClass};

fn open(name: &str) -> Model {
    Model::open(&model_dir(name)).unwrap_or_else(|error| panic!("{error}"))
}

fn check_ids(name: &str) {
    let model = open(name);
    let reference = Reference::read(name);
    assert_eq!(model.manifest.max_length, reference.max_length);

    let encoder = PairEncoder::for_model(&model).unwrap_or_else(|error| panic!("{error}"));
    let pairs = reference.pairs();
    let encoded = encoder.encode(&pairs, &AtomicBool::new(false)).unwrap();
    assert!(pairs.len() >= 200, "{} pairs", pairs.len());
    for (i, pair) in encoded.iter().enumerate() {
        assert_eq!(pair.encoding.ids, reference.ids[i], "ids of pair {i}");
        assert_eq!(
            pair.encoding.type_ids, reference.type_ids[i],
            "types of pair {i}"
        );
    }
    let cut = encoded.iter().filter(|pair| pair.truncated()).count();
    assert!(cut > 10, "only {cut} pairs are truncated");
}

#[test]
fn bert_ids() {
    check_ids("tiny-bert");
}

#[test]
fn cased_bert_ids() {
    check_ids("tiny-bert-3-labels");
}

#[test]
fn roberta_ids() {
    check_ids("tiny-roberta");
}

#[test]
fn xlm_roberta_ids() {
    check_ids("tiny-xlm-roberta");
}

#[test]
fn camembert_ids() {
    check_ids("tiny-camembert");
}

#[test]
fn distilbert_ids() {
    check_ids("tiny-distilbert");
}

#[test]
fn electra_ids() {
    check_ids("tiny-electra");
}

#[test]
fn modular_ids() {
    check_ids("tiny-modular");
}

#[test]
fn mpnet_ids() {
    check_ids("tiny-mpnet");
}

#[test]
fn modernbert_ids() {
    check_ids("tiny-modernbert");
}

#[test]
fn ids_of_models_with_code_of_their_own() {
    for name in [
        "tiny-jina-v1",
        "tiny-jina-v2",
        "tiny-gte",
        "tiny-gte-en",
        "tiny-ettin",
    ] {
        check_ids(name);
    }
}

#[test]
fn bert_manifest() {
    let Model {
        manifest, weights, ..
    } = open("tiny-bert");
    assert_eq!(manifest.id, "tiny-bert");
    assert_eq!(manifest.architecture, "bert");
    assert_eq!(manifest.labels, ["LABEL_0"]);
    assert_eq!(manifest.activation, Activation::Sigmoid);
    assert_eq!(manifest.prompt, None);
    let encoder = &manifest.encoder;
    assert_eq!(
        (encoder.hidden_size, encoder.layers, encoder.heads),
        (32, 3, 4)
    );
    assert_eq!(
        (encoder.intermediate_size, encoder.max_positions),
        (64, 512)
    );
    assert_eq!((encoder.type_vocab_size, encoder.pad_token_id), (2, 0));
    assert_eq!(encoder.layer_norm_eps, 1e-12);
    assert_eq!(encoder.hidden_act, HiddenAct::Gelu);

    let words = "bert.embeddings.word_embeddings.weight";
    let shape = [encoder.vocab_size, encoder.hidden_size];
    assert_eq!(weights.shape(words), Some(&shape[..]));
    let values = weights.read(words, &shape).unwrap();
    assert_eq!(values.len(), shape[0] * shape[1]);
    assert!(values.iter().all(|value| value.is_finite()));
}

#[test]
fn manifest_of_three_labels() {
    let manifest = open("tiny-bert-3-labels").manifest;
    assert_eq!(manifest.labels.len(), 3);
    assert_eq!(manifest.activation, Activation::Identity);
    assert_eq!(manifest.encoder.layer_norm_eps, 1e-3);
    let cased = TokenizerClass::Bert {
        lowercase: false,
        strip_accents: None,
        chinese_chars: true,
    };
    assert_eq!(manifest.tokenizer.class, cased);
}

#[test]
fn roberta_manifest() {
    let manifest = open("tiny-roberta").manifest;
    assert_eq!(manifest.architecture, "roberta");
    assert_eq!(manifest.activation, Activation::Sigmoid);
    assert_eq!(manifest.encoder.max_positions, 514);
    assert_eq!(manifest.max_length, 512);
    assert_eq!(manifest.encoder.pad_token_id, 1);
    assert!(!manifest.tokenizer.uses_type_ids);
}

#[test]
fn xlm_roberta_manifest() {
    let manifest = open("tiny-xlm-roberta").manifest;
    assert_eq!(manifest.architecture, "roberta");
    assert_eq!(manifest.activation, Activation::Identity, "stored");
    assert_eq!(
        manifest.prompt, None,
        "`search` is a prompt, but not the default one"
    );
}

#[cfg(feature = "embedded-model")]
#[test]
fn the_embedded_model_opens() {
    let model = Model::embedded().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(model.manifest.architecture, "bert");
    assert_eq!(model.manifest.labels.len(), 1);
    let encoder = PairEncoder::for_model(&model).unwrap_or_else(|error| panic!("{error}"));
    let pair = encoder.pair(&encoder.query("a").unwrap(), "b").unwrap();
    assert_eq!(pair.encoding.len(), 5);
}
