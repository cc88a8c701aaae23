//! The cost of a batch in seconds: `base + per_token * T + per_square * sum(S_i^2)` for sequences of `S_i`
//! tokens, `T` in total. Nothing is padded, so there is no other term. Pure arithmetic, without a clock.
//!
//! Attention is quadratic in the length of each sequence, everything else is linear in the tokens, and each
//! run has a fixed cost. The coefficients are measured at startup and follow live batches.

use std::array::from_fn;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::time::Duration;

/// The amount of computation for some sequences.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Number of sequences.
    pub sequences: usize,
    /// Total number of tokens.
    pub tokens: usize,
    /// Sum of the squares of their lengths.
    pub squares: u64,
}

impl Work {
    /// Work of one sequence of `length` tokens.
    pub fn of(length: usize) -> Self {
        Self {
            sequences: 1,
            tokens: length,
            squares: (length as u64).pow(2),
        }
    }

    /// Work of sequences of these `lengths`.
    pub fn all(lengths: impl IntoIterator<Item = usize>) -> Self {
        let sum = |sum: Self, length| sum + Self::of(length);
        lengths.into_iter().fold(Self::default(), sum)
    }
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            sequences: self.sequences + other.sequences,
            tokens: self.tokens + other.tokens,
            squares: self.squares + other.squares,
        }
    }
}

impl Sub for Work {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            sequences: self.sequences - other.sequences,
            tokens: self.tokens - other.tokens,
            squares: self.squares - other.squares,
        }
    }
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Work {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

/// Coefficients, in seconds; none is negative.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Per run.
    pub base: f64,
    /// Per token.
    pub per_token: f64,
    /// Per pair of tokens of a sequence.
    pub per_square: f64,
}

impl Cost {
    /// Before anything is measured: a small model on one slow core.
    pub const GUESS: Self = Self {
        base: 1e-2,
        per_token: 1e-3,
        per_square: 5e-7,
    };

    /// Seconds that a batch of `work` takes; 0 if it is empty.
    pub fn seconds(&self, work: Work) -> f64 {
        match work.sequences {
            0 => 0.0,
            _ => self.base + self.marginal(work),
        }
    }

    /// Seconds that `work` adds to a batch.
    pub fn marginal(&self, work: Work) -> f64 {
        self.per_token * work.tokens as f64 + self.per_square * work.squares as f64
    }

    fn times(self, factor: f64) -> Self {
        Self {
            base: self.base * factor,
            per_token: self.per_token * factor,
            per_square: self.per_square * factor,
        }
    }

    fn array(self) -> [f64; 3] {
        [self.base, self.per_token, self.per_square]
    }
}

/// `seconds` as a duration that can be added to any instant.
pub fn duration(seconds: f64) -> Duration {
    const MOST: Duration = Duration::from_secs(100 * 24 * 3600);
    Duration::try_from_secs_f64(seconds.max(0.0)).map_or(MOST, |duration| duration.min(MOST))
}

/// Factor by which older batches lose weight with each new one: about a hundred count.
const FORGETTING: f64 = 0.99;
/// Weight of the newest batch in the overall speed of the machine.
const LEVEL_WEIGHT: f64 = 0.05;
/// A batch that is off the estimate by a larger factor counts as off by this one: a single delayed batch says
/// little, and a machine that became slower for good is still followed within a few dozen.
const OUTLIER: f64 = 2.0;
/// How strongly the coefficients are held to the proportions measured at startup, in batches. It matters
/// where live batches do not determine them.
const ANCHOR: f64 = 0.3;
/// The same at startup, where there is only a guess.
const ANCHOR_AT_START: f64 = 0.02;

/// Follows the cost of measured batches: recursive least squares of the relative error, with exponential
/// forgetting and non-negative coefficients.
#[derive(Debug, Clone)]
pub struct Estimator {
    /// The cost measured at startup.
    start: Cost,
    /// How much slower than at startup the machine is now.
    level: f64,
    /// Weighted sums of products of the features, `[features, features]`, and of features with seconds.
    products: [[f64; 3]; 3],
    seconds: [f64; 3],
    anchor: f64,
    cost: Cost,
}

