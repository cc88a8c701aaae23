//! Rewrites a packed graph to standard ONNX operators on padded batches, for export.
//!
//! The nodes stay those of the packed graph, on all rows, padding included. Custom operators are expanded to
//! standard ones; attention masks the padding.

mod attention;
mod pooling;

use std::collections::HashMap;

use prost::Message;

use super::builder::{CONTRIB, Dim, IR_VERSION, OPSET_VERSION, STANDARD, value_info};
use super::{Data, Graph, Precision, Weight, io, operator};
use crate::onnx::{
    AttributeProto, DataType, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    ValueInfoProto,
};
use rerankd_kernels::quantize;

// Inputs that the packed graph does not have.
const ATTENTION_MASK: &str = "attention_mask";
const TOKEN_TYPE_IDS: &str = "token_type_ids";
/// Added to the attention scores of padding, so that its weights are 0.
const MASKED: f32 = -1e9;
/// Zero point of uint8 weights. int8 weights would saturate on some CPUs.
const WEIGHT_ZERO: u8 = 128;

/// How tokens map to rows of the model's position table.
#[derive(Debug, Clone, Copy)]
pub struct Positions {
    /// Position of a sequence's first token.
    pub first: usize,
    /// Rows of the table for each segment; 1 where the model has no position embeddings.
    pub of_segment: usize,
    /// A token that takes the position before the first, and that positions skip.
    pub skipped_token: Option<u32>,
    /// Whether the model has token types.
    pub segments: bool,
}

/// The packed graph has an operator that cannot be expanded to standard operators.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the operator `{0}` of its graph cannot be exported")]
pub struct UnsupportedOperator(String);

/// Rewrites an fp32 packed graph, weights included, in fp32 or with int8 matrix products and word embeddings.
/// Inputs: `input_ids`, `attention_mask` and, if the model has token types, `token_type_ids`,
/// `[batch, sequence]`, 64-bit. Output: `logits`, `[batch, labels]`.
///
/// # Errors
/// [`UnsupportedOperator`].
///
/// # Panics
/// If the graph was not made by this crate's builder.
pub fn padded(
    graph: Graph,
    positions: Positions,
    precision: Precision,
) -> Result<ModelProto, UnsupportedOperator> {
    let model = ModelProto::decode(&graph.model[..]).expect("the builder encoded it");
    let packed = model.graph.expect("the builder adds a graph");
    let weights = graph.weights.into_iter();
    let mut rewriter = Rewriter {
        nodes: Vec::new(),
        constants: Vec::new(),
        weights: weights
            .map(|weight| (weight.name.clone(), weight))
            .collect(),
        names: HashMap::new(),
        precision,
    };
    rewriter.inputs(positions);
    for node in packed.node {
        rewriter.node(node)?;
    }
    Ok(rewriter.finish(&packed.name, &packed.output, positions))
}

struct Rewriter {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    /// Weights that are not in `constants` yet.
    weights: HashMap<String, Weight>,
    /// Renamed values of the packed graph.
    names: HashMap<String, String>,
    precision: Precision,
}

