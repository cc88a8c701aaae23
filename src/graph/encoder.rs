//! The transformer encoder that BERT and RoBERTa share, packed, with its last layer computed only
//! where it is read.

use super::builder::{Attr, CONTRIB, Data, Dim, Graph, GraphBuilder, STANDARD, Value};
use super::onnx::DataType;
use super::strips::strips;
use super::{Precision, Rows, io, operator};
use crate::model::{EncoderConfig, HiddenAct, Model, ModelError};
use crate::quantize::{self, Quantized};

const TOKENS: Dim = Dim::Named("tokens");
const SEQUENCES: Dim = Dim::Named("sequences");

/// A graph under construction, with the model it is built from.
pub(crate) struct EncoderGraph<'a> {
    graph: GraphBuilder,
    model: &'a Model,
    config: &'a EncoderConfig,
    last_layer: Rows,
    precision: Precision,
    /// What the names of the encoder's tensors begin with.
    prefix: &'static str,
    inputs: Inputs,
}

struct Inputs {
    input_ids: Value,
    position_ids: Value,
    lengths: Value,
    cls_index: Value,
}

impl<'a> EncoderGraph<'a> {
    pub(crate) fn new(
        model: &'a Model,
        last_layer: Rows,
        precision: Precision,
        prefix: &'static str,
    ) -> Self {
        let mut graph = GraphBuilder::default();
        let inputs = Inputs {
            input_ids: graph.input(io::INPUT_IDS, DataType::Int64, &[TOKENS]),
            position_ids: graph.input(io::POSITION_IDS, DataType::Int64, &[TOKENS]),
            lengths: graph.input(io::LENGTHS, DataType::Int32, &[SEQUENCES]),
            cls_index: graph.input(io::CLS_INDEX, DataType::Int64, &[SEQUENCES]),
        };
        Self {
            graph,
            model,
            config: &model.manifest.encoder,
            last_layer,
            precision,
            prefix,
            inputs,
        }
    }

    /// Embeddings and all layers; the last hidden state of each sequence's first token,
    /// `[sequences, hidden]`.
    pub(crate) fn encode(&mut self) -> Result<Value, ModelError> {
        let mut hidden = self.embeddings()?;
        for layer in 0..self.config.layers {
            let rows = if layer + 1 == self.config.layers {
                self.last_layer
            } else {
                Rows::All
            };
            hidden = self.layer(layer, &hidden, rows)?;
        }
        Ok(match self.last_layer {
            Rows::All => self.first_of_each("first", &hidden),
            Rows::FirstOfEach => hidden,
        })
    }

    /// `x W^T + b` with the bias inside, for the small head: `[rows, out]`.
    pub(crate) fn dense(&mut self, name: &str, x: &Value, out: usize) -> Result<Value, ModelError> {
        let input = self.config.hidden_size;
        let matrix = self.matrix(name, out, input)?;
        let weight = self.transposed(name, input, &[&matrix]);
        let bias = self.vector(&format!("{name}.bias"), out)?;
        let inputs = [x, &weight, &bias];
        Ok(self.graph.node(name, STANDARD, "Gemm", &inputs, &[]))
    }

    pub(crate) fn tanh(&mut self, name: &str, x: &Value) -> Value {
        self.graph.node(name, STANDARD, "Tanh", &[x], &[])
    }

    pub(crate) fn finish(mut self, logits: &Value) -> Graph {
        let dims = [SEQUENCES, Dim::Fixed(self.model.manifest.labels.len())];
        self.graph
            .output(io::LOGITS, logits, DataType::Float, &dims);
        self.graph.finish(&self.model.manifest.id)
    }

    fn embeddings(&mut self) -> Result<Value, ModelError> {
        let EncoderConfig {
            hidden_size,
            vocab_size,
            ..
        } = *self.config;
        let base = format!("{}.embeddings", self.prefix);
        let words = format!("{base}.word_embeddings.weight");
        let data = self
            .model
            .weights
            .read(&words, &[vocab_size, hidden_size])?;
        if self.precision == Precision::Int8 {
            return self.quantized_embeddings(&base, &data);
        }
        let words = self.floats(&words, &[vocab_size, hidden_size], data);
        let positions = self.position_table(&base)?;
        let word = self.gather("word", &words, &self.inputs.input_ids.clone());
        let position = self.gather("position", &positions, &self.inputs.position_ids.clone());
        self.layer_norm(&format!("{base}.LayerNorm"), &word, &position, None)
    }

