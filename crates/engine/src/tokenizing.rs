//! The pool of tokenizer threads.
//!
//! The work of a request is split into chunks. A thread takes one chunk after another, in the order of
//! [`ChunkQueue`], and never waits for another chunk: dependent work is submitted once its inputs are done. So
//! a request waits only for the chunks that are scheduled before its own.

mod queue;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use self::queue::{ChunkQueue, FlowId, Taken};
use crate::admission::Expected;
use crate::batcher::batch::message;
use crate::metrics::Metrics;
use crate::queue_delay::QueueDelay;
use rerankd_core::SchedulingHints;
use rerankd_model::encoder::EncodeError;

/// Cost of a full chunk, in bytes of text: a few milliseconds of one core.
pub(crate) const CHUNK_COST: usize = 16 * 1024;

/// Seconds per byte before anything has been measured: a slow core.
const INITIAL_PACE: f64 = 2e-7;
/// Weight of the newest chunk in the running pace.
const PACE_WEIGHT: f64 = 0.05;
/// A chunk that is off the pace by a larger factor counts as off by this one: its thread may have been
/// preempted.
const OUTLIER: f64 = 4.0;

/// Part of the work of a request.
pub(crate) struct Chunk<T> {
    /// Bytes of text that it reads.
    pub cost: usize,
    pub work: Box<dyn FnOnce() -> Result<T, EncodeError> + Send>,
}

/// Why a request was not tokenized.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PoolError {
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The tokenizer panicked. The text is for the log.
    #[error("the tokenizer panicked: {0}")]
    Panicked(String),
    #[error("the tokenizer stopped")]
    Stopped,
}

/// Runs a chunk. Returns whether the rest of its request is still needed.
type Work = Box<dyn FnOnce() -> bool + Send>;

/// Threads that share one queue of chunks.
pub(crate) struct TokenizerPool {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Notified when a chunk is queued, and when the pool is dropped.
    work: Condvar,
    threads: usize,
    delay: Arc<QueueDelay>,
    metrics: Arc<Metrics>,
}

struct State {
    queue: ChunkQueue<Work>,
    /// Seconds that a thread takes for a byte.
    pace: f64,
    closed: bool,
}

impl State {
    /// Learns that a chunk of this `cost` took `seconds`.
    fn learn(&mut self, cost: usize, seconds: f64) {
        let newest = seconds / cost.max(1) as f64;
        let newest = newest.clamp(self.pace / OUTLIER, self.pace * OUTLIER);
        // A small chunk has a small weight.
        let weight = PACE_WEIGHT * (cost as f64 / CHUNK_COST as f64).min(1.0);
        self.pace += weight * (newest - self.pace);
    }
}

impl TokenizerPool {
    /// Starts `threads` threads, at least one.
    ///
    /// # Panics
    /// If the system cannot start a thread.
    pub fn start(threads: usize, delay: Arc<QueueDelay>, metrics: Arc<Metrics>) -> Self {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queue: ChunkQueue::new(),
                pace: INITIAL_PACE,
                closed: false,
            }),
            work: Condvar::new(),
            threads,
            delay,
            metrics,
        });
        for number in 0..threads {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(format!("tokenize-{number}"))
                .spawn(move || shared.run())
                .expect("the system provides a thread");
        }
        Self { shared }
    }

    /// When a new request of this `cost` would be done.
    pub fn expect(&self, hints: SchedulingHints, cost: usize) -> Expected {
        let state = self.shared.lock();
        let threads = self.shared.threads as f64;
        // A chunk runs on one thread.
        let seconds = |bytes: f64| {
            let one = bytes.min(CHUNK_COST as f64);
            state.pace * one.max(bytes / threads)
        };
        let alone = seconds(cost as f64);
        let all = state.pace * state.queue.cost_until_done(hints, cost) / threads;
        Expected::new(all.max(alone), alone)
    }

    /// Registers a request of this total `cost`. Dropping the result removes the chunks that no thread has
    /// taken.
    pub fn open(&self, hints: SchedulingHints, cost: usize) -> Tokenizing<'_> {
        let id = self.shared.change(|state| state.queue.open(hints, cost));
        Tokenizing {
            shared: &self.shared,
            id,
        }
    }
}

