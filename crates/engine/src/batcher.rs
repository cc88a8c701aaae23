//! Puts sequences of many requests together in batches, fairly, and hands each request its logits.
//!
//! Each worker thread owns a scorer. A worker that becomes free forms the next batch from whatever
//! has queued while the last one ran: it never waits when there is work, and no sequence is bound to
//! a batch before that batch runs, so a request that arrives late still gets its share of the next.

mod fair;
mod queue;
mod reply;
mod worker;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use self::queue::{Arrival, FlowId, Outcome, Queue, Speed, Wish};
use crate::admission::{Admission, Permit};
use crate::cache::ScoreCache;
use crate::cost::{Costs, Work, duration};
use crate::metrics::Metrics;
use crate::plan::BatchLimits;
use crate::trace::Timeline;
use rerankd_core::Claim;
use rerankd_core::{Encoding, PairKey};
use rerankd_runtime::Scorer;

/// Why a submitted request has no logits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// A batch that held part of it failed. The text is for the log.
    #[error("{0}")]
    Failed(String),
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

/// What the workers do it with.
pub struct Workshop {
    /// One for each worker.
    pub scorers: Vec<Box<dyn Scorer>>,
    /// Logits of one sequence.
    pub labels: usize,
    /// The most that one batch may be.
    pub limits: BatchLimits,
    /// What batches cost.
    pub costs: Costs,
    /// Where scores are kept.
    pub cache: Arc<ScoreCache>,
}

struct Shared {
    state: Mutex<State>,
    /// Signalled when something is queued, and when the batcher closes.
    work: Condvar,
    limits: BatchLimits,
    labels: usize,
    cache: Arc<ScoreCache>,
    admission: Arc<Admission>,
    metrics: Arc<Metrics>,
    /// Requests that are not answered yet.
    requests: watch::Sender<usize>,
    /// The clock of the runtime, which tests stop.
    runtime: Option<tokio::runtime::Handle>,
}

struct State {
    queue: Queue,
    costs: Costs,
    /// When each worker is expected to be free again; `None` when it is.
    busy_until: Vec<Option<Instant>>,
    closed: bool,
}

impl Batcher {
    /// Starts one worker thread for each scorer of `workshop`.
    ///
    /// # Panics
    /// When the system refuses a thread.
    pub fn start(workshop: Workshop, admission: Arc<Admission>, metrics: Arc<Metrics>) -> Self {
        let workers = workshop.scorers.len();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queue: Queue::new(workshop.labels),
                costs: workshop.costs,
                busy_until: vec![None; workers],
                closed: false,
            }),
            work: Condvar::new(),
            limits: workshop.limits,
            labels: workshop.labels,
            cache: workshop.cache,
            admission,
            metrics,
            requests: watch::Sender::new(0),
            runtime: tokio::runtime::Handle::try_current().ok(),
        });
        shared.change(|_| ());
        let workers = workshop
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
    /// [`BatchError`] when a batch that held part of the request failed, its worker was lost, or its
    /// deadline does not leave it the time.
    pub async fn score(
        &self,
        encodings: Vec<(PairKey, Encoding)>,
        claim: Claim,
        permit: Permit,
    ) -> Result<Vec<f32>, BatchError> {
        let (reply, mut receiver) = reply::channel();
        let (timeline, now) = (Timeline::current(), Instant::now().into_std());
        let arrival = Arrival {
            claim,
            encodings,
            reply,
            permit,
            timeline: timeline.clone(),
            now,
        };
        let (id, shared) = self.shared.change(|state| {
            let pushed = state.queue.push(arrival);
            self.shared.work.notify_all();
            pushed
        });
        self.shared.metrics.shared_pairs.inc_by(shared as u64);
        let mut ticket = Ticket {
            shared: &self.shared,
            id,
            answered: false,
        };
        let answer = match claim.deadline {
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
    pub fn forecast(&self, work: Work, claim: Claim) -> Duration {
        let state = self.shared.lock();
        let speed = self.shared.speed(&state, Instant::now());
        let seconds = state.queue.forecast(Wish { claim, work }, None, speed);
        duration(seconds)
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

    /// Takes no more batches, and waits for those that run, for at most `limit`: a process that ends under
    /// ONNX Runtime may end with a crash in place of its exit code. What waits is never scored.
    pub fn stop(&self, limit: Duration) {
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.work.notify_all();
        // Whether all of them ended or the time did: the caller leaves.
        let _ = self
            .shared
            .work
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
        // One that is in the middle of a batch is left to itself: whoever stops now does not wait.
        if all_idle {
            for worker in self.workers.drain(..) {
                // A worker catches the panics of its scorer; one that panicked anyway is over.
                let _ = worker.join();
            }
        }
    }
}

impl State {
    fn busy(&self) -> usize {
        self.busy_until.iter().flatten().count()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and tells whoever watches what is left.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        self.tell(&state);
        result
    }

    /// Changes the queue, and counts what that has cost.
    fn settle(&self, change: impl FnOnce(&mut State) -> Outcome) {
        let outcome = self.change(change);
        self.metrics.wasted_tokens.inc_by(outcome.wasted as u64);
    }

    fn tell(&self, state: &State) {
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
