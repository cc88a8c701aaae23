//! Continuous batching: forms batches from the sequences of many requests by weighted fair queueing, and
//! returns each request its logits.
//!
//! Each worker thread owns a scorer. A worker that becomes free forms the next batch from what has queued
//! while the last one ran. It never idles while there is work, and no sequence is bound to a batch before
//! that batch runs, so a request that arrives late still gets its share of the next.

mod backlog;
pub(crate) mod fair;
mod queue;
mod reply;
pub(crate) mod worker;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use self::queue::{Arrival, FlowId, ForecastRequest, Outcome, Queue, Speed};
use crate::admission::{Admission, Permit};
use crate::cache::ScoreCache;
use crate::cost::{Costs, Work, duration};
use crate::metrics::Metrics;
use crate::plan::BatchLimits;
use crate::trace::Timeline;
use rerankd_core::SchedulingHints;
use rerankd_core::{Encoding, PairKey};
use rerankd_runtime::Scorer;

/// Why a submitted request has no logits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
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
pub struct Batcher {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// The workers of a [`Batcher`], and how they form batches.
pub struct BatcherConfig {
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
}

struct Shared {
    state: Mutex<State>,
    /// Signalled when something is queued, and when the batcher closes.
    work: Condvar,
    /// Signalled when a worker ends.
    ended: Condvar,
    limits: BatchLimits,
    labels: usize,
    cache: Arc<ScoreCache>,
    admission: Arc<Admission>,
    metrics: Arc<Metrics>,
    /// Requests that are not answered yet.
    requests: watch::Sender<usize>,
    /// The clock of the runtime, which tests stop.
    runtime: Option<tokio::runtime::Handle>,
    /// Where the next panics are planted.
    #[cfg(test)]
    faults: Mutex<Vec<&'static str>>,
}

struct State {
    queue: Queue,
    costs: Costs,
    /// When each worker is expected to be free again; `None` when it is.
    busy_until: Vec<Option<Instant>>,
    /// Whether each worker's thread runs.
    alive: Vec<bool>,
    closed: bool,
}

impl Batcher {
    /// Starts one worker thread for each scorer of `config`.
    ///
    /// # Panics
    /// When the system refuses a thread.
    pub fn start(config: BatcherConfig, admission: Arc<Admission>, metrics: Arc<Metrics>) -> Self {
        let workers = config.scorers.len();
        metrics.workers.set(workers as i64);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queue: Queue::new(config.labels),
                costs: config.costs,
                busy_until: vec![None; workers],
                alive: vec![true; workers],
                closed: false,
            }),
            work: Condvar::new(),
            ended: Condvar::new(),
            limits: config.limits,
            labels: config.labels,
            cache: config.cache,
            admission,
            metrics,
            requests: watch::Sender::new(0),
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
                    .spawn(move || worker::run(&shared, number, scorer))
                    .expect("the system gives a thread")
            })
            .collect();
        Self { shared, workers }
    }

    /// Scores `encodings`: logits `[encodings, labels]` row by row, in their order. Those of the same
    /// key, here or in other requests, are scored once.
    ///
    /// Dropping the future takes what is left of the request out of the queue.
    ///
    /// # Errors
    /// [`BatchError`] when a batch that held part of the request failed, no worker is left, or its
    /// deadline does not leave it the time.
    pub async fn score(
        &self,
        encodings: Vec<(PairKey, Encoding)>,
        hints: SchedulingHints,
        permit: Permit,
    ) -> Result<Vec<f32>, BatchError> {
        let (reply, mut receiver) = reply::channel();
        let (timeline, now) = (Timeline::current(), Instant::now().into_std());
        let arrival = Arrival {
            hints,
            encodings,
            reply,
            permit,
            timeline: timeline.clone(),
            now,
        };
        let pushed = self.shared.change(|state| {
            if state.workers() == 0 {
                return None;
            }
            let before = state.queue.waiting().sequences;
            let pushed = state.queue.push(arrival);
            let added = state.queue.waiting().sequences - before;
            for _ in 0..added.min(state.workers() - state.busy()) {
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
                        self.shared.settle(|state| state.queue.expire(id));
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

    /// How long a request of `work` would take from now on, if nobody came after it.
    pub fn forecast(&self, work: Work, hints: SchedulingHints) -> Duration {
        let state = self.shared.lock();
        let speed = self.shared.speed(&state, Instant::now());
        let request = ForecastRequest { hints, work };
        duration(state.queue.forecast(request, false, speed))
    }

    /// How long it would take to score what waits now.
    pub fn delay(&self) -> Duration {
        let state = self.shared.lock();
        let waiting = state.queue.waiting();
        duration(
            state
                .costs
                .drain_seconds(waiting, self.shared.limits.max_tokens),
        )
    }

    /// Whether a worker is left to score.
    pub fn can_serve(&self) -> bool {
        self.shared.lock().workers() > 0
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
            .wait_timeout_while(state, limit, |state| state.busy() > 0);
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
        let all_idle = state.busy() == 0;
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

impl State {
    fn busy(&self) -> usize {
        self.busy_until.iter().flatten().count()
    }

    /// Workers whose threads run.
    fn workers(&self) -> usize {
        self.alive.iter().filter(|&&alive| alive).count()
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
            state.busy_until[number] = None;
            state.queue.abandon(number, "the worker panicked");
        });
    }

    /// Notes that the thread of worker `number` ends. Unless the batcher has closed, requests fail when it
    /// was the last.
    fn retire(&self, number: usize) {
        let left = self.change(|state| {
            state.busy_until[number] = None;
            state.alive[number] = false;
            if !state.closed {
                state.queue.abandon(number, "the worker ended");
                if state.workers() == 0 {
                    state.queue.fail_all(&BatchError::NoWorkers);
                }
            }
            (!state.closed).then(|| state.workers())
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
        self.requests.send_replace(state.queue.requests());
        let waiting = state.queue.waiting();
        let delay = state.costs.drain_seconds(waiting, self.limits.max_tokens);
        self.metrics.queue_delay_seconds.set(delay);
    }

    fn speed(&self, state: &State, now: Instant) -> Speed {
        let left = |until: &Instant| until.saturating_duration_since(now).as_secs_f64();
        Speed {
            cost: state.costs.loaded(),
            workers: state.costs.workers(),
            busy: state.busy_until.iter().flatten().map(left).sum(),
            batch_tokens: self.limits.max_tokens,
        }
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
            self.shared.settle(|state| state.queue.cancel(self.id));
        }
    }
}

#[cfg(test)]
mod tests;
