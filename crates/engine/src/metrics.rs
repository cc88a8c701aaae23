//! Prometheus metrics of an engine. Each field's doc comment is the metric's help text.

use crate::admission::Refusal;
use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts,
};

/// Buckets in seconds, from one cached pair to a thousand long documents on a small, busy machine.
pub const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];
/// Buckets for pairs per batch.
const PAIRS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
/// Buckets for tokens per batch.
const TOKENS: &[f64] = &[
    16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
];

/// Builds one metric from its name, help text and shape. See [`metrics!`](crate::metrics!).
pub trait Metric: Collector + Clone + 'static {
    /// Labels or buckets; `()` if it has neither.
    type Shape;

    /// Creates the metric, at zero.
    ///
    /// # Errors
    /// If a name or a label is invalid.
    fn build(name: &str, help: &str, shape: Self::Shape) -> prometheus::Result<Self>;
}

impl Metric for IntCounter {
    type Shape = ();
    fn build(name: &str, help: &str, (): ()) -> prometheus::Result<Self> {
        Self::new(name, help)
    }
}

impl Metric for IntGauge {
    type Shape = ();
    fn build(name: &str, help: &str, (): ()) -> prometheus::Result<Self> {
        Self::new(name, help)
    }
}

impl Metric for Gauge {
    type Shape = ();
    fn build(name: &str, help: &str, (): ()) -> prometheus::Result<Self> {
        Self::new(name, help)
    }
}

