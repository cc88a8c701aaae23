//! The server's own wire format: `POST /rerank` and `POST /predict`.
//!
//! An error is one text under four names, which is what the readers of other servers' clients look
//! for.

use std::num::NonZeroUsize;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use serde::de::MapAccess;

use super::field::{Count, Documents, Fields, Flag, Pairs, Text, skip};
use crate::http::app::AppState;
use crate::http::body::Accepted;
use crate::http::error::{Failure, json};
use crate::http::observe::{RequestId, Work};
use crate::rerank::{
    Limits, Pair, PredictCommand, Prediction, Ranking, RerankCommand, RerankError, Scale,
    ScoreOptions, Truncate,
};

/// Body of `POST /rerank`.
#[derive(Debug, Default)]
pub struct RerankRequest {
    query: Option<String>,
    documents: Option<Vec<String>>,
    top_n: Option<NonZeroUsize>,
    return_documents: Option<bool>,
    raw_scores: Option<bool>,
    truncate: Option<bool>,
}

impl Fields for RerankRequest {
    fn read<'de, M: MapAccess<'de>>(&mut self, field: &str, map: &mut M) -> Result<(), M::Error> {
        match field {
            "query" => self.query = Some(map.next_value_seed(Text(&field))?),
            "documents" => self.documents = Some(map.next_value_seed(Documents(field))?),
            "top_n" => self.top_n = map.next_value_seed(Count(field))?,
            "return_documents" => self.return_documents = map.next_value_seed(Flag(field))?,
            "raw_scores" => self.raw_scores = map.next_value_seed(Flag(field))?,
            "truncate" => self.truncate = map.next_value_seed(Flag(field))?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl RerankRequest {
    /// The command this request spells.
    ///
    /// # Errors
    /// When something is missing or beyond `limits`.
    pub fn into_command(self, limits: &Limits) -> Result<RerankCommand, RerankError> {
        let options = options(self.raw_scores, None, self.truncate)?;
        let query = self.query.ok_or_else(|| missing("query"))?;
        let documents = self.documents.ok_or_else(|| missing("documents"))?;
        RerankCommand::new(query, documents, self.top_n, options, limits)
    }
}

/// Body of `POST /predict`.
#[derive(Debug, Default)]
pub struct PredictRequest {
    pairs: Option<Vec<[String; 2]>>,
    raw_scores: Option<bool>,
    softmax: Option<bool>,
    truncate: Option<bool>,
}

impl Fields for PredictRequest {
    fn read<'de, M: MapAccess<'de>>(&mut self, field: &str, map: &mut M) -> Result<(), M::Error> {
        match field {
            "pairs" => self.pairs = Some(map.next_value_seed(Pairs(field))?),
            "raw_scores" => self.raw_scores = map.next_value_seed(Flag(field))?,
            "softmax" => self.softmax = map.next_value_seed(Flag(field))?,
            "truncate" => self.truncate = map.next_value_seed(Flag(field))?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl PredictRequest {
    /// The command this request spells.
    ///
    /// # Errors
    /// When something is missing, contradicts itself or is beyond `limits`.
    pub fn into_command(self, limits: &Limits) -> Result<PredictCommand, RerankError> {
        let options = options(self.raw_scores, self.softmax, self.truncate)?;
        let pairs = self.pairs.ok_or_else(|| missing("pairs"))?;
        let pairs = pairs.into_iter().map(|[query, document]| Pair {
            query: query.into(),
            document: document.into(),
        });
        PredictCommand::new(pairs.collect(), options, limits)
    }
}

fn missing(field: &str) -> RerankError {
    RerankError::invalid(format!("`{field}` is missing; send it"))
}

fn options(
    raw_scores: Option<bool>,
    softmax: Option<bool>,
    truncate: Option<bool>,
) -> Result<ScoreOptions, RerankError> {
    let scale = match (raw_scores.unwrap_or(false), softmax.unwrap_or(false)) {
        (false, false) => Scale::Activated,
        (true, false) => Scale::Raw,
        (false, true) => Scale::Softmax,
        (true, true) => {
            return Err(RerankError::invalid(
                "`raw_scores` and `softmax` exclude each other; send one of them",
            ));
        }
    };
    let truncate = match truncate.unwrap_or(true) {
        true => Truncate::Cut,
        false => Truncate::Refuse,
    };
    Ok(ScoreOptions {
        scale,
        truncate,
        ..ScoreOptions::default()
    })
}

/// Answer of `POST /rerank`.
#[derive(Debug, Serialize)]
pub struct RerankResponse<'a> {
    id: &'a str,
    model: &'a str,
    results: Vec<RankedDocument<'a>>,
    #[serde(skip_serializing_if = "<[usize]>::is_empty")]
    truncated: &'a [usize],
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct RankedDocument<'a> {
    index: usize,
    // Written as f32: the shortest number that reads back the same, always with a fraction or an
    // exponent, because some clients take a whole number for an integer.
    relevance_score: f32,
    // Left out rather than null: some clients fail on null.
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document<'a>>,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    text: &'a str,
}

#[derive(Debug, Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl Usage {
    fn new(tokens: usize) -> Self {
        Self {
            prompt_tokens: tokens,
            total_tokens: tokens,
        }
    }
}

impl<'a> RerankResponse<'a> {
    /// The answer that tells `ranking`, with the documents of `echo` where the client asked for
    /// them.
    ///
    /// # Errors
    /// When a score is no number that JSON can write.
    pub fn fill(
        id: &'a str,
        model: &'a str,
        ranking: &'a Ranking,
        echo: Option<&'a [Pair]>,
    ) -> Result<Self, RerankError> {
        let result = |ranked: &crate::rerank::Ranked| RankedDocument {
            index: ranked.index,
            relevance_score: ranked.score,
            document: echo.map(|pairs| Document {
                text: &pairs[ranked.index].document,
            }),
        };
        check_finite(ranking.results.iter().map(|ranked| ranked.score))?;
        Ok(Self {
            id,
            model,
            results: ranking.results.iter().map(result).collect(),
            truncated: &ranking.truncated,
            usage: Usage::new(ranking.tokens),
        })
    }
}

/// Answer of `POST /predict`.
#[derive(Debug, Serialize)]
pub struct PredictResponse<'a> {
    model: &'a str,
    scores: Scores<'a>,
    #[serde(skip_serializing_if = "<[usize]>::is_empty")]
    truncated: &'a [usize],
    usage: Usage,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Scores<'a> {
    /// One number a pair.
    Flat(&'a [f32]),
    /// One list a pair, one number a label.
    Rows(Vec<&'a [f32]>),
}

impl<'a> PredictResponse<'a> {
    /// The answer that tells `prediction`.
    ///
    /// # Errors
    /// When a score is no number that JSON can write.
    pub fn fill(model: &'a str, prediction: &'a Prediction) -> Result<Self, RerankError> {
        check_finite(prediction.scores.iter().copied())?;
        let scores = match prediction.labels {
            1 => Scores::Flat(&prediction.scores),
            labels => Scores::Rows(prediction.scores.chunks(labels).collect()),
        };
        Ok(Self {
            model,
            scores,
            truncated: &prediction.truncated,
            usage: Usage::new(prediction.tokens),
        })
    }
}

/// JSON has no NaN: it would reach the client as null, and its ranking would mean nothing.
fn check_finite(mut scores: impl Iterator<Item = f32>) -> Result<(), RerankError> {
    match scores.position(|score| !score.is_finite()) {
        None => Ok(()),
        Some(at) => Err(RerankError::internal(format!(
            "the model gave a score that is not finite, at {at}"
        ))),
    }
}

/// Body of every error.
#[derive(Debug, Serialize)]
pub struct ErrorBody<'a> {
    error: &'a str,
    error_type: &'a str,
    message: &'a str,
    detail: &'a str,
}

impl<'a> ErrorBody<'a> {
    /// One `message` under each of its names.
    pub fn new(error_type: &'a str, message: &'a str) -> Self {
        Self {
            error: message,
            error_type,
            message,
            detail: message,
        }
    }
}

/// `POST /rerank`.
///
/// # Errors
/// Whatever the request or the service gives reason for.
pub async fn rerank(
    State(state): State<AppState>,
    id: RequestId,
    Accepted { reranker, request }: Accepted<RerankRequest>,
) -> Result<Response, Failure> {
    let echo = request.return_documents.unwrap_or(false);
    let command = request.into_command(state.limits())?;
    let pairs = command.pairs().clone();
    let ranking = reranker.rerank(command).await?;
    let work = Work {
        pairs: pairs.len(),
        tokens: ranking.tokens,
    };
    let model = &reranker.info().id;
    let response = RerankResponse::fill(id.as_str(), model, &ranking, echo.then_some(&pairs))?;
    Ok(work.attach(json(StatusCode::OK, &response)))
}

/// `POST /predict`.
///
/// # Errors
/// Whatever the request or the service gives reason for.
pub async fn predict(
    State(state): State<AppState>,
    Accepted { reranker, request }: Accepted<PredictRequest>,
) -> Result<Response, Failure> {
    let command = request.into_command(state.limits())?;
    let pairs = command.pairs().len();
    let prediction = reranker.predict(command).await?;
    let work = Work {
        pairs,
        tokens: prediction.tokens,
    };
    let response = PredictResponse::fill(&reranker.info().id, &prediction)?;
    Ok(work.attach(json(StatusCode::OK, &response)))
}
