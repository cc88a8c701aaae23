//! Graph of decoders: RMSNorm, rotary position embeddings, causal attention with grouped queries, and a gated
//! feed-forward network.

use half::bf16;

use super::builder::{Data, Graph, STANDARD, Value};
use super::encoder::{EncoderGraph, activation, to_bf16};
use super::head::Pooled;
use super::{Precision, operator};
use crate::head::LogitScore;
use crate::onnx::AttributeProto;
use crate::{Decoder, EncoderConfig, Model, ModelError};
use rerankd_kernels::strips::strips;

/// Rows of the language model's head, one for each token.
const VOCABULARY_HEAD: &str = "lm_head.weight";

/// Builds the packed graph of a decoder.
pub(super) fn build(
    model: &Model,
    decoder: &Decoder,
    precision: Precision,
) -> Result<Graph, ModelError> {
    let mut graph = EncoderGraph::decoder(model, precision);
    let rotary = graph.rotary_table(decoder);
    let mut hidden = graph.decoder_word_rows(decoder)?;
    for layer in 0..graph.config.layers {
        hidden = graph.decoder_layer(decoder, layer, &hidden, &rotary)?;
    }
    let rows = graph.final_norm(decoder, &hidden)?;
    let width = graph.config.hidden_size;
    let logits = graph.head(Pooled { rows, width })?;
    Ok(graph.finish(&logits))
}