impl Estimator {
    /// Starts with `cost`.
    pub fn new(cost: Cost) -> Self {
        Self {
            start: cost,
            level: 1.0,
            products: [[0.0; 3]; 3],
            seconds: [0.0; 3],
            anchor: ANCHOR,
            cost,
        }
    }

    /// Starts from `measured` batches, each with its seconds, or from a guess if there are none.
    pub fn calibrated(measured: &[(Work, f64)]) -> Self {
        let mut ratios: Vec<f64> = measured
            .iter()
            .map(|(work, seconds)| seconds / Cost::GUESS.seconds(*work))
            .filter(|ratio| ratio.is_finite() && *ratio > 0.0)
            .collect();
        if ratios.is_empty() {
            return Self::new(Cost::GUESS);
        }
        ratios.sort_by(f64::total_cmp);
        let mut estimator = Self {
            anchor: ANCHOR_AT_START,
            ..Self::new(Cost::GUESS.times(ratios[ratios.len() / 2]))
        };
        // Several times, as the weight of each is relative to an estimate that improves.
        for _ in 0..4 {
            for (work, seconds) in measured {
                estimator.observe(*work, *seconds);
            }
        }
        Self::new(estimator.cost)
    }

    /// The current estimate.
    pub fn cost(&self) -> Cost {
        self.cost
    }

    /// Learns that a batch of `work` took `seconds`.
    pub fn observe(&mut self, work: Work, seconds: f64) {
        let expected = self.cost.seconds(work);
        let usable = seconds.is_finite() && seconds > 0.0 && expected > 0.0;
        if !usable {
            return;
        }
        let seconds = seconds.clamp(expected / OUTLIER, expected * OUTLIER);
        let at_start = self.start.seconds(work);
        if at_start > 0.0 {
            self.level += LEVEL_WEIGHT * (seconds / at_start - self.level);
        }
        // Divided by what was expected, so that small batches count as much as large ones.
        let features = [1.0, work.tokens as f64, work.squares as f64].map(|x| x / expected);
        for (row, x) in self.products.iter_mut().zip(features) {
            for (product, y) in row.iter_mut().zip(features) {
                *product = FORGETTING * *product + x * y;
            }
        }
        for (sum, x) in self.seconds.iter_mut().zip(features) {
            *sum = FORGETTING * *sum + x * seconds / expected;
        }
        self.solve();
    }

    /// Finds the coefficients that fit best. None may be negative, so every subset of non-zero coefficients is
    /// solved, and the best non-negative solution is taken.
    fn solve(&mut self) {
        let anchor = self.start.times(self.level).array();
        // In units of the anchor, which makes all three numbers of the order of one.
        let unit = anchor.map(|value| value.max(f64::MIN_POSITIVE));
        let held = |i, j| if i == j { self.anchor } else { 0.0 };
        let matrix = from_fn(|i| from_fn(|j| self.products[i][j] * unit[i] * unit[j] + held(i, j)));
        let right = from_fn(|i| self.seconds[i] * unit[i] + self.anchor);
        let mut best: Option<(f64, [f64; 3])> = None;
        for chosen in 1_u8..8 {
            let free = [0, 1, 2].map(|i| chosen >> i & 1 == 1);
            let Some(solution) = solve(matrix, right, free) else {
                continue;
            };
            if solution.iter().any(|value| *value < 0.0) {
                continue;
            }
            let error = error(&matrix, &right, &solution);
            if best.is_none_or(|(least, _)| error < least) {
                best = Some((error, solution));
            }
        }
        if let Some((_, [base, per_token, per_square])) = best {
            self.cost = Cost {
                base: base * unit[0],
                per_token: per_token * unit[1],
                per_square: per_square * unit[2],
            };
        }
    }
}

/// Half of the least-squares objective, up to a constant.
fn error(matrix: &[[f64; 3]; 3], right: &[f64; 3], at: &[f64; 3]) -> f64 {
    let gradient = from_fn(|i| 0.5 * dot(matrix[i], *at) - right[i]);
    dot(*at, gradient)
}

