//! The HTTP interface: requests and responses.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::fake::{Gate, MAX_LENGTH, Model};
use crate::support::server::{Answer, SHORT, Server, TestApp, wire};
use axum::body::Body;
use axum::http::Request;
use rerankd::cli::healthcheck;
use rerankd::config::{Config, HttpConfig, Listen, PathPrefix, ShutdownConfig, Value as _};
use rerankd::shutdown::{Phase, Stopped};
use rerankd_core::Activation;
use rerankd_grpc::METHODS;
use serde_json::{Value, json};

const RERANK: &str = r#"{"query":"q","documents":["a","a b c","a b"]}"#;
const PREDICT: &str = r#"{"pairs":[["q","a"],["q","a b"]]}"#;

fn config(change: impl FnOnce(&mut HttpConfig)) -> Config {
    let mut config = Config::default();
    change(&mut config.http);
    config
}

fn indices(answer: &Answer) -> Vec<u64> {
    let body = answer.json();
    let results = body["results"].as_array().expect("results");
    results
        .iter()
        .map(|result| result["index"].as_u64().expect("index"))
        .collect()
}

// Paths.

#[tokio::test]
async fn everything_is_below_the_prefix_and_nothing_beside_it() {
    let prefix = PathPrefix::parse("/search/rerankd/").unwrap();
    let app = TestApp::new(Model::default(), config(|http| http.path_prefix = prefix));
    for path in [
        "/search/rerankd/rerank",
        "/search/rerankd/rerank/",
        "//search//rerankd//v1//rerank",
    ] {
        assert_eq!(app.post(path, RERANK).await.status, 200, "{path}");
    }
    for path in [
        "/health",
        "/v1/models",
        "/metrics",
        "/openapi.json",
        "/docs/",
    ] {
        let below = format!("/search/rerankd{path}");
        assert_eq!(app.get(&below).await.status, 200, "{below}");
        app.get(path).await.error(404, "not_found");
    }
    for path in ["/", "//", "/search", "/search/rerankdd/health"] {
        app.get(path).await.error(404, "not_found");
    }
    let metrics = app.get("/search/rerankd/metrics").await.body;
    let counted = r#"rerankd_requests_total{route="/rerank",status="200"} 2"#;
    assert!(metrics.contains(counted), "{metrics}");
}

