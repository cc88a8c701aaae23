//! NVIDIA's ranking: `POST /v1/ranking` of its reranking containers, and the paths of its catalogue.
//!
//! Its clients read logits, best first, and cut the list themselves.

use rerankd_core::{RerankCommand, RerankError, Scale, ScoreOptions, TruncationPolicy};
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::RankingAnswer;
use super::dialect::{Dialect, Kind, Operation, Path, RerankRequest, Served, rerank};
use super::error::missing;
use super::native::{self, NativeError};
use super::read::content::{Query, TextObject, TextSchema};
use super::read::list::List;
use super::read::request;
use super::read::scalar::ModelName;
use super::schema::{Form, example};
use super::usage::Usage;

/// NVIDIA's ranking, whose clients show the status of an error and keep its text.
pub static NVIDIA: Dialect = Dialect {
    name: "nvidia",
    operations: &[Operation::new(
        "nvidia",
        Kind::Rerank,
        &[
            Path::own("/ranking"),
            Path::own("/v1/ranking"),
            Path::own("/v1/retrieval/{publisher}/reranking"),
            Path::own("/v1/retrieval/{publisher}/{name}/reranking"),
        ],
        rerank::<NvidiaRequest>,
        |schemas| {
            let example = example!("nvidia/ranks");
            Form::of::<NvidiaRequest, NvidiaResponse, NativeError>(schemas, example)
        },
    )],
    error: native::ERROR,
};

request! {
    /// A ranking as NVIDIA's clients ask for it.
    pub struct NvidiaRequest as NvidiaRankingRequest {
        /// Any name, unless the server is strict.
        model?: ModelName as Option<serde_json::Value>,
        /// What the passages are judged by.
        query: Query as TextSchema,
        /// The texts that are ranked.
        passages: List<TextObject> as Vec<TextSchema> { min_items = 1 },
        /// What becomes of a pair that is too long: `END` cuts it, `NONE` refuses it. Without, it is cut.
        truncate?: TruncationPolicy as Option<TruncateName>,
    }
}

/// What becomes of a pair that is too long.
#[derive(ToSchema)]
#[schema(as = NvidiaTruncate)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
#[serde(rename_all = "UPPERCASE")]
enum TruncateName {
    None,
    End,
}

impl RerankRequest for NvidiaRequest {
    type Kept = ();

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn into_command(self, served: &Served<'_>) -> Result<(RerankCommand, ()), RerankError> {
        let limits = &served.limits;
        let query = self.query.ok_or_else(|| missing("query"))?.into();
        let passages = self.passages.ok_or_else(|| missing("passages"))?;
        let texts = passages.texts("passages", limits)?;
        let options = ScoreOptions {
            scale: Scale::Raw,
            truncate: self.truncate.unwrap_or_default(),
            ..ScoreOptions::default()
        };
        let command = RerankCommand::new(query, texts, None, options, limits)?;
        Ok((command, ()))
    }

    fn fill<'a>(answer: &RankingAnswer<'a>, (): &'a ()) -> impl Serialize + 'a {
        let result = |ranked: &rerankd_core::Ranked| Ranked {
            index: ranked.index,
            logit: ranked.score,
        };
        NvidiaResponse {
            rankings: answer.ranking.results.iter().map(result).collect(),
            usage: Usage::new(answer.ranking.tokens),
        }
    }
}

/// Answer of a ranking.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = NvidiaRankingResponse)]
pub struct NvidiaResponse {
    rankings: Vec<Ranked>,
    usage: Usage,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = NvidiaRanked)]
struct Ranked {
    index: usize,
    logit: f32,
}
