//! The threads that tokenize, and whose turn it is.
//!
//! The work of a request is cut into chunks. A thread takes one chunk after the other, by the turns of
//! [`ChunkQueue`], and never waits for another chunk: work that depends on other work is submitted when
//! that is done. So a request waits for the chunks whose turn is before its own, and for nothing else.

mod queue;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use self::queue::{ChunkQueue, FlowId};
use crate::batcher::worker::message;
use crate::metrics::Metrics;
use rerankd_core::SchedulingHints;
use rerankd_model::encoder::EncodeError;

/// Cost of a full chunk, in bytes of text: a few milliseconds of one core.
pub(crate) const CHUNK_COST: usize = 16 * 1024;

/// Part of the work of a request.
pub(crate) struct Chunk<T> {
    /// Bytes of text that it reads.
    pub cost: usize,
    pub work: Box<dyn FnOnce() -> Result<T, EncodeError> + Send>,
}

/// Why the work of a request was not done.
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
    /// Signalled when a chunk is queued, and when the pool is dropped.
    work: Condvar,
    metrics: Arc<Metrics>,
}

struct State {
    queue: ChunkQueue<Work>,
    closed: bool,
}

impl TokenizerPool {
    /// Starts `threads` threads, at least one.
    ///
    /// # Panics
    /// When the system refuses a thread.
    pub fn start(threads: usize, metrics: Arc<Metrics>) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queue: ChunkQueue::new(),
                closed: false,
            }),
            work: Condvar::new(),
            metrics,
        });
        for number in 0..threads.max(1) {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(format!("tokenize-{number}"))
                .spawn(move || shared.run())
                .expect("the system provides a thread");
        }
        Self { shared }
    }

    /// Runs the chunks of one request. Their results come in order. Dropping the future removes the chunks
    /// that no thread has taken.
    ///
    /// # Errors
    /// [`PoolError`] of the first chunk that fails; the rest is then not run.
    pub async fn run<T: Send + 'static>(
        &self,
        hints: SchedulingHints,
        chunks: Vec<Chunk<T>>,
    ) -> Result<Vec<T>, PoolError> {
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
        let id = self.shared.lock().queue.push(hints, chunks);
        for _ in 0..count {
            self.shared.work.notify_one();
        }
        let _ticket = Ticket {
            shared: &self.shared,
            id,
        };
        receiver.await.unwrap_or(Err(PoolError::Stopped))
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

    /// Runs chunks until the pool is dropped.
    fn run(&self) {
        let mut state = self.lock();
        while !state.closed {
            let Some((id, work)) = state.queue.take() else {
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            let needed = work();
            state = self.lock();
            if !needed {
                state.queue.cancel(id);
            }
        }
    }
}

/// Removes what is left of a request from the queue.
struct Ticket<'a> {
    shared: &'a Shared,
    id: FlowId,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let cancelled = self.shared.lock().queue.cancel(self.id);
        // Outside the lock.
        drop(cancelled);
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
    /// Runs a chunk, and answers the request when it was the last or failed. A panic fails the request
    /// alone.
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
        if let Some(reply) = results.reply.take() {
            // The client may have just left.
            let _ = reply.send(answer);
        }
        false
    }
}

#[cfg(test)]
mod tests;
