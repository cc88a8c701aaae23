//! gRPC: the routes, limits, keys and log lines of HTTP, with messages in frames and statuses in trailers.

mod about;
mod call;
mod head;
mod health;
mod reflection;
mod short;
mod status;
mod stream;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::{MethodRouter, post};
use rerankd_grpc::frame::Messages;
use rerankd_grpc::{Call, Method};
use rerankd_wire::Served;

use super::error::{Failure, Refused};
use super::metadata::is_call;
use super::notes::{AnsweredIn, attach};
use super::observe::RequestId;
use super::state::AppState;

/// What answers a call of `method`.
pub fn handler(method: &'static Method) -> MethodRouter<AppState> {
    match &method.call {
        Call::Scores(read) | Call::Tokenizes(read) => {
            post(async move |State(state), id: RequestId, request| {
                let read = move |messages: Messages<'_>, served: &Served<'_>| {
                    read(messages.only()?, served)
                };
                let answer = call::once(state, id.clone(), request, method, read).await;
                answered(answer, method, &id)
            })
        }
        Call::ScoresAll(read) => post(async move |State(state), id: RequestId, request| {
            let answer = call::once(state, id.clone(), request, method, *read).await;
            answered(answer, method, &id)
        }),
        Call::ScoresEach(read) | Call::TokenizesEach(read) => {
            post(async move |State(state), id: RequestId, request| {
                let answer = stream::each(state, id.clone(), request, method, *read);
                answered(answer, method, &id)
            })
        }
        Call::Watch => post(async move |State(state), id: RequestId, request| {
            answered(health::watch(state, request).await, method, &id)
        }),
        Call::Reflection(version) => reflection::handler(*version),
        Call::About(about) => post(async move |State(state), id: RequestId, request| {
            answered(about::tell(&state, request, *about).await, method, &id)
        }),
    }
}

/// The response to the call `id` of `method`.
fn answered(
    answer: Result<Response, Failure>,
    method: &'static Method,
    id: &RequestId,
) -> Response {
    match answer {
        Ok(response) => attach(response, AnsweredIn(method.dialect)),
        Err(failure) => failure.answer(method.dialect, id.as_str()),
    }
}

/// Gives calls that were refused, wherever it was, the status of gRPC.
pub async fn answer_in_statuses(request: Request, next: Next) -> Response {
    let is_call = is_call(request.version(), request.headers());
    let response = next.run(request).await;
    match response.extensions().get::<Refused>().cloned() {
        Some(Refused(failure)) if is_call => status::refusal(&failure, response),
        _ => response,
    }
}
