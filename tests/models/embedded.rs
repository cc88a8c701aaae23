//! The embedded model has the scores of sentence-transformers.
#![cfg(feature = "embedded-model")]

use crate::support::reference::Reference;
use crate::support::server::{Server, TestApp};
use serde_json::{Value, json};

const TOLERANCE: f32 = 1e-4;

async fn serve() -> (Server, Reference) {
    let server = Server::of(TestApp::real(None)).await;
    (server, Reference::read("minilm-l6-rank"))
}

async fn post(server: &Server, path: &str, body: Value) -> Value {
    let answer = server.request("POST", path, &body.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

#[track_caller]
fn assert_close(ours: impl Iterator<Item = f32>, reference: &[f32]) {
    let ours: Vec<f32> = ours.collect();
    assert_eq!(ours.len(), reference.len());
    let differences = ours.iter().zip(reference).map(|(a, b)| (a - b).abs());
    let worst = differences.fold(0.0, f32::max);
    assert!(worst <= TOLERANCE, "off by {worst}");
}

fn number(value: &Value) -> f32 {
    value.as_f64().expect("a number") as f32
}

/// Body of `/predict` for every `step`th pair, and the number of their tokens.
fn pairs(reference: &Reference, step: usize) -> (Value, usize) {
    let pairs = reference.pairs();
    let pairs = pairs
        .iter()
        .map(|pair| json!([*pair.query, *pair.document]));
    let pairs: Vec<Value> = pairs.step_by(step).collect();
    let tokens = reference.ids.iter().step_by(step).map(Vec::len).sum();
    (json!({"pairs": pairs}), tokens)
}

#[tokio::test]
async fn it_gives_the_reference_logits_and_scores() {
    let (server, reference) = serve().await;
    assert!(reference.pairs.len() >= 100, "{}", reference.pairs.len());
    let (mut body, tokens) = pairs(&reference, 1);
    body["raw_scores"] = json!(true);
    let answer = post(&server, "/predict", body).await;
    let logits = answer["scores"].as_array().unwrap();
    assert_close(logits.iter().map(number), &reference.logits());
    assert_eq!(answer["usage"]["total_tokens"], tokens);

    let (body, _) = pairs(&reference, 10);
    let answer = post(&server, "/predict", body).await;
    let scores = answer["scores"].as_array().unwrap();
    let expected: Vec<f32> = reference.scores().into_iter().step_by(10).collect();
    assert_close(scores.iter().map(number), &expected);
}

#[tokio::test]
async fn it_orders_as_cross_encoder_rank_does() {
    let (server, reference) = serve().await;
    assert!(reference.rank.len() >= 6);
    for case in &reference.rank {
        let documents: Vec<String> = case.documents.iter().map(|d| d.expand()).collect();
        let body = json!({"query": case.query, "documents": documents});
        let answer = post(&server, "/rerank", body).await;
        let results = answer["results"].as_array().unwrap();
        let order: Vec<usize> = results
            .iter()
            .map(|result| result["index"].as_u64().unwrap() as usize)
            .collect();
        assert_eq!(order, case.order, "{:?}", case.query);
        let scores = results.iter().map(|result| &result["relevance_score"]);
        assert_close(scores.map(number), &case.scores);
    }
}

#[tokio::test]
async fn it_says_what_it_is() {
    let (server, _) = serve().await;
    let info = server.request("GET", "/info", "").await.json();
    assert_eq!(info["model_id"], "minilm-l6-rank");
    assert_eq!(info["architecture"], "bert");
    assert_eq!(info["labels"].as_array().unwrap().len(), 1);
    assert_eq!(info["max_length"], 512);
    assert_eq!(info["activation"], "sigmoid");
}
