//! Continuous batching: forms batches from the sequences of many requests by weighted fair queueing, and
//! returns each request its logits.
//!
//! Each worker thread owns a scorer of every model. A worker that becomes free forms the next batch from what has queued
//! while the last one ran. It never idles while there is work, and no sequence is bound to a batch before
//! that batch runs, so a request that arrives late still gets its share of the next.

pub(crate) mod batch;
mod lane;
#[doc(hidden)]
pub mod lock_time;
mod preemption;
mod queue;
mod reply;
mod scheduler;
mod sharing;
mod worker;
mod workers;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use slotmap::SecondaryMap;
use tokio::sync::watch;
use tokio::time::Instant;

pub(crate) use self::lane::LaneConfig;
use self::queue::{Arrival, FlowId, LaneId, Outcome, Queue};
use self::scheduler::Scheduler;
use self::sharing::ForecastRequest;
use crate::admission::{Expected, MemoryPermit, Refusal, Size};
use crate::cache::ScoreCache;
use crate::cost::{Costs, Work, duration};
use crate::metrics::{Metrics, ModelMetrics};
use crate::queue_delay::QueueDelay;
use crate::trace::Timeline;
use rerankd_core::{Encoding, PairKey, SchedulingHints};
use rerankd_runtime::Scorer;

/// Why a submitted request has no logits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BatchError {
    /// A batch that held part of it failed. The text is for the log.
    #[error("{0}")]
    Failed(String),
    /// Every worker has been given up.
    #[error("every worker has failed")]
    NoWorkers,
    /// It was not begun, because it would not have ended before its deadline.
    #[error("it would take {} ms and has less", needed.as_millis())]
    TooLate {
        /// How long it would have taken.
        needed: Duration,
    },
    /// Its deadline passed.
    #[error("its deadline passed")]
    DeadlinePassed {
        /// Whether it had cost a token by then.
        begun: bool,
    },
}

/// The queues of all models, and the workers that empty them.
pub(crate) struct Batcher {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// A model of a [`Batcher`]. Dropping it takes the model out of the batcher and closes its scorers.
pub(crate) struct ModelBatcher {
    shared: Arc<Shared>,
    model: Arc<Model>,
}

/// A model, as workers and requests know it.
struct Model {
    id: LaneId,
    name: Arc<str>,
    labels: usize,
    metrics: ModelMetrics,
    /// Requests that are not answered yet.
    requests: watch::Sender<usize>,
    /// What its next request would take to interrupt a worker, as the bits of an `f64`: workers look at it between
    /// two layers, without the lock.
    next_part: AtomicU64,
}

/// A request that asks to be admitted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demand {
    pub hints: SchedulingHints,
    /// Estimated work of the model.
    pub work: Work,
    /// Bytes of its texts.
    pub bytes: usize,
    /// When its texts would be tokenized.
    pub tokenizing: Expected,
}

/// What a [`Batcher`] admits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdmissionLimits {
    /// Memory of all requests.
    pub memory: Size,
    /// Seconds that a request may wait for others.
    pub max_delay: f64,
}

/// A change of the models that a worker scores.
enum ModelChange {
    /// It scores batches of this model too.
    Add(Arc<Model>, Box<dyn Scorer>),
    /// It scores no more batches of this model.
    Remove(LaneId),
}

struct Shared {
    state: Mutex<State>,
    /// Signalled when something is queued or the models of a worker change, and when the batcher closes.
    work: Condvar,
    /// Signalled when a worker ends.
    ended: Condvar,
    cache: Arc<ScoreCache>,
    delay: Arc<QueueDelay>,
    metrics: Arc<Metrics>,
    /// The clock of the runtime, which tests stop.
    runtime: Option<tokio::runtime::Handle>,
    /// Where the next panics are planted.
    #[cfg(test)]
    faults: Mutex<Vec<&'static str>>,
}

