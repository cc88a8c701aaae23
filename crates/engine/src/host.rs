//! What the models of a process share: workers, cores, tokenizer threads, the memory of the queue, and the score
//! cache.

use std::sync::Arc;
use std::time::Duration;

use crate::admission::Size;
use crate::batcher::{AdmissionLimits, Batcher};
use crate::cache::ScoreCache;
use crate::config::{CacheConfig, QueueLimits};
use crate::metrics::Metrics;
use crate::queue_delay::QueueDelay;
use crate::tokenizing::TokenizerPool;
use rerankd_kernels::compute_pool::{ComputePool, ThreadsError};

/// The capacity of a [`Host`].
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Limits of the queue, over all models.
    pub queue: QueueLimits,
    /// Number of tokenizer threads.
    pub encode_threads: usize,
    /// Number of cores that compute batches.
    pub cores: usize,
    /// The score cache.
    pub cache: CacheConfig,
}

/// What the models of a process share. A worker is started for each scorer of the model that has most, and runs
/// batches of every model.
pub struct Host {
    pub(crate) tokenizers: TokenizerPool,
    /// The cores of the batches of all models.
    pub(crate) compute: ComputePool,
    pub(crate) batcher: Batcher,
    pub(crate) cache: Arc<ScoreCache>,
    pub(crate) metrics: Arc<Metrics>,
    /// Whether each tenant has cached scores of its own.
    pub(crate) cache_per_key: bool,
}

impl Host {
    /// A host without models.
    ///
    /// # Errors
    /// [`ThreadsError`] when the system refuses the threads that lone batches run on.
    ///
    /// # Panics
    /// When the system refuses another thread.
    pub fn start(config: &HostConfig, metrics: Arc<Metrics>) -> Result<Arc<Self>, ThreadsError> {
        let delay = QueueDelay::new(metrics.queue_delay_seconds.clone());
        let cache = Arc::new(ScoreCache::new(&config.cache, metrics.cache_bytes.clone()));
        let admission = AdmissionLimits {
            memory: Size {
                tokens: config.queue.tokens,
                bytes: config.queue.bytes,
            },
            max_delay: config.queue.delay.as_secs_f64(),
        };
        Ok(Arc::new(Self {
            compute: ComputePool::new(config.cores)?,
            tokenizers: TokenizerPool::start(config.encode_threads, delay.clone(), metrics.clone()),
            batcher: Batcher::start(admission, cache.clone(), delay, metrics.clone()),
            cache,
            metrics,
            cache_per_key: config.cache.per_key,
        }))
    }

    /// Starts no more batches of any model, and waits at most `limit` for running ones. Queued pairs are never
    /// scored.
    pub fn stop(&self, limit: Duration) {
        self.batcher.stop(limit);
    }
}
