//! `POST /reranking` and `POST /v1/reranking` of the server of llama.cpp.

use std::num::NonZeroUsize;

use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::echo::Echo;
use super::field::{Count, Documents, Name, Text};
use super::request::request;
use super::usage::Usage;
use super::{Answer, RerankDialect, missing};
use crate::http::error::{Failure, json};
use rerankd_core::{Limits, RerankCommand, RerankError, ScoreOptions};

request! {
    /// A reranking as llama.cpp reads it.
    pub struct Request as LlamaCppRerankRequest {
        /// Any name, unless the server is strict.
        model: Name => String as Option<serde_json::Value>,
        /// What the documents are judged by.
        query: Text => String as String,
        /// The texts that are ranked.
        documents: Documents => Vec<String> as Vec<String> { min_items = 1 },
        /// Most results; all without.
        top_n: Count => NonZeroUsize as Option<u64> { minimum = 1 },
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
        let options = ScoreOptions::default();
        let command = RerankCommand::new(query, documents, self.top_n, options, limits)?;
        Ok((command, Echo::default()))
    }

    fn fill<'a>(answer: &Answer<'a>, echo: &'a Echo) -> impl Serialize + 'a {
        Body {
            model: answer.model,
            object: "list",
            usage: Usage::new(answer.ranking.tokens),
            results: super::cohere::results(answer, echo),
        }
    }
}

/// Answer of llama.cpp.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LlamaCppRerankResponse)]
pub struct Body<'a> {
    model: &'a str,
    object: &'static str,
    usage: Usage,
    results: Vec<super::cohere::Ranked<'a>>,
}

/// Body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LlamaCppError)]
pub struct ErrorBody<'a> {
    error: ErrorDetail<'a>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LlamaCppErrorDetail)]
struct ErrorDetail<'a> {
    code: u16,
    message: &'a str,
    r#type: &'static str,
}

/// What clients of llama.cpp are told about a failure.
pub fn error(failure: &Failure) -> Response {
    let (status, _) = failure.kind();
    let body = ErrorBody {
        error: ErrorDetail {
            code: status.as_u16(),
            message: &failure.message(),
            r#type: match status {
                StatusCode::UNAUTHORIZED => "authentication_error",
                StatusCode::FORBIDDEN => "permission_error",
                StatusCode::NOT_FOUND => "not_found_error",
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                    "unavailable_error"
                }
                status if status.is_server_error() => "server_error",
                _ => "invalid_request_error",
            },
        },
    };
    json(status, &body)
}
