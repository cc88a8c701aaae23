//! The gauge of how long everything that was admitted still takes.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::Gauge;

/// A gauge with one part for tokenizing and one for scoring.
#[derive(Debug)]
pub(crate) struct QueueDelay {
    gauge: Gauge,
    parts: Mutex<Parts>,
}

#[derive(Debug, Default)]
struct Parts {
    tokenizing: f64,
    scoring: f64,
}

impl QueueDelay {
    pub fn new(gauge: Gauge) -> Arc<Self> {
        Arc::new(Self {
            gauge,
            parts: Mutex::default(),
        })
    }

    /// Seconds until everything that waits is tokenized.
    pub fn set_tokenizing(&self, seconds: f64) {
        self.set(|parts| parts.tokenizing = seconds);
    }

    /// Seconds until everything that waits is scored, once tokenized.
    pub fn set_scoring(&self, seconds: f64) {
        self.set(|parts| parts.scoring = seconds);
    }

    fn set(&self, set: impl FnOnce(&mut Parts)) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        set(&mut parts);
        self.gauge.set(parts.tokenizing + parts.scoring);
    }
}
