//! Several models in one process: which of them answers, and what is said of them.

use std::sync::Arc;

use crate::support::fake::{self, Gate, Model, Seen};
use crate::support::server::{Server, TestApp};
use axum::body::Body;
use axum::http::Request;
use rerankd::config::{ApiKeys, Config, Value as _};
use rerankd::http::models::{FailedModel, LoadedModel, Models};
use rerankd::http::router::build_admin;
use rerankd_engine::Host;
use serde_json::{Value, json};

/// Two models: `large`, also called `big` and `org/large`, answers by default, and `small`.
struct Two {
    app: TestApp,
    host: Arc<Host>,
    large: Seen,
    small: Seen,
}

fn loaded(
    app: &TestApp,
    host: &Arc<Host>,
    name: &str,
    aliases: &[&str],
    model: Model,
) -> LoadedModel {
    LoadedModel {
        reranker: fake::named(name, 1, model, host, &app.state),
        aliases: aliases.iter().map(|&alias| alias.to_owned()).collect(),
    }
}

fn two_with(config: Config, large: Model, small: Model) -> Two {
    let app = TestApp::starting(config);
    let host = fake::host(&app.state);
    let seen = (large.seen.clone(), small.seen.clone());
    let models = vec![
        loaded(&app, &host, "small", &[], small),
        loaded(&app, &host, "large", &["big", "org/large"], large),
    ];
    app.state.install_models(Models::new(models, 1, Vec::new()));
    Two {
        app,
        host,
        large: seen.0,
        small: seen.1,
    }
}

fn two(config: Config) -> Two {
    let small = Model {
        logit: |words| -(words as f32),
        ..Model::default()
    };
    two_with(config, Model::default(), small)
}

fn strict() -> Config {
    let mut config = Config::default();
    config.http.strict_model_name = true;
    // A score that is cached is computed by nobody.
    config.cache.size = 0;
    config
}

/// A request of each dialect that names a model.
fn requests(model: &str) -> Vec<(String, Value)> {
    let texts = json!(["a", "a b"]);
    let plain = json!({ "model": model, "query": "q", "documents": texts });
    let paths = [
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
        "/voyage/v1/rerank",
        "/infinity/rerank",
        "/vllm/v1/rerank",
        "/openai/v1/rerank",
        "/xinference/v1/rerank",
        "/api/rerank",
    ];
    let mut all: Vec<(String, Value)> = paths
        .iter()
        .map(|&path| (path.to_owned(), plain.clone()))
        .collect();
    all.extend([
        (
            "/predict".to_owned(),
            json!({ "model": model, "pairs": [["q", "a"]] }),
        ),
        (
            "/score".to_owned(),
            json!({ "model": model, "text_1": "q", "text_2": ["a"] }),
        ),
        (
            format!("/v2/models/{model}/infer"),
            json!({ "inputs": [
                { "name": "query", "shape": [1], "datatype": "BYTES", "data": ["q"] },
                { "name": "documents", "shape": [2], "datatype": "BYTES", "data": texts },
            ] }),
        ),
        (
            format!("/v1/inference/{model}"),
            json!({ "queries": ["q"], "documents": ["a"] }),
        ),
    ]);
    all
}

#[tokio::test]
async fn every_dialect_selects_by_name_and_by_alias() {
    for (asked, by_small) in [("small", true), ("large", false), ("big", false)] {
        let Two {
            app, large, small, ..
        } = two(strict());
        for (path, body) in requests(asked) {
            let before = (large.pairs(), small.pairs());
            let answer = app.post(&path, body.to_string()).await;
            assert_eq!(answer.status, 200, "{path}: {}", answer.body);
            let scored = (large.pairs() > before.0, small.pairs() > before.1);
            assert_eq!(scored, (!by_small, by_small), "{path} for {asked}");
        }
    }
}

#[tokio::test]
async fn a_name_that_nobody_has_is_for_the_default_or_refused_in_the_dialects_own_way() {
    let Two {
        app, large, small, ..
    } = two(Config::default());
    for (path, body) in requests("unknown") {
        let answer = app.post(&path, body.to_string()).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    }
    assert_eq!(small.pairs(), 0);
    assert!(large.pairs() > 0);

    let Two {
        app, large, small, ..
    } = two(strict());
    for (path, body) in requests("unknown") {
        let answer = app.post(&path, body.to_string()).await;
        let refused = answer.status.is_client_error();
        assert!(refused, "{path}: {} {}", answer.status, answer.body);
        let names = "ask for `small`, `large`, or for none";
        assert!(answer.body.contains(names), "{path}: {}", answer.body);
    }
    assert_eq!((large.pairs(), small.pairs()), (0, 0));
}

