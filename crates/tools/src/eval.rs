//! Evaluates the quality of a model on labeled data.

pub mod correlation;
pub mod data;
pub mod first_stage;
pub mod metric;
pub mod plot;
pub mod report;
pub mod reranking;

use rerankd_engine::bulk::EngineError;
use rerankd_engine::load::LoadError;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The evaluation failed.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The data do not fit together; the message says what to change.
    #[error("{0}")]
    Data(String),
    /// A file is invalid or cannot be read.
    #[error("{place}: {source}")]
    File {
        /// Its path, and the line if one is at fault.
        place: String,
        /// What is wrong with it.
        source: Cause,
    },
    /// The results cannot be plotted.
    #[error("cannot plot the results: {0}")]
    Plot(#[from] plot::PlotError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model fails.
    #[error(transparent)]
    Engine(#[from] EngineError),
}
