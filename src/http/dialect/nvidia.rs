//! NVIDIA's ranking: `POST /v1/ranking` of its reranking containers, and the paths of its catalogue.
//!
//! Its clients read logits, best first, and cut the list themselves.

use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::field::{Documents, Name, TextObject, end_or_none};
use super::native::DocumentSchema;
use super::request::request;
use super::usage::Usage;
use super::{Answer, RerankDialect, missing};
use crate::http::error::Failure;
use rerankd_core::{Limits, RerankCommand, RerankError, Scale, ScoreOptions, Texts, Truncate};

request! {
    /// A ranking as NVIDIA's clients ask for it.
    pub struct Request as NvidiaRankingRequest {
        /// Any name, unless the server is strict.
        model: Name => String as Option<serde_json::Value>,
        /// What the passages are judged by.
        query: TextObject => String as DocumentSchema,
        /// The texts that are ranked.
        passages: Documents => Vec<String> as Vec<DocumentSchema> { min_items = 1 },
        /// What becomes of a pair that is too long: `END` cuts it, `NONE` refuses it. Without, it is cut.
        truncate: end_or_none => Truncate as Option<TruncateName>,
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

impl RerankDialect for Request {
    type Kept = ();

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn into_command(self, limits: &Limits) -> Result<(RerankCommand, ()), RerankError> {
        let query = self.query.ok_or_else(|| missing("query"))?;
        let texts = Texts {
            field: "passages",
            items: self.passages.ok_or_else(|| missing("passages"))?,
        };
        let options = ScoreOptions {
            scale: Scale::Raw,
            truncate: self.truncate.unwrap_or_default(),
            ..ScoreOptions::default()
        };
        let command = RerankCommand::new(query, texts, None, options, limits)?;
        Ok((command, ()))
    }

    fn fill<'a>(answer: &Answer<'a>, (): &'a ()) -> impl Serialize + 'a {
        let result = |ranked: &rerankd_core::Ranked| Ranked {
            index: ranked.index,
            logit: ranked.score,
        };
        Body {
            rankings: answer.ranking.results.iter().map(result).collect(),
            usage: Usage::new(answer.ranking.tokens),
        }
    }
}

/// Answer of a ranking.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = NvidiaRankingResponse)]
pub struct Body {
    rankings: Vec<Ranked>,
    usage: Usage,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = NvidiaRanked)]
struct Ranked {
    index: usize,
    logit: f32,
}

/// What NVIDIA's clients are told about a failure: they show the status and keep the text.
pub fn error(failure: &Failure) -> Response {
    super::native::error(failure)
}
