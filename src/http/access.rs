//! Access control: who is refused before anything of a body is read.

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::auth::{KeyName, foreign, shown};
use super::error::Failure;
use super::observe::RequestId;
use super::route;
use super::state::AppState;

/// Refuses requests without a valid key, and those of pages whose origin is not allowed.
pub async fn check(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("", MatchedPath::as_str);
    let config = &state.config().http;
    let headers = request.headers();
    let refused = if route::is_open(request.method(), route) {
        None
    } else if state.keys().open() {
        foreign(headers, request.uri(), config).map(Failure::ForeignOrigin)
    } else {
        match shown(headers).map(|key| state.keys().owner(key)) {
            None => Some(Failure::NoKey),
            Some(None) => Some(Failure::WrongKey),
            Some(Some(owner)) => {
                request.extensions_mut().insert(owner.name);
                request.extensions_mut().insert(owner.tenant);
                None
            }
        }
    };
    let Some(failure) = refused else {
        let owner = request.extensions().get::<KeyName>().cloned();
        let mut response = next.run(request).await;
        if let Some(owner) = owner {
            response.extensions_mut().insert(owner);
        }
        return response;
    };
    let id = request.extensions().get::<RequestId>();
    let id = id.map_or("", RequestId::as_str);
    let dialect = route::dialect_of_head(request.method(), route, request.headers());
    failure.answer(dialect, id)
}
