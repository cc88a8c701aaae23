//! `POST /v1/reranking` of Mixedbread.

use std::num::NonZeroUsize;

use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::echo::{Document, Echo};
use super::field::{Count, Flag, Item, Items, Name, StringList, Text};
use super::request::request;
use super::usage::Usage;
use super::{Answer, RerankDialect, missing};
use crate::config::DocumentForm;
use crate::http::error::Failure;
use rerankd_core::{Limits, RerankCommand, RerankError, Scale, ScoreOptions, Texts};

request! {
    /// A reranking as Mixedbread reads it; `input` tells it from others on a shared path.
    pub struct Request as MixedbreadRerankRequest {
        /// Any name, unless the server is strict.
        model: Name => String as Option<serde_json::Value>,
        /// What the input is judged by.
        query: Text => String as String,
        /// Texts, or objects whose `text` or `rank_fields` are ranked.
        input: Items => Vec<Item> as Vec<Item> { min_items = 1 },
        /// Fields of the objects that are ranked, in this order; `text` without.
        rank_fields: StringList => Vec<String> as Option<Vec<String>>,
        /// Most results; all without.
        top_k: Count => NonZeroUsize as Option<u64> { minimum = 1 },
        /// Whether each result repeats its input.
        return_input: Flag => bool as Option<bool>,
    }
}

/// What the answer repeats.
#[derive(Debug)]
pub struct Kept {
    echo: Echo,
    return_input: bool,
}

impl RerankDialect for Request {
    type Kept = Kept;

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn into_command(self, limits: &Limits) -> Result<(RerankCommand, Kept), RerankError> {
        let query = self.query.ok_or_else(|| missing("query"))?;
        let input = self.input.ok_or_else(|| missing("input"))?;
        let return_input = self.return_input.unwrap_or(false);
        let fields = self.rank_fields.as_deref();
        let (items, echo) = Echo::of_items(return_input, "input", input, fields)?;
        let options = ScoreOptions {
            scale: Scale::Unit,
            ..ScoreOptions::default()
        };
        let field = "input";
        let command =
            RerankCommand::new(query, Texts { field, items }, self.top_k, options, limits)?;
        Ok((command, Kept { echo, return_input }))
    }

    fn fill<'a>(answer: &Answer<'a>, kept: &'a Kept) -> impl Serialize + 'a {
        let result = |ranked: &rerankd_core::Ranked| Ranked {
            index: ranked.index,
            score: ranked.score,
            input: kept
                .echo
                .document_as(DocumentForm::String, answer, ranked.index),
            object: "rank_result",
        };
        Body {
            usage: Usage::new(answer.ranking.tokens),
            model: answer.model,
            data: answer.ranking.results.iter().map(result).collect(),
            object: "list",
            top_k: answer.ranking.results.len(),
            return_input: kept.return_input,
        }
    }
}

/// Answer of Mixedbread.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MixedbreadRerankResponse)]
pub struct Body<'a> {
    usage: Usage,
    model: &'a str,
    data: Vec<Ranked<'a>>,
    object: &'static str,
    top_k: usize,
    return_input: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MixedbreadRanked)]
struct Ranked<'a> {
    index: usize,
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<Document<'a>>,
    object: &'static str,
}

/// What Mixedbread's client is told about a failure: it keeps whatever JSON it gets.
pub fn error(failure: &Failure) -> Response {
    super::native::error(failure)
}
