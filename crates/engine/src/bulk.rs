//! Scores any number of pairs with one model: the server's engine, without the server.
//!
//! Callers submit chunks and receive their scores in the same order. While one chunk is read or
//! written, others are in the queue, so workers are never idle; batches are formed from the rows of all
//! of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::task::{JoinError, JoinHandle};

use crate::load::{self, LoadConfig, LoadError};
use crate::metrics::Metrics;
use crate::service::{ModelInfo, Reranker};
use rerankd_core::{Limits, Pair, PredictCommand, RerankError, Scale, ScoreOptions};

/// Chunks in flight while the caller reads and writes: with two, one is complete in the queue when the
/// other ends; the third covers a slow disk.
const CHUNKS_IN_FLIGHT: usize = 3;
/// Pairs of one chunk of [`Engine::score_all`].
const CHUNK_PAIRS: usize = 256;

/// Scores of one pair, one per label, or why it has none.
pub type Outcome = Result<Vec<f32>, RowError>;

/// Why a pair has no score. The text is for whoever sent the pair.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RowError(pub String);

/// The engine cannot score any pair.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A pair that needs a score has none, or no pair of a chunk has one.
    #[error("the model fails: {0}")]
    Row(#[source] RowError),
    /// The task of a chunk panicked.
    #[error("the model fails: {0}")]
    Task(#[from] JoinError),
}

/// A loaded model, and the async runtime of its queue.
pub struct Engine {
    runtime: Runtime,
    reranker: Arc<Reranker>,
}

impl Engine {
    /// Loads a model. Its queue is unlimited: offline jobs wait instead of retrying.
    ///
    /// # Errors
    /// Same as [`load::load`].
    ///
    /// # Panics
    /// If the system cannot start a thread.
    pub fn load(config: &LoadConfig) -> Result<Self, LoadError> {
        let mut config = config.clone();
        config.batching.max_queue_tokens = usize::MAX;
        config.batching.max_queue_bytes = usize::MAX;
        config.batching.max_queue_delay = Duration::MAX;
        Ok(Self::new(load::load(&config, Metrics::new())?))
    }

    /// An engine for a model that is already loaded.
    ///
    /// # Panics
    /// If the system cannot start a thread.
    pub fn new(reranker: Reranker) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("bulk")
            .build()
            .expect("the system gives a thread");
        Self {
            runtime,
            reranker: Arc::new(reranker),
        }
    }

    /// The loaded model.
    pub fn info(&self) -> &ModelInfo {
        self.reranker.info()
    }

    /// A pipeline of chunks; `T` is returned to the caller with the scores of each.
    pub fn line<T>(&self, scale: Scale) -> Line<'_, T> {
        Line {
            engine: self,
            scale,
            chunks: VecDeque::new(),
        }
    }

    /// Scores `pairs`, and returns `[pairs, labels]`, row-major. Calls `scored` with the number of pairs in
    /// each finished chunk.
    ///
    /// # Errors
    /// [`EngineError`] if any pair has no score: an evaluation must be complete.
    pub fn score_all(
        &self,
        pairs: &[Pair],
        scale: Scale,
        mut scored: impl FnMut(usize),
    ) -> Result<Vec<f32>, EngineError> {
        let mut scores = Vec::with_capacity(pairs.len());
        let mut line = self.line::<()>(scale);
        let mut chunks = pairs.chunks(CHUNK_PAIRS);
        loop {
            let done = match chunks.next() {
                Some(chunk) => line.push((), chunk.to_vec())?,
                None if line.is_empty() => return Ok(scores),
                None => line.pop()?,
            };
            let Some(((), outcomes)) = done else { continue };
            scored(outcomes.len());
            for outcome in outcomes {
                scores.extend(outcome.map_err(EngineError::Row)?);
            }
        }
    }
}

/// The outcomes of one chunk.
type Scoring = Result<Vec<Outcome>, EngineError>;

/// Chunks in flight, oldest first.
pub struct Line<'a, T> {
    engine: &'a Engine,
    scale: Scale,
    chunks: VecDeque<(T, JoinHandle<Scoring>)>,
}

impl<T> Line<'_, T> {
    /// Submits a chunk, which has one outcome per pair. Once enough chunks are in flight, waits for the
    /// oldest and returns it.
    ///
    /// # Errors
    /// [`EngineError`] if the engine fails on every pair.
    pub fn push(
        &mut self,
        tag: T,
        pairs: Vec<Pair>,
    ) -> Result<Option<(T, Vec<Outcome>)>, EngineError> {
        let reranker = self.engine.reranker.clone();
        let options = ScoreOptions {
            scale: self.scale,
            ..ScoreOptions::default()
        };
        let task = self
            .engine
            .runtime
            .spawn(async move { score(&reranker, pairs, options).await });
        self.chunks.push_back((tag, task));
        if self.chunks.len() < CHUNKS_IN_FLIGHT {
            return Ok(None);
        }
        self.pop()
    }

    /// Waits for the oldest chunk; `None` if none is in flight.
    ///
    /// # Errors
    /// Same as [`Line::push`].
    pub fn pop(&mut self) -> Result<Option<(T, Vec<Outcome>)>, EngineError> {
        let Some((tag, task)) = self.chunks.pop_front() else {
            return Ok(None);
        };
        let outcomes = self.engine.runtime.block_on(task)??;
        Ok(Some((tag, outcomes)))
    }

    /// Whether no chunk is in flight.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

/// Scores one chunk. If it fails, it is split in half again and again until only single rows fail, so
/// that one bad row fails no other.
async fn score(
    reranker: &Reranker,
    pairs: Vec<Pair>,
    options: ScoreOptions,
) -> Result<Vec<Outcome>, EngineError> {
    let count = pairs.len();
    let mut outcomes = Vec::with_capacity(count);
    // The parts still to score, the next one last.
    let mut parts = vec![pairs];
    let mut last_failure = String::new();
    while let Some(mut part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        match predict(reranker, part.clone(), options).await {
            Ok(scored) => outcomes.extend(scored),
            Err(error) => {
                last_failure = reason(&error);
                if part.len() == 1 {
                    outcomes.push(Err(RowError(last_failure.clone())));
                } else {
                    let second = part.split_off(part.len() / 2);
                    parts.push(second);
                    parts.push(part);
                }
            }
        }
    }
    // If every one of several rows fails, the engine is at fault, not a row.
    if count > 1 && !last_failure.is_empty() && outcomes.iter().all(Result::is_err) {
        return Err(EngineError::Row(RowError(last_failure)));
    }
    Ok(outcomes)
}

async fn predict(
    reranker: &Reranker,
    pairs: Vec<Pair>,
    options: ScoreOptions,
) -> Result<Vec<Outcome>, RerankError> {
    let limits = Limits {
        max_documents: usize::MAX,
    };
    let prediction = reranker
        .predict(PredictCommand::new(pairs, options, &limits)?)
        .await?;
    let rows = prediction.scores.chunks_exact(prediction.labels.max(1));
    Ok(rows.map(finite).collect())
}

/// JSON cannot hold a score that is not finite, and such a score is meaningless.
fn finite(row: &[f32]) -> Outcome {
    if row.iter().all(|score| score.is_finite()) {
        Ok(row.to_vec())
    } else {
        Err(RowError("the model's score is not a finite number".into()))
    }
}

/// The cause, if there is one: offline, nobody looks for it in a log.
fn reason(error: &RerankError) -> String {
    error.cause().unwrap_or(error.message()).to_owned()
}
