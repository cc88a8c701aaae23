//! What a dialect adds to a request of 32 documents: everything but the model, and that is a fake.
//!
//! `cargo bench --bench dialects`. Native is the floor; the others are read against it.

#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use rerankd::config::Config;
use rerankd::http::route::{self, Handler};
use rerankd_core::Limits;
use rerankd_wire::detect::detect;
use rerankd_wire::{Body as WireBody, Served, ServedModel};
use serde_json::{Value, json};
use support::fake::Model;
use support::server::TestApp;

/// Requests before the clock runs, and with it.
const WARM_UP: usize = 200;
const ROUNDS: usize = 2000;

fn documents() -> Vec<String> {
    (0..32)
        .map(|number| {
            format!(
                "{} {}",
                "passage".repeat(number % 5 + 1),
                "text ".repeat(100)
            )
        })
        .collect()
}

fn bodies() -> Vec<(&'static str, &'static str, Value)> {
    let documents = documents();
    vec![
        (
            "native",
            "/rerank",
            json!({"query": "q", "documents": documents}),
        ),
        (
            "cohere v1",
            "/v1/rerank",
            json!({"query": "q", "documents": documents, "model": "m"}),
        ),
        (
            "cohere v2",
            "/v2/rerank",
            json!({"query": "q", "documents": documents, "model": "m"}),
        ),
        (
            "cohere v1, objects",
            "/v1/rerank",
            json!({
                "query": "q", "return_documents": true,
                "documents": documents.iter().map(|text| json!({"text": text})).collect::<Vec<_>>(),
            }),
        ),
        ("tei", "/rerank", json!({"query": "q", "texts": documents})),
        (
            "tei, with texts",
            "/rerank",
            json!({"query": "q", "texts": documents, "return_text": true}),
        ),
        (
            "voyage",
            "/v1/rerank",
            json!({"query": "q", "documents": documents, "top_k": null}),
        ),
        (
            "mixedbread",
            "/v1/reranking",
            json!({"query": "q", "input": documents}),
        ),
        (
            "vllm",
            "/vllm/rerank",
            json!({"query": "q", "documents": documents}),
        ),
        (
            "infinity",
            "/infinity/rerank",
            json!({"query": "q", "documents": documents}),
        ),
        (
            "weaviate",
            "/rerank",
            json!({"query": "q", "documents": documents, "property": ""}),
        ),
        (
            "llama.cpp",
            "/reranking",
            json!({"query": "q", "documents": documents}),
        ),
    ]
}

/// The middle of `times`, and the span of the half around it.
fn quartiles(mut times: Vec<Duration>) -> [f64; 3] {
    times.sort();
    [1, 2, 3].map(|quarter| times[times.len() * quarter / 4].as_secs_f64() * 1e6)
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts");
    let app = runtime.block_on(async { TestApp::new(Model::default(), Config::default()) });

    println!("whole requests, microseconds: first quartile, median, third; median over native");
    let cases = bodies();
    let mut times = vec![Vec::new(); cases.len()];
    // In turns, so that a slow moment of the machine meets all of them.
    for round in 0..WARM_UP + ROUNDS {
        for (case, (_, path, body)) in cases.iter().enumerate() {
            let text = body.to_string();
            let request = Request::post(*path)
                .body(Body::from(text))
                .expect("a request");
            let start = Instant::now();
            let answer = runtime.block_on(app.send(request));
            let elapsed = start.elapsed();
            assert_eq!(answer.status, 200, "{}", answer.body);
            if round >= WARM_UP {
                times[case].push(elapsed);
            }
        }
    }
    let quartiles: Vec<[f64; 3]> = times.into_iter().map(quartiles).collect();
    for ((name, _, _), [first, median, third]) in cases.iter().zip(&quartiles) {
        let over = median - quartiles[0][1];
        println!("{name:20} {first:8.1} {median:8.1} {third:8.1} {over:+8.1}");
    }

    println!("detection alone, microseconds: first quartile, median, third");
    let text = cases[0].2.to_string();
    let measure = |name: &str, work: &dyn Fn(&[u8])| {
        let time = |_| {
            let start = Instant::now();
            work(black_box(text.as_bytes()));
            start.elapsed()
        };
        let [first, median, third] = self::quartiles((0..ROUNDS).map(time).collect());
        println!("{name:20} {first:8.1} {median:8.1} {third:8.1}");
    };
    let operations = route::all().find_map(|route| match &route.handler {
        Handler::Operations(operations) if route.path == "/rerank" => Some(operations),
        _ => None,
    });
    let operations = operations.expect("the path is served");
    measure("keys", &|body| {
        let found = detect(operations, body);
        assert_eq!(found.operation.name, "native");
    });
    let models = [ServedModel {
        name: "m".to_owned(),
        aliases: Vec::new(),
        labels: vec!["score".to_owned()],
    }];
    let served = Served {
        models: &models,
        failed: &[],
        chosen: 0,
        strict_model_name: false,
        return_documents: false,
        limits: Limits {
            max_documents: 1000,
        },
    };
    measure("read in full", &|body| {
        let body = WireBody {
            json: body.to_vec().into(),
            ..WireBody::default()
        };
        black_box((operations[0].operation.read)(body, &served).is_ok());
    });
}