impl Rewriter {
    /// Computes the inputs of the packed graph from padded rows.
    fn inputs(&mut self, positions: Positions) {
        let row = self.longs("row", &[1], &[-1]);
        let zero = self.longs("zero", &[], &[0]);
        let step = self.longs("step", &[], &[1]);
        let axis = self.longs("axis", &[], &[1]);
        self.op("shape", "Shape", &[io::INPUT_IDS], &[]);
        self.op("rows", "Gather", &["shape", &zero], &[]);
        self.op("columns", "Gather", &["shape", &step], &[]);
        self.op("tokens", "Mul", &["rows", "columns"], &[]);
        let batch = self.longs("zero_list", &[1], &[0]);
        self.op("batch", "Gather", &["shape", &batch], &[]);

        // Positions, from the first token of each row.
        let before = positions.first as i64 - 1;
        let position = match positions.skipped_token {
            _ if positions.of_segment == 1 => {
                self.op("token_position", "Mul", &[io::INPUT_IDS, &zero], &[])
            }
            Some(padding) => {
                let padding = self.longs("padding", &[], &[i64::from(padding)]);
                let before = self.longs("before", &[], &[before]);
                self.op("is_padding", "Equal", &[io::INPUT_IDS, &padding], &[]);
                self.op("is_counted", "Not", &["is_padding"], &[]);
                self.op("counted", "Cast", &["is_counted"], &[to(DataType::Int64)]);
                self.op("count", "CumSum", &["counted", &axis], &[]);
                self.op("counts", "Mul", &["count", "counted"], &[]);
                self.op("token_position", "Add", &["counts", &before], &[])
            }
            None => {
                self.op("column", "Range", &[&zero, "columns", &step], &[]);
                let first = self.longs("first_position", &[], &[before + 1]);
                self.op("position_of_column", "Add", &["column", &first], &[]);
                self.op(
                    "token_position",
                    "Expand",
                    &["position_of_column", "shape"],
                    &[],
                )
            }
        };
        let position = if positions.segments {
            let of_segment = self.longs("of_segment", &[], &[positions.of_segment as i64]);
            self.op("segment", "Mul", &[TOKEN_TYPE_IDS, &of_segment], &[]);
            self.op("segment_position", "Add", &["segment", &position], &[])
        } else {
            position
        };
        self.op("packed_ids", "Reshape", &[io::INPUT_IDS, &row], &[]);
        self.op("packed_positions", "Reshape", &[&position, &row], &[]);
        self.op("first_tokens", "Range", &[&zero, "tokens", "columns"], &[]);
        for (packed, here) in [
            (io::INPUT_IDS, "packed_ids"),
            (io::POSITION_IDS, "packed_positions"),
            (io::CLS_INDEX, "first_tokens"),
        ] {
            self.names.insert(packed.into(), here.into());
        }

        // 0 for tokens and `MASKED` for padding, [batch, 1, 1, sequence].
        let masked = self.floats("masked", &[], &[MASKED]);
        let inner = self.longs("inner_axes", &[2], &[1, 2]);
        self.op(
            "is_token",
            "Cast",
            &[ATTENTION_MASK],
            &[to(DataType::Float)],
        );
        let unit = self.floats("unit", &[], &[1.0]);
        self.op("is_no_token", "Sub", &[&unit, "is_token"], &[]);
        self.op("mask_row", "Mul", &["is_no_token", &masked], &[]);
        self.op("mask", "Unsqueeze", &["mask_row", &inner], &[]);
    }

    fn node(&mut self, mut node: NodeProto) -> Result<(), UnsupportedOperator> {
        for input in &mut node.input {
            if let Some(name) = self.names.get(input.as_str()) {
                input.clone_from(name);
            }
        }
        let inputs: Vec<&str> = node.input.iter().map(String::as_str).collect();
        let name = node.output[0].as_str();
        let int8 = self.precision == Precision::Int8;
        match (node.domain.as_str(), node.op_type.as_str()) {
            (STANDARD, "MatMul") if int8 && self.weights.contains_key(inputs[1]) => {
                self.quantized_product(name, inputs[0], inputs[1]);
            }
            (STANDARD, "Gather") if int8 && inputs[1] == "packed_ids" => {
                self.quantized_words(name, inputs[0], inputs[1]);
            }
            (STANDARD, _) => self.nodes.push(node),
            (CONTRIB, "SkipLayerNormalization") => {
                let sum = self.part(name, "sum", "Add", &inputs[..2], &[]);
                let sum = match inputs.get(4) {
                    Some(bias) => self.part(name, "biased", "Add", &[&sum, bias], &[]),
                    None => sum,
                };
                let mut attributes = node.attribute.clone();
                attributes.push(int("axis", -1));
                let (gamma, beta) = (inputs[2], inputs[3]);
                self.op(
                    name,
                    "LayerNormalization",
                    &[&sum, gamma, beta],
                    &attributes,
                );
            }
            (CONTRIB, "BiasGelu") => {
                let sum = self.part(name, "biased", "Add", &inputs[..], &[]);
                self.gelu(name, &sum);
            }
            (CONTRIB, "Gelu") => self.gelu(name, inputs[0]),
            (CONTRIB, "FastGelu") => {
                let x = match inputs[..] {
                    [x, bias] => self.part(name, "biased", "Add", &[x, bias], &[]),
                    _ => inputs[0].to_owned(),
                };
                self.tanh_gelu(name, &x);
            }
            (operator::DOMAIN, operator::PACKED_ATTENTION) => self.attention(&node),
            (operator::DOMAIN, operator::PACKED_POOLING) => self.pooling(&node),
            (_, other) => return Err(UnsupportedOperator(other.to_owned())),
        }
        Ok(())
    }

