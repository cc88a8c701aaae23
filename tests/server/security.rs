//! Authentication, cross-origin requests and limits of request bodies.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::alone::{alone, peak_bytes};
use crate::support::fake::{Gate, Model};
use crate::support::server::{Answer, TestApp};
use axum::body::Body;
use axum::http::Request;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use rerankd::config::{ApiKeys, Config, HttpConfig, Listen, Origins, Value};
use serde_json::json;

const RERANK: &str = r#"{"query":"q","documents":["a","a b c","a b"]}"#;
const KEY: &str = "sixteen-letters!";

fn app(change: impl FnOnce(&mut HttpConfig)) -> TestApp {
    let mut config = Config::default();
    change(&mut config.http);
    TestApp::new(Model::default(), config)
}

fn with_keys() -> TestApp {
    let keys = format!("search: {KEY}, other-key-of-two");
    app(|http| http.api_keys = ApiKeys::parse(&keys).unwrap())
}

/// Sends a request with headers.
async fn post(app: &TestApp, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = Request::post(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    app.send(request.body(Body::from(body.to_owned())).unwrap())
        .await
}

// Keys.

#[tokio::test]
async fn with_keys_only_those_who_show_one_are_served() {
    let app = with_keys();
    let bearer = format!("Bearer {KEY}");
    for shown in [
        &[("authorization", bearer.as_str())][..],
        &[("authorization", "Bearer other-key-of-two")],
        &[("authorization", KEY)],
        &[("x-api-key", KEY)],
        &[("api-key", KEY)],
    ] {
        let answer = post(&app, "/rerank", shown, RERANK).await;
        assert_eq!(answer.status, 200, "{shown:?}: {}", answer.body);
    }
    let pinecone = [("x-pinecone-api-version", "2025-10"), ("api-key", "wrong")];
    let answer = post(&app, "/rerank", &pinecone, RERANK).await;
    assert_eq!(answer.status, 401);
    assert!(
        answer.json()["error"]["code"].is_string(),
        "{}",
        answer.body
    );
    let token = format!("Token {KEY}");
    for wrong in [
        &[][..],
        &[("authorization", "Bearer sixteen-letters")],
        &[("authorization", "sixteen-letters")],
        &[("authorization", &token)],
        &[("authorization", "Basic c2l4dGVlbg==")],
        &[("x-api-key", "")],
        // The first one counts, so that a client cannot override a header set by a proxy.
        &[
            ("authorization", "Bearer wrong-key-of-all"),
            ("x-api-key", KEY),
        ],
    ] {
        let answer = post(&app, "/rerank", wrong, RERANK).await;
        answer.error(401, "unauthorized");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
}

#[tokio::test]
async fn with_keys_only_probes_and_metrics_are_open() {
    let app = with_keys();
    for open in [
        "/live",
        "/ready",
        "/health",
        "/",
        "/ping",
        "/metrics",
        "/vllm/health",
        "/page/page.js",
        "/.well-known/ready",
    ] {
        let status = app.get(open).await.status;
        assert!(status.is_success(), "{open}: {status}");
    }
    for closed in [
        "/info",
        "/models",
        "/docs/",
        "/openapi.json",
        "/nowhere",
        "/rerank",
    ] {
        assert_eq!(app.get(closed).await.status, 401, "{closed}");
    }
    assert_eq!(post(&app, "/", &[], RERANK).await.status, 401);
    // Without a key, the server neither reads a body nor reveals its limit.
    let large = " ".repeat(5 << 20);
    assert_eq!(post(&app, "/rerank", &[], &large).await.status, 401);
}

/// In the error format of each dialect.
#[tokio::test]
async fn a_missing_key_is_told_in_the_words_of_the_path() {
    let app = with_keys();
    let text = "API key required; send it as `Authorization: Bearer KEY` or as `x-api-key: KEY`";
    for (path, expected) in [
        (
            "/rerank",
            json!({"error": text, "error_type": "unauthorized", "message": text, "detail": text}),
        ),
        ("/v2/rerank", json!({"id": "me", "message": text})),
        (
            "/v1/rerank",
            json!({"id": "me", "message": text, "detail": text}),
        ),
        ("/voyage/v1/rerank", json!({"detail": text})),
        ("/infinity/rerank", json!({"detail": text})),
        ("/vllm/v1/rerank", json!({"error": text})),
        ("/v1/score", json!({"error": text})),
        (
            "/v1/reranking",
            json!({"error": {"code": 401, "message": text, "type": "authentication_error"}}),
        ),
        (
            "/tokenize",
            json!({"error": text, "error_type": "Validation"}),
        ),
    ] {
        let answer = post(&app, path, &[("x-request-id", "me")], RERANK).await;
        assert_eq!(
            (answer.status.as_u16(), answer.json()),
            (401, expected),
            "{path}"
        );
        assert_eq!(answer.header("x-request-id"), "me");
    }
}

#[tokio::test]
async fn keys_can_be_replaced_while_the_server_runs() {
    let app = with_keys();
    let status = async |key| {
        post(&app, "/rerank", &[("x-api-key", key)], RERANK)
            .await
            .status
    };
    assert_eq!(status(KEY).await, 200);
    let keys = ApiKeys::parse("a-key-that-is-new").unwrap();
    app.state.keys().replace(&keys);
    assert_eq!(status(KEY).await, 401);
    assert_eq!(status("a-key-that-is-new").await, 200);
}

/// With `cache_per_key`, removing a key does not pass its cache to the next one.
#[tokio::test]
async fn a_key_never_inherits_the_cache_of_another() {
    let model = Model::default();
    let seen = model.seen.clone();
    let mut config = Config::default();
    config.http.api_keys = ApiKeys::parse("first-key-of-two,second-key-of-two").unwrap();
    config.cache.per_key = true;
    let app = TestApp::new(model, config);
    let scored = async |key| {
        let before = seen.pairs();
        let answer = post(&app, "/rerank", &[("x-api-key", key)], RERANK).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        seen.pairs() - before
    };
    assert_eq!(scored("first-key-of-two").await, 3);
    let keys = ApiKeys::parse("second-key-of-two").unwrap();
    app.state.keys().replace(&keys);
    assert_eq!(scored("second-key-of-two").await, 3);
    // Its own cache is kept.
    let keys = ApiKeys::parse("third-key-of-all,second-key-of-two").unwrap();
    app.state.keys().replace(&keys);
    assert_eq!(scored("second-key-of-two").await, 0);
}

#[tokio::test]
async fn metrics_move_to_the_admin_listener() {
    let app = app(|http| http.admin_listen = Some(Listen::Unix("/nowhere".into())));
    assert_eq!(app.get("/metrics").await.status, 404);
    let admin = TestApp {
        router: rerankd::http::router::build_admin(app.state.clone()),
        state: app.state.clone(),
    };
    for open in ["/metrics", "/live", "/ready", "/health"] {
        assert_eq!(admin.get(open).await.status, 200, "{open}");
    }
    assert_eq!(post(&admin, "/rerank", &[], RERANK).await.status, 404);
}

/// One key sends five concurrent requests, the other one: each gets half of the capacity.
#[tokio::test]
async fn keys_share_the_machine_however_much_each_asks() {
    let gate = Gate::new();
    let model = Model {
        gate: Some(gate.clone()),
        ..Model::default()
    };
    let seen = model.seen.clone();
    let mut config = Config::default();
    config.http.api_keys = ApiKeys::parse("many-requests-key,single-request-key").unwrap();
    // One or two sequences per batch.
    config.batching.max_batch_tokens = 12;
    let app = Arc::new(TestApp::new(model, config));
    let ask = |key: &'static str, document: &'static str| {
        let app = app.clone();
        tokio::spawn(async move {
            // Distinct documents, as identical ones are scored once.
            static NUMBER: AtomicUsize = AtomicUsize::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let documents: Vec<String> = (0..8)
                .map(|place| format!("{document} {number}-{place}"))
                .collect();
            let body = json!({"query": "q", "documents": documents}).to_string();
            post(&app, "/rerank", &[("x-api-key", key)], &body)
                .await
                .status
        })
    };
    // Blocks the worker while the others arrive.
    let mut asked = vec![ask("many-requests-key", "a")];
    gate.entered().await;
    asked.extend((0..5).map(|_| ask("many-requests-key", "a")));
    let single = ask("single-request-key", "a b c");
    while app.state.metrics().engine.pairs.get() < 7 * 8 {
        tokio::task::yield_now().await;
    }
    gate.open_for_good();
    assert_eq!(single.await.unwrap(), 200);
    for asked in asked {
        assert_eq!(asked.await.unwrap(), 200);
    }
    let words = seen.batches().concat();
    let last = words.iter().rposition(|&words| words == 4).unwrap();
    assert!(last < 24, "{words:?}");
}

// Cross-origin requests.

#[tokio::test]
async fn pages_of_others_are_refused_unless_they_are_allowed() {
    let page = [("origin", "https://a.example"), ("host", "127.0.0.1:8080")];
    let message = post(&TestApp::default(), "/rerank", &page, RERANK)
        .await
        .error(403, "foreign_origin");
    assert!(message.contains("`--cors-origin`"), "{message}");
    let own = [("origin", "http://127.0.0.1:8080"), page[1]];
    let answer = post(&TestApp::default(), "/rerank", &own, RERANK).await;
    assert_eq!(answer.status, 200);

    let app = app(|http| http.cors_origin = Origins::parse("https://a.example").unwrap());
    let answer = post(&app, "/rerank", &page, RERANK).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("access-control-allow-origin"),
        "https://a.example"
    );
    let other = [("origin", "https://b.example"), page[1]];
    post(&app, "/rerank", &other, RERANK)
        .await
        .error(403, "foreign_origin");
}

#[tokio::test]
async fn a_browser_is_told_beforehand_what_it_may_send() {
    let app = app(|http| {
        http.cors_origin = Origins::parse("https://a.example").unwrap();
        http.api_keys = ApiKeys::parse(KEY).unwrap();
    });
    let request = Request::options("/rerank")
        .header("origin", "https://a.example")
        .header("access-control-request-method", "POST")
        .header(
            "access-control-request-headers",
            "authorization,content-type,x-fern-language,x-stainless-arch",
        );
    let answer = app.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("access-control-allow-origin"),
        "https://a.example"
    );
    assert_eq!(
        answer.header("access-control-allow-headers"),
        "authorization,content-type,x-fern-language,x-stainless-arch"
    );
    let request = Request::options("/rerank")
        .header("origin", "https://b.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization");
    let answer = app.send(request.body(Body::empty()).unwrap()).await;
    for name in [
        "access-control-allow-origin",
        "access-control-allow-headers",
    ] {
        assert!(!answer.headers.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn a_client_learns_whether_it_needs_a_key_before_it_has_one() {
    for (app, needs) in [(with_keys(), true), (TestApp::default(), false)] {
        let answer = app.get("/v1/cluster/auth").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json(), json!({ "auth": needs }));
    }
}

// Bodies.

fn gzipped(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

async fn packed(app: &TestApp, coding: &str, body: Vec<u8>) -> Answer {
    let request = Request::post("/rerank").header("content-encoding", coding);
    app.send(request.body(Body::from(body)).unwrap()).await
}

#[tokio::test]
async fn packed_bodies_are_read() {
    let app = TestApp::default();
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
    zlib.write_all(RERANK.as_bytes()).unwrap();
    for (coding, body) in [
        ("gzip", gzipped(RERANK)),
        ("deflate", zlib.finish().unwrap()),
        ("identity", RERANK.into()),
    ] {
        let answer = packed(&app, coding, body).await;
        assert_eq!(answer.status, 200, "{coding}: {}", answer.body);
    }
    let refused = packed(&app, "br", RERANK.into()).await;
    refused.error(415, "unsupported_encoding");
    assert_eq!(refused.header("accept-encoding"), "gzip, deflate");
    packed(&app, "gzip, gzip", gzipped(RERANK))
        .await
        .error(415, "unsupported_encoding");
    let message = packed(&app, "gzip", RERANK.into())
        .await
        .error(400, "invalid_request");
    assert!(message.contains("`content-encoding`"), "{message}");
}

/// A decompression bomb is not expanded completely: the limit is 4 MiB, which takes up to 8 MiB while the
/// buffer grows; the whole body would take 256 MiB.
#[test]
fn a_small_body_that_expands_to_a_large_one_is_refused() {
    alone(|| {
        // Compressed block by block, so that the test does not hold the expanded body either.
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        let block = [b' '; 1 << 16];
        for _ in 0..(256 << 20) / block.len() {
            encoder.write_all(&block).unwrap();
        }
        let bomb = encoder.finish().unwrap();
        assert!(bomb.len() < 1 << 20);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let app = TestApp::default();
            peak_bytes();
            let before = rerankd_engine::metrics::resident_bytes().unwrap();
            let message = packed(&app, "gzip", bomb).await.error(413, "too_large");
            let peak = peak_bytes();
            assert!(message.contains("more than 4194304 bytes"), "{message}");
            assert!(peak < before + (32 << 20), "{before} became {peak}");
        });
    });
}

#[tokio::test]
async fn large_answers_are_packed_for_those_who_take_it() {
    let ask = async |headers: &[(&str, &str)], compress_above| {
        let app = app(|http| http.compress_above = compress_above);
        let mut request = Request::post("/rerank");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(RERANK)).unwrap();
        let response = tower::ServiceExt::oneshot(app.router.clone(), request).await;
        response.unwrap().headers().get("content-encoding").cloned()
    };
    let gzip = [("accept-encoding", "gzip")];
    assert_eq!(ask(&gzip, 200).await.unwrap(), "gzip");
    assert_eq!(ask(&[], 200).await, None);
    assert_eq!(ask(&gzip, 300).await, None);
}

