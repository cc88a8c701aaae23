//! Requests that hold a name at most, and are answered whatever the server does.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::Request;
use rerankd_core::{ErrorCode, RerankError};

use super::super::body;
use super::super::error::Failure;
use super::super::state::{AppState, InFlight};
use super::call;
use super::head::CallHead;

/// Most bytes of a request: it is a name at most.
const MAX_BYTES: usize = 4096;

/// The frame of a short request, whatever the server's phase: probes are always answered.
pub(super) async fn message(
    head: &CallHead,
    request: Request,
    state: &AppState,
) -> Result<Bytes, Failure> {
    let (parts, body) = request.into_parts();
    let received = body::receive(&parts, body, state, MAX_BYTES).await;
    let (bytes, held) = received.map_err(short)?;
    if let Some(in_flight) = parts.extensions.get::<Arc<InFlight>>() {
        in_flight.accept();
    }
    let expanded = call::expand(head.coding, bytes, held, MAX_BYTES).await;
    let (bytes, _) = expanded.map_err(short)?;
    Ok(bytes)
}

/// The refusal of a request that is too long, which no setting allows.
fn short(failure: Failure) -> Failure {
    let is_too_large = |error: &RerankError| error.code() == ErrorCode::TooLarge;
    match failure.service().is_some_and(is_too_large) {
        true => RerankError::too_large(format!(
            "the message has more than {MAX_BYTES} bytes; send the name of a service or a model at most"
        ))
        .into(),
        false => failure,
    }
}