    fn quantized_embeddings(&mut self, base: &str, words: &[f32]) -> Result<Value, ModelError> {
        let size = self.config.hidden_size;
        let (numbers, scales) = quantize::by_row(words, size);
        let shape = [scales.len(), size];
        let words = self
            .graph
            .weight(&format!("{base}.words"), &shape, Data::I8(numbers));
        let scales = self.floats(&format!("{base}.scales"), &shape[..1], scales);
        let positions = self.position_table(base)?;
        let norm = format!("{base}.LayerNorm");
        let gamma = self.vector(&format!("{norm}.weight"), size)?;
        let beta = self.vector(&format!("{norm}.bias"), size)?;
        Ok(self.graph.node(
            base,
            operator::DOMAIN,
            operator::QUANTIZED_EMBEDDINGS,
            &[
                &self.inputs.input_ids,
                &self.inputs.position_ids,
                &words,
                &scales,
                &positions,
                &gamma,
                &beta,
            ],
            &[Attr::Float(operator::EPSILON, self.config.layer_norm_eps)],
        ))
    }

    /// One row for each segment and position, so that both cost a single look-up.
    fn position_table(&mut self, base: &str) -> Result<Value, ModelError> {
        let EncoderConfig {
            hidden_size,
            max_positions,
            type_vocab_size,
            ..
        } = *self.config;
        let weights = &self.model.weights;
        let positions = weights.read(
            &format!("{base}.position_embeddings.weight"),
            &[max_positions, hidden_size],
        )?;
        let types = weights.read(
            &format!("{base}.token_type_embeddings.weight"),
            &[type_vocab_size, hidden_size],
        )?;
        let mut table = Vec::with_capacity(type_vocab_size * positions.len());
        for segment in types.chunks_exact(hidden_size) {
            for position in positions.chunks_exact(hidden_size) {
                table.extend(position.iter().zip(segment).map(|(p, s)| p + s));
            }
        }
        let shape = [type_vocab_size * max_positions, hidden_size];
        Ok(self.floats(&format!("{base}.position_table"), &shape, table))
    }

    fn layer(&mut self, index: usize, hidden: &Value, rows: Rows) -> Result<Value, ModelError> {
        if self.precision != Precision::Fp32Nodes {
            return self.whole_layer(index, hidden, rows);
        }
        let base = format!("{}.encoder.layer.{index}", self.prefix);
        // What the layer's output is computed for, and added to.
        let residual = match rows {
            Rows::All => hidden.clone(),
            Rows::FirstOfEach => self.first_of_each(&format!("{base}.first"), hidden),
        };
        let context = self.attention(&base, hidden, &residual, rows)?;

        let size = self.config.hidden_size;
        let output = format!("{base}.attention.output");
        let dense = format!("{output}.dense");
        let matrix = self.matrix(&dense, size, size)?;
        let projected = self.linear(&dense, &context, size, &[&matrix]);
        let bias = self.attention_output_bias(&base)?;
        let bias = self.floats(&format!("{dense}.bias"), &[size], bias);
        let norm = format!("{output}.LayerNorm");
        let attended = self.layer_norm(&norm, &projected, &residual, Some(&bias))?;

        let inner = self.config.intermediate_size;
        let up = format!("{base}.intermediate.dense");
        let matrix = self.matrix(&up, inner, size)?;
        let expanded = self.linear(&up, &attended, size, &[&matrix]);
        let activated = self.activation(&up, &expanded, inner)?;
        let down = format!("{base}.output.dense");
        let matrix = self.matrix(&down, size, inner)?;
        let contracted = self.linear(&down, &activated, inner, &[&matrix]);
        let bias = self.vector(&format!("{down}.bias"), size)?;
        let norm = format!("{base}.output.LayerNorm");
        self.layer_norm(&norm, &contracted, &attended, Some(&bias))
    }

