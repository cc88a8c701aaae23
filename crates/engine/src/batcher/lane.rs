//! One model in the scheduler: its queue, and how its batches are formed.

use super::queue::{Queue, Taken, work};
use super::sharing::{Draining, OtherModel, Sharing, Speed};
use super::workers::Workers;
use crate::cost::{Costs, Work};
use crate::fair::FULL_SHARE;
use crate::plan::{BatchLimits, Plan, largest_part};

use tokio::time::Instant;

/// What a scheduler knows of a model from the start.
#[derive(Debug, Clone)]
pub(crate) struct LaneConfig {
    /// Logits of each sequence.
    pub labels: usize,
    /// Workers that can score its batches: the first so many.
    pub workers: usize,
    /// The cost model of its batches.
    pub costs: Costs,
    /// Limits of one batch.
    pub limits: BatchLimits,
    /// Weight among the models, at least 1.
    pub share: u32,
    /// Whether workers can interrupt what they run.
    pub is_preemptible: bool,
}

pub(super) struct Lane {
    pub queue: Queue,
    pub costs: Costs,
    /// Workers that can score its batches: the first so many.
    pub workers: usize,
    limits: BatchLimits,
    share: u32,
    is_preemptible: bool,
}

/// A worker that is free.
#[derive(Debug, Clone, Copy)]
pub(super) struct FreeWorker<'a> {
    pub number: usize,
    pub workers: &'a Workers,
    pub sharing: &'a Sharing,
    pub now: Instant,
}

impl Lane {
    pub fn new(config: LaneConfig) -> Self {
        Self {
            queue: Queue::new(config.labels),
            costs: config.costs,
            workers: config.workers,
            limits: config.limits,
            share: config.share.max(1),
            is_preemptible: config.is_preemptible,
        }
    }

    /// Its weight among the models.
    pub fn weight(&self) -> u64 {
        FULL_SHARE.saturating_mul(u64::from(self.share))
    }

    /// What it is given beside a model with this `weight`.
    pub fn beside(&self, weight: u64) -> OtherModel {
        OtherModel {
            workers: self.workers,
            seconds: self.admitted_seconds(),
            share: self.weight() as f64 / weight as f64,
        }
    }

    /// What it has waiting, each token of which gives back so much memory.
    pub fn draining(&self, workers: &Workers, releases: f64) -> Draining {
        let tokens = self.queue.admitted().tokens as f64;
        Draining {
            tokens,
            pace: self.admitted_seconds() / tokens.max(1.0),
            weight: self.weight() as f64,
            workers: workers.alive_of(self.workers) as f64,
            releases,
        }
    }

    /// Estimated seconds of its next batch.
    pub fn next_seconds(&self) -> f64 {
        let cost = self.costs.loaded();
        let limits = self.limits.worth(&cost);
        cost.seconds(self.queue.waiting()).min(limits.max_seconds)
    }

    /// Takes the next batch of a worker that is free, and says how long it should take.
    pub fn take(&mut self, free: FreeWorker<'_>) -> Taken {
        let waiting = self.queue.waiting();
        if waiting.sequences == 0 {
            return Taken::default();
        }
        let count = self.workers;
        let (cost, alive) = (self.costs.loaded(), free.workers.alive_of(count));
        let limits = self.limits.worth(&cost);
        // Where there is a full batch for every worker, nobody needs to be left anything.
        let scarce = cost.marginal(waiting) < limits.max_seconds * alive as f64
            && waiting.tokens < limits.max_tokens.saturating_mul(alive);
        let others = if scarce {
            free.workers.others(free.number, count, free.now)
        } else {
            Vec::new()
        };
        let mut plan = Plan::new(limits, cost, waiting, &others);
        if !free.sharing.others.is_empty() {
            // Requests for other models cannot interrupt it.
            plan = plan.short();
        } else if self.queue.is_shared() {
            plan = match self.is_preemptible {
                true => plan.preemptible(self.next_part(free.workers)),
                false => plan.short(),
            };
        }
        self.take_planned(&plan, free)
    }

    fn take_planned(&mut self, plan: &Plan, free: FreeWorker<'_>) -> Taken {
        let speed = self.speed(free.sharing);
        let mut taken = self
            .queue
            .take(free.number, plan, speed, free.now.into_std());
        if !taken.jobs.is_empty() {
            taken.seconds = plan.cost.seconds(work(&taken.jobs));
        }
        taken
    }

    /// Seconds for which the request whose turn it is would interrupt a worker: its share, and at least one
    /// sequence. Infinite if nothing waits, or workers cannot be interrupted.
    pub fn next_part(&self, workers: &Workers) -> f64 {
        let next = self.is_preemptible.then(|| self.queue.next_request());
        let Some((total, next)) = next.flatten() else {
            return f64::INFINITY;
        };
        let cost = self.costs.loaded();
        let share = cost.marginal(total) / workers.alive_of(self.workers) as f64;
        share.max(cost.marginal(Work::of(next)))
    }

    /// Takes a batch for a worker to run between two layers of its own, which takes `running` seconds without
    /// interruptions and was interrupted for `spent` seconds so far.
    pub fn preempt(&mut self, free: FreeWorker<'_>, running: f64, spent: f64) -> Taken {
        let most = largest_part(running).min(running - spent);
        let each = self.next_part(free.workers);
        if each > most {
            return Taken::default();
        }
        let cost = self.costs.loaded();
        let plan = Plan::new(self.limits, cost, self.queue.waiting(), &[]).preempting(most, each);
        self.take_planned(&plan, free)
    }

    /// Seconds of a worker until all that was admitted is scored.
    pub fn admitted_seconds(&self) -> f64 {
        let admitted = self.queue.admitted();
        self.costs.worker_seconds(admitted, self.limits.max_tokens)
    }

    /// How fast its queue empties.
    pub fn speed<'a>(&self, sharing: &'a Sharing) -> Speed<'a> {
        Speed {
            cost: self.costs.loaded(),
            batch_tokens: self.limits.max_tokens,
            sharing,
        }
    }
}
