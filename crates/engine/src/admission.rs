//! Decides, before any work is done, whether a request may enter.
//!
//! A request enters whole or not at all, on an estimate of its tokens that is corrected once they
//! are counted. What was admitted is never revoked. While fewer tokens are outstanding than the
//! capacity, the next request enters however large it is: nothing within the limits of a request is
//! refused for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::IntGauge;

use crate::cost::{Work, duration};
use rerankd_core::{Pair, RerankError};

/// Seconds a token takes before anything has been measured: a small model on one slow core.
const INITIAL_PACE: f64 = 1e-3;
/// Longest that a client is sent away for.
const MOST_SECONDS: f64 = 3600.0;
/// Tokens a byte of English text, before anything has been measured.
const INITIAL_DENSITY: f64 = 0.25;
/// Weight of the newest request in the running density.
const DENSITY_WEIGHT: f64 = 0.1;

/// Counts what was admitted and not yet scored.
#[derive(Debug)]
pub struct Admission {
    capacity_tokens: usize,
    max_length: usize,
    outstanding_tokens: AtomicUsize,
    /// Seconds that a token takes all workers together, as the bits of an `f64`.
    pace: AtomicU64,
    /// Tokens a byte of text, as the bits of an `f64`. Only an estimate: a lost update is harmless.
    density: AtomicU64,
    gauge: IntGauge,
}

impl Admission {
    /// `capacity_tokens` may be outstanding before requests are refused; a pair never counts more
    /// than `max_length` tokens. `gauge` shows what is outstanding.
    pub fn new(capacity_tokens: usize, max_length: usize, gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self {
            capacity_tokens,
            max_length,
            outstanding_tokens: AtomicUsize::new(0),
            pace: AtomicU64::new(INITIAL_PACE.to_bits()),
            density: AtomicU64::new(INITIAL_DENSITY.to_bits()),
            gauge,
        })
    }

    /// Lets all of `pairs` in, or none of them. Each is read in at most `chunks` parts.
    ///
    /// # Errors
    /// [`rerankd_core::ErrorCode::Overloaded`], with the time until there is room.
    pub fn admit(self: &Arc<Self>, pairs: &[Pair], chunks: usize) -> Result<Permit, RerankError> {
        let work = self.estimate(pairs, chunks);
        let estimate = work.tokens;
        self.outstanding_tokens
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |outstanding| {
                (outstanding < self.capacity_tokens).then_some(outstanding + estimate)
            })
            .map_err(|outstanding| RerankError::overloaded(self.time_to_room(outstanding)))?;
        self.gauge.add(estimate as i64);
        Ok(Permit {
            admission: self.clone(),
            tokens: estimate,
            work,
        })
    }

    /// Tokens admitted and not yet scored.
    pub fn outstanding_tokens(&self) -> usize {
        self.outstanding_tokens.load(Ordering::Relaxed)
    }

    /// Tells how many seconds a token takes all workers together.
    pub fn set_pace(&self, seconds: f64) {
        self.pace.store(seconds.to_bits(), Ordering::Relaxed);
    }

    /// Learns how many `tokens` came of `bytes` of text. Text that was cut says nothing: nobody
    /// counts what is not read of it.
    pub fn observe_density(&self, bytes: usize, tokens: usize) {
        if bytes > 0 {
            let density = f64::from_bits(self.density.load(Ordering::Relaxed));
            let newest = tokens as f64 / bytes as f64;
            let mixed = density + DENSITY_WEIGHT * (newest - density);
            self.density.store(mixed.to_bits(), Ordering::Relaxed);
        }
    }

    fn estimate(&self, pairs: &[Pair], chunks: usize) -> Work {
        let most = self.max_length.saturating_mul(chunks);
        let density = f64::from_bits(self.density.load(Ordering::Relaxed));
        let tokens = |pair: &Pair| ((pair.bytes() as f64 * density) as usize).clamp(1, most);
        let sequence = |tokens: usize| {
            // Parts of a document that is read in several.
            let parts = tokens.div_ceil(self.max_length).max(1);
            Work {
                sequences: parts,
                tokens,
                squares: (tokens as u64).pow(2) / parts as u64,
            }
        };
        let works = pairs.iter().map(|pair| sequence(tokens(pair)));
        works.fold(Work::default(), |sum, work| sum + work)
    }

    fn time_to_room(&self, outstanding: usize) -> Duration {
        let excess = (outstanding + 1).saturating_sub(self.capacity_tokens);
        let pace = f64::from_bits(self.pace.load(Ordering::Relaxed));
        duration((excess as f64 * pace).min(MOST_SECONDS))
    }

    fn release(&self, tokens: usize) {
        self.outstanding_tokens.fetch_sub(tokens, Ordering::Relaxed);
        self.gauge.sub(tokens as i64);
    }
}