// Ids.

#[tokio::test]
async fn request_ids_are_taken_over_only_where_they_are_short_and_printable() {
    let app = TestApp::default();
    let longest = "i".repeat(128);
    for id in ["a", "a b~!", &longest] {
        let answer = post(&app, "/rerank", &[("x-request-id", id)], RERANK).await;
        assert_eq!(answer.header("x-request-id"), id);
    }
    for id in ["", "a\tb", "é", &"i".repeat(129)] {
        let answer = post(&app, "/rerank", &[("x-request-id", id)], RERANK).await;
        let own = answer.header("x-request-id");
        assert!(uuid_like(own), "{id:?} became {own:?}");
    }
}

fn uuid_like(id: &str) -> bool {
    id.len() == 36 && id.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

#[tokio::test]
async fn bodies_share_what_room_there_is() {
    let app = app(|http| http.max_bodies_bytes = 64);
    let mut other = app.state.bodies().begin();
    assert!(other.take(60));
    let body = json!({ "query": "q", "documents": ["a"] }).to_string();
    let answer = post(&app, "/rerank", &[], &body).await;
    assert_eq!(answer.status, 429);
    assert_eq!(answer.header("retry-after"), "1");
    drop(other);
    assert_eq!(post(&app, "/rerank", &[], &body).await.status, 200);
}

/// A body is charged at its expanded size, as long as its texts are held.
#[tokio::test]
async fn compressed_bodies_count_as_large_as_they_expand() {
    const BODY_BYTES: usize = 4 << 20;
    let mut config = Config::default();
    // With room for the compressed form, which is held while it is expanded.
    config.http.max_bodies_bytes = 2 * BODY_BYTES + (64 << 10);
    config.http.max_body_bytes = BODY_BYTES;
    let gate = Gate::new();
    let model = Model {
        gate: Some(gate.clone()),
        ..Model::default()
    };
    let app = Arc::new(TestApp::new(model, config));
    let text = format!("{RERANK}{}", " ".repeat(BODY_BYTES - RERANK.len()));
    let body = gzipped(&text);
    assert!(body.len() < 8 << 10);
    let send = || {
        let (app, body) = (app.clone(), body.clone());
        async move { packed(&app, "gzip", body).await }
    };
    let first = tokio::spawn(send());
    gate.entered().await;
    let second = tokio::spawn(send());
    while app.state.bodies().held() < 2 * BODY_BYTES {
        tokio::task::yield_now().await;
    }
    for _ in 2..200 {
        assert_eq!(send().await.status, 429);
    }
    gate.open_for_good();
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(second.await.unwrap().status, 200);
    assert_eq!(app.state.bodies().held(), 0);
    assert_eq!(send().await.status, 200);
}
