//! vLLM: `POST /rerank`, `/v1/rerank` and `/v2/rerank`, `/score` and `/v1/score`.

mod score;

use std::num::NonZeroUsize;

use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

pub use self::score::{ScoreBody, ScoreRequest, fill_scores};
use super::field::{Contents, Flag, Name, OneContent, Whole, direction, from_minus_one, from_zero};
use super::request::request;
use super::usage::Usage;
use super::{Answer, RerankDialect, missing};
use crate::http::error::{Failure, json};
use rerankd_core::{Fit, Limits, RerankCommand, RerankError, Scale, ScoreOptions, Side, Texts};

request! {
    /// A reranking as vLLM reads it.
    pub struct RerankRequest as VllmRerankRequest {
        /// Any name, unless the server is strict.
        model: Name => String as Option<serde_json::Value>,
        /// What the documents are judged by.
        query: OneContent => String as Content,
        /// The texts that are ranked.
        documents: Contents => Vec<String> as ContentList,
        /// Most results; 0 and nothing are all.
        top_n: from_zero => Whole as Option<u64>,
        /// Most tokens of a pair; -1 is as many as the model reads.
        truncate_prompt_tokens: from_minus_one => Whole as Option<i64> { minimum = -1 },
        /// Which end is cut.
        truncation_side: direction => Side as Option<SideName>,
        /// Most tokens of the query; 0 is no limit.
        max_tokens_per_query: from_zero => Whole as Option<u64>,
        /// Most tokens of each document; 0 is no limit.
        max_tokens_per_doc: from_zero => Whole as Option<u64>,
        /// False asks for logits.
        use_activation: Flag => bool as Option<bool>,
    }
}

/// A text, or an object that holds its parts.
#[derive(ToSchema)]
#[schema(as = VllmContent)]
#[serde(untagged)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
enum Content {
    Text(String),
    Parts { content: Vec<Part> },
}

#[derive(ToSchema)]
#[schema(as = VllmPart)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
struct Part {
    r#type: Option<serde_json::Value>,
    text: String,
}

#[derive(ToSchema)]
#[schema(as = VllmContentList)]
#[serde(untagged)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
enum ContentList {
    One(Content),
    Many(Vec<Content>),
}

#[derive(ToSchema)]
#[schema(as = VllmTruncationSide, rename_all = "lowercase")]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
enum SideName {
    Left,
    Right,
}

/// What vLLM's requests say about scores and long texts; 0 and -1 are no limit.
struct Options {
    use_activation: Option<bool>,
    side: Option<Side>,
    max_tokens: Option<Whole>,
    max_query_tokens: Option<Whole>,
    max_document_tokens: Option<Whole>,
}

impl Options {
    fn read(self) -> ScoreOptions {
        ScoreOptions {
            scale: match self.use_activation {
                Some(false) => Scale::Raw,
                _ => Scale::Activated,
            },
            fit: Fit {
                side: self.side,
                max_tokens: limit(self.max_tokens),
                max_query_tokens: limit(self.max_query_tokens),
                max_document_tokens: limit(self.max_document_tokens),
                ..Fit::default()
            },
            ..ScoreOptions::default()
        }
    }
}

fn limit(number: Option<Whole>) -> Option<NonZeroUsize> {
    NonZeroUsize::new(usize::try_from(number?.0).unwrap_or(0))
}

impl RerankDialect for RerankRequest {
    type Kept = ();

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn into_command(self, limits: &Limits) -> Result<(RerankCommand, ()), RerankError> {
        let query = self.query.ok_or_else(|| missing("query"))?;
        let documents = self.documents.ok_or_else(|| missing("documents"))?;
        let options = Options {
            use_activation: self.use_activation,
            side: self.truncation_side,
            max_tokens: self.truncate_prompt_tokens,
            max_query_tokens: self.max_tokens_per_query,
            max_document_tokens: self.max_tokens_per_doc,
        };
        let (documents, top_n) = (Texts::from(documents), limit(self.top_n));
        let command = RerankCommand::new(query, documents, top_n, options.read(), limits)?;
        Ok((command, ()))
    }

    fn fill<'a>(answer: &Answer<'a>, (): &'a ()) -> impl Serialize + 'a {
        let result = |ranked: &rerankd_core::Ranked| Ranked {
            index: ranked.index,
            document: Document {
                text: &answer.pairs[ranked.index].document,
                multi_modal: (),
            },
            relevance_score: ranked.score,
        };
        Body {
            id: format!("rerank-{}", answer.id),
            model: answer.model,
            usage: Usage::new(answer.ranking.tokens),
            results: answer.ranking.results.iter().map(result).collect(),
        }
    }
}

/// Answer of vLLM's reranking; documents always come back.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VllmRerankResponse)]
pub struct Body<'a> {
    id: String,
    model: &'a str,
    usage: Usage,
    results: Vec<Ranked<'a>>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VllmRanked)]
struct Ranked<'a> {
    index: usize,
    document: Document<'a>,
    relevance_score: f32,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VllmDocument)]
struct Document<'a> {
    text: &'a str,
    /// Always null: this server reads texts.
    multi_modal: (),
}

/// Body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VllmError)]
pub struct ErrorBody<'a> {
    error: ErrorDetail<'a>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VllmErrorDetail)]
struct ErrorDetail<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'static str>,
    code: u16,
}

impl<'a> ErrorBody<'a> {
    /// The body of an error with this `status`.
    pub fn new(status: StatusCode, message: &'a str) -> Self {
        Self {
            error: ErrorDetail {
                message,
                r#type: status.canonical_reason().unwrap_or("Error"),
                param: None,
                code: status.as_u16(),
            },
        }
    }
}

/// What clients of vLLM are told about a failure.
pub fn error(failure: &Failure) -> Response {
    let (status, _) = failure.kind();
    if status == StatusCode::UNAUTHORIZED {
        // Keys are checked before what writes its other errors.
        return json(status, &serde_json::json!({ "error": failure.message() }));
    }
    json(status, &ErrorBody::new(status, &failure.message()))
}
