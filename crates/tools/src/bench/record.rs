//! Summarizes requests to latencies, throughput and status counts. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Highest latency of the histogram: an hour, in microseconds.
const LONGEST_US: u64 = 3_600_000_000;

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Answered.
    Answered {
        /// Number of tokens, if the response has it.
        tokens: Option<u64>,
    },
    /// Answered with an error status.
    Status {
        /// The HTTP status.
        status: u16,
        /// The `error_type` of the response; empty if it has none.
        reason: String,
        /// When to retry, if the response says so.
        retry_after: Option<Duration>,
    },
    /// No response, for this reason.
    Lost(String),
}

impl Outcome {
    /// The key that outcomes are counted by.
    fn key(&self) -> String {
        match self {
            Self::Answered { .. } => "200".to_owned(),
            Self::Status { status, reason, .. } if reason.is_empty() => status.to_string(),
            Self::Status { status, reason, .. } => format!("{status} {reason}"),
            Self::Lost(reason) => format!("lost: {reason}"),
        }
    }
}

/// One request. Times count from the start of the measurement.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When it was due.
    pub intended: Duration,
    /// When it was sent.
    pub sent: Duration,
    /// When it ended.
    pub done: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// Number of documents.
    pub pairs: u64,
    /// Number of tokens as generated; 0 if unknown.
    pub tokens: u64,
}

impl Sample {
    /// From when it was due, so that a client delayed by the server counts the delay.
    fn latency(&self) -> Duration {
        self.done.saturating_sub(self.intended)
    }

    /// The fraction of the request's time within `window`, 0 to 1.
    fn share(&self, window: Window) -> f64 {
        let begin = self.sent.max(window.begin);
        let end = self.done.min(window.end);
        let inside = end.saturating_sub(begin).as_secs_f64();
        let whole = self.done.saturating_sub(self.sent).as_secs_f64();
        if whole > 0.0 {
            inside / whole
        } else {
            f64::from(u8::from(window.holds(self.done)))
        }
    }
}

/// The measured interval, which follows the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// End of the warm-up.
    pub begin: Duration,
    /// End of the measurement.
    pub end: Duration,
}

impl Window {
    /// A measurement of `duration` after a warm-up.
    pub fn new(warm_up: Duration, duration: Duration) -> Self {
        Self {
            begin: warm_up,
            end: warm_up + duration,
        }
    }

    fn holds(self, time: Duration) -> bool {
        (self.begin..self.end).contains(&time)
    }

    fn seconds(self) -> f64 {
        self.end.saturating_sub(self.begin).as_secs_f64()
    }
}

/// Percentiles of latencies, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Number of latencies.
    pub count: u64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p99_9: f64,
    /// Maximum.
    pub max: f64,
    /// Mean.
    pub mean: f64,
}

impl Latency {
    /// The percentiles of `latencies`, to three significant digits.
    pub fn of(latencies: impl IntoIterator<Item = Duration>) -> Self {
        let mut histogram =
            Histogram::<u64>::new_with_bounds(1, LONGEST_US, 3).expect("valid bounds");
        for latency in latencies {
            histogram.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        }
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        if histogram.is_empty() {
            return Self::default();
        }
        Self {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p99_9: at(0.999),
            max: at(1.0),
            mean: histogram.mean() / 1000.0,
        }
    }
}

/// The results of one measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Duration of the measurement.
    pub seconds: f64,
    /// Number of requests that were due within the window, by status and reason.
    pub statuses: BTreeMap<String, u64>,
    /// Latency of answered requests, from when each was due.
    pub latency_ms: Latency,
    /// Latency of requests that were refused with 429.
    pub refusal_ms: Latency,
    /// Answered requests per second.
    pub requests_per_second: f64,
    /// Scored documents per second.
    pub pairs_per_second: f64,
    /// Scored tokens per second, if the responses or the texts have their number.
    pub tokens_per_second: Option<f64>,
}

impl Summary {
    /// Latencies are of the requests that were due within `window`. Throughput is the work done within
    /// it: a request that crosses a boundary counts by the fraction of its time inside.
    pub fn of(samples: &[Sample], window: Window) -> Self {
        let within = || {
            samples
                .iter()
                .filter(|sample| window.holds(sample.intended))
        };
        let mut statuses = BTreeMap::new();
        for sample in within() {
            *statuses.entry(sample.outcome.key()).or_default() += 1;
        }
        let (mut requests, mut pairs, mut tokens) = (0.0, 0.0, Some(0.0));
        for sample in samples {
            let Outcome::Answered { tokens: counted } = sample.outcome else {
                continue;
            };
            let share = sample.share(window);
            let counted = counted.or((sample.tokens > 0).then_some(sample.tokens));
            requests += share;
            pairs += share * sample.pairs as f64;
            tokens = tokens
                .zip(counted)
                .map(|(sum, counted)| sum + share * counted as f64);
        }
        let answered = |sample: &&Sample| matches!(sample.outcome, Outcome::Answered { .. });
        let refused =
            |sample: &&Sample| matches!(sample.outcome, Outcome::Status { status: 429, .. });
        let seconds = window.seconds();
        Self {
            seconds,
            statuses,
            latency_ms: Latency::of(within().filter(answered).map(Sample::latency)),
            refusal_ms: Latency::of(within().filter(refused).map(Sample::latency)),
            requests_per_second: requests / seconds,
            pairs_per_second: pairs / seconds,
            tokens_per_second: tokens.map(|tokens| tokens / seconds),
        }
    }

