//! Which sequences may share a batch. Pure arithmetic: no clock, no queue.

/// Prices a run of the model in units of the linear work of one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CostModel {
    /// Price of one cell of the padded attention matrix.
    pub attention: f64,
    /// Price of a run whatever it holds: dispatching the nodes, filling the caches.
    pub overhead: f64,
}

impl CostModel {
    /// An estimate from the width of the model, before anything has been measured.
    ///
    /// Per layer and token, linear work is `24 h^2` operations and attention `4 S h`, at about half
    /// the speed: a ratio of `S / 3h`.
    pub fn for_hidden_size(hidden_size: usize) -> Self {
        Self {
            attention: 1.0 / (3.0 * hidden_size as f64),
            overhead: 32.0,
        }
    }

    fn cost(&self, draft: Draft) -> f64 {
        let cells = draft.sequences * draft.longest * draft.longest;
        draft.tokens as f64 + self.attention * cells as f64
    }
}

/// How large a batch may become.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchLimits {
    /// Most tokens of one batch; a single longer sequence still makes one.
    pub max_tokens: usize,
    /// What decides whether company is worth it.
    pub cost: CostModel,
}

/// The shape of a batch that is being put together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Draft {
    /// Tokens of all sequences.
    pub tokens: usize,
    /// Number of sequences.
    pub sequences: usize,
    /// Tokens of the longest.
    pub longest: usize,
}

impl Draft {
    /// The shape with one more sequence of `length` tokens.
    #[must_use]
    pub fn with(self, length: usize) -> Self {
        Self {
            tokens: self.tokens + length,
            sequences: self.sequences + 1,
            longest: self.longest.max(length),
        }
    }

    /// Whether a sequence of `length` tokens may join: the token budget holds, and running both
    /// together costs no more than running them one after the other.
    pub fn accepts(self, length: usize, limits: &BatchLimits) -> bool {
        if self.sequences == 0 {
            return true;
        }
        let joined = self.with(length);
        let alone = Self::default().with(length);
        let cost = &limits.cost;
        joined.tokens <= limits.max_tokens
            && cost.cost(joined) <= cost.cost(self) + cost.cost(alone) + cost.overhead
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits(max_tokens: usize) -> BatchLimits {
        BatchLimits {
            max_tokens,
            cost: CostModel::for_hidden_size(384),
        }
    }

    #[test]
    fn the_first_sequence_is_always_accepted() {
        assert!(Draft::default().accepts(512, &limits(64)));
    }

    #[test]
    fn a_short_sequence_does_not_join_long_ones() {
        let long = Draft::default().with(512).with(512);
        assert!(!long.accepts(8, &limits(4096)));
        assert!(long.accepts(500, &limits(4096)));
    }

    proptest! {
        #[test]
        fn a_batch_is_never_slower_than_its_parts(
            lengths in prop::collection::vec(1_usize..=512, 1..64),
            max_tokens in 1_usize..8192,
        ) {
            let limits = limits(max_tokens);
            let mut draft = Draft::default();
            let mut apart = 0.0;
            for length in lengths {
                if draft.accepts(length, &limits) {
                    draft = draft.with(length);
                    apart += limits.cost.cost(Draft::default().with(length)) + limits.cost.overhead;
                }
            }
            prop_assert!(limits.cost.cost(draft) + limits.cost.overhead <= apart + 1e-6);
            prop_assert!(draft.tokens <= max_tokens || draft.sequences == 1);
        }
    }
}