struct State {
    scheduler: Scheduler,
    models: SecondaryMap<LaneId, Arc<Model>>,
    /// For each worker, those that it has not made yet, oldest first.
    changes: Vec<VecDeque<ModelChange>>,
    closed: bool,
}

impl Batcher {
    /// A batcher without models, whose scores go to `cache`.
    pub fn start(
        admission: AdmissionLimits,
        cache: Arc<ScoreCache>,
        delay: Arc<QueueDelay>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let state = State {
            scheduler: Scheduler::new(admission, metrics.queue_tokens.clone()),
            models: SecondaryMap::new(),
            changes: Vec::new(),
            closed: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            ended: Condvar::new(),
            cache,
            delay,
            metrics,
            runtime: tokio::runtime::Handle::try_current().ok(),
            #[cfg(test)]
            faults: Mutex::default(),
        });
        Self {
            shared,
            threads: Mutex::default(),
        }
    }

    /// Adds a model of this `name` with a scorer for each of as many workers, which are started if there are fewer.
    ///
    /// # Panics
    /// When the system refuses a thread.
    pub fn add(
        &self,
        config: LaneConfig,
        mut scorers: Vec<Box<dyn Scorer>>,
        name: &str,
    ) -> ModelBatcher {
        let nested = scorers.iter_mut().all(|scorer| scorer.nested().is_some());
        let config = LaneConfig {
            workers: scorers.len(),
            is_preemptible: nested,
            ..config
        };
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let labels = config.labels;
        let (model, workers) = self.shared.change(|state| {
            let id = state.scheduler.add(config);
            let model = Arc::new(Model {
                id,
                name: name.into(),
                labels,
                metrics: self.shared.metrics.of_model(name),
                requests: watch::Sender::new(0),
                next_part: AtomicU64::new(f64::INFINITY.to_bits()),
            });
            state.models.insert(id, model.clone());
            let workers = &state.scheduler.workers;
            state.changes.resize_with(workers.count(), VecDeque::new);
            for (number, scorer) in scorers.into_iter().enumerate() {
                if workers.is_alive(number) {
                    state.changes[number].push_back(ModelChange::Add(model.clone(), scorer));
                }
            }
            self.shared.metrics.workers.set(workers.alive() as i64);
            (model, workers.count())
        });
        self.shared.work.notify_all();
        while threads.len() < workers {
            let (shared, number) = (self.shared.clone(), threads.len());
            let thread = std::thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || worker::run(shared, number))
                .expect("the system gives a thread");
            threads.push(thread);
        }
        ModelBatcher {
            shared: self.shared.clone(),
            model,
        }
    }

    /// Starts no more batches, and waits at most `limit` for those that run: a process that exits while
    /// ONNX Runtime computes may crash and lose its exit code. Waiting requests are never scored.
    pub fn stop(&self, limit: Duration) {
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.work.notify_all();
        // The caller exits either way.
        let _ = self
            .shared
            .ended
            .wait_timeout_while(state, limit, |state| state.scheduler.workers.busy() > 0);
    }
}

