//! From the packed graph that processors run to the one that a GPU runs.
//!
//! Both come of one description of an architecture: the graph is built as for a processor, and what a
//! GPU does otherwise is written over it here.
//! - Attention becomes ONNX Runtime's `PackedMultiHeadAttention`, which knows the sequences of a
//!   packed batch by [`TOKEN_OFFSET`] and [`CUMULATIVE`]. Batches are packed already, so neither
//!   `RemovePadding` nor `RestorePadding` is needed.
//! - Queries, keys and values are one product with its columns in the order that the operator reads,
//!   so that nothing is split. It takes as many queries as keys: in the last layer, queries of all
//!   tokens are computed and the rows that are read are picked after it.
//! - In 16 bits, the encoder computes in 16 and the head in 32: logits keep the digits that tell
//!   documents apart.

use std::collections::{BTreeMap, BTreeSet};

use half::f16;
use prost::Message;

use super::builder::{
    Attr, CONTRIB, Data, Dim, Graph, STANDARD, Weight, attribute, placeholder, value_info,
};
use super::onnx::{DataType, GraphProto, ModelProto, NodeProto, TensorProto};
use super::{io, operator};
use crate::ModelError;

/// Cell of each token in a padded batch, `[sequences, longest]`, 32-bit: first those of all tokens in
/// their order, then the cells that no token has.
pub const TOKEN_OFFSET: &str = "token_offset";
/// Tokens before each sequence, and of all, `[sequences + 1]`, 32-bit.
pub const CUMULATIVE: &str = "cumulative_lengths";

/// Numbers that the encoder computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Floats {
    /// 32 bits.
    Single,
    /// 16 bits, with sums in 32.
    Half,
}

/// The operator after the last of which the head begins.
const NORM: &str = "SkipLayerNormalization";

