//! What a client may ask and what it gets back, in no dialect's words.
//!
//! A command is validated once, when it is made: holding one proves that every limit was checked.

pub mod error;
pub mod score;

use std::num::NonZeroUsize;
use std::sync::Arc;

pub use error::{ErrorCode, RerankError};
pub use score::{Activation, Scale};

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

/// What happens to a pair that is longer than the model reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Truncate {
    /// The pair is cut to fit and the answer says so.
    #[default]
    Cut,
    /// The request is refused, naming the pair.
    Refuse,
}

/// How the caller wants its scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScoreOptions {
    /// Logits, the model's activation, or a softmax over the labels.
    pub scale: Scale,
    /// What happens to a pair that is too long.
    pub truncate: Truncate,
}

/// A checked wish to have `pairs` scored, each on its own.
#[derive(Debug, Clone)]
pub struct PredictCommand {
    pairs: Arc<[Pair]>,
    options: ScoreOptions,
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
        check_count("pairs", pairs.len(), limits)?;
        Ok(Self {
            pairs: pairs.into(),
            options,
        })
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
    pairs: Arc<[Pair]>,
    top_n: usize,
    options: ScoreOptions,
}

impl RerankCommand {
    /// Checks the number of `documents` against `limits`. `top_n` beyond their number means all.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidRequest`] when there is no document, or more than `limits` allows.
    pub fn new(
        query: String,
        documents: Vec<String>,
        top_n: Option<NonZeroUsize>,
        options: ScoreOptions,
        limits: &Limits,
    ) -> Result<Self, RerankError> {
        check_count("documents", documents.len(), limits)?;
        let query: Arc<str> = query.into();
        let pairs: Arc<[Pair]> = documents
            .into_iter()
            .map(|document| Pair {
                query: query.clone(),
                document: document.into(),
            })
            .collect();
        let top_n = top_n.map_or(pairs.len(), |n| n.get().min(pairs.len()));
        Ok(Self {
            pairs,
            top_n,
            options,
        })
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
        return Err(RerankError::invalid(format!(
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
pub fn rank(logits: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_documents: 2 };

    #[test]
    fn rank_is_descending_and_stable() {
        assert_eq!(rank(&[1.0, 3.0, 1.0, 3.0, 2.0]), [1, 3, 4, 0, 2]);
    }

    #[test]
    fn rank_tells_apart_what_a_saturated_sigmoid_ties() {
        let logits = [20.0, 30.0];
        assert_eq!(
            Activation::Sigmoid.apply(logits[0]),
            Activation::Sigmoid.apply(logits[1])
        );
        assert_eq!(rank(&logits), [1, 0]);
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
