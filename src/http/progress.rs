//! How far the answers of a stream are: for its log line, and for the patience of its connection.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::Failure;

/// Messages of a stream that are being computed. While there are any, its connection is not idle.
#[derive(Debug, Clone, Default)]
pub struct Computing(Arc<AtomicUsize>);

impl Computing {
    /// Whether there are any.
    pub fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// Counts one until it is dropped.
    pub fn begin(&self) -> Begun {
        self.0.fetch_add(1, Ordering::Relaxed);
        Begun(self.clone())
    }
}

/// A message that is being computed.
pub struct Begun(Computing);

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What became of a stream so far, for the log line at its end.
#[derive(Debug, Clone, Default)]
pub struct Streamed(Arc<Mutex<Outcome>>);

/// How a stream ended.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Pairs that its messages had.
    pub pairs: usize,
    /// Tokens that the model read for them.
    pub tokens: usize,
    /// Why it broke off.
    pub failure: Option<Failure>,
}

impl Streamed {
    /// How it ended, once it has.
    pub fn outcome(&self) -> Outcome {
        let outcome = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        outcome.clone()
    }

    /// Notes what became of a message, or of the stream.
    pub fn change(&self, change: impl FnOnce(&mut Outcome)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
