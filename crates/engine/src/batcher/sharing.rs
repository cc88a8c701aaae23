//! How models share the workers, and how fast the queue of one of them empties. Pure arithmetic.
//!
//! Workers are numbered. A model on a GPU runs on the first few, any other on all, so of two models' sets of workers
//! one contains the other. The work that only a set can do takes at least its seconds divided by the number of
//! workers in the set. A request is done when the largest of these bounds has passed.

use smallvec::SmallVec;

use super::workers::WorkerSet;
use crate::backlog::Forecast;
use crate::cost::{Cost, Work};
use rerankd_core::SchedulingHints;

/// A request whose completion time is to be forecast.
#[derive(Debug, Clone, Copy)]
pub(super) struct ForecastRequest {
    pub hints: SchedulingHints,
    pub work: Work,
}

/// Another model for which something waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct OtherModel {
    /// Workers that can run it: the first so many.
    pub workers: usize,
    /// Seconds of a worker that were admitted for it.
    pub seconds: f64,
    /// Seconds that it is given for each of this model.
    pub share: f64,
}

impl OtherModel {
    /// Seconds that it is given of `set` for each of this model: what it cannot use is for this one.
    fn share_of(&self, set: &WorkerSet) -> f64 {
        match set.alive.saturating_sub(self.workers) {
            0 => self.share,
            rest => self.share.min(self.workers as f64 / rest as f64),
        }
    }
}

/// What a model has of the workers, and who else wants them.
#[derive(Debug)]
pub(super) struct Sharing {
    /// The workers of this model, then those of other models that run on more.
    pub sets: SmallVec<[WorkerSet; 2]>,
    /// The other models for which something waits.
    pub others: SmallVec<[OtherModel; 2]>,
}

/// How fast the queue of a model empties.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speed<'a> {
    /// Cost of a batch while all workers run.
    pub cost: Cost,
    /// Tokens of a full batch.
    pub batch_tokens: usize,
    pub sharing: &'a Sharing,
}

impl Speed<'_> {
    /// Workers that run the model.
    pub fn workers(&self) -> usize {
        self.sharing.sets[0].alive
    }

    /// The other models that run on no workers but those of `set`.
    fn within(&self, set: &WorkerSet) -> impl Iterator<Item = &OtherModel> {
        let count = set.count;
        let others = self.sharing.others.iter();
        others.filter(move |other| other.workers <= count)
    }

    pub fn forecast(&self, request: ForecastRequest, waits: bool) -> Forecast {
        // Beside others that wait, only its share is for this model.
        let speed = |set: &WorkerSet| {
            let others: f64 = self.within(set).map(|other| other.share_of(set)).sum();
            set.alive as f64 / (1.0 + others)
        };
        let speeds = self.sharing.sets.iter().map(speed);
        Forecast {
            hints: request.hints,
            work: request.work,
            waits,
            cost: self.cost,
            speed: speeds.fold(f64::INFINITY, f64::min) / (1.0 + self.overhead()),
        }
    }

    /// What the fixed cost of batches adds to their sequences, in parts of one.
    fn overhead(&self) -> f64 {
        let full = self.cost.per_token * self.batch_tokens as f64;
        if full > 0.0 {
            self.cost.base / full
        } else {
            0.0
        }
    }

    /// Seconds until `work` is done when the workers do `seconds` of this model's work until then, after what runs.
    pub fn completion(&self, work: Work, seconds: f64) -> f64 {
        let own = seconds * (1.0 + self.overhead());
        let until = |set: &WorkerSet| {
            let given = |other: &OtherModel| other.seconds.min(own * other.share_of(set));
            let others: f64 = self.within(set).map(given).sum();
            (set.busy + own + others) / set.alive as f64
        };
        let sets = self.sharing.sets.iter().map(until);
        sets.fold(self.one_sequence(work), f64::max)
    }

    /// Seconds until `work` is done on an idle machine.
    pub fn alone(&self, work: Work) -> f64 {
        let seconds = self.cost.marginal(work) * (1.0 + self.overhead());
        self.one_sequence(work).max(seconds / self.workers() as f64)
    }

    /// Seconds of a sequence of `work`: however many workers there are, it runs on one.
    fn one_sequence(&self, work: Work) -> f64 {
        let sequences = work.sequences.max(1);
        self.cost.seconds(Work {
            sequences: 1,
            tokens: work.tokens / sequences,
            squares: work.squares / sequences as u64,
        })
    }
}

/// A model that has work, as its memory is given back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draining {
    /// Tokens that wait.
    pub tokens: f64,
    /// Seconds of a worker for each.
    pub pace: f64,
    /// Weight among the models.
    pub weight: f64,
    /// Workers that can run it.
    pub workers: f64,
    /// What each of its tokens releases.
    pub releases: f64,
}

