//! Scores any number of pairs with one model: the engine of the server, without the server.
//!
//! Callers hand in chunks and take their scores in the same order. While one chunk is read or
//! written, others are in the queue, so the workers always have something to do; the queue plans its
//! batches over the rows of all of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::load::{self, LoadConfig, LoadError};
use crate::metrics::Metrics;
use crate::service::{ModelInfo, Reranker};
use rerankd_core::{Limits, Pair, PredictCommand, RerankError, Scale, ScoreOptions};

/// Chunks that are scored while their caller reads and writes: with two, one is always whole in the
/// queue when the other ends; the third makes up for a slow disk.
const CHUNKS_IN_FLIGHT: usize = 3;
/// Pairs of one chunk of [`Engine::score_all`].
const CHUNK_PAIRS: usize = 256;

/// Scores of one pair, one for each label; or why there is none.
pub type Outcome = Result<Vec<f32>, RowError>;

/// Why a pair has no score, in words for whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RowError(pub String);

/// The engine cannot score anything: its work is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the model fails: {0}")]
pub struct EngineError(String);

/// A loaded model and the runtime that its queue lives on.
pub struct Engine {
    runtime: Runtime,
    reranker: Arc<Reranker>,
}

impl Engine {
    /// Loads a model. Its queue takes everything: whoever works offline waits rather than retries.
    ///
    /// # Errors
    /// [`LoadError`], as for the server.
    ///
    /// # Panics
    /// When the system refuses a thread.
    pub fn load(config: &LoadConfig) -> Result<Self, LoadError> {
        let mut config = config.clone();
        config.batching.max_queue_tokens = usize::MAX;
        config.batching.max_queue_bytes = usize::MAX;
        config.batching.max_queue_delay = Duration::MAX;
        Ok(Self::new(load::load(&config, Metrics::new())?))
    }

    /// An engine around a model that is loaded already.
    ///
    /// # Panics
    /// When the system refuses a thread.
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

    /// What is loaded.
    pub fn info(&self) -> &ModelInfo {
        self.reranker.info()
    }

    /// A line of chunks; `T` is what the caller wants back with the scores of each.
    pub fn line<T>(&self, scale: Scale) -> Line<'_, T> {
        Line {
            engine: self,
            scale,
            chunks: VecDeque::new(),
        }
    }

    /// Scores `pairs`, `[pairs, labels]` row by row, and tells `scored` how many more are done.
    ///
    /// # Errors
    /// [`EngineError`] when a pair has no score: what is evaluated must be whole.
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
                scores.extend(outcome.map_err(|error| EngineError(error.0))?);
            }
        }
    }
}

/// The outcomes of one chunk, or the end of everything.
type Scoring = Result<Vec<Outcome>, EngineError>;

/// Chunks on their way, oldest first.
pub struct Line<'a, T> {
    engine: &'a Engine,
    scale: Scale,
    chunks: VecDeque<(T, JoinHandle<Scoring>)>,
}

impl<T> Line<'_, T> {
    /// Sends a chunk off, with one outcome to come for each of `pairs`. Once enough are on their
    /// way, waits for the oldest and gives it back.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails whatever it is given.
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

    /// Waits for the oldest chunk; `None` when none is on its way.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails whatever it is given.
    pub fn pop(&mut self) -> Result<Option<(T, Vec<Outcome>)>, EngineError> {
        let Some((tag, task)) = self.chunks.pop_front() else {
            return Ok(None);
        };
        let outcomes = self
            .engine
            .runtime
            .block_on(task)
            .map_err(|lost| EngineError(lost.to_string()))??;
        Ok(Some((tag, outcomes)))
    }

    /// Whether no chunk is on its way.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

/// Scores one chunk. Where it fails it is halved, and halved again, until what fails is a single
/// row: a row that nothing can score takes no other down with it.
async fn score(
    reranker: &Reranker,
    pairs: Vec<Pair>,
    options: ScoreOptions,
) -> Result<Vec<Outcome>, EngineError> {
    let count = pairs.len();
    let mut outcomes = Vec::with_capacity(count);
    // What is still to do, the next part last.
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
    // A row that fails alone is to blame for it; where every one of several does, the engine is.
    if count > 1 && !last_failure.is_empty() && outcomes.iter().all(Result::is_err) {
        return Err(EngineError(last_failure));
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

/// A score that is no number cannot be written in JSON, and means nothing anywhere.
fn finite(row: &[f32]) -> Outcome {
    if row.iter().all(|score| score.is_finite()) {
        Ok(row.to_vec())
    } else {
        Err(RowError("the model's score is not a finite number".into()))
    }
}

/// The cause where there is one: nobody here looks for it in a log.
fn reason(error: &RerankError) -> String {
    error.cause().unwrap_or(error.message()).to_owned()
}
