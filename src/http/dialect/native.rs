//! The server's own wire format: `POST /rerank` and `POST /predict`.
//!
//! An error is one text under four names, which is what the readers of other servers' clients look
//! for.

use std::num::NonZeroUsize;

use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::echo::Echo;
use super::field::{Count, Documents, Flag, Name, Pairs, Text, Urgency, direction, strategy};
use super::request::request;
use super::usage::Usage;
use super::{Answer, RerankDialect, missing};
use crate::http::error::{Failure, json};
use rerankd_core::{
    Fit, Limits, Pair, PredictCommand, Prediction, Priority, RerankCommand, RerankError, Scale,
    ScoreOptions, Side, Strategy, Truncate,
};

request! {
    /// A reranking in the server's own words.
    pub struct RerankRequest as RerankRequest {
        /// Any name, unless the server is strict.
        model: Name => String as Option<serde_json::Value>,
        /// What the documents are judged by.
        query: Text => String as String,
        /// Texts, or objects that hold one under `text`.
        documents: Documents => Vec<String> as Vec<DocumentSchema> { min_items = 1 },
        /// Most results; all without.
        top_n: Count => NonZeroUsize as Option<u64> { minimum = 1 },
        /// Whether each result repeats its document.
        return_documents: Flag => bool as Option<bool>,
        /// Logits instead of what the model makes of them.
        raw_scores: Flag => bool as Option<bool>,
        /// Whether texts that are too long are cut; otherwise they are refused.
        truncate: Flag => bool as Option<bool>,
        /// Which text gives way when a pair is too long; the server's choice without.
        truncation_strategy: strategy => Strategy as Option<StrategyName>,
        /// Which end is cut; the tokenizer's choice without.
        truncation_direction: direction => Side as Option<SideName>,
        /// Tokens of a document that are read.
        max_tokens_per_doc: Count => NonZeroUsize as Option<u64> { minimum = 1 },
        /// Parts a long document may be read in; it is as good as its best. Without, one.
        max_chunks_per_doc: Count => NonZeroUsize as Option<u64> { minimum = 1, maximum = 10000 },
        /// How urgent it is, from 0, the default, to 999: a request of priority `p` has `1 / (1 + p)` of
        /// the share of one of priority 0.
        priority: Urgency => Priority as Option<u64> { maximum = 999 },
    }
}

request! {
    /// A prediction in the server's own words.
    pub struct PredictRequest as PredictRequest {
        /// Any name, unless the server is strict.
        model: Name => String as Option<serde_json::Value>,
        /// Two texts each.
        pairs: Pairs => Vec<[String; 2]> as Vec<[String; 2]> { min_items = 1 },
        /// Logits instead of what the model makes of them.
        raw_scores: Flag => bool as Option<bool>,
        /// A softmax over the labels of each pair.
        softmax: Flag => bool as Option<bool>,
        /// Whether texts that are too long are cut; otherwise they are refused.
        truncate: Flag => bool as Option<bool>,
        /// How urgent it is, as in a reranking.
        priority: Urgency => Priority as Option<u64> { maximum = 999 },
    }
}

#[derive(ToSchema)]
#[schema(as = TextDocument)]
#[serde(untagged)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
pub(super) enum DocumentSchema {
    Text(String),
    Object { text: String },
}

#[derive(ToSchema)]
#[schema(as = TruncationStrategy, rename_all = "snake_case")]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
enum StrategyName {
    LongestFirst,
    DocumentOnly,
}

#[derive(ToSchema)]
#[schema(as = TruncationDirection, rename_all = "snake_case")]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
enum SideName {
    Left,
    Right,
}

impl RerankDialect for RerankRequest {
    type Kept = Echo;

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn priority(&self) -> Priority {
        self.priority.unwrap_or_default()
    }

