//! `rerankd export`: exported models have the scores of the original.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::AtomicBool;

use crate::support::packed::{self, library};
use crate::support::program::{PROGRAM, plain};
use crate::support::reference::{Reference, for_each_encoder, model_dir};
use rerankd_core::{Batch, Encoding};
use rerankd_kernels::compute_pool::ComputePool;
use rerankd_model::encoder::PairEncoder;
use rerankd_model::graph::standard::{Positions, padded};
use rerankd_model::graph::{self, Precision, Rows};
use rerankd_model::{ExportedModel, Model};
use rerankd_runtime::Scorer;
use rerankd_runtime::padded::PaddedModel;
use rerankd_tools::eval::metric::spearman;
use rerankd_tools::export::{export, export_with};

const TOLERANCE: f32 = 1e-4;
/// Tolerance for int8. The random weights of the tiny models magnify every error.
const LEAST_RANK_CORRELATION: f64 = 0.997;
const LEAST_OF_TINY: f64 = 0.98;
/// Tolerance for int8 scores in different batches.
const NEIGHBOURS: f64 = 0.005;

fn encodings(encoder: &PairEncoder, reference: &Reference) -> Vec<Encoding> {
    let pairs = reference.pairs();
    let encoded = encoder.encode(&pairs, &AtomicBool::new(false)).unwrap();
    encoded.into_iter().map(|pair| pair.encoding).collect()
}

fn score(scorer: &mut dyn Scorer, encodings: &[Encoding]) -> Vec<f32> {
    let batches = encodings.chunks(16);
    let logits = batches.flat_map(|chunk| scorer.score(&Batch::pack(chunk)).unwrap());
    logits.collect()
}

/// Logits of the model exported to `out`.
fn loaded(out: &Path, reference: &Reference) -> Vec<f32> {
    let model = ExportedModel::open(out, None).unwrap();
    let encoder = PairEncoder::for_exported(&model).unwrap();
    let opened = PaddedModel::new(&library(), &model).unwrap();
    score(
        &mut opened.session(1, &ComputePool::default()).unwrap(),
        &encodings(&encoder, reference),
    )
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    off.fold(0.0, f32::max)
}

/// Exports and loads a model: the errors of its logits against the packed graph, and against
/// sentence-transformers.
fn check(name: &str, largest: usize) {
    let dir = model_dir(name);
    let model = Model::open(&dir).unwrap();
    let companions = Model::companions(Some(&dir)).unwrap();
    let out = tempfile::tempdir().unwrap();
    let written = export_with(&model, &companions, out.path(), Precision::Fp32, largest).unwrap();
    assert_eq!(written.files[0], out.path().join("onnx/model.onnx"));
    let reference = Reference::read(name);
    let logits = loaded(out.path(), &reference);

    let encoder = PairEncoder::for_model(&model).unwrap();
    let packed = packed::open(
        &model,
        Rows::FirstOfEach,
        Precision::Fp32,
        ComputePool::default(),
    );
    let mut packed = packed.session(1).unwrap();
    let ours = score(&mut packed, &encodings(&encoder, &reference));
    for (what, expected) in [("packed", ours), ("reference", reference.logits())] {
        let worst = worst(&logits, &expected);
        assert!(worst <= TOLERANCE, "{name}, {what}: off by {worst}");
    }
}

#[test]
fn a_file_of_fp32_gives_the_logits_of_the_packed_graph() {
    for_each_encoder(|name| check(name, usize::MAX));
}

#[test]
fn weights_in_a_file_of_their_own_give_the_same() {
    check("tiny-bert", 1 << 16);
}

#[test]
fn a_file_of_int8_keeps_the_order_of_tiny_models() {
    for_each_encoder(|name| {
        let dir = model_dir(name);
        let model = Model::open(&dir).unwrap();
        let companions = Model::companions(Some(&dir)).unwrap();
        let out = tempfile::tempdir().unwrap();
        export(&model, &companions, out.path(), Precision::Int8).unwrap();
        let reference = Reference::read(name);
        let double =
            |numbers: Vec<f32>| -> Vec<f64> { numbers.into_iter().map(f64::from).collect() };
        let (ours, golden) = (loaded(out.path(), &reference), reference.logits());
        let rho = spearman(&double(ours), &double(golden)).unwrap();
        println!("{name}: rank correlation of int8 with fp32: {rho:.4}");
        assert!(rho >= LEAST_OF_TINY, "{name}: {rho}");
    });
}

