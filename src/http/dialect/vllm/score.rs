//! `POST /score`: texts scored against texts, in the order of the request.

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use super::{ContentList, Options, SideName};
use crate::http::dialect::field::{
    Contents, Flag, Name, Whole, direction, from_minus_one, from_zero,
};
use crate::http::dialect::missing;
use crate::http::dialect::request::request;
use rerankd_core::{Limits, Pair, PredictCommand, Prediction, RerankError, Side};

request! {
    /// Scores as vLLM is asked for them: one text against one or many, or as many against as many.
    pub struct ScoreRequest as VllmScoreRequest {
        /// Any name, unless the server is strict.
        model: Name => String as Option<serde_json::Value>,
        /// The first texts.
        text_1: Contents => Vec<String> as Option<ContentList>,
        /// The second texts.
        text_2: Contents => Vec<String> as Option<ContentList>,
        /// Another name of `text_1`.
        queries: Contents => Vec<String> as Option<ContentList>,
        /// Another name of `text_2`.
        documents: Contents => Vec<String> as Option<ContentList>,
        /// Another name of `text_2`.
        items: Contents => Vec<String> as Option<ContentList>,
        /// Another name of `text_1`.
        data_1: Contents => Vec<String> as Option<ContentList>,
        /// Another name of `text_2`.
        data_2: Contents => Vec<String> as Option<ContentList>,
        /// Most tokens of a pair; -1 is as many as the model reads.
        truncate_prompt_tokens: from_minus_one => Whole as Option<i64> { minimum = -1 },
        /// Which end is cut.
        truncation_side: direction => Side as Option<SideName>,
        /// Most tokens of the first text; 0 is no limit.
        max_tokens_per_query: from_zero => Whole as Option<u64>,
        /// Most tokens of the second text; 0 is no limit.
        max_tokens_per_doc: from_zero => Whole as Option<u64>,
        /// False asks for logits.
        use_activation: Flag => bool as Option<bool>,
    }
}

impl ScoreRequest {
    /// The model that is asked for.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// The command this request spells.
    ///
    /// # Errors
    /// When one side is missing, the sides do not fit together, or there is too much.
    pub fn into_command(self, limits: &Limits) -> Result<PredictCommand, RerankError> {
        let first = self.text_1.or(self.queries).or(self.data_1);
        let second = self
            .text_2
            .or(self.documents)
            .or(self.items)
            .or(self.data_2);
        let first = first.ok_or_else(|| missing("text_1"))?;
        let second = second.ok_or_else(|| missing("text_2"))?;
        let options = Options {
            use_activation: self.use_activation,
            side: self.truncation_side,
            max_tokens: self.truncate_prompt_tokens,
            max_query_tokens: self.max_tokens_per_query,
            max_document_tokens: self.max_tokens_per_doc,
        };
        let pairs = match (first.len(), second.len()) {
            (1, _) => {
                let query: Arc<str> = first.into_iter().next().unwrap_or_default().into();
                zip(std::iter::repeat(query), second)
            }
            (a, b) if a == b => zip(first.into_iter().map(Arc::from), second),
            (a, b) => {
                return Err(RerankError::invalid(format!(
                    "`text_1` has {a} items and `text_2` has {b}; send one of the first, or as many of each"
                )));
            }
        };
        PredictCommand::named("text_2", pairs, options.read(), limits)
    }
}

fn zip(first: impl Iterator<Item = Arc<str>>, second: Vec<String>) -> Vec<Pair> {
    let pair = |(query, document): (Arc<str>, String)| Pair {
        query,
        document: document.into(),
    };
    first.zip(second).map(pair).collect()
}

/// Answer of `POST /score`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VllmScoreResponse)]
pub struct ScoreBody<'a> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    data: Vec<Score>,
    usage: ScoreUsage,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VllmScore)]
struct Score {
    index: usize,
    object: &'static str,
    score: f32,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VllmScoreUsage)]
struct ScoreUsage {
    prompt_tokens: usize,
    total_tokens: usize,
    completion_tokens: usize,
    /// Always null.
    prompt_tokens_details: (),
}

/// The body that tells `prediction`, whose model has one label.
pub fn fill_scores<'a>(
    id: &str,
    created: u64,
    model: &'a str,
    prediction: &Prediction,
) -> ScoreBody<'a> {
    let score = |(index, &score): (usize, &f32)| Score {
        index,
        object: "score",
        score,
    };
    ScoreBody {
        id: format!("score-{id}"),
        object: "list",
        created,
        model,
        data: prediction.scores.iter().enumerate().map(score).collect(),
        usage: ScoreUsage {
            prompt_tokens: prediction.tokens,
            total_tokens: prediction.tokens,
            completion_tokens: 0,
            prompt_tokens_details: (),
        },
    }
}
