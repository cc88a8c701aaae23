//! What a small client notices of a big one. Pure.

use std::time::Duration;

use serde::Serialize;

use super::record::Summary;

/// The figures of a small client by itself and beside a big one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fairness {
    /// The small client by itself.
    pub idle: Summary,
    /// The small client beside the big one.
    pub beside: Summary,
    /// The big one.
    pub bulk: Summary,
}

/// Whether the small client waited longer than it may.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Verdict {
    /// Longest median: alone, plus one batch of the other.
    pub median_limit_ms: f64,
    /// Longest 99th percentile: alone, plus two.
    pub p99_limit_ms: f64,
    /// Whether both were kept, by at least one answer.
    pub kept: bool,
}

impl Fairness {
    /// Judges by the longest time a batch may take.
    pub fn verdict(&self, batch: Duration) -> Verdict {
        let batch_ms = batch.as_secs_f64() * 1000.0;
        let (idle, beside) = (&self.idle.latency_ms, &self.beside.latency_ms);
        let median_limit_ms = idle.p50 + batch_ms;
        let p99_limit_ms = idle.p99 + 2.0 * batch_ms;
        Verdict {
            median_limit_ms,
            p99_limit_ms,
            kept: beside.count > 0 && beside.p50 <= median_limit_ms && beside.p99 <= p99_limit_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::{Outcome, Sample, Window};

    fn summary(latencies: &[u64]) -> Summary {
        let samples: Vec<Sample> = latencies
            .iter()
            .map(|ms| Sample {
                intended: Duration::ZERO,
                sent: Duration::ZERO,
                done: Duration::from_millis(*ms),
                outcome: Outcome::Answered { tokens: None },
                pairs: 8,
                tokens: 100,
            })
            .collect();
        Summary::of(
            &samples,
            Window::new(Duration::ZERO, Duration::from_secs(1)),
        )
    }

    #[track_caller]
    fn check(beside: &[u64], kept: bool) {
        let fairness = Fairness {
            idle: summary(&[50; 10]),
            beside: summary(beside),
            bulk: summary(&[]),
        };
        let verdict = fairness.verdict(Duration::from_millis(100));
        assert!((verdict.median_limit_ms - 150.0).abs() < 0.1);
        assert!((verdict.p99_limit_ms - 250.0).abs() < 0.1);
        assert_eq!(verdict.kept, kept, "{beside:?}");
    }

    #[test]
    fn one_batch_more_is_fair_and_a_longer_wait_is_not() {
        check(&[149; 10], true);
        check(&[160; 10], false);
        // The median is kept, the tail is not.
        check(&[100, 100, 100, 300], false);
        check(&[], false);
    }
}
