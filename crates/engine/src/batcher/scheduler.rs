//! Every decision about what is scored when: who is admitted, what a worker takes, and what becomes of it.
//! Plain data: the batcher locks it, tests drive it in simulated time.
//!
//! Workers are shared by all models. A batch is of one model; models take turns by the seconds that their batches
//! take, over their weights.

use std::sync::Arc;

use prometheus::IntGauge;
use slotmap::{Key, SlotMap};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::lane::{FreeWorker, Lane, LaneConfig};
use super::queue::{ForecastRequest, Job, LaneId, OtherModel, Outcome, Taken};
use super::workers::Workers;
use super::{AdmissionLimits, Demand};
use crate::admission::{Expected, Memory, MemoryPermit, Refusal, Size, check_time};
use crate::cost::{Work, duration};
use crate::fair::Level;
use rerankd_core::Deadline;

/// Turns of models are counted in microseconds.
const MICROSECONDS: f64 = 1e6;

/// The other models for which something waits.
type Others = SmallVec<[OtherModel; 2]>;

pub(super) struct Scheduler {
    pub lanes: SlotMap<LaneId, Lane>,
    pub workers: Workers,
    /// Turns of the models for which something waits.
    order: Level<LaneId>,
    memory: Arc<Memory>,
    /// Seconds that a request may wait for others.
    max_delay: f64,
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
    /// Without models and workers. `tokens` shows what is outstanding.
    pub fn new(admission: AdmissionLimits, tokens: IntGauge) -> Self {
        Self {
            lanes: SlotMap::default(),
            workers: Workers::new(Instant::now()),
            order: Level::default(),
            memory: Memory::new(admission.memory, tokens),
            max_delay: admission.max_delay,
        }
    }

    /// Adds a model, and the workers that it needs.
    pub fn add(&mut self, config: LaneConfig) -> LaneId {
        while self.workers.count() < config.workers {
            self.workers.add();
        }
        self.lanes.insert(Lane::new(config))
    }

    /// Removes a model for which nothing waits.
    pub fn remove(&mut self, id: LaneId) {
        self.order.leave(id);
        self.lanes.remove(id);
    }

    /// Admits a request for the model `id` and reserves its turns, or refuses it.
    ///
    /// # Errors
    /// [`Refusal`], before anything was done.
    pub fn admit(&mut self, id: LaneId, demand: Demand, now: Instant) -> Result<Admitted, Refusal> {
        let at = now.into_std();
        let request = ForecastRequest {
            hints: demand.hints,
            work: demand.work,
        };
        let left = |deadline: Deadline| deadline.at.saturating_duration_since(at);
        let left = demand.hints.deadline.map(left);
        let others = self.others(id);
        let lane = &mut self.lanes[id];
        let speed = lane.speed(&self.workers, &others, now);
        let expected = lane.queue.expect(request, demand.tokenizing, speed, at);
        let left = left.map(|left| left.as_secs_f64());
        check_time(expected, left, self.max_delay)?;
        let size = Size {
            tokens: demand.work.tokens,
            bytes: demand.bytes,
        };
        let pace = lane.costs.pace(demand.work);
        let holder = (demand.hints.tenant, id.data().as_ffi());
        let memory = self.memory.take(holder, expected.is_long(), size, pace)?;
        lane.queue.reserve(request, speed.cost, at);
        Ok(Admitted {
            memory,
            request,
            expected,
        })
    }

    /// Takes the next batch of worker `number`, of the model whose turn it is, and notes how long it should take.
    pub fn take(&mut self, number: usize, now: Instant) -> Taken {
        self.update_order();
        let turns: SmallVec<[LaneId; 4]> = self.order.waiting().collect();
        let mut all = Taken::default();
        for id in turns {
            let others = self.others(id);
            let lane = &mut self.lanes[id];
            if number >= lane.workers {
                continue;
            }
            let mut taken = lane.take(FreeWorker {
                number,
                workers: &self.workers,
                others: &others,
                now,
            });
            taken.lane = id;
            taken.outcome.wasted += all.outcome.wasted;
            if !taken.jobs.is_empty() {
                self.charge(id, taken.seconds);
                self.workers.start(number, now + duration(taken.seconds));
            }
            if !taken.jobs.is_empty() || taken.more {
                return taken;
            }
            // Only requests that are too late waited for this model.
            all = taken;
        }
        all
    }

    /// Takes a batch for worker `number` to run between two layers of its own, which is of the model `id`, takes
    /// `running` seconds without interruptions and was interrupted for `spent` seconds so far.
    ///
    /// Only for a request for the same model that is small next to the running batch, and only when it is its turn,
    /// so nobody gets more than its share. A batch is interrupted for as long as it takes itself at most.
    pub fn preempt(
        &mut self,
        id: LaneId,
        number: usize,
        (running, spent): (f64, f64),
        now: Instant,
    ) -> Taken {
        self.update_order();
        if self.order.waiting().next() != Some(id) {
            return Taken::default();
        }
        let others = self.others(id);
        let free = FreeWorker {
            number,
            workers: &self.workers,
            others: &others,
            now,
        };
        let mut taken = self.lanes[id].preempt(free, running, spent);
        taken.lane = id;
        if !taken.jobs.is_empty() {
            self.charge(id, taken.seconds);
            self.workers.extend(number, duration(taken.seconds));
        }
        taken
    }

    /// Notes a batch of the model `id` that took `seconds` and began beside so many `busy` workers, and answers the
    /// requests that it completes.
    pub fn complete(
        &mut self,
        id: LaneId,
        jobs: &[Job],
        logits: &[f32],
        (seconds, busy): (f64, usize),
    ) -> Outcome {
        let busy = [busy, self.workers.busy()];
        // The model may have been removed since: then nobody waits for the batch.
        let Some(lane) = self.lanes.get_mut(id) else {
            return Outcome::default();
        };
        lane.costs.observe(work(jobs), seconds, busy);
        lane.queue.complete(jobs, logits)
    }

    /// Seconds until all that was admitted is scored.
    pub fn drain_seconds(&self) -> f64 {
        self.lanes.values().map(Lane::drain_seconds).sum()
    }

    /// Sequences that wait, of all models.
    pub fn waiting(&self) -> usize {
        let waiting = |lane: &Lane| lane.queue.waiting().sequences;
        self.lanes.values().map(waiting).sum()
    }

    /// Lets the models take turns for which something waits, and no others. Their present does not move between two
    /// batches, so that it is the same when each of them joined.
    fn update_order(&mut self) {
        for (id, lane) in &self.lanes {
            match lane.queue.waiting().sequences {
                0 => self.order.leave(id),
                _ => {
                    let next = microseconds(lane.next_seconds());
                    self.order.join(id, lane.weight(), next);
                }
            }
        }
    }

    /// The model `id`, for which something waited, is given so many seconds of a worker.
    fn charge(&mut self, id: LaneId, seconds: f64) {
        self.order.charge(id, microseconds(seconds));
    }

    fn others(&self, id: LaneId) -> Others {
        if self.lanes.len() == 1 {
            return Others::new();
        }
        let weight = self.lanes[id].weight();
        let others = self
            .lanes
            .iter()
            .filter(|(other, lane)| *other != id && lane.queue.admitted().sequences > 0);
        others.map(|(_, lane)| lane.beside(weight)).collect()
    }
}

fn microseconds(seconds: f64) -> usize {
    (seconds * MICROSECONDS) as usize
}

pub(super) fn work(jobs: &[Job]) -> Work {
    Work::all(jobs.iter().map(|job| job.tokens))
}
