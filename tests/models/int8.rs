//! int8 preserves the ranking of the embedded model on every instruction set, and scores are bit-identical in
//! every batch, in fp32 and bf16 too.
//!
//! `make quality` runs this and prints the figures in docs/bench/int8.md.
#![cfg(feature = "embedded-model")]

use std::path::Path as FilePath;
use std::sync::atomic::AtomicBool;

use crate::support::packed;
use crate::support::reference::{
    Reference, fixture, for_each_encoder, model_dir, rank_correlation,
};
use rerankd_core::Pair;
use rerankd_core::{Batch, Encoding};
use rerankd_kernels::compute_pool::ComputePool;
use rerankd_kernels::isa::InstructionSet;
use rerankd_model::Model;
use rerankd_model::encoder::PairEncoder;
use rerankd_model::graph::{Precision, Rows};
use rerankd_runtime::Scorer;
use rerankd_runtime::onnx::OnnxScorer;
use serde::Deserialize;

/// Minimum rank correlation between int8 and fp32.
const LEAST_CORRELATION: f64 = 0.999;
/// How far logits of portable code may be from others: it rounds the numbers between two products otherwise.
const OTHER_ROUNDING: f32 = 0.05;
/// Maximum loss of correlation with human judgments.
const MOST_LOST: f64 = 0.002;
/// Minimum rank correlation for models with random weights, which magnify errors.
const LEAST_RANDOM_CORRELATION: f64 = 0.98;
/// Name of the embedded model's reference.
const EMBEDDED: &str = "minilm-l6-rank";

pub fn open(model: &Model, precision: Precision, set: InstructionSet) -> OnnxScorer {
    let onnx = packed::open(
        model,
        Rows::FirstOfEach,
        precision,
        ComputePool::one_core(set),
    );
    onnx.session(1).unwrap()
}

pub fn encodings(model: &Model, pairs: &[Pair]) -> Vec<Encoding> {
    let encoder = PairEncoder::for_model(model).unwrap();
    let encoded = encoder.encode(pairs, &AtomicBool::new(false));
    let encoded = encoded.unwrap().into_iter();
    encoded.map(|pair| pair.encoding).collect()
}

pub fn logits(scorer: &mut OnnxScorer, encodings: &[Encoding]) -> Vec<f32> {
    encodings
        .chunks(8)
        .flat_map(|chunk| scorer.score(&Batch::pack(chunk)).unwrap())
        .collect()
}

pub fn worst(a: &[f32], b: &[f32]) -> f32 {
    let pairs = a.iter().zip(b);
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[derive(Deserialize)]
struct Quality {
    logits: Vec<[f32; 1]>,
}

/// The pairs of `tests/reference/quality.tsv`.
pub fn quality_pairs() -> Vec<Pair> {
    let text = std::fs::read_to_string(fixture("quality.tsv")).unwrap();
    let pair = |line: &str| {
        let (query, document) = line.split_once('\t').unwrap();
        Pair {
            query: query.into(),
            document: document.into(),
        }
    };
    text.lines().map(pair).collect()
}

/// The logits of these pairs in fp32.
pub fn quality_logits() -> Vec<f32> {
    let text = std::fs::read_to_string(fixture(&format!("{EMBEDDED}-quality.json"))).unwrap();
    let reference: Quality = serde_json::from_str(&text).unwrap();
    reference.logits.into_iter().map(|[logit]| logit).collect()
}

#[test]
fn the_order_of_three_hundred_pairs_is_kept_on_every_path() {
    let model = Model::embedded().unwrap();
    let reference = quality_logits();
    let encodings = encodings(&model, &quality_pairs());
    assert_eq!(encodings.len(), 300);
    let mut fastest: Option<Vec<f32>> = None;
    for set in InstructionSet::available() {
        // Portable code is many times slower, with the same sums (`rerankd_kernels::isa`): few pairs have to be as
        // the fastest set has them.
        if !set.favors_int8()
            && let Some(fastest) = &fastest
        {
            let some: Vec<Encoding> = encodings.iter().step_by(10).cloned().collect();
            let expected: Vec<f32> = fastest.iter().step_by(10).copied().collect();
            let logits = logits(&mut open(&model, Precision::Int8, set), &some);
            let off = worst(&logits, &expected);
            println!(
                "{} pairs, int8 ({}): off by {off:.3}",
                some.len(),
                set.name()
            );
            assert!(off <= OTHER_ROUNDING, "{}: off by {off}", set.name());
            continue;
        }
        let logits = logits(&mut open(&model, Precision::Int8, set), &encodings);
        let correlation = rank_correlation(&logits, &reference);
        println!(
            "{} pairs, int8 ({}): rank correlation with fp32 {correlation:.5}, worst logit off by \
             {:.3}",
            encodings.len(),
            set.name(),
            worst(&logits, &reference),
        );
        assert!(
            correlation >= LEAST_CORRELATION,
            "{}: {correlation}",
            set.name()
        );
        fastest.get_or_insert(logits);
    }
}

#[test]
fn every_architecture_keeps_the_order_of_its_reference() {
    for_each_encoder(|name| {
        let model = Model::open(&model_dir(name)).unwrap();
        let reference = Reference::read(name);
        let encodings = encodings(&model, &reference.pairs());
        let logits = logits(
            &mut open(&model, Precision::Int8, InstructionSet::best()),
            &encodings,
        );
        let exact = reference.logits();
        let correlation = rank_correlation(&logits, &exact);
        println!(
            "{name}, {} pairs, int8: rank correlation {correlation:.5}, worst logit off by {:.3}",
            encodings.len(),
            worst(&logits, &exact)
        );
        assert!(
            correlation >= LEAST_RANDOM_CORRELATION,
            "{name}: {correlation}"
        );
    });
}

/// Sentence pairs and human judgments of the STS Benchmark test set; `None` if it is not available.
fn sts_benchmark() -> Option<(Vec<Pair>, Vec<f32>)> {
    let path = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/stsb/test.csv");
    if !path.exists() {
        // Shown with `--nocapture`.
        println!("skipped: there is no {}", path.display());
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(!ci, "with CI=true the data has to be there");
        return None;
    }
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().map(|line| {
        let fields = fields(line);
        let [query, document, score] = &fields[..] else {
            panic!("{line}")
        };
        let pair = Pair {
            query: query.as_str().into(),
            document: document.as_str().into(),
        };
        (pair, score.parse::<f32>().unwrap())
    });
    Some(rows.unzip())
}

/// Fields of a CSV line.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut before = ' ';
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                // A doubled quote in a quoted field.
                if quoted && before == '"' {
                    fields.last_mut().unwrap().push('"');
                }
            }
            ',' if !quoted => fields.push(String::new()),
            c => fields.last_mut().unwrap().push(c),
        }
        before = c;
    }
    fields
}

