//! Failures on their way to the client: the one place that knows which status each one has.

use std::any::Any;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rerankd_core::RerankError;
use rerankd_wire::{Dialect, NATIVE, Problem, to_json};
use serde::Serialize;

use super::notes::{AnsweredIn, attach};

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// Why a request was not answered: for the service's reasons, or for HTTP's own.
#[derive(Debug, Clone)]
pub enum Failure {
    /// The service refused or failed.
    Service(RerankError),
    /// There is no such path.
    NotFound,
    /// The path does not take this method.
    MethodNotAllowed,
    /// The body did not arrive in time.
    BodyTimeout(Duration),
    /// The body ended before it was whole: its client has left, or is about to.
    BodyEnded,
    /// Its `Content-Encoding` is not supported.
    UnknownEncoding,
    /// The `grpc-encoding` of a message is not supported.
    UnknownMessageEncoding,
    /// A health check asks about a service that is not known.
    UnknownService,
    /// The path is that of a method, and the request is not in gRPC.
    NotGrpc,
    /// The server has keys, and none was sent.
    NoKey,
    /// The key that was sent is not one of the server's.
    WrongKey,
    /// The request comes from a page of this origin, which is not allowed.
    ForeignOrigin(String),
    /// The models could not be reloaded, for this reason.
    NotReloaded(String),
}

/// A note for the log line of a request: why it was refused.
#[derive(Debug, Clone)]
pub struct Refused(pub Failure);

impl From<RerankError> for Failure {
    fn from(error: RerankError) -> Self {
        Self::Service(error)
    }
}

impl Failure {
    /// A panic of a handler, for the log; the client learns that it was not at fault.
    pub fn from_panic(panic: Box<dyn Any + Send + 'static>) -> Response {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Self::from(RerankError::internal(format!("panic: {text}"))).into_response()
    }

