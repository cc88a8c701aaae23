//! Runs models with ONNX Runtime: sessions, custom operators and devices.

pub mod assignment;
pub mod cuda;
pub mod device;
mod device_name;
pub mod driver;
pub mod library;
pub mod onnx;
mod operators;
pub mod padded;
mod padding;
pub mod splitting;

pub use device_name::{Device, UnknownDevice};

use rerankd_core::Batch;

/// Why a batch could not be scored. The text is for the log.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct ScoreError(pub String);

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
