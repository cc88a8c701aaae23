//! `POST /reranking` and `POST /v1/reranking` of the server of llama.cpp.

use std::num::NonZeroUsize;

use http::StatusCode;
use rerankd_core::{RerankCommand, RerankError, ScoreOptions};
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::RankingAnswer;
use super::cohere::{RankedDocument, results};
use super::dialect::{Dialect, Kind, Operation, Path, RerankRequest, Served, rerank};
use super::document::Echo;
use super::error::{Problem, Reply};
use super::read::content::{Query, TextObject, TextSchema, query_and_documents};
use super::read::form::Count;
use super::read::list::List;
use super::read::request;
use super::read::scalar::ModelName;
use super::schema::{Form, example};
use super::usage::Usage;

/// The server of llama.cpp.
pub static LLAMA_CPP: Dialect = Dialect {
    name: "llama_cpp",
    operations: &[Operation::new(
        "llama_cpp",
        Kind::Rerank,
        &[
            Path::shared("/reranking", &[Kind::Rerank]),
            Path::shared("/v1/reranking", &[Kind::Rerank]),
        ],
        rerank::<LlamaCppRequest>,
        |schemas| {
            let example = example!("llamacpp/ranks");
            Form::of::<LlamaCppRequest, LlamaCppResponse, LlamaCppError>(schemas, example)
        },
    )
    // Of use with `texts` only, which are read as TEI's.
    .ignoring(&["return_text"])],
    error,
};

request! {
    /// A reranking as llama.cpp reads it.
    pub struct LlamaCppRequest as LlamaCppRerankRequest {
        /// Any name, unless the server is strict.
        model?: ModelName as Option<serde_json::Value>,
        /// What the documents are judged by.
        query: Query as TextSchema,
        /// The texts that are ranked.
        documents: List<TextObject> as Vec<TextSchema> { min_items = 1 },
        /// Most results; all without.
        top_n?: NonZeroUsize as Option<Count>,
    }
}

impl RerankRequest for LlamaCppRequest {
    type Kept = Echo;

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn into_command(self, served: &Served<'_>) -> Result<(RerankCommand, Echo), RerankError> {
        let limits = &served.limits;
        let (query, documents) = query_and_documents(self.query, self.documents, limits)?;
        let options = ScoreOptions::default();
        let command = RerankCommand::new(query, documents, self.top_n, options, limits)?;
        Ok((command, Echo::default()))
    }

    fn fill<'a>(answer: &RankingAnswer<'a>, echo: &'a Echo) -> impl Serialize + 'a {
        LlamaCppResponse {
            model: answer.context.model,
            object: "list",
            usage: Usage::new(answer.ranking.tokens),
            results: results(answer, echo),
        }
    }
}

/// Answer of llama.cpp.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LlamaCppRerankResponse)]
pub struct LlamaCppResponse<'a> {
    model: &'a str,
    object: &'static str,
    usage: Usage,
    results: Vec<RankedDocument<'a>>,
}

/// Body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LlamaCppError)]
pub struct LlamaCppError<'a> {
    error: ErrorDetail<'a>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LlamaCppErrorDetail)]
struct ErrorDetail<'a> {
    code: u16,
    message: &'a str,
    r#type: &'static str,
}

fn error(problem: &Problem<'_>) -> Reply {
    let body = LlamaCppError {
        error: ErrorDetail {
            code: problem.status.as_u16(),
            message: problem.message,
            r#type: match problem.status {
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
    Reply::json(problem.status, &body)
}
