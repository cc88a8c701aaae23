//! Lowers the CPU graph of packed (unpadded) batches to a CUDA graph.
//!
//! - Attention becomes ONNX Runtime's `PackedMultiHeadAttention`, which takes variable-length sequences
//!   as [`TOKEN_OFFSET`] and [`CUMULATIVE`]. Batches are packed already, so neither `RemovePadding` nor
//!   `RestorePadding` is needed.
//! - Queries, keys and values are products of their own, with their bias: of three tensors, the operator's flash
//!   attention reads each where it lies; one tensor of all three, or a bias, would be copied first.
//! - The operator needs as many queries as keys: the last layer computes the queries of all tokens and gathers the
//!   `[CLS]` rows afterwards.
//! - What depends on distances (a relative bias, ALiBi, a sliding window) is added to the scores. It is computed
//!   once for all layers that share it.
//! - Disentangled attention (DeBERTa): each layer multiplies every token by every bucket of relative positions, and
//!   gathers from the products what each pair of tokens adds.
//! - Causal models have a graph of standard operators, built for CUDA alone. Their causal mask is added to the scores,
//!   as a sliding window is.
//! - In 16 bits, the encoder computes in 16 bits and the head in fp32, so that close logits stay distinct.
//!
//! What ONNX Runtime's operators require is in `docs/decisions/0051-cuda-operators.md`.

mod attention;
mod causal;
mod decoder;
mod disentangled;
mod pooling;

use std::collections::{BTreeMap, BTreeSet};

use half::f16;
use prost::Message;

use super::builder::{Data, Dim, Graph, STANDARD, Weight, placeholder, value_info};
use super::encoder::to_bf16;
use super::{Precision, Rows, operator};
use crate::onnx::{AttributeProto, DataType, GraphProto, ModelProto, NodeProto, TensorProto};
use crate::{AttentionPositions, EncoderConfig, LayerForm, Model, ModelError};

/// Input: index of each token in a padded batch, `[sequences, longest]`, 32-bit. The tokens come first, in
/// order, then the padding. `longest` is a multiple of [`ALIGNMENT`].
pub const TOKEN_OFFSET: &str = "token_offset";
/// Input: cumulative sequence lengths, `[sequences + 1]`, 32-bit.
pub const CUMULATIVE: &str = "cumulative_lengths";
/// Input: place of each token in its sequence, `[tokens, 1]`, 64-bit.
pub const PLACES: &str = "places";
/// Input: the numbers from 0 to `longest - 1`, `[longest]`, 32-bit.
pub const COLUMNS: &str = "columns";
/// Input: the token in each cell of a padded batch, `[sequences, longest]`, 64-bit; where there is none, the first
/// of the sequence.
pub const CELLS: &str = "cells";
/// Input: the last token of each sequence, `[sequences]`, 64-bit.
pub const LAST_INDEX: &str = "last_index";
/// Input: weight of each cell in the mean of a sequence, `[sequences, 1, longest]`, fp32; 0 where there is no token.
pub const MEAN_WEIGHTS: &str = "mean_weights";
/// Input: the same for the sum divided by the square root of the number of tokens.
pub const MEAN_SQRT_WEIGHTS: &str = "mean_sqrt_weights";
/// Input: the same for the mean with weight n for the n-th token.
pub const WEIGHTED_MEAN_WEIGHTS: &str = "weighted_mean_weights";

/// Padded sequences are a multiple of this long: attention that adds something to its scores reads rows of 64 bytes.
pub const ALIGNMENT: usize = 16;

/// Largest number of elements of a tensor: kernels index them with 32 bits.
pub const MAX_ELEMENTS: usize = i32::MAX as usize;

/// Floating-point type of the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Floats {
    /// fp32.
    Single,
    /// fp16, accumulated in fp32.
    Half,
    /// bf16, accumulated in fp32, and attention in fp16, which is the only one that the operator has.
    Bfloat,
}

