//! `POST /rerank` of Voyage AI, under whatever base its client is given.

use std::num::NonZeroUsize;

use http::StatusCode;
use rerankd_core::{RerankCommand, RerankError, Scale, ScoreOptions, TruncationPolicy};
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{DocumentForm, RankingAnswer};
use super::dialect::{
    Dialect, Kind, Mark, Operation, Path, RerankRequest, Served, Signature, ValueKind, rerank,
};
use super::document::{Document, Echo};
use super::error::{Problem, Reply};
use super::read::content::{Query, TextObject, TextSchema, query_and_documents};
use super::read::form::{Count, Flag};
use super::read::list::List;
use super::read::request;
use super::read::scalar::ModelName;
use super::schema::{Form, example};

/// Voyage AI.
pub static VOYAGE: Dialect = Dialect {
    name: "voyage",
    operations: &[Operation::new(
        "voyage",
        Kind::Rerank,
        &[Path::own("/voyage/v1/rerank")],
        rerank::<VoyageRequest>,
        |schemas| {
            let example = example!("voyage/ranks");
            Form::of::<VoyageRequest, VoyageResponse, VoyageError>(schemas, example)
        },
    )
    .told_by(
        Signature::any(&[
            Mark("truncation", ValueKind::FLAG),
            Mark("top_k", ValueKind::COUNT),
        ])
        .or_models(&["rerank-1", "rerank-2", "rerank-lite-"])
        .or_header("x-fern-sdk-name", "voyageai")
        .unless(&[Mark("top_n", ValueKind::COUNT)]),
    )],
    error,
};

request! {
    /// A reranking as Voyage reads it; `truncation` or `top_k` tells it from others on a shared
    /// path.
    pub struct VoyageRequest as VoyageRerankRequest {
        /// Any name, unless the server is strict.
        model?: ModelName as Option<serde_json::Value>,
        /// What the documents are judged by.
        query: Query as TextSchema,
        /// The texts that are ranked.
        documents: List<TextObject> as Vec<TextSchema> { min_items = 1 },
        /// Most results; all without.
        top_k?: NonZeroUsize as Option<Count>,
        /// Whether each result repeats its document, as a string.
        return_documents?: bool as Option<Flag>,
        /// Whether texts that are too long are cut; otherwise they are refused.
        truncation?: bool as Option<Flag>,
    }
}

impl RerankRequest for VoyageRequest {
    type Kept = Echo;

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn into_command(self, served: &Served<'_>) -> Result<(RerankCommand, Echo), RerankError> {
        let limits = &served.limits;
        let (query, documents) = query_and_documents(self.query, self.documents, limits)?;
        let options = ScoreOptions {
            scale: Scale::Unit,
            truncate: TruncationPolicy::from_flag(self.truncation),
            ..ScoreOptions::default()
        };
        let command = RerankCommand::new(query, documents, self.top_k, options, limits)?;
        let echo = Echo::of_texts(self.return_documents.unwrap_or(served.return_documents));
        Ok((command, echo))
    }

    fn fill<'a>(answer: &RankingAnswer<'a>, echo: &'a Echo) -> impl Serialize + 'a {
        let result = |ranked: &rerankd_core::Ranked| Ranked {
            relevance_score: ranked.score,
            index: ranked.index,
            document: echo.document_as(DocumentForm::String, answer, ranked.index),
        };
        VoyageResponse {
            object: "list",
            data: answer.ranking.results.iter().map(result).collect(),
            model: answer.context.model,
            usage: Usage {
                total_tokens: answer.ranking.tokens,
            },
        }
    }
}

/// Answer of Voyage.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VoyageRerankResponse)]
pub struct VoyageResponse<'a> {
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
pub struct VoyageError<'a> {
    detail: &'a str,
}

/// Its client has an exception for 400 and none for 404.
fn error(problem: &Problem<'_>) -> Reply {
    let status = match problem.kind {
        "unknown_model" => StatusCode::BAD_REQUEST,
        _ => problem.status,
    };
    let detail = problem.message;
    Reply::json(status, &VoyageError { detail })
}
