//! From a model's weights to the ONNX graph that scores packed batches.
//!
//! The graph works on the real tokens of a batch laid end to end; only attention is padded, and the
//! last layer is computed for the first token of each sequence alone, the only one the
//! classification head reads.

pub mod arch;
pub mod builder;
mod encoder;
pub mod onnx;

pub use builder::{Graph, Weight};

use crate::model::{Architecture, Model, ModelError};

/// Names of the graph's inputs and its output.
pub mod io {
    /// Token ids, `[tokens]`.
    pub const INPUT_IDS: &str = "input_ids";
    /// Row of the position table of each token, `[tokens]`: `segment * positions + position`.
    pub const POSITION_IDS: &str = "position_ids";
    /// Tokens of each sequence, `[sequences]`, 32-bit.
    pub const LENGTHS: &str = "lengths";
    /// Row of the token at each place of the padded batch, `[sequences, longest]`.
    pub const PAD_INDEX: &str = "pad_index";
    /// Place in the padded batch of each token, `[tokens]`.
    pub const UNPAD_INDEX: &str = "unpad_index";
    /// Row of the first token of each sequence, `[sequences]`.
    pub const CLS_INDEX: &str = "cls_index";
    /// The answer, `[sequences, labels]`.
    pub const LOGITS: &str = "logits";
}

/// The tokens that a layer is computed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// Every token.
    All,
    /// The first of each sequence. In the last layer nothing else is read, so this is exact.
    FirstOfEach,
}

/// Builds the packed graph of `model`, reading its weights. `last_layer` is
/// [`Rows::FirstOfEach`] but for a comparison with what is saved by it.
///
/// # Errors
/// [`ModelError`] when a weight is missing, has another shape than the configuration says, or
/// cannot be read.
pub fn build(model: &Model, last_layer: Rows) -> Result<Graph, ModelError> {
    match model.manifest.architecture {
        Architecture::Bert => arch::bert::build(model, last_layer),
        Architecture::Roberta => arch::roberta::build(model, last_layer),
    }
}