/// Seconds until `models` that share `workers` have released so much, or are done.
pub(super) fn seconds_until_released(
    mut amount: f64,
    models: impl IntoIterator<Item = Draining>,
    workers: f64,
) -> f64 {
    let mut models: SmallVec<[Draining; 2]> = models.into_iter().collect();
    let mut seconds = 0.0;
    loop {
        models.retain(|model| model.tokens > 0.0 && model.pace > 0.0);
        let weights: f64 = models.iter().map(|model| model.weight).sum();
        let rate =
            |model: &Draining| (workers * model.weight / weights).min(model.workers) / model.pace;
        let released: f64 = models
            .iter()
            .map(|model| model.releases * rate(model))
            .sum();
        if released <= 0.0 {
            return seconds;
        }
        let ends = |model: &Draining| model.tokens / rate(model);
        let first = models.iter().map(ends).fold(f64::INFINITY, f64::min);
        if amount <= released * first {
            return seconds + amount / released;
        }
        // The first that is done leaves its share to the others.
        seconds += first;
        amount -= released * first;
        for model in &mut models {
            model.tokens = match ends(model) <= first {
                true => 0.0,
                false => model.tokens - rate(model) * first,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A token is a millisecond.
    const COST: Cost = Cost {
        base: 0.0,
        per_token: 1e-3,
        per_square: 0.0,
    };

    fn set(count: usize) -> WorkerSet {
        WorkerSet {
            count,
            alive: count,
            busy: 0.0,
        }
    }

    fn other(workers: usize, seconds: f64) -> OtherModel {
        OtherModel {
            workers,
            seconds,
            share: 1.0,
        }
    }

    /// When 16 sequences of a second each would be done on the first of `sets` beside `others`.
    fn completion(sets: &[WorkerSet], others: &[OtherModel]) -> f64 {
        let sharing = Sharing {
            sets: SmallVec::from_slice(sets),
            others: SmallVec::from_slice(others),
        };
        let speed = Speed {
            cost: COST,
            batch_tokens: 512,
            sharing: &sharing,
        };
        speed.completion(Work::all([1000; 16]), 16.0)
    }

    #[test]
    fn a_model_on_few_workers_is_expected_by_those_and_not_by_all() {
        assert_eq!(completion(&[set(16)], &[]), 1.0);
        assert_eq!(completion(&[set(2)], &[]), 8.0);
        // Models that run on all workers have the other ones.
        let all = other(16, 1e9);
        assert_eq!(completion(&[set(2), set(16)], &[all]), 8.0);
        // One that runs on the same ones takes its share.
        assert_eq!(completion(&[set(2)], &[other(2, 1e9)]), 16.0);
        // A model on all workers leaves it the workers that it can use, and has the others.
        let beside = completion(&[set(16)], &[other(2, 1e9)]);
        assert!((beside - 16.0 / 14.0).abs() < 1e-9, "{beside}");
        assert_eq!(completion(&[set(16)], &[all]), 2.0);
        assert_eq!(completion(&[set(16)], &[other(16, 4.0)]), 1.25);
    }

    fn draining(tokens: f64, pace: f64, weight: f64) -> Draining {
        Draining {
            tokens,
            pace,
            weight,
            workers: 2.0,
            releases: 1.0,
        }
    }

    #[test]
    fn tokens_of_a_slow_model_take_its_time_however_fast_the_own_is() {
        let (fast, slow) = (draining(100.0, 1e-3, 1.0), draining(1e5, 0.1, 1.0));
        // On one worker each: 100 tokens of the fast one in .1 s beside one of the slow one.
        let seconds = |amount, models| seconds_until_released(amount, models, 2.0);
        assert!((seconds(101.0, vec![fast, slow]) - 0.1).abs() < 1e-9);
        // Then only those of the slow one are left, at 20 a second.
        assert!((seconds(1101.0, vec![fast, slow]) - 50.1).abs() < 1e-9);
        let unrelated = Draining {
            releases: 0.0,
            ..slow
        };
        assert!((seconds(50.0, vec![fast, unrelated]) - 0.05).abs() < 1e-9);
        assert_eq!(seconds(50.0, vec![]), 0.0);
    }

    proptest! {
        /// More tokens take longer, and all of them the time of all work.
        #[test]
        fn what_is_scored_adds_up(
            models in prop::collection::vec((0.0_f64..1e5, 1e-6_f64..1.0, 1.0_f64..100.0), 1..5),
            parts in prop::collection::vec(0.0_f64..1.0, 2),
        ) {
            let models: Vec<_> = models.into_iter().map(|(t, p, w)| draining(t, p, w)).collect();
            let all: f64 = models.iter().map(|model| model.tokens).sum();
            let seconds = |amount| seconds_until_released(amount, models.clone(), 2.0);
            let work: f64 = models.iter().map(|model| model.tokens * model.pace).sum();
            prop_assert!((seconds(all) - work / 2.0).abs() <= 1e-6 * work.max(1.0));
            let (less, more) = (parts[0].min(parts[1]) * all, parts[0].max(parts[1]) * all);
            prop_assert!(seconds(less) <= seconds(more) + 1e-9);
        }
    }
}
