//! Builds the ONNX graph that scores packed (unpadded, variable-length) batches.
//!
//! The tokens of a batch are concatenated without padding. Tokens that sequences of a decoder share at their start
//! are there once. If the classification head reads only the
//! first token of each sequence, the last layer is computed only for those.

pub mod builder;
pub mod cuda;
mod decoder;
mod disentangled;
mod encoder;
pub mod file;
mod gated;
mod head;
pub mod standard;

pub use builder::{Data, Graph, Weight};

use self::builder::Value;
use self::encoder::EncoderGraph;
use crate::{Model, ModelError};

/// Names of the graph's inputs and output.
pub mod io {
    /// Token ids, `[tokens]`.
    pub const INPUT_IDS: &str = "input_ids";
    /// Row of the position table of each token, `[tokens]`: `segment * positions + position`.
    pub const POSITION_IDS: &str = "position_ids";
    /// Tokens of each sequence, `[sequences]`, 32-bit.
    pub const LENGTHS: &str = "lengths";
    /// Row of the first token of each sequence, `[sequences]`.
    pub const CLS_INDEX: &str = "cls_index";
    /// Of decoders, beside the token ids: the segments that the rows are laid out in, `[segments,
    /// SEGMENT]`; see [`super::operator::DECODER_LAYER`].
    pub const SEGMENTS: &str = "segments";
    /// Of decoders: what layers keep for the next run, `[KEEP]`; see [`super::operator::DECODER_LAYER`].
    pub const KEEP: &str = "keep";
    /// Output, `[sequences, labels]`.
    pub const LOGITS: &str = "logits";
}

