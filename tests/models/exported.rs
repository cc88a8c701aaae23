//! ONNX models: logits match those of sentence-transformers, and invalid files are rejected at startup.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::support::packed::library;
use crate::support::program::Program;
use crate::support::reference::{Reference, model_dir};
use crate::support::saved;
use crate::support::server::TestApp;
use rerankd_core::{Batch, Encoding};
use rerankd_kernels::compute_pool::ComputePool;
use rerankd_model::encoder::PairEncoder;
use rerankd_model::{AnyModel, ExportedModel};
use rerankd_runtime::Scorer;
use rerankd_runtime::padded::{PaddedModel, PaddedScorer};

const TOLERANCE: f32 = 1e-4;
/// Tolerance for scores with different padding.
const NEIGHBOURS: f32 = 1e-5;
const DEBERTA: &str = "tiny-deberta-v2";
const ALBERT: &str = "tiny-albert";
const QUANTIZED: &str = "onnx/model_quantized.onnx";

fn open(name: &str, file: Option<&str>) -> (Vec<Encoding>, Reference, PaddedScorer) {
    let model = ExportedModel::open(&model_dir(name), file.map(Path::new)).unwrap();
    let reference = Reference::read(name);
    let encoder = PairEncoder::for_exported(&model).unwrap();
    let pairs = reference.pairs();
    let encoded = encoder.encode(&pairs, &AtomicBool::new(false)).unwrap();
    let encodings = encoded.into_iter().map(|pair| pair.encoding).collect();
    let library = library();
    let padded = PaddedModel::new(&library, &model).unwrap();
    (
        encodings,
        reference,
        padded.session(1, &ComputePool::default()).unwrap(),
    )
}

fn score(scorer: &mut PaddedScorer, encodings: &[Encoding], batch: usize) -> Vec<f32> {
    let chunks = encodings.chunks(batch);
    let logits = chunks.flat_map(|chunk| scorer.score(&Batch::pack(chunk)).unwrap());
    logits.collect()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    off.fold(0.0, f32::max)
}

fn check(name: &str) {
    let (encodings, reference, mut scorer) = open(name, None);
    for (encoding, (ids, types)) in encodings
        .iter()
        .zip(reference.ids.iter().zip(&reference.type_ids))
    {
        assert_eq!((&encoding.ids, &encoding.type_ids), (ids, types), "{name}");
    }
    let expected = reference.logits();
    let worst = worst(&score(&mut scorer, &encodings, 16), &expected);
    assert!(worst <= TOLERANCE, "{name}: off by {worst}");
}

#[test]
fn deberta_v2_gives_the_reference_logits() {
    check(DEBERTA);
}

#[test]
fn albert_with_external_data_gives_the_reference_logits() {
    check(ALBERT);
}

#[test]
fn a_score_does_not_depend_on_its_batch() {
    for name in [DEBERTA, ALBERT] {
        let (encodings, _, mut scorer) = open(name, None);
        let alone = score(&mut scorer, &encodings, 1);
        for batch in [2, 7, encodings.len()] {
            let together = score(&mut scorer, &encodings, batch);
            let worst = worst(&alone, &together);
            assert!(worst <= NEIGHBOURS, "{name}, {batch} at a time: {worst}");
        }
    }
}

/// With one dynamic scale for all rows, a score would depend on its batch.
#[test]
fn scores_of_a_quantized_file_do_not_depend_on_the_batch() {
    let (encodings, reference, mut scorer) = open(DEBERTA, Some(QUANTIZED));
    let alone = score(&mut scorer, &encodings, 1);
    for batch in [5, encodings.len()] {
        assert_eq!(alone, score(&mut scorer, &encodings, batch));
    }
    // Near the logits of the original file, but not equal. Without VNNI, ONNX Runtime's 8-bit products
    // saturate, which doubles the distance.
    let off = worst(&alone, &reference.logits());
    assert!((1e-3..2.0).contains(&off), "{off}");
}

/// Sessions run concurrently on shared weights.
#[tokio::test]
async fn the_server_says_what_it_runs_and_scores_as_the_file_does() {
    let app = TestApp::real(Some(&model_dir(DEBERTA)));
    let info = app.get("/info").await.json();
    assert_eq!(info["architecture"], "deberta-v2");
    assert_eq!(info["format"], "onnx");
    assert_eq!(info["layout"], "padded");
    assert_eq!(info["precision"], "fp32");
    let reference = Reference::read(DEBERTA);
    let pairs = reference.pairs();
    let pairs: Vec<_> = pairs.iter().map(|p| [&*p.query, &*p.document]).collect();
    let body = serde_json::json!({"pairs": pairs, "raw_scores": true}).to_string();
    let answer = app.post("/predict", body).await.json();
    let logits: Vec<f32> = serde_json::from_value(answer["scores"].clone()).unwrap();
    let worst = worst(&logits, &reference.logits());
    assert!(worst <= TOLERANCE, "off by {worst}");
}

