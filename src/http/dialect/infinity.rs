//! `POST /rerank` of the `infinity` server.

use std::num::NonZeroUsize;

use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::echo::Echo;
use super::field::{Count, Documents, Flag, Name, Text};
use super::request::request;
use super::usage::Usage;
use super::{Answer, RerankDialect, missing};
use crate::config::DocumentForm;
use crate::http::error::{Failure, json};
use rerankd_core::{Limits, RerankCommand, RerankError, Scale, ScoreOptions};

request! {
    /// A reranking as `infinity` reads it; `raw_scores` and `return_documents` together tell
    /// it from others on a shared path.
    pub struct Request as InfinityRerankRequest {
        /// Any name, unless the server is strict.
        model: Name => String as Option<serde_json::Value>,
        /// What the documents are judged by.
        query: Text => String as String,
        /// The texts that are ranked.
        documents: Documents => Vec<String> as Vec<String> { min_items = 1 },
        /// Most results; all without.
        top_n: Count => NonZeroUsize as Option<u64> { minimum = 1 },
        /// Whether each result repeats its document, as a string.
        return_documents: Flag => bool as Option<bool>,
        /// Logits instead of scores between 0 and 1.
        raw_scores: Flag => bool as Option<bool>,
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
            scale: Scale::unit_or_raw(self.raw_scores),
            ..ScoreOptions::default()
        };
        let command = RerankCommand::new(query, documents, self.top_n, options, limits)?;
        let echo = Echo::of_texts(self.return_documents.unwrap_or(false));
        Ok((command, echo))
    }

    fn fill<'a>(answer: &Answer<'a>, echo: &'a Echo) -> impl Serialize + 'a {
        let answer = Answer {
            document_form: DocumentForm::String,
            ..*answer
        };
        Body {
            object: "rerank",
            results: super::cohere::results(&answer, echo),
            model: answer.model,
            usage: Usage::new(answer.ranking.tokens),
            id: format!("infinity-{}", answer.id),
            created: answer.created,
        }
    }
}

/// Answer of `infinity`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InfinityRerankResponse)]
pub struct Body<'a> {
    object: &'static str,
    results: Vec<super::cohere::Ranked<'a>>,
    model: &'a str,
    usage: Usage,
    id: String,
    created: u64,
}

/// What clients of `infinity` are told about a failure. It has no status of its own for a model
/// that is not served.
pub fn error(failure: &Failure) -> Response {
    if let (status @ StatusCode::UNAUTHORIZED, _) = failure.kind() {
        // What its framework says before a request reaches it.
        return json(status, &serde_json::json!({ "detail": failure.message() }));
    }
    let status = match failure.kind() {
        (_, "unknown_model") => StatusCode::BAD_REQUEST,
        (status, _) => status,
    };
    json(
        status,
        &super::vllm::ErrorBody::new(status, &failure.message()),
    )
}
