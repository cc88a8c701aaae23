//! Requests to a reranker and their results, independent of any dialect.
//!
//! A command is validated when it is created: holding one proves that all limits were checked.

use std::cmp::Ordering;
use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::error::RerankError;
use crate::fusion::Fusion;
use crate::instruction::{Instruction, InstructionPolicy};
use crate::scheduling::SchedulingHints;
use crate::score::Scale;
use crate::truncation::TruncationOptions;

/// Two texts to be scored together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The first text: the query of a reranking. Shared, because it is tokenized once per request.
    pub query: Arc<str>,
    /// The second text: the document of a reranking.
    pub document: Arc<str>,
}

impl Pair {
    /// Length of both texts, in bytes.
    pub fn bytes(&self) -> usize {
        self.query.len() + self.document.len()
    }
}

/// Limits of a single request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum documents of a reranking, or pairs of a prediction.
    pub max_documents: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // Search pipelines typically send 100 candidates.
        Self {
            max_documents: 1000,
        }
    }
}

impl Limits {
    /// Checks that a list is neither empty nor too long.
    ///
    /// # Errors
    /// [`ErrorCode::Empty`](crate::ErrorCode::Empty) or
    /// [`ErrorCode::InvalidRequest`](crate::ErrorCode::InvalidRequest), naming `field`.
    pub fn check(&self, field: &str, count: usize) -> Result<(), RerankError> {
        if count == 0 {
            return Err(RerankError::empty(format!(
                "`{field}` is empty; send at least one item"
            )));
        }
        if count > self.max_documents {
            return Err(RerankError::invalid(format!(
                "`{field}` has {count} items; the limit is {}",
                self.max_documents
            )));
        }
        Ok(())
    }

    /// Checks the number of chunks of a request, each of which repeats the query.
    fn check_chunks(
        &self,
        field: &str,
        documents: usize,
        truncation: TruncationOptions,
    ) -> Result<(), RerankError> {
        let limit = self.max_documents.saturating_mul(MEAN_CHUNKS);
        if documents.saturating_mul(truncation.chunks()) > limit {
            return Err(RerankError::invalid(format!(
                "{documents} `{field}` of {} chunks each are more than the limit of {limit} chunks; \
                 send fewer, or lower `max_chunks_per_doc`",
                truncation.chunks()
            )));
        }
        Ok(())
    }
}

/// Chunks that each document of a full request may have on average.
const MEAN_CHUNKS: usize = 10;

/// How to handle a pair that exceeds the maximum length of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TruncationPolicy {
    /// Truncate it and report it in the response.
    #[default]
    Truncate,
    /// Reject the request, naming the pair.
    Reject,
}

impl TruncationPolicy {
    /// From a flag that allows truncation, which defaults to true.
    pub fn from_flag(flag: Option<bool>) -> Self {
        if flag == Some(false) {
            Self::Reject
        } else {
            Self::Truncate
        }
    }
}

/// Scoring options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScoreOptions {
    /// Scale of the scores.
    pub scale: Scale,
    /// How to handle pairs that are too long.
    pub truncate: TruncationPolicy,
    /// Truncation options.
    pub truncation: TruncationOptions,
    /// What happens to an instruction that the model has no place for.
    pub instruction: InstructionPolicy,
}

/// The order of documents with equal logits, or with equal combined scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TieOrder {
    /// In the order of the request.
    #[default]
    RequestOrder,
    /// In reverse order of the request.
    ReverseOrder,
}

/// Documents, with the name of their field in the dialect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Texts {
    /// Field name, for messages.
    pub field: &'static str,
    /// The documents, in the order of the request.
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

/// A validated request to score independent pairs.
#[derive(Debug, Clone)]
pub struct PredictCommand {
    field: &'static str,
    pairs: Arc<[Pair]>,
    options: ScoreOptions,
    instruction: Instruction,
    hints: SchedulingHints,
}

impl PredictCommand {
    /// Checks the number of pairs against `limits`.
    ///
    /// # Errors
    /// Same as [`Limits::check`].
    pub fn new(
        pairs: Vec<Pair>,
        options: ScoreOptions,
        limits: &Limits,
    ) -> Result<Self, RerankError> {
        Self::named("pairs", pairs, options, limits)
    }

    /// [`PredictCommand::new`] with another field name in messages.
    ///
    /// # Errors
    /// Same as [`Limits::check`].
    pub fn named(
        field: &'static str,
        pairs: Vec<Pair>,
        options: ScoreOptions,
        limits: &Limits,
    ) -> Result<Self, RerankError> {
        limits.check(field, pairs.len())?;
        Ok(Self {
            field,
            pairs: pairs.into(),
            options,
            instruction: Instruction::default(),
            hints: SchedulingHints::default(),
        })
    }

    /// Sets the instruction.
    #[must_use]
    pub fn with_instruction(self, instruction: Instruction) -> Self {
        Self {
            instruction,
            ..self
        }
    }

    /// The instruction.
    pub fn instruction(&self) -> &Instruction {
        &self.instruction
    }

    /// Sets the scheduling hints.
    #[must_use]
    pub fn with_hints(self, hints: SchedulingHints) -> Self {
        Self { hints, ..self }
    }

    /// The scheduling hints.
    pub fn hints(&self) -> SchedulingHints {
        self.hints
    }

    /// Field name of the pairs, for messages.
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// The pairs, in the order of the request.
    pub fn pairs(&self) -> &Arc<[Pair]> {
        &self.pairs
    }

    /// The scoring options.
    pub fn options(&self) -> ScoreOptions {
        self.options
    }
}

