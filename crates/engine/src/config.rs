//! Configuration of an engine: precision, batching and caching.

use std::time::Duration;

use strum::{EnumString, IntoStaticStr, VariantNames};

/// Precision of the model's matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats, as in the reference implementation.
    #[default]
    Fp32,
    /// 16-bit weights and products, with the range of 32-bit floats.
    Bf16,
    /// 8-bit weights and activations: faster, with slightly different scores.
    Int8,
    /// 16-bit floats, on a GPU.
    Fp16,
    /// `Int8` for the built-in model, whose scores were measured; else `Bf16` where the processor has instructions
    /// for it; else `Fp32`. `Fp16` on a GPU.
    Auto,
}

impl Precision {
    /// The name in settings and responses.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// How pairs become batches, and how many may wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchConfig {
    /// Maximum number of tokens in a batch.
    pub max_batch_tokens: usize,
    /// Maximum number of tokens in a batch on a GPU.
    pub cuda_batch_tokens: usize,
    /// Maximum estimated time of a batch in milliseconds, unless a single pair takes longer.
    pub max_batch_ms: usize,
    /// Maximum time that a request may be expected to wait for others.
    pub max_queue_delay: Duration,
    /// Maximum number of tokens in the queue.
    pub max_queue_tokens: usize,
    /// Maximum bytes of text in the queue.
    pub max_queue_bytes: usize,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            // Matrix products of a small model run at full speed from 64 rows on; the smaller a batch, the
            // sooner a new request gets its turn.
            max_batch_tokens: 512,
            // Enough rows to keep a large GPU busy with a small model.
            cuda_batch_tokens: 16_384,
            // Not noticeable to a person.
            max_batch_ms: 100,
            // Most clients have given up by then.
            max_queue_delay: Duration::from_secs(10),
            // A few megabytes: half a minute of work for a small machine.
            max_queue_tokens: 262_144,
            // Sixteen request bodies of the maximum size.
            max_queue_bytes: 64 << 20,
        }
    }
}

/// The score cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheConfig {
    /// Memory for cached scores in bytes; 0 disables the cache.
    pub size: usize,
    /// Maximum age of a score; zero is unlimited.
    pub ttl: Duration,
    /// Whether each tenant has a cache of its own.
    pub per_key: bool,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            // About 250,000 scores.
            size: 64 * 1024 * 1024,
            ttl: Duration::ZERO,
            per_key: false,
        }
    }
}

/// Limits of the queue.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// Maximum number of tokens admitted and not yet scored.
    pub tokens: usize,
    /// Maximum bytes of text of requests admitted and not yet answered.
    pub bytes: usize,
    /// Maximum time that a request may be expected to wait for others.
    pub delay: Duration,
}

impl QueueLimits {
    /// The limits in `config`.
    pub fn of(config: &BatchConfig) -> Self {
        Self {
            tokens: config.max_queue_tokens,
            bytes: config.max_queue_bytes,
            delay: config.max_queue_delay,
        }
    }
}
