//! gRPC: the routes, limits, keys and log lines of HTTP, with messages in frames and statuses in trailers.

mod about;
mod call;
mod health;
mod reflection;
mod status;
mod stream;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::{MethodRouter, post};
use rerankd_core::{Priority, RerankError};
use rerankd_grpc::{Call, Method};

use super::body::Coding;
use super::error::Failure;
use super::metadata::is_call;
use super::notes::Refused;
use super::state::AppState;

/// What the head of a call says besides its hints.
struct CallHead {
    /// How messages that are marked as compressed are compressed; `None` where it is not supported.
    coding: Option<Coding>,
    /// The model that is asked for.
    model: Option<String>,
    /// The weight of its requests.
    priority: Priority,
}

/// The method's model, where messages have no field for it.
const MODEL: &str = "model";
/// The priority of all requests of the call.
const PRIORITY: &str = "x-priority";

/// What answers a call of `method`.
pub fn handler(method: &'static Method) -> MethodRouter<AppState> {
    match &method.call {
        Call::Scores(read) | Call::Tokenizes(read) => {
            post(async move |State(state), id, request| {
                call::once(state, id, request, method, *read).await
            })
        }
        Call::ScoresEach(read) | Call::TokenizesEach(read) => {
            post(async move |State(state), id, request| {
                stream::each(state, id, request, method, *read).await
            })
        }
        Call::Watch => post(async move |State(state), id, request| {
            health::watch(state, id, request, method).await
        }),
        Call::Reflection(version) => reflection::handler(*version),
        Call::Info
        | Call::Live
        | Call::Ready
        | Call::ModelReady
        | Call::Server
        | Call::Model
        | Call::Check => post(async move |State(state), id, request| {
            about::tell(state, id, request, method).await
        }),
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

impl CallHead {
    /// That of `request`.
    ///
    /// # Errors
    /// When it is not a call, or its metadata are malformed.
    fn of(request: &Request) -> Result<Self, Failure> {
        let headers = request.headers();
        if !is_call(request.version(), headers) {
            return Err(Failure::NotGrpc);
        }
        let text = |name: &str| headers.get(name).map(|value| value.to_str());
        let model = text(MODEL).transpose().map_err(|_| {
            RerankError::invalid("`model` in the metadata is not ASCII; use an alias that is")
        })?;
        let priority = match text(PRIORITY) {
            None => Priority::default(),
            Some(text) => {
                let number = text.ok().and_then(|text| text.trim().parse().ok());
                number.and_then(Priority::new).ok_or_else(|| {
                    RerankError::invalid(format!(
                        "`{PRIORITY}` in the metadata is not a whole number up to {}; send one, or leave it out",
                        Priority::MAX
                    ))
                })?
            }
        };
        Ok(Self {
            coding: match text("grpc-encoding") {
                None | Some(Ok("identity")) => Some(Coding::Plain),
                Some(Ok("gzip")) => Some(Coding::Gzip),
                Some(Ok("deflate")) => Some(Coding::Deflate),
                Some(_) => None,
            },
            model: model.filter(|name| !name.is_empty()).map(str::to_owned),
            priority,
        })
    }
}
