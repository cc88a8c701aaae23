//! Cohere's `POST /v1/rerank` and `POST /v2/rerank`.
//!
//! Jina, Xinference, LiteLLM's proxy and many servers speak these paths too, and their bodies
//! cannot be told apart: the answer is one that all their clients read. Scores are between 0 and 1
//! whatever the model's activation, as all of them promise.

use std::num::NonZeroUsize;

use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::echo::{Document, Echo};
use super::field::{Count, Flag, Item, Items, Name, StringList, Text, Urgency};
use super::request::request;
use super::usage::Usage;
use super::{Answer, Dialect, RerankDialect, missing};
use crate::http::error::{Failure, json};
use rerankd_core::{Fit, Limits, Priority, RerankCommand, RerankError, Scale, ScoreOptions, Texts};

request! {
    /// A reranking as Cohere, Jina and their kin ask for it.
    pub struct Request as CohereRerankRequest {
        /// Any name, unless the server is strict.
        model: Name => String as Option<serde_json::Value>,
        /// What the documents are judged by.
        query: Text => String as String,
        /// Texts, or objects whose `text` or `rank_fields` are ranked.
        documents: Items => Vec<Item> as Vec<Item> { min_items = 1 },
        /// Most results; all without.
        top_n: Count => NonZeroUsize as Option<u64> { minimum = 1 },
        /// Fields of the objects that are ranked, in this order; `text` without.
        rank_fields: StringList => Vec<String> as Option<Vec<String>>,
        /// Whether each result repeats its document.
        return_documents: Flag => bool as Option<bool>,
        /// Parts a long document may be read in; it is as good as its best. Without, one.
        max_chunks_per_doc: Count => NonZeroUsize as Option<u64> { minimum = 1, maximum = 10000 },
        /// Tokens of a document that are read.
        max_tokens_per_doc: Count => NonZeroUsize as Option<u64> { minimum = 1 },
        /// How urgent it is, from 0, the default, to 999: a request of priority `p` has `1 / (1 + p)` of
        /// the share of one of priority 0.
        priority: Urgency => Priority as Option<u64> { maximum = 999 },
    }
}

impl RerankDialect for Request {
    type Kept = Echo;

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn priority(&self) -> Priority {
        self.priority.unwrap_or_default()
    }

    fn into_command(self, limits: &Limits) -> Result<(RerankCommand, Echo), RerankError> {
        let query = self.query.ok_or_else(|| missing("query"))?;
        let documents = self.documents.ok_or_else(|| missing("documents"))?;
        let (texts, echo) = Echo::of_items(
            self.return_documents.unwrap_or(false),
            "documents",
            documents,
            self.rank_fields.as_deref(),
        )?;
        let options = ScoreOptions {
            scale: Scale::Unit,
            fit: Fit {
                max_chunks: self.max_chunks_per_doc,
                max_document_tokens: self.max_tokens_per_doc,
                ..Fit::default()
            },
            ..ScoreOptions::default()
        };
        let command = RerankCommand::new(query, Texts::from(texts), self.top_n, options, limits)?;
        Ok((command, echo))
    }

    fn fill<'a>(answer: &Answer<'a>, echo: &'a Echo) -> impl Serialize + 'a {
        Body {
            id: answer.id,
            model: answer.model,
            results: results(answer, echo),
            usage: Usage::new(answer.ranking.tokens),
            meta: Meta::of(answer),
        }
    }
}

/// Documents that make one unit of Cohere's bills.
const DOCUMENTS_A_SEARCH: usize = 100;

/// Answer of Cohere's reranking, with what Jina's clients read beside it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CohereRerankResponse)]
pub struct Body<'a> {
    id: &'a str,
    model: &'a str,
    results: Vec<Ranked<'a>>,
    usage: Usage,
    meta: Meta,
}

/// One document's place.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RankedDocument)]
pub struct Ranked<'a> {
    index: usize,
    // Written as f32: the shortest number that reads back the same, always with a fraction or an
    // exponent, because some clients take a whole number for an integer.
    relevance_score: f32,
    // Left out rather than null: some clients fail on null.
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document<'a>>,
}

/// The results of `answer`, best first.
pub fn results<'a>(answer: &Answer<'a>, echo: &'a Echo) -> Vec<Ranked<'a>> {
    let result = |ranked: &rerankd_core::Ranked| Ranked {
        index: ranked.index,
        relevance_score: ranked.score,
        document: echo.document(answer, ranked.index),
    };
    answer.ranking.results.iter().map(result).collect()
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CohereMeta)]
struct Meta {
    api_version: ApiVersion,
    billed_units: BilledUnits,
    tokens: Tokens,
    #[serde(skip_serializing_if = "Option::is_none")]
    warnings: Option<[String; 1]>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CohereApiVersion)]
struct ApiVersion {
    version: &'static str,
    is_experimental: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CohereBilledUnits)]
struct BilledUnits {
    search_units: usize,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CohereTokens)]
struct Tokens {
    input_tokens: usize,
    output_tokens: usize,
}

impl Meta {
    fn of(answer: &Answer) -> Self {
        let truncated = &answer.ranking.truncated;
        Self {
            api_version: ApiVersion {
                version: match answer.dialect {
                    Dialect::CohereV1 => "1",
                    _ => "2",
                },
                is_experimental: false,
            },
            billed_units: BilledUnits {
                search_units: answer.pairs.len().div_ceil(DOCUMENTS_A_SEARCH),
            },
            tokens: Tokens {
                input_tokens: answer.ranking.tokens,
                output_tokens: 0,
            },
            warnings: truncated.first().map(|first| {
                [format!(
                    "{} of the documents were cut to fit the model, first `documents[{first}]`",
                    truncated.len()
                )]
            }),
        }
    }
}

/// Body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CohereError)]
pub struct ErrorBody<'a> {
    id: &'a str,
    message: &'a str,
    /// What Jina's clients read; they share the path of the first version.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

/// What Cohere's clients are told about a failure.
pub fn error(failure: &Failure, id: &str, dialect: Dialect) -> Response {
    let message = &failure.message();
    let body = ErrorBody {
        id,
        message,
        detail: (dialect == Dialect::CohereV1).then_some(message),
    };
    json(failure.kind().0, &body)
}