impl Floats {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::Single => 4,
            Self::Half | Self::Bfloat => 2,
        }
    }
}

/// What is added to the scores of attention.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Added {
    /// Nothing.
    #[default]
    Nothing,
    /// The same for all sequences of a batch: so many numbers for each pair of places.
    Once(usize),
    /// Numbers for each pair of tokens and each head, looked up among products with so many buckets of distances.
    PerHead {
        /// Heads.
        heads: usize,
        /// Buckets.
        buckets: usize,
    },
}

impl Added {
    /// What models of this configuration add.
    pub fn of(config: &EncoderConfig) -> Self {
        let heads = config.heads;
        match &config.form {
            LayerForm::PostNorm => Self::Nothing,
            LayerForm::PostNormRelativeBias(_) => Self::Once(heads),
            LayerForm::PostNormGated(gated) => match gated.positions {
                AttentionPositions::Rotary(_) => Self::Nothing,
                AttentionPositions::Alibi => Self::Once(heads),
            },
            LayerForm::PreNormGated(_) | LayerForm::Decoder(_) => Self::Once(1),
            LayerForm::PostNormDisentangled(disentangled) => Self::PerHead {
                heads,
                buckets: disentangled.buckets,
            },
        }
    }

    /// Elements of the largest tensor, for so many sequences padded to the same length.
    pub fn max_elements(self, sequences: usize, longest: usize) -> usize {
        let square = longest.saturating_mul(longest);
        match self {
            Self::Nothing => 0,
            Self::Once(rows) => square.saturating_mul(rows),
            Self::PerHead { heads, .. } => square.saturating_mul(heads * sequences),
        }
    }
}

/// Builds the graph of `model` for CUDA.
///
/// # Errors
/// [`ModelError`] if a weight is missing, has the wrong shape, cannot be read, or overflows fp16, if an operator has
/// no CUDA counterpart, or if sequences are too long for it.
pub fn build(model: &Model, floats: Floats) -> Result<Graph, ModelError> {
    let config = &model.manifest.encoder;
    let (graph, hidden, positions) = match config.decoder() {
        Some(decoder) => {
            let (graph, hidden) = decoder::build(model, decoder, floats)?;
            (graph, hidden, model.manifest.max_length)
        }
        None => {
            let (graph, hidden) =
                super::encoder_graph(model, Rows::FirstOfEach, Precision::Fp32Nodes)?;
            (graph, hidden, config.max_positions)
        }
    };
    let longest = positions.next_multiple_of(ALIGNMENT);
    if Added::of(config).max_elements(1, longest) > MAX_ELEMENTS {
        return Err(ModelError::new(
            format!(
                "`{}` reads texts of {positions} tokens, which is too long on a GPU",
                model.manifest.id
            ),
            "lower `--max-length`, or serve it with `--device cpu`",
        ));
    }
    Lowering::new(graph.weights, longest, floats).lower(&graph.model, hidden.name())
}

fn unsupported(operator: &str) -> ModelError {
    ModelError::new(
        format!("the graph of this model needs `{operator}`, which is not supported on a GPU"),
        "serve it with `--device cpu`",
    )
}

struct Lowering {
    nodes: Vec<NodeProto>,
    weights: BTreeMap<String, Weight>,
    /// Small constants, stored in the graph file.
    constants: Vec<TensorProto>,
    /// Longest sequence, padded.
    longest: usize,
    floats: Floats,
}

impl Lowering {
    fn new(weights: Vec<Weight>, longest: usize, floats: Floats) -> Self {
        let named = |weight: Weight| (weight.name.clone(), weight);
        Self {
            nodes: Vec::new(),
            weights: weights.into_iter().map(named).collect(),
            constants: Vec::new(),
            longest,
            floats,
        }
    }

