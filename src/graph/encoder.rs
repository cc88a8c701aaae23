//! The transformer encoder that BERT and RoBERTa share, packed, with its last layer computed only
//! where it is read.

use super::builder::{Attr, CONTRIB, Dim, Graph, GraphBuilder, STANDARD, Value};
use super::{Rows, io};
use super::onnx::DataType;
use crate::model::{EncoderConfig, HiddenAct, Model, ModelError};

const TOKENS: Dim = Dim::Named("tokens");
const SEQUENCES: Dim = Dim::Named("sequences");
const LONGEST: Dim = Dim::Named("longest");

/// A graph under construction, with the model it is built from.
pub(crate) struct EncoderGraph<'a> {
    graph: GraphBuilder,
    model: &'a Model,
    config: &'a EncoderConfig,
    last_layer: Rows,
    /// What the names of the encoder's tensors begin with.
    prefix: &'static str,
    inputs: Inputs,
}

struct Inputs {
    input_ids: Value,
    position_ids: Value,
    lengths: Value,
    pad_index: Value,
    unpad_index: Value,
    cls_index: Value,
}


impl<'a> EncoderGraph<'a> {
    pub(crate) fn new(model: &'a Model, last_layer: Rows, prefix: &'static str) -> Self {
        let mut graph = GraphBuilder::default();
        let inputs = Inputs {
            input_ids: graph.input(io::INPUT_IDS, DataType::Int64, &[TOKENS]),
            position_ids: graph.input(io::POSITION_IDS, DataType::Int64, &[TOKENS]),
            lengths: graph.input(io::LENGTHS, DataType::Int32, &[SEQUENCES]),
            pad_index: graph.input(io::PAD_INDEX, DataType::Int64, &[SEQUENCES, LONGEST]),
            unpad_index: graph.input(io::UNPAD_INDEX, DataType::Int64, &[TOKENS]),
            cls_index: graph.input(io::CLS_INDEX, DataType::Int64, &[SEQUENCES]),
        };
        Self {
            graph,
            model,
            config: &model.manifest.encoder,
            last_layer,
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
        let weight = self.transposed(&[name], &[out], input, name)?;
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
        let words = self.graph.weight(&words, &[vocab_size, hidden_size], data);
        let positions = self.position_table(&base)?;
        let word = self.gather("word", &words, &self.inputs.input_ids.clone());
        let position = self.gather("position", &positions, &self.inputs.position_ids.clone());
        self.layer_norm(&format!("{base}.LayerNorm"), &word, &position, None)
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
        Ok(self
            .graph
            .weight(&format!("{base}.position_table"), &shape, table))
    }

    fn layer(&mut self, index: usize, hidden: &Value, rows: Rows) -> Result<Value, ModelError> {
        let base = format!("{}.encoder.layer.{index}", self.prefix);
        // What the layer's output is computed for, and added to.
        let residual = match rows {
            Rows::All => hidden.clone(),
            Rows::FirstOfEach => self.first_of_each(&format!("{base}.first"), hidden),
        };
        let context = self.attention(&base, hidden, &residual, rows)?;

        let size = self.config.hidden_size;
        let output = format!("{base}.attention.output");
        let projected = self.linear(&[&format!("{output}.dense")], &context, size, &[size])?;
        let bias = self.vector(&format!("{output}.dense.bias"), size)?;
        let norm = format!("{output}.LayerNorm");
        let attended = self.layer_norm(&norm, &projected, &residual, Some(&bias))?;

        let inner = self.config.intermediate_size;
        let up = format!("{base}.intermediate.dense");
        let expanded = self.linear(&[&up], &attended, size, &[inner])?;
        let activated = self.activation(&up, &expanded, inner)?;
        let down = format!("{base}.output.dense");
        let contracted = self.linear(&[&down], &activated, inner, &[size])?;
        let bias = self.vector(&format!("{down}.bias"), size)?;
        let norm = format!("{base}.output.LayerNorm");
        self.layer_norm(&norm, &contracted, &attended, Some(&bias))
    }

    /// Self-attention of `queries` over all tokens of their sequence: one row for each query.
    fn attention(
        &mut self,
        base: &str,
        hidden: &Value,
        queries: &Value,
        rows: Rows,
    ) -> Result<Value, ModelError> {
        let size = self.config.hidden_size;
        let part = |name: &str| format!("{base}.attention.self.{name}");
        let (q, k, v) = (part("query"), part("key"), part("value"));
        let mut bias = Vec::with_capacity(3 * size);
        for name in [&q, &k, &v] {
            bias.extend(self.model.weights.read(&format!("{name}.bias"), &[size])?);
        }
        let bias = self.graph.weight(&part("bias"), &[3 * size], bias);

        let pad_index = self.inputs.pad_index.clone();
        let (query, key, value) = match rows {
            Rows::All => {
                let qkv = self.linear(&[&q, &k, &v], hidden, size, &[size; 3])?;
                let [query, key, value] = self.graph.split(&part("split"), &qkv, [size; 3]);
                let query = self.gather(&part("query.padded"), &query, &pad_index);
                (query, key, value)
            }
            Rows::FirstOfEach => {
                let query = self.linear(&[&q], queries, size, &[size])?;
                let shape = self
                    .graph
                    .integers(&part("query.shape"), &[-1, 1, size as i64]);
                let query = self.reshape(&part("query.rows"), &query, &shape);
                let kv = self.linear(&[&k, &v], hidden, size, &[size; 2])?;
                let [key, value] = self.graph.split(&part("split"), &kv, [size; 2]);
                (query, key, value)
            }
        };
        let key = self.gather(&part("key.padded"), &key, &pad_index);
        let value = self.gather(&part("value.padded"), &value, &pad_index);
        let lengths = self.inputs.lengths.clone();
        let context = self.graph.node(
            &part("attention"),
            CONTRIB,
            "MultiHeadAttention",
            &[&query, &key, &value, &bias, &lengths],
            &[Attr::Int("num_heads", self.config.heads as i64)],
        );
        let shape = self
            .graph
            .integers(&part("context.shape"), &[-1, size as i64]);
        let context = self.reshape(&part("context"), &context, &shape);
        Ok(match rows {
            Rows::All => {
                let unpad_index = self.inputs.unpad_index.clone();
                self.gather(&part("context.packed"), &context, &unpad_index)
            }
            Rows::FirstOfEach => context,
        })
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

    /// `x` times the weights of `names` side by side, without bias: `[rows, sum of outs]`.
    fn linear(
        &mut self,
        names: &[&str],
        x: &Value,
        input: usize,
        outs: &[usize],
    ) -> Result<Value, ModelError> {
        let name = names.join("|");
        let weight = self.transposed(names, outs, input, &name)?;
        Ok(self
            .graph
            .node(&name, STANDARD, "MatMul", &[x, &weight], &[]))
    }

    /// The weights of `names`, each `[out, input]`, transposed and side by side:
    /// `[input, sum of outs]`.
    fn transposed(
        &mut self,
        names: &[&str],
        outs: &[usize],
        input: usize,
        name: &str,
    ) -> Result<Value, ModelError> {
        let width: usize = outs.iter().sum();
        let mut joined = vec![0.0; input * width];
        let mut offset = 0;
        for (part, &out) in names.iter().zip(outs) {
            let data = self
                .model
                .weights
                .read(&format!("{part}.weight"), &[out, input])?;
            for (column, row) in data.chunks_exact(input).enumerate() {
                for (i, &weight) in row.iter().enumerate() {
                    joined[i * width + offset + column] = weight;
                }
            }
            offset += out;
        }
        Ok(self
            .graph
            .weight(&format!("{name}.weight^T"), &[input, width], joined))
    }

    fn vector(&mut self, name: &str, size: usize) -> Result<Value, ModelError> {
        let data = self.model.weights.read(name, &[size])?;
        Ok(self.graph.weight(name, &[size], data))
    }

    fn first_of_each(&mut self, name: &str, hidden: &Value) -> Value {
        let index = self.inputs.cls_index.clone();
        self.gather(name, hidden, &index)
    }

    fn gather(&mut self, name: &str, rows: &Value, index: &Value) -> Value {
        self.graph
            .node(name, STANDARD, "Gather", &[rows, index], &[])
    }

    fn reshape(&mut self, name: &str, x: &Value, shape: &Value) -> Value {
        self.graph.node(name, STANDARD, "Reshape", &[x, shape], &[])
    }
}
