//! Requests of dialects: read the body, ask the service, write the answer.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use rerankd_core::{
    PredictCommand, Prediction, Priority, Ranking, RerankCommand, RerankError, SchedulingHints,
};
use rerankd_engine::service::Reranker;
use rerankd_engine::trace::{Step, Timeline};
use rerankd_wire::answer::Times;
use rerankd_wire::detect::{detect, detect_by_headers};
use rerankd_wire::dialect::Endpoint;
use rerankd_wire::{Asked, Body, Context, Dialect, Token, Work};

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
    let exchange = Exchange {
        state: &state,
        id: &id,
        dialect: endpoint.dialect,
        hints,
    };
    let answered = match asked {
        Ok(asked) => exchange.run(models, asked).await,
        Err(error) => Err(error),
    };
    // The texts of the body are held until here.
    drop(held);
    match answered {
        Ok(answer) => {
            let response = answer.noted(|body| json_bytes(StatusCode::OK, body));
            attach(response, AnsweredIn(endpoint.dialect))
        }
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
            return Err(too_large_for_path(bytes.len(), limit));
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

/// The refusal of a body of so many `bytes` at a path whose limit is lower than that of others.
pub(super) fn too_large_for_path(bytes: usize, limit: usize) -> RerankError {
    RerankError::too_large(format!(
        "the body has {bytes} bytes; the limit of this path is {limit}; send less at a time"
    ))
}

fn no_length(endpoint: Endpoint) -> RerankError {
    let name = endpoint.operation.json_length_header.unwrap_or_default();
    RerankError::invalid(format!(
        "`{name}` is not a length within the body; send how many bytes of it are JSON"
    ))
}

/// A request that was read, on its way to the service.
pub(super) struct Exchange<'a> {
    pub(super) state: &'a AppState,
    pub(super) id: &'a RequestId,
    pub(super) dialect: &'static Dialect,
    /// From the request's head.
    pub(super) hints: SchedulingHints,
}

/// What a dialect wrote, and the notes that go with it.
pub(super) struct Answer {
    body: Vec<u8>,
    pub(super) cost: Option<Cost>,
    /// Where several models are served.
    by: Option<AnsweredBy>,
}

impl Answer {
    /// The response that `write` makes of the body, with the notes.
    pub(super) fn noted(self, write: impl FnOnce(Vec<u8>) -> Response) -> Response {
        let mut response = write(self.body);
        if let Some(cost) = self.cost {
            response = attach(response, cost);
        }
        match self.by {
            Some(model) => attach(response, model),
            None => response,
        }
    }

    /// The body without the notes.
    pub(super) fn into_body(self) -> Vec<u8> {
        self.body
    }
}

impl Exchange<'_> {
    /// Asks one of `models`, and writes its answer.
    pub(super) async fn run(
        &self,
        models: Arc<Models>,
        Asked { model, work }: Asked,
    ) -> Result<Answer, RerankError> {
        // Nothing keeps the other models of the set: one that is replaced meanwhile frees its memory.
        let reranker = models.at(model).clone();
        let by = models
            .are_several()
            .then(|| AnsweredBy(reranker.info().id.as_str().into()));
        drop(models);
        let (body, cost) = self.ask(&reranker, work).await?;
        Ok(Answer { body, cost, by })
    }

    async fn ask(
        &self,
        reranker: &Reranker,
        work: Work,
    ) -> Result<(Vec<u8>, Option<Cost>), RerankError> {
        let started = Instant::now();
        let (info, hints) = (reranker.info(), self.hints);
        let context = || Context {
            dialect: self.dialect.name,
            id: self.id.as_str(),
            model: &info.id,
            labels: &info.labels,
            created: unix_seconds(SystemTime::now()),
            document_form: self.state.config().http.rerank_document,
            times: times(started.elapsed()),
        };
        Ok(match work {
            Work::Rerank(command, fill) => {
                let (ranking, cost) = rank(reranker, command, hints).await?;
                (fill(&context(), &ranking), Some(cost))
            }
            Work::Predict(command, fill) => {
                let (prediction, cost) = predict(reranker, command, hints).await?;
                (fill(&context(), &prediction), Some(cost))
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
                (fill(&context(), &tokens.collect()), None)
            }
            Work::Decode {
                ids,
                skip_special_tokens,
                fill,
            } => {
                let texts = reranker.decode(ids, skip_special_tokens, hints).await?;
                (fill(&context(), &texts), None)
            }
        })
    }
}

/// How long the steps of the current request took.
fn times(total: Duration) -> Times {
    let mut times = Times {
        total,
        ..Times::default()
    };
    for (step, spent) in Timeline::current().spent() {
        match step {
            Step::Admission => {}
            Step::Tokenize => times.tokenize = spent,
            Step::Queue => times.queue = spent,
            Step::Inference => times.inference = spent,
        }
    }
    times
}

async fn rank(
    reranker: &Reranker,
    command: RerankCommand,
    head: SchedulingHints,
) -> Result<(Ranking, Cost), RerankError> {
    let hints = hints(command.scoring().hints(), head);
    let command = command.with_hints(hints);
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
    let hints = hints(command.hints(), head);
    let command = command.with_hints(hints);
    let pairs = command.pairs().len();
    let prediction = reranker.predict(command).await?;
    check_finite(prediction.scores.iter().copied())?;
    let tokens = prediction.tokens;
    Ok((prediction, Cost { pairs, tokens }))
}

/// The hints of the `head`; the body, where it has one, decides about the priority.
fn hints(body: SchedulingHints, head: SchedulingHints) -> SchedulingHints {
    let priority = match body.priority {
        default if default == Priority::default() => head.priority,
        own => own,
    };
    SchedulingHints { priority, ..head }
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
