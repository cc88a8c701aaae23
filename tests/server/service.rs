//! The service under load, with clients that disconnect, and with a failing model.

use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use crate::support::fake::{Gate, MAX_LENGTH, Model, Seen, WORDS};
use crate::support::server::{Answer, Connection, Server, TestApp, wire};
use axum::body::Body;
use axum::http::Request;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rerankd::config::Config;
use rerankd_core::{
    ErrorCode, Limits, Pair, PredictCommand, Ranking, RerankCommand, RerankError, ScoreOptions,
};
use rerankd_engine::cost::{Cost, Costs, Estimator};
use rerankd_engine::service::Reranker;
use serde_json::{Value, json};
use tower::ServiceExt;

/// Special tokens of a pair and the one word of the query.
const OVERHEAD: usize = 4;
const CANCELLED: &str = "rerankd_cancelled_requests_total";
const QUEUE: &str = "rerankd_queue_tokens";
const REFUSED: &str = r#"rerankd_refused_requests_total{reason="memory"}"#;

fn held() -> (Model, Gate) {
    let gate = Gate::new();
    let model = Model {
        gate: Some(gate.clone()),
        ..Model::default()
    };
    (model, gate)
}

fn queue_of(max_queue_tokens: usize) -> Config {
    let mut config = Config::default();
    config.batching.max_queue_tokens = max_queue_tokens;
    config
}

fn batches_of(max_batch_tokens: usize) -> Config {
    let mut config = Config::default();
    config.batching.max_batch_tokens = max_batch_tokens;
    config
}

/// A document with `words` words, unlike any other, as identical pairs are scored once.
fn document(words: usize) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let mut number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut word = || {
        let word = format!("w{}", number % WORDS);
        number /= WORDS;
        word
    };
    let words: Vec<String> = (0..words).map(|_| word()).collect();
    words.join(" ")
}

/// A request with documents of so many words.
fn rerank(words: &[usize]) -> Value {
    let documents: Vec<String> = words.iter().map(|&n| document(n)).collect();
    json!({"query": "q", "documents": documents})
}

async fn send(server: &Server, body: &Value) -> Connection {
    let mut connection = server.connect().await;
    let request = wire("POST", "/rerank", &body.to_string());
    connection.send(&request).await;
    connection
}

/// Sends a request and resolves when all of it is queued or being scored.
async fn queued(server: &Server, words: &[usize]) -> Connection {
    let pairs = server.state.metrics().engine.pairs.get() + words.len() as u64;
    let connection = send(server, &rerank(words)).await;
    server
        .until(|state| state.metrics().engine.pairs.get() == pairs)
        .await;
    connection
}

/// Checks for a complete response, best first.
#[track_caller]
fn assert_ranked(answer: &Answer, words: &[usize]) {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let mut expected: Vec<usize> = (0..words.len()).collect();
    expected.sort_by_key(|&index| std::cmp::Reverse(words[index]));
    let body = answer.json();
    let results = body["results"].as_array().unwrap();
    let order: Vec<usize> = results
        .iter()
        .map(|result| result["index"].as_u64().unwrap() as usize)
        .collect();
    assert_eq!(order, expected);
    for (result, index) in results.iter().zip(expected) {
        assert_eq!(result["relevance_score"], words[index] as f64);
    }
}

/// Polls `request` once and drops it: it is admitted then, and its texts are being tokenized.
fn begun<T>(request: impl Future, look: impl FnOnce() -> T) -> T {
    let mut request = pin!(request);
    let mut context = Context::from_waker(Waker::noop());
    assert!(request.as_mut().poll(&mut context).is_pending());
    look()
}

// Admission.