/// Custom operators of the graph.
pub mod operator {
    /// Domain of the operators.
    pub const DOMAIN: &str = "rerankd";
    /// Unpadded self-attention.
    ///
    /// Inputs: queries `[queries, _]`, in the first `width` columns; keys and values `[tokens, _]`, in the
    /// last `2 x width` columns; query bias `[width]`; lengths `[sequences]`, 32-bit. There is one query per
    /// token, or one per sequence. Queries and their bias are already divided by the square root of the
    /// head size. [`POSITION_INPUTS`] optional inputs follow. Output: `[queries, width]`.
    pub const PACKED_ATTENTION: &str = "PackedAttention";
    /// Optional inputs of [`PACKED_ATTENTION`], at the offsets below.
    pub const POSITION_INPUTS: usize = 5;
    /// Offset of the cosines and sines of rotary position embeddings, `[positions, head size]`.
    pub const ROTARY_INPUT: usize = 0;
    /// Offset of the relative position bias, `[heads, 2 x reach + 1]`.
    pub const BIAS_INPUT: usize = 1;
    /// Offset of the keys of relative positions, `[width, buckets]`. They have queries and buckets too.
    pub const POSITION_KEYS_INPUT: usize = 2;
    /// Offset of the queries of relative positions, `[width, buckets]`, divided as the queries are.
    pub const POSITION_QUERIES_INPUT: usize = 3;
    /// Offset of the bucket of each distance from key to query, `[2 x reach + 1]`, 32-bit.
    pub const BUCKETS_INPUT: usize = 4;
    /// Attribute: tokens on either side that a query attends to (sliding window); of a [`DECODER_LAYER`], most
    /// tokens that it attends to, its own included. Default unlimited.
    pub const WINDOW: &str = "window";
    /// Attribute: number of heads.
    pub const HEADS: &str = "heads";
    /// Unpadded causal attention with grouped queries, of which only the lowering for CUDA knows: elsewhere, it is
    /// part of a [`DECODER_LAYER`].
    ///
    /// Inputs: queries `[tokens, HEADS * HEAD_SIZE]`; keys and values `[tokens, KV_HEADS * HEAD_SIZE]` each; rotary
    /// embeddings `[positions, head size]`. Queries are not scaled. Output: `[tokens, HEADS * HEAD_SIZE]`.
    pub const CAUSAL_ATTENTION: &str = "CausalAttention";
    /// Pools the hidden states of each sequence.
    ///
    /// Inputs: hidden states `[tokens, width]`; lengths `[sequences]`, 32-bit. Output: `[sequences,
    /// width]`.
    pub const PACKED_POOLING: &str = "PackedPooling";
    /// Attribute: [`MAX`], [`MEAN`], [`MEAN_SQRT`], [`WEIGHTED_MEAN`] or [`LAST`].
    pub const MODE: &str = "mode";
    /// Maximum over all tokens.
    pub const MAX: i64 = 0;
    /// Mean over all tokens.
    pub const MEAN: i64 = 1;
    /// Sum divided by the square root of the number of tokens.
    pub const MEAN_SQRT: i64 = 2;
    /// Mean with weight n for the n-th token.
    pub const WEIGHTED_MEAN: i64 = 3;
    /// Last token.
    pub const LAST: i64 = 4;
    /// Embeddings and their LayerNorm, with int8 word embeddings.
    ///
    /// Inputs: token ids and rows of the position table `[tokens]`, 64-bit; word embeddings `[vocabulary,
    /// width]`, 8-bit, and their scales `[vocabulary]`; position table `[rows, width]`; gamma and beta
    /// `[width]`. Output: `[tokens, width]`.
    pub const QUANTIZED_EMBEDDINGS: &str = "QuantizedEmbeddings";
    /// A post-norm encoder layer in fp32.
    ///
    /// Inputs: hidden state `[tokens, width]`; lengths `[sequences]`, 32-bit; then [`MATRICES`] times
    /// [`strips`](rerankd_kernels::strips::strips) and a bias `[outputs]`: query projection, already divided
    /// by the square root of the head size; fused key and value projection; attention output projection; up
    /// projection; down projection. Then [`NORMS`] times gamma and beta `[width]`: after attention, and after
    /// the feed-forward network. Then the optional inputs of [`PACKED_ATTENTION`]. Output:
    /// `[tokens or sequences, width]`.
    pub const LAYER: &str = "Layer";
    /// A [`LAYER`] in bf16: each matrix is [`strips`](rerankd_kernels::bf16::strips) of pairs of bf16, 32 bits each,
    /// and a bias.
    pub const BF16_LAYER: &str = "Bf16Layer";
    /// A [`LAYER`] in int8: each matrix is the strips, scales and sums of
    /// [`rerankd_kernels::quantize::Quantized`], a bias, and the shifts and factors of its
    /// [`rerankd_kernels::quantize::Equalization`], which are empty where there is none.
    pub const QUANTIZED_LAYER: &str = "QuantizedLayer";
    /// A pre-norm encoder layer with a gated linear unit (GeGLU), in fp32.
    ///
    /// Inputs as for [`LAYER`], but [`GATED_MATRICES`] matrices: query projection; key and value projection;
    /// attention output projection; up; gate; down. LayerNorm precedes attention and the feed-forward network.
    pub const GATED_LAYER: &str = "GatedLayer";
    /// A [`GATED_LAYER`] in bf16.
    pub const BF16_GATED_LAYER: &str = "Bf16GatedLayer";
    /// A [`GATED_LAYER`] in int8.
    pub const QUANTIZED_GATED_LAYER: &str = "QuantizedGatedLayer";
    /// A [`LAYER`] with a gated linear unit, in fp32: inputs as for it, but [`GATED_MATRICES`] matrices, those of a
    /// [`GATED_LAYER`].
    pub const POST_NORM_GATED_LAYER: &str = "PostNormGatedLayer";
    /// A [`POST_NORM_GATED_LAYER`] in bf16.
    pub const BF16_POST_NORM_GATED_LAYER: &str = "Bf16PostNormGatedLayer";
    /// A [`POST_NORM_GATED_LAYER`] in int8.
    pub const QUANTIZED_POST_NORM_GATED_LAYER: &str = "QuantizedPostNormGatedLayer";
    /// Matrices of a [`GATED_LAYER`].
    pub const GATED_MATRICES: usize = 6;
    /// Attribute of a [`GATED_LAYER`]: 1 if the input is already normalized.
    pub const NORMED: &str = "normed";
    /// Matrices of a [`LAYER`].
    pub const MATRICES: usize = 5;
    /// LayerNorms of a [`LAYER`].
    pub const NORMS: usize = 2;
    /// A decoder layer in fp32.
    ///
    /// Inputs: hidden state `[rows, width]`; segments `[segments, SEGMENT]`, 32-bit, which cover the rows in
    /// order: rows of the segment; rows of the prefix that it continues, or 0; first row of that prefix, or -1 if
    /// it is what the layer kept; and 1 if the segment ends a sequence. Then `[KEEP]`, 32-bit, what the layer
    /// keeps for the next run, keys and values of the first rows of a sequence: so many rows of what it kept
    /// before, and behind them, from a first row on, so many rows of this run. Then [`DECODER_MATRICES`] times
    /// [`strips`](rerankd_kernels::strips::strips) and a bias `[outputs]`: query projection; fused key and value
    /// projection; attention output projection; gate; up; down. Then [`NORMS`] weights of RMSNorm, `[width]`:
    /// before attention, and before the feed-forward network. Then the rotary embeddings `[positions, head
    /// size]`. Optional: weights of RMSNorm of queries and of keys, `[head size]`. Output: `[rows or sequences,
    /// width]`.
    pub const DECODER_LAYER: &str = "DecoderLayer";
    /// A [`DECODER_LAYER`] in fp32 whose strips are in bf16, and widened as they are multiplied.
    pub const WIDENED_DECODER_LAYER: &str = "WidenedDecoderLayer";
    /// A [`DECODER_LAYER`] in bf16, with the matrices of a [`BF16_LAYER`].
    pub const BF16_DECODER_LAYER: &str = "Bf16DecoderLayer";
    /// A [`DECODER_LAYER`] in int8.
    pub const QUANTIZED_DECODER_LAYER: &str = "QuantizedDecoderLayer";
    /// Numbers of a segment.
    pub const SEGMENT: usize = 4;
    /// Numbers that say what is kept.
    pub const KEEP: usize = 3;
    /// Matrices of a [`DECODER_LAYER`].
    pub const DECODER_MATRICES: usize = 6;
    /// Attribute: heads of keys and values.
    pub const KV_HEADS: &str = "kv_heads";
    /// Attribute: numbers of one head.
    pub const HEAD_SIZE: &str = "head_size";
    /// Attribute: 1 to compute the last row of each sequence only.
    pub const LAST_OF_EACH: &str = "last_of_each";
    /// Attribute: 1 to compute the first token of each sequence only.
    pub const FIRST_OF_EACH: &str = "first_of_each";
    /// Attribute: epsilon of LayerNorm.
    pub const EPSILON: &str = "epsilon";
    /// Attribute: [`GELU`], [`GELU_TANH`], [`RELU`] or [`SILU`].
    pub const ACTIVATION: &str = "activation";
    /// GELU, exact (error function).
    pub const GELU: i64 = 0;
    /// GELU, tanh approximation.
    pub const GELU_TANH: i64 = 1;
    /// `max(x, 0)`.
    pub const RELU: i64 = 2;
    /// `x / (1 + e^-x)`.
    pub const SILU: i64 = 3;
}

