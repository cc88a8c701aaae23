//! Estimates the tokens of texts before they are tokenized.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::cost::Work;
use rerankd_core::Pair;

/// Tokens per byte of English text, before anything has been measured.
const INITIAL_DENSITY: f64 = 0.25;
/// Maximum tokens per byte that can be learned, so that no request spoils the estimates of others.
const MAX_DENSITY: f64 = 1.5;
/// Weight of the newest request in the running density.
const DENSITY_WEIGHT: f64 = 0.1;

/// Estimates tokens from bytes by the density of recent texts.
#[derive(Debug)]
pub(crate) struct TokenEstimator {
    max_length: usize,
    /// Whether what the pairs of a request begin with is computed once.
    shares_prefixes: bool,
    /// Tokens per byte of text, as the bits of an `f64`. A lost update is harmless.
    density: AtomicU64,
}

impl TokenEstimator {
    /// A sequence counts as at most `max_length` tokens. With `shares_prefixes`, what the pairs of a request
    /// begin with counts once.
    pub fn new(max_length: usize, shares_prefixes: bool) -> Self {
        Self {
            max_length,
            shares_prefixes,
            density: AtomicU64::new(INITIAL_DENSITY.to_bits()),
        }
    }

    /// The work of `pairs`, each split into at most `chunks` parts, each of which has `overhead` bytes besides its
    /// text.
    pub fn work(&self, pairs: &[Pair], overhead: usize, chunks: usize) -> Work {
        let density = f64::from_bits(self.density.load(Ordering::Relaxed));
        let tokens_of = |bytes: usize| (bytes as f64 * density) as usize;
        let overhead = tokens_of(overhead).min(self.max_length.saturating_sub(1));
        let room = (self.max_length - overhead).max(1);
        let shared = |pair: &Pair| match pairs.first() {
            Some(first) if self.shares_prefixes && pair.query == first.query => {
                overhead + tokens_of(pair.query.len())
            }
            _ => 0,
        };
        let work = |(index, pair): (usize, &Pair)| {
            let text = tokens_of(pair.bytes());
            let parts = text.div_ceil(room).clamp(1, chunks);
            let tokens = (overhead * parts + text).clamp(1, (self.max_length * parts).max(1));
            let known = if index == 0 { 0 } else { shared(pair) };
            let tokens = tokens.saturating_sub(known).max(1);
            Work {
                sequences: parts,
                tokens,
                squares: (tokens as u64).pow(2) / parts as u64,
            }
        };
        pairs
            .iter()
            .enumerate()
            .map(work)
            .fold(Work::default(), |sum, work| sum + work)
    }

    /// Learns that `bytes`, overhead included, became `tokens`. Truncated texts must not be passed: the number of
    /// tokens in the rest is unknown.
    pub fn observe(&self, bytes: usize, tokens: usize) {
        if bytes > 0 {
            let density = f64::from_bits(self.density.load(Ordering::Relaxed));
            let newest = (tokens as f64 / bytes as f64).min(MAX_DENSITY);
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
    fn what_all_pairs_begin_with_counts_once_where_it_is_shared() {
        let pair = |query: &str, bytes| Pair {
            query: query.into(),
            document: "x".repeat(bytes).into(),
        };
        let query = "q".repeat(80);
        let pairs = [pair(&query, 400), pair(&query, 200), pair("other", 15)];
        let work = |shares| TokenEstimator::new(512, shares).work(&pairs, 40, 1);
        assert_eq!(work(false), Work::all([130, 80, 15]));
        // The second pair leaves out 10 tokens beside its texts and 20 of its query.
        assert_eq!(work(true), Work::all([130, 50, 15]));
    }

    #[test]
    fn a_pair_counts_at_most_the_length_of_its_parts() {
        let estimator = TokenEstimator::new(512, false);
        let one = estimator.work(&pairs(1000, 1 << 16), 0, 1);
        assert_eq!((one.sequences, one.tokens), (1000, 512_000));
        let parts = estimator.work(&pairs(1, 1 << 16), 0, 4);
        assert_eq!((parts.sequences, parts.tokens), (4, 4 * 512));
        assert_eq!(estimator.work(&pairs(1, 400), 0, 1), Work::of(100));
    }

    #[test]
    fn each_part_counts_what_is_beside_its_text() {
        let estimator = TokenEstimator::new(512, false);
        assert_eq!(estimator.work(&pairs(1, 400), 800, 1), Work::of(300));
        // 400 tokens, with room for 112 in each part.
        let parts = estimator.work(&pairs(1, 1600), 1600, 9);
        assert_eq!((parts.sequences, parts.tokens), (4, 4 * 400 + 400));
        let full = estimator.work(&pairs(1, 400), 1 << 20, 1);
        assert_eq!(full, Work::of(512));
    }

    /// A few bytes can become many tokens, as where characters are missing from a vocabulary.
    #[test]
    fn one_tenant_cannot_spoil_the_estimates_of_others() {
        let estimator = TokenEstimator::new(8192, false);
        for _ in 0..1000 {
            estimator.observe(2, 8000);
        }
        assert!(estimator.work(&pairs(1, 100), 0, 1).tokens <= 150);
    }

    #[test]
    fn the_density_of_text_is_learned() {
        let estimator = TokenEstimator::new(512, false);
        for _ in 0..100 {
            estimator.observe(100, 100);
        }
        assert!(estimator.work(&pairs(1, 100), 0, 1).tokens > 90);
    }
}
