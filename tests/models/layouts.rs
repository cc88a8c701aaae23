//! Layouts of weights: known ones are recognized by their tensors, unknown ones are served from an ONNX file or
//! refused, and files that are only pointers are named.

use std::fs;
use std::path::Path;

use crate::support::packed;
use crate::support::program::Program;
use crate::support::reference::Reference;
use crate::support::saved::{self, WEIGHTS};
use rerankd_core::{Batch, Encoding};
use rerankd_kernels::compute_pool::ComputePool;
use rerankd_model::graph::{Precision, Rows};
use rerankd_model::{AnyModel, ExportedModel, Model, ModelError};
use rerankd_runtime::Scorer;
use safetensors::Dtype;
use serde_json::{Value, json};

const ONNX: &str = "onnx/model.onnx";
const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";

/// The fixtures of architectures that are published with code of their own.
const WITH_CODE: [&str; 4] = ["tiny-jina-v1", "tiny-jina-v2", "tiny-gte", "tiny-gte-en"];

fn logits(dir: &Path, name: &str) -> Vec<f32> {
    let model = Model::open(dir).unwrap_or_else(|error| panic!("{error}"));
    let rows = Rows::FirstOfEach;
    let onnx = packed::open(&model, rows, Precision::Fp32, ComputePool::default());
    let reference = Reference::read(name);
    let pairs = reference.ids.iter().zip(&reference.type_ids).take(8);
    let encodings: Vec<Encoding> = pairs
        .map(|(ids, types)| Encoding {
            ids: ids.clone(),
            type_ids: match model.manifest.tokenizer.uses_type_ids {
                true => types.clone(),
                false => vec![0; ids.len()],
            },
        })
        .collect();
    onnx.session(1)
        .unwrap()
        .score(&Batch::pack(&encodings))
        .unwrap()
}

fn rename(dir: &Path, change: impl Fn(&str) -> String) {
    let tensors = saved::read_tensors(dir).into_iter();
    let tensors = tensors
        .map(|(name, tensor)| (change(&name), tensor))
        .collect();
    saved::write_tensors(&dir.join(WEIGHTS), &tensors, Dtype::F32);
}

fn with_onnx(dir: &Path) {
    fs::create_dir_all(dir.join("onnx")).unwrap();
    fs::write(dir.join(ONNX), "a graph").unwrap();
}

fn refusal(dir: &Path) -> ModelError {
    match AnyModel::open(dir, None) {
        Err(error) => error,
        Ok(_) => panic!("the model was opened"),
    }
}

#[test]
fn wrappers_around_names_are_taken_off() {
    for name in ["tiny-bert", "tiny-gte", "tiny-jina-v2", "tiny-modernbert"] {
        let expected = logits(saved::copy(name).path(), name);
        for wrapper in ["_orig_mod.", "module.", "module._orig_mod.", "model."] {
            let dir = saved::copy(name);
            rename(dir.path(), |tensor| format!("{wrapper}{tensor}"));
            assert_eq!(logits(dir.path(), name), expected, "{name}, {wrapper}");
        }
    }
}

#[test]
fn the_architecture_is_told_from_configuration_and_tensors() {
    for (name, architecture) in WITH_CODE
        .into_iter()
        .zip(["jina-bert", "roberta", "gte", "gte"])
    {
        let model = Model::open(saved::copy(name).path()).unwrap();
        assert_eq!(model.manifest.architecture, architecture, "{name}");
        assert_eq!(model.manifest.labels, ["LABEL_0"], "{name}");
    }
}

/// A change to a model directory, and what the message says about it.
type Change = (&'static str, fn(&Path), &'static str);

