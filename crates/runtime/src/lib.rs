//! Runs models with ONNX Runtime: sessions, custom operators and devices.

pub mod assignment;
pub mod causal;
pub mod cuda;
pub mod device;
mod device_name;
pub mod driver;
pub mod library;
pub mod memory;
pub mod onnx;
mod operators;
pub mod padded;
mod padding;
mod preemption;
pub mod splitting;

pub use device_name::{Device, UnknownDevice};
pub use preemption::LayerHook;

use rerankd_core::Batch;

/// Why a batch could not be scored. The text is for the log.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct ScoreError(pub String);

/// Something that turns a batch into logits. A worker thread owns one and nothing locks it.
pub trait Scorer: Send {
    /// Logits of every sequence of `batch`, `[sequences, labels]` row by row. A sequence that the model
    /// cannot judge has NaN or an infinity among its own, and the others have theirs.
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

    /// Whether tokens that the sequences of a batch begin with are computed once.
    fn shares_prefixes(&self) -> bool {
        false
    }

    /// Calls `hook` between two layers of every batch from now on, on the thread that computes it. Scorers that do
    /// not run the layers themselves never call it.
    fn on_layer(&mut self, hook: LayerHook) {
        drop(hook);
    }

    /// A second scorer of the same model, for the batches that a hook runs; `None` if it has none.
    fn nested(&mut self) -> Option<&mut (dyn Scorer + 'static)> {
        None
    }

    /// Takes the second scorer.
    fn take_nested(&mut self) -> Option<Box<dyn Scorer>> {
        None
    }
}