#[test]
fn fields_are_parted_and_unquoted() {
    let line = r#"plain,"a, b","he said ""yes"".",3.5"#;
    assert_eq!(fields(line), ["plain", "a, b", r#"he said "yes"."#, "3.5"]);
}

/// Rank correlations of the embedded model on the STS Benchmark.
pub struct StsCorrelations {
    /// Of fp32 with human judgments.
    pub exact: f64,
    /// Of the other precision with human judgments.
    pub ours: f64,
    /// Between both.
    pub between: f64,
}

/// Compares `precision` with fp32 on the STS Benchmark; `None` if it is not available.
pub fn on_sts_benchmark(precision: Precision) -> Option<StsCorrelations> {
    let (pairs, said) = sts_benchmark()?;
    let model = Model::embedded().unwrap();
    let encodings = encodings(&model, &pairs);
    let set = InstructionSet::best();
    let fp32 = logits(&mut open(&model, Precision::Fp32, set), &encodings);
    let other = logits(&mut open(&model, precision, set), &encodings);
    let exact = rank_correlation(&fp32, &said);
    let ours = rank_correlation(&other, &said);
    let between = rank_correlation(&fp32, &other);
    println!(
        "STS-B test, {} pairs, {precision:?} ({}): Spearman {ours:.5}, fp32 {exact:.5}; rank correlation \
         between both {between:.5}, worst logit off by {:.4}",
        pairs.len(),
        set.name(),
        worst(&fp32, &other),
    );
    Some(StsCorrelations {
        exact,
        ours,
        between,
    })
}

#[test]
fn the_sts_benchmark_loses_next_to_nothing() {
    let Some(StsCorrelations {
        exact,
        ours,
        between,
    }) = on_sts_benchmark(Precision::Int8)
    else {
        return;
    };
    assert!(exact - ours <= MOST_LOST, "{exact} became {ours}");
    assert!(between >= LEAST_CORRELATION, "{between}");
}

#[test]
fn a_score_is_the_same_bits_whatever_shares_its_batch() {
    check_company(&Model::embedded().unwrap(), EMBEDDED);
    for_each_encoder(|name| check_company(&Model::open(&model_dir(name)).unwrap(), name));
}

fn check_company(model: &Model, name: &str) {
    let encodings = encodings(model, &Reference::read(name).pairs());
    let encodings: Vec<&Encoding> = encodings.iter().filter(|e| e.len() < 64).take(28).collect();
    let precisions = [Precision::Fp32, Precision::Bf16, Precision::Int8].into_iter();
    let ways = precisions.flat_map(|p| {
        InstructionSet::available()
            .into_iter()
            .map(move |set| (p, set))
    });
    for (precision, set) in ways {
        let mut scorer = open(model, precision, set);
        for chunk in encodings.chunks(7) {
            let together = scorer.score(&Batch::pack(chunk.iter().copied())).unwrap();
            let together = together.chunks_exact(model.manifest.labels.len());
            for (encoding, together) in chunk.iter().zip(together) {
                assert_eq!(
                    scorer.score(&Batch::pack([*encoding])).unwrap(),
                    together,
                    "{name}, {}, {}",
                    precision.name(),
                    set.name()
                );
            }
        }
    }
}
