//! Every decision about what is scored when: who is admitted, what a worker takes, and what becomes of it.
//! Plain data: the batcher locks it, tests drive it in simulated time.

use std::sync::Arc;

use prometheus::IntGauge;
use tokio::time::Instant;

use super::queue::{ForecastRequest, Job, Outcome, Queue, Speed, Taken};
use super::workers::Workers;
use super::{AdmissionLimits, Demand};
use crate::admission::{Expected, Memory, MemoryPermit, Refusal, Size, check_time};
use crate::cost::{Costs, Work, duration};
use crate::plan::{BatchLimits, Plan, largest_part};
use rerankd_core::Deadline;

pub(super) struct Scheduler {
    pub queue: Queue,
    pub costs: Costs,
    pub workers: Workers,
    memory: Arc<Memory>,
    limits: BatchLimits,
    /// Seconds that a request may wait for others.
    max_delay: f64,
    /// Whether workers can interrupt what they run.
    is_preemptible: bool,
}

/// What a request was given when it was admitted.
#[derive(Debug)]
pub(super) struct Admitted {
    pub memory: MemoryPermit,
    pub request: ForecastRequest,
    /// When it will be done. For tests, which compare.
    #[cfg_attr(not(test), allow(dead_code))]
    pub expected: Expected,
}

impl Scheduler {
    /// Nothing waits, and all workers are free. `tokens` shows what is outstanding.
    pub fn new(
        labels: usize,
        workers: usize,
        costs: Costs,
        limits: BatchLimits,
        admission: AdmissionLimits,
        tokens: IntGauge,
    ) -> Self {
        Self {
            queue: Queue::new(labels),
            costs,
            workers: Workers::new(workers, Instant::now()),
            memory: Memory::new(admission.memory, tokens),
            limits,
            max_delay: admission.max_delay,
            is_preemptible: false,
        }
    }

    /// The same with workers that can interrupt what they run: see [`Self::preempt`].
    pub fn preemptible(self) -> Self {
        Self {
            is_preemptible: true,
            ..self
        }
    }

    /// Admits a request and reserves its turns, or refuses it.
    ///
    /// # Errors
    /// [`Refusal`], before anything was done.
    pub fn admit(&mut self, demand: Demand, now: Instant) -> Result<Admitted, Refusal> {
        let at = now.into_std();
        let request = ForecastRequest {
            hints: demand.hints,
            work: demand.work,
        };
        let left = |deadline: Deadline| deadline.at.saturating_duration_since(at);
        let left = demand.hints.deadline.map(left);
        let speed = self.speed(now);
        let expected = self.queue.expect(request, demand.tokenizing, speed, at);
        let left = left.map(|left| left.as_secs_f64());
        check_time(expected, left, self.max_delay)?;
        let size = Size {
            tokens: demand.work.tokens,
            bytes: demand.bytes,
        };
        let pace = self.costs.pace(demand.work);
        let tenant = demand.hints.tenant;
        let memory = self.memory.take(tenant, expected.is_long(), size, pace)?;
        self.queue.reserve(request, speed.cost, at);
        Ok(Admitted {
            memory,
            request,
            expected,
        })
    }

    /// Takes the next batch of worker `number`, and notes how long it should take.
    pub fn take(&mut self, number: usize, now: Instant) -> Taken {
        let waiting = self.queue.waiting();
        if waiting.sequences == 0 {
            return Taken::default();
        }
        let (cost, alive) = (self.costs.loaded(), self.workers.alive());
        let limits = self.limits.worth(&cost);
        // Where there is a full batch for every worker, nobody needs to be left anything.
        let scarce = cost.marginal(waiting) < limits.max_seconds * alive as f64
            && waiting.tokens < limits.max_tokens.saturating_mul(alive);
        let others = if scarce {
            self.workers.others(number, now)
        } else {
            Vec::new()
        };
        let mut plan = Plan::new(limits, cost, waiting, &others);
        if self.queue.is_shared() {
            plan = match self.is_preemptible {
                true => plan.preemptible(self.next_part()),
                false => plan.short(),
            };
        }
        let speed = self.speed(now);
        let mut taken = self.queue.take(number, &plan, speed, now.into_std());
        if !taken.jobs.is_empty() {
            taken.seconds = cost.seconds(work(&taken.jobs));
            self.workers.start(number, now + duration(taken.seconds));
        }
        taken
    }

    /// Seconds for which the request whose turn it is would interrupt a worker: its share, and at least one
    /// sequence. Infinite if nothing waits, or workers cannot be interrupted.
    pub fn next_part(&self) -> f64 {
        let next = self.is_preemptible.then(|| self.queue.next_request());
        let Some((total, next)) = next.flatten() else {
            return f64::INFINITY;
        };
        let cost = self.costs.loaded();
        let share = cost.marginal(total) / self.workers.alive() as f64;
        share.max(cost.marginal(Work::of(next)))
    }

    /// Takes a batch for worker `number` to run between two layers of its own, which takes `running` seconds
    /// without interruptions and was interrupted for `spent` seconds so far.
    ///
    /// Only for a request that is small next to the running batch, and only when it is its turn, so nobody gets
    /// more than its share. A batch is interrupted for as long as it takes itself at most.
    pub fn preempt(&mut self, number: usize, running: f64, spent: f64, now: Instant) -> Taken {
        let most = largest_part(running).min(running - spent);
        let each = self.next_part();
        if each > most {
            return Taken::default();
        }
        let cost = self.costs.loaded();
        let plan = Plan::new(self.limits, cost, self.queue.waiting(), &[]).preempting(most, each);
        let speed = self.speed(now);
        let mut taken = self.queue.take(number, &plan, speed, now.into_std());
        if !taken.jobs.is_empty() {
            taken.seconds = cost.seconds(work(&taken.jobs));
            self.workers.extend(number, duration(taken.seconds));
        }
        taken
    }

    /// Notes a batch that took `seconds` and began beside so many `busy` workers, and answers the requests that
    /// it completes.
    pub fn complete(&mut self, jobs: &[Job], logits: &[f32], seconds: f64, busy: usize) -> Outcome {
        let busy = [busy, self.workers.busy()];
        self.costs.observe(work(jobs), seconds, busy);
        self.queue.complete(jobs, logits)
    }

    /// Seconds until all that was admitted is scored.
    pub fn drain_seconds(&self) -> f64 {
        let admitted = self.queue.admitted();
        self.costs.drain_seconds(admitted, self.limits.max_tokens)
    }

    fn speed(&self, now: Instant) -> Speed {
        Speed {
            cost: self.costs.loaded(),
            workers: self.costs.workers(),
            busy: self.workers.busy_seconds(now),
            batch_tokens: self.limits.max_tokens,
        }
    }
}

pub(super) fn work(jobs: &[Job]) -> Work {
    Work::all(jobs.iter().map(|job| job.tokens))
}
