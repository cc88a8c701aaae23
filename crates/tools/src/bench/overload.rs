//! Goodput and refusals under a load beyond the capacity. Pure.

use std::time::Duration;

use serde::Serialize;

use super::record::{Outcome, Sample, Summary, Window};

/// Longest refusal (p99.9): a client can try another server at once.
const REFUSAL_LIMIT_MS: f64 = 20.0;
/// Lowest goodput, as a fraction of the capacity.
const GOODPUT_LIMIT: f64 = 0.95;

/// The results of an overload.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overload {
    /// Scored documents per second without overload.
    pub capacity_pairs_per_second: f64,
    /// Requests sent per second.
    pub offered_requests_per_second: f64,
    /// Their results.
    pub outcome: Summary,
    /// Scored documents per second, from the first request to the last response.
    pub goodput_pairs_per_second: f64,
    /// The same, as a fraction of the capacity.
    pub goodput: f64,
    /// Whether there was no error except 429, refusals were fast, and goodput was high.
    pub kept: bool,
}

impl Overload {
    /// Compares `samples`, sent at `rate` requests per second within `window`, with the capacity.
    pub fn of(capacity: &Summary, rate: f64, samples: &[Sample], window: Window) -> Self {
        let outcome = Summary::of(samples, window);
        let answered = || {
            let answered = |sample: &&Sample| matches!(sample.outcome, Outcome::Answered { .. });
            samples.iter().filter(answered)
        };
        let pairs: u64 = answered().map(|sample| sample.pairs).sum();
        // Requests that were accepted late are answered after the window, and that time counts too.
        let busy = answered()
            .map(|sample| sample.done)
            .max()
            .unwrap_or(Duration::ZERO);
        let goodput_pairs_per_second = match busy {
            Duration::ZERO => 0.0,
            busy => pairs as f64 / busy.max(window.end).as_secs_f64(),
        };
        let goodput = if capacity.pairs_per_second > 0.0 {
            goodput_pairs_per_second / capacity.pairs_per_second
        } else {
            0.0
        };
        Self {
            capacity_pairs_per_second: capacity.pairs_per_second,
            offered_requests_per_second: rate,
            goodput_pairs_per_second,
            goodput,
            kept: outcome.failed() == 0
                && outcome.answered() > 0
                && outcome.refusal_ms.p99_9 <= REFUSAL_LIMIT_MS
                && goodput >= GOODPUT_LIMIT,
            outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn sample(sent: u32, takes: Duration, status: u16) -> Sample {
        Sample {
            intended: SECOND * sent,
            sent: SECOND * sent,
            done: SECOND * sent + takes,
            outcome: match status {
                200 => Outcome::Answered { tokens: None },
                _ => Outcome::Status {
                    status,
                    reason: String::new(),
                    retry_after: None,
                },
            },
            pairs: 10,
            tokens: 0,
        }
    }

    fn judge(samples: &[Sample]) -> Overload {
        let window = Window::new(Duration::ZERO, SECOND * 10);
        // The capacity is ten pairs per second.
        let capacity: Vec<Sample> = (0..10).map(|n| sample(n, SECOND, 200)).collect();
        Overload::of(&Summary::of(&capacity, window), 10.0, samples, window)
    }

    fn good() -> Vec<Sample> {
        let answered = (0..10).map(|n| sample(n, SECOND, 200));
        let refused = (0..10).map(|n| sample(n, SECOND / 100, 429));
        answered.chain(refused).collect()
    }

    #[test]
    fn answers_and_fast_refusals_pass() {
        let overload = judge(&good());
        assert!(overload.kept, "{overload:?}");
        assert!((overload.goodput - 1.0).abs() < 1e-9);
    }

    #[test]
    fn anything_else_fails() {
        for bad in [
            vec![sample(1, SECOND / 1000, 503)],
            // Refused late.
            vec![sample(1, SECOND / 10, 429)],
            // Answered so late that the capacity was not used.
            vec![sample(9, SECOND * 11, 200)],
        ] {
            let samples: Vec<Sample> = good().into_iter().chain(bad).collect();
            assert!(!judge(&samples).kept, "{:?}", samples.last());
        }
        assert!(!judge(&[]).kept);
    }
}
