//! Checks that a loaded model gives usable scores, with a few pairs, before requests are served.
//!
//! Damaged weights, or a graph that does not match them, can load without an error and then give every
//! pair the same score, or NaN. `rerankd verify` checks whether scores are correct.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicBool;

use crate::batcher::batch::message;
use rerankd_core::Pair;
use rerankd_core::{Batch, Encoding};
use rerankd_model::encoder::{EncodeError, EncodedPair, Encoder};
use rerankd_runtime::Scorer;

/// Similar, different, short and long pairs, in several scripts: no working model gives all of them the same
/// score. Together they have the length of a small request's batch, so that scoring them also allocates the
/// memory that the first request would otherwise wait for.
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

/// Minimum spread of the logits, relative to their size, that is not a rounding error.
const LEAST_SPREAD: f32 = 1e-6;

/// Why a loaded model is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelfTestError {
    /// The tokenizer failed on plain text.
    #[error(
        "the tokenizer fails on plain text: {0}\nhint: check that `tokenizer.json` belongs to this model"
    )]
    Encode(String),
    /// The model could not be run.
    #[error(
        "the model fails on plain text: {0}\nhint: its weights are damaged, or do not match its \
         configuration; download it again"
    )]
    Score(String),
    /// A score is NaN or infinite.
    #[error(
        "the model gives scores that are not finite\nhint: its weights are damaged, or exceed the range of \
         the format that they are stored in; download it again"
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

/// The pairs, tokenized for one model.
pub struct SelfTest {
    batch: Batch,
    labels: usize,
}

impl SelfTest {
    /// Tokenizes the pairs with `encoder`.
    ///
    /// # Errors
    /// [`SelfTestError::Encode`] if that fails.
    pub fn new(encoder: &Encoder, labels: usize) -> Result<Self, SelfTestError> {
        let pairs = PAIRS.map(|(query, document)| Pair {
            query: query.into(),
            document: document.into(),
        });
        let encoded = tokenized(|| encoder.encode(&pairs, &AtomicBool::new(false)))?;
        let encodings = encoded.into_iter().flat_map(EncodedPair::encodings);
        let encodings: Vec<Encoding> = encodings.collect();
        Ok(Self {
            batch: Batch::pack(&encodings),
            labels,
        })
    }

    /// Scores the pairs with `scorer`.
    ///
    /// # Errors
    /// [`SelfTestError`] if that fails, or if the scores are unusable.
    pub fn run(&self, scorer: &mut dyn Scorer) -> Result<(), SelfTestError> {
        let logits = scorer.score(&self.batch);
        self.check(&logits.map_err(|error| SelfTestError::Score(error.to_string()))?)
    }

    /// Checks `logits`, `[pairs, labels]`, row-major.
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

/// Runs `encode`. With a damaged `tokenizer.json`, the tokenizer may panic on some texts.
fn tokenized(
    encode: impl FnOnce() -> Result<Vec<EncodedPair>, EncodeError>,
) -> Result<Vec<EncodedPair>, SelfTestError> {
    match catch_unwind(AssertUnwindSafe(encode)) {
        Ok(encoded) => Ok(encoded?),
        Err(panic) => Err(SelfTestError::Encode(message(&*panic).to_owned())),
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
    fn a_tokenizer_that_panics_ends_the_start_with_an_error() {
        let error = tokenized(|| panic!("damaged")).unwrap_err();
        assert_eq!(error, SelfTestError::Encode("damaged".to_owned()));
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