/// Writes `graph`, of a processor and in 32 bits, for a GPU.
///
/// # Errors
/// [`ModelError`] when it holds an operator that has no counterpart there, or a weight that 16 bits
/// cannot hold.
pub fn lower(graph: Graph, floats: Floats) -> Result<Graph, ModelError> {
    let mut model = decode(&graph);
    let Some(proto) = model.graph.take() else {
        return Err(unknown("graph"));
    };
    let mut lowering = Lowering::new(graph.weights);
    for node in proto.node {
        match (node.domain.as_str(), node.op_type.as_str()) {
            (operator::DOMAIN, operator::PACKED_ATTENTION) => lowering.attention(&node)?,
            (operator::DOMAIN, other) => return Err(unknown(other)),
            _ => lowering.nodes.push(node),
        }
    }
    if floats == Floats::Half {
        lowering.halve()?;
    }
    let wanted: Vec<String> = proto
        .output
        .iter()
        .map(|value| value.name.clone())
        .collect();
    lowering.keep_what_is_read(&wanted);
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
    let read = lowering.read();
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

fn decode(graph: &Graph) -> ModelProto {
    ModelProto::decode(&graph.model[..]).expect("the builder wrote it")
}

fn unknown(operator: &str) -> ModelError {
    ModelError::new(
        format!(
            "the graph of this model needs `{operator}`, which this server cannot run on a GPU"
        ),
        "serve it with `--device cpu`",
    )
}

struct Lowering {
    nodes: Vec<NodeProto>,
    weights: BTreeMap<String, Weight>,
    /// Small constants that stand in the graph file itself.
    shapes: Vec<TensorProto>,
}

/// Columns of a weight, `[rows, stride]`.
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

    /// The node that gives `value`.
    fn producer(&self, value: &str) -> Result<&NodeProto, ModelError> {
        let gives = |node: &&NodeProto| node.output.iter().any(|output| output == value);
        let found = self.nodes.iter().find(gives);
        found.ok_or_else(|| unknown(operator::PACKED_ATTENTION))
    }

    /// The rows and the weight that `value` is the product of.
    fn product(&self, value: &str) -> Result<(String, &Weight), ModelError> {
        let node = self.producer(value)?;
        match (node.op_type.as_str(), &node.input[..]) {
            ("MatMul", [rows, weight]) if self.weights.contains_key(weight) => {
                Ok((rows.clone(), &self.weights[weight]))
            }
            _ => Err(unknown(operator::PACKED_ATTENTION)),
        }
    }

    /// See [`operator::PACKED_ATTENTION`].
    fn attention(&mut self, node: &NodeProto) -> Result<(), ModelError> {
        let bad = || unknown(operator::PACKED_ATTENTION);
        let [query, keys, bias, _lengths] = &node.input[..] else {
            return Err(bad());
        };
        // Queries that see a part of their sequence are not what the operator does.
        if node.attribute.iter().any(|a| a.name == operator::WINDOW) {
            return Err(bad());
        }
        let heads = node.attribute.iter().find(|a| a.name == operator::HEADS);
        let heads = heads.and_then(|a| a.i).ok_or_else(bad)? as usize;
        let name = &node.name;
        let query_bias = floats(self.weights.get(bias).ok_or_else(bad)?)?;
        let width = query_bias.len();
        // Keys and values have none: see the builder of the encoder.
        let mut joined_bias = query_bias.to_vec();
        joined_bias.resize(3 * width, 0.0);

        let every = query == keys;
        let (hidden, key_weight) = self.product(keys)?;
        let key_stride = key_weight.shape[1];
        let key_data = floats(key_weight)?;
        let (query_data, query_stride) = if every {
            (key_data, key_stride)
        } else {
            let (picked, weight) = self.product(query)?;
            let gather = self.producer(&picked)?;
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
        // Zero keeps the number of tokens.
        self.shape(part("shape"), &[0, heads as i64, 3, (width / heads) as i64]);
        self.push(
            &part("by_head"),
            STANDARD,
            "Reshape",
            &[&part("qkv"), &part("shape")],
            &[],
        );
        let context = if every { name.clone() } else { part("of_all") };
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
            // Queries are divided by the root of the size of a head already.
            &[
                Attr::Int("num_heads", heads as i64),
                Attr::Float("scale", 1.0),
            ],
        );
        if !every {
            self.push(name, STANDARD, "Gather", &[&context, io::CLS_INDEX], &[]);
        }
        Ok(())
    }

    /// Gives the encoder weights of 16 bits, and the head what it reads in 32.
    fn halve(&mut self) -> Result<(), ModelError> {
        let last = self.nodes.iter().rposition(|node| node.op_type == NORM);
        let head = last.ok_or_else(|| unknown("no normalisation"))? + 1;
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
        let given: BTreeSet<String> = encoder.iter().flat_map(|n| n.output.clone()).collect();
        let rest = self.nodes.split_off(head);
        let mut widened: BTreeSet<String> = BTreeSet::new();
        for mut node in rest {
            for input in &mut node.input {
                if given.contains(input) {
                    let wide = format!("{input}.wide");
                    if widened.insert(input.clone()) {
                        let to = Attr::Int("to", DataType::Float as i64);
                        self.push(&wide, STANDARD, "Cast", &[input], &[to]);
                    }
                    *input = wide;
                }
            }
            self.nodes.push(node);
        }
        Ok(())
    }

    /// Drops nodes, weights and constants that lead to none of the values `wanted`.
    fn keep_what_is_read(&mut self, wanted: &[String]) {
        let mut read: BTreeSet<String> = wanted.iter().cloned().collect();
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

    /// Every value that a node reads.
    fn read(&self) -> BTreeSet<String> {
        let inputs = self
            .nodes
            .iter()
            .flat_map(|node| node.input.iter().cloned());
        inputs.collect()
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
        self.shapes.push(TensorProto {
            dims: vec![dims.len() as i64],
            data_type: DataType::Int64 as i32,
            name,
            raw_data: Some(dims.iter().flat_map(|dim| dim.to_le_bytes()).collect()),
            ..TensorProto::default()
        });
    }

    fn push(&mut self, name: &str, domain: &str, operator: &str, inputs: &[&str], attr: &[Attr]) {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![name.to_owned()],
            name: name.to_owned(),
            op_type: operator.to_owned(),
            attribute: attr.iter().map(attribute).collect(),
            domain: domain.to_owned(),
        });
    }
}

fn floats(weight: &Weight) -> Result<&[f32], ModelError> {
    match &weight.data {
        Data::F32(data) => Ok(data),
        _ => Err(unknown(operator::PACKED_ATTENTION)),
    }
}

/// Queries, keys and values of `width` columns each, side by side for each head.
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

/// `data` in 16 bits. What is too small becomes less exact, as in every such model; what is too large
/// would become infinite.
fn halves(name: &str, data: &[f32]) -> Result<Vec<f16>, ModelError> {
    let halves: Vec<f16> = data.iter().map(|&number| f16::from_f32(number)).collect();
    match halves.iter().all(|number| number.is_finite()) {
        true => Ok(halves),
        false => Err(ModelError::new(
            format!("`{name}` holds numbers that 16 bits cannot"),
            "serve it with `--precision fp32`",
        )),
    }
}
