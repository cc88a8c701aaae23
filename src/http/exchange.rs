//! Requests of dialects: read the body, ask the service, write the answer.

use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use rerankd_core::{
    PredictCommand, Prediction, Ranking, RerankCommand, RerankError, SchedulingHints,
};
use rerankd_engine::service::Reranker;
use rerankd_wire::detect::{detect, detect_by_headers};
use rerankd_wire::dialect::Endpoint;
use rerankd_wire::{Asked, Body, Context, Token, Work};

use super::admin::unix_seconds;
use super::body::{self, Accepted};
use super::error::{Failure, json_bytes};
use super::models::Models;
use super::notes::{AnsweredBy, AnsweredIn, Cost, attach};
use super::observe::RequestId;
use super::state::AppState;

/// The answer to `request`, whose body asks for one of `operations`, and whose path may name a model.
pub async fn answer(
    state: AppState,
    id: RequestId,
    path_model: Option<String>,
    request: Request,
    operations: &'static [Endpoint],
) -> Response {
    let json_length = json_length(request.headers(), operations[0]);
    let told = detect_by_headers(operations, request.headers());
    // Errors before the body is read have the form of its clients.
    let early = told.unwrap_or(operations[0]);
    let accepted = match body::accept(request, &state).await {
        Ok(accepted) => accepted,
        Err(failure) => return failure.answer(early.dialect, id.as_str()),
    };
    let Accepted {
        models,
        bytes,
        held,
        hints,
    } = accepted;
    let reading = Reading {
        state: state.clone(),
        models: models.clone(),
        path_model,
        json_length,
        told,
        operations,
    };
    let (endpoint, asked) = match body::on_bytes(bytes, |bytes| reading.read(bytes)).await {
        Ok(read) => read,
        Err(error) => (early, Err(error)),
    };
    let answered = match asked {
        Ok(Asked { model, work }) => {
            // Nothing keeps the other models of the set: one that is replaced meanwhile frees its memory.
            let reranker = models.at(model).clone();
            let answerer = models
                .are_several()
                .then(|| AnsweredBy(reranker.info().id.as_str().into()));
            drop(models);
            let answered = run(&state, &id, &reranker, endpoint, hints, work).await;
            answered.map(|response| match answerer {
                Some(answerer) => attach(response, answerer),
                None => response,
            })
        }
        Err(error) => Err(error),
    };
    // The texts of the body are held until here.
    drop(held);
    match answered {
        Ok(response) => attach(response, AnsweredIn(endpoint.dialect)),
        Err(error) => Failure::from(error).answer(endpoint.dialect, id.as_str()),
    }
}

/// What is needed to read a body, on whatever thread.
struct Reading {
    state: AppState,
    models: Arc<Models>,
    path_model: Option<String>,
    json_length: Result<Option<usize>, RerankError>,
    /// The operation that the head tells.
    told: Option<Endpoint>,
    operations: &'static [Endpoint],
}

impl Reading {
    /// Which operation the body asks for, and what that is.
    fn read(self, bytes: Bytes) -> (Endpoint, Result<Asked, RerankError>) {
        let endpoint = self.told.unwrap_or_else(|| detect(self.operations, &bytes));
        (endpoint, self.read_as(endpoint, bytes))
    }

    fn read_as(self, endpoint: Endpoint, mut bytes: Bytes) -> Result<Asked, RerankError> {
        let operation = endpoint.operation;
        if let Some(limit) = operation.max_body_bytes
            && bytes.len() > limit
        {
            return Err(RerankError::too_large(format!(
                "the body has {} bytes; the limit of this path is {limit}; send less at a time",
                bytes.len()
            )));
        }
        let binary = match self.json_length? {
            None => Bytes::new(),
            Some(length) if length <= bytes.len() => bytes.split_off(length),
            Some(_) => return Err(no_length(endpoint)),
        };
        let served = self.state.served(&self.models);
        let served = served.select(self.path_model.as_deref())?;
        let json = bytes;
        (operation.read)(Body { json, binary }, &served)
    }
}