    /// The status and the stable name of this failure. A name, once given, keeps its meaning.
    pub fn kind(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::BodyTimeout(_) => (StatusCode::REQUEST_TIMEOUT, "timeout"),
            Self::BodyEnded => (StatusCode::BAD_REQUEST, "invalid_request"),
            Self::UnknownEncoding | Self::UnknownMessageEncoding => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding")
            }
            Self::UnknownService => (StatusCode::NOT_FOUND, "not_found"),
            Self::NotGrpc => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_grpc"),
            Self::NoKey | Self::WrongKey => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::ForeignOrigin(_) => (StatusCode::FORBIDDEN, "foreign_origin"),
            Self::NotReloaded(_) => (StatusCode::CONFLICT, "not_reloaded"),
            Self::Service(error) => {
                let (status, name) = error.code().http();
                let status = StatusCode::from_u16(status).expect("a status has three digits");
                (status, name)
            }
        }
    }

    /// What the client should read: what to change, or what to do.
    pub fn message(&self) -> String {
        match self {
            Self::Service(error) => error.message().to_owned(),
            Self::NotFound => {
                "not found; `POST /rerank` and `POST /predict` score texts, `GET /info` \
                               describes the server"
                    .to_owned()
            }
            Self::MethodNotAllowed => {
                "method not allowed; the `Allow` header lists those that are".to_owned()
            }
            Self::BodyTimeout(limit) => format!(
                "the body did not arrive within {} s; send it faster, or raise `--body-timeout`",
                limit.as_secs_f64()
            ),
            Self::BodyEnded => {
                "the body ended early; send as much as its headers announce".to_owned()
            }
            Self::UnknownEncoding => {
                "unsupported Content-Encoding; send `gzip`, `deflate` or none".to_owned()
            }
            Self::UnknownMessageEncoding => {
                "unsupported `grpc-encoding`; send `gzip`, `deflate` or `identity`".to_owned()
            }
            Self::UnknownService => {
                "this server has no such service; ask for one that reflection lists, or for \
                                     none to check the server"
                    .to_owned()
            }
            Self::NotGrpc => "this is a method of gRPC; call it over HTTP/2 with \
                              `Content-Type: application/grpc`"
                .to_owned(),
            Self::NoKey => {
                "API key required; send it as `Authorization: Bearer KEY` or as `x-api-key: \
                            KEY`"
                    .to_owned()
            }
            Self::WrongKey => "invalid API key; send one that this server has".to_owned(),
            Self::ForeignOrigin(_) => "this origin is not allowed; the operator can allow it \
                                       (`--cors-origin`) or set API keys (`--api-keys-file`)"
                .to_owned(),
            Self::NotReloaded(reason) => format!("the models stay as they are: {reason}"),
        }
    }

    /// The answer to the request `id` in this dialect.
    pub fn answer(&self, dialect: &'static Dialect, id: &str) -> Response {
        let (status, kind) = self.kind();
        let reply = (dialect.error)(&Problem {
            status,
            kind,
            code: self.service().map(RerankError::code),
            message: &self.message(),
            request_id: id,
        });
        let response = attach(json_bytes(reply.status, reply.body), AnsweredIn(dialect));
        let mut response = attach(response, Refused(self.clone()));
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, retry_after(wait));
            headers.insert(RETRY_AFTER_MS, retry_after_ms(wait));
        }
        match self {
            Self::NoKey | Self::WrongKey => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::UnknownEncoding => {
                let known = HeaderValue::from_static("gzip, deflate");
                headers.insert(header::ACCEPT_ENCODING, known);
            }
            _ => {}
        }
        response
    }

    /// When a retry can succeed.
    pub fn retry_after(&self) -> Option<Duration> {
        self.service().and_then(RerankError::retry_after)
    }

    /// What went wrong inside the server, for the log.
    pub fn cause(&self) -> Option<&str> {
        self.service().and_then(RerankError::cause)
    }

    /// Why the service refused or failed.
    pub fn service(&self) -> Option<&RerankError> {
        match self {
            Self::Service(error) => Some(error),
            Self::NotFound
            | Self::MethodNotAllowed
            | Self::BodyTimeout(_)
            | Self::BodyEnded
            | Self::UnknownEncoding
            | Self::UnknownMessageEncoding
            | Self::NotGrpc
            | Self::UnknownService
            | Self::NoKey
            | Self::WrongKey
            | Self::ForeignOrigin(_)
            | Self::NotReloaded(_) => None,
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.answer(&NATIVE, "")
    }
}

/// Whole seconds, rounded up: a client that comes back a moment early was refused for nothing.
fn retry_after(wait: Duration) -> HeaderValue {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    seconds.max(1).into()
}

/// The same in milliseconds, for the clients that prefer it.
fn retry_after_ms(wait: Duration) -> HeaderValue {
    let milliseconds = u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
    milliseconds.max(1).into()
}

/// `value` as a JSON answer.
pub fn json(status: StatusCode, value: &impl Serialize) -> Response {
    json_bytes(status, to_json(value))
}

/// An answer whose body is JSON already.
pub fn json_bytes(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_whole_seconds_and_never_early() {
        for (milliseconds, header) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2"), (90_000, "90")]
        {
            assert_eq!(retry_after(Duration::from_millis(milliseconds)), header);
        }
    }

    #[test]
    fn overload_says_when_to_come_back() {
        let failure = Failure::from(RerankError::overloaded(Duration::from_millis(2300)));
        let response = failure.into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "3");
        assert_eq!(response.headers()["retry-after-ms"], "2300");
    }

    #[test]
    fn a_cause_goes_to_the_log_and_not_to_the_client() {
        let failure = Failure::from(RerankError::internal("session 3 failed"));
        assert!(!failure.message().contains("session"));
        let response = failure.into_response();
        let Refused(failure) = response.extensions().get().unwrap();
        assert_eq!(failure.cause(), Some("session 3 failed"));
    }
}