    /// A whole layer as one node.
    fn whole_layer(
        &mut self,
        index: usize,
        hidden: &Value,
        rows: Rows,
    ) -> Result<Value, ModelError> {
        let &EncoderConfig {
            hidden_size: size,
            intermediate_size: inner,
            heads,
            layer_norm_eps,
            hidden_act,
            ..
        } = self.config;
        let weights = &self.model.weights;
        let base = format!("{}.encoder.layer.{index}", self.prefix);
        let part = |name: &str| format!("{base}.attention.self.{name}");
        let scale = ((size / heads) as f32).sqrt().recip();
        let scaled = |mut numbers: Vec<f32>| {
            numbers.iter_mut().for_each(|number| *number *= scale);
            numbers
        };
        let query = scaled(self.matrix(&part("query"), size, size)?);
        let query_bias = scaled(weights.read(&part("query.bias"), &[size])?);
        let key = self.matrix(&part("key"), size, size)?;
        let value = self.matrix(&part("value"), size, size)?;
        let projection = format!("{base}.attention.output.dense");
        let projected = self.matrix(&projection, size, size)?;
        let projection_bias = self.attention_output_bias(&base)?;
        let up = format!("{base}.intermediate.dense");
        let upward = self.matrix(&up, inner, size)?;
        let up_bias = weights.read(&format!("{up}.bias"), &[inner])?;
        let down = format!("{base}.output.dense");
        let downward = self.matrix(&down, size, inner)?;
        let down_bias = weights.read(&format!("{down}.bias"), &[size])?;

        let mut inputs = vec![hidden.clone(), self.inputs.lengths.clone()];
        let mut matrix =
            |name: &str, input: usize, matrices: &[&[f32]], bias: Vec<f32>| match self.precision {
                Precision::Int8 => inputs.extend(self.quantized(name, input, matrices, bias)),
                _ => inputs.extend(self.strips(name, input, matrices, bias)),
            };
        matrix(&part("query"), size, &[&query], query_bias);
        matrix(&part("kv"), size, &[&key, &value], vec![0.0; 2 * size]);
        matrix(&projection, size, &[&projected], projection_bias);
        matrix(&up, size, &[&upward], up_bias);
        matrix(&down, inner, &[&downward], down_bias);
        for norm in ["attention.output", "output"] {
            for part in ["weight", "bias"] {
                inputs.push(self.vector(&format!("{base}.{norm}.LayerNorm.{part}"), size)?);
            }
        }
        let activation = match hidden_act {
            HiddenAct::Gelu => operator::GELU,
            HiddenAct::GeluTanh => operator::GELU_TANH,
            HiddenAct::Relu => operator::RELU,
        };
        Ok(self.graph.node(
            &base,
            operator::DOMAIN,
            match self.precision {
                Precision::Int8 => operator::QUANTIZED_LAYER,
                _ => operator::LAYER,
            },
            &inputs.iter().collect::<Vec<_>>(),
            &[
                Attr::Int(operator::HEADS, heads as i64),
                Attr::Int(operator::ACTIVATION, activation),
                Attr::Int(
                    operator::FIRST_OF_EACH,
                    i64::from(rows == Rows::FirstOfEach),
                ),
                Attr::Float(operator::EPSILON, layer_norm_eps),
            ],
        ))
    }

    /// Matrices `[out, input]` side by side in eight bits, as a [`operator::QUANTIZED_LAYER`] takes
    /// them.
    fn quantized(
        &mut self,
        name: &str,
        input: usize,
        matrices: &[&[f32]],
        bias: Vec<f32>,
    ) -> [Value; 4] {
        let Quantized {
            strips,
            scales,
            sums,
        } = Quantized::new(matrices, input);
        let mut weight = |part: &str, count: usize, data: Data| {
            self.graph.weight(&format!("{name}.{part}"), &[count], data)
        };
        [
            weight("strips", strips.len(), Data::I8(strips)),
            weight("scales", scales.len(), Data::F32(scales)),
            weight("sums", sums.len(), Data::I32(sums)),
            weight("bias", bias.len(), Data::F32(bias)),
        ]
    }

    /// Matrices `[out, input]` side by side, as a [`operator::LAYER`] takes them.
    fn strips(
        &mut self,
        name: &str,
        input: usize,
        matrices: &[&[f32]],
        bias: Vec<f32>,
    ) -> [Value; 2] {
        let strips = strips(matrices, input);
        [
            self.floats(&format!("{name}.strips"), &[strips.len()], strips),
            self.floats(&format!("{name}.bias"), &[bias.len()], bias),
        ]
    }

    /// Self-attention of `queries` over all tokens of their sequence: one row for each query.
    fn attention(
        &mut self,
        base: &str,
        hidden: &Value,
        queries: &Value,
        rows: Rows,
    ) -> Result<Value, ModelError> {
        let EncoderConfig {
            hidden_size: size,
            heads,
            ..
        } = *self.config;
        let part = |name: &str| format!("{base}.attention.self.{name}");
        let scale = ((size / heads) as f32).sqrt().recip();
        let mut query = self.matrix(&part("query"), size, size)?;
        query.iter_mut().for_each(|weight| *weight *= scale);
        let key = self.matrix(&part("key"), size, size)?;
        let value = self.matrix(&part("value"), size, size)?;
        let (query, keys) = match rows {
            Rows::All => {
                let all = self.linear(&part("qkv"), hidden, size, &[&query, &key, &value]);
                (all.clone(), all)
            }
            Rows::FirstOfEach => (
                self.linear(&part("query"), queries, size, &[&query]),
                self.linear(&part("kv"), hidden, size, &[&key, &value]),
            ),
        };
        let name = part("query.bias");
        let mut bias = self.model.weights.read(&name, &[size])?;
        bias.iter_mut().for_each(|weight| *weight *= scale);
        let bias = self.floats(&name, &[size], bias);
        let lengths = self.inputs.lengths.clone();
        Ok(self.graph.node(
            &part("context"),
            operator::DOMAIN,
            operator::PACKED_ATTENTION,
            &[&query, &keys, &bias, &lengths],
            &[Attr::Int(operator::HEADS, heads as i64)],
        ))
    }

