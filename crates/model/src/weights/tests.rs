//! Weights that are right, and weights that lie.

use std::fs;

use proptest::prelude::*;
use safetensors::tensor::TensorView;
use serde_json::json;

use super::*;

/// Two rows of two, in F32.
const VALUES: [f32; 4] = [1.0, -2.5, 0.0, 3.0e-5];

/// A file of three tensors, one of each element type that can be read, and one of integers.
fn file() -> Vec<u8> {
    let wide: Vec<u8> = VALUES.iter().flat_map(|v| v.to_le_bytes()).collect();
    let half: Vec<u8> = VALUES
        .iter()
        .flat_map(|&v| f16::from_f32(v).to_le_bytes())
        .collect();
    let brain: Vec<u8> = VALUES
        .iter()
        .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
        .collect();
    let view = |dtype, data| TensorView::new(dtype, vec![2, 2], data).unwrap();
    let tensors = [
        ("a.LayerNorm.gamma", view(Dtype::F32, &wide)),
        ("half", view(Dtype::F16, &half)),
        ("brain", view(Dtype::BF16, &brain)),
        ("integers", view(Dtype::I32, &wide)),
    ];
    safetensors::serialize(tensors, None).unwrap()
}

fn leak(bytes: Vec<u8>) -> &'static [u8] {
    bytes.leak()
}

/// A file of the given header, with `data` bytes after it.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn written(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn check_contents(weights: &Weights) {
    assert_eq!(weights.shape("half"), Some(&[2, 2][..]));
    assert_eq!(weights.shape("nothing"), None);
    assert_eq!(weights.read("a.LayerNorm.weight", &[2, 2]).unwrap(), VALUES);
    for name in ["half", "brain"] {
        let values = weights.read(name, &[2, 2]).unwrap();
        for (value, expected) in values.iter().zip(VALUES) {
            assert!((value - expected).abs() <= expected.abs() / 100.0, "{name}");
        }
    }
}

#[test]
fn tensors_are_read_from_file_and_from_memory() {
    let dir = written(&[("model.safetensors", &file())]);
    let weights = Weights::open(&dir.path().join("model.safetensors")).unwrap();
    check_contents(&weights);
    assert_eq!(weights.parameters(), 16);
    check_contents(&Weights::from_static(leak(file()), "memory").unwrap());
}

#[test]
fn tensors_longer_than_a_chunk_are_read_whole() {
    let values: Vec<f32> = (0..CHUNK).map(|i| i as f32).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![CHUNK], &bytes).unwrap();
    let dir = written(&[(
        "model.safetensors",
        &safetensors::serialize([("t", view)], None).unwrap(),
    )]);
    let weights = Weights::open(&dir.path().join("model.safetensors")).unwrap();
    assert_eq!(weights.read("t", &[CHUNK]).unwrap(), values);
}

#[test]
fn errors_name_tensor_and_shapes() {
    let weights = Weights::from_static(leak(file()), "`model.safetensors`").unwrap();
    let message = |name, shape: &[usize]| weights.read(name, shape).unwrap_err().to_string();
    assert!(
        message("half", &[4]).contains("`half` has the shape [2, 2]; `config.json` requires [4]")
    );
    assert!(message("x", &[4]).contains("`model.safetensors`: there is no tensor `x`"));
    assert!(message("integers", &[2, 2]).contains("`integers` is stored as I32"));
}

