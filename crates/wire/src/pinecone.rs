//! Pinecone's `POST /rerank`, which a header of its clients tells from others.

use std::num::NonZeroUsize;

use http::StatusCode;
use rerankd_core::{
    RerankCommand, RerankError, Scale, ScoreOptions, TruncationOptions, TruncationPolicy,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{DocumentForm, RankingAnswer};
use super::dialect::{Dialect, Kind, Operation, Path, RerankRequest, Served, Signature, rerank};
use super::document::{Document, Echo, Item, RankFields};
use super::error::{Problem, Reply, missing};
use super::read::content::{Query, TextSchema};
use super::read::form::{Chunks, Count, Flag};
use super::read::list::List;
use super::read::request;
use super::read::scalar::ModelName;
use super::schema::{Form, example};

/// Pinecone's inference.
pub static PINECONE: Dialect = Dialect {
    name: "pinecone",
    operations: &[Operation::new(
        "pinecone",
        Kind::Rerank,
        &[Path::own("/pinecone/rerank")],
        rerank::<PineconeRequest>,
        |schemas| {
            let example = example!("pinecone/ranks");
            Form::of::<PineconeRequest, PineconeResponse, PineconeError>(schemas, example)
        },
    )
    .told_by(Signature::NONE.or_header("x-pinecone-api-version", ""))],
    error,
};

request! {
    /// A reranking as Pinecone reads it.
    pub struct PineconeRequest as PineconeRerankRequest {
        /// Any name, unless the server is strict.
        model?: ModelName as Option<serde_json::Value>,
        /// What the documents are judged by.
        query: Query as TextSchema,
        /// Objects whose `text` or `rank_fields` are ranked, or texts.
        documents: List<Item> as Vec<Item> { min_items = 1 },
        /// Most results; all without.
        top_n?: NonZeroUsize as Option<Count>,
        /// Whether each result repeats its document; it does, without.
        return_documents?: bool as Option<Flag>,
        /// Fields of the documents that are ranked, in this order; `text` without.
        rank_fields?: RankFields as Option<Vec<String>>,
        /// What the model is told.
        parameters?: PineconeParameters as Option<PineconeParameters>,
    }
}

request! {
    /// What a model of Pinecone is told.
    pub struct PineconeParameters as PineconeParameters {
        /// What becomes of a pair that is too long: `END` cuts it, `NONE` refuses it. Without, it is cut.
        truncate?: TruncationPolicy as Option<TruncateName>,
        /// Parts a long document may be read in; it is as good as its best. Without, one.
        max_chunks_per_doc?: NonZeroUsize as Option<Chunks>,
    }
}

/// What becomes of a pair that is too long.
#[derive(ToSchema)]
#[schema(as = PineconeTruncate)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
#[serde(rename_all = "UPPERCASE")]
enum TruncateName {
    None,
    End,
}

impl RerankRequest for PineconeRequest {
    type Kept = Echo;

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn into_command(self, served: &Served<'_>) -> Result<(RerankCommand, Echo), RerankError> {
        let limits = &served.limits;
        let query = self.query.ok_or_else(|| missing("query"))?.into();
        let documents = self.documents.ok_or_else(|| missing("documents"))?;
        let repeat = self.return_documents.unwrap_or(true);
        let fields = self.rank_fields.as_ref();
        let (texts, echo) = Echo::of_items(repeat, "documents", documents, fields, limits)?;
        let parameters = self.parameters.unwrap_or_default();
        let options = ScoreOptions {
            scale: Scale::Unit,
            truncate: parameters.truncate.unwrap_or_default(),
            truncation: TruncationOptions {
                max_chunks: parameters.max_chunks_per_doc,
                ..TruncationOptions::default()
            },
            ..ScoreOptions::default()
        };
        let command = RerankCommand::new(query, texts, self.top_n, options, limits)?;
        Ok((command, echo))
    }

    fn fill<'a>(answer: &RankingAnswer<'a>, echo: &'a Echo) -> impl Serialize + 'a {
        let result = |ranked: &rerankd_core::Ranked| Ranked {
            index: ranked.index,
            document: echo.document_as(DocumentForm::Object, answer, ranked.index),
            score: ranked.score,
        };
        PineconeResponse {
            model: answer.context.model,
            data: answer.ranking.results.iter().map(result).collect(),
            usage: Usage { rerank_units: 1 },
        }
    }
}

/// Answer of Pinecone.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PineconeRerankResponse)]
pub struct PineconeResponse<'a> {
    model: &'a str,
    data: Vec<Ranked<'a>>,
    usage: Usage,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PineconeRanked)]
struct Ranked<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document<'a>>,
    score: f32,
}

/// What Pinecone bills.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PineconeUsage)]
struct Usage {
    rerank_units: usize,
}

/// Body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PineconeError)]
pub struct PineconeError<'a> {
    error: ErrorDetail<'a>,
    status: u16,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PineconeErrorDetail)]
struct ErrorDetail<'a> {
    code: &'static str,
    message: &'a str,
}

fn error(problem: &Problem<'_>) -> Reply {
    let code = match problem.status {
        StatusCode::UNAUTHORIZED => "UNAUTHENTICATED",
        StatusCode::FORBIDDEN => "FORBIDDEN",
        StatusCode::NOT_FOUND => "NOT_FOUND",
        StatusCode::TOO_MANY_REQUESTS => "RESOURCE_EXHAUSTED",
        StatusCode::SERVICE_UNAVAILABLE => "UNAVAILABLE",
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => "DEADLINE_EXCEEDED",
        status if status.is_server_error() => "INTERNAL",
        _ => "INVALID_ARGUMENT",
    };
    let body = PineconeError {
        error: ErrorDetail {
            code,
            message: problem.message,
        },
        status: problem.status.as_u16(),
    };
    Reply::json(problem.status, &body)
}