/// The right of one request to be scored. Dropping it gives back what is left of it.
#[derive(Debug)]
#[must_use = "dropping a permit gives it back"]
pub struct Permit {
    admission: Arc<Admission>,
    tokens: usize,
    work: Work,
}

impl Permit {
    /// The work that the request was taken for when it was admitted.
    pub fn estimated(&self) -> Work {
        self.work
    }

    /// Replaces the estimate by the counted number of tokens.
    pub fn correct(&mut self, tokens: usize) {
        if tokens >= self.tokens {
            let more = tokens - self.tokens;
            self.admission
                .outstanding_tokens
                .fetch_add(more, Ordering::Relaxed);
            self.admission.gauge.add(more as i64);
        } else {
            self.admission.release(self.tokens - tokens);
        }
        self.tokens = tokens;
    }

    /// Gives back `tokens` that have been scored.
    pub fn spend(&mut self, tokens: usize) {
        let tokens = tokens.min(self.tokens);
        self.admission.release(tokens);
        self.tokens -= tokens;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.release(self.tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rerankd_core::ErrorCode;

    fn admission(capacity_tokens: usize) -> Arc<Admission> {
        let gauge = IntGauge::new("queue_tokens", "test").unwrap();
        Admission::new(capacity_tokens, 512, gauge)
    }

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
    fn an_empty_queue_admits_a_request_of_any_size() {
        let admission = admission(1);
        let permit = admission.admit(&pairs(1000, 1 << 16), 1).unwrap();
        assert_eq!(admission.outstanding_tokens(), 512_000);
        drop(permit);
        assert_eq!(admission.outstanding_tokens(), 0);
    }

    #[test]
    fn a_full_queue_refuses_and_says_when_to_come_back() {
        let admission = admission(100);
        let mut permit = admission.admit(&pairs(1, 2048), 1).unwrap();
        let error = admission.admit(&pairs(1, 4), 1).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Overloaded);
        assert!(error.retry_after().unwrap() > Duration::ZERO);
        permit.spend(413);
        let _permit = admission
            .admit(&pairs(1, 4), 1)
            .expect("99 of 100 outstanding");
    }

    #[test]
    fn the_estimate_is_corrected_both_ways() {
        let admission = admission(1000);
        let mut permit = admission.admit(&pairs(1, 400), 1).unwrap();
        assert_eq!(admission.outstanding_tokens(), 100);
        permit.correct(300);
        assert_eq!(admission.outstanding_tokens(), 300);
        permit.correct(20);
        assert_eq!(admission.outstanding_tokens(), 20);
        drop(permit);
        assert_eq!(admission.outstanding_tokens(), 0);
    }

    #[test]
    fn the_density_of_text_is_learnt() {
        let admission = admission(1000);
        for _ in 0..100 {
            admission.observe_density(100, 100);
        }
        let _permit = admission.admit(&pairs(1, 100), 1).unwrap();
        assert!(admission.outstanding_tokens() > 90);
    }
}
