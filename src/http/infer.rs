//! The Open Inference Protocol: what it asks of a server, of its model, and an inference.

use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;

use super::app::AppState;
use super::body;
use super::dialect::Dialect;
use super::dialect::open_inference::{self, Model, Ready, Server};
use super::error::{Failure, json};
use super::observe::RequestId;
use super::predict::scored;
use super::rerank::Exchange;
use rerankd_core::RerankError;
use rerankd_engine::service::Reranker;

/// How long the part of the body is that is JSON, where tensors lie behind it.
const JSON_LENGTH: &str = "inference-header-content-length";

/// The model that a path names.
pub struct ModelName(String);

impl FromRequestParts<AppState> for ModelName {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Response> {
        let path = Path::from_request_parts(parts, state).await;
        path.map(|Path(name)| Self(name)).map_err(|_| {
            let error = RerankError::invalid(
                "the model's name in the path is not UTF-8; encode it so, and then in percent signs",
            );
            Failure::from(error).answer(Dialect::OpenInference, "")
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
    let checked = state.serving().and_then(|reranker| {
        state.check_model(&reranker, Some(asked))?;
        Ok(reranker)
    });
    match checked {
        Ok(reranker) => tell(&reranker),
        Err(error) => Failure::from(error).answer(Dialect::OpenInference, ""),
    }
}

/// `POST /v2/models/{model}/infer`.
pub async fn infer(
    State(state): State<AppState>,
    ModelName(asked): ModelName,
    id: RequestId,
    request: Request,
) -> Response {
    let json_length = json_length(request.headers());
    let mut exchange = match body::accept(request, &state).await {
        Ok(accepted) => Exchange::new(state, id, accepted),
        Err(failure) => return failure.answer(Dialect::OpenInference, id.as_str()),
    };
    let behind = match json_length {
        Ok(None) => Ok(Default::default()),
        Ok(Some(length)) if length <= exchange.bytes.len() => Ok(exchange.bytes.split_off(length)),
        Ok(Some(_)) | Err(()) => Err(RerankError::invalid(format!(
            "`{JSON_LENGTH}` is not a length within the body; send how many bytes of it are JSON"
        ))),
    };
    let answer = match behind {
        Ok(behind) => answer(&exchange, Some(&asked), &behind).await,
        Err(error) => Err(error),
    };
    exchange.told(Dialect::OpenInference, answer)
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, ()> {
    let Some(value) = headers.get(JSON_LENGTH) else {
        return Ok(None);
    };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    length.map(Some).ok_or(())
}

/// The scores that the body of `exchange` asks for.
///
/// # Errors
/// When the request is wrong, or scoring failed.
pub async fn answer(
    exchange: &Exchange,
    asked: Option<&str>,
    behind: &[u8],
) -> Result<Response, RerankError> {
    exchange.state.check_model(&exchange.reranker, asked)?;
    let request: open_inference::Request = body::parse(&exchange.bytes).await?;
    let (command, id) = request.into_command(behind, exchange.state.limits())?;
    let (prediction, work) = scored(exchange, command.with_claim(exchange.claim)).await?;
    let model = &exchange.reranker.info().id;
    let body = open_inference::fill(model, id.as_deref(), &prediction);
    Ok(work.attach(json(StatusCode::OK, &body)))
}
