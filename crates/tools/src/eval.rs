//! How good a model is, by data with known answers.

pub mod correlation;
pub mod data;
pub mod first_stage;
pub mod metric;
pub mod plot;
pub mod report;
pub mod reranking;

use rerankd_engine::bulk::EngineError;
use rerankd_engine::load::LoadError;

/// Why nothing could be evaluated, in words for the person at the terminal.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The data cannot be used.
    #[error("{0}")]
    Data(String),
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}
