//! What operators and probes ask. None of it waits for the model.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::app::AppState;
use super::error::{Failure, json};
use crate::rerank::RerankError;
use crate::shutdown::Phase;

/// Whether `route` is polled by machines.
pub fn is_probe(route: &str) -> bool {
    matches!(route, "/live" | "/ready" | "/health" | "/metrics")
}

#[derive(Serialize)]
struct Status {
    status: &'static str,
}

/// The process runs and its event loop turns.
pub async fn live() -> Response {
    json(StatusCode::OK, &Status { status: "live" })
}

/// New requests should be sent here.
///
/// # Errors
/// While the model loads, and from the first signal to stop.
pub async fn ready(State(state): State<AppState>) -> Result<Response, Failure> {
    match state.lifecycle().phase() {
        Phase::Starting => Err(RerankError::not_ready().into()),
        Phase::Ready => Ok(json(StatusCode::OK, &Status { status: "ready" })),
        Phase::Grace | Phase::Draining => Err(RerankError::draining().into()),
    }
}

#[derive(Serialize)]
struct Info<'a> {
    model_id: &'a str,
    architecture: &'a str,
    labels: &'a [String],
    max_length: usize,
    activation: &'a str,
    precision: &'a str,
    parameters: usize,
    threads: usize,
    sessions: usize,
    version: &'a str,
    runtime_version: &'a str,
    max_documents: usize,
    max_body_bytes: usize,
    max_batch_tokens: usize,
    max_queue_tokens: usize,
}

/// What is served, how, and within which limits.
///
/// # Errors
/// While the model loads.
pub async fn info(State(state): State<AppState>) -> Result<Response, Failure> {
    let model = state.reranker().ok_or_else(RerankError::not_ready)?.info();
    let config = state.config();
    let info = Info {
        model_id: &model.id,
        architecture: model.architecture,
        labels: &model.labels,
        max_length: model.max_length,
        activation: model.activation.name(),
        precision: model.precision,
        parameters: model.parameters,
        threads: model.threads,
        sessions: model.sessions,
        version: env!("CARGO_PKG_VERSION"),
        runtime_version: &model.runtime_version,
        max_documents: config.http.max_documents,
        max_body_bytes: config.http.max_body_bytes,
        max_batch_tokens: config.batching.max_batch_tokens,
        max_queue_tokens: config.batching.max_queue_tokens,
    };
    Ok(json(StatusCode::OK, &info))
}

/// Everything measured, in the Prometheus text format.
pub async fn metrics(State(state): State<AppState>) -> Response {
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, state.metrics().render()).into_response()
}
