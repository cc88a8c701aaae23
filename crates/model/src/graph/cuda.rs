//! Lowers the CPU graph of packed (unpadded) batches to a CUDA graph.
//!
//! - Attention becomes ONNX Runtime's `PackedMultiHeadAttention`, which takes variable-length sequences
//!   as [`TOKEN_OFFSET`] and [`CUMULATIVE`]. Batches are packed already, so neither `RemovePadding` nor
//!   `RestorePadding` is needed.
//! - The QKV projection is one matrix product with its columns interleaved by head, as the operator
//!   expects, so nothing is split. The operator needs as many queries as keys: the last layer computes
//!   the queries of all tokens and gathers the `[CLS]` rows afterwards.
//! - In fp16, the encoder computes in fp16 and the head in fp32, so that close logits stay distinct.

use std::collections::{BTreeMap, BTreeSet};

use half::f16;
use prost::Message;

use super::builder::{CONTRIB, Data, Dim, Graph, STANDARD, Weight, placeholder, value_info};
use super::{io, operator};
use crate::ModelError;
use crate::onnx::{AttributeProto, DataType, GraphProto, ModelProto, NodeProto, TensorProto};

/// Input: index of each token in a padded batch, `[sequences, longest]`, 32-bit. The tokens come first, in
/// order, then the padding.
pub const TOKEN_OFFSET: &str = "token_offset";
/// Input: cumulative sequence lengths, `[sequences + 1]`, 32-bit.
pub const CUMULATIVE: &str = "cumulative_lengths";

/// Floating-point type of the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Floats {
    /// fp32.
    Single,
    /// fp16, accumulated in fp32.
    Half,
}

/// The head starts after the last of these.
const NORM: &str = "SkipLayerNormalization";

/// Lowers `graph`, built in fp32 for the CPU.
///
/// # Errors
/// [`ModelError`] if an operator has no CUDA counterpart, or a weight overflows fp16.
pub fn lower(graph: Graph, floats: Floats) -> Result<Graph, ModelError> {
    let mut model = ModelProto::decode(&graph.model[..]).expect("the builder encoded it");
    let proto = model.graph.take().expect("the builder adds a graph");
    let mut lowering = Lowering::new(graph.weights);
    for node in proto.node {
        match (node.domain.as_str(), node.op_type.as_str()) {
            (operator::DOMAIN, operator::PACKED_ATTENTION) => lowering.attention(&node)?,
            (operator::DOMAIN, other) => return Err(unsupported(other)),
            _ => lowering.nodes.push(node),
        }
    }
    if floats == Floats::Half {
        lowering.halve()?;
    }
    lowering.eliminate_dead_nodes(proto.output.iter().map(|value| value.name.clone()));
    let mut input = proto.input;
    for (name, dims) in [
        (
            TOKEN_OFFSET,
            &[Dim::Named("sequences"), Dim::Named("longest")][..],
        ),
        (CUMULATIVE, &[Dim::Named("sequences_and_one")][..]),
    ] {
        input.push(value_info(name, DataType::Int32, dims.iter().copied()));
    }
    let read: BTreeSet<&String> = lowering.nodes.iter().flat_map(|n| &n.input).collect();
    input.retain(|value| read.contains(&value.name));
    let weights: Vec<Weight> = lowering.weights.into_values().collect();
    let mut initializer: Vec<TensorProto> = weights.iter().map(placeholder).collect();
    initializer.extend(lowering.shapes);
    model.graph = Some(GraphProto {
        node: lowering.nodes,
        initializer,
        input,
        ..proto
    });
    Ok(Graph {
        model: model.encode_to_vec(),
        weights,
    })
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
    shapes: Vec<TensorProto>,
}

/// Some columns of a weight, `[rows, stride]`.
struct Columns<'a> {
    data: &'a [f32],
    stride: usize,
    first: usize,
}

impl Lowering {
    fn new(weights: Vec<Weight>) -> Self {
        let named = |weight: Weight| (weight.name.clone(), weight);
        Self {
            nodes: Vec::new(),
            weights: weights.into_iter().map(named).collect(),
            shapes: Vec::new(),
        }
    }

    /// The node that computes `value`.
    fn producer(&self, value: &str) -> Result<&NodeProto, ModelError> {
        let gives = |node: &&NodeProto| node.output.iter().any(|output| output == value);
        let found = self.nodes.iter().find(gives);
        found.ok_or_else(|| unsupported(operator::PACKED_ATTENTION))
    }

    /// The input and the weight of the matrix product `value`.
    fn product(&self, value: &str) -> Result<(String, &Weight), ModelError> {
        let node = self.producer(value)?;
        match (node.op_type.as_str(), &node.input[..]) {
            ("MatMul", [rows, weight]) if self.weights.contains_key(weight) => {
                Ok((rows.clone(), &self.weights[weight]))
            }
            _ => Err(unsupported(operator::PACKED_ATTENTION)),
        }
    }