#[tokio::test]
async fn the_answer_names_the_model_that_gave_it() {
    let Two { app, .. } = two(Config::default());
    for (asked, name, first) in [
        (json!(null), "large", 1),
        (json!("big"), "large", 1),
        (json!("small"), "small", 0),
    ] {
        let body = json!({ "model": asked, "query": "q", "documents": ["a", "a b"] });
        let answer = app.post("/rerank", body.to_string()).await.json();
        assert_eq!(answer["model"], name);
        assert_eq!(answer["results"][0]["index"], first, "{name}");
    }
}

/// What one model says about a pair, no other repeats.
#[tokio::test]
async fn models_share_no_cached_score() {
    let Two { app, .. } = two(Config::default());
    for (model, score) in [("large", 2.0), ("small", -2.0), ("large", 2.0)] {
        let body = json!({ "model": model, "pairs": [["q", "a b"]], "raw_scores": true });
        let answer = app.post("/predict", body.to_string()).await.json();
        assert_eq!(answer["scores"], json!([score]), "{model}");
    }
}

#[tokio::test]
async fn the_models_are_listed_and_described() {
    let Two { app, .. } = two(strict());
    let list = app.get("/v1/models").await.json();
    let ids: Vec<&str> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|card| card["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["large", "small"], "the default one first");
    for (asked, name) in [("small", "small"), ("big", "large"), ("org/large", "large")] {
        let one = app.get(&format!("/v1/models/{asked}")).await.json();
        assert_eq!(
            (&one["id"], &one["model_name"]),
            (&asked.into(), &name.into())
        );
    }
    app.get("/v1/models/other")
        .await
        .error(404, "unknown_model");
    for (query, name) in [
        ("", "large"),
        ("?model=small", "small"),
        ("?a=b&model=org%2Flarge", "large"),
    ] {
        let info = app.get(&format!("/info{query}")).await.json();
        assert_eq!(info["model_id"], name, "{query}");
    }
    app.get("/info?model=other")
        .await
        .error(404, "unknown_model");
    for path in ["/v2/models/small", "/v2/models/small/versions/1"] {
        assert_eq!(app.get(path).await.json()["name"], "small");
    }
    assert_eq!(app.get("/v2/models/small/ready").await.status, 200);
    assert_eq!(app.get("/v2/models/other/ready").await.status, 404);
}

#[tokio::test]
async fn each_model_is_counted() {
    let Two { app, .. } = two(Config::default());
    for model in ["small", "small", "large"] {
        let body = json!({ "model": model, "query": "q", "documents": ["a", "a b"] });
        app.post("/rerank", body.to_string()).await;
    }
    let metrics = app.get("/metrics").await.body;
    for line in [
        r#"rerankd_model_pairs_total{model="small"} 4"#,
        r#"rerankd_model_pairs_total{model="large"} 2"#,
        // Of all models, as where there is one.
        "rerankd_pairs_total 6",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

/// An app whose model `a` is served, and whose optional model `b`, also called `bee`, failed.
fn one_of_two(config: Config) -> TestApp {
    let app = TestApp::starting(config);
    let host = fake::host(&app.state);
    let models = vec![loaded(&app, &host, "a", &[], Model::default())];
    let failed = FailedModel {
        name: "b".to_owned(),
        aliases: vec!["bee".to_owned()],
        reason: "`b` is missing".to_owned(),
    };
    app.state
        .install_models(Models::new(models, 0, vec![failed]));
    app
}

#[tokio::test]
async fn an_optional_model_that_failed_is_told() {
    let app = one_of_two(Config::default());
    let ready = app.get("/ready").await;
    assert_eq!(ready.json(), json!({ "status": "ready" }));
    let verbose = app.get("/ready?verbose").await;
    let expected = json!({ "status": "ready", "models": [
        { "name": "a", "status": "ready" },
        { "name": "b", "status": "failed", "reason": "`b` is missing" },
    ] });
    assert_eq!(
        (verbose.status.as_u16(), verbose.json()),
        (200, expected.clone())
    );

    // Reasons show paths, so that only those with a key read them, and those who read the listener of operators.
    let mut config = Config::default();
    config.http.api_keys = ApiKeys::parse("sixteen-letters!").unwrap();
    let app = one_of_two(config);
    let with_key = |path: &str, key: &str| {
        let request = Request::get(path).header("x-api-key", key);
        request.body(Body::empty()).unwrap()
    };
    let own = TestApp {
        router: build_admin(app.state.clone()),
        state: app.state.clone(),
    };
    for path in ["/ready", "/health", "/ping", "/vllm/health", "/"] {
        let path = format!("{path}?verbose");
        for (request, told) in [
            (with_key(&path, "not-the-right-one"), false),
            (with_key(&path, "sixteen-letters!"), true),
        ] {
            let answer = app.send(request).await.json();
            assert_eq!(answer == expected, told, "{path}: {answer}");
        }
        let answer = app.get(&path).await;
        assert_eq!(answer.json(), json!({ "status": "ready" }), "{path}");
    }
    assert_eq!(own.get("/ready?verbose").await.json(), expected);
}

/// The default would answer something else than what was asked for.
#[tokio::test]
async fn a_model_that_failed_is_not_answered_for_by_the_default() {
    for config in [Config::default(), strict()] {
        let app = one_of_two(config);
        for asked in ["b", "bee"] {
            for (path, body) in requests(asked) {
                let answer = app.post(&path, body.to_string()).await;
                assert_eq!(answer.status, 503, "{path}: {}", answer.body);
                let told = format!("the model `{asked}` failed to load");
                assert!(answer.body.contains(&told), "{path}: {}", answer.body);
            }
            assert_eq!(app.get(&format!("/info?model={asked}")).await.status, 503);
        }
        let answer = app
            .post("/rerank", r#"{"query":"q","documents":["a"]}"#)
            .await;
        assert_eq!(answer.status, 200);
    }
}

/// A request keeps the model that it began with, and the model is gone with the last of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_replaced_answers_what_it_has_begun() {
    let gate = Gate::new();
    let old = Model {
        gate: Some(gate.clone()),
        ..Model::default()
    };
    let app = TestApp::starting(Config::default());
    let host = fake::host(&app.state);
    let first = loaded(&app, &host, "m", &[], old);
    let kept = Arc::downgrade(&first.reranker);
    app.state
        .install_models(Models::new(vec![first], 0, Vec::new()));
    let server = Server::of(app).await;
    let body = r#"{"query":"q","documents":["a b"],"raw_scores":true}"#;
    let begun = async { server.request("POST", "/rerank", body).await.json() };
    let replace = async {
        gate.entered().await;
        let new = Model {
            logit: |words| 100.0 * words as f32,
            workers: 2,
            ..Model::default()
        };
        let reranker = fake::named("m", 1, new, &host, &server.state);
        let aliases = Vec::new();
        let models = Models::new(vec![LoadedModel { reranker, aliases }], 0, Vec::new());
        server.state.install_models(models);
        assert!(kept.upgrade().is_some(), "a request is under way");
        let next = server.request("POST", "/rerank", body).await.json();
        gate.open_for_good();
        next
    };
    let (begun, next) = tokio::join!(begun, replace);
    let score = |answer: &Value| answer["results"][0]["relevance_score"].clone();
    assert_eq!((score(&begun), score(&next)), (json!(2.0), json!(200.0)));
    server.idle().await;
    assert!(kept.upgrade().is_none(), "nobody needs it any more");
}

/// A model that is busy does not make the requests for another wait for its queue.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_an_idle_model_is_next_behind_the_batch_that_runs() {
    let gate = Gate::new();
    let busy = Model {
        gate: Some(gate.clone()),
        ..Model::default()
    };
    let mut config = Config::default();
    config.batching.max_batch_tokens = 16;
    let Two {
        app,
        host,
        large,
        small,
    } = two_with(config, busy, Model::default());
    let server = Server::of(app).await;
    let documents: Vec<String> = (0..20).map(|nth| format!("w{nth} x x x x x x")).collect();
    let body = json!({ "model": "large", "query": "q", "documents": documents }).to_string();
    let bulk = server.request("POST", "/rerank", &body);
    let other = async {
        gate.entered().await;
        let body = json!({ "model": "small", "query": "q", "documents": ["a"] }).to_string();
        let asked = server.request("POST", "/rerank", &body);
        let release = async {
            let queued = r#"rerankd_model_pairs_total{model="small"}"#;
            while server.metric(queued).await < 1.0 {}
            // One batch at a time, until it is the turn of the other model.
            while small.pairs() == 0 {
                let before = large.batches().len();
                gate.open();
                server
                    .until(|_| small.pairs() > 0 || large.batches().len() > before)
                    .await;
            }
        };
        let (answer, ()) = tokio::join!(asked, release);
        assert_eq!(answer.status, 200);
        let scored = large.batches().len();
        gate.open_for_good();
        scored
    };
    let (bulk, scored) = tokio::join!(bulk, other);
    assert_eq!(bulk.status, 200);
    assert!(scored <= 3, "{scored} batches came first");
    drop(host);
}
