//! How much one batch takes on. Pure arithmetic: no clock, no queue.
//!
//! Nothing is padded, so sequences of any lengths share a batch at no cost. What remains to decide is its size: small
//! enough that a new request gets its turn soon and that idle workers get their share, and otherwise as large as
//! possible.

use super::cost::{Cost, Work};
use crate::config::BatchConfig;

/// The largest batch. A single larger sequence is a batch of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchLimits {
    /// Tokens: bounds the memory of a run.
    pub max_tokens: usize,
    /// Seconds: bounds how long a newcomer waits behind it.
    pub max_seconds: f64,
    /// Tokens below which a batch is not split for idle workers: reading the weights again would cost more than
    /// sharing the work saves.
    pub share_above: usize,
}

/// [`BatchLimits::share_above`] of workers that each have a core.
pub const SHARE_ABOVE: usize = 64;

impl BatchLimits {
    /// The limits of the settings.
    pub fn of(config: &BatchConfig) -> Self {
        Self {
            max_tokens: config.max_batch_tokens,
            max_seconds: config.max_batch_ms as f64 * 1e-3,
            share_above: SHARE_ABOVE,
        }
    }

    /// The same where a run itself takes long: a large model's weights are read from memory in each, so batches are
    /// long enough for that to be a small part of them.
    #[must_use]
    pub fn worth(self, cost: &Cost) -> Self {
        Self {
            max_seconds: self.max_seconds.max(cost.base / MAX_OVERHEAD),
            ..self
        }
    }
}

/// Maximum share of a full batch's time that its fixed cost takes.
const MAX_OVERHEAD: f64 = 0.05;

/// Maximum share of a short batch's time that its fixed cost takes.
const SHORT_OVERHEAD: f64 = 0.03;
/// The same for a short batch that completes a request.
const ENDING_OVERHEAD: f64 = 0.06;
/// The shortest time limit of a batch, in seconds; a shorter one would not be noticed.
const MIN_SECONDS: f64 = 0.01;
/// Maximum seconds of a preemptible batch that completes a request.
const ENDING_SECONDS: f64 = 0.03;
/// A request is small beside another that takes at least this many times as long.
const SMALL: f64 = 4.0;
/// A request that takes at most this many seconds of each worker is left to all workers, which interrupt their
/// batches for it.
const QUICK_SECONDS: f64 = 0.025;

/// The longest time for which a request may interrupt a batch of this many seconds.
pub(crate) fn largest_part(seconds: f64) -> f64 {
    0.5 * seconds
}

/// A batch that is being formed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Draft {
    work: Work,
    /// Whether the last sequence of a request is in it.
    ends_request: bool,
    /// Seconds that the largest request in it takes of every worker.
    largest: f64,
}

impl Draft {
    /// Adds a sequence of `length` tokens, which may be the last of a request that takes `each` seconds of every
    /// worker.
    pub fn add(&mut self, length: usize, is_last: bool, each: f64) {
        self.work += Work::of(length);
        self.ends_request |= is_last;
        self.largest = self.largest.max(each);
    }

    /// The work of its sequences.
    pub fn work(&self) -> Work {
        self.work
    }
}

/// What one worker may take now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    limits: BatchLimits,
    /// Cost of a batch.
    pub cost: Cost,
    /// Seconds after which the rest is better left to the other workers.
    share: f64,
    /// Seconds after which a batch that completes a request takes no more.
    ending_seconds: f64,
    /// Whether small requests can interrupt the batch.
    is_preemptible: bool,
    /// Whether the batch runs between two layers of another.
    preempts: bool,
}

impl Plan {
    /// The plan of a worker that is free while `waiting` waits and each of the `others` is busy for so
    /// many more seconds: as much as makes all of them end together.
    pub fn new(limits: BatchLimits, cost: Cost, waiting: Work, others: &[f64]) -> Self {
        Self {
            limits,
            cost,
            share: even_share(cost.marginal(waiting), others),
            ending_seconds: f64::INFINITY,
            is_preemptible: false,
            preempts: false,
        }
    }

    /// The same where several requests wait and cannot interrupt the batch: as short as costs little throughput.
    #[must_use]
    pub fn short(mut self) -> Self {
        let seconds = |overhead: f64| (self.cost.base / overhead).max(MIN_SECONDS);
        self.limits.max_seconds = self.limits.max_seconds.min(seconds(SHORT_OVERHEAD));
        self.ending_seconds = seconds(ENDING_OVERHEAD);
        self
    }

    /// The same where several requests wait, and small ones can interrupt the batch: not filled up once a request
    /// ends with it. The next request takes `each` seconds of every worker; one that is quick leaves them their
    /// part.
    #[must_use]
    pub fn preemptible(mut self, each: f64) -> Self {
        self.is_preemptible = true;
        self.ending_seconds = ENDING_SECONDS;
        if each <= QUICK_SECONDS {
            self.share = self.share.min(ENDING_SECONDS);
        }
        self
    }

    /// The plan of a batch that runs between two layers of another, for at most `seconds`. A request takes `each`
    /// seconds of every worker.
    #[must_use]
    pub fn preempting(mut self, seconds: f64, each: f64) -> Self {
        self.limits.max_seconds = self.limits.max_seconds.min(self.cost.base + seconds);
        self.share = each;
        self.preempts = true;
        self
    }

    /// Whether the batch runs between two layers of another.
    pub fn preempts(&self) -> bool {
        self.preempts
    }

