//! A model beyond the limits of protobuf messages and signed 32-bit offsets.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::saved::{Bert, WEIGHTS, copy, edit, read_tensors};
use crate::support::server::TestApp;
use axum::http::StatusCode;
use serde_json::{Value, json};

const SMALL: Bert = Bert {
    layers: 1,
    hidden: 512,
    heads: 8,
    intermediate: 512,
    positions: 32,
    vocabulary: 16,
};
const LARGE: Bert = Bert {
    vocabulary: (1 << 20) + 4096,
    ..SMALL
};

/// Tokens of the large decoder: with rows of 32 numbers, a table of 4 GiB.
const TOKENS: usize = 1 << 25;
const WORDS: &str = "model.embed_tokens.weight";

/// Logits of pairs with the first and the last words of the vocabulary.
async fn logits(model: &Path) -> Vec<f32> {
    let app = TestApp::real(Some(model));
    let pairs = [
        ["near", "far"],
        ["near", "last"],
        ["last near", "last far last"],
    ];
    let body = json!({"pairs": pairs, "raw_scores": true});
    let answer = app.post("/predict", body.to_string()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let scores: Value = answer.json()["scores"].clone();
    serde_json::from_value(scores).unwrap()
}

/// Word embeddings at both ends of a table of more than 2 GiB equal those of a small table, and so must the
/// logits.
#[tokio::test]
async fn a_model_of_more_than_two_gibibytes_scores_like_a_small_one() {
    let small = SMALL.write();
    let expected = logits(small.path()).await;
    assert!((expected[0] - expected[1]).abs() > 1e-3, "{expected:?}");

    let large = LARGE.write();
    let size = large.path().join(WEIGHTS).metadata().unwrap().len();
    assert!(size > 1 << 31, "only {size} bytes");
    assert_eq!(logits(large.path()).await, expected);
}

/// A copy of a small decoder whose table of words is a file's hole behind the rows that are used.
fn large_decoder() -> tempfile::TempDir {
    let dir = copy("causal-qwen3");
    let tensors = read_tensors(dir.path());
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    // The large one comes last.
    let (words, others): (Vec<_>, Vec<_>) = tensors.iter().partition(|(name, _)| *name == WORDS);
    let ordered: Vec<_> = others.into_iter().chain(words).collect();
    for &(name, (shape, _)) in &ordered {
        let mut shape = shape.clone();
        if name == WORDS {
            shape[0] = TOKENS;
        }
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    let data = bytes.len();
    let numbers = ordered.iter().flat_map(|(_, (_, numbers))| numbers);
    bytes.extend(numbers.flat_map(|number| number.to_le_bytes()));
    let path = dir.path().join(WEIGHTS);
    fs::remove_file(&path).unwrap();
    let file = File::create(&path).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    file.set_len((data + end) as u64).unwrap();
    edit(dir.path(), "config.json", |config| {
        config["vocab_size"] = TOKENS.into();
    });
    dir
}

#[tokio::test]
async fn a_decoder_of_more_than_four_gibibytes_scores_like_a_small_one() {
    let small = copy("causal-qwen3");
    let expected = logits(small.path()).await;
    assert!((expected[0] - expected[1]).abs() > 1e-3, "{expected:?}");

    let large = large_decoder();
    let size = large.path().join(WEIGHTS).metadata().unwrap().len();
    assert!(size > 1 << 32, "only {size} bytes");
    assert_eq!(logits(large.path()).await, expected);
}
