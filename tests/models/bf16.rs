//! bf16 keeps the scores and the order of fp32, and they are close on every instruction set.
#![cfg(feature = "embedded-model")]

use rerankd_kernels::isa::InstructionSet;
use rerankd_model::Model;
use rerankd_model::graph::Precision;

use crate::int8::{
    StsCorrelations, encodings, logits, on_sts_benchmark, open, quality_logits, quality_pairs,
    worst,
};
use crate::support::reference::{Reference, for_each_encoder, model_dir, rank_correlation};

/// Minimum rank correlation with fp32.
const LEAST_CORRELATION: f64 = 0.9999;
/// Maximum loss of correlation with human judgments.
const MOST_LOST: f64 = 0.0005;
/// Most that a logit of the embedded model may be off; they lie between -3.8 and 3.4.
const TOLERANCE: f32 = 0.05;
/// Minimum rank correlation for models with random weights, which magnify errors.
const LEAST_RANDOM_CORRELATION: f64 = 0.998;
/// Most that a logit may differ between two instruction sets: they round alike in products, not between them.
const SET_TOLERANCE: f32 = 0.02;

#[test]
fn three_hundred_pairs_keep_their_order_on_every_instruction_set() {
    let model = Model::embedded().unwrap();
    let encodings = encodings(&model, &quality_pairs());
    let reference = quality_logits();
    let mut first: Option<Vec<f32>> = None;
    for set in InstructionSet::available() {
        // Portable code is many times slower. Few pairs say nothing of their order, but much of its arithmetic.
        let optimized = set.favors_own_fp32();
        let count = if optimized { 300 } else { 30 };
        let ours = logits(&mut open(&model, Precision::Bf16, set), &encodings[..count]);
        let correlation = rank_correlation(&ours, &reference[..count]);
        let off = worst(&ours, &reference[..count]);
        let first = first.get_or_insert_with(|| ours.clone());
        let apart = worst(&ours, &first[..count]);
        println!(
            "{count} pairs, bf16 ({}): rank correlation with fp32 {correlation:.6}, worst logit off by {off:.4}; \
             from the first set by {apart:.4}",
            set.name()
        );
        let kept = !optimized || correlation >= LEAST_CORRELATION;
        assert!(kept, "{}: {correlation}", set.name());
        assert!(off <= TOLERANCE, "{}: {off}", set.name());
        assert!(apart <= SET_TOLERANCE, "{}: {apart}", set.name());
    }
}

#[test]
fn every_architecture_keeps_the_order_of_its_reference() {
    for_each_encoder(|name| {
        let model = Model::open(&model_dir(name)).unwrap();
        let reference = Reference::read(name);
        let encodings = encodings(&model, &reference.pairs());
        let exact = reference.logits();
        let set = InstructionSet::best();
        let ours = logits(&mut open(&model, Precision::Bf16, set), &encodings);
        // Products in fp32 would come closer.
        assert!(worst(&ours, &exact) > 1e-4, "{name}: not in bf16");
        let correlation = rank_correlation(&ours, &exact);
        println!(
            "{name}, bf16: rank correlation {correlation:.5}, worst logit off by {:.3}",
            worst(&ours, &exact)
        );
        assert!(
            correlation >= LEAST_RANDOM_CORRELATION,
            "{name}: {correlation}"
        );
    });
}

#[test]
fn the_sts_benchmark_loses_nothing() {
    let Some(StsCorrelations { exact, ours, .. }) = on_sts_benchmark(Precision::Bf16) else {
        return;
    };
    assert!((exact - ours).abs() <= MOST_LOST, "{exact} became {ours}");
}
