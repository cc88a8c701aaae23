//! Whether a model that loaded gives scores at all: a few pairs, scored before anybody is served.
//!
//! Weights that are damaged, or a graph that does not fit them, can load without an error and then
//! give the same answer to everything, or none. Which score is right is for `rerankd verify` to say.

use std::sync::atomic::AtomicBool;

use rerankd_core::Pair;
use rerankd_core::{Batch, Encoding};
use rerankd_model::encoder::{EncodeError, EncodedPair, Encoder};
use rerankd_runtime::Scorer;

/// Pairs that are alike, unlike, short, long, and in several scripts: no model that reads has one
/// score for all. Together they are as long as a batch of a small request, so that scoring them also
/// touches the memory that the first client would otherwise wait for.
const PAIRS: [(&str, &str); 6] = [
    ("A man is eating.", "A man is eating."),
    (
        "A man is eating.",
        "The committee raised its interest rates again.",
    ),
    (
        "who wrote the report",
        "The report of 1998 was written by two engineers, and nobody read it.",
    ),
    ("10", "3.14159"),
    (
        "東京の天気",
        "Das Wetter in Tokio ist heute schön und warm.",
    ),
    (
        "",
        "Nothing was asked, and this is the answer to it, somewhat longer than all of the others were.",
    ),
];

/// Least spread of the logits that is not a rounding error, against their size.
const LEAST_SPREAD: f32 = 1e-6;

/// Why a model is not served although it loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelfTestError {
    /// The tokenizer gave up on plain text.
    #[error("the tokenizer fails on plain text: {0}\nhint: is `tokenizer.json` of this model?")]
    Encode(String),
    /// The model could not be run, or its scorer noticed what it gave.
    #[error(
        "the model fails on plain text: {0}\nhint: its weights are damaged, or do not fit its \
         configuration; download it again"
    )]
    Score(String),
    /// A score is no number.
    #[error(
        "the model gives scores that are no finite numbers\nhint: its weights are damaged, or do not \
         survive the precision that they are stored in; download it again"
    )]
    NotFinite,
    /// Every pair has the same scores.
    #[error(
        "the model gives every pair the same score\nhint: its weights are damaged, or its head was not \
         trained; download it again"
    )]
    Constant,
}

impl From<EncodeError> for SelfTestError {
    fn from(error: EncodeError) -> Self {
        Self::Encode(error.to_string())
    }
}

/// The pairs as one model reads them.
pub struct SelfTest {
    batch: Batch,
    labels: usize,
}

impl SelfTest {
    /// For a model that `encoder` tokenises for.
    ///
    /// # Errors
    /// [`SelfTestError::Encode`].
    pub fn new(encoder: &Encoder, labels: usize) -> Result<Self, SelfTestError> {
        let pairs = PAIRS.map(|(query, document)| Pair {
            query: query.into(),
            document: document.into(),
        });
        let encoded = encoder.encode(&pairs, &AtomicBool::new(false))?;
        let encodings = encoded.into_iter().flat_map(EncodedPair::encodings);
        let encodings: Vec<Encoding> = encodings.collect();
        Ok(Self {
            batch: Batch::pack(&encodings),
            labels,
        })
    }

    /// Has `scorer` score the pairs.
    ///
    /// # Errors
    /// Any [`SelfTestError`] but [`SelfTestError::Encode`].
    pub fn run(&self, scorer: &mut dyn Scorer) -> Result<(), SelfTestError> {
        let logits = scorer.score(&self.batch);
        self.check(&logits.map_err(|error| SelfTestError::Score(error.to_string()))?)
    }

    /// Judges `logits`, `[pairs, labels]` row by row.
    fn check(&self, logits: &[f32]) -> Result<(), SelfTestError> {
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(SelfTestError::NotFinite);
        }
        let varies = |label: usize| {
            let of_label = || logits.iter().skip(label).step_by(self.labels.max(1));
            let least = of_label().copied().fold(f32::INFINITY, f32::min);
            let most = of_label().copied().fold(f32::NEG_INFINITY, f32::max);
            most - least > LEAST_SPREAD * most.abs().max(least.abs()).max(LEAST_SPREAD)
        };
        match (0..self.labels).any(varies) {
            true => Ok(()),
            false => Err(SelfTestError::Constant),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(labels: usize, logits: &[f32]) -> Result<(), SelfTestError> {
        let encodings: [Encoding; 0] = [];
        let batch = Batch::pack(&encodings);
        SelfTest { batch, labels }.check(logits)
    }

    #[test]
    fn scores_that_say_something_pass() {
        assert_eq!(check(1, &[0.5, 0.5, 0.500_1]), Ok(()));
        assert_eq!(check(1, &[-1e-3, 1e-3]), Ok(()));
        assert_eq!(check(1, &[1000.0, 1000.1]), Ok(()));
        // One label of two is enough: some models have one that nothing trained.
        assert_eq!(check(2, &[1.0, 0.1, 1.0, 0.2]), Ok(()));
    }

    #[test]
    fn scores_that_say_nothing_are_refused() {
        let constant = Err(SelfTestError::Constant);
        assert_eq!(check(1, &[0.5; 6]), constant);
        assert_eq!(check(1, &[0.0, -0.0]), constant);
        // Apart by rounding alone.
        assert_eq!(check(1, &[1.0, 1.0 + f32::EPSILON]), constant);
        // Two labels that differ, but not from pair to pair.
        assert_eq!(check(2, &[1.0, 2.0, 1.0, 2.0]), constant);
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(check(1, &[0.1, broken]), Err(SelfTestError::NotFinite));
        }
    }
}
