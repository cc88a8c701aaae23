//! Causal rerankers from model files to HTTP responses: scores match those of sentence-transformers.

use std::path::Path;
use std::process::Command;

use crate::support::reference::{fixture, model_dir};
use crate::support::server::{Server, TestApp};
use serde::Deserialize;
use serde_json::{Value, json};

const TOLERANCE: f32 = 1e-4;

/// Pairs, and what sentence-transformers gives for them.
#[derive(Debug, Deserialize)]
struct Reference {
    pairs: Vec<[String; 2]>,
    pair_ids: Vec<Vec<u32>>,
    pair_logits: Vec<f32>,
}

impl Reference {
    fn read(name: &str) -> Self {
        let text = std::fs::read_to_string(fixture(&format!("{name}.json"))).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Documents of the first query, with their logits.
    fn request(&self) -> (&str, Vec<(&str, f32)>) {
        let query = &self.pairs[0][0];
        let pairs = self.pairs.iter().zip(&self.pair_logits);
        let documents = pairs.filter(|([asked, _], _)| asked == query);
        let documents = documents.map(|([_, document], &logit)| (&**document, logit));
        (query, documents.collect())
    }
}

async fn post(server: &Server, path: &str, body: Value) -> Value {
    let answer = server.request("POST", path, &body.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

/// Scores of `/predict`.
async fn predict(server: &Server, pairs: &[[String; 2]]) -> Vec<f32> {
    let answer = post(server, "/predict", json!({"pairs": pairs})).await;
    let scores = answer["scores"].as_array().unwrap();
    scores.iter().map(|s| s.as_f64().unwrap() as f32).collect()
}

#[tokio::test]
async fn predict_gives_the_reference_logits() {
    for name in ["causal-qwen3", "seqcls-qwen3"] {
        let server = Server::of(TestApp::real(Some(&model_dir(name)))).await;
        let reference = Reference::read(name);
        let answer = post(&server, "/predict", json!({"pairs": reference.pairs})).await;
        let tokens: usize = reference.pair_ids.iter().map(Vec::len).sum();
        assert_eq!(answer["usage"]["total_tokens"], tokens, "{name}");
        let ours = predict(&server, &reference.pairs).await;
        for (ours, expected) in ours.iter().zip(&reference.pair_logits) {
            let off = (ours - expected).abs();
            assert!(
                off <= TOLERANCE * expected.abs().max(0.1),
                "{name}: off by {off}"
            );
        }
    }
}

#[tokio::test]
async fn rerank_orders_by_the_reference_logits() {
    let server = Server::of(TestApp::real(Some(&model_dir("causal-qwen3")))).await;
    let reference = Reference::read("causal-qwen3");
    let (query, documents) = reference.request();
    let texts: Vec<&str> = documents.iter().map(|(text, _)| *text).collect();
    let body = json!({"query": query, "documents": texts});
    let answer = post(&server, "/rerank", body).await;
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), documents.len());
    let mut last = f64::INFINITY;
    for result in results {
        let score = result["relevance_score"].as_f64().unwrap();
        let (_, expected) = documents[result["index"].as_u64().unwrap() as usize];
        assert!(
            (score as f32 - expected).abs() <= TOLERANCE,
            "{score} for {expected}"
        );
        assert!(score <= last);
        last = score;
    }
}

/// Each server starts without scores in its cache.
#[tokio::test]
async fn a_score_does_not_depend_on_how_a_request_is_split() {
    let reference = Reference::read("causal-qwen3");
    let model = model_dir("causal-qwen3");
    let server = || async { Server::of(TestApp::real(Some(&model))).await };
    let together = predict(&server().await, &reference.pairs).await;
    let (apart, backwards) = (server().await, server().await);
    let mut reversed = Vec::new();
    for (index, pair) in reference.pairs.iter().enumerate() {
        let one = predict(&apart, std::slice::from_ref(pair)).await;
        assert_eq!(one, together[index..=index]);
        reversed.insert(0, pair.clone());
    }
    let mut ours = predict(&backwards, &reversed).await;
    ours.reverse();
    assert_eq!(ours, together);
}

#[tokio::test]
async fn info_says_what_the_model_is() {
    let server = Server::of(TestApp::real(Some(&model_dir("causal-qwen3")))).await;
    let info = server.request("GET", "/info", "").await.json();
    assert_eq!(info["architecture"], "qwen3", "{info}");
    assert_eq!(info["precision"], "fp32");
    assert_eq!(info["max_length"], 4096);
    // Its weights are stored in fp32, and few numbers are not in them, such as the table of angles.
    let (bytes, parameters) = (&info["weight_bytes"], &info["parameters"]);
    assert!(
        bytes.as_u64() > parameters.as_u64().map(|n| 4 * n),
        "{bytes}"
    );
}

#[test]
fn verify_compares_with_the_reference_logits() {
    let reference = Reference::read("causal-qwen3");
    let folder = tempfile::tempdir().unwrap();
    let golden = folder.path().join("golden.json");
    let content = json!({"pairs": reference.pairs, "logits": reference.pair_logits});
    std::fs::write(&golden, content.to_string()).unwrap();
    let verify = |golden: &Path| {
        Command::new(env!("CARGO_BIN_EXE_rerankd"))
            .args(["verify", "--model"])
            .arg(model_dir("causal-qwen3"))
            .arg("--reference")
            .arg(golden)
            .output()
            .unwrap()
    };
    let output = verify(&golden);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let mut wrong = content;
    wrong["logits"][3] = json!(reference.pair_logits[3] + 2e-4);
    std::fs::write(&golden, wrong.to_string()).unwrap();
    assert_eq!(verify(&golden).status.code(), Some(1));
}
