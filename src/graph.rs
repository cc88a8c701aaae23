//! From a model's weights to the ONNX graph that scores packed batches.
//!
//! The graph works on the real tokens of a batch laid end to end, with no padding anywhere, and the
//! last layer is computed for the first token of each sequence alone, the only one the
//! classification head reads.

pub mod arch;
pub mod builder;
mod encoder;
pub mod onnx;

pub use builder::{Data, Graph, Weight};

pub use crate::config::Precision;
use crate::model::{Architecture, Model, ModelError};

/// Names of the graph's inputs and its output.
pub mod io {
    /// Token ids, `[tokens]`.
    pub const INPUT_IDS: &str = "input_ids";
    /// Row of the position table of each token, `[tokens]`: `segment * positions + position`.
    pub const POSITION_IDS: &str = "position_ids";
    /// Tokens of each sequence, `[sequences]`, 32-bit.
    pub const LENGTHS: &str = "lengths";
    /// Row of the first token of each sequence, `[sequences]`.
    pub const CLS_INDEX: &str = "cls_index";
    /// The answer, `[sequences, labels]`.
    pub const LOGITS: &str = "logits";
}

/// The operator that a graph needs beside those of ONNX Runtime.
pub mod operator {
    /// Domain of the operator.
    pub const DOMAIN: &str = "rerankd";
    /// Self-attention over packed rows.
    ///
    /// Inputs: queries `[queries, _]`, of which the first `width` columns are read; keys and values
    /// `[tokens, _]`, the last `2 x width` columns; query bias `[width]`; lengths `[sequences]`,
    /// 32-bit. There is one query a token, or one a sequence. Queries and their bias are already
    /// divided by the root of the size of a head. Output: `[queries, width]`.
    pub const PACKED_ATTENTION: &str = "PackedAttention";
    /// Attribute: number of heads.
    pub const HEADS: &str = "heads";
    /// A dense layer with weights of eight bits, rows quantised each on its own.
    ///
    /// Inputs: `x` `[rows, inputs]`; panels of weights, 8-bit; scales `[outputs]`; bias `[outputs]`
    /// or `[0]`. Output: `[rows, outputs]`.
    pub const QUANTIZED_DENSE: &str = "QuantizedDense";
    /// Attribute: 1 for a GELU after the bias.
    pub const GELU: &str = "gelu";
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
pub fn build(model: &Model, last_layer: Rows, precision: Precision) -> Result<Graph, ModelError> {
    match model.manifest.architecture {
        Architecture::Bert => arch::bert::build(model, last_layer, precision),
        Architecture::Roberta => arch::roberta::build(model, last_layer, precision),
    }
}