    /// The bias of attention's output projection and, projected like every value, that of the
    /// values: attention weights sum to one, so it passes through them unchanged.
    ///
    /// The bias of the keys is read nowhere: it adds the same to all scores of a query.
    fn attention_output_bias(&self, base: &str) -> Result<Vec<f32>, ModelError> {
        let size = self.config.hidden_size;
        let weights = &self.model.weights;
        let values = weights.read(&format!("{base}.attention.self.value.bias"), &[size])?;
        let output = format!("{base}.attention.output.dense");
        let mut bias = weights.read(&format!("{output}.bias"), &[size])?;
        let projection = self.matrix(&output, size, size)?;
        for (bias, row) in bias.iter_mut().zip(projection.chunks_exact(size)) {
            let projected: f64 = row
                .iter()
                .zip(&values)
                .map(|(&weight, &value)| f64::from(weight) * f64::from(value))
                .sum();
            *bias = (f64::from(*bias) + projected) as f32;
        }
        Ok(bias)
    }

    fn activation(&mut self, name: &str, x: &Value, size: usize) -> Result<Value, ModelError> {
        let bias = self.vector(&format!("{name}.bias"), size)?;
        let output = format!("{name}.activated");
        Ok(match self.config.hidden_act {
            HiddenAct::Gelu => self
                .graph
                .node(&output, CONTRIB, "BiasGelu", &[x, &bias], &[]),
            HiddenAct::GeluTanh => self
                .graph
                .node(&output, CONTRIB, "FastGelu", &[x, &bias], &[]),
            HiddenAct::Relu => {
                let biased = format!("{name}.biased");
                let biased = self.graph.node(&biased, STANDARD, "Add", &[x, &bias], &[]);
                self.graph.node(&output, STANDARD, "Relu", &[&biased], &[])
            }
        })
    }

    /// `LayerNorm(x + residual + bias)` in one pass.
    fn layer_norm(
        &mut self,
        name: &str,
        x: &Value,
        residual: &Value,
        bias: Option<&Value>,
    ) -> Result<Value, ModelError> {
        let size = self.config.hidden_size;
        let gamma = self.vector(&format!("{name}.weight"), size)?;
        let beta = self.vector(&format!("{name}.bias"), size)?;
        let mut inputs = vec![x, residual, &gamma, &beta];
        inputs.extend(bias);
        Ok(self.graph.node(
            name,
            CONTRIB,
            "SkipLayerNormalization",
            &inputs,
            &[Attr::Float("epsilon", self.config.layer_norm_eps)],
        ))
    }

    /// `x W^T` without bias, for matrices `[out, input]` side by side: `[rows, sum of outs]`.
    fn linear(&mut self, name: &str, x: &Value, input: usize, matrices: &[&[f32]]) -> Value {
        let weight = self.transposed(name, input, matrices);
        self.graph
            .node(name, STANDARD, "MatMul", &[x, &weight], &[])
    }

    /// Matrices `[out, input]`, transposed and side by side: `[input, sum of outs]`.
    fn transposed(&mut self, name: &str, input: usize, matrices: &[&[f32]]) -> Value {
        let width = matrices.iter().map(|matrix| matrix.len()).sum::<usize>() / input;
        let mut joined = vec![0.0; input * width];
        let rows = matrices
            .iter()
            .flat_map(|matrix| matrix.chunks_exact(input));
        for (column, row) in rows.enumerate() {
            for (i, &weight) in row.iter().enumerate() {
                joined[i * width + column] = weight;
            }
        }
        self.floats(&format!("{name}.weight^T"), &[input, width], joined)
    }

    /// The weights of a dense layer as they are stored, `[out, input]`.
    fn matrix(&self, name: &str, out: usize, input: usize) -> Result<Vec<f32>, ModelError> {
        self.model
            .weights
            .read(&format!("{name}.weight"), &[out, input])
    }

    fn floats(&mut self, name: &str, shape: &[usize], data: Vec<f32>) -> Value {
        self.graph.weight(name, shape, Data::F32(data))
    }

    fn vector(&mut self, name: &str, size: usize) -> Result<Value, ModelError> {
        let data = self.model.weights.read(name, &[size])?;
        Ok(self.floats(name, &[size], data))
    }

    fn first_of_each(&mut self, name: &str, hidden: &Value) -> Value {
        let index = self.inputs.cls_index.clone();
        self.gather(name, hidden, &index)
    }

    fn gather(&mut self, name: &str, rows: &Value, index: &Value) -> Value {
        self.graph
            .node(name, STANDARD, "Gather", &[rows, index], &[])
    }
}
