//! Text Embeddings Inference: `POST /rerank`, `/predict`, `/tokenize` and `/decode`.

mod predict;
mod tokenize;

use std::num::NonZeroUsize;

use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

pub use self::predict::{PredictBody, PredictRequest, fill_prediction};
pub use self::tokenize::{DecodeRequest, Token, TokenizeRequest, fill_tokens};
use super::field::{Count, Flag, Strings, Text, direction};
use super::request::request;
use super::{Answer, RerankDialect, missing};
use crate::http::error::{Failure, json};
use rerankd_core::{
    ErrorCode, Fit, Limits, RerankCommand, RerankError, Scale, ScoreOptions, Side, Texts, Ties,
    Truncate,
};

request! {
    /// A reranking as TEI reads it; `texts` tells it from others on a shared path.
    pub struct RerankRequest as TeiRerankRequest {
        /// What the texts are judged by.
        query: Text => String as String,
        /// The texts that are ranked.
        texts: Strings => Vec<String> as Vec<String> { min_items = 1 },
        /// Most results; all without. Not in TEI, but its clients send it.
        top_n: Count => NonZeroUsize as Option<u64> { minimum = 1 },
        /// Whether texts that are too long are cut; otherwise they are refused.
        truncate: Flag => bool as Option<bool>,
        /// Which end is cut.
        truncation_direction: direction => Side as Option<Direction>,
        /// Logits instead of scores between 0 and 1.
        raw_scores: Flag => bool as Option<bool>,
        /// Whether each result repeats its text.
        return_text: Flag => bool as Option<bool>,
    }
}

/// An end of a text.
#[derive(ToSchema)]
#[schema(as = TeiTruncationDirection)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
enum Direction {
    #[schema(rename = "left")]
    LowerLeft,
    #[schema(rename = "right")]
    LowerRight,
    Left,
    Right,
}

/// What the answer repeats.
#[derive(Debug)]
pub struct Kept {
    return_text: bool,
}

impl RerankDialect for RerankRequest {
    type Kept = Kept;

    fn model(&self) -> Option<&str> {
        None
    }

    fn into_command(self, limits: &Limits) -> Result<(RerankCommand, Kept), RerankError> {
        let options = options(self.raw_scores, self.truncate, self.truncation_direction);
        let query = self.query.ok_or_else(|| missing("query"))?;
        let texts = Texts {
            field: "texts",
            items: self.texts.ok_or_else(|| missing("texts"))?,
        };
        let command = RerankCommand::new(query, texts, self.top_n, options, limits)?
            .with_ties(Ties::LastFirst);
        let return_text = self.return_text.unwrap_or(false);
        Ok((command, Kept { return_text }))
    }

    fn fill<'a>(answer: &Answer<'a>, kept: &'a Kept) -> impl Serialize + 'a {
        let rank = |ranked: &rerankd_core::Ranked| Rank {
            index: ranked.index,
            text: (kept.return_text).then(|| &*answer.pairs[ranked.index].document),
            score: ranked.score,
        };
        answer
            .ranking
            .results
            .iter()
            .map(rank)
            .collect::<Vec<Rank<'a>>>()
    }
}

/// What TEI's requests say about scores and long texts.
fn options(raw: Option<bool>, truncate: Option<bool>, side: Option<Side>) -> ScoreOptions {
    ScoreOptions {
        scale: Scale::unit_or_raw(raw),
        truncate: Truncate::allowed(truncate),
        fit: Fit {
            side,
            ..Fit::default()
        },
    }
}

/// One text's place; the answer is a bare list of them, best first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TeiRank)]
pub struct Rank<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    score: f32,
}

/// Body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TeiError)]
pub struct ErrorBody<'a> {
    error: &'a str,
    error_type: ErrorType,
}

/// TEI's kinds of failure.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[schema(as = TeiErrorType)]
enum ErrorType {
    Unhealthy,
    Backend,
    Overloaded,
    Validation,
    Empty,
}

/// What TEI's clients are told about a failure.
pub fn error(failure: &Failure) -> Response {
    let (native, _) = failure.kind();
    let (status, error_type) = match failure.code() {
        None => (native, ErrorType::Validation),
        Some(code) => match code {
            ErrorCode::InvalidRequest => (StatusCode::UNPROCESSABLE_ENTITY, ErrorType::Validation),
            ErrorCode::Malformed | ErrorCode::UnknownModel | ErrorCode::TooLarge => {
                (native, ErrorType::Validation)
            }
            ErrorCode::Empty => (StatusCode::BAD_REQUEST, ErrorType::Empty),
            ErrorCode::Unsupported | ErrorCode::Internal => {
                (StatusCode::FAILED_DEPENDENCY, ErrorType::Backend)
            }
            ErrorCode::Overloaded | ErrorCode::TooLate | ErrorCode::DeadlinePassed => {
                (native, ErrorType::Overloaded)
            }
            ErrorCode::NotReady | ErrorCode::Draining => (native, ErrorType::Unhealthy),
        },
    };
    let error = &failure.message();
    json(status, &ErrorBody { error, error_type })
}
