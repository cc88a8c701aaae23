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
use rerankd_core::RerankError;

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

/// Bytes of one body here. Every token comes back with its text and place, some thirty times what was
/// sent, and none of it waits in the queue of the model: it is for looking at texts, not for bulk.
const MAX_BYTES: usize = 256 * 1024;

fn check_size(exchange: &Exchange) -> Result<(), RerankError> {
    let bytes = exchange.bytes.len();
    if bytes > MAX_BYTES {
        return Err(RerankError::too_large(format!(
            "the body has {bytes} bytes; the limit of this path is {MAX_BYTES}; send less at a time"
        )));
    }
    Ok(())
}

async fn tokens(exchange: &Exchange) -> Result<Response, RerankError> {
    check_size(exchange)?;
    let request: tei::TokenizeRequest = body::parse(&exchange.bytes).await?;
    let (texts, special) = request.into_texts()?;
    exchange.state.limits().check("inputs", texts.len())?;
    let claim = exchange.claim;
    let tokens = exchange.reranker.tokenize(texts, special, claim).await?;
    Ok(json(StatusCode::OK, &tei::fill_tokens(&tokens)))
}

async fn texts(exchange: &Exchange) -> Result<Response, RerankError> {
    check_size(exchange)?;
    let request: tei::DecodeRequest = body::parse(&exchange.bytes).await?;
    let (ids, skip_special) = request.into_ids()?;
    exchange.state.limits().check("ids", ids.len())?;
    let claim = exchange.claim;
    let texts = exchange.reranker.decode(ids, skip_special, claim).await?;
    Ok(json(StatusCode::OK, &texts))
}
