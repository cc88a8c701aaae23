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
use super::queue::{Job, LaneId, Outcome, Taken, work};
use super::sharing::{ForecastRequest, OtherModel, Sharing, seconds_until_released};
use super::workers::Workers;
use super::{AdmissionLimits, Demand};
use crate::admission::{Expected, Memory, MemoryPermit, Missing, Refusal, Size, check_time};
use crate::cost::duration;
use crate::fair::Level;
use rerankd_core::Deadline;

/// Turns of models are counted in microseconds.
const MICROSECONDS: f64 = 1e6;

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
        let sharing = self.sharing(id, now);
        let lane = &self.lanes[id];
        let speed = lane.speed(&sharing);
        let expected = lane.queue.expect(request, demand.tokenizing, speed, at);
        let left = left.map(|left| left.as_secs_f64());
        check_time(expected, left, self.max_delay)?;
        let size = Size {
            tokens: demand.work.tokens,
            bytes: demand.bytes,
        };
        let holder = (demand.hints.tenant, id.data().as_ffi());
        let room = |missing: &[Missing]| self.seconds_until_room(id, missing, now);
        let memory = self.memory.take(holder, expected.is_long(), size, room)?;
        let cost = speed.cost;
        self.lanes[id].queue.reserve(request, cost, at);
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
            if number >= self.lanes[id].workers {
                continue;
            }
            let sharing = self.sharing(id, now);
            let mut taken = self.lanes[id].take(FreeWorker {
                number,
                workers: &self.workers,
                sharing: &sharing,
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
        let sharing = self.sharing(id, now);
        let free = FreeWorker {
            number,
            workers: &self.workers,
            sharing: &sharing,
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

    /// Notes a batch of the model `id` that took `seconds` and began while so many of its workers were `busy`, and
    /// answers the requests that it completes.
    pub fn complete(
        &mut self,
        id: LaneId,
        jobs: &[Job],
        logits: &[f32],
        (seconds, busy): (f64, usize),
    ) -> Outcome {
        // The model may have been removed since: then nobody waits for the batch.
        let Some(lane) = self.lanes.get_mut(id) else {
            return Outcome::default();
        };
        let busy = [busy, self.workers.busy_of(lane.workers)];
        lane.costs.observe(work(jobs), seconds, busy);
        lane.queue.complete(jobs, logits)
    }

    /// Seconds until all that was admitted is scored.
    pub fn drain_seconds(&self) -> f64 {
        let lanes = self.lanes.values();
        let mut lanes: SmallVec<[(usize, f64); 4]> = lanes
            .map(|lane| (lane.workers, lane.admitted_seconds()))
            .collect();
        lanes.sort_unstable_by_key(|(workers, _)| *workers);
        let mut sum = 0.0;
        let until = lanes.into_iter().map(|(workers, seconds)| {
            sum += seconds;
            sum / self.workers.alive_of(workers).max(1) as f64
        });
        until.fold(0.0, f64::max)
    }

    /// Seconds until all that was admitted for the model `id` is scored, what runs and the shares of other models
    /// included.
    pub fn drain_seconds_of(&self, id: LaneId, now: Instant) -> f64 {
        let sharing = self.sharing(id, now);
        let lane = &self.lanes[id];
        let admitted = lane.queue.admitted();
        let speed = lane.speed(&sharing);
        speed.completion(admitted, speed.cost.marginal(admitted))
    }

    /// Workers of the model `id` that score a batch.
    pub fn busy_of(&self, id: LaneId) -> usize {
        let lane = self.lanes.get(id);
        lane.map_or(0, |lane| self.workers.busy_of(lane.workers))
    }

    /// Seconds until what is `missing` for a request for the model `id` is released.
    fn seconds_until_room(&self, id: LaneId, missing: &[Missing], now: Instant) -> f64 {
        let all = self.workers.set(self.workers.count(), now);
        let until = |missing: &Missing| {
            let models = self.lanes.iter().map(|(other, lane)| {
                let releases = match other == id {
                    true => missing.of_own,
                    false => missing.of_other,
                };
                lane.draining(&self.workers, releases)
            });
            seconds_until_released(missing.amount, models, all.alive as f64)
        };
        let seconds = missing.iter().map(until).fold(0.0, f64::max);
        // What runs is not among what waits, and ends first.
        seconds + all.busy / all.alive as f64
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

    /// What the model `id` has of the workers now.
    fn sharing(&self, id: LaneId, now: Instant) -> Sharing {
        let lane = &self.lanes[id];
        let waits = |other: LaneId, lane: &Lane| other != id && lane.queue.admitted().sequences > 0;
        let lanes = self.lanes.iter();
        let waiting = lanes.filter(|(other, lane)| waits(*other, lane));
        let others: SmallVec<[OtherModel; 2]> = waiting
            .map(|(_, other)| other.beside(lane.weight()))
            .collect();
        let more = others.iter().map(|other| other.workers);
        let more = more.filter(|&workers| workers > lane.workers);
        let mut counts: SmallVec<[usize; 2]> = std::iter::once(lane.workers).chain(more).collect();
        counts.sort_unstable();
        counts.dedup();
        let sets = counts.into_iter();
        Sharing {
            sets: sets.map(|count| self.workers.set(count, now)).collect(),
            others,
        }
    }
}

fn microseconds(seconds: f64) -> usize {
    (seconds * MICROSECONDS) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::{Cost, Costs, Estimator, Work};
    use crate::plan::{BatchLimits, SHARE_ABOVE};
    use rerankd_core::{SchedulingHints, Tenant};

    /// A model with so many seconds for a token.
    fn model(per_token: f64, workers: usize) -> LaneConfig {
        let cost = Cost {
            base: 0.0,
            per_token,
            per_square: 0.0,
        };
        LaneConfig {
            labels: 1,
            workers,
            costs: Costs::new(Estimator::new(cost), workers),
            limits: BatchLimits {
                max_tokens: 512,
                max_seconds: 0.1,
                share_above: SHARE_ABOVE,
            },
            share: 1,
            is_preemptible: false,
        }
    }

    fn scheduler(tokens: usize) -> Scheduler {
        let admission = AdmissionLimits {
            memory: Size {
                tokens,
                bytes: usize::MAX,
            },
            max_delay: f64::INFINITY,
        };
        let gauge = IntGauge::new("queue_tokens", "tokens").unwrap();
        Scheduler::new(admission, gauge)
    }

    /// Asks for 1000 tokens.
    fn admit(scheduler: &mut Scheduler, id: LaneId, tenant: u64) -> Result<Admitted, Refusal> {
        let hints = SchedulingHints {
            tenant: Tenant(tenant),
            ..SchedulingHints::default()
        };
        let demand = Demand {
            hints,
            work: Work::all([10; 100]),
            bytes: 0,
            tokenizing: Expected::new(0.0, 0.0),
        };
        scheduler.admit(id, demand, Instant::now())
    }

    #[test]
    fn when_to_retry_is_told_by_the_models_that_hold_the_queue() {
        let mut scheduler = scheduler(10_000);
        let (slow, fast) = (scheduler.add(model(1e-2, 2)), scheduler.add(model(1e-6, 2)));
        let mut held = Vec::new();
        for tenant in 0.. {
            match admit(&mut scheduler, slow, tenant) {
                Ok(admitted) => held.push(admitted),
                Err(_) => break,
            }
        }
        assert!(held.len() > 5, "{}", held.len());
        let refused = loop {
            match admit(&mut scheduler, fast, 99) {
                Ok(admitted) => held.push(admitted),
                Err(refusal) => break refusal,
            }
        };
        let Refusal::Memory { retry_after } = refused else {
            panic!("{refused:?}");
        };
        // At the pace of the slow model, of which two workers score 200 tokens a second.
        assert!(retry_after.as_secs_f64() > 0.5, "{retry_after:?}");
        assert!(
            retry_after.as_secs_f64() < 10_000.0 / 200.0,
            "{retry_after:?}"
        );
    }

    #[test]
    fn a_model_on_few_workers_is_expected_by_their_number() {
        let mut scheduler = scheduler(usize::MAX);
        let gpu = scheduler.add(model(1e-3, 2));
        let cpu = scheduler.add(model(1e-3, 16));
        let completion =
            |scheduler: &mut Scheduler, id| admit(scheduler, id, 1).unwrap().expected.completion;
        let close = |seconds: f64, expected: f64| {
            assert!((seconds / expected - 1.0).abs() < 0.05, "{seconds} s");
        };
        // A second of work on two workers, and then beside that on sixteen.
        close(completion(&mut scheduler, gpu), 0.5);
        assert!(scheduler.drain_seconds() > 0.49);
        // On sixteen workers, of which the other model has two at most: as fast as on fourteen.
        close(completion(&mut scheduler, cpu), 1.0 / 14.0);
    }
}