/// Rank correlation of the embedded model on 300 pairs.
#[test]
fn a_file_of_int8_keeps_the_order_of_the_embedded_model() {
    let out = tempfile::tempdir().unwrap();
    let companions = Model::companions(None).unwrap();
    let model = Model::embedded().unwrap();
    let written = export(&model, &companions, out.path(), Precision::Int8).unwrap();
    let size = fs::metadata(&written.files[0]).unwrap().len();
    assert!(size < 25_000_000, "{size} bytes");
    let exported = ExportedModel::open(out.path(), None).unwrap();
    let encoder = PairEncoder::for_exported(&exported).unwrap();
    let text = fs::read_to_string(crate::support::reference::fixture("quality.tsv")).unwrap();
    let pairs: Vec<_> = text
        .lines()
        .map(|line| line.split_once('\t').unwrap())
        .map(|(query, document)| rerankd_core::Pair {
            query: query.into(),
            document: document.into(),
        })
        .collect();
    let encoded = encoder.encode(&pairs, &AtomicBool::new(false)).unwrap();
    let encodings: Vec<Encoding> = encoded.into_iter().map(|pair| pair.encoding).collect();
    let opened = PaddedModel::new(&library(), &exported).unwrap();
    let logits = score(
        &mut opened.session(1, &ComputePool::default()).unwrap(),
        &encodings,
    );
    let batched = logits.clone();
    let golden = fs::read(crate::support::reference::fixture(
        "minilm-l6-rank-quality.json",
    ))
    .unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
    let golden = golden["logits"].as_array().unwrap();
    let golden: Vec<f64> = golden
        .iter()
        .map(|logit| logit.as_f64().or_else(|| logit[0].as_f64()).unwrap())
        .collect();
    let logits: Vec<f64> = logits.into_iter().map(f64::from).collect();
    let rho = spearman(&logits, &golden).unwrap();
    println!("rank correlation of the written int8 file with fp32: {rho:.5}");
    assert!(rho >= LEAST_RANK_CORRELATION, "{rho}");

    // Scales are per row: the batch affects a score only by fp32 noise, which may change the rounding of a
    // quantized value, not by another scale.
    let mut session = opened.session(1, &ComputePool::default()).unwrap();
    let mut alone = Vec::new();
    for encoding in &encodings {
        let batch = Batch::pack(std::slice::from_ref(encoding));
        alone.extend(session.score(&batch).unwrap());
    }
    let off = f64::from(worst(&alone, &batched));
    println!("a score alone and in a batch: at most {off:.6} apart");
    assert!(off <= NEIGHBOURS, "{off}");
}

fn run(arguments: &[&str], out: &Path) -> Output {
    let mut command = plain(PROGRAM);
    let command = command.arg("export").args(arguments).arg("--out").arg(out);
    command.output().unwrap()
}

#[test]
fn the_program_writes_a_directory_and_overwrites_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let model = model_dir("tiny-bert");
    let flags = ["--model", model.to_str().unwrap()];
    let out = folder.path().join("out");
    let done = run(&flags, &out);
    assert!(done.status.success(), "{done:?}");
    let printed = String::from_utf8(done.stdout).unwrap();
    assert!(printed.contains("out/onnx/model.onnx") && printed.contains("out/tokenizer.json"));
    let reference = Reference::read("tiny-bert");
    assert!(worst(&loaded(&out, &reference), &reference.logits()) <= TOLERANCE);

    let again = run(&flags, &out);
    assert_eq!(again.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&again.stderr).contains("model.onnx` exists\nhint: "));

    let file = folder.path().join("alone.onnx");
    assert!(run(&flags, &file).status.success());
    assert!(file.is_file());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn what_nothing_could_load_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let refused = run(&["--layout", "packed"], &out);
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        said.contains("which only this program has\nhint: "),
        "{said}"
    );
    // A fused layer cannot be exported.
    let model = Model::open(&model_dir("tiny-bert")).unwrap();
    let graph = graph::build(&model, Rows::FirstOfEach, Precision::Fp32).unwrap();
    let positions = Positions {
        first: 0,
        of_segment: 512,
        skipped_token: None,
        segments: true,
    };
    let error = padded(graph, positions, Precision::Fp32).unwrap_err();
    assert!(error.to_string().contains("`Layer`"), "{error}");
    // An ONNX file cannot be exported again.
    let model = model_dir("tiny-deberta-v2");
    let refused = run(&["--model", model.to_str().unwrap()], &out);
    assert_eq!(refused.status.code(), Some(3));
    assert!(!out.exists());
}
