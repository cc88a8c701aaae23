//! Statuses: of failures, and at the end of each answer.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use http_body_util::{BodyExt, Full};
use rerankd_core::ErrorCode;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::super::error::Failure;
use super::super::notes::{LoggedStatus, attach};

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// The status that gRPC has for this failure.
pub fn grpc_code(failure: &Failure) -> Code {
    match failure {
        Failure::NotFound | Failure::MethodNotAllowed | Failure::UnknownMessageEncoding => {
            Code::Unimplemented
        }
        Failure::UnknownService => Code::NotFound,
        Failure::BodyTimeout(_) => Code::DeadlineExceeded,
        Failure::BodyEnded => Code::Cancelled,
        Failure::UnknownEncoding | Failure::NotGrpc => Code::InvalidArgument,
        Failure::NoKey | Failure::WrongKey => Code::Unauthenticated,
        Failure::ForeignOrigin(_) => Code::PermissionDenied,
        Failure::NotReloaded(_) => Code::FailedPrecondition,
        Failure::Service(error) => match error.code() {
            ErrorCode::InvalidRequest
            | ErrorCode::Malformed
            | ErrorCode::Empty
            | ErrorCode::Unsupported => Code::InvalidArgument,
            ErrorCode::UnknownModel => Code::NotFound,
            ErrorCode::TooLarge | ErrorCode::Overloaded | ErrorCode::TooLate => {
                Code::ResourceExhausted
            }
            ErrorCode::DeadlinePassed => Code::DeadlineExceeded,
            ErrorCode::NotReady | ErrorCode::Draining => Code::Unavailable,
            ErrorCode::Internal => Code::Internal,
        },
    }
}

/// `failure` with its message, and when a retry can succeed.
fn status(failure: &Failure) -> Status {
    let details = match failure.retry_after() {
        Some(wait) => ErrorDetails::with_retry_info(Some(wait.max(Duration::from_millis(1)))),
        None => return Status::new(grpc_code(failure), failure.message()),
    };
    Status::with_error_details(grpc_code(failure), failure.message(), details)
}

/// The answer to a call that failed as `response` says in HTTP, of which the notes and the headers stay.
pub(super) fn refusal(failure: &Failure, response: Response) -> Response {
    let logged = LoggedStatus(response.status());
    let (mut head, _) = response.into_parts();
    let (told, body) = status(failure).into_http::<Body>().into_parts();
    head.status = told.status;
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.extend(told.headers);
    if let Failure::UnknownMessageEncoding = failure {
        let known = HeaderValue::from_static("identity, gzip, deflate");
        head.headers.insert("grpc-accept-encoding", known);
    }
    attach(Response::from_parts(head, body), logged)
}

/// What ends an answer that is whole.
pub(super) fn ok() -> HeaderMap {
    let zero = HeaderValue::from_static("0");
    HeaderMap::from_iter([(Status::GRPC_STATUS, zero)])
}

/// What ends an answer that breaks off.
pub(super) fn trailers(failure: &Failure) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // An error would mean that the message is no header; tonic encodes it so that it is one.
    let _ = status(failure).add_header(&mut trailers);
    trailers
}

/// An answer of one message.
pub(super) fn message(message: &[u8]) -> Response {
    let framed = Full::new(Bytes::from(rerankd_grpc::frame::framed(message)));
    answer(Body::new(
        framed.with_trailers(std::future::ready(Some(Ok(ok())))),
    ))
}

/// An answer whose body has its frames and ends in a status.
pub(super) fn answer(body: Body) -> Response {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, CONTENT_TYPE);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use rerankd_core::RerankError;

    #[test]
    fn a_refusal_says_when_a_retry_can_succeed() {
        let failure = Failure::from(RerankError::overloaded(Duration::from_millis(2300)));
        let status = status(&failure);
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.message(), failure.message());
        let retry = status.get_details_retry_info().unwrap();
        assert_eq!(retry.retry_delay, Some(Duration::from_millis(2300)));
        let trailers = trailers(&failure);
        assert_eq!(trailers["grpc-status"], "8");
        assert!(trailers.contains_key("grpc-status-details-bin"));
        let final_one = Failure::from(RerankError::too_large("too large"));
        assert!(super::status(&final_one).details().is_empty());
    }

    #[test]
    fn bad_input_is_never_internal() {
        for failure in [
            Failure::from(RerankError::invalid("")),
            Failure::from(RerankError::malformed("")),
            Failure::from(RerankError::empty("")),
            Failure::from(RerankError::unsupported("")),
            Failure::NotGrpc,
            Failure::UnknownMessageEncoding,
            Failure::BodyEnded,
        ] {
            let code = grpc_code(&failure);
            assert!(
                code != Code::Internal && code != Code::Unknown,
                "{failure:?}"
            );
        }
    }
}
