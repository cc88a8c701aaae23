//! A model beyond the limits of protobuf messages and signed 32-bit offsets.

use std::path::Path;

use crate::support::saved::{Bert, WEIGHTS};
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