/// Solves the symmetric `matrix` for the unknowns that are `free`; the others are 0. `None` if it is
/// singular.
fn solve(matrix: [[f64; 3]; 3], right: [f64; 3], free: [bool; 3]) -> Option<[f64; 3]> {
    let [a, b, c]: [[f64; 3]; 3] = from_fn(|i| {
        from_fn(|j| match free[i] && free[j] {
            true => matrix[i][j],
            false => f64::from(u8::from(i == j)),
        })
    });
    let right = from_fn(|i| if free[i] { right[i] } else { 0.0 });
    let volume = dot(a, cross(b, c));
    let solution = [cross(b, c), cross(c, a), cross(a, b)].map(|x| dot(right, x) / volume);
    solution.iter().all(|x| x.is_finite()).then_some(solution)
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    from_fn(|i| a[(i + 1) % 3] * b[(i + 2) % 3] - a[(i + 2) % 3] * b[(i + 1) % 3])
}

/// The cost of a batch while every worker is busy: cores share caches, memory bandwidth, and sometimes
/// execution units. It is learned from such batches only, so that a quiet hour does not make the machine look
/// faster than it is under load.
#[derive(Debug, Clone)]
pub struct Costs {
    loaded: Estimator,
    workers: usize,
}

impl Costs {
    /// Starts from the measured cost of `workers` workers.
    pub fn new(loaded: Estimator, workers: usize) -> Self {
        Self {
            loaded,
            workers: workers.max(1),
        }
    }

    /// Starts from a guess.
    pub fn guess(workers: usize) -> Self {
        Self::new(Estimator::new(Cost::GUESS), workers)
    }

    /// Number of workers that run the model.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Whether `busy` workers count as a loaded machine.
    fn is_loaded(&self, busy: usize) -> bool {
        2 * busy > self.workers
    }

    /// Cost of a batch while every worker is busy.
    pub fn loaded(&self) -> Cost {
        self.loaded.cost()
    }

    /// Learns that a batch of `work` took `seconds`. `busy` is the number of the model's workers that were busy at its
    /// start and end.
    pub fn observe(&mut self, work: Work, seconds: f64, busy: [usize; 2]) {
        if busy.iter().all(|&busy| self.is_loaded(busy)) {
            self.loaded.observe(work, seconds);
        }
    }

    /// Seconds per token of all workers together, in batches of `work`.
    pub fn pace(&self, work: Work) -> f64 {
        self.loaded.cost().seconds(work) / (work.tokens * self.workers) as f64
    }

