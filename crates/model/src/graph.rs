//! From a model's weights to the ONNX graph that scores packed batches.
//!
//! The graph works on the real tokens of a batch laid end to end, with no padding anywhere, and the
//! last layer is computed for the first token of each sequence alone where the classification head
//! reads no other.

pub mod builder;
pub mod cuda;
mod encoder;
pub mod file;
mod gated;
mod head;
pub mod onnx;
pub mod standard;

pub use builder::{Data, Graph, Weight};

use self::encoder::EncoderGraph;
use crate::{Model, ModelError};

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

/// The operators that a graph needs beside those of ONNX Runtime.
pub mod operator {
    /// Domain of the operator.
    pub const DOMAIN: &str = "rerankd";
    /// Self-attention over packed rows.
    ///
    /// Inputs: queries `[queries, _]`, of which the first `width` columns are read; keys and values
    /// `[tokens, _]`, the last `2 x width` columns; query bias `[width]`; lengths `[sequences]`,
    /// 32-bit. There is one query a token, or one a sequence. Queries and their bias are already
    /// divided by the root of the size of a head. Two inputs may be missing, [`ROTARY_INPUT`] and
    /// [`BIAS_INPUT`] places behind these: cosines and sines that turn queries and keys, `[places, size of
    /// a head]`; and what is added to scores by distance, `[heads, 2 x reach + 1]`. Output: `[queries,
    /// width]`.
    pub const PACKED_ATTENTION: &str = "PackedAttention";
    /// See [`PACKED_ATTENTION`].
    pub const ROTARY_INPUT: usize = 0;
    /// See [`PACKED_ATTENTION`].
    pub const BIAS_INPUT: usize = 1;
    /// Attribute: how far before and behind its place a query sees; all of its sequence where it is missing.
    pub const WINDOW: &str = "window";
    /// Attribute: number of heads.
    pub const HEADS: &str = "heads";
    /// One vector for each sequence.
    ///
    /// Inputs: hidden states `[tokens, width]`; lengths `[sequences]`, 32-bit. Output: `[sequences,
    /// width]`.
    pub const PACKED_POOLING: &str = "PackedPooling";
    /// Attribute: [`MAX`], [`MEAN`], [`MEAN_SQRT`], [`WEIGHTED_MEAN`] or [`LAST`].
    pub const MODE: &str = "mode";
    /// The largest number of each dimension.
    pub const MAX: i64 = 0;
    /// The mean of all tokens.
    pub const MEAN: i64 = 1;
    /// Their sum over the root of their number.
    pub const MEAN_SQRT: i64 = 2;
    /// Their mean, where the n-th counts n times.
    pub const WEIGHTED_MEAN: i64 = 3;
    /// The last token.
    pub const LAST: i64 = 4;
    /// Hidden states before the first layer, with words of eight bits.
    ///
    /// Inputs: token ids and rows of the position table `[tokens]`, 64-bit; words `[vocabulary,
    /// width]`, 8-bit, and their scales `[vocabulary]`; positions `[rows, width]`; gamma and beta
    /// `[width]`. Output: `[tokens, width]`.
    pub const QUANTIZED_EMBEDDINGS: &str = "QuantizedEmbeddings";
    /// A layer of the encoder in fp32.
    ///
    /// Inputs: hidden state `[tokens, width]`; lengths `[sequences]`, 32-bit; then [`MATRICES`] times
    /// [`strips`](crate::strips::strips) and a bias `[outputs]`: queries, already divided by the root of the
    /// size of a head; keys and values; the projection of what attention gives; up; down. Then
    /// [`NORMS`] times gamma and beta `[width]`: after attention, and after all. Behind them what may be
    /// missing, as in [`PACKED_ATTENTION`]. Output: `[tokens or sequences, width]`.
    pub const LAYER: &str = "Layer";
    /// The same with weights of eight bits: each matrix is the strips, scales and sums of
    /// [`rerankd_kernels::quantize::Quantized`] and a bias.
    pub const QUANTIZED_LAYER: &str = "QuantizedLayer";
    /// A layer that normalises before each part and has a gate, in fp32.
    ///
    /// Inputs as of a [`LAYER`], but [`GATED_MATRICES`] matrices: queries; keys and values; the projection
    /// of what attention gives; up; gate; down. LayerNorm stands before attention, and before up and gate.
    pub const GATED_LAYER: &str = "GatedLayer";
    /// The same with weights of eight bits.
    pub const QUANTIZED_GATED_LAYER: &str = "QuantizedGatedLayer";
    /// Dense layers of a [`GATED_LAYER`].
    pub const GATED_MATRICES: usize = 6;
    /// Attribute of a [`GATED_LAYER`]: 1 when its input is normalised already.
    pub const NORMED: &str = "normed";
    /// Dense layers of a [`LAYER`].
    pub const MATRICES: usize = 5;
    /// LayerNorms of a [`LAYER`].
    pub const NORMS: usize = 2;
    /// Attribute: 1 when the output is of the first token of each sequence only.
    pub const FIRST_OF_EACH: &str = "first_of_each";
    /// Attribute: what is added to a variance.
    pub const EPSILON: &str = "epsilon";
    /// Attribute: [`GELU`], [`GELU_TANH`] or [`RELU`].
    pub const ACTIVATION: &str = "activation";
    /// By the error function.
    pub const GELU: i64 = 0;
    /// By a hyperbolic tangent.
    pub const GELU_TANH: i64 = 1;
    /// What is above zero.
    pub const RELU: i64 = 2;
}

/// The tokens that a layer is computed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// Every token.
    All,
    /// The first of each sequence. In the last layer nothing else is read, so this is exact.
    FirstOfEach,
}

/// Arithmetic of the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As the reference computes.
    Fp32,
    /// The same by ONNX Runtime's own products, for processors that [`operator::LAYER`] is not
    /// written for.
    Fp32Nodes,
    /// Weights, hidden states and attention in eight bits.
    Int8,
}

impl Precision {
    /// The name shown to operators and clients.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 | Self::Fp32Nodes => "fp32",
            Self::Int8 => "int8",
        }
    }
}

/// Builds the packed graph of `model`, reading its weights. `last_layer` is
/// [`Rows::FirstOfEach`] but for a comparison with what is saved by it; a head that reads more than
/// first tokens has all of them computed.
///
/// # Errors
/// [`ModelError`] when a weight is missing, has another shape than the configuration says, or
/// cannot be read.
pub fn build(model: &Model, last_layer: Rows, precision: Precision) -> Result<Graph, ModelError> {
    let last_layer = match model.manifest.head.reads_first_token_only() {
        true => last_layer,
        false => Rows::All,
    };
    let mut graph = EncoderGraph::new(model, last_layer, precision);
    let hidden = graph.encode()?;
    let pooled = graph.pooled(&hidden, last_layer);
    let logits = graph.head(pooled)?;
    Ok(graph.finish(&logits))
}