/// A validated request to rank documents by relevance to a query.
#[derive(Debug, Clone)]
pub struct RerankCommand {
    scoring: PredictCommand,
    top_n: usize,
    ties: TieOrder,
    fusion: Option<Arc<Fusion>>,
}

impl RerankCommand {
    /// Checks the number of documents and chunks against `limits`. `top_n` is clamped to the number of
    /// documents.
    ///
    /// # Errors
    /// Same as [`Limits::check`].
    pub fn new(
        query: String,
        documents: impl Into<Texts>,
        top_n: Option<NonZeroUsize>,
        options: ScoreOptions,
        limits: &Limits,
    ) -> Result<Self, RerankError> {
        let Texts { field, items } = documents.into();
        limits.check(field, items.len())?;
        limits.check_chunks(field, items.len(), options.truncation)?;
        let query: Arc<str> = query.into();
        let pairs = items.into_iter().map(|document| Pair {
            query: query.clone(),
            document: document.into(),
        });
        let pairs: Arc<[Pair]> = pairs.collect();
        Ok(Self {
            top_n: top_n.map_or(pairs.len(), |n| n.get().min(pairs.len())),
            ties: TieOrder::default(),
            scoring: PredictCommand {
                field,
                pairs,
                options,
                instruction: Instruction::default(),
                hints: SchedulingHints::default(),
            },
            fusion: None,
        })
    }

    /// Sets the order of documents with equal logits.
    #[must_use]
    pub fn with_ties(self, ties: TieOrder) -> Self {
        Self { ties, ..self }
    }

    /// Sets the instruction.
    #[must_use]
    pub fn with_instruction(self, instruction: Instruction) -> Self {
        Self {
            scoring: self.scoring.with_instruction(instruction),
            ..self
        }
    }

    /// Sets the scheduling hints.
    #[must_use]
    pub fn with_hints(self, hints: SchedulingHints) -> Self {
        Self {
            scoring: self.scoring.with_hints(hints),
            ..self
        }
    }

    /// How the documents are scored: one pair per document, in the order of the request.
    pub fn scoring(&self) -> &PredictCommand {
        &self.scoring
    }

    /// Ranks by the scores of the model and those of a first stage.
    ///
    /// # Panics
    /// If `fusion` is not of as many documents.
    #[must_use]
    pub fn with_fusion(self, fusion: Option<Fusion>) -> Self {
        if let Some(fusion) = &fusion {
            assert_eq!(fusion.first_stage().len(), self.scoring.pairs.len());
        }
        let fusion = fusion.map(Arc::new);
        Self { fusion, ..self }
    }

    /// What the ranking depends on beside the model.
    pub fn fusion(&self) -> Option<&Arc<Fusion>> {
        self.fusion.as_ref()
    }

    /// The order of documents with equal logits.
    pub fn ties(&self) -> TieOrder {
        self.ties
    }

    /// Number of results; at most the number of documents.
    pub fn top_n(&self) -> usize {
        self.top_n
    }
}

/// A document in a [`Ranking`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// Index of the document in the request.
    pub index: usize,
    /// Score of the model, on the requested scale.
    pub score: f32,
    /// The combined score that it is ranked by, if there is a fusion.
    pub fused: Option<f64>,
}

/// The result of a [`RerankCommand`].
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    /// Best first, at most `top_n`.
    pub results: Vec<Ranked>,
    /// Indices of all truncated documents, ascending.
    pub truncated: Vec<usize>,
    /// Tokens the model read, special tokens included.
    pub tokens: usize,
}

/// The result of a [`PredictCommand`].
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Scores, `[pairs, labels]`, row-major, in the order of the request.
    pub scores: Vec<f32>,
    /// Scores per pair.
    pub labels: usize,
    /// Indices of all truncated pairs, ascending.
    pub truncated: Vec<usize>,
    /// Tokens the model read, special tokens included.
    pub tokens: usize,
}

/// Sorts documents by logit in descending order, as `CrossEncoder.rank` does.
///
/// The sort is by logit because distinct logits can have the same sigmoid.
pub fn rank(logits: &[f32], ties: TieOrder) -> Vec<usize> {
    descending(logits.len(), ties, |a, b| logits[a].total_cmp(&logits[b]))
}

/// Sorts documents by combined score in descending order.
pub fn rank_fused(scores: &[f64], ties: TieOrder) -> Vec<usize> {
    descending(scores.len(), ties, |a, b| scores[a].total_cmp(&scores[b]))
}

fn descending(
    count: usize,
    ties: TieOrder,
    compare: impl Fn(usize, usize) -> Ordering,
) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    if ties == TieOrder::ReverseOrder {
        order.reverse();
    }
    order.sort_by(|&a, &b| compare(b, a));
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
        assert_eq!(rank(&logits, TieOrder::RequestOrder), [1, 3, 4, 0, 2]);
        assert_eq!(rank(&logits, TieOrder::ReverseOrder), [3, 1, 4, 2, 0]);
        let scores = logits.map(f64::from);
        assert_eq!(rank_fused(&scores, TieOrder::RequestOrder), [1, 3, 4, 0, 2]);
    }

    #[test]
    fn chunks_are_bounded_over_the_whole_request() {
        let make = |documents: usize, chunks| {
            let truncation = TruncationOptions {
                max_chunks: NonZeroUsize::new(chunks),
                ..TruncationOptions::default()
            };
            let options = ScoreOptions {
                truncation,
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
    fn rank_distinguishes_logits_with_the_same_sigmoid() {
        let logits = [20.0, 30.0];
        assert_eq!(
            Activation::Sigmoid.apply(logits[0]),
            Activation::Sigmoid.apply(logits[1])
        );
        assert_eq!(rank(&logits, TieOrder::default()), [1, 0]);
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
