//! Continuous batching: forms batches from the sequences of many requests by weighted fair queueing, and
//! returns each request its logits.
//!
//! Each worker thread owns a scorer. A worker that becomes free forms the next batch from what has queued
//! while the last one ran. It never idles while there is work, and no sequence is bound to a batch before
//! that batch runs, so a request that arrives late still gets its share of the next.

pub(crate) mod batch;
#[doc(hidden)]
pub mod lock_time;
mod preemption;
mod queue;
mod reply;
mod scheduler;
mod worker;
mod workers;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use self::queue::{Arrival, FlowId, ForecastRequest, Outcome};
use self::scheduler::Scheduler;
use crate::admission::{Expected, MemoryPermit, Refusal, Size};
use crate::cache::ScoreCache;
use crate::cost::{Costs, Work, duration};
use crate::metrics::Metrics;
use crate::plan::BatchLimits;
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

/// The queue and the workers that empty it.
pub(crate) struct Batcher {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
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

/// The workers of a [`Batcher`], and how they form batches.
pub(crate) struct BatcherConfig {
    /// A scorer for each worker.
    pub scorers: Vec<Box<dyn Scorer>>,
    /// Logits of each sequence.
    pub labels: usize,
    /// Limits of one batch.
    pub limits: BatchLimits,
    /// The cost model of batches.
    pub costs: Costs,
    /// The cache that finished scores go to.
    pub cache: Arc<ScoreCache>,
    /// What is admitted.
    pub admission: AdmissionLimits,
}

struct Shared {
    state: Mutex<State>,
    /// Signalled when something is queued, and when the batcher closes.
    work: Condvar,
    /// Signalled when a worker ends.
    ended: Condvar,
    labels: usize,
    cache: Arc<ScoreCache>,
    delay: Arc<QueueDelay>,
    metrics: Arc<Metrics>,
    /// Requests that are not answered yet.
    requests: watch::Sender<usize>,
    /// [`Scheduler::next_part`], as the bits of an `f64`: workers look at it between two layers, without the lock.
    next_part: AtomicU64,
    /// The clock of the runtime, which tests stop.
    runtime: Option<tokio::runtime::Handle>,
    /// Where the next panics are planted.
    #[cfg(test)]
    faults: Mutex<Vec<&'static str>>,
}

struct State {
    scheduler: Scheduler,
    closed: bool,
}

impl Batcher {
    /// Starts one worker thread for each scorer of `config`.
    ///
    /// # Panics
    /// When the system refuses a thread.
    pub fn start(mut config: BatcherConfig, delay: Arc<QueueDelay>, metrics: Arc<Metrics>) -> Self {
        let workers = config.scorers.len();
        metrics.workers.set(workers as i64);
        let mut scheduler = Scheduler::new(
            config.labels,
            workers,
            config.costs,
            config.limits,
            config.admission,
            metrics.queue_tokens.clone(),
        );
        let mut scorers = config.scorers.iter_mut();
        if scorers.all(|scorer| scorer.nested().is_some()) {
            scheduler = scheduler.preemptible();
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                scheduler,
                closed: false,
            }),
            work: Condvar::new(),
            ended: Condvar::new(),
            labels: config.labels,
            cache: config.cache,
            delay,
            metrics,
            requests: watch::Sender::new(0),
            next_part: AtomicU64::new(f64::INFINITY.to_bits()),
            runtime: tokio::runtime::Handle::try_current().ok(),
            #[cfg(test)]
            faults: Mutex::default(),
        });
        shared.change(|_| ());
        let workers = config
            .scorers
            .into_iter()
            .enumerate()
            .map(|(number, scorer)| {
                let shared = shared.clone();
                std::thread::Builder::new()
                    .name(format!("worker-{number}"))
                    .spawn(move || worker::run(shared, number, scorer))
                    .expect("the system gives a thread")
            })
            .collect();
        Self { shared, workers }
    }

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
            let scheduler = &mut state.scheduler;
            reservation.end(scheduler);
            if scheduler.workers.alive() == 0 {
                return None;
            }
            let before = scheduler.queue.waiting().sequences;
            let pushed = scheduler.queue.push(arrival);
            let added = scheduler.queue.waiting().sequences - before;
            for _ in 0..added.min(scheduler.workers.idle()) {
                self.shared.work.notify_one();
            }
            Some(pushed)
        });
        let (id, shared) = pushed.ok_or(BatchError::NoWorkers)?;
        self.shared.metrics.shared_pairs.inc_by(shared as u64);
        let mut ticket = Ticket {
            shared: &self.shared,
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
                        self.shared.settle(|state| state.scheduler.queue.expire(id));
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
        let shared = &self.shared;
        let admitted = shared.change(|state| state.scheduler.admit(demand, Instant::now()))?;
        Ok(Permit {
            memory: admitted.memory,
            reservation: Reservation {
                shared: shared.clone(),
                request: Some(admitted.request),
            },
        })
    }

    /// How long it would take to score what waits now.
    pub fn delay(&self) -> Duration {
        duration(self.shared.lock().scheduler.drain_seconds())
    }

    /// Whether a worker is left to score.
    pub fn can_serve(&self) -> bool {
        self.shared.lock().scheduler.workers.alive() > 0
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

    /// Resolves when every request has been answered or has left.
    pub async fn idle(&self) {
        let mut requests = self.shared.requests.subscribe();
        // An error means that the sender is gone; it lives as long as `self`.
        let _ = requests.wait_for(|&requests| requests == 0).await;
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
            for worker in self.workers.drain(..) {
                // A worker reports its own panics.
                let _ = worker.join();
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
            state.scheduler.queue.abandon(number, "the worker panicked");
        });
    }

    /// Notes that the thread of worker `number` ends. Unless the batcher has closed, requests fail when it
    /// was the last.
    fn retire(&self, number: usize) {
        let left = self.change(|state| {
            let scheduler = &mut state.scheduler;
            scheduler.workers.retire(number);
            if !state.closed {
                scheduler.queue.abandon(number, "the worker ended");
                if scheduler.workers.alive() == 0 {
                    scheduler.queue.fail_all(&BatchError::NoWorkers);
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
        self.requests.send_replace(state.scheduler.queue.requests());
        self.delay.set_scoring(state.scheduler.drain_seconds());
        let part = state.scheduler.next_part();
        self.next_part.store(part.to_bits(), Ordering::Relaxed);
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
    /// `None` once it has ended.
    request: Option<ForecastRequest>,
}

impl Reservation {
    fn end(&mut self, scheduler: &mut Scheduler) {
        if let Some(request) = self.request.take() {
            scheduler.queue.release(request);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.request.is_some() {
            let shared = self.shared.clone();
            shared.change(|state| self.end(&mut state.scheduler));
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
    shared: &'a Shared,
    id: FlowId,
    answered: bool,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.shared
                .settle(|state| state.scheduler.queue.cancel(self.id));
        }
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
