//! How much one batch takes on. Pure arithmetic: no clock, no queue.
//!
//! Nothing is padded, so company costs a sequence nothing and lengths may mix. What is left to decide
//! is how much one run takes: little enough that a newcomer has its turn soon and that idle workers
//! have their part, and no less than that.

use super::cost::{Cost, Work};
use crate::config::BatchConfig;

/// The most that one batch may be. A single sequence that is larger still makes one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchLimits {
    /// Tokens: bounds the memory of a run.
    pub max_tokens: usize,
    /// Seconds: bounds how long a newcomer waits behind it.
    pub max_seconds: f64,
    /// Tokens below which a batch is not cut to leave idle workers their part: its weights would be
    /// read more often than its work is shared.
    pub share_above: usize,
}

/// [`BatchLimits::share_above`] of workers that each have a core.
pub const SHARE_ABOVE: usize = 64;

impl BatchLimits {
    /// As the settings have them.
    pub fn of(config: &BatchConfig) -> Self {
        Self {
            max_tokens: config.max_batch_tokens,
            max_seconds: config.max_batch_ms as f64 * 1e-3,
            share_above: SHARE_ABOVE,
        }
    }
}

/// What one worker may take now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    limits: BatchLimits,
    /// What a batch costs.
    pub cost: Cost,
    /// Seconds after which the rest is better left to the other workers.
    share: f64,
}

impl Plan {
    /// The plan of a worker that is free while `waiting` waits and each of the `others` is busy for so
    /// many more seconds: as much as makes all of them end together.
    pub fn new(limits: BatchLimits, cost: Cost, waiting: Work, others: &[f64]) -> Self {
        Self {
            limits,
            cost,
            share: even_share(cost.marginal(waiting), others),
        }
    }

    /// Whether a sequence of `length` tokens may join those of `draft`.
    pub fn accepts(&self, draft: Work, length: usize) -> bool {
        if draft.sequences == 0 {
            return true;
        }
        let (one, grown) = (Work::of(length), draft + Work::of(length));
        if grown.tokens > self.limits.max_tokens
            || self.cost.seconds(grown) > self.limits.max_seconds
        {
            return false;
        }
        // To the nearest: half of it may stand over the even share, and rounding is no reason.
        let half = 0.5 * self.cost.marginal(one);
        let shared = self.cost.marginal(draft) + half <= self.share * (1.0 + 1e-9);
        shared || grown.tokens <= self.limits.share_above
    }
}

/// The seconds of work after which everybody ends together when `waiting` seconds are dealt out among
/// one free worker and `others`, who have so much to do already.
fn even_share(waiting: f64, others: &[f64]) -> f64 {
    let mut others = others.to_vec();
    others.sort_by(f64::total_cmp);
    let mut share = waiting;
    for (done, busy) in others.iter().enumerate() {
        if *busy >= share {
            break;
        }
        let workers = (done + 1) as f64;
        share = (share * workers + busy.max(0.0)) / (workers + 1.0);
    }
    share
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const COST: Cost = Cost {
        base: 0.01,
        per_token: 0.001,
        per_square: 0.0,
    };
    const LIMITS: BatchLimits = BatchLimits {
        max_tokens: 1000,
        max_seconds: 0.5,
        share_above: SHARE_ABOVE,
    };

    /// Sequences of `length` that a worker takes of `waiting` such.
    fn taken(waiting: usize, length: usize, others: &[f64]) -> usize {
        let work = Work::all(vec![length; waiting]);
        let plan = Plan::new(LIMITS, COST, work, others);
        let mut draft = Work::default();
        while draft.sequences < waiting && plan.accepts(draft, length) {
            draft += Work::of(length);
        }
        draft.sequences
    }

    #[test]
    fn idle_workers_share_what_waits() {
        assert_eq!(taken(4, 100, &[0.0]), 2);
        assert_eq!(taken(4, 100, &[0.0, 0.0, 0.0]), 1);
        assert_eq!(taken(3, 100, &[]), 3);
        // Small ones are not worth the trouble.
        assert_eq!(taken(4, 16, &[0.0, 0.0, 0.0]), 4);
    }

    #[test]
    fn workers_that_take_turns_on_one_device_do_not_share() {
        let limits = BatchLimits {
            share_above: LIMITS.max_tokens,
            ..LIMITS
        };
        let plan = Plan::new(limits, COST, Work::all([100; 4]), &[0.0]);
        assert!(plan.accepts(Work::all([100; 3]), 100));
        assert!(!plan.accepts(Work::all([250; 4]), 1));
    }

    #[test]
    fn a_busy_worker_is_left_what_it_can_take_by_the_time_the_first_is_done() {
        assert_eq!(taken(4, 100, &[0.4]), 4);
        assert_eq!(taken(4, 100, &[0.2]), 3);
        assert_eq!(taken(4, 100, &[60.0]), 4);
    }

    #[test]
    fn tokens_and_seconds_are_limits() {
        assert_eq!(taken(100, 49, &[0.0]), 10);
        let plan = Plan::new(
            LIMITS,
            Cost {
                per_token: 1e-9,
                ..COST
            },
            Work::all([300; 9]),
            &[],
        );
        assert!(plan.accepts(Work::all([300; 2]), 300));
        assert!(!plan.accepts(Work::all([300; 3]), 300));
    }

    #[test]
    fn the_first_sequence_is_always_accepted() {
        assert_eq!(taken(5, 100_000, &[0.0]), 1);
    }

    proptest! {
        /// What is dealt out is all there is, and nobody is given less than nothing.
        #[test]
        fn even_shares_add_up(
            waiting in 0.0_f64..100.0,
            others in prop::collection::vec(0.0_f64..100.0, 0..8),
        ) {
            let share = even_share(waiting, &others);
            let dealt = share + others.iter().map(|busy| (share - busy).max(0.0)).sum::<f64>();
            prop_assert!((dealt - waiting).abs() < 1e-9 * (1.0 + waiting), "{dealt} of {waiting}");
        }
    }
}