/// A label with all its possible values. They are exported from the start, at zero: a series that
/// appears with its first event would hide that event from `rate()`.
pub type Closed = (&'static str, &'static [&'static str]);

impl Metric for IntCounterVec {
    type Shape = Labels;
    fn build(name: &str, help: &str, labels: Self::Shape) -> prometheus::Result<Self> {
        match labels {
            Labels::Open(names) => Self::new(Opts::new(name, help), names),
            Labels::Closed((label, values)) => {
                let counter = Self::new(Opts::new(name, help), &[label])?;
                for value in values {
                    counter.get_metric_with_label_values(&[value])?;
                }
                Ok(counter)
            }
        }
    }
}

/// The labels of a counter.
pub enum Labels {
    /// Labels whose values are not known in advance.
    Open(&'static [&'static str]),
    /// One label with a closed set of values.
    Closed(Closed),
}

impl Metric for IntGaugeVec {
    type Shape = Closed;
    fn build(name: &str, help: &str, (label, values): Closed) -> prometheus::Result<Self> {
        let gauge = Self::new(Opts::new(name, help), &[label])?;
        for value in values {
            gauge.get_metric_with_label_values(&[value])?;
        }
        Ok(gauge)
    }
}

impl Metric for Histogram {
    type Shape = &'static [f64];
    fn build(name: &str, help: &str, buckets: Self::Shape) -> prometheus::Result<Self> {
        Self::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
    }
}

impl Metric for HistogramVec {
    type Shape = (&'static [&'static str], &'static [f64]);
    fn build(name: &str, help: &str, (labels, buckets): Self::Shape) -> prometheus::Result<Self> {
        Self::new(
            HistogramOpts::new(name, help).buckets(buckets.to_vec()),
            labels,
        )
    }
}

/// Declares a struct of metrics, each field with its name and shape. The doc comment is the help text.
#[macro_export]
macro_rules! metrics {
    (
        $(#[doc = $about:literal])+
        pub struct $type:ident {
            $($(#[doc = $help:literal])+ $field:ident: $kind:ty = $name:literal, $shape:expr;)+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone)]
        pub struct $type {
            $($(#[doc = $help])+ pub $field: $kind,)+
        }

        impl $type {
            /// Creates every metric, at zero and unregistered.
            pub fn new() -> std::sync::Arc<Self> {
                std::sync::Arc::new(Self {
                    $($field: <$kind as $crate::metrics::Metric>::build(
                        $name,
                        concat!($($help),+).trim(),
                        $shape,
                    )
                    .expect("metric names and labels are valid"),)+
                })
            }

            /// Adds every metric to `registry`.
            ///
            /// # Errors
            /// If the registry already has a metric of one of these names.
            pub fn register(&self, registry: &prometheus::Registry) -> prometheus::Result<()> {
                $(registry.register(Box::new(self.$field.clone()))?;)+
                Ok(())
            }
        }
    };
}

metrics! {
    /// Metrics of an engine.
    pub struct Metrics {
    /// Pairs admitted for scoring.
    pairs: IntCounter = "rerankd_pairs_total", ();
    /// Tokens of admitted pairs, after truncation.
    tokens: IntCounter = "rerankd_tokens_total", ();
    /// Pairs truncated to fit the model.
    truncated: IntCounter = "rerankd_truncated_pairs_total", ();
    /// Requests rejected before scoring, by reason: the deadline would be missed (`cannot_finish_in_time`), the request would wait too long for others (`queue_delay`), or the queue has no room (`memory`).
    refused: IntCounterVec = "rerankd_refused_requests_total",
        Labels::Closed(("reason", Refusal::REASONS));
    /// Accepted requests whose deadline passed before their response.
    missed_deadlines: IntCounter = "rerankd_missed_deadlines_total", ();
    /// Requests whose client disconnected before the response.
    cancelled: IntCounter = "rerankd_cancelled_requests_total", ();
    /// Tokens scored for requests that were never answered.
    wasted_tokens: IntCounter = "rerankd_wasted_tokens_total", ();
    /// Batches whose scoring failed.
    failed_batches: IntCounter = "rerankd_failed_batches_total", ();
    /// Short batches that ran between two layers of a long one.
    preemptions: IntCounter = "rerankd_preemptions_total", ();
    /// Pairs whose scoring failed because the model returned a logit that is not finite.
    failed_pairs: IntCounter = "rerankd_failed_pairs_total", ();
    /// Workers restarted after a panic outside the model.
    worker_restarts: IntCounter = "rerankd_worker_restarts_total", ();
    /// Workers that can score.
    workers: IntGauge = "rerankd_workers", ();
    /// Panics of the tokenizer.
    tokenizer_panics: IntCounter = "rerankd_tokenizer_panics_total", ();
    /// Tokens admitted and not yet scored.
    queue_tokens: IntGauge = "rerankd_queue_tokens", ();
    /// Seconds until everything admitted would be tokenized and scored if nothing else arrived.
    queue_delay_seconds: Gauge = "rerankd_queue_delay_seconds", ();
    /// Pairs answered by the scoring of an identical pair at the same time.
    shared_pairs: IntCounter = "rerankd_shared_pairs_total", ();
    /// Pairs whose score was cached.
    cache_hits: IntCounter = "rerankd_cache_hits_total", ();
    /// Pairs whose score was not cached, while the cache was on.
    cache_misses: IntCounter = "rerankd_cache_misses_total", ();
    /// Memory used by cached scores, in bytes.
    cache_bytes: IntGauge = "rerankd_cache_bytes", ();
    /// Pairs per batch.
    batch_pairs: Histogram = "rerankd_batch_pairs", PAIRS;
    /// Tokens per batch.
    batch_tokens: Histogram = "rerankd_batch_tokens", TOKENS;
    /// Seconds a pair waited for its batch.
    queue_seconds: Histogram = "rerankd_queue_seconds", SECONDS;
    /// Seconds a request spent in tokenizing.
    tokenize_seconds: Histogram = "rerankd_tokenize_seconds", SECONDS;
    /// Seconds per batch in the model.
    inference_seconds: Histogram = "rerankd_inference_seconds", SECONDS;
    /// Pairs admitted for scoring, by model.
    model_pairs: IntCounterVec = "rerankd_model_pairs_total", Labels::Open(&["model"]);
    /// Tokens of admitted pairs after truncation, by model.
    model_tokens: IntCounterVec = "rerankd_model_tokens_total", Labels::Open(&["model"]);
    /// Requests rejected before scoring, by model.
    model_refused: IntCounterVec = "rerankd_model_refused_requests_total", Labels::Open(&["model"]);
    /// Seconds per batch, by model; the sums are what each model was given of the machine.
    model_inference_seconds: HistogramVec = "rerankd_model_inference_seconds", (&["model"], SECONDS);
    /// Whether a model is served (1), or failed to load and is optional (0).
    model_up: IntGaugeVec = "rerankd_model_up", ("model", &[]);
    }
}

/// What is counted for one model.
#[derive(Clone)]
pub struct ModelMetrics {
    /// Pairs admitted for scoring.
    pub pairs: IntCounter,
    /// Their tokens.
    pub tokens: IntCounter,
    /// Requests rejected before scoring.
    pub refused: IntCounter,
    /// Seconds per batch.
    pub inference_seconds: Histogram,
}

impl Metrics {
    /// What is counted for the model with this name.
    pub fn of_model(&self, name: &str) -> ModelMetrics {
        let name = [name];
        ModelMetrics {
            pairs: self.model_pairs.with_label_values(&name),
            tokens: self.model_tokens.with_label_values(&name),
            refused: self.model_refused.with_label_values(&name),
            inference_seconds: self.model_inference_seconds.with_label_values(&name),
        }
    }
}

/// Resident memory of this process, in bytes; `None` if the system does not report it.
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::{Registry, TextEncoder};

    fn render(metrics: &Metrics) -> String {
        let registry = Registry::new();
        metrics.register(&registry).unwrap();
        TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap()
    }

    #[test]
    fn doc_comments_are_the_help_texts() {
        let metrics = Metrics::new();
        metrics.pairs.inc_by(3);
        let text = render(&metrics);
        assert!(text.contains("# HELP rerankd_pairs_total Pairs admitted for scoring."));
        assert!(text.contains("rerankd_pairs_total 3"));
    }

    #[test]
    fn closed_labels_are_there_before_anything_happens() {
        let text = render(&Metrics::new());
        for line in [
            r#"rerankd_refused_requests_total{reason="memory"} 0"#,
            r#"rerankd_refused_requests_total{reason="queue_delay"} 0"#,
            r#"rerankd_refused_requests_total{reason="cannot_finish_in_time"} 0"#,
        ] {
            assert!(text.contains(line), "{line}");
        }
    }

    #[test]
    fn two_engines_do_not_fit_one_registry() {
        let registry = Registry::new();
        Metrics::new().register(&registry).unwrap();
        assert!(Metrics::new().register(&registry).is_err());
    }
}