    /// Whether a request that takes `each` seconds of every worker may have a part in the batch. A small one is
    /// not bound to large ones, which it can interrupt.
    pub fn admits(&self, draft: &Draft, each: f64) -> bool {
        if self.preempts {
            return self.cost.base + each <= self.limits.max_seconds;
        }
        let interrupts = each <= largest_part(self.cost.seconds(draft.work));
        let joins = !self.is_preemptible || !interrupts || each * SMALL > draft.largest;
        draft.work.sequences == 0 || joins
    }

    /// Whether a sequence of `length` tokens may join `draft`.
    pub fn accepts(&self, draft: &Draft, length: usize) -> bool {
        if draft.work.sequences == 0 {
            return !self.preempts
                || self.cost.seconds(Work::of(length)) <= self.limits.max_seconds;
        }
        let (one, grown) = (Work::of(length), draft.work + Work::of(length));
        let seconds = self.cost.seconds(grown);
        if grown.tokens > self.limits.max_tokens
            || seconds > self.limits.max_seconds
            || draft.ends_request && seconds > self.ending_seconds
        {
            return false;
        }
        // Rounded to the nearest: a sequence may exceed the even share by half of its length.
        let half = 0.5 * self.cost.marginal(one);
        let shared = self.cost.marginal(draft.work) + half <= self.share * (1.0 + 1e-9);
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
        let mut draft = Draft::default();
        while draft.work.sequences < waiting && plan.accepts(&draft, length) {
            draft.add(length, false, 1.0);
        }
        draft.work.sequences
    }

    fn draft(lengths: &[usize]) -> Draft {
        let mut draft = Draft::default();
        lengths
            .iter()
            .for_each(|&length| draft.add(length, false, 1.0));
        draft
    }

    #[test]
    fn a_batch_is_worth_reading_the_weights_for() {
        let limits = BatchLimits {
            max_tokens: 512,
            max_seconds: 0.1,
            share_above: SHARE_ABOVE,
        };
        let large = Cost {
            base: 0.1,
            per_token: 8e-3,
            per_square: 0.0,
        };
        assert_eq!(limits.worth(&large).max_seconds, 2.0);
        let small = Cost {
            base: 1e-3,
            ..large
        };
        assert_eq!(limits.worth(&small), limits);
    }

    #[test]
    fn batches_that_cannot_be_interrupted_are_short() {
        let limits = BatchLimits {
            max_seconds: 10.0,
            ..LIMITS
        };
        let plan = Plan::new(limits, COST, Work::all([100; 99]), &[]);
        assert!(plan.accepts(&draft(&[300, 99]), 100));
        let short = plan.short();
        assert!(short.accepts(&draft(&[300]), 20), "10 ms is 3 % of 330 ms");
        assert!(!short.accepts(&draft(&[300]), 40));
        assert!(short.admits(&draft(&[300]), 0.001));
        let mut ending = draft(&[100]);
        ending.add(20, true, 1.0);
        assert!(short.accepts(&ending, 30) && !short.accepts(&ending, 50));
    }

    #[test]
    fn a_batch_that_ends_a_request_is_not_filled_up() {
        let plan = Plan::new(LIMITS, COST, Work::all([100; 99]), &[]).preemptible(1.0);
        let mut ending = draft(&[5]);
        ending.add(5, true, 1.0);
        assert!(ending.work().sequences == 2 && plan.accepts(&ending, 10));
        assert!(!plan.accepts(&ending, 11));
        assert!(plan.accepts(&draft(&[5, 5]), 50));
    }

    #[test]
    fn a_quick_request_is_shared_by_all_workers() {
        let limits = BatchLimits {
            share_above: 0,
            ..LIMITS
        };
        let plan = Plan::new(limits, COST, Work::all([100; 99]), &[]);
        let taken = |plan: Plan| {
            (1..100)
                .take_while(|&n| plan.accepts(&draft(&vec![5; n]), 5))
                .count()
        };
        assert!(taken(plan.preemptible(QUICK_SECONDS)) < 7);
        assert!(taken(plan.preemptible(2.0 * QUICK_SECONDS)) > 50);
    }

    #[test]
    fn a_small_request_does_not_join_a_large_one_that_it_can_interrupt() {
        let plan = Plan::new(LIMITS, COST, Work::all([100; 99]), &[]).preemptible(1.0);
        let large = draft(&[90]);
        assert!(!plan.admits(&large, 0.04) && plan.admits(&large, 0.06));
        assert!(plan.admits(&Draft::default(), 0.05) && plan.admits(&Draft::default(), 0.0));
        let mut equal = Draft::default();
        equal.add(90, false, 0.05);
        assert!(plan.admits(&equal, 0.05));
    }

    #[test]
    fn a_batch_between_two_layers_is_short_and_for_small_requests() {
        let limits = BatchLimits {
            share_above: 0,
            ..LIMITS
        };
        let plan = Plan::new(limits, COST, Work::all([100; 99]), &[]).preempting(0.05, 0.02);
        let empty = Draft::default();
        assert!(plan.admits(&empty, 0.04) && !plan.admits(&empty, 0.06));
        assert!(plan.accepts(&Draft::default(), 50) && !plan.accepts(&Draft::default(), 51));
        assert!(plan.accepts(&draft(&[10]), 10) && !plan.accepts(&draft(&[20]), 10));
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
        assert!(plan.accepts(&draft(&[100; 3]), 100));
        assert!(!plan.accepts(&draft(&[250; 4]), 1));
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
        assert!(plan.accepts(&draft(&[300; 2]), 300));
        assert!(!plan.accepts(&draft(&[300; 3]), 300));
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