impl ModelBatcher {
    /// Scores `encodings`: logits `[encodings, labels]` row by row, in their order. Those of the same
    /// key, here or in other requests, are scored once. The `prefix` is the tokens that all begin with and that are
    /// computed once, fewer than any has.
    ///
    /// Dropping the future takes what is left of the request out of the queue.
    ///
    /// # Errors
    /// [`BatchError`] when a batch that held part of the request failed, no worker is left, or its
    /// deadline does not leave it the time.
    pub async fn score(
        &self,
        encodings: Vec<(PairKey, Encoding)>,
        prefix: usize,
        hints: SchedulingHints,
        permit: Permit,
    ) -> Result<Vec<f32>, BatchError> {
        let Permit {
            memory: permit,
            mut reservation,
        } = permit;
        let (reply, mut receiver) = reply::channel();
        let (timeline, now) = (Timeline::current(), Instant::now().into_std());
        let arrival = Arrival {
            hints,
            encodings,
            prefix,
            reply,
            permit,
            timeline: timeline.clone(),
            now,
        };
        let pushed = self.shared.change(|state| {
            reservation.end(state);
            let Scheduler { lanes, workers, .. } = &mut state.scheduler;
            let lane = &mut lanes[self.model.id];
            if workers.alive_of(lane.workers) == 0 {
                return None;
            }
            let before = lane.queue.waiting().sequences;
            let pushed = lane.queue.push(arrival);
            let added = lane.queue.waiting().sequences - before;
            if lane.workers < workers.count() {
                // Not every worker can score it, and any may wake up.
                self.shared.work.notify_all();
            } else {
                for _ in 0..added.min(workers.idle()) {
                    self.shared.work.notify_one();
                }
            }
            Some(pushed)
        });
        let (id, shared) = pushed.ok_or(BatchError::NoWorkers)?;
        self.shared.metrics.shared_pairs.inc_by(shared as u64);
        let mut ticket = Ticket {
            batcher: self,
            id,
            answered: false,
        };
        let answer = match hints.deadline {
            None => receiver.await,
            Some(deadline) => {
                let at = Instant::from_std(deadline.at);
                tokio::select! {
                    answer = &mut receiver => answer,
                    () = tokio::time::sleep_until(at) => {
                        self.settle(|queue| queue.expire(id));
                        // It may have been answered in this very moment.
                        receiver.await
                    }
                }
            }
        };
        ticket.answered = answer.is_ok();
        timeline.complete(now, Instant::now().into_std());
        answer.unwrap_or_else(|_| Err(BatchError::Failed("the worker was lost".into())))
    }

    /// Admits a request, or refuses it: by the time at which it would be done, and by the memory that it
    /// needs. Decided at once for all that ask at the same time: who is admitted is ahead of the next.
    ///
    /// # Errors
    /// [`Refusal`], before anything was done.
    pub fn admit(&self, demand: Demand) -> Result<Permit, Refusal> {
        let (shared, id) = (&self.shared, self.model.id);
        let now = Instant::now();
        let admitted = shared.change(|state| state.scheduler.admit(id, demand, now))?;
        Ok(Permit {
            memory: admitted.memory,
            reservation: Reservation {
                shared: shared.clone(),
                id,
                request: Some(admitted.request),
            },
        })
    }

    /// How long it would take to score what waits now for this model.
    pub fn delay(&self) -> Duration {
        let scheduler = &self.shared.lock().scheduler;
        duration(scheduler.drain_seconds_of(self.model.id, Instant::now()))
    }

    /// Whether a worker is left to score.
    pub fn can_serve(&self) -> bool {
        let scheduler = &self.shared.lock().scheduler;
        let workers = scheduler.lanes[self.model.id].workers;
        scheduler.workers.alive_of(workers) > 0
    }

    /// What its batches cost, as far as it is known.
    pub fn costs(&self) -> Costs {
        self.shared.lock().scheduler.lanes[self.model.id]
            .costs
            .clone()
    }

    /// What is counted for this model.
    pub fn metrics(&self) -> &ModelMetrics {
        &self.model.metrics
    }

    /// Changes the queue and counts the tokens that this wasted.
    fn settle(&self, change: impl FnOnce(&mut Queue) -> Outcome) {
        let id = self.model.id;
        let settle = |state: &mut State| change(&mut state.scheduler.lanes[id].queue);
        self.shared.settle(settle);
    }

    /// Resolves when every request has been answered or has left.
    pub async fn idle(&self) {
        let mut requests = self.model.requests.subscribe();
        // An error means that the sender is gone; it lives as long as `self`.
        let _ = requests.wait_for(|&requests| requests == 0).await;
    }
}