#[tokio::test]
async fn the_largest_request_is_admitted_when_nothing_waits() {
    let model = Model {
        max_length: 512,
        ..Model::default()
    };
    let seen = model.seen.clone();
    let server = Server::start(model, Config::default()).await;
    let tokens = 512 * 1000;
    assert!(tokens > Config::default().batching.max_queue_tokens);
    // Twice: the updated estimate must not reject the second.
    for _ in 0..2 {
        let body = rerank(&[600; 1000]).to_string();
        let answer = server.request("POST", "/rerank", &body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let body = answer.json();
        assert_eq!(body["results"].as_array().unwrap().len(), 1000);
        assert_eq!(body["truncated"], json!((0..1000).collect::<Vec<_>>()));
        assert_eq!(body["usage"]["total_tokens"], tokens);
        assert_eq!(server.metric(QUEUE).await, 0.0);
    }
    assert_eq!(seen.pairs(), 2000);
}

#[tokio::test]
async fn a_full_queue_refuses_whole_requests_at_once_and_answers_what_it_took() {
    let (model, gate) = held();
    let seen = model.seen.clone();
    let server = Server::start(model, queue_of(100)).await;
    let taken = [3, 1, 2].repeat(10);
    let mut first = queued(&server, &taken).await;
    gate.entered().await;
    assert!(server.metric(QUEUE).await > 100.0);
    // A request larger than the queue leaves room for small ones beside it.
    let mut small = queued(&server, &[3, 3, 3]).await;

    // Answered while the model is held: nobody waits to be refused, and nothing of it is scored.
    for refused in [&[1; 10][..], &[1; 50]] {
        let body = rerank(refused).to_string();
        let answer = server.request("POST", "/rerank", &body).await;
        let message = answer.error(429, "overloaded");
        assert!(message.contains("`Retry-After`"), "{message}");
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    }
    assert_eq!(server.metric(REFUSED).await, 2.0);

    gate.open_for_good();
    assert_ranked(&first.answer().await, &taken);
    assert_ranked(&small.answer().await, &[3, 3, 3]);
    assert_eq!(seen.pairs(), taken.len() + 3);
    let body = rerank(&[5]).to_string();
    let retried = server.request("POST", "/rerank", &body).await;
    assert_ranked(&retried, &[5]);
    assert_eq!(server.metric(QUEUE).await, 0.0);
}

/// Each is refused for its own wait only.
#[tokio::test]
async fn a_large_request_that_would_wait_too_long_is_refused_and_a_small_one_beside_it_is_not() {
    let (model, gate) = held();
    let model = Model {
        costs: token_of(0.01),
        ..model
    };
    let mut config = Config::default();
    config.batching.max_queue_delay = Duration::from_secs(2);
    let server = Server::start(model, config).await;
    // Longer than the limit by itself: nothing is ahead of it.
    let mut bulk = queued(&server, &[12; 40]).await;
    gate.entered().await;
    let body = rerank(&[12; 40]).to_string();
    let refused = server.request("POST", "/rerank", &body).await;
    let message = refused.error(429, "overloaded");
    assert!(message.contains("wait about"), "{message}");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    let reason = r#"rerankd_refused_requests_total{reason="queue_delay"}"#;
    assert_eq!(server.metric(reason).await, 1.0);
    let mut small = queued(&server, &[1]).await;
    gate.open_for_good();
    assert_ranked(&small.answer().await, &[1]);
    assert_ranked(&bulk.answer().await, &[12; 40]);
}

#[tokio::test]
async fn what_was_admitted_is_kept_when_it_turns_out_larger() {
    let (model, gate) = held();
    let server = Server::start(model, queue_of(60)).await;
    // Estimated at a quarter of its bytes; actually sixteen tokens per pair.
    let words = [12; 10];
    let tokens = (12 + OVERHEAD) * words.len();
    let mut small = queued(&server, &[1]).await;
    gate.entered().await;
    let mut grown = queued(&server, &words).await;
    let outstanding = server.metric(QUEUE).await as usize;
    assert_eq!(outstanding, tokens + 1 + OVERHEAD);
    assert!(outstanding > 2 * 60);
    gate.open_for_good();
    assert_ranked(&small.answer().await, &[1]);
    assert_ranked(&grown.answer().await, &words);
}

/// Truncated texts must not affect the estimate of tokens per byte, as only their start is tokenized.
#[tokio::test]
async fn texts_that_are_cut_do_not_spoil_the_estimate() {
    let (model, gate) = held();
    let server = Server::start(model, queue_of(1000)).await;
    for _ in 0..50 {
        gate.open();
        let body = rerank(&[20_000]).to_string();
        let answer = server.request("POST", "/rerank", &body).await;
        assert_eq!(answer.status, 200);
    }
    // The gauge shows the estimate until tokenization.
    let pairs: Vec<Pair> = vec![
        Pair {
            query: "".into(),
            document: document(6).into(),
        };
        100
    ];
    let reranker = server.state.reranker().unwrap().clone();
    let options = ScoreOptions::default();
    let command = PredictCommand::new(pairs, options, &LIMITS).unwrap();
    let estimate = begun(reranker.predict(command), || {
        server.state.metrics().engine.queue_tokens.get()
    });
    assert!(
        estimate >= 200,
        "100 pairs of 11 bytes are guessed at {estimate} tokens"
    );
}

// Clients that disconnect.

#[tokio::test]
async fn the_queue_empties_when_clients_are_killed() {
    let (model, gate) = held();
    let seen = model.seen.clone();
    let mut config = batches_of(64);
    config.batching.max_queue_delay = Duration::from_secs(3600);
    let server = Server::start(model, config).await;
    let mut clients = vec![queued(&server, &[5; 40]).await];
    gate.entered().await;
    for _ in 0..20 {
        clients.push(queued(&server, &[7; 40]).await);
    }
    let mut patient = queued(&server, &[2, 3]).await;
    assert!(server.metric(QUEUE).await > 20.0 * 40.0 * 11.0);

    drop(clients);
    server.until(|state| state.in_flight() == 1).await;
    assert_eq!(server.metric(CANCELLED).await, 21.0);
    // The model still runs its batch; all others are gone.
    assert_eq!(server.metric(QUEUE).await as usize, 5 + 2 * OVERHEAD);

    gate.open_for_good();
    assert_ranked(&patient.answer().await, &[2, 3]);
    assert_eq!(server.metric(QUEUE).await, 0.0);
    let batches = seen.batches();
    let absent = batches[0].len() * (5 + OVERHEAD);
    assert!(absent <= 64, "{batches:?}");
    assert_eq!(batches[1..].concat(), [2, 3], "only who waits is scored");
    assert_eq!(
        server.metric("rerankd_wasted_tokens_total").await as usize,
        absent
    );
    let left = r#"rerankd_requests_total{route="/rerank",status="499"}"#;
    assert_eq!(server.metric(left).await, 21.0);
}

/// Disconnecting during tokenization is counted too.
#[tokio::test]
async fn leaving_before_the_queue_is_counted_too() {
    let (model, _gate) = held();
    let app = TestApp::new(model, Config::default());
    let reranker = app.state.reranker().unwrap();
    let metrics = app.state.metrics();
    begun(reranker.rerank(command(&[3])), || {
        assert!(metrics.engine.queue_tokens.get() > 0);
    });
    assert_eq!(metrics.engine.cancelled.get(), 1);
    assert_eq!(metrics.engine.queue_tokens.get(), 0);
}

// Work that is avoided.

fn uncached() -> Config {
    let mut config = Config::default();
    config.cache.size = 0;
    config
}

#[tokio::test]
async fn what_was_asked_before_is_not_scored_again() {
    for (config, hits) in [(Config::default(), 3), (uncached(), 0)] {
        // Not an integer: the cache must keep the exact bits.
        let model = Model {
            logit: |words| words as f32 / 7.0,
            ..Model::default()
        };
        let seen = model.seen.clone();
        let app = TestApp::new(model, config);
        let body = rerank(&[3, 1, 2]);
        let first = app.post("/rerank", body.to_string()).await;
        let second = app.post("/rerank", body.to_string()).await;
        assert_eq!(first.status, 200);
        for field in ["results", "usage"] {
            assert_eq!(first.json()[field], second.json()[field]);
        }
        assert_eq!(seen.pairs(), 6 - hits);
        let metrics = app.state.metrics();
        assert_eq!(metrics.engine.cache_hits.get(), hits as u64);
        assert_eq!(metrics.engine.queue_tokens.get(), 0);
        // Half of it is cached.
        let mut body = body;
        body["documents"][1] = json!(document(4));
        let third = app.post("/rerank", body.to_string()).await;
        let order: Vec<_> = third.json()["results"].as_array().unwrap().clone();
        let order: Vec<_> = order.iter().map(|result| result["index"].clone()).collect();
        assert_eq!(order, [1, 0, 2]);
    }
}

#[tokio::test]
async fn identical_pairs_in_flight_are_scored_once_whoever_leaves() {
    let (model, gate) = held();
    let seen = model.seen.clone();
    let server = Server::start(model, uncached()).await;
    let mut before = queued(&server, &[1]).await;
    gate.entered().await;
    let body = rerank(&[3, 4]);
    let mut clients = Vec::new();
    for nth in 1..=3 {
        clients.push(send(&server, &body).await);
        let pairs = 1 + 2 * nth;
        server
            .until(|state| state.metrics().engine.pairs.get() == pairs)
            .await;
    }
    drop(clients.remove(0));
    server.until(|state| state.in_flight() == 3).await;
    gate.open_for_good();
    assert_ranked(&before.answer().await, &[1]);
    for client in &mut clients {
        assert_ranked(&client.answer().await, &[3, 4]);
    }
    assert_eq!(seen.pairs(), 3);
    assert_eq!(server.metric("rerankd_shared_pairs_total").await, 4.0);
    assert_eq!(server.metric(QUEUE).await, 0.0);
}

// Deadlines.

/// Assumed seconds per token.
fn token_of(seconds: f64) -> Option<Costs> {
    let cost = Cost {
        base: 0.0,
        per_token: seconds,
        per_square: 0.0,
    };
    Some(Costs::new(Estimator::new(cost), 1))
}

fn timed(body: &Value, milliseconds: u64) -> Request<Body> {
    Request::post("/rerank")
        .header("x-request-timeout-ms", milliseconds)
        .body(body.to_string().into())
        .unwrap()
}

/// Status, error code, and whether there is `Retry-After`.
fn told(answer: &Answer) -> (u16, String, bool) {
    let kind = answer.json()["error_type"].as_str().unwrap().to_owned();
    let retry = answer.headers.contains_key("retry-after");
    (answer.status.as_u16(), kind, retry)
}

#[tokio::test]
async fn what_cannot_be_answered_in_time_is_refused_at_once() {
    let (model, gate) = held();
    let model = Model {
        costs: token_of(0.05),
        ..model
    };
    let seen = model.seen.clone();
    let app = TestApp::new(model, Config::default());
    let router = app.router.clone();
    let first = rerank(&[10; 4]).to_string();
    let first = Request::post("/rerank").body(Body::from(first)).unwrap();
    let first = tokio::spawn(router.oneshot(first));
    gate.entered().await;
    // While the model is blocked, and before tokenization.
    let late = app.send(timed(&rerank(&[10]), 40)).await;
    let kind = "cannot_finish_in_time".to_owned();
    assert_eq!(told(&late), (429, kind, true));
    assert_eq!(app.state.metrics().engine.pairs.get(), 4);
    let refused = &app.state.metrics().engine.refused;
    let refused = refused.with_label_values(&["cannot_finish_in_time"]);
    assert_eq!(refused.get(), 1);

    gate.open_for_good();
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    let patient = app.send(timed(&rerank(&[10]), 3_600_000)).await;
    assert_ranked(&patient, &[10]);
    assert_eq!(seen.pairs(), 5);
}

#[tokio::test]
async fn a_deadline_that_passes_in_the_queue_is_504_for_who_set_it_and_429_for_others() {
    let (model, gate) = held();
    let model = Model {
        costs: token_of(1e-6),
        ..model
    };
    let seen = model.seen.clone();
    let mut config = Config::default();
    config.batching.request_timeout = Duration::from_secs(10);
    let app = TestApp::new(model, config);
    let begun = rerank(&[3]).to_string();
    let begun = Request::post("/rerank").body(Body::from(begun)).unwrap();
    let begun = tokio::spawn(app.router.clone().oneshot(begun));
    gate.entered().await;

    // From here on, time advances only while all tasks are idle.
    tokio::time::pause();
    let own = app.send(timed(&rerank(&[4]), 250)).await;
    assert_eq!(told(&own), (504, "deadline_exceeded".to_owned(), false));
    let late = || (429, "cannot_finish_in_time".to_owned(), true);
    let others = app.post("/rerank", rerank(&[5]).to_string()).await;
    assert_eq!(told(&others), late());
    assert_eq!(begun.await.unwrap().unwrap().status(), 429);
    assert_eq!(app.state.metrics().engine.missed_deadlines.get(), 3);
    assert_eq!(app.state.metrics().engine.queue_tokens.get(), 0);

    tokio::time::resume();
    gate.open_for_good();
    let next = app.send(timed(&rerank(&[6]), 60_000)).await;
    assert_ranked(&next, &[6]);
    assert_eq!(seen.batches(), [[3], [6]], "nothing was scored too late");
}

#[tokio::test]
async fn a_time_that_is_none_is_refused_in_every_dialect() {
    let app = TestApp::default();
    for path in [
        "/rerank",
        "/v2/rerank",
        "/vllm/rerank",
        "/predict",
        "/score",
    ] {
        let request = Request::post(path).header("x-request-timeout-ms", "soon");
        let answer = app
            .send(request.body(rerank(&[1]).to_string().into()).unwrap())
            .await;
        assert_eq!(answer.status, 400, "{path} {}", answer.body);
        assert!(
            answer.body.contains("x-request-timeout-ms"),
            "{}",
            answer.body
        );
    }
}

#[tokio::test]
async fn priorities_are_read_and_checked() {
    let app = TestApp::default();
    let pairs = json!({ "pairs": [["a query", "a document"]] });
    for (path, request) in [
        ("/rerank", rerank(&[1, 2])),
        ("/v2/rerank", rerank(&[1, 2])),
        ("/predict", pairs),
    ] {
        for (priority, status) in [
            (json!(0), 200),
            (json!(999), 200),
            (json!(null), 200),
            (json!(1000), 400),
            (json!(-1), 400),
            (json!("high"), 400),
        ] {
            let mut body = request.clone();
            body["priority"] = priority;
            let answer = app.post(path, body.to_string()).await;
            assert_eq!(answer.status, status, "{path} {body} {}", answer.body);
            if status == 400 {
                assert!(answer.body.contains("`priority`"), "{}", answer.body);
            }
        }
    }
}

// A model that fails.

/// A document with this many words makes the model fail.
const BAD: usize = 9;

#[tokio::test]
async fn a_batch_is_told_to_be_alone_while_nothing_else_runs_or_waits() {
    let (model, gate) = held();
    let model = Model {
        workers: 2,
        ..model
    };
    let seen = model.seen.clone();
    let server = Server::start(model, Config::default()).await;
    let first = send(&server, &rerank(&[3])).await;
    gate.entered().await;
    let second = send(&server, &rerank(&[3])).await;
    gate.entered().await;
    gate.open();
    gate.open();
    for mut connection in [first, second] {
        assert_ranked(&connection.answer().await, &[3]);
    }
    // A request that is split between both workers.
    let many = [9; 8];
    let mut third = send(&server, &rerank(&many)).await;
    gate.entered().await;
    gate.entered().await;
    gate.open_for_good();
    assert_ranked(&third.answer().await, &many);
    assert_eq!(seen.alone(), [true, false, false, false]);
}

fn failing() -> [Model; 2] {
    let panics = Model {
        logit: |words| match words {
            BAD => panic!("a bug in the model"),
            words => words as f32,
        },
        ..Model::default()
    };
    let refuses = Model {
        fails: |words| words == BAD,
        ..Model::default()
    };
    [panics, refuses]
}

#[tokio::test]
async fn a_failing_batch_is_a_500_for_whom_it_held_and_nobody_else() {
    for model in failing() {
        let gate = Gate::new();
        let model = Model {
            gate: Some(gate.clone()),
            ..model
        };
        let seen = model.seen.clone();
        // Two pairs of ten words fill a batch.
        let server = Server::start(model, batches_of(28)).await;
        let mut before = queued(&server, &[10, 10]).await;
        gate.entered().await;
        let mut bad = queued(&server, &[BAD, 1]).await;
        let mut beside = queued(&server, &[10]).await;
        let mut after = queued(&server, &[11, 11]).await;
        gate.open_for_good();

        assert_ranked(&before.answer().await, &[10, 10]);
        for failed in [&mut bad, &mut beside] {
            let answer = failed.answer().await;
            let message = answer.error(500, "internal");
            assert!(
                !message.contains("bug") && !message.contains("words"),
                "{message}"
            );
        }
        assert_ranked(&after.answer().await, &[11, 11]);
        let body = rerank(&[4, 6]).to_string();
        let next = server.request("POST", "/rerank", &body).await;
        assert_ranked(&next, &[4, 6]);

        assert_eq!(server.metric(QUEUE).await, 0.0);
        assert_eq!(server.metric(CANCELLED).await, 0.0);
        assert_eq!(server.metric("rerankd_failed_batches_total").await, 1.0);
        let batches = seen.batches();
        assert_eq!(batches[1], [BAD, 10], "{batches:?}");
        let left_out = batches.concat().iter().filter(|&&words| words == 1).count();
        assert_eq!(
            left_out, 0,
            "the rest of a failed request is not scored: {batches:?}"
        );
    }
}

#[tokio::test]
async fn a_logit_that_is_not_finite_is_a_500_for_its_owner_and_nobody_else_in_the_batch() {
    let gate = Gate::new();
    let model = Model {
        logit: |words| match words {
            BAD => f32::NAN,
            words => words as f32,
        },
        gate: Some(gate.clone()),
        ..Model::default()
    };
    let seen = model.seen.clone();
    let server = Server::start(model, Config::default()).await;
    let mut before = queued(&server, &[10]).await;
    gate.entered().await;
    let body = rerank(&[BAD, 1]);
    let pairs = server.state.metrics().engine.pairs.get() + 2;
    let mut bad = send(&server, &body).await;
    server
        .until(|state| state.metrics().engine.pairs.get() == pairs)
        .await;
    let mut beside = queued(&server, &[3, 2]).await;
    gate.open_for_good();

    assert_ranked(&before.answer().await, &[10]);
    bad.answer().await.error(500, "internal");
    assert_ranked(&beside.answer().await, &[3, 2]);
    assert_eq!(seen.batches().len(), 2, "they shared a batch");
    assert_eq!(server.metric("rerankd_failed_pairs_total").await, 1.0);
    assert_eq!(server.metric("rerankd_failed_batches_total").await, 0.0);
    assert_eq!(server.metric(QUEUE).await, 0.0);

    // The failure is not cached.
    let again = server.request("POST", "/rerank", &body.to_string()).await;
    again.error(500, "internal");
    assert_eq!(server.metric("rerankd_failed_pairs_total").await, 2.0);
}

#[tokio::test]
async fn a_server_without_workers_is_not_ready_and_keeps_nobody_waiting() {
    let model = Model {
        workers: 0,
        ..Model::default()
    };
    let app = TestApp::new(model, Config::default());
    assert_eq!(app.get("/live").await.status, 200);
    let ready = app.get("/ready").await;
    assert_eq!(ready.status, 503, "{}", ready.body);
    let answer = app.post("/rerank", rerank(&[1]).to_string()).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert_eq!(app.state.metrics().engine.queue_tokens.get(), 0);
}

/// A failed request releases its permit before the client gets the error.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_request_gives_its_place_back_before_it_is_answered() {
    let [_, model] = failing();
    let app = TestApp::new(model, queue_of(1));
    let reranker = app.state.reranker().unwrap();
    for round in 0..500 {
        let error = reranker.rerank(command(&[BAD; 3])).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Internal, "round {round}: {error}");
        assert_eq!(
            app.state.metrics().engine.queue_tokens.get(),
            0,
            "round {round}"
        );
    }
}

