//! Estimates the tokens of texts before they are tokenized.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::cost::Work;
use rerankd_core::Pair;

/// Tokens per byte of English text, before anything has been measured.
const INITIAL_DENSITY: f64 = 0.25;
/// Weight of the newest request in the running density.
const DENSITY_WEIGHT: f64 = 0.1;

/// Estimates tokens from bytes by the density of recent texts.
#[derive(Debug)]
pub(crate) struct TokenEstimator {
    max_length: usize,
    /// Tokens per byte of text, as the bits of an `f64`. A lost update is harmless.
    density: AtomicU64,
}

impl TokenEstimator {
    /// A sequence never counts more than `max_length` tokens.
    pub fn new(max_length: usize) -> Self {
        Self {
            max_length,
            density: AtomicU64::new(INITIAL_DENSITY.to_bits()),
        }
    }

    /// The work of `pairs`, each read in at most `chunks` parts.
    pub fn work(&self, pairs: &[Pair], chunks: usize) -> Work {
        let most = self.max_length.saturating_mul(chunks);
        let density = f64::from_bits(self.density.load(Ordering::Relaxed));
        let work = |pair: &Pair| {
            let tokens = ((pair.bytes() as f64 * density) as usize).clamp(1, most.max(1));
            let parts = tokens.div_ceil(self.max_length.max(1)).max(1);
            Work {
                sequences: parts,
                tokens,
                squares: (tokens as u64).pow(2) / parts as u64,
            }
        };
        pairs
            .iter()
            .map(work)
            .fold(Work::default(), |sum, work| sum + work)
    }

    /// Learns that `bytes` of text became `tokens`. Truncated text must not be counted: the tokens of
    /// the rest are unknown.
    pub fn observe(&self, bytes: usize, tokens: usize) {
        if bytes > 0 {
            let density = f64::from_bits(self.density.load(Ordering::Relaxed));
            let newest = tokens as f64 / bytes as f64;
            let mixed = density + DENSITY_WEIGHT * (newest - density);
            self.density.store(mixed.to_bits(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(count: usize, bytes: usize) -> Vec<Pair> {
        vec![
            Pair {
                query: "".into(),
                document: "x".repeat(bytes).into(),
            };
            count
        ]
    }

    #[test]
    fn a_pair_counts_at_most_the_length_of_its_parts() {
        let estimator = TokenEstimator::new(512);
        let one = estimator.work(&pairs(1000, 1 << 16), 1);
        assert_eq!((one.sequences, one.tokens), (1000, 512_000));
        let parts = estimator.work(&pairs(1, 1 << 16), 4);
        assert_eq!((parts.sequences, parts.tokens), (4, 4 * 512));
        assert_eq!(estimator.work(&pairs(1, 400), 1), Work::of(100));
    }

    #[test]
    fn the_density_of_text_is_learned() {
        let estimator = TokenEstimator::new(512);
        for _ in 0..100 {
            estimator.observe(100, 100);
        }
        assert!(estimator.work(&pairs(1, 100), 1).tokens > 90);
    }
}
