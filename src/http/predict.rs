//! Predictions: every score of every pair, in the order of the request.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::app::AppState;
use super::body;
use super::dialect::{Dialect, native, tei};
use super::error::{Failure, json};
use super::observe::{RequestId, Work};
use super::rerank::{Exchange, check_finite};
use rerankd_core::{Claim, PredictCommand, Prediction, RerankError};

/// `POST /predict`, the server's own or TEI's.
pub async fn predict(State(state): State<AppState>, id: RequestId, request: Request) -> Response {
    let exchange = match body::accept(request, &state).await {
        Ok(accepted) => Exchange::new(state, id, accepted),
        Err(failure) => return failure.answer(Dialect::Native, id.as_str()),
    };
    let keys = exchange.keys().await;
    match keys.and_then(|keys| keys.predict_dialect()) {
        Ok(Dialect::Tei) => exchange.told(Dialect::Tei, of_tei(&exchange).await),
        Ok(_) => exchange.told(Dialect::Native, of_native(&exchange).await),
        Err(error) => Failure::from(error).answer(Dialect::Native, exchange.id.as_str()),
    }
}

/// `POST /` and `POST /invocations`: TEI's `/rerank` or `/predict`, whichever the body asks for.
pub async fn rerank_or_predict(
    State(state): State<AppState>,
    id: RequestId,
    request: Request,
) -> Response {
    let exchange = match body::accept(request, &state).await {
        Ok(accepted) => Exchange::new(state, id, accepted),
        Err(failure) => return failure.answer(Dialect::Tei, id.as_str()),
    };
    match exchange.keys().await {
        Ok(keys) if keys.is_prediction() => exchange.told(Dialect::Tei, of_tei(&exchange).await),
        _ => exchange.detect(Dialect::Tei).await,
    }
}

async fn of_native(exchange: &Exchange) -> Result<Response, RerankError> {
    let request: native::PredictRequest = body::parse(&exchange.bytes).await?;
    let asked = request.model();
    exchange.state.check_model(&exchange.reranker, asked)?;
    let claim = Claim {
        priority: request.priority(),
        ..exchange.claim
    };
    let command = request.into_command(exchange.state.limits())?;
    let (prediction, work) = scored(exchange, command.with_claim(claim)).await?;
    let model = &exchange.reranker.info().id;
    let response = native::PredictResponse::fill(model, &prediction);
    Ok(work.attach(json(StatusCode::OK, &response)))
}

async fn of_tei(exchange: &Exchange) -> Result<Response, RerankError> {
    let request: tei::PredictRequest = body::parse(&exchange.bytes).await?;
    let (command, batch) = request.into_command(exchange.state.limits())?;
    let command = command.with_claim(exchange.claim);
    let (prediction, work) = scored(exchange, command).await?;
    let labels = &exchange.reranker.info().labels;
    let response = tei::fill_prediction(labels, &prediction, batch);
    Ok(work.attach(json(StatusCode::OK, &response)))
}

/// What the model makes of `command`, and what that cost.
///
/// # Errors
/// As the service, and when a score is no number.
pub async fn scored(
    exchange: &Exchange,
    command: PredictCommand,
) -> Result<(Prediction, Work), RerankError> {
    let pairs = command.pairs().len();
    let prediction = exchange.reranker.predict(command).await?;
    check_finite(prediction.scores.iter().copied())?;
    let work = Work {
        pairs,
        tokens: prediction.tokens,
    };
    Ok((prediction, work))
}