// Exactly one response per request.

const LIMITS: Limits = Limits {
    max_documents: 1000,
};

fn command(words: &[usize]) -> RerankCommand {
    let documents: Vec<String> = words.iter().map(|&n| document(n)).collect();
    let (query, options) = ("q".to_owned(), ScoreOptions::default());
    RerankCommand::new(query, documents, None::<NonZeroUsize>, options, &LIMITS).unwrap()
}

fn assert_right(ranking: &Ranking, words: &[usize]) {
    let scores: Vec<(usize, f32)> = ranking.results.iter().map(|r| (r.index, r.score)).collect();
    let mut expected: Vec<usize> = (0..words.len()).collect();
    expected.sort_by_key(|&index| std::cmp::Reverse(words[index]));
    let expected: Vec<(usize, f32)> = expected.iter().map(|&i| (i, words[i] as f32)).collect();
    assert_eq!(scores, expected);
}

/// Resolves after `count` yields to the runtime.
async fn turns(count: usize) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

/// A client: the words of its documents, and after how many turns it disconnects, if at all.
type Client = (Vec<usize>, Option<usize>);

fn clients() -> impl Strategy<Value = Vec<Client>> {
    let words = prop::collection::vec(1..=12_usize, 1..30);
    let leaves = prop::option::weighted(0.3, 0..200_usize);
    prop::collection::vec((words, leaves), 1..60)
}