/// Changes after which no graph can be built.
const UNKNOWN: [Change; 8] = [
    (
        "tiny-jina-v2",
        |dir| rename(dir, |name| name.replace("mlp.fc1", "mlp.up")),
        "no tensor `roberta.encoder.layers.0.mlp.fc1.weight`",
    ),
    (
        "tiny-jina-v1",
        |dir| {
            let mut tensors = saved::read_tensors(dir);
            let name = "bert.encoder.layer.0.attention.self.layer_norm_q.weight";
            tensors.insert(name.into(), (vec![48], vec![1.0; 48]));
            saved::write_tensors(&dir.join(WEIGHTS), &tensors, Dtype::F32);
        },
        "`bert.encoder.layer.0.attention.self.layer_norm_q.weight` is not understood",
    ),
    (
        "tiny-bert",
        |dir| set(dir, "hidden_act", json!("mish")),
        "`hidden_act` is `mish`",
    ),
    (
        "tiny-bert",
        |dir| set(dir, "position_embedding_type", json!("relative_key")),
        "`position_embedding_type` is `relative_key`",
    ),
    (
        "tiny-bert",
        |dir| set(dir, "model_type", json!("unheard-of")),
        "`unheard-of` is not supported",
    ),
    (
        "tiny-jina-v1",
        |dir| set(dir, "feed_forward_type", json!("original")),
        "`feed_forward_type` is `original`",
    ),
    (
        "tiny-gte",
        |dir| set(dir, "logn_attention_scale", json!(true)),
        "`logn_attention_scale` is true",
    ),
    (
        "tiny-gte",
        |dir| {
            set(
                dir,
                "rope_scaling",
                json!({"type": "dynamic", "factor": 2.0}),
            )
        },
        "is `dynamic`",
    ),
];

fn set(dir: &Path, field: &str, value: Value) {
    saved::edit(dir, "config.json", |config| config[field] = value);
}

#[test]
fn an_unknown_layout_is_served_from_its_onnx_file() {
    for (name, change, expected) in UNKNOWN {
        let dir = saved::copy(name);
        change(dir.path());
        with_onnx(dir.path());
        let model = AnyModel::open(dir.path(), None).unwrap_or_else(|error| panic!("{error}"));
        let AnyModel::Exported(model) = model else {
            panic!("{name}: a graph was built");
        };
        let ExportedModel { path, reason, .. } = *model;
        assert_eq!(path, dir.path().join(ONNX));
        let reason = reason.unwrap();
        assert!(reason.contains(expected), "{expected} is not in: {reason}");
        // Asked for by name, there is nothing to explain.
        let named = AnyModel::open(dir.path(), Some(Path::new(ONNX))).unwrap();
        assert!(matches!(named, AnyModel::Exported(model) if model.reason.is_none()));
    }
}

#[test]
fn an_unknown_layout_without_an_onnx_file_is_refused_with_the_files_that_are_there() {
    for (name, change, expected) in UNKNOWN {
        let dir = saved::copy(name);
        change(dir.path());
        let error = refusal(dir.path());
        assert!(
            error.message().contains(expected),
            "{expected} is not in: {error}"
        );
        for part in ["`--onnx-file`", "`config.json`", "`model.safetensors`"] {
            assert!(error.hint().contains(part), "{part} is not in: {error}");
        }
        fs::create_dir_all(dir.path().join("onnx")).unwrap();
        fs::write(dir.path().join("onnx/model_int8.onnx"), "a graph").unwrap();
        let error = refusal(dir.path());
        let named = "`--onnx-file`: `onnx/model_int8.onnx`";
        assert!(error.hint().ends_with(named), "{error}");
    }
}

/// The log says which file is run and why.
#[test]
fn the_server_logs_why_it_runs_an_onnx_file() {
    let dir = saved::copy("tiny-deberta-v2");
    let mut program = Program::serve(dir.path());
    let line = program.until("the model is served from its ONNX file, padded");
    let file = line["file"].as_str().unwrap();
    assert!(file.ends_with(ONNX), "{line}");
    assert!(
        line["reason"]
            .as_str()
            .is_some_and(|reason| !reason.is_empty()),
        "{line}"
    );
}

#[test]
fn broken_files_do_not_lead_to_an_onnx_file() {
    let dir = saved::copy("tiny-bert");
    with_onnx(dir.path());
    fs::write(dir.path().join(WEIGHTS), "short").unwrap();
    assert!(refusal(dir.path()).message().contains("too short"));
    set(dir.path(), "vocab_size", json!(-1));
    assert!(refusal(dir.path()).message().contains("`vocab_size` is -1"));
}

#[test]
fn git_lfs_pointers_are_named_with_what_to_do() {
    for file in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        WEIGHTS,
    ] {
        let dir = saved::copy("tiny-bert");
        with_onnx(dir.path());
        fs::write(dir.path().join(file), POINTER).unwrap();
        let error = refusal(dir.path());
        let expected = format!("{file}` is a Git LFS pointer");
        assert!(error.message().contains(&expected), "{error}");
        assert!(error.hint().contains("git lfs pull"), "{error}");
    }
}