    /// See [`operator::PACKED_ATTENTION`].
    fn attention(&mut self, node: &NodeProto) -> Result<(), ModelError> {
        let bad = || unsupported(operator::PACKED_ATTENTION);
        let [query, keys, bias, _lengths] = &node.input[..] else {
            return Err(bad());
        };
        // The operator has no sliding window.
        if node.int(operator::WINDOW).is_some() {
            return Err(bad());
        }
        let heads = node.int(operator::HEADS).ok_or_else(bad)? as usize;
        let name = &node.name;
        let query_bias = floats(self.weights.get(bias).ok_or_else(bad)?)?;
        let width = query_bias.len();
        // Keys and values have no bias: see `EncoderGraph::attention_output_bias`.
        let mut joined_bias = query_bias.to_vec();
        joined_bias.resize(3 * width, 0.0);

        let all_tokens = query == keys;
        let (hidden, key_weight) = self.product(keys)?;
        let key_stride = key_weight.shape[1];
        let key_data = floats(key_weight)?;
        let (query_data, query_stride) = if all_tokens {
            (key_data, key_stride)
        } else {
            let (gathered, weight) = self.product(query)?;
            let gather = self.producer(&gathered)?;
            if gather.op_type != "Gather" || gather.input[..] != [&hidden[..], io::CLS_INDEX] {
                return Err(bad());
            }
            (floats(weight)?, weight.shape[1])
        };
        let columns = |data, stride, first| Columns {
            data,
            stride,
            first,
        };
        let joined = interleaved(
            [
                columns(query_data, query_stride, 0),
                columns(key_data, key_stride, key_stride - 2 * width),
                columns(key_data, key_stride, key_stride - width),
            ],
            width,
            heads,
        );
        let rows = joined.len() / (3 * width);

        let part = |suffix: &str| format!("{name}.{suffix}");
        self.weight(part("qkv.weight"), vec![rows, 3 * width], joined);
        self.weight(part("qkv.bias"), vec![3 * width], joined_bias);
        self.push(
            &part("qkv"),
            STANDARD,
            "MatMul",
            &[&hidden, &part("qkv.weight")],
            &[],
        );
        // 0 copies the dimension.
        self.shape(part("shape"), &[0, heads as i64, 3, (width / heads) as i64]);
        self.push(
            &part("by_head"),
            STANDARD,
            "Reshape",
            &[&part("qkv"), &part("shape")],
            &[],
        );
        let context = if all_tokens {
            name.clone()
        } else {
            part("all_tokens")
        };
        self.push(
            &context,
            CONTRIB,
            "PackedMultiHeadAttention",
            &[
                &part("by_head"),
                "",
                "",
                &part("qkv.bias"),
                TOKEN_OFFSET,
                CUMULATIVE,
            ],
            // Queries are scaled already.
            &[
                AttributeProto::int("num_heads", heads as i64),
                AttributeProto::float("scale", 1.0),
            ],
        );
        if !all_tokens {
            self.push(name, STANDARD, "Gather", &[&context, io::CLS_INDEX], &[]);
        }
        Ok(())
    }

    /// Converts the encoder's weights to fp16, and its outputs to fp32 where the head reads them.
    fn halve(&mut self) -> Result<(), ModelError> {
        let last = self.nodes.iter().rposition(|node| node.op_type == NORM);
        let head = last.ok_or_else(|| unsupported("no LayerNorm"))? + 1;
        let encoder = &self.nodes[..head];
        let read: BTreeSet<&String> = encoder.iter().flat_map(|node| &node.input).collect();
        for (name, weight) in &mut self.weights {
            if !read.contains(name) {
                continue;
            }
            if let Data::F32(data) = &weight.data {
                weight.data = Data::F16(halves(name, data)?);
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
                        let to = AttributeProto::int("to", DataType::Float as i64);
                        self.push(&wide, STANDARD, "Cast", &[input], &[to]);
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
        self.shapes.retain(|shape| read.contains(&shape.name));
    }

    fn weight(&mut self, name: String, shape: Vec<usize>, data: Vec<f32>) {
        let weight = Weight {
            name: name.clone(),
            shape,
            data: Data::F32(data),
        };
        self.weights.insert(name, weight);
    }

    fn shape(&mut self, name: String, dims: &[i64]) {
        let bytes = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
        let shape = TensorProto::inline(&name, &[dims.len()], DataType::Int64, bytes);
        self.shapes.push(shape);
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

fn floats(weight: &Weight) -> Result<&[f32], ModelError> {
    match &weight.data {
        Data::F32(data) => Ok(data),
        _ => Err(unsupported(operator::PACKED_ATTENTION)),
    }
}

/// Queries, keys and values of `width` columns each, interleaved by head.
fn interleaved(parts: [Columns<'_>; 3], width: usize, heads: usize) -> Vec<f32> {
    let rows = parts[0].data.len() / parts[0].stride;
    let size = width / heads;
    let mut joined = Vec::with_capacity(rows * 3 * width);
    for row in 0..rows {
        for head in 0..heads {
            for part in &parts {
                let first = row * part.stride + part.first + head * size;
                joined.extend_from_slice(&part.data[first..first + size]);
            }
        }
    }
    joined
}

/// Converts to fp16. Small values lose precision; values that overflow are an error.
fn halves(name: &str, data: &[f32]) -> Result<Vec<f16>, ModelError> {
    let halves: Vec<f16> = data.iter().map(|&number| f16::from_f32(number)).collect();
    if halves.iter().all(|number| number.is_finite()) {
        return Ok(halves);
    }
    Err(ModelError::new(
        format!("`{name}` has values that overflow fp16"),
        "serve it with `--precision fp32`",
    ))
}