    /// `x / 2 * (1 + erf(x / sqrt(2)))`.
    fn gelu(&mut self, name: &str, x: &str) {
        let root = self.floats("sqrt_two", &[], &[std::f32::consts::SQRT_2]);
        let scaled = self.part(name, "scaled", "Div", &[x, &root], &[]);
        let gate = self.part(name, "erf", "Erf", &[&scaled], &[]);
        self.gated(name, x, &gate);
    }

    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`.
    fn tanh_gelu(&mut self, name: &str, x: &str) {
        let three = self.floats("three", &[], &[3.0]);
        let small = self.floats("gelu_cubic", &[], &[0.044_715]);
        let scale = (2.0 / std::f32::consts::PI).sqrt();
        let scale = self.floats("gelu_scale", &[], &[scale]);
        let cube = self.part(name, "cube", "Pow", &[x, &three], &[]);
        let cube = self.part(name, "cubic", "Mul", &[&cube, &small], &[]);
        let sum = self.part(name, "inner", "Add", &[x, &cube], &[]);
        let sum = self.part(name, "scaled", "Mul", &[&sum, &scale], &[]);
        let gate = self.part(name, "tanh", "Tanh", &[&sum], &[]);
        self.gated(name, x, &gate);
    }

    /// `x * (1 + gate) / 2`.
    fn gated(&mut self, name: &str, x: &str, gate: &str) {
        let unit = self.floats("unit", &[], &[1.0]);
        let half = self.floats("half", &[], &[0.5]);
        let gate = self.part(name, "gate", "Add", &[gate, &unit], &[]);
        let product = self.part(name, "product", "Mul", &[x, &gate], &[]);
        self.op(name, "Mul", &[&product, &half], &[]);
    }

    /// `x W` in int8: `W` with one scale per output channel, `x` quantized dynamically with a scale and a zero
    /// point per row. `DynamicQuantizeLinear` has one scale per tensor, so an outlier row would cost all
    /// others precision. The zero points are corrected by the column sums of `W`.
    fn quantized_product(&mut self, name: &str, x: &str, weight: &str) {
        let [values, scales, sums] = ["values", "scales", "sums"].map(|p| part(weight, p));
        let zero = self.constant("weight_zero", &[], DataType::Uint8, vec![WEIGHT_ZERO]);
        let least = self.constant("row_zero", &[], DataType::Uint8, vec![0]);
        if let Some(weight) = self.weights.remove(weight) {
            let columns = quantize_columns(&weight);
            self.floats(&scales, &[columns.scales.len()], &columns.scales);
            self.floats(&sums, &[columns.sums.len()], &columns.sums);
            self.constant(&values, &weight.shape, DataType::Uint8, columns.values);
        }
        let steps = self.floats("row_steps", &[], &[f32::from(u8::MAX)]);
        let tiny = self.floats("row_tiny", &[], &[1e-30]);
        let along = [ints("axes", &[-1]), int("keepdims", 1)];
        let low = self.part(name, "low", "ReduceMin", &[x], &along);
        let high = self.part(name, "high", "ReduceMax", &[x], &along);
        let span = self.part(name, "span", "Sub", &[&high, &low], &[]);
        let span = self.part(name, "wide", "Max", &[&span, &tiny], &[]);
        let scale = self.part(name, "scale", "Div", &[&span, &steps], &[]);
        let above = self.part(name, "above", "Sub", &[x, &low], &[]);
        let number = self.part(name, "exact", "Div", &[&above, &scale], &[]);
        let number = self.part(name, "round", "Round", &[&number], &[]);
        let number = self.part(name, "number", "Cast", &[&number], &[to(DataType::Uint8)]);
        let inputs = &[&*number, &values, &least, &zero];
        let sum = self.part(name, "sum", "MatMulInteger", inputs, &[]);
        let sum = self.part(name, "float", "Cast", &[&sum], &[to(DataType::Float)]);
        let sum = self.part(name, "by_row", "Mul", &[&sum, &scale], &[]);
        let sum = self.part(name, "by_column", "Mul", &[&sum, &scales], &[]);
        let taken = self.part(name, "taken", "Mul", &[&low, &sums], &[]);
        self.op(name, "Add", &[&sum, &taken], &[]);
    }

    /// Gathers rows of an int8 table with one scale per row.
    fn quantized_words(&mut self, name: &str, table: &str, ids: &str) {
        let (values, scales) = (part(table, "values"), part(table, "scales"));
        if let Some(weight) = self.weights.remove(table)
            && let Data::F32(data) = &weight.data
        {
            let (bytes, by) = quantize::by_row(data, weight.shape[1]);
            let bytes = bytes.into_iter().map(|byte| byte as u8).collect();
            self.constant(&values, &weight.shape, DataType::Int8, bytes);
            self.floats(&scales, &[by.len(), 1], &by);
        }
        let row = self.part(name, "number", "Gather", &[&values, ids], &[]);
        let row = self.part(name, "float", "Cast", &[&row], &[to(DataType::Float)]);
        let scale = self.part(name, "scale", "Gather", &[&scales, ids], &[]);
        self.op(name, "Mul", &[&row, &scale], &[]);
    }

    /// Adds a standard node with one output, called `name`.
    fn op(
        &mut self,
        name: &str,
        operator: &str,
        inputs: &[&str],
        attributes: &[AttributeProto],
    ) -> String {
        let inputs = inputs.iter().copied();
        let node = NodeProto::new(name, STANDARD, operator, inputs, attributes);
        self.nodes.push(node);
        name.to_owned()
    }

    /// Adds a standard node that is part of the value `name`, called `name.part`.
    fn part(
        &mut self,
        name: &str,
        part_name: &str,
        operator: &str,
        inputs: &[&str],
        attributes: &[AttributeProto],
    ) -> String {
        self.op(&part(name, part_name), operator, inputs, attributes)
    }

    fn longs(&mut self, name: &str, shape: &[usize], numbers: &[i64]) -> String {
        let bytes = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.constant(name, shape, DataType::Int64, bytes)
    }

    fn floats(&mut self, name: &str, shape: &[usize], numbers: &[f32]) -> String {
        let bytes = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.constant(name, shape, DataType::Float, bytes)
    }

    /// Adds a constant, unless it exists already.
    fn constant(&mut self, name: &str, shape: &[usize], kind: DataType, bytes: Vec<u8>) -> String {
        if self.constants.iter().all(|constant| constant.name != name) {
            let constant = TensorProto::inline(name, shape, kind, bytes);
            self.constants.push(constant);
        }
        name.to_owned()
    }

    fn finish(
        mut self,
        name: &str,
        outputs: &[ValueInfoProto],
        positions: Positions,
    ) -> ModelProto {
        // In the order of the nodes, so that exports are reproducible.
        for name in self.nodes.iter().flat_map(|node| &node.input) {
            if let Some(Weight { shape, data, .. }) = self.weights.remove(name) {
                let (kind, bytes) = (data.data_type(), data.to_bytes());
                let constant = TensorProto::inline(name, &shape, kind, bytes);
                self.constants.push(constant);
            }
        }
        let mut inputs = vec![io::INPUT_IDS, ATTENTION_MASK];
        if positions.segments {
            inputs.push(TOKEN_TYPE_IDS);
        }
        let labels = outputs.first().and_then(|output| {
            let kind = output.r#type.as_ref()?.tensor_type.as_ref()?;
            kind.shape.as_ref()?.dim.last().cloned()
        });
        let labels = labels.unwrap_or_else(|| Dim::Named("labels").into());
        let batch = Dim::Named("batch_size");
        ModelProto {
            ir_version: IR_VERSION,
            producer_name: "rerankd".into(),
            graph: Some(GraphProto {
                node: self.nodes,
                name: name.to_owned(),
                initializer: self.constants,
                input: inputs
                    .into_iter()
                    .map(|name| {
                        let dims = [batch, Dim::Named("sequence_length")];
                        value_info(name, DataType::Int64, dims)
                    })
                    .collect(),
                output: vec![value_info(
                    io::LOGITS,
                    DataType::Float,
                    [batch.into(), labels],
                )],
                ..GraphProto::default()
            }),
            opset_import: vec![OperatorSetIdProto {
                domain: STANDARD.into(),
                version: OPSET_VERSION,
            }],
            ..ModelProto::default()
        }
    }
}

/// A matrix quantized per column.
struct Columns {
    /// uint8, row-major.
    values: Vec<u8>,
    /// Scale of each column.
    scales: Vec<f32>,
    /// Sum of each column, dequantized.
    sums: Vec<f32>,
}

fn quantize_columns(weight: &Weight) -> Columns {
    let Data::F32(data) = &weight.data else {
        unreachable!("an fp32 graph has fp32 matrices only");
    };
    let columns = weight.shape[1];
    let mut largest = vec![0.0_f32; columns];
    for row in data.chunks_exact(columns) {
        for (largest, x) in largest.iter_mut().zip(row) {
            *largest = largest.max(x.abs());
        }
    }
    let scales: Vec<f32> = largest
        .into_iter()
        .map(|largest| match largest {
            0.0 => 1.0,
            largest => largest / quantize::WEIGHT_MAX,
        })
        .collect();
    let mut sums = vec![0_i32; columns];
    let mut values = Vec::with_capacity(data.len());
    for row in data.chunks_exact(columns) {
        for ((x, scale), sum) in row.iter().zip(&scales).zip(&mut sums) {
            let number = (x / scale).round();
            *sum += number as i32;
            values.push((number + f32::from(WEIGHT_ZERO)) as u8);
        }
    }
    let sums = sums
        .iter()
        .zip(&scales)
        .map(|(&sum, scale)| sum as f32 * scale);
    Columns {
        sums: sums.collect(),
        values,
        scales,
    }
}

fn part(name: &str, part: &str) -> String {
    format!("{name}.{part}")
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto::int(name, value)
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto::ints(name, values)
}

fn to(kind: DataType) -> AttributeProto {
    int("to", kind as i64)
}
