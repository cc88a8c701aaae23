//! Calls with one answer, from one message or from many.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::Request;
use axum::response::Response;
use rerankd_core::{RerankError, SchedulingHints};
use rerankd_grpc::Method;
use rerankd_grpc::frame::{HEAD_BYTES, Messages, put};
use rerankd_wire::{Asked, Served};

use super::super::body::{self, Accepted, Coding};
use super::super::budget::HeldBytes;
use super::super::error::Failure;
use super::super::exchange::{self, Answer, Exchange};
use super::super::models::Models;
use super::super::observe::RequestId;
use super::super::state::AppState;
use super::head::CallHead;
use super::status;

/// The answer to `request`, of which `read` reads the messages.
pub(super) async fn once(
    state: AppState,
    id: RequestId,
    request: Request,
    method: &'static Method,
    read: impl FnOnce(Messages<'_>, &Served<'_>) -> Result<Asked, RerankError> + Send + 'static,
) -> Result<Response, Failure> {
    let head = CallHead::of(&request)?;
    let Accepted {
        models,
        bytes,
        held,
        hints,
    } = body::accept(request, &state).await?;
    let limit = state.config().http.max_body_bytes;
    let (bytes, held) = expand(head.coding, bytes, held, limit).await?;
    let message_bytes = bytes.len().saturating_sub(HEAD_BYTES);
    let read = |bytes: &[u8], served: &Served<'_>| read(Messages::of(bytes), served);
    let call = CallContext::new(state, id, method, head, hints);
    let answer = call.ask(models, bytes, message_bytes, read).await?;
    // The texts of the body are held until here.
    drop(held);
    Ok(answer.noted(|message| status::message(&message)))
}

/// Whose a call is, and what its head says about all its messages.
pub(super) struct CallContext {
    pub(super) state: AppState,
    id: RequestId,
    method: &'static Method,
    pub(super) head: CallHead,
    hints: SchedulingHints,
}

impl CallContext {
    /// The call `id` of `method`, whose `head` also decides about the priority.
    pub(super) fn new(
        state: AppState,
        id: RequestId,
        method: &'static Method,
        head: CallHead,
        hints: SchedulingHints,
    ) -> Self {
        let priority = head.priority;
        Self {
            state,
            id,
            method,
            head,
            hints: SchedulingHints { priority, ..hints },
        }
    }

    /// What one of `models` answers to `bytes`, which `read` reads and whose message has `message_bytes`.
    pub(super) async fn ask(
        &self,
        models: Arc<Models>,
        bytes: Bytes,
        message_bytes: usize,
        read: impl FnOnce(&[u8], &Served<'_>) -> Result<Asked, RerankError> + Send + 'static,
    ) -> Result<Answer, RerankError> {
        let (state, serving) = (self.state.clone(), models.clone());
        let (method, model) = (self.method, self.head.model.clone());
        let asked = body::on_bytes(bytes, move |bytes| {
            check_size(method, message_bytes)?;
            let served = state.served(&serving).select(model.as_deref())?;
            read(&bytes, &served)
        });
        let exchange = Exchange {
            state: &self.state,
            id: &self.id,
            dialect: method.dialect,
            hints: self.hints,
        };
        exchange.run(models, asked.await??).await
    }
}

/// Checks the size of a message.
fn check_size(method: &Method, bytes: usize) -> Result<(), RerankError> {
    match method.max_message_bytes() {
        Some(limit) if bytes > limit => Err(exchange::too_large_for_path(bytes, limit)),
        _ => Ok(()),
    }
}

/// The messages in `bytes` without compression. They count by their expanded size, and all together are
/// within `limit`.
pub(super) async fn expand(
    coding: Option<Coding>,
    bytes: Bytes,
    mut held: HeldBytes,
    limit: usize,
) -> Result<(Bytes, HeldBytes), Failure> {
    let is_compressed = |message: Result<(bool, &[u8]), _>| message.is_ok_and(|(it_is, _)| it_is);
    if !Messages::of(&bytes).any(is_compressed) {
        return Ok((bytes, held));
    }
    let coding = supported(coding)?;
    let expanding = move || {
        let mut expanded = Vec::new();
        for message in Messages::of(&bytes) {
            let (is_compressed, message) = message?;
            if !is_compressed {
                put(&mut expanded, message);
                continue;
            }
            let room = limit.saturating_sub(expanded.len());
            let message = coding.expand(message, room, &mut held)?;
            put(&mut expanded, &message);
        }
        Ok::<_, RerankError>((Bytes::from(expanded), held))
    };
    Ok(body::blocking("expanding messages", expanding).await??)
}

/// The coding of a message that is marked as compressed.
///
/// # Errors
/// When it is not supported, or the call has none.
pub(super) fn supported(coding: Option<Coding>) -> Result<Coding, Failure> {
    match coding {
        None => Err(Failure::UnknownMessageEncoding),
        Some(Coding::Plain) => Err(RerankError::malformed(
            "a message is compressed, but `grpc-encoding` is missing or `identity`; name the compression, or \
             send the message uncompressed",
        )
        .into()),
        Some(coding) => Ok(coding),
    }
}
