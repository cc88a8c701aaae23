//! Failures on their way to a client.

use http::StatusCode;
use rerankd_core::{ErrorCode, RerankError};
use serde::Serialize;

/// A request that failed, as a dialect is told of it.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// The status, where the dialect has no other for this failure.
    pub status: StatusCode,
    /// The stable name of this kind of failure.
    pub kind: &'static str,
    /// Why the service refused or failed; `None` where the request did not reach it.
    pub code: Option<ErrorCode>,
    /// What is wrong, then what to do.
    pub message: &'a str,
    /// Names the request.
    pub request_id: &'a str,
}

/// The answer to a request that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status in this dialect.
    pub status: StatusCode,
    /// JSON.
    pub body: Vec<u8>,
}

impl Reply {
    /// An answer with `body` as JSON.
    pub fn json(status: StatusCode, body: &impl Serialize) -> Self {
        let body = to_json(body);
        Self { status, body }
    }
}

/// `body` as JSON.
pub fn to_json(body: &impl Serialize) -> Vec<u8> {
    // Answers are structs with string keys, written to memory: nothing can fail.
    serde_json::to_vec(body).expect("answers are plain data")
}

/// The refusal of a request that lacks `field`.
pub(crate) fn missing(field: &str) -> RerankError {
    RerankError::invalid(format!("`{field}` is missing; send it"))
}
