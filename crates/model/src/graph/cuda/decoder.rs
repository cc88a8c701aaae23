//! Decoders for CUDA: their graph of single nodes, before attention is lowered.
//!
//! A prefix that sequences share is computed for each of them. Matrices are narrowed as they are read, so that no more
//! than one is held in fp32.

use super::{Floats, narrowed};
use crate::graph::builder::{CONTRIB, Data, Graph, STANDARD, Value};
use crate::graph::encoder::{EncoderGraph, transposed};
use crate::graph::head::Pooled;
use crate::graph::{Precision, operator};
use crate::head::Pooling;
use crate::onnx::AttributeProto;
use crate::{Decoder, EncoderConfig, HiddenAct, Model, ModelError};

/// A graph under construction.
struct DecoderNodes<'a> {
    graph: EncoderGraph<'a>,
    decoder: &'a Decoder,
    floats: Floats,
}

/// The graph of a decoder, and the value that its layers end with.
pub(super) fn build(
    model: &Model,
    decoder: &Decoder,
    floats: Floats,
) -> Result<(Graph, Value), ModelError> {
    let mut nodes = DecoderNodes {
        graph: EncoderGraph::decoder(model, Precision::Fp32Nodes),
        decoder,
        floats,
    };
    let rotary = nodes.graph.rotary_table(decoder);
    let mut hidden = nodes.words()?;
    for layer in 0..model.manifest.encoder.layers {
        hidden = nodes.layer(layer, &hidden, &rotary)?;
    }
    let mut graph = nodes.graph;
    let rows = graph.final_norm(decoder, &hidden)?;
    let width = model.manifest.encoder.hidden_size;
    let logits = graph.head(Pooled { rows, width })?;
    Ok((graph.finish(&logits), hidden))
}