    /// Lowers the file `graph`, built in fp32 for the CPU, whose encoder ends with the value `hidden`.
    fn lower(mut self, graph: &[u8], hidden: &str) -> Result<Graph, ModelError> {
        let mut model = ModelProto::decode(graph).expect("the builder encoded it");
        let proto = model.graph.take().expect("the builder adds a graph");
        let inline = |constant: &TensorProto| !constant.is_external();
        self.constants = proto.initializer.into_iter().filter(inline).collect();
        for node in proto.node {
            match (node.domain.as_str(), node.op_type.as_str()) {
                (operator::DOMAIN, operator::PACKED_ATTENTION) => self.attention(&node)?,
                (operator::DOMAIN, operator::CAUSAL_ATTENTION) => self.causal_attention(&node)?,
                (operator::DOMAIN, operator::PACKED_POOLING) => self.pooling(&node)?,
                (operator::DOMAIN, other) => return Err(unsupported(other)),
                _ => self.nodes.push(node),
            }
        }
        // First, so that no weight is converted that nothing reads.
        self.eliminate_dead_nodes(proto.output.iter().map(|value| value.name.clone()));
        if self.floats != Floats::Single {
            let ends = |node: &NodeProto| node.output.iter().any(|output| output == hidden);
            let end = self.nodes.iter().position(ends);
            self.convert_to_16_bits(end.expect("a node computes the hidden states") + 1)?;
        }
        let mut input = proto.input;
        for (name, data_type, dims) in OWN_INPUTS {
            input.push(value_info(name, data_type, dims.iter().copied()));
        }
        let read: BTreeSet<&String> = self.nodes.iter().flat_map(|n| &n.input).collect();
        input.retain(|value| read.contains(&value.name));
        let weights: Vec<Weight> = self.weights.into_values().collect();
        let mut initializer: Vec<TensorProto> = weights.iter().map(placeholder).collect();
        initializer.extend(self.constants);
        model.graph = Some(GraphProto {
            node: self.nodes,
            initializer,
            input,
            ..proto
        });
        Ok(Graph {
            model: model.encode_to_vec(),
            weights,
        })
    }

    /// Converts the weights of the nodes before `head` to 16 bits, and their outputs to fp32 where the head reads
    /// them.
    fn convert_to_16_bits(&mut self, head: usize) -> Result<(), ModelError> {
        let encoder = &self.nodes[..head];
        let read: BTreeSet<&String> = encoder.iter().flat_map(|node| &node.input).collect();
        for (name, weight) in &mut self.weights {
            if let Data::F32(data) = &mut weight.data
                && read.contains(name)
            {
                weight.data = narrowed(self.floats, name, std::mem::take(data))?;
            }
        }
        let outputs: BTreeSet<String> = encoder.iter().flat_map(|n| n.output.clone()).collect();
        let rest = self.nodes.split_off(head);
        let mut widened: BTreeSet<String> = BTreeSet::new();
        for mut node in rest {
            for input in &mut node.input {
                if outputs.contains(input) {
                    let wide = format!("{input}.fp32");
                    if widened.insert(input.clone()) {
                        self.cast(&wide, input, DataType::Float);
                    }
                    *input = wide;
                }
            }
            self.nodes.push(node);
        }
        Ok(())
    }

    /// Drops nodes, weights and constants that no graph output depends on.
    fn eliminate_dead_nodes(&mut self, outputs: impl Iterator<Item = String>) {
        let mut read: BTreeSet<String> = outputs.collect();
        let mut kept = Vec::new();
        for node in self.nodes.drain(..).rev() {
            if node.output.iter().any(|output| read.contains(output)) {
                read.extend(node.input.iter().cloned());
                kept.push(node);
            }
        }
        kept.reverse();
        self.nodes = kept;
        self.weights.retain(|name, _| read.contains(name));
        self.constants
            .retain(|constant| read.contains(&constant.name));
    }

    fn weight(&mut self, name: &str, shape: &[usize], data: Data) {
        let weight = Weight {
            name: name.to_owned(),
            shape: shape.to_vec(),
            data,
        };
        self.weights.insert(name.to_owned(), weight);
    }

