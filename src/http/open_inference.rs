//! What the Open Inference Protocol asks about a server and its model.

use axum::extract::{FromRequestParts, MatchedPath, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use rerankd_core::RerankError;
use rerankd_engine::service::Reranker;
use rerankd_wire::OPEN_INFERENCE;
use rerankd_wire::open_inference::{Model, Ready, Server};
use serde::Deserialize;

use super::error::{Failure, json};
use super::route;
use super::state::AppState;

/// The model that a path names.
pub struct ModelName(pub String);

/// Of what a path leaves open, what counts: there is one version of each model, whatever it is called.
#[derive(Deserialize)]
struct Named {
    publisher: Option<String>,
    model: String,
}

impl Named {
    /// The name as a hub has it.
    fn whole(self) -> String {
        match self.publisher {
            Some(publisher) => format!("{publisher}/{}", self.model),
            None => self.model,
        }
    }
}

impl FromRequestParts<AppState> for ModelName {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Response> {
        let path = Path::from_request_parts(parts, state).await;
        path.map(|Path(named): Path<Named>| Self(named.whole()))
            .map_err(|_| {
                let error = RerankError::invalid(
                    "the path is not UTF-8; encode names in it so, and then in percent signs",
                );
                let route = parts.extensions.get::<MatchedPath>();
                let dialect = route::dialect(&parts.method, route.map_or("", MatchedPath::as_str));
                Failure::from(error).answer(dialect, "")
            })
    }
}

/// `GET /v2`: the server.
pub async fn server() -> Response {
    json(StatusCode::OK, &Server::THIS)
}

/// `GET /v2/models/{model}`: what the model takes and gives.
pub async fn model(State(state): State<AppState>, ModelName(asked): ModelName) -> Response {
    about(&state, &asked, |reranker| {
        let info = reranker.info();
        json(StatusCode::OK, &Model::new(&info.id, info.labels.len()))
    })
}

/// `GET /v2/models/{model}/ready`.
pub async fn model_ready(State(state): State<AppState>, ModelName(asked): ModelName) -> Response {
    about(&state, &asked, |_| {
        let ready = Ready {
            name: &asked,
            ready: true,
        };
        json(StatusCode::OK, &ready)
    })
}

fn about(state: &AppState, asked: &str, tell: impl FnOnce(&Reranker) -> Response) -> Response {
    match state.serving().and_then(|_| state.model(Some(asked))) {
        Ok(reranker) => tell(&reranker),
        Err(error) => Failure::from(error).answer(&OPEN_INFERENCE, ""),
    }
}
