//! ZeroEntropy's `POST /v1/models/rerank`.

use std::num::NonZeroUsize;

use rerankd_core::{RerankCommand, RerankError, Scale, ScoreOptions};
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{DocumentForm, RankingAnswer};
use super::cohere::{RankedDocument, results_as};
use super::dialect::{Dialect, Kind, Operation, Path, RerankRequest, Served, rerank};
use super::document::Echo;
use super::native::{self, NativeError};
use super::read::content::{Query, TextObject, TextSchema, query_and_documents};
use super::read::form::Count;
use super::read::list::List;
use super::read::request;
use super::read::scalar::ModelName;
use super::schema::{Form, example};

/// ZeroEntropy, whose client keeps whatever JSON an error has.
pub static ZEROENTROPY: Dialect = Dialect {
    name: "zeroentropy",
    operations: &[Operation::new(
        "zeroentropy",
        Kind::Rerank,
        &[Path::own("/v1/models/rerank")],
        rerank::<ZeroEntropyRequest>,
        |schemas| {
            let example = example!("zeroentropy/ranks");
            Form::of::<ZeroEntropyRequest, ZeroEntropyResponse, NativeError>(schemas, example)
        },
    )
    .ignoring(&["latency"])],
    error: native::ERROR,
};

request! {
    /// A reranking as ZeroEntropy reads it.
    pub struct ZeroEntropyRequest as ZeroEntropyRerankRequest {
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

/// What the answer tells of the request.
#[derive(Debug)]
pub struct Kept {
    echo: Echo,
    bytes: usize,
}

impl RerankRequest for ZeroEntropyRequest {
    type Kept = Kept;

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn into_command(self, served: &Served<'_>) -> Result<(RerankCommand, Kept), RerankError> {
        let limits = &served.limits;
        let (query, texts) = query_and_documents(self.query, self.documents, limits)?;
        let bytes = query.len() + texts.items.iter().map(String::len).sum::<usize>();
        let options = ScoreOptions {
            scale: Scale::Unit,
            ..ScoreOptions::default()
        };
        let command = RerankCommand::new(query, texts, self.top_n, options, limits)?;
        let echo = Echo::default();
        Ok((command, Kept { echo, bytes }))
    }

    fn fill<'a>(answer: &RankingAnswer<'a>, kept: &'a Kept) -> impl Serialize + 'a {
        ZeroEntropyResponse {
            results: results_as(DocumentForm::Omit, answer, &kept.echo),
            total_bytes: kept.bytes,
            total_tokens: answer.ranking.tokens,
            actual_latency_mode: "fast",
            e2e_latency: 0.0,
            inference_latency: 0.0,
        }
    }
}

/// Answer of ZeroEntropy.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ZeroEntropyRerankResponse)]
pub struct ZeroEntropyResponse<'a> {
    results: Vec<RankedDocument<'a>>,
    total_bytes: usize,
    total_tokens: usize,
    actual_latency_mode: &'static str,
    /// Always 0: `server-timing` tells.
    e2e_latency: f32,
    /// Always 0: `server-timing` tells.
    inference_latency: f32,
}
