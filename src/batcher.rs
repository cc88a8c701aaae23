//! Puts sequences of many requests together in batches, fairly, and hands each request its logits.
//!
//! Each worker thread owns a scorer. A worker that becomes free forms the next batch from whatever
//! has queued while the last one ran: it never waits when there is work, and no sequence is bound to
//! a batch before that batch runs, so a request that arrives late still gets its share of the next.

mod queue;
mod reply;
mod worker;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::watch;

use self::queue::{FlowId, Queue};
use crate::admission::{Admission, Permit};
use crate::batch::Encoding;
use crate::batch::plan::BatchLimits;
use crate::metrics::Metrics;
use crate::scorer::Scorer;

/// Why a submitted request has no logits. The text is for the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BatchError(String);

/// The queue and the workers that empty it.
pub struct Batcher {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Signalled when something is queued, and when the batcher closes.
    work: Condvar,
    limits: BatchLimits,
    /// Logits of one sequence.
    labels: usize,
    admission: Arc<Admission>,
    metrics: Arc<Metrics>,
    /// Requests that are not answered yet.
    requests: watch::Sender<usize>,
}

struct State {
    queue: Queue,
    /// Workers that wait for something to do.
    idle: usize,
    workers: usize,
    closed: bool,
}

impl Batcher {
    /// Starts one worker thread for each of `scorers`, which all give `labels` logits a sequence.
    ///
    /// # Panics
    /// When the system refuses a thread.
    pub fn start(
        scorers: Vec<Box<dyn Scorer>>,
        labels: usize,
        limits: BatchLimits,
        admission: Arc<Admission>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queue: Queue::new(labels),
                idle: 0,
                workers: scorers.len(),
                closed: false,
            }),
            work: Condvar::new(),
            limits,
            labels,
            admission,
            metrics,
            requests: watch::Sender::new(0),
        });
        let workers = scorers
            .into_iter()
            .enumerate()
            .map(|(number, scorer)| {
                let shared = shared.clone();
                std::thread::Builder::new()
                    .name(format!("worker-{number}"))
                    .spawn(move || worker::run(&shared, scorer))
                    .expect("the system gives a thread")
            })
            .collect();
        Self { shared, workers }
    }

    /// Scores `encodings`: logits `[encodings, labels]` row by row, in their order.
    ///
    /// Dropping the future takes what is left of the request out of the queue.
    ///
    /// # Errors
    /// [`BatchError`] when a batch that held part of the request failed, or its worker was lost.
    pub async fn score(
        &self,
        encodings: Vec<Encoding>,
        permit: Permit,
    ) -> Result<Vec<f32>, BatchError> {
        let (reply, receiver) = reply::channel();
        let id = self.shared.change(|state| {
            let id = state.queue.push(encodings, reply, permit, Instant::now());
            self.shared.work.notify_all();
            id
        });
        let mut ticket = Ticket {
            shared: &self.shared,
            id,
            answered: false,
        };
        let answer = receiver.await;
        ticket.answered = answer.is_ok();
        match answer {
            Ok(answer) => answer.map_err(BatchError),
            Err(_) => Err(BatchError("the worker was lost".into())),
        }
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
        let all_idle = state.idle == state.workers;
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

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and tells whoever watches how many requests are left.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        self.requests.send_replace(state.queue.requests());
        result
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
            self.shared.change(|state| state.queue.cancel(self.id));
        }
    }
}