/// Runs all `clients` concurrently; the result of each is `None` if it disconnected.
async fn ask(
    reranker: &Arc<Reranker>,
    clients: &[Client],
) -> Vec<Option<Result<Ranking, RerankError>>> {
    let asking: Vec<_> = clients
        .iter()
        .cloned()
        .map(|(words, leaves)| {
            let reranker = reranker.clone();
            tokio::spawn(async move {
                let answer = reranker.rerank(command(&words));
                match leaves {
                    None => Some(answer.await),
                    Some(count) => tokio::select! {
                        // Polled first, so that even a client that leaves at once has sent its request.
                        biased;
                        answer = answer => Some(answer),
                        () = turns(count) => None,
                    },
                }
            })
        })
        .collect();
    let mut answers = Vec::new();
    for client in asking {
        answers.push(client.await.unwrap());
    }
    answers
}

fn check_answers(model: Model, clients: &[Client], max_queue_tokens: usize) {
    let fails = model.fails;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    runtime.block_on(async {
        let seen: Seen = model.seen.clone();
        let mut config = queue_of(max_queue_tokens);
        config.batching.max_batch_tokens = 64;
        let app = TestApp::new(model, config);
        let reranker = app.state.reranker().unwrap();
        let answers = ask(&reranker, clients).await;
        let (mut left, mut refused) = (0, 0);
        for ((words, _), answer) in clients.iter().zip(&answers) {
            let doomed = words.iter().any(|&words| fails(words));
            match answer {
                None => left += 1,
                Some(Ok(ranking)) => {
                    assert!(!doomed);
                    assert_right(ranking, words);
                }
                Some(Err(error)) if error.code() == ErrorCode::Overloaded => refused += 1,
                // Requests in the same batch as a failing one fail too.
                Some(Err(error)) => {
                    assert_eq!(error.code(), ErrorCode::Internal);
                    assert!((0..=12).any(fails), "{error}");
                }
            }
        }
        reranker.drain().await;
        let metrics = app.state.metrics();
        assert_eq!(metrics.engine.queue_tokens.get(), 0);
        assert_eq!(metrics.engine.cancelled.get(), left);
        let full = metrics.engine.refused.with_label_values(&["memory"]);
        assert_eq!(full.get(), refused);
        assert!(seen.pairs() as u64 <= metrics.engine.pairs.get());
        if left == 0 && !(0..=12).any(fails) {
            assert_eq!(seen.pairs() as u64, metrics.engine.pairs.get());
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 40,
        rng_seed: RngSeed::Fixed(2),
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_request_is_answered_once_and_rightly(clients in clients()) {
        let model = Model { workers: 3, ..Model::default() };
        check_answers(model, &clients, usize::MAX);
    }

    #[test]
    fn every_request_is_answered_or_refused(clients in clients()) {
        let model = Model { workers: 2, ..Model::default() };
        check_answers(model, &clients, 300);
    }

    #[test]
    fn every_request_is_answered_by_a_model_that_fails(clients in clients()) {
        let model = Model { workers: 2, fails: |words| words == 12, ..Model::default() };
        check_answers(model, &clients, usize::MAX);
    }
}

// Texts that are too long.

#[tokio::test]
async fn what_was_cut_is_listed() {
    let app = TestApp::default();
    let fits = MAX_LENGTH - OVERHEAD;
    let words = [1, fits + 1, fits, 500, 2];
    let answer = app.post("/rerank", rerank(&words).to_string()).await;
    assert_eq!(answer.json()["truncated"], json!([1, 3]));
    let mut body = rerank(&words);
    body["top_n"] = json!(1);
    let answer = app.post("/rerank", body.to_string()).await;
    assert_eq!(
        answer.json()["truncated"],
        json!([1, 3]),
        "whatever is returned"
    );
    let answer = app.post("/rerank", rerank(&[fits, 1]).to_string()).await;
    assert!(answer.json().get("truncated").is_none());
}

#[tokio::test]
async fn what_must_not_be_cut_is_refused_by_index_length_and_limit() {
    let app = TestApp::default();
    let fits = MAX_LENGTH - OVERHEAD;
    for (too_long, length) in [(fits + 1, MAX_LENGTH + 1), (500, 500 + OVERHEAD)] {
        let mut body = rerank(&[1, fits, too_long, 600]);
        body["truncate"] = json!(false);
        let answer = app.post("/rerank", body.to_string()).await;
        assert_eq!(
            answer.error(400, "invalid_request"),
            format!(
                "`documents[2]` is {length} tokens long with its query and special tokens; the \
                 limit is {MAX_LENGTH}; shorten it, or allow `truncate`"
            )
        );
    }
    let long = document(100);
    let body = json!({"pairs": [["q", "a"], [long, long]], "truncate": false});
    let message = app.post("/predict", body.to_string()).await;
    let message = message.error(400, "invalid_request");
    assert!(
        message.starts_with("`pairs[1]` is 203 tokens long"),
        "{message}"
    );
    assert_eq!(app.state.metrics().engine.queue_tokens.get(), 0);
    let body = json!({"query": "q", "documents": [document(fits)], "truncate": false});
    assert_eq!(app.post("/rerank", body.to_string()).await.status, 200);
}

/// The process must not exit during a batch; queued work is dropped.
#[tokio::test]
async fn who_stops_waits_for_the_batch_that_runs_and_for_no_other() {
    let (model, gate) = held();
    let seen = model.seen.clone();
    let app = TestApp::new(model, batches_of(16));
    let reranker = app.state.reranker().unwrap().clone();
    let documents: Vec<String> = (0..8).map(|_| document(8)).collect();
    let body = json!({ "query": "a", "documents": documents }).to_string();
    let asking = tokio::spawn(async move { app.post("/rerank", body).await });
    gate.entered().await;
    let stopping = tokio::task::spawn_blocking({
        let reranker = reranker.clone();
        move || reranker.stop(Duration::from_secs(60))
    });
    // It gives up on a batch that does not end.
    tokio::task::spawn_blocking(move || reranker.stop(Duration::from_millis(100)))
        .await
        .unwrap();
    assert!(!stopping.is_finished());
    gate.open_for_good();
    stopping.await.unwrap();
    assert_eq!(seen.batches().len(), 1, "no batch began after that");
    asking.abort();
}
