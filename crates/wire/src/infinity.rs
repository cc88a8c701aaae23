//! `POST /rerank` of the `infinity` server.

use std::num::NonZeroUsize;

use http::StatusCode;
use rerankd_core::{RerankCommand, RerankError, Scale, ScoreOptions};
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{DocumentForm, RankingAnswer};
use super::dialect::{
    Dialect, Kind, Mark, Operation, Path, RerankRequest, Served, Signature, ValueKind, rerank,
};
use super::document::Echo;
use super::error::{Problem, Reply};
use super::read::content::{Query, TextObject, TextSchema, query_and_documents};
use super::read::form::{Count, Flag};
use super::read::list::List;
use super::read::request;
use super::read::scalar::ModelName;
use super::schema::{Form, example};
use super::usage::Usage;
use super::vllm::VllmError;

/// `infinity`, of michaelfeil.
pub static INFINITY: Dialect = Dialect {
    name: "infinity",
    operations: &[Operation::new(
        "infinity",
        Kind::Rerank,
        &[Path::own("/infinity/rerank")],
        rerank::<InfinityRequest>,
        |schemas| {
            let example = example!("infinity/ranks");
            Form::of::<InfinityRequest, InfinityResponse, VllmError>(schemas, example)
        },
    )
    // Its client always sends both; the server's own format has them too, but few send them.
    .told_by(Signature {
        all: &[
            Mark("raw_scores", &[ValueKind::Flag]),
            Mark("return_documents", &[ValueKind::Flag]),
        ],
        none: &[
            Mark("fusion", ValueKind::ANY),
            Mark("truncate", ValueKind::FLAG),
            Mark("truncation_strategy", &[ValueKind::Text]),
            Mark("truncation_direction", &[ValueKind::Text]),
            Mark("instruction", &[ValueKind::Text]),
            Mark("instruct", &[ValueKind::Text]),
            Mark("prompt_name", &[ValueKind::Text]),
            Mark("max_tokens_per_doc", ValueKind::COUNT),
            Mark("max_chunks_per_doc", ValueKind::COUNT),
            Mark("priority", ValueKind::COUNT),
        ],
        ..Signature::NONE
    })],
    error,
};

request! {
    /// A reranking as `infinity` reads it; `raw_scores` and `return_documents` together tell
    /// it from others on a shared path.
    pub struct InfinityRequest as InfinityRerankRequest {
        /// Any name, unless the server is strict.
        model?: ModelName as Option<serde_json::Value>,
        /// What the documents are judged by.
        query: Query as TextSchema,
        /// The texts that are ranked.
        documents: List<TextObject> as Vec<TextSchema> { min_items = 1 },
        /// Most results; all without.
        top_n?: NonZeroUsize as Option<Count>,
        /// Whether each result repeats its document, as a string.
        return_documents?: bool as Option<Flag>,
        /// Logits instead of scores between 0 and 1.
        raw_scores?: bool as Option<Flag>,
    }
}

impl RerankRequest for InfinityRequest {
    type Kept = Echo;

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn into_command(self, served: &Served<'_>) -> Result<(RerankCommand, Echo), RerankError> {
        let limits = &served.limits;
        let (query, documents) = query_and_documents(self.query, self.documents, limits)?;
        let options = ScoreOptions {
            scale: Scale::unit_or_raw(self.raw_scores),
            ..ScoreOptions::default()
        };
        let command = RerankCommand::new(query, documents, self.top_n, options, limits)?;
        let echo = Echo::of_texts(self.return_documents.unwrap_or(served.return_documents));
        Ok((command, echo))
    }

    fn fill<'a>(answer: &RankingAnswer<'a>, echo: &'a Echo) -> impl Serialize + 'a {
        InfinityResponse {
            object: "rerank",
            results: super::cohere::results_as(DocumentForm::String, answer, echo),
            model: answer.context.model,
            usage: Usage::new(answer.ranking.tokens),
            id: format!("infinity-{}", answer.context.id),
            created: answer.context.created,
        }
    }
}

/// Answer of `infinity`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InfinityRerankResponse)]
pub struct InfinityResponse<'a> {
    object: &'static str,
    results: Vec<super::cohere::RankedDocument<'a>>,
    model: &'a str,
    usage: Usage,
    id: String,
    created: u64,
}

/// It has no status of its own for a model that is not served.
fn error(problem: &Problem<'_>) -> Reply {
    if problem.status == StatusCode::UNAUTHORIZED {
        // What its framework says before a request reaches it.
        return Reply::json(
            problem.status,
            &serde_json::json!({ "detail": problem.message }),
        );
    }
    let status = match problem.kind {
        "unknown_model" => StatusCode::BAD_REQUEST,
        _ => problem.status,
    };
    Reply::json(status, &VllmError::new(status, problem.message))
}
