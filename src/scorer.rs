//! Runs a model over a packed batch.

pub mod assignment;
pub mod attention;
pub mod cuda;
pub mod device;
pub mod driver;
mod elementary;
pub mod fp32;
pub mod hardware;
pub mod isa;
pub mod layer;
pub mod library;
pub mod norm;
pub mod onnx;
mod operators;
pub mod padded;
pub mod pooling;
pub mod quantized;
pub mod splitting;
#[cfg(test)]
mod testing;

use crate::batch::Batch;

/// Why a batch could not be scored. The text is for the log.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct ScoreError(pub String);

impl From<hardware::StartError> for ScoreError {
    fn from(error: hardware::StartError) -> Self {
        Self(error.to_string())
    }
}

/// Something that turns a batch into logits. A worker thread owns one and nothing locks it.
pub trait Scorer: Send {
    /// Logits of every sequence of `batch`, `[sequences, labels]` row by row.
    ///
    /// # Errors
    /// [`ScoreError`] when the model could not be run; the scorer stays usable.
    fn score(&mut self, batch: &Batch) -> Result<Vec<f32>, ScoreError>;

    /// As [`Self::score`], for a batch beside which no other runs or waits: it may use all cores.
    ///
    /// # Errors
    /// As [`Self::score`].
    fn score_alone(&mut self, batch: &Batch) -> Result<Vec<f32>, ScoreError> {
        self.score(batch)
    }
}