impl Drop for ModelBatcher {
    fn drop(&mut self) {
        let id = self.model.id;
        self.shared.change(|state| {
            state.scheduler.remove(id);
            state.models.remove(id);
            for (number, changes) in state.changes.iter_mut().enumerate() {
                // A worker whose thread has ended has closed its scorers, and would never look.
                if state.scheduler.workers.is_alive(number) {
                    changes.push_back(ModelChange::Remove(id));
                }
            }
        });
        self.shared.work.notify_all();
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        let all_idle = state.scheduler.workers.busy() == 0;
        drop(state);
        self.shared.work.notify_all();
        // Idle workers end at once, and the process should not exit while they close their sessions.
        // A worker in the middle of a batch is not waited for.
        if all_idle {
            let threads = self.threads.get_mut();
            for thread in threads.unwrap_or_else(PoisonError::into_inner).drain(..) {
                // A worker reports its own panics.
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and publishes what is left.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        self.publish(&state);
        result
    }

    /// Changes the queue and counts the tokens that this wasted.
    fn settle(&self, change: impl FnOnce(&mut State) -> Outcome) {
        let outcome = self.change(change);
        self.metrics.wasted_tokens.inc_by(outcome.wasted as u64);
    }

    /// Fails what worker `number` had taken, and makes it free.
    fn recover(&self, number: usize) {
        self.change(|state| {
            state.scheduler.workers.finish(number);
            for lane in state.scheduler.lanes.values_mut() {
                lane.queue.abandon(number, "the worker panicked");
            }
        });
    }

    /// Notes that the thread of worker `number` ends. Unless the batcher has closed, requests fail when it
    /// was the last.
    fn retire(&self, number: usize) {
        let left = self.change(|state| {
            let scheduler = &mut state.scheduler;
            scheduler.workers.retire(number);
            state.changes[number].clear();
            if !state.closed {
                for lane in scheduler.lanes.values_mut() {
                    lane.queue.abandon(number, "the worker ended");
                    if scheduler.workers.alive_of(lane.workers) == 0 {
                        lane.queue.fail_all(&BatchError::NoWorkers);
                    }
                }
            }
            (!state.closed).then(|| scheduler.workers.alive())
        });
        self.ended.notify_all();
        if let Some(left) = left {
            self.metrics.workers.set(left as i64);
            tracing::error!(worker = number, left, "worker given up");
        }
    }

    /// Panics where a test has planted it.
    fn fault(&self, _place: &'static str) {
        #[cfg(test)]
        {
            let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = faults.iter().position(|fault| *fault == _place) {
                faults.remove(at);
                drop(faults);
                panic!("planted: {_place}");
            }
        }
    }

    fn publish(&self, state: &State) {
        let scheduler = &state.scheduler;
        for (id, lane) in &scheduler.lanes {
            let model = &state.models[id];
            model.requests.send_replace(lane.queue.requests());
            let part = lane.next_part(&scheduler.workers);
            model.next_part.store(part.to_bits(), Ordering::Relaxed);
        }
        self.delay.set_scoring(scheduler.drain_seconds());
    }
}

/// The right of one request to be scored. Dropping it gives back its memory and its turns.
#[derive(Debug)]
#[must_use = "dropping a permit gives it back"]
pub(crate) struct Permit {
    memory: MemoryPermit,
    reservation: Reservation,
}

impl Permit {
    /// Replaces the estimate by the counted number of tokens.
    pub fn correct(&mut self, tokens: usize) {
        self.memory.correct(tokens);
    }
}

/// The turns of a request that was admitted and has not been queued.
struct Reservation {
    shared: Arc<Shared>,
    id: LaneId,
    /// `None` once it has ended.
    request: Option<ForecastRequest>,
}

impl Reservation {
    fn end(&mut self, state: &mut State) {
        if let Some(request) = self.request.take()
            && let Some(lane) = state.scheduler.lanes.get_mut(self.id)
        {
            lane.queue.release(request);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.request.is_some() {
            let shared = self.shared.clone();
            shared.change(|state| self.end(state));
        }
    }
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reservation").field(&self.request).finish()
    }
}

/// Cancels its request when it is dropped before the answer.
struct Ticket<'a> {
    batcher: &'a ModelBatcher,
    id: FlowId,
    answered: bool,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.batcher.settle(|queue| queue.cancel(self.id));
        }
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
