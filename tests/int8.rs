//! Eight-bit weights keep the order of the embedded model's scores, whatever shares a batch.
#![cfg(feature = "embedded-model")]

mod support;

use std::sync::atomic::AtomicBool;

use rerankd::batch::{Batch, Encoding};
use rerankd::encoder::PairEncoder;
use rerankd::graph::{self, Precision, Rows};
use rerankd::model::Model;
use rerankd::rerank::{Ties, rank};
use rerankd::scorer::Scorer;
use rerankd::scorer::library::Library;
use rerankd::scorer::onnx::{Layout, OnnxModel, OnnxScorer};
use support::reference::Reference;

fn open(model: &Model) -> OnnxScorer {
    let library = Library::load(std::env::var_os("ORT_DYLIB_PATH").as_deref()).unwrap();
    let graph = graph::build(model, Rows::FirstOfEach, Precision::Int8).unwrap();
    let onnx = OnnxModel::new(&library, graph, Layout::of(&model.manifest)).unwrap();
    onnx.session(1).unwrap()
}

fn encodings(model: &Model, reference: &Reference) -> Vec<Encoding> {
    let encoder = PairEncoder::for_model(model).unwrap();
    let encoded = encoder.encode(&reference.pairs(), &AtomicBool::new(false));
    let encoded = encoded.unwrap().into_iter();
    encoded.map(|pair| pair.encoding).collect()
}

fn ranks(scores: &[f32]) -> Vec<f64> {
    let mut ranks = vec![0.0; scores.len()];
    for (place, index) in rank(scores, Ties::default()).into_iter().enumerate() {
        ranks[index] = place as f64;
    }
    ranks
}

/// Spearman's correlation; ties do not occur in the scores of distinct pairs.
fn rank_correlation(a: &[f32], b: &[f32]) -> f64 {
    let n = a.len() as f64;
    let squares = ranks(a)
        .into_iter()
        .zip(ranks(b))
        .map(|(a, b)| (a - b).powi(2));
    1.0 - 6.0 * squares.sum::<f64>() / (n * (n * n - 1.0))
}

#[test]
fn the_order_of_the_embedded_model_is_kept() {
    let model = Model::embedded().unwrap();
    let reference = Reference::read("stsb-minilm-l6");
    let mut scorer = open(&model);
    let encodings = encodings(&model, &reference);
    let scores: Vec<f32> = encodings
        .chunks(8)
        .flat_map(|chunk| scorer.score(&Batch::pack(chunk)).unwrap())
        .collect();
    let correlation = rank_correlation(&scores, &reference.logits());
    let pairs = scores.iter().zip(reference.logits());
    let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("rank correlation {correlation:.5}, worst logit off by {worst:.4}");
    assert!(correlation >= 0.997, "{correlation}");
}

#[test]
fn a_score_is_the_same_bits_whatever_shares_its_batch() {
    let model = Model::embedded().unwrap();
    let mut scorer = open(&model);
    let encodings = encodings(&model, &Reference::read("stsb-minilm-l6"));
    let encodings: Vec<&Encoding> = encodings
        .iter()
        .filter(|e| e.len() < 128)
        .take(40)
        .collect();
    for chunk in encodings.chunks(7) {
        let together = scorer.score(&Batch::pack(chunk.iter().copied())).unwrap();
        for (encoding, together) in chunk.iter().zip(together) {
            assert_eq!(scorer.score(&Batch::pack([*encoding])).unwrap(), [together]);
        }
    }
}
