//! Batches that the memory of a device does not hold are split, and what is tried next is smaller.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{ScoreError, Scorer};
use rerankd_core::Batch;
use rerankd_model::graph::cuda::{ALIGNMENT, Added, MAX_ELEMENTS};

/// Why a run gave no logits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunError {
    /// The device has not the memory for it; smaller batches may fit.
    OutOfMemory(String),
    /// Anything else.
    Failed(String),
}

/// What runs a batch on a device as it is.
pub trait Runner: Send {
    /// Logits of every sequence, as [`Scorer::score`].
    ///
    /// # Errors
    /// [`RunError`]; the runner stays usable.
    fn run(&mut self, batch: &Batch) -> Result<Vec<f32>, RunError>;
}

/// Bytes that a batch needs on a device beside the weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Need {
    /// Of each token.
    pub per_token: u64,
    /// Of each cell of a batch that is padded to its longest sequence; 0 where nothing is padded.
    pub per_cell: u64,
    /// Of each pair of cells of the longest sequence, once for the batch: what is added to scores.
    pub once_per_square: u64,
    /// Of each pair of cells of a batch that is padded to its longest sequence: what is added to scores.
    pub padded_per_square: u64,
    /// Of each pair of tokens of a batch that is padded to its longest sequence; 0 where attention
    /// never lies in memory.
    pub per_square: u64,
    /// Longest sequence of the batches that need memory for those pairs.
    pub squares_up_to: usize,
    /// What is added to scores, of which no tensor may have more than [`MAX_ELEMENTS`].
    pub added: Added,
}

impl Need {
    /// Bytes for `batch`.
    pub fn of(&self, batch: &Batch) -> u64 {
        let (longest, sequences) = (batch.longest() as u64, batch.sequences() as u64);
        let square = longest.pow(2);
        let squares = match batch.longest() <= self.squares_up_to {
            true => sequences * square,
            false => 0,
        };
        self.per_token * batch.tokens() as u64
            + self.per_cell * sequences * longest
            + self.once_per_square * square
            + self.padded_per_square * sequences * square
            + self.per_square * squares
    }

    /// Whether kernels can index every tensor of `batch`.
    fn is_indexable(&self, batch: &Batch) -> bool {
        let longest = batch.longest().next_multiple_of(ALIGNMENT);
        self.added.max_elements(batch.sequences(), longest) <= MAX_ELEMENTS
    }
}

/// Bytes that batches may take, for all scorers of a device.
#[derive(Debug)]
pub struct Budget(AtomicU64);

/// What is left of the need of a batch that did not fit: the next one is this much smaller.
const SHRUNK: (u64, u64) = (3, 4);

impl Budget {
    /// Starts with `bytes`.
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(bytes)))
    }

    /// Bytes at present.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Learns that a batch of `need` bytes did not fit.
    fn shrink(&self, need: u64) {
        let (part, whole) = SHRUNK;
        self.0.fetch_min(need / whole * part, Ordering::Relaxed);
    }
}

/// A [`Scorer`] that keeps within a [`Budget`].
pub struct Splitting<R> {
    runner: R,
    need: Need,
    budget: Arc<Budget>,
}

impl<R: Runner> Splitting<R> {
    /// Runs batches on `runner`, whose memory `budget` bounds.
    pub fn new(runner: R, need: Need, budget: Arc<Budget>) -> Self {
        Self {
            runner,
            need,
            budget,
        }
    }

    /// Logits of `batch`, of its halves where it does not fit.
    fn part(&mut self, batch: &Batch) -> Result<Vec<f32>, ScoreError> {
        let need = self.need.of(batch);
        let alone = batch.sequences() == 1;
        // A sequence that is alone is tried whatever the budget says: nothing can be split off.
        if (need <= self.budget.bytes() && self.need.is_indexable(batch)) || alone {
            match self.runner.run(batch) {
                Ok(logits) => return Ok(logits),
                Err(RunError::Failed(reason)) => return Err(ScoreError(reason)),
                Err(RunError::OutOfMemory(reason)) if alone => {
                    let tokens = batch.tokens();
                    return Err(ScoreError(format!(
                        "the device has no memory for a sequence of {tokens} tokens: {reason}"
                    )));
                }
                Err(RunError::OutOfMemory(reason)) => {
                    self.budget.shrink(need);
                    tracing::warn!(
                        reason,
                        pairs = batch.sequences(),
                        tokens = batch.tokens(),
                        budget_bytes = self.budget.bytes(),
                        "a batch did not fit into the device's memory; it is split, and later ones are smaller"
                    );
                }
            }
        }
        let (first, second) = batch.halves();
        let mut logits = self.part(&first)?;
        logits.extend(self.part(&second)?);
        Ok(logits)
    }
}