impl DecoderNodes<'_> {
    fn words(&mut self) -> Result<Value, ModelError> {
        let graph = &mut self.graph;
        let (size, rows) = (graph.config.hidden_size, graph.config.vocab_size);
        let tensors = &graph.config.tensors;
        let name = format!("{}.weight", tensors.name(tensors.words));
        let weights = &graph.model().weights;
        let table = match self.floats {
            Floats::Bfloat if weights.is_bf16(&name) => {
                Data::BF16(weights.read_bf16(&name, &[rows, size])?)
            }
            _ => narrowed(self.floats, &name, weights.read(&name, &[rows, size])?)?,
        };
        let table = graph.graph.weight(&name, &[rows, size], table);
        let ids = graph.inputs.input_ids.clone();
        let words = graph.gather("word", &table, &ids);
        Ok(graph.scaled_words(self.decoder, words))
    }

    /// A layer. The last computes the last row of each sequence, behind attention.
    fn layer(&mut self, index: usize, hidden: &Value, rotary: &Value) -> Result<Value, ModelError> {
        let &EncoderConfig {
            hidden_size: width,
            intermediate_size: inner,
            heads,
            layers,
            ref tensors,
            ..
        } = self.graph.config;
        let &Decoder {
            kv_heads,
            head_size: size,
            input_bias,
            output_bias,
            feed_forward_bias,
            ..
        } = self.decoder;
        let base = tensors.layer(index);
        let part = |name: &str| format!("{base}.{name}");

        let normed = self.norm(&part(tensors.attention_norm), hidden, width)?;
        let [query, key, value] = [
            (tensors.query, heads),
            (tensors.key, kv_heads),
            (tensors.value, kv_heads),
        ]
        .map(|(name, heads)| self.dense(&part(name), &normed, [width, heads * size], input_bias));
        let (mut query, mut key) = (query?, key?);
        if self.decoder.head_norms {
            query = self.head_norm(&part("self_attn.q_norm"), &query, heads)?;
            key = self.head_norm(&part("self_attn.k_norm"), &key, kv_heads)?;
        }
        let int = |name, number: usize| AttributeProto::int(name, number as i64);
        let mut attributes = vec![
            int(operator::HEADS, heads),
            int(operator::KV_HEADS, kv_heads),
            int(operator::HEAD_SIZE, size),
        ];
        let window = self.decoder.windows[index];
        attributes.extend(window.map(|window| int(operator::WINDOW, window)));
        let mut context = self.graph.graph.node(
            &part("context"),
            operator::DOMAIN,
            operator::CAUSAL_ATTENTION,
            &[&query, &key, &value?, rotary],
            &attributes,
        );
        let mut residual = hidden.clone();
        if index + 1 == layers {
            let graph = &mut self.graph;
            context = graph.pool(&part("context.last"), &context, Pooling::Last);
            residual = graph.pool(&part("last"), &residual, Pooling::Last);
        }
        let shape = [heads * size, width];
        let projected = self.dense(&part(tensors.output), &context, shape, output_bias)?;
        let attended = self.op(&part("attended"), "Add", [&projected, &residual]);

        let normed = self.norm(&part(tensors.output_norm), &attended, width)?;
        let shape = [width, inner];
        let gate = part(self.decoder.gate);
        let gates = self.dense(&gate, &normed, shape, feed_forward_bias)?;
        let up = self.dense(&part(tensors.up), &normed, shape, feed_forward_bias)?;
        let activated = self.activated(&format!("{gate}.activated"), &gates);
        let gated = self.op(&part("gated"), "Mul", [&activated, &up]);
        let down = part(tensors.down);
        let contracted = self.dense(&down, &gated, [inner, width], feed_forward_bias)?;
        Ok(self.op(&base, "Add", [&contracted, &attended]))
    }

    /// `x W^T + b`, of a matrix `[output, input]`.
    fn dense(
        &mut self,
        name: &str,
        x: &Value,
        [input, output]: [usize; 2],
        has_bias: bool,
    ) -> Result<Value, ModelError> {
        let graph = &mut self.graph;
        let matrix = transposed(input, &[&graph.matrix(name, output, input)?]);
        let matrix = narrowed(self.floats, name, matrix)?;
        let weight = format!("{name}.weight^T");
        let weight = graph.graph.weight(&weight, &[input, output], matrix);
        if !has_bias {
            return Ok(self.op(name, "MatMul", [x, &weight]));
        }
        let bias = graph.vector(&format!("{name}.bias"), output)?;
        Ok(graph.graph.op(name, "Gemm", &[x, &weight, &bias]))
    }

    fn norm(&mut self, name: &str, x: &Value, size: usize) -> Result<Value, ModelError> {
        self.graph.rms_norm(self.decoder, name, x, size)
    }

    /// RMSNorm of each head: `[tokens, heads, size]`.
    fn head_norm(&mut self, name: &str, x: &Value, heads: usize) -> Result<Value, ModelError> {
        let size = self.decoder.head_size;
        // 0 copies the dimension.
        let shape = [0, heads as i64, size as i64];
        let shape = self.graph.graph.shape(&format!("{name}.shape"), &shape);
        let by_head = self.op(&format!("{name}.heads"), "Reshape", [x, &shape]);
        self.norm(name, &by_head, size)
    }

    fn activated(&mut self, name: &str, x: &Value) -> Value {
        let (domain, operator) = match self.graph.config.hidden_act {
            HiddenAct::Gelu => (CONTRIB, "Gelu"),
            HiddenAct::GeluTanh => (CONTRIB, "FastGelu"),
            HiddenAct::Relu => (STANDARD, "Relu"),
            HiddenAct::Silu => {
                let alpha = AttributeProto::float("alpha", 1.0);
                let graph = &mut self.graph.graph;
                return graph.node(name, CONTRIB, "QuickGelu", &[x], &[alpha]);
            }
        };
        self.graph.graph.node(name, domain, operator, &[x], &[])
    }

    fn op(&mut self, name: &str, operator: &str, inputs: [&Value; 2]) -> Value {
        self.graph.graph.op(name, operator, &inputs)
    }
}
