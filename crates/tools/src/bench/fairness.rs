//! How small and large requests affect each other. Pure.

use serde::Serialize;

use super::record::{Latency, Summary};

/// How far the median of the small client may grow next to one bulk client.
const MEDIAN_MS_BESIDE_ONE: f64 = 40.0;
/// How far it may grow next to [`MANY`] bulk clients or more.
const MEDIAN_MS_BESIDE_MANY: f64 = 60.0;
/// Number of bulk clients from which the limit of the median no longer grows.
const MANY: usize = 8;
/// How far the 99th percentile may grow, however many bulk clients there are.
const P99_MS: f64 = 100.0;

/// The latency of a small client, alone and next to bulk clients.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fairness {
    /// The small client alone.
    pub idle: Summary,
    /// One for each number of bulk clients.
    pub rounds: Vec<Round>,
    /// Whether every round kept its limits.
    pub kept: bool,
}

/// A small client next to a number of bulk clients.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Round {
    /// Number of bulk clients.
    pub bulk_clients: usize,
    /// Requests of the small client that were answered.
    pub answered: u64,
    /// Requests of the small client that were refused with 429.
    pub refused: u64,
    /// Highest median latency allowed for the small client.
    pub median_limit_ms: f64,
    /// Highest 99th percentile allowed for the small client.
    pub p99_limit_ms: f64,
    /// Whether every request of the small client was answered, and both limits hold.
    pub kept: bool,
    /// The small client.
    pub small: Summary,
    /// Requests of the bulk clients that were refused with 429.
    pub bulk_refused: u64,
    /// The bulk clients together.
    pub bulk: Summary,
}

impl Fairness {
    /// Compares each round, given as bulk clients, small client and bulk summary, with `idle`.
    pub fn new(idle: Summary, rounds: Vec<(usize, Summary, Summary)>) -> Self {
        let rounds: Vec<Round> = rounds
            .into_iter()
            .map(|(clients, small, bulk)| Round::new(&idle.latency_ms, clients, small, bulk))
            .collect();
        Self {
            kept: rounds.iter().all(|round| round.kept),
            idle,
            rounds,
        }
    }
}

impl Round {
    fn new(idle: &Latency, bulk_clients: usize, small: Summary, bulk: Summary) -> Self {
        let median_limit_ms = idle.p50 + median_growth_ms(bulk_clients);
        let p99_limit_ms = idle.p99 + P99_MS;
        let latency = &small.latency_ms;
        Self {
            bulk_clients,
            answered: small.answered(),
            refused: small.refused(),
            median_limit_ms,
            p99_limit_ms,
            kept: small.answered() > 0
                && small.answered() == small.requests()
                && latency.p50 <= median_limit_ms
                && latency.p99 <= p99_limit_ms,
            bulk_refused: bulk.refused(),
            small,
            bulk,
        }
    }
}

/// Linear from one bulk client to [`MANY`], and constant beyond.
fn median_growth_ms(bulk_clients: usize) -> f64 {
    let part = bulk_clients.clamp(1, MANY) - 1;
    let growth = MEDIAN_MS_BESIDE_MANY - MEDIAN_MS_BESIDE_ONE;
    MEDIAN_MS_BESIDE_ONE + growth * part as f64 / (MANY - 1) as f64
}

/// The latency of bulk requests, alone and next to a stream of small ones.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stream {
    /// Number of small clients in the stream.
    pub small_clients: usize,
    /// The bulk client alone.
    pub idle: Summary,
    /// The bulk client next to the stream.
    pub beside: Summary,
    /// The small clients together.
    pub small: Summary,
    /// Median latency of the bulk client next to the stream, divided by that alone. `None` if one of
    /// them has no response.
    pub slowdown: Option<f64>,
}

impl Stream {
    /// Compares the bulk client next to the stream with the bulk client alone.
    pub fn new(small_clients: usize, idle: Summary, beside: Summary, small: Summary) -> Self {
        let measured = idle.latency_ms.count > 0 && beside.latency_ms.count > 0;
        Self {
            slowdown: measured.then(|| beside.latency_ms.p50 / idle.latency_ms.p50),
            small_clients,
            idle,
            beside,
            small,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::record::{Outcome, Sample, Window};

    fn summary(latencies: &[u64], refused: usize) -> Summary {
        let answered = latencies
            .iter()
            .map(|ms| (*ms, Outcome::Answered { tokens: None }));
        let refusal = Outcome::Status {
            status: 429,
            reason: "overloaded".to_owned(),
            retry_after: None,
        };
        let samples: Vec<Sample> = answered
            .chain((0..refused).map(|_| (1, refusal.clone())))
            .map(|(ms, outcome)| Sample {
                intended: Duration::ZERO,
                sent: Duration::ZERO,
                done: Duration::from_millis(ms),
                outcome,
                pairs: 8,
                tokens: 100,
            })
            .collect();
        Summary::of(
            &samples,
            Window::new(Duration::ZERO, Duration::from_secs(1)),
        )
    }

    fn round(bulk_clients: usize, small: Summary) -> Round {
        let rounds = vec![(bulk_clients, small, summary(&[400], 2))];
        Fairness::new(summary(&[50; 10], 0), rounds)
            .rounds
            .remove(0)
    }

    #[test]
    fn the_median_may_grow_with_the_number_of_bulk_clients() {
        for (clients, limit) in [(1, 90.0), (3, 95.714), (8, 110.0), (20, 110.0)] {
            let found = round(clients, summary(&[50], 0)).median_limit_ms;
            assert!((found - limit).abs() < 0.1, "{clients}: {found}");
        }
    }

    #[test]
    fn a_slow_median_or_tail_or_a_refusal_breaks_the_limits() {
        let kept = |small| round(1, small).kept;
        assert!(kept(summary(&[89; 10], 0)));
        assert!(!kept(summary(&[95; 10], 0)));
        assert!(!kept(summary(&[60, 60, 60, 160], 0)), "the tail");
        assert!(!kept(summary(&[60; 10], 1)), "a refusal");
        assert!(!kept(summary(&[], 0)), "no response");
    }

    #[test]
    fn one_broken_round_breaks_the_whole() {
        let bulk = || summary(&[400], 2);
        let rounds = vec![
            (1, summary(&[60; 10], 0), bulk()),
            (8, summary(&[300; 10], 3), bulk()),
        ];
        let fairness = Fairness::new(summary(&[50; 10], 0), rounds);
        assert!(!fairness.kept);
        let [first, second] = &fairness.rounds[..] else {
            panic!("two rounds: {fairness:?}");
        };
        assert!(first.kept && !second.kept);
        assert_eq!((second.answered, second.refused), (10, 3));
        assert_eq!(second.bulk_refused, 2);
    }

    #[test]
    fn the_slowdown_is_a_ratio_of_medians() {
        let of = |idle: &[u64], beside: &[u64]| {
            Stream::new(4, summary(idle, 0), summary(beside, 0), summary(&[5], 0)).slowdown
        };
        let slowdown = of(&[100, 100, 900], &[150, 150]).unwrap();
        assert!((slowdown - 1.5).abs() < 0.01, "{slowdown}");
        assert_eq!(of(&[100], &[]), None);
    }
}
