//! `POST /rerank` of Voyage AI, under whatever base its client is given.

use std::num::NonZeroUsize;

use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::echo::{Document, Echo};
use super::field::{Count, Documents, Flag, Name, Text};
use super::request::request;
use super::{Answer, RerankDialect, missing};
use crate::config::DocumentForm;
use crate::http::error::{Failure, json};
use rerankd_core::{Limits, RerankCommand, RerankError, Scale, ScoreOptions, Truncate};

request! {
    /// A reranking as Voyage reads it; `truncation` or `top_k` tells it from others on a shared
    /// path.
    pub struct Request as VoyageRerankRequest {
        /// Any name, unless the server is strict.
        model: Name => String as Option<serde_json::Value>,
        /// What the documents are judged by.
        query: Text => String as String,
        /// The texts that are ranked.
        documents: Documents => Vec<String> as Vec<String> { min_items = 1 },
        /// Most results; all without.
        top_k: Count => NonZeroUsize as Option<u64> { minimum = 1 },
        /// Whether each result repeats its document, as a string.
        return_documents: Flag => bool as Option<bool>,
        /// Whether texts that are too long are cut; otherwise they are refused.
        truncation: Flag => bool as Option<bool>,
    }
}

impl RerankDialect for Request {
    type Kept = Echo;

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn into_command(self, limits: &Limits) -> Result<(RerankCommand, Echo), RerankError> {
        let query = self.query.ok_or_else(|| missing("query"))?;
        let documents = self.documents.ok_or_else(|| missing("documents"))?;
        let options = ScoreOptions {
            scale: Scale::Unit,
            truncate: Truncate::allowed(self.truncation),
            ..ScoreOptions::default()
        };
        let command = RerankCommand::new(query, documents, self.top_k, options, limits)?;
        let echo = Echo::of_texts(self.return_documents.unwrap_or(false));
        Ok((command, echo))
    }

    fn fill<'a>(answer: &Answer<'a>, echo: &'a Echo) -> impl Serialize + 'a {
        let result = |ranked: &rerankd_core::Ranked| Ranked {
            relevance_score: ranked.score,
            index: ranked.index,
            document: echo.document_as(DocumentForm::String, answer, ranked.index),
        };
        Body {
            object: "list",
            data: answer.ranking.results.iter().map(result).collect(),
            model: answer.model,
            usage: Usage {
                total_tokens: answer.ranking.tokens,
            },
        }
    }
}

/// Answer of Voyage.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VoyageRerankResponse)]
pub struct Body<'a> {
    object: &'static str,
    data: Vec<Ranked<'a>>,
    model: &'a str,
    usage: Usage,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VoyageRanked)]
struct Ranked<'a> {
    relevance_score: f32,
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document<'a>>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VoyageUsage)]
struct Usage {
    total_tokens: usize,
}

/// Body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VoyageError)]
pub struct ErrorBody<'a> {
    detail: &'a str,
}

/// What Voyage's client is told about a failure. It has an exception for 400 and none for 404.
pub fn error(failure: &Failure) -> Response {
    let status = match failure.kind() {
        (_, "unknown_model") => StatusCode::BAD_REQUEST,
        (status, _) => status,
    };
    let detail = &failure.message();
    json(status, &ErrorBody { detail })
}