/// The tokenizing of one request.
pub(crate) struct Tokenizing<'a> {
    shared: &'a Shared,
    id: FlowId,
}

impl Tokenizing<'_> {
    /// Runs chunks of the request, and returns their results in order.
    ///
    /// # Errors
    /// [`PoolError`] of the first chunk that fails; the others are then not run.
    pub async fn run<T: Send + 'static>(&self, chunks: Vec<Chunk<T>>) -> Result<Vec<T>, PoolError> {
        if chunks.is_empty() {
            return Ok(Vec::new());
        }
        let (reply, receiver) = oneshot::channel();
        let collector = Arc::new(Collector {
            metrics: self.shared.metrics.clone(),
            results: Mutex::new(Results {
                done: chunks.iter().map(|_| None).collect(),
                missing: chunks.len(),
                reply: Some(reply),
            }),
        });
        let work = |(index, chunk): (usize, Chunk<T>)| {
            let collector = collector.clone();
            let work: Work = Box::new(move || collector.run(index, chunk.work));
            (chunk.cost, work)
        };
        let chunks: Vec<(usize, Work)> = chunks.into_iter().enumerate().map(work).collect();
        drop(collector);
        let count = chunks.len();
        self.shared
            .change(|state| state.queue.push(self.id, chunks));
        for _ in 0..count {
            self.shared.work.notify_one();
        }
        receiver.await.unwrap_or(Err(PoolError::Stopped))
    }
}

impl Drop for Tokenizing<'_> {
    fn drop(&mut self) {
        let cancelled = self.shared.change(|state| state.queue.close(self.id));
        // Outside the lock.
        drop(cancelled);
    }
}

impl Drop for TokenizerPool {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        // Their requests get an error.
        state.queue = ChunkQueue::new();
        drop(state);
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and publishes the remaining work.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        self.publish(&state);
        result
    }

    fn publish(&self, state: &State) {
        let seconds = state.pace * state.queue.cost() as f64 / self.threads as f64;
        self.delay.set_tokenizing(seconds);
    }

    /// Runs chunks until the pool is dropped.
    fn run(&self) {
        let mut state = self.lock();
        while !state.closed {
            let Some(Taken { id, cost, work }) = state.queue.take() else {
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            let started = Instant::now();
            let needed = work();
            let seconds = started.elapsed().as_secs_f64();
            state = self.lock();
            state.learn(cost, seconds);
            if !needed {
                state.queue.close(id);
            }
            self.publish(&state);
        }
    }
}

/// The results of a request's chunks.
struct Collector<T> {
    metrics: Arc<Metrics>,
    results: Mutex<Results<T>>,
}

struct Results<T> {
    /// In the order of the chunks.
    done: Vec<Option<T>>,
    missing: usize,
    /// `None` once the request is answered.
    reply: Option<oneshot::Sender<Result<Vec<T>, PoolError>>>,
}

impl<T> Collector<T> {
    /// Runs a chunk, and replies to the request if it was the last one or failed. A panic fails only this
    /// request.
    fn run(&self, index: usize, work: impl FnOnce() -> Result<T, EncodeError>) -> bool {
        let result = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(result) => result.map_err(PoolError::from),
            Err(panic) => {
                let panic = message(&*panic);
                self.metrics.tokenizer_panics.inc();
                tracing::error!(panic, "tokenizer panicked");
                Err(PoolError::Panicked(panic.to_owned()))
            }
        };
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match result {
            Ok(result) => {
                results.done[index] = Some(result);
                results.missing -= 1;
                if results.missing > 0 {
                    return results.reply.is_some();
                }
                Ok(results.done.iter_mut().filter_map(Option::take).collect())
            }
            Err(error) => Err(error),
        };
        let succeeded = answer.is_ok();
        if let Some(reply) = results.reply.take() {
            // The client may have just disconnected.
            let _ = reply.send(answer);
        }
        succeeded
    }
}

#[cfg(test)]
mod tests;
