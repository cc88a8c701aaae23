//! Errors of a request, as a small closed set of codes.

use std::time::Duration;

/// Error codes; each dialect maps them to its own format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The request is invalid; retrying cannot help.
    InvalidRequest,
    /// The body is not JSON.
    Malformed,
    /// The list of texts is empty.
    Empty,
    /// The model does not support the request.
    Unsupported,
    /// The requested model is not served.
    UnknownModel,
    /// The request exceeds a size limit.
    TooLarge,
    /// The queue is full; a retry can succeed.
    Overloaded,
    /// The request cannot meet its deadline; with a later one, or under less load, it can succeed.
    TooLate,
    /// The client's deadline passed while the request waited.
    DeadlinePassed,
    /// The model is still loading, or failed to, or every worker has failed.
    NotReady,
    /// The server is shutting down.
    Draining,
    /// Internal server error.
    Internal,
}

impl ErrorCode {
    /// The HTTP status and the stable name of this code.
    pub fn http(self) -> (u16, &'static str) {
        match self {
            Self::InvalidRequest | Self::Malformed | Self::Empty | Self::Unsupported => {
                (400, "invalid_request")
            }
            Self::UnknownModel => (404, "unknown_model"),
            Self::TooLarge => (413, "too_large"),
            Self::Overloaded => (429, "overloaded"),
            Self::TooLate => (429, "cannot_finish_in_time"),
            Self::DeadlinePassed => (504, "deadline_exceeded"),
            Self::NotReady => (503, "not_ready"),
            Self::Draining => (503, "draining"),
            Self::Internal => (500, "internal"),
        }
    }
}

/// An error with a message for the client and a cause for the log.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct RerankError {
    code: ErrorCode,
    message: String,
    cause: Option<String>,
    retry_after: Option<Duration>,
}

impl RerankError {
    fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            cause: None,
            retry_after: None,
        }
    }

    /// The request is invalid; `message` says what to change.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }

    /// The body is not JSON; `message` says where.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Malformed, message)
    }

    /// The list of texts is empty; `message` names the field.
    pub fn empty(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Empty, message)
    }

    /// The model does not support the request; `message` says what it supports.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unsupported, message)
    }

    /// The requested model is not served.
    pub fn unknown_model(requested: &str, served: &[&str]) -> Self {
        let served: Vec<String> = served.iter().map(|name| format!("`{name}`")).collect();
        let served = served.join(", ");
        Self::new(
            ErrorCode::UnknownModel,
            format!("the model `{requested}` is not served; ask for {served}, or for none"),
        )
    }

    /// The request is too large; `message` names the limit.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::TooLarge, message)
    }

    /// The queue is full. `retry_after` is the estimated time until it has space.
    pub fn overloaded(retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(
                ErrorCode::Overloaded,
                "the queue is full; retry after the time in `Retry-After`",
            )
        }
    }

    /// The request would wait for others for `wait`, longer than the server allows. `retry_after` is when
    /// it may wait less.
    pub fn queue_delay(wait: Duration, retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(
                ErrorCode::Overloaded,
                format!(
                    "this would wait about {} ms for other requests, longer than this server \
                     allows; retry after the time in `Retry-After`, or send fewer texts",
                    wait.as_millis()
                ),
            )
        }
    }

    /// The request needs `needed`, more than its deadline allows. `retry_after` is when it may succeed.
    pub fn too_late(needed: Duration, retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(
                ErrorCode::TooLate,
                format!(
                    "this would take about {} ms, more than its deadline allows; retry after the \
                     time in `Retry-After`, allow more time, or send fewer texts",
                    needed.as_millis()
                ),
            )
        }
    }

    /// The deadline passed after part of the request was scored, or was set by the server.
    pub fn out_of_time(retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(
                ErrorCode::TooLate,
                "the deadline passed before the last text was scored; retry after the time in \
                 `Retry-After`, allow more time, or send fewer texts",
            )
        }
    }

    /// The client's deadline passed before any of the request was scored.
    pub fn deadline_passed() -> Self {
        Self::new(
            ErrorCode::DeadlinePassed,
            "the deadline of the request passed while it waited; allow more time, or send fewer texts",
        )
    }

    /// The model is still loading.
    pub fn not_ready() -> Self {
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(ErrorCode::NotReady, "the model is still loading; retry")
        }
    }

    /// The model that is asked for by name should be served, and failed to load.
    pub fn failed_model(requested: &str) -> Self {
        Self::new(
            ErrorCode::NotReady,
            format!(
                "the model `{requested}` failed to load; ask for another model, or ask the operator to reload it"
            ),
        )
    }

    /// All workers have failed.
    pub fn no_workers() -> Self {
        Self::new(
            ErrorCode::NotReady,
            "every worker of the model has failed; restart the server",
        )
    }

    /// The server is shutting down.
    pub fn draining() -> Self {
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(
                ErrorCode::Draining,
                "the server is stopping; retry on another instance",
            )
        }
    }

    /// Internal server error. `cause` is logged, never sent to the client.
    pub fn internal(cause: impl Into<String>) -> Self {
        Self {
            cause: Some(cause.into()),
            ..Self::new(
                ErrorCode::Internal,
                "the server failed to score this request; it is logged under the request id",
            )
        }
    }

    /// The error code.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// The message for the client.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The cause, for the log.
    pub fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// Estimated time until a retry can succeed.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}