/// How many bytes of the body are JSON, where the operation has a header that says so.
fn json_length(headers: &HeaderMap, endpoint: Endpoint) -> Result<Option<usize>, RerankError> {
    let name = endpoint.operation.json_length_header;
    let Some(value) = name.and_then(|name| headers.get(name)) else {
        return Ok(None);
    };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    length.map(Some).ok_or_else(|| no_length(endpoint))
}

fn no_length(endpoint: Endpoint) -> RerankError {
    let name = endpoint.operation.json_length_header.unwrap_or_default();
    RerankError::invalid(format!(
        "`{name}` is not a length within the body; send how many bytes of it are JSON"
    ))
}

/// Asks the service, and writes its answer.
async fn run(
    state: &AppState,
    id: &RequestId,
    reranker: &Reranker,
    endpoint: Endpoint,
    hints: SchedulingHints,
    work: Work,
) -> Result<Response, RerankError> {
    let info = reranker.info();
    let context = || Context {
        dialect: endpoint.dialect.name,
        id: id.as_str(),
        model: &info.id,
        labels: &info.labels,
        created: unix_seconds(SystemTime::now()),
        document_form: state.config().http.rerank_document,
    };
    let ok = |body| json_bytes(StatusCode::OK, body);
    Ok(match work {
        Work::Rerank(command, fill) => {
            let (ranking, cost) = rank(reranker, command, hints).await?;
            attach(ok(fill(&context(), &ranking)), cost)
        }
        Work::Predict(command, fill) => {
            let (prediction, cost) = predict(reranker, command, hints).await?;
            attach(ok(fill(&context(), &prediction)), cost)
        }
        Work::Tokenize {
            texts,
            special_tokens,
            fill,
        } => {
            let texts = reranker
                .tokenize(texts, special_tokens, hints)
                .await?
                .into_iter();
            let tokens = texts.map(|tokens| {
                let tokens = tokens.into_iter();
                let token = tokens.map(|token| Token::new(token.id, token.text, token.span));
                token.collect()
            });
            ok(fill(&context(), &tokens.collect()))
        }
        Work::Decode {
            ids,
            skip_special_tokens,
            fill,
        } => {
            let texts = reranker.decode(ids, skip_special_tokens, hints).await?;
            ok(fill(&context(), &texts))
        }
    })
}

async fn rank(
    reranker: &Reranker,
    command: RerankCommand,
    head: SchedulingHints,
) -> Result<(Ranking, Cost), RerankError> {
    let priority = command.scoring().hints().priority;
    let command = command.with_hints(SchedulingHints { priority, ..head });
    let pairs = command.scoring().pairs().len();
    let ranking = reranker.rerank(command).await?;
    check_finite(ranking.results.iter().map(|ranked| ranked.score))?;
    let tokens = ranking.tokens;
    Ok((ranking, Cost { pairs, tokens }))
}

async fn predict(
    reranker: &Reranker,
    command: PredictCommand,
    head: SchedulingHints,
) -> Result<(Prediction, Cost), RerankError> {
    let priority = command.hints().priority;
    let command = command.with_hints(SchedulingHints { priority, ..head });
    let pairs = command.pairs().len();
    let prediction = reranker.predict(command).await?;
    check_finite(prediction.scores.iter().copied())?;
    let tokens = prediction.tokens;
    Ok((prediction, Cost { pairs, tokens }))
}

/// JSON has no NaN: it would reach the client as null, and its ranking would mean nothing.
///
/// # Errors
/// Where a score is not a finite number.
fn check_finite(mut scores: impl Iterator<Item = f32>) -> Result<(), RerankError> {
    match scores.position(|score| !score.is_finite()) {
        None => Ok(()),
        Some(at) => Err(RerankError::internal(format!(
            "the model gave a score that is not finite, at {at}"
        ))),
    }
}