impl<R: Runner> Scorer for Splitting<R> {
    fn score(&mut self, batch: &Batch) -> Result<Vec<f32>, ScoreError> {
        match batch.sequences() {
            0 => Ok(Vec::new()),
            _ => self.part(batch),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rerankd_core::Encoding;

    /// Has memory for so many tokens, and says of each sequence what its first token is.
    struct Small {
        tokens: usize,
        runs: Vec<usize>,
    }

    impl Runner for Small {
        fn run(&mut self, batch: &Batch) -> Result<Vec<f32>, RunError> {
            self.runs.push(batch.tokens());
            if batch.tokens() > self.tokens {
                return Err(RunError::OutOfMemory("full".into()));
            }
            if batch.ids().contains(&666) {
                return Err(RunError::Failed("broken".into()));
            }
            let mut first = 0;
            let heads = batch.lengths().iter().map(|length| {
                let id = batch.ids()[first];
                first += length;
                id as f32
            });
            Ok(heads.collect())
        }
    }

    const NEED: Need = Need {
        per_token: 10,
        per_cell: 0,
        once_per_square: 0,
        padded_per_square: 0,
        per_square: 0,
        squares_up_to: 0,
        added: Added::Nothing,
    };

    fn batch(lengths: &[usize]) -> Batch {
        let encodings: Vec<Encoding> = lengths
            .iter()
            .enumerate()
            .map(|(i, &length)| Encoding {
                ids: vec![i as u32; length],
                type_ids: vec![0; length],
            })
            .collect();
        Batch::pack(&encodings)
    }

    fn scorer(tokens: usize, budget: u64) -> Splitting<Small> {
        let runner = Small {
            tokens,
            runs: Vec::new(),
        };
        Splitting::new(runner, NEED, Budget::new(budget))
    }

    #[test]
    fn what_does_not_fit_is_split_and_answered_in_order() {
        let mut scorer = scorer(100, u64::MAX);
        let logits = scorer.score(&batch(&[40, 30, 50, 20, 60, 10])).unwrap();
        assert_eq!(logits, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        // 210 did not fit, nor did a half of 120; what did is at most 100.
        assert!(scorer.budget.bytes() <= 120 * 10 * 3 / 4);
    }

    #[test]
    fn what_was_learnt_is_not_tried_again() {
        let mut scorer = scorer(100, u64::MAX);
        scorer.score(&batch(&[30; 8])).unwrap();
        let failed = |runs: &[usize]| runs.iter().filter(|&&tokens| tokens > 100).count();
        assert!(failed(&scorer.runner.runs) > 0);
        scorer.runner.runs.clear();
        for _ in 0..5 {
            assert_eq!(scorer.score(&batch(&[30; 8])).unwrap().len(), 8);
        }
        assert_eq!(failed(&scorer.runner.runs), 0);
    }

    #[test]
    fn a_budget_is_kept_without_trying() {
        let mut scorer = scorer(usize::MAX, 1000);
        assert_eq!(scorer.score(&batch(&[30; 8])).unwrap().len(), 8);
        assert!(scorer.runner.runs.iter().all(|&tokens| tokens <= 100));
    }

    #[test]
    fn a_sequence_that_is_alone_is_tried_and_its_failure_is_its_own() {
        let mut scorer = scorer(100, 10);
        assert_eq!(scorer.score(&batch(&[90])).unwrap(), [0.0]);
        let error = scorer.score(&batch(&[101])).unwrap_err().to_string();
        assert!(error.contains("101 tokens"), "{error}");
        assert_eq!(scorer.score(&batch(&[90, 80])).unwrap(), [0.0, 1.0]);
        assert_eq!(scorer.score(&Batch::default()).unwrap(), [0.0; 0]);
    }

    #[test]
    fn other_failures_are_not_tried_again() {
        let mut scorer = scorer(100, u64::MAX);
        let broken = Batch::pack(&[Encoding {
            ids: vec![666; 3],
            type_ids: vec![0; 3],
        }]);
        assert_eq!(scorer.score(&broken).unwrap_err().to_string(), "broken");
        assert_eq!(scorer.runner.runs, [3]);
    }

    #[test]
    fn attention_in_memory_counts_as_padded() {
        let need = Need {
            per_token: 1,
            per_square: 2,
            squares_up_to: 255,
            ..Need::default()
        };
        assert_eq!(need.of(&batch(&[10, 5, 5])), 20 + 2 * 3 * 100);
        assert_eq!(need.of(&batch(&[256])), 256);
    }

    #[test]
    fn padded_rows_and_what_is_added_to_scores_count() {
        let need = Need {
            per_cell: 3,
            once_per_square: 5,
            padded_per_square: 7,
            ..Need::default()
        };
        assert_eq!(
            need.of(&batch(&[10, 5])),
            3 * 2 * 10 + 5 * 100 + 7 * 2 * 100
        );
    }

    #[test]
    fn a_batch_with_too_large_tensors_is_split() {
        let mut scorer = scorer(usize::MAX, u64::MAX);
        // Two sequences of 16 tokens have as many elements as are allowed.
        let heads = MAX_ELEMENTS / (2 * 16 * 16);
        scorer.need.added = Added::PerHead { heads, buckets: 2 };
        scorer.score(&batch(&[16, 16, 16, 16])).unwrap();
        assert_eq!(scorer.runner.runs, [32, 32]);
        scorer.score(&batch(&[17, 1])).unwrap();
        assert_eq!(scorer.runner.runs[2..], [17, 1]);
    }
}
