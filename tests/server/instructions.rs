//! The instruction of a request.

use crate::support::fake::Model;
use crate::support::server::TestApp;
use rerankd::config::Config;
use serde_json::{Value, json};

fn app(prompts: bool) -> TestApp {
    let model = Model {
        prompts,
        max_length: 64,
        ..Model::default()
    };
    TestApp::new(model, Config::default())
}

/// The scores of two documents, in their own order, for a body with more fields.
async fn scores(app: &TestApp, path: &str, fields: Value) -> [f64; 2] {
    let mut body = json!({"query": "w10", "documents": ["w11", "w12 w13"]});
    let object = body.as_object_mut().unwrap();
    object.extend(fields.as_object().unwrap().clone());
    let answer = app.post(path, body.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.json());
    let mut scores = [f64::NAN; 2];
    for result in answer.json()["results"].as_array().unwrap() {
        scores[result["index"].as_u64().unwrap() as usize] =
            result["relevance_score"].as_f64().unwrap();
    }
    scores
}

/// Scores of different instructions are different cache entries, and those of the same are shared.
#[tokio::test]
async fn an_instruction_is_part_of_what_is_scored() {
    let app = app(true);
    let hits = || app.state.metrics().engine.cache_hits.get();
    let plain = scores(&app, "/rerank", json!({})).await;
    let told = scores(&app, "/rerank", json!({"instruction": "w2 w3"})).await;
    assert_eq!(hits(), 0);
    assert!(plain[0] != told[0] && plain[1] != told[1]);
    assert_eq!(
        scores(&app, "/rerank", json!({"instruct": "w2 w3"})).await,
        told
    );
    assert_eq!(
        scores(&app, "/rerank", json!({"prompt_name": "named"})).await,
        told
    );
    assert_eq!(
        scores(&app, "/vllm/rerank", json!({"instruction": "w2 w3"})).await,
        told
    );
    assert_eq!(
        scores(&app, "/rerank", json!({"instruction": ""})).await,
        plain
    );
    for fields in [
        json!({"instruction": "", "prompt_name": "named"}),
        json!({"instruct": "w2 w3", "prompt_name": ""}),
    ] {
        assert_eq!(scores(&app, "/rerank", fields).await, told);
    }
    assert_eq!(hits(), 12);

    let body = json!({"pairs": [["w10", "w11"]], "instruction": "w2 w3"});
    let answer = app.post("/predict", body.to_string()).await;
    assert_eq!(answer.json()["scores"], json!([told[0]]));
    let body = json!({"text_1": "w10", "text_2": "w11", "instruction": "w2 w3"});
    let answer = app.post("/score", body.to_string()).await;
    assert_eq!(answer.json()["data"][0]["score"], json!(told[0]));

    let body = json!({"query": "w10", "documents": ["w11"], "prompt_name": "other"});
    let answer = app.post("/rerank", body.to_string()).await;
    let error = answer.error(400, "invalid_request");
    assert!(error.contains("`named`"), "{error}");
}

/// What the model cannot do is refused, but where the format's own server ignores it.
#[tokio::test]
async fn a_model_without_instructions_refuses_or_ignores_them() {
    let app = app(false);
    let plain = scores(&app, "/vllm/rerank", json!({})).await;
    assert_eq!(
        scores(&app, "/vllm/rerank", json!({"instruction": "w2"})).await,
        plain
    );
    for fields in [
        json!({"instruction": "w2"}),
        json!({"prompt_name": "query"}),
    ] {
        let mut body = json!({"query": "w10", "documents": ["w11"]});
        body.as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        let answer = app.post("/rerank", body.to_string()).await;
        assert_eq!(answer.status, 400, "{}", answer.json());
        assert!(
            answer.json()["message"]
                .as_str()
                .unwrap()
                .contains("takes no instruction")
        );
    }
}
