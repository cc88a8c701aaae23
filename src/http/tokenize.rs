//! `POST /tokenize` and `POST /decode` of TEI.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::app::AppState;
use super::body;
use super::dialect::{Dialect, tei};
use super::error::json;
use super::observe::RequestId;
use super::rerank::Exchange;
use crate::rerank::RerankError;

/// `POST /tokenize`.
pub async fn tokenize(State(state): State<AppState>, id: RequestId, request: Request) -> Response {
    match body::accept(request, &state).await {
        Ok(accepted) => {
            let exchange = Exchange::new(state, id, accepted);
            exchange.told(Dialect::Tei, tokens(&exchange).await)
        }
        Err(failure) => failure.answer(Dialect::Tei, id.as_str()),
    }
}

/// `POST /decode`.
pub async fn decode(State(state): State<AppState>, id: RequestId, request: Request) -> Response {
    match body::accept(request, &state).await {
        Ok(accepted) => {
            let exchange = Exchange::new(state, id, accepted);
            exchange.told(Dialect::Tei, texts(&exchange).await)
        }
        Err(failure) => failure.answer(Dialect::Tei, id.as_str()),
    }
}

async fn tokens(exchange: &Exchange) -> Result<Response, RerankError> {
    let request: tei::TokenizeRequest = body::parse(&exchange.bytes).await?;
    let (texts, special) = request.into_texts()?;
    exchange.state.limits().check("inputs", texts.len())?;
    let tokens = exchange.reranker.tokenize(texts, special).await?;
    Ok(json(StatusCode::OK, &tei::fill_tokens(&tokens)))
}

async fn texts(exchange: &Exchange) -> Result<Response, RerankError> {
    let request: tei::DecodeRequest = body::parse(&exchange.bytes).await?;
    let (ids, skip_special) = request.into_ids()?;
    exchange.state.limits().check("ids", ids.len())?;
    let texts = exchange.reranker.decode(ids, skip_special).await?;
    Ok(json(StatusCode::OK, &texts))
}
