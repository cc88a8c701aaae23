//! What an engine is told: arithmetic, batching and caching.

use std::time::Duration;

use strum::{EnumString, IntoStaticStr, VariantNames};

/// Arithmetic of the model's matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats, as the reference computes.
    #[default]
    Fp32,
    /// 8-bit weights and activations: faster, and very nearly the same scores.
    Int8,
    /// 16-bit floats, on a GPU.
    Fp16,
    /// `Int8` where it is faster and its effect on the scores was measured.
    Auto,
}

impl Precision {
    /// The name in settings and answers.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// How pairs become batches, and how many may wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchConfig {
    /// Most tokens of one batch.
    pub max_batch_tokens: usize,
    /// Most tokens of one batch on a GPU.
    pub cuda_batch_tokens: usize,
    /// Longest that one batch may take by the engine's own estimate, in milliseconds, unless a single
    /// pair takes longer.
    pub max_batch_ms: usize,
    /// Longest that a request is expected to wait for others.
    pub max_queue_delay: Duration,
    /// Most tokens that may wait.
    pub max_queue_tokens: usize,
    /// Most bytes of text that may wait.
    pub max_queue_bytes: usize,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            // Matrix products of a small model run at full speed from 64 rows on; the less one batch
            // takes, the sooner a newcomer gets its turn.
            max_batch_tokens: 512,
            // Enough rows to keep a large GPU busy with a small model.
            cuda_batch_tokens: 16_384,
            // What people do not notice.
            max_batch_ms: 100,
            // Most clients have given up by then.
            max_queue_delay: Duration::from_secs(10),
            // A few megabytes: half a minute of work for a small machine.
            max_queue_tokens: 262_144,
            // Sixteen request bodies of the largest size that a server accepts.
            max_queue_bytes: 64 << 20,
        }
    }
}

/// Which scores are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheConfig {
    /// Bytes for known scores; 0 keeps none.
    pub size: usize,
    /// Longest a score is kept; zero is forever.
    pub ttl: Duration,
    /// Whether a tenant is answered from its own scores only.
    pub per_key: bool,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            // Some 250,000 scores.
            size: 64 * 1024 * 1024,
            ttl: Duration::ZERO,
            per_key: false,
        }
    }
}
