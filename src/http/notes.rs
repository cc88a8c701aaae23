//! Notes for the log line of a request, which travel with its answer.

use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::Response;

use rerankd_wire::Dialect;

/// What a request cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Pairs scored.
    pub pairs: usize,
    /// Tokens the model read.
    pub tokens: usize,
}

/// The model that answered, where several are served.
#[derive(Debug, Clone)]
pub struct AnsweredBy(pub Arc<str>);

/// The status that an answer has in log lines and metrics, where it reaches the client otherwise.
#[derive(Debug, Clone, Copy)]
pub struct LoggedStatus(pub StatusCode);

/// The dialect of an answer.
#[derive(Debug, Clone, Copy)]
pub struct AnsweredIn(pub &'static Dialect);

/// `response` with a note.
pub fn attach<N: Clone + Send + Sync + 'static>(mut response: Response, note: N) -> Response {
    response.extensions_mut().insert(note);
    response
}