    /// A list of 64-bit integers, such as a shape.
    fn longs(&mut self, name: &str, numbers: &[i64]) {
        let bytes = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.constant(name, DataType::Int64, numbers.len(), bytes);
    }

    /// A list of so many numbers, unless it is there already.
    fn constant(&mut self, name: &str, data_type: DataType, len: usize, bytes: Vec<u8>) {
        if self.constants.iter().all(|constant| constant.name != name) {
            let constant = TensorProto::inline(name, &[len], data_type, bytes);
            self.constants.push(constant);
        }
    }

    /// Whether a node computes `value`.
    fn has(&self, value: &str) -> bool {
        self.producer(value).is_some()
    }

    /// The node that computes `value`.
    fn producer(&self, value: &str) -> Option<&NodeProto> {
        let gives = |node: &&NodeProto| node.output.iter().any(|output| output == value);
        self.nodes.iter().find(gives)
    }

    fn cast(&mut self, name: &str, input: &str, to: DataType) {
        let to = AttributeProto::int("to", to as i64);
        self.push(name, STANDARD, "Cast", &[input], &[to]);
    }

    fn push(
        &mut self,
        name: &str,
        domain: &str,
        operator: &str,
        inputs: &[&str],
        attr: &[AttributeProto],
    ) {
        let node = NodeProto::new(name, domain, operator, inputs.iter().copied(), attr);
        self.nodes.push(node);
    }
}

/// Inputs that the graph for the CPU does not have.
const OWN_INPUTS: [(&str, DataType, &[Dim]); 9] = {
    const SEQUENCES: Dim = Dim::Named("sequences");
    const LONGEST: Dim = Dim::Named("longest");
    const WEIGHTS: &[Dim] = &[SEQUENCES, Dim::Fixed(1), LONGEST];
    [
        (TOKEN_OFFSET, DataType::Int32, &[SEQUENCES, LONGEST]),
        (
            CUMULATIVE,
            DataType::Int32,
            &[Dim::Named("sequences_and_one")],
        ),
        (
            PLACES,
            DataType::Int64,
            &[Dim::Named("tokens"), Dim::Fixed(1)],
        ),
        (COLUMNS, DataType::Int32, &[LONGEST]),
        (CELLS, DataType::Int64, &[SEQUENCES, LONGEST]),
        (LAST_INDEX, DataType::Int64, &[SEQUENCES]),
        (MEAN_WEIGHTS, DataType::Float, WEIGHTS),
        (MEAN_SQRT_WEIGHTS, DataType::Float, WEIGHTS),
        (WEIGHTED_MEAN_WEIGHTS, DataType::Float, WEIGHTS),
    ]
};

fn floats(weight: &Weight) -> Result<&[f32], ModelError> {
    match &weight.data {
        Data::F32(data) => Ok(data),
        _ => Err(unsupported(operator::PACKED_ATTENTION)),
    }
}

/// Numbers in the type of the encoder.
fn narrowed(floats: Floats, name: &str, data: Vec<f32>) -> Result<Data, ModelError> {
    Ok(match floats {
        Floats::Single => Data::F32(data),
        Floats::Half => Data::F16(to_fp16(name, &data)?),
        Floats::Bfloat => Data::BF16(to_bf16(&data)),
    })
}

/// Converts to fp16. Small values lose precision; values that overflow are an error.
fn to_fp16(name: &str, data: &[f32]) -> Result<Vec<f16>, ModelError> {
    let halves: Vec<f16> = data.iter().map(|&number| f16::from_f32(number)).collect();
    if halves.iter().all(|number| number.is_finite()) {
        return Ok(halves);
    }
    Err(ModelError::new(
        format!("`{name}` has values that overflow fp16"),
        "serve it with `--precision bf16` or `--precision fp32`",
    ))
}