impl EncoderGraph<'_> {
    fn decoder_word_rows(&mut self, decoder: &Decoder) -> Result<Value, ModelError> {
        let EncoderConfig {
            hidden_size: size,
            vocab_size,
            ref tensors,
            ..
        } = *self.config;
        let name = tensors.name(tensors.words);
        let (name, shape) = (format!("{name}.weight"), [vocab_size, size]);
        let rows = if self.model().weights.is_bf16(&name) {
            let words = self.model().weights.read_bf16(&name, &shape)?;
            self.bf16_word_rows(&name, shape, words)
        } else {
            let words = self.model().weights.read(&name, &shape)?;
            self.word_rows(&name, size, words)
        };
        Ok(self.scaled_words(decoder, rows))
    }

    /// The word embeddings as the first layer reads them.
    pub(super) fn scaled_words(&mut self, decoder: &Decoder, rows: Value) -> Value {
        if !decoder.is_gemma {
            return rows;
        }
        let factor = (self.config.hidden_size as f32).sqrt();
        let factor = self.floats("word.factor", &[1], vec![factor]);
        self.graph.op("word.scaled", "Mul", &[&rows, &factor])
    }

    /// As [`EncoderGraph::product`], with the weights as they are stored where those are to be `widened`.
    fn decoder_product(
        &mut self,
        widened: bool,
        name: &str,
        input: usize,
        matrices: &[&[f32]],
        bias: Vec<f32>,
    ) -> Vec<Value> {
        if !widened {
            return self.product(name, input, matrices, bias, None);
        }
        let halved: Vec<Vec<bf16>> = matrices.iter().map(|matrix| to_bf16(matrix)).collect();
        let strips = strips(&halved.iter().map(Vec::as_slice).collect::<Vec<_>>(), input);
        let shape = [strips.len()];
        let name = |part: &str| format!("{name}.{part}");
        let strips = self
            .graph
            .weight(&name("strips"), &shape, Data::BF16(strips));
        let shape = [bias.len()];
        vec![strips, self.floats(&name("bias"), &shape, bias)]
    }

    /// Whether the products of a layer are in fp32 of weights in bf16: all of them are stored so.
    fn is_widened(&self, decoder: &Decoder, base: &str) -> bool {
        let tensors = &self.config.tensors;
        let parts = [
            tensors.query,
            tensors.key,
            tensors.value,
            tensors.output,
            decoder.gate,
            tensors.up,
            tensors.down,
        ];
        let stored = |part: &&str| {
            let name = format!("{base}.{part}.weight");
            self.model().weights.is_bf16(&name)
        };
        let fp32 = matches!(self.precision(), Precision::Fp32 | Precision::Fp32Nodes);
        fp32 && parts.iter().all(stored)
    }

    pub(super) fn rotary_table(&mut self, decoder: &Decoder) -> Value {
        let (positions, size) = (self.model().manifest.max_length, decoder.head_size);
        let table = decoder.rotary.table(positions, size);
        self.floats("rotary", &[positions, size], table)
    }

    /// A layer as one custom operator. The last computes the last row of each sequence.
    fn decoder_layer(
        &mut self,
        decoder: &Decoder,
        index: usize,
        hidden: &Value,
        rotary: &Value,
    ) -> Result<Value, ModelError> {
        let &EncoderConfig {
            hidden_size: width,
            intermediate_size: inner,
            heads,
            layers,
            layer_norm_eps,
            hidden_act,
            ref tensors,
            ..
        } = self.config;
        let &Decoder {
            kv_heads,
            head_size: size,
            input_bias,
            output_bias,
            feed_forward_bias,
            ..
        } = decoder;
        let base = tensors.layer(index);
        let part = |name: &str| format!("{base}.{name}");
        let widened = self.is_widened(decoder, &base);
        let [segments, keep] = [&self.inputs.segments, &self.inputs.keep];
        let mut inputs = vec![hidden.clone(), segments.clone(), keep.clone()];

        let (queries, keys) = (heads * size, kv_heads * size);
        let name = part(tensors.query);
        let matrix = self.matrix(&name, queries, width)?;
        let bias = self.bias(&name, queries, input_bias)?;
        inputs.extend(self.decoder_product(widened, &name, width, &[&matrix], bias));
        let (key, value) = (part(tensors.key), part(tensors.value));
        let matrices = [
            self.matrix(&key, keys, width)?,
            self.matrix(&value, keys, width)?,
        ];
        let bias = [
            self.bias(&key, keys, input_bias)?,
            self.bias(&value, keys, input_bias)?,
        ];
        let matrices = [&matrices[0][..], &matrices[1]];
        inputs.extend(self.decoder_product(widened, &part("kv"), width, &matrices, bias.concat()));
        for (name, outputs, input, has_bias) in [
            (tensors.output, width, queries, output_bias),
            (decoder.gate, inner, width, feed_forward_bias),
            (tensors.up, inner, width, feed_forward_bias),
            (tensors.down, width, inner, feed_forward_bias),
        ] {
            let name = part(name);
            let matrix = self.matrix(&name, outputs, input)?;
            let bias = self.bias(&name, outputs, has_bias)?;
            inputs.extend(self.decoder_product(widened, &name, input, &[&matrix], bias));
        }
        for norm in [tensors.attention_norm, tensors.output_norm] {
            inputs.push(self.norm_weight(decoder, &part(norm), width)?);
        }
        inputs.push(rotary.clone());
        if decoder.head_norms {
            for norm in ["self_attn.q_norm", "self_attn.k_norm"] {
                inputs.push(self.norm_weight(decoder, &part(norm), size)?);
            }
        }

        let int = |name, number: usize| AttributeProto::int(name, number as i64);
        let mut attributes = vec![
            int(operator::HEADS, heads),
            int(operator::KV_HEADS, kv_heads),
            int(operator::HEAD_SIZE, size),
            int(operator::LAST_OF_EACH, usize::from(index + 1 == layers)),
            AttributeProto::int(operator::ACTIVATION, activation(hidden_act)),
            AttributeProto::float(operator::EPSILON, layer_norm_eps),
        ];
        attributes.extend(decoder.windows[index].map(|window| int(operator::WINDOW, window)));
        Ok(self.graph.node(
            &base,
            operator::DOMAIN,
            match self.precision() {
                Precision::Int8 => operator::QUANTIZED_DECODER_LAYER,
                Precision::Bf16 => operator::BF16_DECODER_LAYER,
                _ if widened => operator::WIDENED_DECODER_LAYER,
                Precision::Fp32 | Precision::Fp32Nodes => operator::DECODER_LAYER,
            },
            &inputs.iter().collect::<Vec<_>>(),
            &attributes,
        ))
    }

    /// The weight of an RMSNorm, as it is multiplied in.
    fn norm_weight(
        &mut self,
        decoder: &Decoder,
        name: &str,
        size: usize,
    ) -> Result<Value, ModelError> {
        let name = format!("{name}.weight");
        let mut weight = self.model().weights.read(&name, &[size])?;
        if decoder.is_gemma {
            weight.iter_mut().for_each(|x| *x += 1.0);
        }
        Ok(self.floats(&name, &[size], weight))
    }

    pub(super) fn final_norm(&mut self, decoder: &Decoder, x: &Value) -> Result<Value, ModelError> {
        let name = self.config.tensors.name(self.config.tensors.norm);
        self.rms_norm(decoder, &name, x, self.config.hidden_size)
    }

    /// RMSNorm of rows of so many numbers.
    pub(super) fn rms_norm(
        &mut self,
        decoder: &Decoder,
        name: &str,
        x: &Value,
        size: usize,
    ) -> Result<Value, ModelError> {
        let weight = self.norm_weight(decoder, name, size)?;
        Ok(self.graph.node(
            name,
            STANDARD,
            "SimplifiedLayerNormalization",
            &[x, &weight],
            &[
                AttributeProto::int("axis", -1),
                AttributeProto::float("epsilon", self.config.layer_norm_eps),
                AttributeProto::int("stash_type", 1),
            ],
        ))
    }

    /// The logit of a token, or the difference of two: `[sequences, 1]`. Of the language model's head, only their
    /// rows are read.
    pub(super) fn logit_score(
        &mut self,
        score: LogitScore,
        x: &Value,
    ) -> Result<Value, ModelError> {
        let &EncoderConfig {
            hidden_size: size,
            vocab_size,
            ref tensors,
            ..
        } = self.config;
        let weights = &self.model().weights;
        let words = format!("{}.weight", tensors.name(tensors.words));
        // As in transformers, a head in the file counts even if the configuration ties it to the embeddings.
        let tied = self.config.decoder().is_some_and(|decoder| decoder.tied);
        let head = match weights.shape(VOCABULARY_HEAD) {
            None if tied => &words,
            _ => VOCABULARY_HEAD,
        };
        let shape = [vocab_size, size];
        let mut row = weights.read_row(head, shape, score.true_token as usize)?;
        if let Some(token) = score.false_token {
            let other = weights.read_row(head, shape, token as usize)?;
            row.iter_mut().zip(other).for_each(|(x, y)| *x -= y);
        }
        Ok(self.linear("logit", x, size, &[&row]))
    }
}
