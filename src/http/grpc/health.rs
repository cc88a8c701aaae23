//! Health checks: whether services are ready, as `/ready` tells it.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use futures_util::StreamExt;
use futures_util::stream::{Stream, once, unfold};
use http_body::Frame;
use http_body_util::StreamBody;
use rerankd_core::RerankError;
use rerankd_grpc::frame::{Messages, framed};
use rerankd_grpc::health::{ServingStatus, response, service};
use rerankd_grpc::{METHODS, Method};

use super::super::admin;
use super::super::error::Failure;
use super::super::state::AppState;
use super::head::CallHead;
use super::{short, status};
use crate::shutdown::Phase;

/// How often a watch looks whether a worker has failed, which nobody announces.
const WORKER_POLL: Duration = Duration::from_secs(1);

/// The status of `asked`, which is empty for the server.
fn status_of(state: &AppState, asked: &str) -> ServingStatus {
    let mut services = METHODS.iter().map(Method::service);
    let is_known = asked.is_empty() || services.any(|service| service == asked);
    match admin::readiness(state) {
        _ if !is_known => ServingStatus::ServiceUnknown,
        Ok(()) => ServingStatus::Serving,
        Err(_) => ServingStatus::NotServing,
    }
}

/// The status of a service that is known.
///
/// # Errors
/// When it is not.
pub(super) fn check(state: &AppState, asked: &str) -> Result<Vec<u8>, Failure> {
    match status_of(state, asked) {
        ServingStatus::ServiceUnknown => Err(Failure::UnknownService),
        status => Ok(response(status)),
    }
}

/// The status of a service now, and whenever it changes, until the server drains.
pub(super) async fn watch(state: AppState, request: Request) -> Result<Response, Failure> {
    let head = CallHead::of(&request)?;
    let bytes = short::message(&head, request, &state).await?;
    let asked = service(Messages::of(&bytes))?.to_owned();
    let body = StreamBody::new(statuses(state, asked).map(Ok::<_, axum::Error>));
    Ok(status::answer(Body::new(body)))
}

/// The frames of a watch. A status is repeated before the connection counts as idle, so that one on which
/// nobody listens is noticed and the others stay open.
fn statuses(state: AppState, asked: String) -> impl Stream<Item = Frame<Bytes>> {
    let repeat = state.config().http.header_timeout / 2;
    let told = unfold((state, None), move |(state, told)| {
        let asked = asked.clone();
        async move {
            let status = change(&state, &asked, told, repeat).await?;
            let frame = Frame::data(Bytes::from(framed(&response(status))));
            Some((frame, (state, Some(status))))
        }
    });
    let stopping = Failure::from(RerankError::draining());
    told.chain(once(std::future::ready(Frame::trailers(status::trailers(
        &stopping,
    )))))
}

/// The status as soon as it is not what was `told`, or after `repeat`; `None` when the server drains.
async fn change(
    state: &AppState,
    asked: &str,
    told: Option<ServingStatus>,
    repeat: Duration,
) -> Option<ServingStatus> {
    let repeated = tokio::time::sleep(repeat);
    tokio::pin!(repeated);
    loop {
        let phase = state.lifecycle().phase();
        let status = status_of(state, asked);
        if told != Some(status) {
            return Some(status);
        }
        if phase == Phase::Draining {
            return None;
        }
        tokio::select! {
            () = state.lifecycle().left(phase) => {}
            () = tokio::time::sleep(WORKER_POLL) => {}
            () = &mut repeated => return Some(status),
        }
    }
}