    fn into_command(self, limits: &Limits) -> Result<(RerankCommand, Echo), RerankError> {
        let fit = Fit {
            strategy: self.truncation_strategy,
            side: self.truncation_direction,
            max_document_tokens: self.max_tokens_per_doc,
            max_chunks: self.max_chunks_per_doc,
            ..Fit::default()
        };
        let options = ScoreOptions {
            scale: scale(self.raw_scores, None)?,
            truncate: Truncate::allowed(self.truncate),
            fit,
        };
        let query = self.query.ok_or_else(|| missing("query"))?;
        let documents = self.documents.ok_or_else(|| missing("documents"))?;
        let command = RerankCommand::new(query, documents, self.top_n, options, limits)?;
        let echo = Echo::of_texts(self.return_documents.unwrap_or(false));
        Ok((command, echo))
    }

    fn fill<'a>(answer: &Answer<'a>, echo: &'a Echo) -> impl Serialize + 'a {
        RerankResponse {
            id: answer.id,
            model: answer.model,
            results: super::cohere::results(answer, echo),
            truncated: &answer.ranking.truncated,
            usage: Usage::new(answer.ranking.tokens),
        }
    }
}

impl PredictRequest {
    /// The model that is asked for.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// How urgent the request is.
    pub fn priority(&self) -> Priority {
        self.priority.unwrap_or_default()
    }

    /// The command this request spells.
    ///
    /// # Errors
    /// When something is missing, contradicts itself or is beyond `limits`.
    pub fn into_command(self, limits: &Limits) -> Result<PredictCommand, RerankError> {
        let options = ScoreOptions {
            scale: scale(self.raw_scores, self.softmax)?,
            truncate: Truncate::allowed(self.truncate),
            ..ScoreOptions::default()
        };
        let pairs = self.pairs.ok_or_else(|| missing("pairs"))?;
        let pairs = pairs.into_iter().map(|[query, document]| Pair {
            query: query.into(),
            document: document.into(),
        });
        PredictCommand::new(pairs.collect(), options, limits)
    }
}

fn scale(raw_scores: Option<bool>, softmax: Option<bool>) -> Result<Scale, RerankError> {
    match (raw_scores.unwrap_or(false), softmax.unwrap_or(false)) {
        (false, false) => Ok(Scale::Activated),
        (true, false) => Ok(Scale::Raw),
        (false, true) => Ok(Scale::Softmax),
        (true, true) => Err(RerankError::invalid(
            "`raw_scores` and `softmax` exclude each other; send one of them",
        )),
    }
}

/// Answer of `POST /rerank`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RerankResponse)]
pub struct RerankResponse<'a> {
    id: &'a str,
    model: &'a str,
    results: Vec<super::cohere::Ranked<'a>>,
    /// Positions of the documents that were cut to fit the model; absent where none was.
    #[serde(skip_serializing_if = "<[usize]>::is_empty")]
    truncated: &'a [usize],
    usage: Usage,
}

/// Answer of `POST /predict`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PredictResponse)]
pub struct PredictResponse<'a> {
    model: &'a str,
    scores: Scores<'a>,
    #[serde(skip_serializing_if = "<[usize]>::is_empty")]
    truncated: &'a [usize],
    usage: Usage,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PredictScores)]
#[serde(untagged)]
enum Scores<'a> {
    /// One number a pair.
    Flat(&'a [f32]),
    /// One list a pair, one number a label.
    Rows(Vec<&'a [f32]>),
}

impl<'a> PredictResponse<'a> {
    /// The answer that tells `prediction`.
    pub fn fill(model: &'a str, prediction: &'a Prediction) -> Self {
        let scores = match prediction.labels {
            1 => Scores::Flat(&prediction.scores),
            labels => Scores::Rows(prediction.scores.chunks(labels).collect()),
        };
        Self {
            model,
            scores,
            truncated: &prediction.truncated,
            usage: Usage::new(prediction.tokens),
        }
    }
}

/// Body of every error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Error)]
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

/// What a client is told about a failure.
pub fn error(failure: &Failure) -> Response {
    let (status, error_type) = failure.kind();
    json(status, &ErrorBody::new(error_type, &failure.message()))
}
