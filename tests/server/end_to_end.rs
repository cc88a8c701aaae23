//! From model files to HTTP responses: scores match those of sentence-transformers.

use std::path::Path;

use crate::support::reference::{Reference, model_dir};
use crate::support::saved::{self, Tensors, WEIGHTS};
use crate::support::server::{Answer, Server, TestApp};
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Value, json};

const TOLERANCE: f32 = 1e-4;
const ONE_LABEL: [&str; 3] = ["tiny-bert", "tiny-roberta", "tiny-xlm-roberta"];
/// Stride of the scored pairs where scoring all would only take longer.
const SOME: usize = 4;
const SEVERAL_LABELS: &str = "tiny-bert-3-labels";

async fn serve(model: &Path) -> Server {
    Server::of(TestApp::real(Some(model))).await
}

async fn post(server: &Server, path: &str, body: Value) -> Value {
    let answer: Answer = server.request("POST", path, &body.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

/// Body of `/predict` for every `step`th pair of a reference.
fn pairs(reference: &Reference, step: usize) -> Value {
    let pairs = reference.pairs();
    let pairs = pairs.iter().step_by(step);
    let pairs = pairs.map(|pair| json!([*pair.query, *pair.document]));
    json!({"pairs": pairs.collect::<Vec<_>>()})
}

fn with(mut body: Value, field: &str, value: Value) -> Value {
    body[field] = value;
    body
}

/// Scores of `/predict`, row-major.
fn scores(answer: &Value) -> Vec<f32> {
    fn number(value: &Value) -> f32 {
        value.as_f64().expect("a number") as f32
    }
    let scores = answer["scores"].as_array().expect("scores");
    scores
        .iter()
        .flat_map(|score| match score {
            Value::Array(row) => row.iter().map(number).collect(),
            one => vec![number(one)],
        })
        .collect()
}

/// Logits of some pairs of a reference.
async fn logits(server: &Server, reference: &Reference) -> Vec<f32> {
    let body = with(pairs(reference, SOME), "raw_scores", json!(true));
    scores(&post(server, "/predict", body).await)
}

/// [`logits`] of a model in a directory.
async fn logits_of(model: &Path, reference: &Reference) -> Vec<f32> {
    logits(&serve(model).await, reference).await
}

fn every(step: usize, logits: &[f32]) -> Vec<f32> {
    logits.iter().step_by(step).copied().collect()
}

fn worst(ours: &[f32], reference: &[f32]) -> f32 {
    assert_eq!(ours.len(), reference.len());
    let differences = ours.iter().zip(reference).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, f32::max)
}

#[track_caller]
fn assert_close(what: &str, ours: &[f32], reference: &[f32]) {
    let off = worst(ours, reference);
    assert!(off <= TOLERANCE, "{what}: off by {off}");
}

#[tokio::test]
async fn rerank_orders_as_cross_encoder_rank_does() {
    for name in ONE_LABEL {
        let server = serve(&model_dir(name)).await;
        let reference = Reference::read(name);
        assert!(reference.rank.len() >= 6, "{name}");
        for case in &reference.rank {
            let documents: Vec<String> = case.documents.iter().map(|d| d.expand()).collect();
            let body = json!({"query": case.query, "documents": documents});
            let answer = post(&server, "/rerank", body).await;
            let results = answer["results"].as_array().unwrap();
            let order: Vec<usize> = results
                .iter()
                .map(|result| result["index"].as_u64().unwrap() as usize)
                .collect();
            assert_eq!(order, case.order, "{name}: {:?}", case.query);
            let scores: Vec<f32> = results
                .iter()
                .map(|result| result["relevance_score"].as_f64().unwrap() as f32)
                .collect();
            assert_close(name, &scores, &case.scores);
        }
    }
}

#[tokio::test]
async fn predict_gives_the_reference_scores_and_logits() {
    for name in ONE_LABEL {
        let server = serve(&model_dir(name)).await;
        let reference = Reference::read(name);
        let answer = post(&server, "/predict", pairs(&reference, 1)).await;
        assert_close(name, &scores(&answer), &reference.scores());
        let tokens: usize = reference.ids.iter().map(Vec::len).sum();
        assert_eq!(answer["usage"]["total_tokens"], tokens);
        assert_eq!(answer["model"], *name);

        let few = logits(&server, &reference).await;
        assert_close(name, &few, &every(SOME, &reference.logits()));
    }
}

#[tokio::test]
async fn several_labels_are_rows_and_softmax_makes_them_sum_to_one() {
    let server = serve(&model_dir(SEVERAL_LABELS)).await;
    let reference = Reference::read(SEVERAL_LABELS);
    let body = with(pairs(&reference, 1), "softmax", json!(true));
    let answer = post(&server, "/predict", body).await;
    assert_eq!(
        answer["scores"].as_array().unwrap().len(),
        reference.pairs.len()
    );
    for row in answer["scores"].as_array().unwrap() {
        let row: Vec<f64> = serde_json::from_value(row.clone()).unwrap();
        assert_eq!(row.len(), 3);
        assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{row:?}");
    }
    assert_close("softmax", &scores(&answer), &reference.softmax());

    let answer = post(&server, "/predict", pairs(&reference, 1)).await;
    assert_eq!(answer["scores"][0].as_array().unwrap().len(), 3);
    assert_close("scores", &scores(&answer), &reference.scores());
}

/// The reference was given its prompt with the call; here it is the default prompt of the model.
#[tokio::test]
async fn the_default_prompt_comes_before_every_query() {
    for name in ONE_LABEL.iter().chain([&SEVERAL_LABELS]) {
        let reference = Reference::read(name).prompt;
        let dir = saved::copy(name);
        saved::edit(dir.path(), "config_sentence_transformers.json", |config| {
            config["prompts"] = json!({"search": reference.prompt});
            config["default_prompt_name"] = json!("search");
        });
        let pairs: Vec<Value> = reference
            .pairs
            .iter()
            .map(|[query, document]| json!([query.expand(), document.expand()]))
            .collect();
        let body = json!({"pairs": pairs, "raw_scores": true});
        let logits = scores(&post(&serve(dir.path()).await, "/predict", body.clone()).await);
        assert_close(name, &logits, &reference.logits());
        let plain = scores(&post(&serve(&model_dir(name)).await, "/predict", body).await);
        assert!(worst(&plain, &reference.logits()) > 100.0 * TOLERANCE);
    }
}

/// A copy of a reference model with modified weights.
fn rewritten(name: &str, tensors: &Tensors, dtype: Dtype) -> tempfile::TempDir {
    let dir = saved::copy(name);
    saved::write_tensors(&dir.path().join(WEIGHTS), tensors, dtype);
    dir
}

#[tokio::test]
async fn half_precision_weights_are_read_exactly() {
    for name in ["tiny-bert", "tiny-roberta"] {
        let reference = Reference::read(name);
        let tensors = saved::read_tensors(&model_dir(name));
        for (dtype, round, tolerance) in [
            (
                Dtype::F16,
                (|x| f16::from_f32(x).to_f32()) as fn(f32) -> f32,
                0.1,
            ),
            (Dtype::BF16, |x| bf16::from_f32(x).to_f32(), 1.0),
        ] {
            let stored = rewritten(name, &tensors, dtype);
            let mut rounded = tensors.clone();
            for (_, numbers) in rounded.values_mut() {
                numbers
                    .iter_mut()
                    .for_each(|number| *number = round(*number));
            }
            let rounded = rewritten(name, &rounded, Dtype::F32);
            let ours = logits_of(stored.path(), &reference).await;
            assert_eq!(
                worst(&ours, &logits_of(rounded.path(), &reference).await),
                0.0
            );
            let off = worst(&ours, &every(SOME, &reference.logits()));
            assert!(
                off > 0.0 && off < tolerance,
                "{name} in {dtype:?}: off by {off}"
            );
        }
    }
}

#[tokio::test]
async fn shards_are_one_model() {
    let name = "tiny-bert";
    let reference = Reference::read(name);
    let tensors = saved::read_tensors(&model_dir(name));
    let dir = saved::copy(name);
    std::fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
    let mut map = serde_json::Map::new();
    for shard in 0..3 {
        let file = format!("model-{:05}-of-00003.safetensors", shard + 1);
        // Every third tensor, so that each layer is in all shards.
        let part: Tensors = tensors.clone().into_iter().skip(shard).step_by(3).collect();
        saved::write_tensors(&dir.path().join(&file), &part, Dtype::F32);
        map.extend(part.keys().map(|tensor| (tensor.clone(), json!(file))));
    }
    let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
    std::fs::write(
        dir.path().join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    let whole = logits_of(&model_dir(name), &reference).await;
    assert_eq!(worst(&logits_of(dir.path(), &reference).await, &whole), 0.0);
}