    /// Seconds that one worker takes for `work`, in batches of `batch_tokens`.
    pub fn worker_seconds(&self, work: Work, batch_tokens: usize) -> f64 {
        let cost = self.loaded.cost();
        let batches = work.tokens.div_ceil(batch_tokens.max(1));
        cost.marginal(work) + cost.base * batches as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRUE: Cost = Cost {
        base: 8e-4,
        per_token: 7e-5,
        per_square: 4e-8,
    };

    /// Batches as they come: many short, many long, mixed.
    fn batches() -> Vec<Work> {
        (0..60)
            .map(|i| match i % 3 {
                0 => Work::all([23; 20]),
                1 => Work::all([100 + 7 * (i % 10), 300]),
                _ => Work::of(16 + 8 * i),
            })
            .collect()
    }

    fn close(a: f64, b: f64, within: f64) -> bool {
        (a / b - 1.0).abs() <= within
    }

    #[test]
    fn a_few_batches_at_start_tell_the_cost() {
        let shapes = [vec![32], vec![32; 4], vec![128], vec![16; 8], vec![256]];
        let measured: Vec<_> = shapes
            .into_iter()
            .map(Work::all)
            .map(|work| (work, TRUE.seconds(work)))
            .collect();
        let cost = Estimator::calibrated(&measured).cost();
        for work in [Work::of(64), Work::all([23; 20]), Work::of(200)] {
            assert!(
                close(cost.seconds(work), TRUE.seconds(work), 0.1),
                "{cost:?}"
            );
        }
        // Beyond what was measured it is an estimate, but not a wild one.
        assert!(close(
            cost.seconds(Work::of(512)),
            TRUE.seconds(Work::of(512)),
            0.3
        ));
        assert_eq!(Estimator::calibrated(&[]).cost(), Cost::GUESS);
    }

    #[test]
    fn live_batches_are_followed_when_the_machine_slows_down() {
        let mut estimator = Estimator::new(TRUE);
        for _ in 0..4 {
            for work in batches() {
                estimator.observe(work, 2.5 * TRUE.seconds(work));
            }
        }
        for work in batches() {
            assert!(close(
                estimator.cost().seconds(work),
                2.5 * TRUE.seconds(work),
                0.05
            ));
        }
    }

    #[test]
    fn an_outlier_moves_little() {
        let mut estimator = Estimator::new(TRUE);
        for work in batches() {
            estimator.observe(work, TRUE.seconds(work));
        }
        let work = Work::all([100; 5]);
        estimator.observe(work, 1000.0 * TRUE.seconds(work));
        assert!(close(
            estimator.cost().seconds(work),
            TRUE.seconds(work),
            0.1
        ));
        estimator.observe(work, f64::NAN);
        estimator.observe(work, 0.0);
        estimator.observe(Work::default(), 1.0);
        assert!(close(
            estimator.cost().seconds(work),
            TRUE.seconds(work),
            0.1
        ));
    }

    /// What batches that are all alike cannot tell is kept from the start.
    #[test]
    fn batches_of_one_shape_do_not_spoil_the_others() {
        let mut estimator = Estimator::new(TRUE);
        for _ in 0..2000 {
            let work = Work::all([23; 22]);
            estimator.observe(work, 2.0 * TRUE.seconds(work));
        }
        let long = Work::of(512);
        assert!(close(
            estimator.cost().seconds(long),
            2.0 * TRUE.seconds(long),
            0.1
        ));
    }

    #[test]
    fn only_batches_of_a_loaded_machine_are_learnt_from() {
        let loaded = TRUE.times(1.5);
        let mut costs = Costs::new(Estimator::new(loaded), 4);
        let work = Work::of(200);
        for busy in [[1, 1], [2, 2], [4, 2], [2, 4]] {
            for work in batches() {
                costs.observe(work, TRUE.seconds(work), busy);
            }
            assert_eq!(costs.loaded(), loaded, "{busy:?}");
        }
        for work in batches() {
            costs.observe(work, TRUE.seconds(work), [4, 3]);
        }
        assert!(close(
            costs.loaded().seconds(work),
            TRUE.seconds(work),
            0.01
        ));
        assert!(Costs::guess(1).is_loaded(1));
    }

    proptest! {
        /// Whatever is measured, no coefficient becomes negative and the estimate stays a number.
        #[test]
        fn no_coefficient_is_ever_negative(
            seen in prop::collection::vec(
                (prop::collection::vec(1_usize..600, 1..30), 1e-6_f64..10.0), 1..100),
        ) {
            let mut estimator = Estimator::new(TRUE);
            for (lengths, seconds) in seen {
                estimator.observe(Work::all(lengths), seconds);
                let coefficients = estimator.cost().array();
                prop_assert!(coefficients.iter().all(|c| *c >= 0.0 && c.is_finite()));
            }
        }

        /// Two batches never take longer as one: what is shared is paid once.
        #[test]
        fn a_batch_is_never_slower_than_its_parts(
            first in prop::collection::vec(1_usize..600, 1..30),
            second in prop::collection::vec(1_usize..600, 1..30),
            base in 0.0_f64..1.0, per_token in 0.0_f64..1.0, per_square in 0.0_f64..1.0,
        ) {
            let cost = Cost { base, per_token, per_square };
            let (first, second) = (Work::all(first), Work::all(second));
            let apart = cost.seconds(first) + cost.seconds(second);
            prop_assert!(cost.seconds(first + second) <= apart * (1.0 + 1e-12));
        }
    }
}