#[test]
fn invalid_headers_are_rejected() {
    let tensor = |offsets: &str, shape: &str| {
        format!(r#"{{"t":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let huge = "[18446744073709551615,18446744073709551615]";
    for (bytes, what) in [
        (vec![], "too short for a header"),
        (vec![1; 7], "too short for a header"),
        (u64::MAX.to_le_bytes().to_vec(), "but declares a header of"),
        (1_u64.to_le_bytes().to_vec(), "but declares a header of"),
        (with_header("not json", 0), "invalid header"),
        (with_header("[]", 0), "invalid header"),
        (with_header(&tensor("[0,4]", "[1]"), 3), "bytes of tensors"),
        (with_header(&tensor("[0,4]", "[1]"), 5), "bytes of tensors"),
        (with_header(&tensor("[0,4]", "[2]"), 4), "invalid header"),
        (with_header(&tensor("[4,0]", "[1]"), 4), "invalid header"),
        (with_header(&tensor("[4,8]", "[1]"), 8), "invalid header"),
        (with_header(&tensor("[0,4]", huge), 4), "invalid header"),
        (with_header(&tensor(huge, "[1]"), 4), "invalid header"),
        (with_header(&tensor("[0,-4]", "[1]"), 4), "invalid header"),
    ] {
        let error = Weights::from_static(leak(bytes), "file").unwrap_err();
        assert!(error.message().contains(what), "{error}");
    }
}

#[test]
fn a_file_cut_after_opening_is_an_error() {
    let dir = written(&[("model.safetensors", &file())]);
    let path = dir.path().join("model.safetensors");
    let weights = Weights::open(&path).unwrap();
    fs::write(&path, &file()[..100]).unwrap();
    let error = weights.read("half", &[2, 2]).unwrap_err();
    assert!(error.message().contains("cannot read"), "{error}");
    let source = std::error::Error::source(&error).expect("a cause");
    assert!(source.is::<std::io::Error>(), "{source:?}");
}

proptest! {
    #[test]
    fn truncated_files_are_refused(length in 0..file().len()) {
        let bytes = file()[..length].to_vec();
        prop_assert!(Weights::from_static(leak(bytes), "file").is_err());
    }

    #[test]
    fn damaged_files_never_panic(
        flips in prop::collection::vec((0..file().len(), any::<u8>()), 1..8),
    ) {
        let mut bytes = file();
        for (position, value) in flips {
            bytes[position] = value;
        }
        if let Ok(weights) = Weights::from_static(leak(bytes), "file") {
            let names: Vec<&String> = weights.tensors.keys().collect();
            for name in names {
                let shape = weights.shape(name).unwrap();
                let _ = weights.read(name, shape);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        prop_assert!(Weights::from_static(leak(bytes), "file").is_err());
    }
}

#[test]
fn shards_are_read_as_one() {
    let index = json!({"metadata": {}, "weight_map": {"half": "one.safetensors", "brain": "one.safetensors"}});
    let dir = written(&[
        ("one.safetensors", &file()),
        ("index.json", index.to_string().as_bytes()),
    ]);
    check_contents(&Weights::open_sharded(dir.path(), "index.json").unwrap());
}

#[test]
fn bad_indexes_are_refused() {
    for (index, what) in [
        (json!({}), "`weight_map` is missing"),
        (json!({"weight_map": {}}), "`weight_map` is empty"),
        (json!({"weight_map": []}), "it must be an object"),
        (
            json!({"weight_map": {"t": "../one.safetensors"}}),
            "which is not a file name",
        ),
        (
            json!({"weight_map": {"t": "/one.safetensors"}}),
            "which is not a file name",
        ),
        (
            json!({"weight_map": {"t": "./one.safetensors"}}),
            "which is not a file name",
        ),
        (
            json!({"weight_map": {"t": ".."}}),
            "which is not a file name",
        ),
        (json!({"weight_map": {"t": ""}}), "which is not a file name"),
        (
            json!({"weight_map": {"t": "a/b"}}),
            "which is not a file name",
        ),
        (
            json!({"weight_map": {"t": "two.safetensors"}}),
            "is missing",
        ),
        (
            json!({"weight_map": {"t": "one.safetensors"}}),
            "which does not contain it",
        ),
    ] {
        let dir = written(&[
            ("one.safetensors", &file()),
            ("index.json", index.to_string().as_bytes()),
        ]);
        let error = Weights::open_sharded(dir.path(), "index.json").unwrap_err();
        assert!(error.message().contains(what), "{error}");
    }
}
