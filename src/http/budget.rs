//! How many bytes of bodies the server holds at a time, whoever sends them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that bodies may take together.
#[derive(Debug)]
pub struct BodyBudget {
    limit: usize,
    held: AtomicUsize,
}

impl BodyBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            held: AtomicUsize::new(0),
        })
    }

    /// Bytes that are taken now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// A body of which nothing has arrived.
    pub fn begin(self: &Arc<Self>) -> HeldBytes {
        HeldBytes {
            budget: self.clone(),
            bytes: 0,
        }
    }
}

/// Bytes of one body. Dropping it gives them back.
#[derive(Debug)]
pub struct HeldBytes {
    budget: Arc<BodyBudget>,
    bytes: usize,
}

impl HeldBytes {
    /// Takes `more` bytes, unless all bodies together would be too large. A body that is alone may
    /// be of any size: its own limit is another.
    pub fn take(&mut self, more: usize) -> bool {
        let fits = |held: usize| {
            let alone = held == self.bytes;
            (alone || held + more <= self.budget.limit).then_some(held + more)
        };
        let taken = self
            .budget
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        if taken.is_ok() {
            self.bytes += more;
        }
        taken.is_ok()
    }
}

impl HeldBytes {
    /// Lets another hold `bytes` of those that were taken.
    pub fn split(&mut self, bytes: usize) -> Self {
        self.bytes -= bytes;
        Self {
            budget: self.budget.clone(),
            bytes,
        }
    }

    /// Gives back `bytes` that were taken.
    pub fn give_back(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.budget.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_share_what_there_is_and_one_alone_always_fits() {
        let budget = BodyBudget::new(100);
        let mut first = budget.begin();
        assert!(first.take(60) && first.take(60), "alone");
        let mut second = budget.begin();
        assert!(!second.take(1));
        drop(first);
        assert!(second.take(90));
        let mut third = budget.begin();
        assert!(third.take(10) && !third.take(1));
        drop(second);
        assert!(third.take(1));
    }
}
