//! Why a request was not answered, as a small closed set.

use std::time::Duration;

/// The kinds of failure a caller can meet; each dialect maps every one to its own form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// Something in the request is wrong; repeating it cannot help.
    InvalidRequest,
    /// The body is not JSON.
    Malformed,
    /// There is nothing to score.
    Empty,
    /// This model cannot do what was asked for.
    Unsupported,
    /// A model of this name is not served.
    UnknownModel,
    /// The request is larger than the server reads.
    TooLarge,
    /// The queue is full; a later retry can succeed.
    Overloaded,
    /// The answer would come after its deadline; with more time, or later, it can succeed.
    TooLate,
    /// The deadline that the client set passed while the request waited.
    DeadlinePassed,
    /// The model is still loading, or every worker has failed.
    NotReady,
    /// The server is stopping and takes no new work.
    Draining,
    /// The server failed; the request was not at fault.
    Internal,
}

impl ErrorCode {
    /// The HTTP status and the stable name of this kind. A name, once given, keeps its meaning.
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

/// A refusal or failure: what to tell the caller, and what to tell the log.
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

    /// The request is wrong; `message` says what to change.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }

    /// The body cannot be read at all; `message` says where.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Malformed, message)
    }

    /// Nothing was sent to score; `message` names the field.
    pub fn empty(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Empty, message)
    }

    /// The model cannot do it; `message` says what it can.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unsupported, message)
    }

    /// Another model is served than the one that was asked for.
    pub fn unknown_model(asked: &str, served: &str) -> Self {
        Self::new(
            ErrorCode::UnknownModel,
            format!("the model `{asked}` is not served; ask for `{served}`, or for none"),
        )
    }

    /// The request is too large; `message` names the limit.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::TooLarge, message)
    }

    /// The queue is full. `retry_after` is the estimated time until it has room.
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

    /// The request would take `needed`, and has less. `retry_after` is when it may fit.
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

    /// The deadline passed when part of the request had been scored, or it was the server's own.
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

    /// The client's deadline passed while nothing of the request had been scored.
    pub fn deadline_passed() -> Self {
        Self::new(
            ErrorCode::DeadlinePassed,
            "the deadline in `x-request-timeout-ms` passed while the request waited",
        )
    }

    /// The model is still loading.
    pub fn not_ready() -> Self {
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(ErrorCode::NotReady, "the model is still loading; retry")
        }
    }

    /// Every worker has failed.
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

    /// The server failed. `cause` goes to the log, never to the caller.
    pub fn internal(cause: impl Into<String>) -> Self {
        Self {
            cause: Some(cause.into()),
            ..Self::new(
                ErrorCode::Internal,
                "the server failed to score this request; it is logged under the request id",
            )
        }
    }

    /// Which kind of failure this is.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// What the caller should read.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What the log should hold beyond the message.
    pub fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// When a retry can succeed, where the server has an estimate.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}
