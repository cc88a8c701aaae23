//! What an answer is made of.

use std::time::Duration;

use rerankd_core::{FirstStage, Pair, Ranking};
use serde::Serialize;
use strum::{EnumString, IntoStaticStr, VariantNames};
use utoipa::ToSchema;

/// How an answer repeats a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum DocumentForm {
    /// `{"text": "…"}`.
    #[default]
    Object,
    /// `"…"`.
    String,
    /// Not at all.
    Omit,
}

/// What an answer tells besides its result.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Name of the dialect that it is written in.
    pub dialect: &'static str,
    /// Names the request.
    pub id: &'a str,
    /// Name of the model.
    pub model: &'a str,
    /// Names of its scores.
    pub labels: &'a [String],
    /// When the answer was made, in seconds since 1970.
    pub created: u64,
    /// How a document is repeated where the dialect leaves it open.
    pub document_form: DocumentForm,
    /// How long the answer took.
    pub times: Times,
}

/// How long an answer took, and its steps.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// From when the request was there.
    pub total: Duration,
    /// Tokenizing its texts.
    pub tokenize: Duration,
    /// Waiting for a batch.
    pub queue: Duration,
    /// Computing its scores.
    pub inference: Duration,
}

/// A ranking on its way into an answer.
#[derive(Debug, Clone, Copy)]
pub struct RankingAnswer<'a> {
    /// What else it tells.
    pub context: &'a Context<'a>,
    /// Texts in the order of the request.
    pub pairs: &'a [Pair],
    /// What the first stage said about them, where the ranking depends on it.
    pub first_stage: Option<&'a FirstStage>,
    /// Their order and scores.
    pub ranking: &'a Ranking,
}

/// One token of a text.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TeiToken)]
pub struct Token {
    /// Token id.
    pub id: u32,
    /// Text of the token.
    pub text: String,
    /// Whether it was added around the text.
    pub special: bool,
    /// The first character that it spans.
    pub start: Option<usize>,
    /// The first one behind it.
    pub stop: Option<usize>,
}

impl Token {
    /// A token that spans these characters of its text, or none where it was added around it.
    pub fn new(id: u32, text: String, span: Option<(usize, usize)>) -> Self {
        Self {
            id,
            text,
            special: span.is_none(),
            start: span.map(|span| span.0),
            stop: span.map(|span| span.1),
        }
    }
}
