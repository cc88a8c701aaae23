//! `POST /score` of vLLM.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::app::AppState;
use super::body;
use super::dialect::{Dialect, vllm};
use super::error::json;
use super::observe::RequestId;
use super::predict::scored;
use super::rerank::{Exchange, now};
use rerankd_core::RerankError;

/// `POST /score`.
pub async fn score(State(state): State<AppState>, id: RequestId, request: Request) -> Response {
    match body::accept(request, &state).await {
        Ok(accepted) => {
            let exchange = Exchange::new(state, id, accepted);
            exchange.told(Dialect::Vllm, answer(&exchange).await)
        }
        Err(failure) => failure.answer(Dialect::Vllm, id.as_str()),
    }
}

async fn answer(exchange: &Exchange) -> Result<Response, RerankError> {
    let request: vllm::ScoreRequest = body::parse(&exchange.bytes).await?;
    let asked = request.model();
    exchange.state.check_model(&exchange.reranker, asked)?;
    let command = request.into_command(exchange.state.limits())?;
    let model = exchange.reranker.info();
    if model.labels.len() != 1 {
        return Err(RerankError::unsupported(format!(
            "this model gives {} scores a pair; use `/predict`",
            model.labels.len()
        )));
    }
    let (prediction, work) = scored(exchange, command.with_claim(exchange.claim)).await?;
    let body = vllm::fill_scores(exchange.id.as_str(), now(), &model.id, &prediction);
    Ok(work.attach(json(StatusCode::OK, &body)))
}