    /// Number of requests.
    pub fn requests(&self) -> u64 {
        self.statuses.values().sum()
    }

    /// Number of answered requests.
    pub fn answered(&self) -> u64 {
        self.statuses.get("200").copied().unwrap_or(0)
    }

    /// Number of requests that were refused with 429.
    pub fn refused(&self) -> u64 {
        let refused = self
            .statuses
            .iter()
            .filter(|(key, _)| key.starts_with("429"));
        refused.map(|(_, count)| count).sum()
    }

    /// Number of requests that were neither answered nor refused.
    pub fn failed(&self) -> u64 {
        self.requests() - self.answered() - self.refused()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn sample(sent: u32, done: u32, outcome: Outcome) -> Sample {
        Sample {
            intended: MS * sent,
            sent: MS * sent,
            done: MS * done,
            outcome,
            pairs: 10,
            tokens: 100,
        }
    }

    fn answered(sent: u32, done: u32) -> Sample {
        sample(sent, done, Outcome::Answered { tokens: None })
    }

    fn refused(status: u16, reason: &str) -> Outcome {
        Outcome::Status {
            status,
            reason: reason.to_owned(),
            retry_after: None,
        }
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn latency_counts_from_when_a_request_was_due() {
        let mut late = answered(900, 1000);
        late.intended = MS * 100;
        let summary = Summary::of(&[late], Window::new(Duration::ZERO, MS * 1000));
        assert!(summary.latency_ms.p50 > 890.0, "{:?}", summary.latency_ms);
    }

    #[test]
    fn a_request_counts_by_the_fraction_of_its_time_within_the_window() {
        let window = Window::new(MS * 1000, MS * 1000);
        // All of one, half of another, a quarter of a third, and nothing of what came before.
        let samples = [
            answered(1100, 1300),
            answered(900, 1100),
            answered(1900, 2300),
            answered(0, 900),
        ];
        let summary = Summary::of(&samples, window);
        assert!(close(summary.requests_per_second, 1.75));
        assert!(close(summary.pairs_per_second, 17.5));
        assert!(close(summary.tokens_per_second.unwrap(), 175.0));
        assert_eq!(
            summary.answered(),
            2,
            "requests sent before the window do not count"
        );
    }

    #[test]
    fn tokens_of_a_response_take_precedence_over_those_of_the_texts() {
        let samples = [sample(0, 500, Outcome::Answered { tokens: Some(80) })];
        let window = Window::new(Duration::ZERO, MS * 1000);
        let summary = Summary::of(&samples, window);
        assert!(close(summary.tokens_per_second.unwrap(), 80.0));
        let mut unknown = answered(0, 500);
        unknown.tokens = 0;
        assert_eq!(Summary::of(&[unknown], window).tokens_per_second, None);
    }

    #[test]
    fn refusals_are_counted_by_reason_and_timed_separately() {
        let samples = [
            answered(0, 500),
            sample(10, 12, refused(429, "overloaded")),
            sample(20, 24, refused(429, "deadline")),
            sample(30, 31, refused(500, "")),
            sample(40, 41, Outcome::Lost("connection refused".to_owned())),
        ];
        let summary = Summary::of(&samples, Window::new(Duration::ZERO, MS * 1000));
        let keys: Vec<&str> = summary.statuses.keys().map(String::as_str).collect();
        let expected = [
            "200",
            "429 deadline",
            "429 overloaded",
            "500",
            "lost: connection refused",
        ];
        assert_eq!(keys, expected);
        assert_eq!((summary.requests(), summary.answered()), (5, 1));
        assert_eq!((summary.refused(), summary.failed()), (2, 2));
        assert_eq!(summary.refusal_ms.count, 2);
        assert!(summary.refusal_ms.max < 4.1);
        assert!(
            close(summary.pairs_per_second, 10.0),
            "a refusal scores nothing"
        );
    }

    #[test]
    fn percentiles_are_within_a_thousandth() {
        let latency = Latency::of((1..=1000).map(|n| MS * n));
        for (found, expected) in [
            (latency.p50, 500.0),
            (latency.p95, 950.0),
            (latency.p99_9, 999.0),
            (latency.max, 1000.0),
        ] {
            assert!((found - expected).abs() <= expected / 1000.0, "{latency:?}");
        }
        assert_eq!(Latency::of([]), Latency::default());
    }
}
