//! What a client may ask and what it gets back, in no dialect's words.
//!
//! A command is validated once, when it is made: holding one proves that every limit was checked.

use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::error::RerankError;
use crate::scheduling::SchedulingHints;
use crate::score::Scale;
use crate::truncation::Fit;

/// One text judged against another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The first text: the query of a reranking. Shared, because it is tokenised once a request.
    pub query: Arc<str>,
    /// The second text: the document of a reranking.
    pub document: Arc<str>,
}

impl Pair {
    /// Length of both texts together.
    pub fn bytes(&self) -> usize {
        self.query.len() + self.document.len()
    }
}

/// The most a single request may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Documents of one reranking, or pairs of one prediction.
    pub max_documents: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // Well above the 100 candidates that search pipelines send.
        Self {
            max_documents: 1000,
        }
    }
}

impl Limits {
    /// Refuses a list that is empty or too long.
    ///
    /// # Errors
    /// [`ErrorCode::Empty`] or [`ErrorCode::InvalidRequest`], naming `field`.
    pub fn check(&self, field: &str, count: usize) -> Result<(), RerankError> {
        check_count(field, count, self)
    }
}

/// Chunks that each document of a full request may become.
const MEAN_CHUNKS: usize = 10;

/// What happens to a pair that is longer than the model reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Truncate {
    /// The pair is cut to fit and the answer says so.
    #[default]
    Cut,
    /// The request is refused, naming the pair.
    Refuse,
}

impl Truncate {
    /// What a flag that allows cutting says; without it, cutting is allowed.
    pub fn allowed(flag: Option<bool>) -> Self {
        match flag {
            Some(false) => Self::Refuse,
            _ => Self::Cut,
        }
    }
}

/// How the caller wants its scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScoreOptions {
    /// Logits, the model's activation, or a softmax over the labels.
    pub scale: Scale,
    /// What happens to a pair that is too long.
    pub truncate: Truncate,
    /// How long texts are read.
    pub fit: Fit,
}

/// The order of documents that the model does not tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ties {
    /// As in the request.
    #[default]
    FirstFirst,
    /// The later one first.
    LastFirst,
}

/// Texts to be scored, under the name that their dialect gives them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Texts {
    /// The name of the field, for messages.
    pub field: &'static str,
    /// The texts, in the caller's order.
    pub items: Vec<String>,
}

impl From<Vec<String>> for Texts {
    fn from(items: Vec<String>) -> Self {
        Self {
            field: "documents",
            items,
        }
    }
}

/// A checked wish to have `pairs` scored, each on its own.
#[derive(Debug, Clone)]
pub struct PredictCommand {
    field: &'static str,
    pairs: Arc<[Pair]>,
    options: ScoreOptions,
    hints: SchedulingHints,
}

impl PredictCommand {
    /// Checks the number of `pairs` against `limits`.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidRequest`] when there is no pair, or more than `limits` allows.
    pub fn new(
        pairs: Vec<Pair>,
        options: ScoreOptions,
        limits: &Limits,
    ) -> Result<Self, RerankError> {
        Self::named("pairs", pairs, options, limits)
    }

    /// As [`PredictCommand::new`], for pairs that the caller knows under another name.
    ///
    /// # Errors
    /// As [`PredictCommand::new`].
    pub fn named(
        field: &'static str,
        pairs: Vec<Pair>,
        options: ScoreOptions,
        limits: &Limits,
    ) -> Result<Self, RerankError> {
        check_count(field, pairs.len(), limits)?;
        Ok(Self {
            field,
            pairs: pairs.into(),
            options,
            hints: SchedulingHints::default(),
        })
    }

    /// The same command, with these scheduling hints.
    #[must_use]
    pub fn with_hints(self, hints: SchedulingHints) -> Self {
        Self { hints, ..self }
    }

    /// Its tenant, priority and deadline.
    pub fn hints(&self) -> SchedulingHints {
        self.hints
    }

    /// What the caller calls the pairs.
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// The pairs, in the caller's order.
    pub fn pairs(&self) -> &Arc<[Pair]> {
        &self.pairs
    }

    /// How the caller wants its scores.
    pub fn options(&self) -> ScoreOptions {
        self.options
    }
}

/// A checked wish to have documents ordered by how well they answer a query.
#[derive(Debug, Clone)]
pub struct RerankCommand {
    field: &'static str,
    pairs: Arc<[Pair]>,
    top_n: usize,
    ties: Ties,
    options: ScoreOptions,
    hints: SchedulingHints,
}

impl RerankCommand {
    /// Checks the number of `documents` against `limits`. `top_n` beyond their number means all.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidRequest`] when there is no document, or more than `limits` allows.
    pub fn new(
        query: String,
        documents: impl Into<Texts>,
        top_n: Option<NonZeroUsize>,
        options: ScoreOptions,
        limits: &Limits,
    ) -> Result<Self, RerankError> {
        let Texts { field, items } = documents.into();
        check_count(field, items.len(), limits)?;
        check_chunks(field, items.len(), options.fit, limits)?;
        let query: Arc<str> = query.into();
        let pairs: Arc<[Pair]> = items
            .into_iter()
            .map(|document| Pair {
                query: query.clone(),
                document: document.into(),
            })
            .collect();
        let top_n = top_n.map_or(pairs.len(), |n| n.get().min(pairs.len()));
        Ok(Self {
            field,
            pairs,
            top_n,
            ties: Ties::default(),
            options,
            hints: SchedulingHints::default(),
        })
    }

