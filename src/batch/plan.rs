//! Which sequences may share a batch. Pure arithmetic: no clock, no queue.
//!
//! Nothing is padded, so company costs a sequence nothing and the order of lengths does not matter:
//! what is left to decide is how much one run takes on.

/// How large a batch may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Most tokens of one batch; a single longer sequence still makes one.
    pub max_tokens: usize,
}

impl BatchLimits {
    /// The limits of one of `idle` workers when `waiting` tokens wait: an even part of them, so that
    /// a lone request uses every worker.
    #[must_use]
    pub fn shared(self, waiting: usize, idle: usize) -> Self {
        /// Below this, the model's weights are read more often than its work is shared.
        const SMALLEST_SHARE_TOKENS: usize = 64;
        let share = waiting
            .div_ceil(idle.max(1))
            .max(SMALLEST_SHARE_TOKENS.min(self.max_tokens));
        Self {
            max_tokens: share.min(self.max_tokens),
        }
    }
}

/// The shape of a batch that is being put together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Draft {
    /// Tokens of all sequences.
    pub tokens: usize,
    /// Number of sequences.
    pub sequences: usize,
}

impl Draft {
    /// The shape with one more sequence of `length` tokens.
    #[must_use]
    pub fn with(self, length: usize) -> Self {
        Self {
            tokens: self.tokens + length,
            sequences: self.sequences + 1,
        }
    }

    /// Whether a sequence of `length` tokens may join.
    pub fn accepts(self, length: usize, limits: BatchLimits) -> bool {
        self.sequences == 0 || self.tokens + length <= limits.max_tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(waiting: usize, idle: usize, max_tokens: usize) -> usize {
        BatchLimits { max_tokens }.shared(waiting, idle).max_tokens
    }

    #[test]
    fn idle_workers_share_what_waits() {
        assert_eq!(shared(1000, 2, 4096), 500);
        assert_eq!(shared(1000, 1, 4096), 1000);
        assert_eq!(shared(100_000, 2, 4096), 4096);
        assert_eq!(shared(30, 4, 4096), 64);
        assert_eq!(shared(30, 4, 10), 10);
    }

    #[test]
    fn the_first_sequence_is_always_accepted() {
        let limits = BatchLimits { max_tokens: 64 };
        assert!(Draft::default().accepts(512, limits));
        assert!(Draft::default().with(60).accepts(4, limits));
        assert!(!Draft::default().with(60).accepts(5, limits));
    }
}