/// Tokens for which a layer is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// Every token.
    All,
    /// The first of each sequence. Exact in the last layer, where the head reads nothing else.
    FirstOfEach,
}

/// Precision of the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// fp32, as in the reference implementation, with fused layers.
    Fp32,
    /// fp32 with ONNX Runtime's matrix products, for CPUs that [`operator::LAYER`] does not support.
    Fp32Nodes,
    /// bf16 weights, and products of bf16 with sums in fp32; the rest is fp32.
    Bf16,
    /// int8 weights, activations and attention.
    Int8,
}

impl Precision {
    /// The name shown to operators and clients.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 | Self::Fp32Nodes => "fp32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

/// Builds the packed graph of `model`. `last_layer` is [`Rows::FirstOfEach`] except in comparisons; it is
/// ignored if the head reads more than the first token, and by decoders, whose last layer is computed for the last
/// token of each sequence.
///
/// # Errors
/// [`ModelError`] if a weight is missing, has the wrong shape or cannot be read.
pub fn build(model: &Model, last_layer: Rows, precision: Precision) -> Result<Graph, ModelError> {
    if let Some(decoder) = model.manifest.encoder.decoder() {
        return decoder::build(model, decoder, precision);
    }
    encoder_graph(model, last_layer, precision).map(|(graph, _)| graph)
}

/// The graph of an encoder, and the value that its layers end with.
fn encoder_graph(
    model: &Model,
    last_layer: Rows,
    precision: Precision,
) -> Result<(Graph, Value), ModelError> {
    let last_layer = if model.manifest.head.reads_first_token_only() {
        last_layer
    } else {
        Rows::All
    };
    let mut graph = EncoderGraph::new(model, last_layer, precision);
    let hidden = graph.encode()?;
    let pooled = graph.pooled(&hidden, last_layer);
    let logits = graph.head(pooled)?;
    Ok((graph.finish(&logits), hidden))
}