    /// The same command, with another order of documents that the model does not tell apart.
    #[must_use]
    pub fn with_ties(self, ties: Ties) -> Self {
        Self { ties, ..self }
    }

    /// The same command, with these scheduling hints.
    #[must_use]
    pub fn with_hints(self, hints: SchedulingHints) -> Self {
        Self { hints, ..self }
    }

    /// Its tenant, priority and deadline.
    pub fn hints(&self) -> SchedulingHints {
        self.hints
    }

    /// What the caller calls the documents.
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// The order of documents that the model does not tell apart.
    pub fn ties(&self) -> Ties {
        self.ties
    }

    /// One pair for each document, in the caller's order.
    pub fn pairs(&self) -> &Arc<[Pair]> {
        &self.pairs
    }

    /// How many results the caller wants; never more than there are documents.
    pub fn top_n(&self) -> usize {
        self.top_n
    }

    /// How the caller wants its scores.
    pub fn options(&self) -> ScoreOptions {
        self.options
    }
}

fn check_count(field: &str, count: usize, limits: &Limits) -> Result<(), RerankError> {
    if count == 0 {
        return Err(RerankError::empty(format!(
            "`{field}` is empty; send at least one item"
        )));
    }
    if count > limits.max_documents {
        return Err(RerankError::invalid(format!(
            "`{field}` has {count} items; the limit is {}",
            limits.max_documents
        )));
    }
    Ok(())
}

/// Most sequences that the documents of one request may become: each costs a whole query.
fn check_chunks(
    field: &str,
    documents: usize,
    fit: Fit,
    limits: &Limits,
) -> Result<(), RerankError> {
    let most = limits.max_documents.saturating_mul(MEAN_CHUNKS);
    if documents.saturating_mul(fit.chunks()) > most {
        return Err(RerankError::invalid(format!(
            "{documents} `{field}` of {} chunks each are more than the limit of {most} chunks; \
             send fewer, or lower `max_chunks_per_doc`",
            fit.chunks()
        )));
    }
    Ok(())
}

/// One document's place in a [`Ranking`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// Position of the document in the request.
    pub index: usize,
    /// Its score, on the scale that was asked for.
    pub score: f32,
}

/// The answer to a [`RerankCommand`].
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    /// Best first, cut to `top_n`; ties in the order of the request.
    pub results: Vec<Ranked>,
    /// Positions of all documents that were cut to fit the model, ascending.
    pub truncated: Vec<usize>,
    /// Tokens the model read, special tokens included.
    pub tokens: usize,
}

/// The answer to a [`PredictCommand`].
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// `pairs x labels` scores, row by row, in the order of the request.
    pub scores: Vec<f32>,
    /// Scores a pair.
    pub labels: usize,
    /// Positions of all pairs that were cut to fit the model, ascending.
    pub truncated: Vec<usize>,
    /// Tokens the model read, special tokens included.
    pub tokens: usize,
}

/// Orders documents by raw logit, best first, ties by position, as `CrossEncoder.rank` does.
///
/// The sort is on logits because a saturated sigmoid ties documents that the model tells apart.
pub fn rank(logits: &[f32], ties: Ties) -> Vec<usize> {
    let mut order: Vec<usize> = match ties {
        Ties::FirstFirst => (0..logits.len()).collect(),
        Ties::LastFirst => (0..logits.len()).rev().collect(),
    };
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::Activation;

    const LIMITS: Limits = Limits { max_documents: 2 };

    #[test]
    fn rank_is_descending_and_stable() {
        let logits = [1.0, 3.0, 1.0, 3.0, 2.0];
        assert_eq!(rank(&logits, Ties::FirstFirst), [1, 3, 4, 0, 2]);
        assert_eq!(rank(&logits, Ties::LastFirst), [3, 1, 4, 2, 0]);
    }

    #[test]
    fn chunks_are_bounded_over_the_whole_request() {
        let make = |documents: usize, chunks| {
            let fit = Fit {
                max_chunks: NonZeroUsize::new(chunks),
                ..Fit::default()
            };
            let options = ScoreOptions {
                fit,
                ..ScoreOptions::default()
            };
            let documents = Texts {
                field: "input",
                items: vec![String::new(); documents],
            };
            RerankCommand::new("q".into(), documents, None, options, &LIMITS)
        };
        assert!(make(2, 10).is_ok());
        assert!(make(1, 20).is_ok());
        let error = make(2, usize::MAX).unwrap_err();
        assert!(error.message().contains("2 `input` of"), "{error}");
    }

    #[test]
    fn rank_tells_apart_what_a_saturated_sigmoid_ties() {
        let logits = [20.0, 30.0];
        assert_eq!(
            Activation::Sigmoid.apply(logits[0]),
            Activation::Sigmoid.apply(logits[1])
        );
        assert_eq!(rank(&logits, Ties::default()), [1, 0]);
    }

    #[test]
    fn counts_are_checked_and_named() {
        let make = |n: usize| {
            RerankCommand::new(
                "q".into(),
                vec![String::new(); n],
                NonZeroUsize::new(9),
                ScoreOptions::default(),
                &LIMITS,
            )
        };
        assert_eq!(
            make(0).unwrap_err().message(),
            "`documents` is empty; send at least one item"
        );
        assert_eq!(
            make(3).unwrap_err().message(),
            "`documents` has 3 items; the limit is 2"
        );
        assert_eq!(make(2).unwrap().top_n(), 2);
    }
}
