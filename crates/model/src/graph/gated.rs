//! Graph of pre-norm layers: rotary position embeddings, global or sliding-window attention, and a gated
//! feed-forward network (GeGLU).

use super::builder::{CONTRIB, STANDARD, Value};
use super::encoder::EncoderGraph;
use super::{Precision, Rows, operator};
use crate::onnx::AttributeProto;
use crate::{EncoderConfig, HiddenAct, ModelError, PreNormGated};

/// Tables of cosines and sines, by layer type.
struct Rotary {
    global: Value,
    local: Value,
}

impl Rotary {
    /// The table of a layer; adds the window to `attributes`.
    fn of(
        &self,
        gated: &PreNormGated,
        index: usize,
        attributes: &mut Vec<AttributeProto>,
    ) -> Value {
        if !gated.local[index] {
            return self.global.clone();
        }
        attributes.push(AttributeProto::int(operator::WINDOW, gated.window as i64));
        self.local.clone()
    }
}

impl EncoderGraph<'_> {
    /// Embeddings and all layers: the final hidden states of `last_layer`.
    pub(super) fn encode_gated(&mut self, gated: &PreNormGated) -> Result<Value, ModelError> {
        let rotary = Rotary {
            global: self.rotary("rotary.global", gated.global_theta),
            local: self.rotary("rotary.local", gated.local_theta),
        };
        let mut hidden = self.words(gated)?;
        let layers = self.config.layers;
        for layer in 0..layers {
            let rows = if layer + 1 == layers {
                self.last_layer
            } else {
                Rows::All
            };
            hidden = self.gated_layer(gated, layer, &hidden, rows, &rotary)?;
        }
        let tensors = &self.config.tensors;
        self.norm(&tensors.name(gated.final_norm), &hidden, gated)
    }

    fn words(&mut self, gated: &PreNormGated) -> Result<Value, ModelError> {
        let EncoderConfig {
            hidden_size: size,
            vocab_size,
            ref tensors,
            ..
        } = *self.config;
        let name = tensors.name(tensors.words);
        let words = self.matrix(&name, vocab_size, size)?;
        let word = self.word_rows(&format!("{name}.weight"), size, words);
        self.norm(&tensors.name(tensors.norm), &word, gated)
    }

    fn gated_layer(
        &mut self,
        gated: &PreNormGated,
        index: usize,
        hidden: &Value,
        rows: Rows,
        rotary: &Rotary,
    ) -> Result<Value, ModelError> {
        if self.precision() != Precision::Fp32Nodes {
            return self.fused_gated_layer(gated, index, hidden, rows, rotary);
        }
        let EncoderConfig {
            hidden_size: size,
            intermediate_size: inner,
            ref tensors,
            ..
        } = *self.config;
        let base = tensors.layer(index);
        let part = |name: &str| format!("{base}.{name}");
        // The first layer's input has just been normalized.
        let normed = match index {
            0 => hidden.clone(),
            _ => self.norm(&part(tensors.attention_norm), hidden, gated)?,
        };
        let context = self.rotary_attention(gated, index, &normed, rows, rotary)?;
        let residual = match rows {
            Rows::All => hidden.clone(),
            Rows::FirstOfEach => self.first_of_each(&part("first"), hidden),
        };
        let output = part(tensors.output);
        let matrix = self.matrix(&output, size, size)?;
        let projected = self.linear(&output, &context, size, &[&matrix]);
        let projected = self.biased(&output, projected, size, gated.attention_bias)?;
        let attended = self.add(&part("attended"), &projected, &residual);

        let normed = self.norm(&part(tensors.output_norm), &attended, gated)?;
        let expanded = self.gated_product(gated, &part(tensors.up), &normed, inner)?;
        let down = part(tensors.down);
        let matrix = self.matrix(&down, size, inner)?;
        let contracted = self.linear(&down, &expanded, inner, &[&matrix]);
        let contracted = self.biased(&down, contracted, size, gated.feed_forward_bias)?;
        Ok(self.add(&base, &contracted, &attended))
    }

    /// A layer as one custom operator.
    fn fused_gated_layer(
        &mut self,
        gated: &PreNormGated,
        index: usize,
        hidden: &Value,
        rows: Rows,
        rotary: &Rotary,
    ) -> Result<Value, ModelError> {
        let &EncoderConfig {
            hidden_size: size,
            intermediate_size: inner,
            ref tensors,
            ..
        } = self.config;
        let base = tensors.layer(index);
        let part = |name: &str| format!("{base}.{name}");
        let mut inputs = vec![hidden.clone(), self.lengths()];

        let qkv = part(tensors.query);
        let mut query = self.matrix(&qkv, 3 * size, size)?;
        let keys = query.split_off(size * size);
        let mut bias = self.bias(&qkv, 3 * size, gated.attention_bias)?;
        let key_bias = bias.split_off(size);
        let (query, bias) = (self.scaled(query), self.scaled(bias));
        // The first layer's input is normalized by the embeddings' norm.
        let norm = match index {
            0 => tensors.name(tensors.norm),
            _ => part(tensors.attention_norm),
        };
        let equalization = self.equalization(&norm, gated.norm_bias, &[&query, &keys])?;
        let equalization = equalization.as_ref();
        inputs.extend(self.product(&format!("{qkv}.query"), size, &[&query], bias, equalization));
        inputs.extend(self.product(&format!("{qkv}.kv"), size, &[&keys], key_bias, equalization));
        let name = part(tensors.output);
        let matrix = self.matrix(&name, size, size)?;
        let bias = self.bias(&name, size, gated.attention_bias)?;
        inputs.extend(self.product(&name, size, &[&matrix], bias, None));
        let name = part(tensors.up);
        let matrix = self.matrix(&name, 2 * inner, size)?;
        let norm = part(tensors.output_norm);
        let equalization = self.equalization(&norm, gated.norm_bias, &[&matrix])?;
        let equalization = equalization.as_ref();
        let (up, gate) = matrix.split_at(inner * size);
        let mut bias = self.bias(&name, 2 * inner, gated.feed_forward_bias)?;
        let gate_bias = bias.split_off(inner);
        inputs.extend(self.product(&format!("{name}.input"), size, &[up], bias, equalization));
        inputs.extend(self.product(
            &format!("{name}.gate"),
            size,
            &[gate],
            gate_bias,
            equalization,
        ));
        let name = part(tensors.down);
        let matrix = self.matrix(&name, size, inner)?;
        let bias = self.bias(&name, size, gated.feed_forward_bias)?;
        inputs.extend(self.product(&name, inner, &[&matrix], bias, None));
        // The first layer has no attention norm; its operator does not read these inputs.
        for (name, exists) in [
            (tensors.attention_norm, index > 0),
            (tensors.output_norm, true),
        ] {
            let (gamma, beta) = (part(name) + ".weight", part(name) + ".bias");
            inputs.push(self.vector_or(&gamma, size, exists, 1.0)?);
            inputs.push(self.vector_or(&beta, size, exists && gated.norm_bias, 0.0)?);
        }
        let mut attributes = self.layer_attributes(rows);
        attributes.push(AttributeProto::int(operator::NORMED, i64::from(index == 0)));
        inputs.push(rotary.of(gated, index, &mut attributes));
        Ok(self.graph.node(
            &base,
            operator::DOMAIN,
            match self.precision() {
                Precision::Int8 => operator::QUANTIZED_GATED_LAYER,
                Precision::Bf16 => operator::BF16_GATED_LAYER,
                Precision::Fp32 | Precision::Fp32Nodes => operator::GATED_LAYER,
            },
            &inputs.iter().collect::<Vec<_>>(),
            &attributes,
        ))
    }

    /// Attention with rotary position embeddings: one row per query.
    fn rotary_attention(
        &mut self,
        gated: &PreNormGated,
        index: usize,
        normed: &Value,
        rows: Rows,
        rotary: &Rotary,
    ) -> Result<Value, ModelError> {
        let EncoderConfig {
            hidden_size: size,
            heads,
            ref tensors,
            ..
        } = *self.config;
        let base = tensors.layer(index);
        let name = format!("{base}.{}", tensors.query);
        let mut query = self.matrix(&name, 3 * size, size)?;
        let keys = query.split_off(size * size);
        // A rotated key bias depends on the position, so softmax does not cancel it.
        let mut bias = self.bias(&name, 3 * size, gated.attention_bias)?;
        let key_bias = bias.split_off(size);
        let (query, bias) = (self.scaled(query), self.scaled(bias));
        let bias = self.floats(&format!("{name}.query_bias"), &[size], bias);
        let kv = format!("{name}.kv");
        let mut keys = self.linear(&kv, normed, size, &[&keys]);
        if gated.attention_bias {
            let bias = self.floats(&format!("{kv}.bias"), &[2 * size], key_bias);
            keys = self.add(&format!("{kv}.biased"), &keys, &bias);
        }
        let queries = match rows {
            Rows::All => normed.clone(),
            Rows::FirstOfEach => self.first_of_each(&format!("{name}.first"), normed),
        };
        let query = self.linear(&name, &queries, size, &[&query]);
        let mut attributes = vec![AttributeProto::int(operator::HEADS, heads as i64)];
        let table = rotary.of(gated, index, &mut attributes);
        let lengths = self.lengths();
        Ok(self.graph.node(
            &format!("{base}.context"),
            operator::DOMAIN,
            operator::PACKED_ATTENTION,
            &[&query, &keys, &bias, &lengths, &table],
            &attributes,
        ))
    }

    /// `activation(x A) * (x B)`, where the matrix is `A` stacked on `B`.
    fn gated_product(
        &mut self,
        gated: &PreNormGated,
        name: &str,
        x: &Value,
        inner: usize,
    ) -> Result<Value, ModelError> {
        let size = self.config.hidden_size;
        let matrix = self.matrix(name, 2 * inner, size)?;
        let (input, gate) = matrix.split_at(inner * size);
        let mut bias = self.bias(name, 2 * inner, gated.feed_forward_bias)?;
        let gate_bias = bias.split_off(inner);
        let [input, gate] =
            [("input", input, bias), ("gate", gate, gate_bias)].map(|(part, matrix, bias)| {
                let name = format!("{name}.{part}");
                let product = self.linear(&name, x, size, &[matrix]);
                if !gated.feed_forward_bias {
                    return product;
                }
                let bias = self.floats(&format!("{name}.bias"), &[inner], bias);
                self.add(&format!("{name}.biased"), &product, &bias)
            });
        Ok(self.gated(name, &input, &gate))
    }

    /// `activation(x) * gate`.
    pub(super) fn gated(&mut self, name: &str, x: &Value, gate: &Value) -> Value {
        let (domain, operator) = match self.config.hidden_act {
            HiddenAct::Gelu => (CONTRIB, "Gelu"),
            HiddenAct::GeluTanh => (CONTRIB, "FastGelu"),
            HiddenAct::Relu => (STANDARD, "Relu"),
            HiddenAct::Silu => unreachable!("no encoder has it"),
        };
        let activated = format!("{name}.activated");
        let activated = self.graph.node(&activated, domain, operator, &[x], &[]);
        let name = format!("{name}.gated");
        self.graph.op(&name, "Mul", &[&activated, gate])
    }

    /// Cosines, then sines, of each position, `[positions, head size]`.
    fn rotary(&mut self, name: &str, theta: f32) -> Value {
        let EncoderConfig {
            hidden_size,
            heads,
            max_positions,
            ..
        } = *self.config;
        let size = hidden_size / heads;
        // In f32, as the reference implementation.
        let frequencies: Vec<f32> = (0..size / 2)
            .map(|i| 1.0 / theta.powf((2 * i) as f32 / size as f32))
            .collect();
        let mut table = Vec::with_capacity(max_positions * size);
        for position in 0..max_positions {
            let angles = frequencies.iter().map(|f| f64::from(position as f32 * f));
            table.extend(angles.clone().map(|angle| angle.cos() as f32));
            table.extend(angles.map(|angle| angle.sin() as f32));
        }
        self.floats(name, &[max_positions, size], table)
    }

    fn norm(&mut self, name: &str, x: &Value, gated: &PreNormGated) -> Result<Value, ModelError> {
        let EncoderConfig {
            hidden_size,
            layer_norm_eps,
            ..
        } = *self.config;
        self.plain_norm(name, x, hidden_size, gated.norm_bias, layer_norm_eps)
    }

    /// The bias of a dense layer, or zeros.
    pub(super) fn bias(
        &self,
        name: &str,
        size: usize,
        exists: bool,
    ) -> Result<Vec<f32>, ModelError> {
        if exists {
            self.model().weights.read(&format!("{name}.bias"), &[size])
        } else {
            Ok(vec![0.0; size])
        }
    }

    fn biased(
        &mut self,
        name: &str,
        x: Value,
        size: usize,
        bias: bool,
    ) -> Result<Value, ModelError> {
        if !bias {
            return Ok(x);
        }
        let bias = self.vector(&format!("{name}.bias"), size)?;
        Ok(self.add(&format!("{name}.biased"), &x, &bias))
    }

    fn add(&mut self, name: &str, x: &Value, y: &Value) -> Value {
        self.graph.op(name, "Add", &[x, y])
    }
}