/// The page loads its files from below the prefix, whether its own path ends in a slash or not.
#[tokio::test]
async fn the_page_and_the_description_know_the_prefix() {
    let prefix = PathPrefix::parse("/search").unwrap();
    let app = TestApp::new(Model::default(), config(|http| http.path_prefix = prefix));
    for path in ["/search", "/search/"] {
        let page = Request::get(path).header("accept", "text/html");
        let page = app.send(page.body(Body::empty()).unwrap()).await;
        assert_eq!(page.status, 200);
        let links = page.body.split(['"']).filter(|text| text.contains("page/"));
        for link in links {
            assert_eq!(app.get(link).await.status, 200, "{link}");
        }
        assert!(
            page.body.contains(r#""/search/page/page.js""#),
            "{}",
            page.body
        );
        assert!(page.body.contains(r#""/search/docs/""#), "{}", page.body);
    }
    let described = app.get("/search/openapi.json").await.json();
    assert_eq!(described["servers"], json!([{ "url": "/search" }]));
    let docs = app.get("/search/docs").await;
    assert_eq!(
        (docs.status.as_u16(), docs.header("location")),
        (303, "docs/")
    );
}

/// Any client could send the header; only the setting counts.
#[tokio::test]
async fn a_forwarded_prefix_is_not_trusted() {
    let app = TestApp::default();
    let request = |path| {
        let request = Request::get(path).header("x-forwarded-prefix", "/other");
        app.send(request.body(Body::empty()).unwrap())
    };
    assert_eq!(request("/health").await.status, 200);
    request("/other/health").await.error(404, "not_found");
    assert!(request("/openapi.json").await.json()["servers"].is_null());
}

// Valid requests.

#[tokio::test]
async fn rerank_sorts_and_leaves_out_what_nobody_asked_for() {
    let answer = TestApp::default().post("/rerank", RERANK).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "application/json");
    let mut body = answer.json();
    assert_eq!(body["id"], answer.header("x-request-id"));
    let tokens = body["usage"]["total_tokens"].as_u64().unwrap();
    assert!(tokens > 0);
    body["id"] = Value::Null;
    let expected = json!({
        "id": null,
        "model": "fake",
        "results": [
            {"index": 1, "relevance_score": 3.0},
            {"index": 2, "relevance_score": 2.0},
            {"index": 0, "relevance_score": 1.0},
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn scores_have_a_fraction_and_the_shortest_digits() {
    let model = Model {
        logit: |words| [0.0, 1.0, 0.1, -20.0][words],
        ..Model::default()
    };
    let app = TestApp::new(model, Config::default());
    let body = r#"{"pairs":[["q","a"],["q","a b"],["q","a b c"]]}"#;
    let answer = app.post("/predict", body).await;
    assert!(
        answer.body.contains(r#""scores":[1.0,0.1,-20.0]"#),
        "{}",
        answer.body
    );
    let answer = app.post("/rerank", RERANK).await;
    assert!(
        answer.body.contains(r#""relevance_score":0.1}"#),
        "{}",
        answer.body
    );
}

#[tokio::test]
async fn documents_are_strings_or_objects_and_come_back_on_request() {
    let body = r#"{"query":"q","return_documents":true,
        "documents":["",{"text":"é b","title":{"x":[1]}},{"id":7,"text":"c"}]}"#;
    let answer = TestApp::default().post("/rerank", body).await;
    let documents: Vec<Value> = answer.json()["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| result["document"].clone())
        .collect();
    assert_eq!(
        documents,
        [
            json!({"text": "é b"}),
            json!({"text": "c"}),
            json!({"text": ""})
        ]
    );
}

#[tokio::test]
async fn optional_fields_take_null_and_unknown_ones_are_ignored() {
    let app = TestApp::default();
    let body = r#"{"model":5,"query":"q","documents":["a","a b c","a b"],"top_n":null,
        "return_documents":null,"raw_scores":null,"truncate":null,"user":{"deep":[[]]}}"#;
    let answer = app.post("/rerank", body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(indices(&answer), [1, 2, 0]);
    assert!(!answer.body.contains("null"));
    let body = r#"{"pairs":[["q","a"]],"raw_scores":null,"softmax":null,"truncate":null,"x":0}"#;
    assert_eq!(app.post("/predict", body).await.status, 200);
}

#[tokio::test]
async fn top_n_cuts_and_never_adds() {
    let app = TestApp::default();
    for (top_n, expected) in [
        ("1", &[1][..]),
        ("2", &[1, 2]),
        ("3", &[1, 2, 0]),
        ("99", &[1, 2, 0]),
        ("18446744073709551615", &[1, 2, 0]),
    ] {
        let body = RERANK.replace('}', &format!(r#","top_n":{top_n}}}"#));
        assert_eq!(indices(&app.post("/rerank", body).await), expected);
    }
}

#[tokio::test]
async fn ties_keep_the_order_of_the_request() {
    let body = r#"{"query":"q","documents":["x","y y","z","w w"]}"#;
    let answer = TestApp::default().post("/rerank", body).await;
    assert_eq!(indices(&answer), [1, 3, 0, 2]);
}

#[tokio::test]
async fn predict_keeps_the_order_of_the_request() {
    let answer = TestApp::default().post("/predict", PREDICT).await;
    let body = answer.json();
    let tokens = &body["usage"]["prompt_tokens"];
    assert!(tokens.as_u64().unwrap() > 0);
    let expected = json!({
        "model": "fake",
        "scores": [1.0, 2.0],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn several_labels_give_a_list_a_pair() {
    let model = Model {
        labels: 3,
        ..Model::default()
    };
    let app = TestApp::new(model, Config::default());
    let answer = app.post("/predict", PREDICT).await;
    assert_eq!(
        answer.json()["scores"],
        json!([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])
    );
    let body = PREDICT.replace("]]}", r#"]],"softmax":true}"#);
    let answer = app.post("/predict", body).await;
    for row in answer.json()["scores"].as_array().unwrap() {
        let row: Vec<f64> = serde_json::from_value(row.clone()).unwrap();
        assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{row:?}");
    }
    let message = app
        .post("/rerank", RERANK)
        .await
        .error(400, "invalid_request");
    assert!(message.contains("`/predict`"), "{message}");
}

#[tokio::test]
async fn raw_scores_are_logits() {
    let model = Model {
        activation: Activation::Sigmoid,
        ..Model::default()
    };
    let app = TestApp::new(model, Config::default());
    let body = PREDICT.replace("]]}", r#"]],"raw_scores":true}"#);
    assert_eq!(
        app.post("/predict", body).await.json()["scores"],
        json!([1.0, 2.0])
    );
    let scores = app.post("/predict", PREDICT).await.json()["scores"].clone();
    assert_eq!(scores[0], json!(0.731_058_6));
}

#[tokio::test]
async fn truncation_is_visible_or_refused() {
    let app = TestApp::default();
    let long = "w ".repeat(MAX_LENGTH + 1);
    let body = json!({"query": "q", "documents": ["a", long]});
    let answer = app.post("/rerank", body.to_string()).await;
    assert_eq!(answer.json()["truncated"], json!([1]));
    let body = json!({"query": "q", "documents": ["a", long], "truncate": false});
    let answer = app.post("/rerank", body.to_string()).await;
    answer.error(400, "invalid_request");
    let body = json!({"pairs": [["q", long]]});
    let answer = app.post("/predict", body.to_string()).await;
    assert_eq!(answer.json()["truncated"], json!([0]));
}

#[tokio::test]
async fn odd_texts_are_texts() {
    let huge = "word ".repeat(200_000);
    let body = json!({"query": "", "documents": ["", "\u{0}\u{1f600}\u{feff}", huge]});
    let answer = TestApp::default().post("/rerank", body.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(indices(&answer)[0], 2);
}

#[tokio::test]
async fn the_content_type_does_not_matter() {
    let app = TestApp::default();
    for content_type in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
    ] {
        let mut request = Request::post("/rerank");
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let answer = app.send(request.body(RERANK.into()).unwrap()).await;
        assert_eq!(answer.status, 200, "{content_type:?}");
    }
    let marked = format!("\u{feff}{RERANK}");
    assert_eq!(app.post("/rerank", marked).await.status, 200);
}

// Invalid requests.

async fn check_invalid(path: &str, cases: &[(&str, &str)]) {
    let app = TestApp::default();
    for (body, expected) in cases {
        let answer = app.post(path, body.to_string()).await;
        let message = answer.error(400, "invalid_request");
        // Positions are checked in separate tests.
        let place = message
            .rfind(" at line ")
            .filter(|_| !expected.contains(" at line "));
        let text = &message[..place.unwrap_or(message.len())];
        assert_eq!(&text, expected, "for {body}");
        assert!(!message.contains("secret"), "{message}");
    }
}

#[tokio::test]
async fn malformed_bodies_are_named() {
    let no_json = "the body is not valid JSON:";
    let syntax = |rest: &str| format!("{no_json} {rest}");
    check_invalid(
        "/rerank",
        &[
            ("", "the body is empty; send a JSON object"),
            (" \n", "the body is empty; send a JSON object"),
            (
                "{",
                &syntax("EOF while parsing an object at line 1 column 1"),
            ),
            ("secret", &syntax("expected value at line 1 column 1")),
            ("query=secret", &syntax("expected value at line 1 column 1")),
            (
                r#"{"query":"secret","documents":["a"]} secret"#,
                &syntax("trailing characters at line 1 column 38"),
            ),
            (
                r#"{"query":"secret",}"#,
                &syntax("trailing comma at line 1 column 19"),
            ),
            (
                r#"{"query":"\ud800","documents":["a"]}"#,
                "`query` is not valid Unicode at line 1 column 17: it contains half of a surrogate \
                 pair; send both halves or neither",
            ),
            (
                r#"{"query":"q","documents":["\udc00 secret"]}"#,
                "`documents[0]` is not valid Unicode at line 1 column 33: it contains half of a \
                 surrogate pair; send both halves or neither",
            ),
            (
                "{\"query\":\"a\nb\"}",
                &syntax(
                    "control character (\\u0000-\\u001F) found while parsing a string at line 2 column 0",
                ),
            ),
            (
                "null",
                "expected the body to be an object, not null",
            ),
            (
                "\"secret\"",
                "expected the body to be an object, not string",
            ),
            (
                r#"["secret",["a"]]"#,
                "expected the body to be an object, not sequence",
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn wrong_fields_are_named_and_never_quoted() {
    check_invalid(
        "/rerank",
        &[
            ("{}", "`query` is missing; send it"),
            (r#"{"query":"secret"}"#, "`documents` is missing; send it"),
            (
                r#"{"query":null,"documents":["a"]}"#,
                "expected `query` to be a string, not null",
            ),
            (
                r#"{"query":"q","documents":[]}"#,
                "`documents` is empty; send at least one item",
            ),
            (
                r#"{"query":"q","documents":null}"#,
                "expected `documents` to be a list, not null",
            ),
            (
                r#"{"query":"q","documents":"secret"}"#,
                "expected `documents` to be a list, not string",
            ),
            (
                r#"{"query":"q","documents":["a",5]}"#,
                "expected `documents[1]` to be a string or an object with `text`, not integer `5`",
            ),
            (
                r#"{"query":"q","documents":["a",null]}"#,
                "expected `documents[1]` to be a string or an object with `text`, not null",
            ),
            (
                r#"{"query":"q","documents":[{"title":"secret"}]}"#,
                "`documents[0]` has no `text`; add it",
            ),
            (
                r#"{"query":"q","documents":[{"text":["secret"]}]}"#,
                "expected `documents[0].text` to be a string, not sequence",
            ),
            (
                r#"{"query":"q","documents":["a"],"truncate":"secret"}"#,
                "expected `truncate` to be true or false, not string",
            ),
            (
                r#"{"query":"q","documents":["a"],"return_documents":1}"#,
                "expected `return_documents` to be true or false, not integer `1`",
            ),
            (
                r#"{"query":"q","documents":["a"],"raw_scores":{}}"#,
                "expected `raw_scores` to be true or false, not map",
            ),
            (
                r#"{"query":"q","documents":["a"],"top_n":0}"#,
                "`top_n` is 0; send at least 1, or leave it out",
            ),
            (
                r#"{"query":"q","documents":["a"],"top_n":-3}"#,
                "`top_n` is -3; send at least 1, or leave it out",
            ),
            (
                r#"{"query":"q","documents":["a"],"top_n":1.5}"#,
                "expected `top_n` to be a whole number, not floating point `1.5`",
            ),
            (
                r#"{"query":"q","documents":["a"],"top_n":"secret"}"#,
                "expected `top_n` to be a whole number, not string",
            ),
        ],
    )
    .await;
    check_invalid(
        "/predict",
        &[
            ("{}", "`pairs` is missing; send it"),
            (
                r#"{"pairs":[]}"#,
                "`pairs` is empty; send at least one item",
            ),
            (
                r#"{"pairs":[["q","a"],["secret"]]}"#,
                "`pairs[1]` has 1 items; send exactly two strings",
            ),
            (
                r#"{"pairs":[["q","a","secret"]]}"#,
                "`pairs[0]` has 3 items; send exactly two strings",
            ),
            (
                r#"{"pairs":["secret"]}"#,
                "expected `pairs[0]` to be a list of two strings, not string",
            ),
            (
                r#"{"pairs":[["q",{"text":"secret"}]]}"#,
                "expected `pairs[0][1]` to be a string, not map",
            ),
            (
                r#"{"pairs":[["q","a"]],"raw_scores":true,"softmax":true}"#,
                "`raw_scores` and `softmax` exclude each other; send one of them",
            ),
            (
                r#"{"pairs":[["q","a"]],"softmax":true}"#,
                "`softmax` needs several labels; this model has one",
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn wrong_values_are_placed() {
    let body = "{\"query\":\"q\",\n \"documents\":[\"a\",5]}";
    let answer = TestApp::default().post("/rerank", body).await;
    assert_eq!(
        answer.error(400, "invalid_request"),
        "expected `documents[1]` to be a string or an object with `text`, not integer `5` \
         at line 2 column 19"
    );
}

#[tokio::test]
async fn bytes_that_are_no_text_are_placed() {
    let body = b"{\"query\":\"a\xff\"}".to_vec();
    let answer = TestApp::default().post("/rerank", body).await;
    assert_eq!(
        answer.error(400, "invalid_request"),
        "the body is not UTF-8 at byte 11; encode it so"
    );
}

#[tokio::test]
async fn deep_nesting_does_no_harm() {
    let app = TestApp::default();
    let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    for field in ["query", "documents", "top_n"] {
        let body = format!(r#"{{"{field}":{}}}"#, deep(100_000));
        let answer = app.post("/rerank", body).await;
        answer.error(400, "invalid_request");
    }
    let body = RERANK.replace('}', &format!(r#","ignored":{}}}"#, deep(100_000)));
    assert_eq!(app.post("/rerank", body).await.status, 200);
}

#[tokio::test]
async fn too_many_documents_are_counted() {
    let app = TestApp::new(Model::default(), config(|http| http.max_documents = 2));
    assert_eq!(
        app.post("/rerank", RERANK)
            .await
            .error(400, "invalid_request"),
        "`documents` has 3 items; the limit is 2"
    );
    assert_eq!(app.post("/predict", PREDICT).await.status, 200);
}

#[tokio::test]
async fn a_body_that_is_too_large_learns_the_limit() {
    let app = TestApp::new(Model::default(), config(|http| http.max_body_bytes = 45));
    assert_eq!(RERANK.len(), 45);
    assert_eq!(app.post("/rerank", RERANK).await.status, 200);
    let body = format!("{RERANK} ");
    let hint = "the limit is 45 (`--max-body-bytes`, `RERANKD_MAX_BODY_BYTES`)";
    let message = app
        .post("/rerank", body.clone())
        .await
        .error(413, "too_large");
    assert_eq!(message, format!("the body has more than 45 bytes; {hint}"));
    let request = Request::post("/rerank").header("content-length", 46);
    let message = app
        .send(request.body(body.into()).unwrap())
        .await
        .error(413, "too_large");
    assert_eq!(message, format!("the body has 46 bytes; {hint}"));
}

#[tokio::test]
async fn other_paths_and_methods_answer_in_the_same_shape() {
    let app = TestApp::default();
    for path in ["/reranks", "/secret", "/v9/rerank"] {
        let answer = app.post(path, RERANK).await;
        assert!(answer.error(404, "not_found").contains("`POST /rerank`"));
    }
    let answer = app.get("/rerank").await;
    answer.error(405, "method_not_allowed");
    assert_eq!(answer.header("allow"), "POST");
    let answer = app.post("/health", "").await;
    answer.error(405, "method_not_allowed");
    assert_eq!(answer.header("allow"), "GET,HEAD");
}

#[tokio::test]
async fn a_handler_that_panics_is_a_500() {
    let model = Model {
        logit: |_| panic!("secret of the code"),
        ..Model::default()
    };
    let app = TestApp::new(model, Config::default());
    let answer = app.post("/rerank", RERANK).await;
    assert!(!answer.error(500, "internal").contains("secret"));
    assert!(answer.headers.contains_key("x-request-id"));
    assert_eq!(app.get("/health").await.status, 200);
}

#[tokio::test]
async fn a_score_that_is_no_number_is_a_500() {
    for logit in [f32::NAN, f32::INFINITY] {
        let model = Model {
            logit: match logit.is_nan() {
                true => |_| f32::NAN,
                false => |_| f32::INFINITY,
            },
            ..Model::default()
        };
        let app = TestApp::new(model, Config::default());
        app.post("/rerank", RERANK).await.error(500, "internal");
        app.post("/predict", PREDICT).await.error(500, "internal");
    }
}

// Probes, ids, counts, logs.

#[tokio::test]
async fn head_is_get_without_a_body() {
    let app = TestApp::default();
    for path in ["/live", "/ready", "/health", "/info", "/metrics"] {
        let answer = app
            .send(Request::head(path).body(Body::empty()).unwrap())
            .await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, ""));
        assert_eq!(app.get(path).await.status, 200);
    }
}

#[tokio::test]
async fn before_the_model_is_there_only_liveness_and_metrics_answer() {
    let app = TestApp::starting(Config::default());
    assert_eq!(app.get("/live").await.status, 200);
    assert_eq!(app.get("/metrics").await.status, 200);
    for path in ["/ready", "/health", "/info"] {
        let answer = app.get(path).await;
        answer.error(503, "not_ready");
        assert_eq!(answer.header("retry-after"), "1");
    }
    app.post("/rerank", RERANK).await.error(503, "not_ready");
    app.post("/predict", PREDICT).await.error(503, "not_ready");
    app.load(Model::default());
    assert_eq!(app.get("/ready").await.status, 200);
    assert_eq!(app.post("/rerank", RERANK).await.status, 200);
}

#[tokio::test]
async fn a_server_that_was_stopped_while_starting_does_not_become_ready() {
    let app = TestApp::starting(Config::default());
    app.state.lifecycle().advance(Phase::Draining);
    app.load(Model::default());
    app.get("/ready").await.error(503, "draining");
    let answer = app.post("/rerank", RERANK).await;
    answer.error(503, "draining");
    assert_eq!(answer.header("connection"), "close");
}

#[tokio::test]
async fn info_says_what_is_served() {
    let labels = json!({"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}});
    let expected = json!({
        "model_id": "fake",
        "model_sha": null,
        "model_dtype": "float32",
        "served_model_name": "fake",
        "model_type": {"reranker": labels},
        "max_concurrent_requests": Config::default().batching.max_queue_tokens,
        "max_input_length": MAX_LENGTH,
        "max_batch_requests": null,
        "max_client_batch_size": 1000,
        "auto_truncate": true,
        "tokenization_workers": 1,
        "sha": null,
        "docker_label": null,
        "architecture": "bert",
        "format": "safetensors",
        "layout": "packed",
        "labels": ["LABEL_0"],
        "max_length": MAX_LENGTH,
        "activation": "identity",
        "precision": "fp32",
        "precision_because": "it is made up",
        "instructions": "portable",
        "parameters": 7,
        "weight_bytes": 0,
        "threads": 1,
        "sessions": 1,
        "version": env!("CARGO_PKG_VERSION"),
        "runtime_version": "0.0.0",
        "device": "cpu",
        "device_because": "it is made up",
        "providers": {"CPUExecutionProvider": 3},
        "max_documents": 1000,
        "max_body_bytes": 4_194_304,
        "max_batch_tokens": Config::default().batching.max_batch_tokens,
        "max_queue_tokens": Config::default().batching.max_queue_tokens,
    });
    assert_eq!(TestApp::default().get("/info").await.json(), expected);
}

#[tokio::test]
async fn request_ids_are_kept_when_they_are_short_and_printable() {
    let app = TestApp::default();
    let longest = "x".repeat(128);
    let too_long = "x".repeat(129);
    for (sent, kept) in [
        (&b"my id-1/2"[..], true),
        (longest.as_bytes(), true),
        (too_long.as_bytes(), false),
        (b"", false),
        (b"tab\there", false),
        ("é".as_bytes(), false),
    ] {
        let request = Request::post("/rerank").header("x-request-id", sent);
        let answer = app.send(request.body(RERANK.into()).unwrap()).await;
        let id = answer.header("x-request-id");
        assert_eq!(id.as_bytes() == sent, kept, "{sent:?}");
        assert_eq!(answer.json()["id"], id);
        assert!(kept || uuid::Uuid::parse_str(id).is_ok(), "{id}");
    }
    let (first, second) = (app.get("/nowhere").await, app.get("/nowhere").await);
    assert_ne!(
        first.header("x-request-id"),
        second.header("x-request-id"),
        "errors have ids, each its own"
    );
}

#[tokio::test]
async fn requests_are_counted_by_matched_route() {
    let app = TestApp::default();
    app.post("/rerank", RERANK).await;
    app.post("/rerank", "").await;
    app.get("/rerank").await;
    app.get("/secret/path").await;
    let text = app.get("/metrics").await.body;
    for line in [
        r#"rerankd_requests_total{route="/rerank",status="200"} 1"#,
        r#"rerankd_requests_total{route="/rerank",status="400"} 1"#,
        r#"rerankd_requests_total{route="/rerank",status="405"} 1"#,
        r#"rerankd_requests_total{route="other",status="404"} 1"#,
        r#"rerankd_request_seconds_count{route="/rerank"} 3"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("secret"));
}

/// Collects log lines.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// Runs `work` and returns its log lines at `info` and above.
    pub async fn of(work: impl Future<Output = ()>) -> Vec<Value> {
        // Beside no other subscriber, this one would lose the events whose call sites another thread, which has none,
        // reaches first: `tracing` asks the subscriber of that thread alone. Fails if it was installed before.
        let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry());
        let lines = Self::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_writer(move || writer.clone())
            .finish();
        {
            let _guard = tracing::subscriber::set_default(subscriber);
            work.await;
        }
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(!text.contains("secret"), "{text}");
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

#[tokio::test]
async fn one_line_a_request_and_never_the_texts() {
    let app = TestApp::default();
    let lines = Lines::of(async {
        let body = r#"{"query":"secret","documents":["secret one"],"top_n":1}"#;
        let request = Request::post("/rerank?secret").header("x-request-id", "id-1");
        app.send(request.body(body.into()).unwrap()).await;
        app.post("/rerank", r#"{"query":["secret"]}"#).await;
        app.get("/secret").await;
        app.get("/ready").await;
    })
    .await;
    let statuses: Vec<_> = lines.iter().map(|line| line["status"].as_u64()).collect();
    assert_eq!(statuses, [Some(200), Some(400), Some(404)]);
    let line = &lines[0];
    assert_eq!(line["message"], "request");
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["method"], "POST");
    assert_eq!(line["route"], "/rerank");
    assert_eq!(line["request_id"], "id-1");
    assert_eq!(line["pairs"], 1);
    assert!(line["tokens"].as_u64().unwrap() > 0);
    assert!(line["latency_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(lines[2]["route"], "other");
}

#[tokio::test]
async fn the_cause_of_a_500_is_in_its_line() {
    let model = Model {
        logit: |_| f32::NAN,
        ..Model::default()
    };
    let app = TestApp::new(model, Config::default());
    let lines = Lines::of(async {
        app.post("/predict", PREDICT).await;
    })
    .await;
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["level"], "ERROR");
    let cause = lines[0]["cause"].as_str().unwrap();
    assert!(cause.contains("not finite"), "{cause}");
}

// Over a socket.

fn held() -> (Model, Gate) {
    let gate = Gate::new();
    let model = Model {
        gate: Some(gate.clone()),
        ..Model::default()
    };
    (model, gate)
}

fn stopping(grace: Duration, drain_timeout: Duration) -> Config {
    Config {
        shutdown: ShutdownConfig {
            grace,
            drain_timeout,
        },
        ..Config::default()
    }
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn connections_are_kept_open_between_requests() {
    let server = Server::start(Model::default(), Config::default()).await;
    let mut client = server.connect().await;
    for _ in 0..3 {
        client.send(&wire("POST", "/rerank", RERANK)).await;
        let head = client.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(!head.contains("connection: close"), "{head}");
        client.until("}}").await;
    }
}

#[tokio::test]
async fn probes_do_not_wait_for_the_model() {
    let (model, gate) = held();
    let server = Server::start(model, Config::default()).await;
    let mut client = server.connect().await;
    client.send(&wire("POST", "/rerank", RERANK)).await;
    gate.entered().await;
    let mut probe = server.connect().await;
    for path in ["/live", "/ready", "/health", "/info", "/metrics"].repeat(20) {
        // A response without a body ends with its head.
        probe.send(&wire("HEAD", path, "")).await;
        let head = probe.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {head}");
    }
    assert_eq!(server.state.in_flight(), 1);
    gate.open();
    assert!(client.until("}}").await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request() {
    let (model, gate) = held();
    let server = Server::start(model, Config::default()).await;
    let mut client = server.connect().await;
    client.send(&wire("POST", "/rerank", RERANK)).await;
    gate.entered().await;
    drop(client);
    server.idle().await;
    let text = server.state.metrics().render();
    let line = r#"rerankd_requests_total{route="/rerank",status="499"} 1"#;
    assert!(text.contains(line), "{text}");
}

#[tokio::test]
async fn a_large_body_is_refused_with_an_answer_that_arrives() {
    let server = Server::start(Model::default(), Config::default()).await;
    let mut client = server.connect().await;
    // More than the socket buffers, so that the client is still writing when the server responds.
    let body = " ".repeat(24 << 20);
    client.send(&wire("POST", "/rerank", &body)).await;
    let answer = client.until("\"}").await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("the body has 25165824 bytes; the limit is 4194304"));
}

#[tokio::test]
async fn a_client_that_asks_first_is_refused_before_it_sends() {
    let server = Server::start(Model::default(), Config::default()).await;
    let head = "POST /rerank HTTP/1.1\r\nhost: test\r\ncontent-length: 9000000\r\n\
                expect: 100-continue\r\n\r\n";
    let answer = server.exchange(head).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test]
async fn slow_heads_are_cut_off() {
    let config = config(|http| http.header_timeout = SHORT);
    let server = Server::start(Model::default(), config).await;
    let answer = server.exchange("GET /live HTTP/1.1\r\nhost:").await;
    assert!(!answer.contains("200 OK"), "{answer}");
}

#[tokio::test]
async fn slow_bodies_are_cut_off() {
    let config = config(|http| http.body_timeout = SHORT);
    let server = Server::start(Model::default(), config).await;
    let mut client = server.connect().await;
    client
        .send("POST /rerank HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n{")
        .await;
    let answer = client.until("\"}").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("within 0.1 s"), "{answer}");
}

#[tokio::test]
async fn accepted_requests_are_answered_before_the_server_stops() {
    let (model, gate) = held();
    let server = Server::start(model, stopping(Duration::ZERO, HOUR)).await;
    let mut idle = server.connect().await;
    idle.send(&wire("HEAD", "/live", "")).await;
    idle.until("\r\n\r\n").await;
    let mut client = server.connect().await;
    client.send(&wire("POST", "/rerank", RERANK)).await;
    gate.entered().await;
    let mut half = server.connect().await;
    half.send("POST /rerank HTTP/1.1\r\n").await;
    // After a complete exchange, the server has seen the incomplete request too.
    server
        .exchange("GET /live HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        .await;

    server.signals.send(()).await.unwrap();
    server.closed().await;
    assert_eq!(idle.rest().await, "", "idle connections are closed");
    half.send("host: test\r\ncontent-length: 0\r\n\r\n").await;
    let refused = half.rest().await;
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(refused.contains("\r\nconnection: close\r\n"), "{refused}");
    assert!(refused.contains("\"error_type\":\"draining\""), "{refused}");
    assert!(!server.stopped.is_finished());

    gate.open();
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert_eq!(server.stopped.await.unwrap(), Stopped::Clean);
}

#[tokio::test]
async fn during_grace_requests_are_served_and_readiness_is_not() {
    let server = Server::start(Model::default(), stopping(HOUR, HOUR)).await;
    server.signals.send(()).await.unwrap();
    server.state.lifecycle().reached(Phase::Grace).await;
    let ready = server.exchange(&wire("GET", "/ready", "")).await;
    assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
    assert!(ready.contains("\"error_type\":\"draining\""), "{ready}");
    // Reading to the end shows that the server closes the connection.
    let answer = server.exchange(&wire("POST", "/rerank", RERANK)).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    let live = server.exchange(&wire("GET", "/live", "")).await;
    assert!(live.starts_with("HTTP/1.1 200 OK\r\n"), "{live}");
    server.signals.send(()).await.unwrap();
    assert_eq!(server.stopped.await.unwrap(), Stopped::Killed);
}

#[tokio::test]
async fn the_drain_timeout_ends_waiting() {
    let (model, gate) = held();
    let server = Server::start(model, stopping(Duration::ZERO, SHORT)).await;
    let mut client = server.connect().await;
    client.send(&wire("POST", "/rerank", RERANK)).await;
    gate.entered().await;
    server.signals.send(()).await.unwrap();
    assert_eq!(server.stopped.await.unwrap(), Stopped::TimedOut);
    assert_eq!(server.state.in_flight(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_healthcheck_agrees_with_readiness() {
    let server = Server::start(Model::default(), stopping(HOUR, HOUR)).await;
    let address = server.address;
    let endpoint = healthcheck::Endpoint {
        address: Listen::Tcp(address),
        tls: false,
        prefix: PathPrefix::default(),
    };
    let ask = move || healthcheck::check_ready(&endpoint, Duration::from_secs(60));
    let ready = tokio::task::spawn_blocking(ask.clone()).await.unwrap();
    ready.unwrap();
    server.signals.send(()).await.unwrap();
    server.state.lifecycle().reached(Phase::Grace).await;
    let error = tokio::task::spawn_blocking(ask).await.unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "status 503, the server is stopping; retry on another instance"
    );
}

/// Counters start at zero; otherwise a rate would miss the first event.
#[tokio::test]
async fn every_route_that_scores_is_counted_from_zero() {
    let text = TestApp::default().state.metrics().render();
    let document = rerankd::http::openapi::value();
    let paths = document["paths"].as_object().unwrap();
    let takes_texts = paths.iter().filter(|(_, item)| item["post"].is_object());
    let mut routes = 0;
    for (path, item) in
        takes_texts.filter(|(path, _)| !["/tokenize", "/decode"].contains(&path.as_str()))
    {
        let documented = item["post"]["responses"].as_object().unwrap().keys();
        for status in documented.map(String::as_str).chain(["405", "499"]) {
            let line = format!(r#"rerankd_requests_total{{route="{path}",status="{status}"}} 0"#);
            assert!(text.contains(&line), "{line}");
        }
        routes += 1;
    }
    routes += METHODS.iter().filter(|method| method.scores()).count();
    assert_eq!(text.matches(r#"status="500"} 0"#).count(), routes);
    assert!(text.contains(r#"rerankd_requests_total{route="/ready",status="503"} 0"#));
}