#[test]
fn weights_come_before_a_file_where_a_graph_can_be_built() {
    let is_exported = |dir: &Path, file: Option<&str>| {
        let model = AnyModel::open(dir, file.map(Path::new)).unwrap();
        matches!(model, AnyModel::Exported(_))
    };
    let dir = saved::copy("tiny-bert");
    assert!(!is_exported(dir.path(), None));
    fs::write(dir.path().join("model.onnx"), "").unwrap();
    assert!(!is_exported(dir.path(), None));
    assert!(is_exported(dir.path(), Some("model.onnx")));
    fs::remove_file(dir.path().join(saved::WEIGHTS)).unwrap();
    assert!(is_exported(dir.path(), None));
}

/// Files with 32-bit inputs, and with RoBERTa's positions after the padding id.
#[test]
fn positions_are_those_of_the_kind_of_model() {
    let dir = saved::copy("tiny-roberta");
    fs::copy(model_dir("positions.onnx"), dir.path().join("model.onnx")).unwrap();
    let model = ExportedModel::open(dir.path(), None).unwrap();
    let library = library();
    let padded = PaddedModel::new(&library, &model).unwrap();
    let encoding = |ids: &[u32]| Encoding {
        ids: ids.to_vec(),
        type_ids: vec![0; ids.len()],
    };
    let batch = Batch::pack(&[encoding(&[7]), encoding(&[9, 1, 9]), encoding(&[5, 6])]);
    let logits = padded
        .session(1, &ComputePool::default())
        .unwrap()
        .score(&batch)
        .unwrap();
    assert_eq!(logits, [2007.0, 6019.0, 5011.0]);
}

/// A copy of a model modified by `change` is rejected at startup with a message that contains all of
/// `expected`.
#[track_caller]
fn check_refused(name: &str, flags: &[&str], change: impl FnOnce(&Path), expected: &[&str]) {
    let dir = saved::copy(name);
    change(dir.path());
    let program = Program::serve_with(dir.path(), |command| {
        command.args(flags);
    });
    let (code, last) = program.end();
    assert_eq!(code, Some(3), "{last}");
    let error = last["error"].as_str().unwrap();
    for part in expected {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
    assert!(error.contains("hint: "), "{error}");
}

#[test]
fn external_data_outside_the_models_folder_is_refused() {
    for outside in ["/etc/hosts.allow", "../../etc/hosts", "onnx/../../hosts"] {
        let outside = format!("{outside:.<15}");
        let outside = &outside[..15];
        check_refused(
            ALBERT,
            &[],
            |dir| saved::replace(dir, "model.onnx", "model.onnx_data", outside),
            &[outside, "outside its folder"],
        );
    }
    let remove = |dir: &Path| fs::remove_file(dir.join("model.onnx_data")).unwrap();
    check_refused(ALBERT, &[], remove, &["model.onnx_data` is missing"]);
    let cut = |dir: &Path| {
        let path = dir.join("model.onnx_data");
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    };
    check_refused(ALBERT, &[], cut, &["model.onnx_data`", "ends after"]);
}

#[test]
fn files_that_do_not_classify_pairs_are_refused() {
    const FILE: &str = "onnx/model.onnx";
    check_refused(
        DEBERTA,
        &[],
        |dir| saved::replace(dir, FILE, "attention_mask", "attention_musk"),
        &["onnx/model.onnx` has the input `attention_musk`"],
    );
    let labels = |config: &mut serde_json::Value| {
        config["id2label"] = serde_json::json!({"0": "no", "1": "yes"});
    };
    check_refused(
        DEBERTA,
        &[],
        |dir| saved::edit(dir, "config.json", labels),
        &["`logits`", "[batch, 2]"],
    );
    check_refused(
        DEBERTA,
        &[],
        |dir| fs::write(dir.join(FILE), "version https://git-lfs.github.com/spec/v1").unwrap(),
        &["onnx/model.onnx` is a Git LFS pointer", "git lfs pull"],
    );
    check_refused(
        DEBERTA,
        &[],
        |dir| fs::write(dir.join(FILE), "<html>").unwrap(),
        &["not an ONNX file"],
    );
    check_refused(
        ALBERT,
        &[],
        |dir| fs::remove_file(dir.join("model.onnx")).unwrap(),
        &["`albert` is not supported", "optimum-cli export onnx"],
    );
    for (flags, expected) in [
        (["--precision", "int8"], "ONNX files run unchanged"),
        (["--precision", "bf16"], "ONNX files run unchanged"),
        (
            ["--onnx-file", "../model.onnx"],
            "outside the model's directory",
        ),
        (["--onnx-file", "other.onnx"], "other.onnx` is missing"),
    ] {
        check_refused(DEBERTA, &flags, |_| (), &[expected]);
    }
}

/// Hub caches consist of links.
#[cfg(unix)]
#[test]
fn a_file_and_its_external_data_may_be_links() {
    let blobs = saved::copy(ALBERT);
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(blobs.path()).unwrap() {
        let entry = entry.unwrap();
        std::os::unix::fs::symlink(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let model = ExportedModel::open(dir.path(), None).unwrap();
    let library = library();
    let padded = PaddedModel::new(&library, &model).unwrap();
    padded.session(1, &ComputePool::default()).unwrap();
}
