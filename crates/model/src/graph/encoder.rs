//! Graph of post-norm encoders (BERT and its descendants), and parts shared with other encoders.

use half::bf16;

use super::builder::{CONTRIB, Data, Dim, Graph, GraphBuilder, STANDARD, Value};
use super::disentangled::{Projected, RelativePositions};
use super::{Precision, Rows, io, operator};
use crate::onnx::{AttributeProto, DataType};
use crate::{
    AttentionPositions, EncoderConfig, HiddenAct, LayerForm, Model, ModelError, RelativeBias,
};
use rerankd_kernels::quantize::{self, Equalization, Quantized};
use rerankd_kernels::strips::strips;

const TOKENS: Dim = Dim::Named("tokens");
const SEQUENCES: Dim = Dim::Named("sequences");

/// A graph under construction, with the model it is built from.
pub(super) struct EncoderGraph<'a> {
    pub(super) graph: GraphBuilder,
    model: &'a Model,
    pub(super) config: &'a EncoderConfig,
    pub(super) last_layer: Rows,
    precision: Precision,
    pub(super) inputs: Inputs,
    relative: Relative<'a>,
}

/// Relative positions in attention, as far as all layers share them.
enum Relative<'a> {
    None,
    /// Cosines and sines of rotary position embeddings in post-norm layers.
    Rotary(Value),
    /// A bias by distance.
    Bias(Value),
    Disentangled(RelativePositions<'a>),
}

pub(super) struct Inputs {
    pub(super) input_ids: Value,
    position_ids: Value,
    lengths: Value,
    cls_index: Value,
    /// Of a decoder; the inputs above are missing then, except for the ids.
    pub(super) segments: Value,
    /// Likewise.
    pub(super) keep: Value,
}

impl<'a> EncoderGraph<'a> {
    pub(super) fn new(model: &'a Model, last_layer: Rows, precision: Precision) -> Self {
        let mut graph = GraphBuilder::default();
        let inputs = Inputs {
            input_ids: graph.input(io::INPUT_IDS, DataType::Int64, &[TOKENS]),
            position_ids: graph.input(io::POSITION_IDS, DataType::Int64, &[TOKENS]),
            lengths: graph.input(io::LENGTHS, DataType::Int32, &[SEQUENCES]),
            cls_index: graph.input(io::CLS_INDEX, DataType::Int64, &[SEQUENCES]),
            segments: Value::missing(),
            keep: Value::missing(),
        };
        Self {
            graph,
            model,
            config: &model.manifest.encoder,
            last_layer,
            precision,
            inputs,
            relative: Relative::None,
        }
    }

    /// The graph of a decoder.
    pub(super) fn decoder(model: &'a Model, precision: Precision) -> Self {
        let mut graph = GraphBuilder::default();
        let segments = [Dim::Named("segments"), Dim::Fixed(operator::SEGMENT)];
        let inputs = Inputs {
            input_ids: graph.input(io::INPUT_IDS, DataType::Int64, &[TOKENS]),
            segments: graph.input(io::SEGMENTS, DataType::Int32, &segments),
            keep: graph.input(io::KEEP, DataType::Int32, &[Dim::Fixed(operator::KEEP)]),
            position_ids: Value::missing(),
            lengths: Value::missing(),
            cls_index: Value::missing(),
        };
        Self {
            graph,
            model,
            config: &model.manifest.encoder,
            last_layer: Rows::All,
            precision,
            inputs,
            relative: Relative::None,
        }
    }

    pub(super) fn model(&self) -> &'a Model {
        self.model
    }

    pub(super) fn precision(&self) -> Precision {
        self.precision
    }

    /// Tokens of each sequence.
    pub(super) fn lengths(&self) -> Value {
        self.inputs.lengths.clone()
    }

    /// Embeddings and all layers: the final hidden states of `last_layer`.
    pub(super) fn encode(&mut self) -> Result<Value, ModelError> {
        match &self.config.form {
            LayerForm::PostNorm => {}
            LayerForm::PostNormRelativeBias(bias) => {
                self.relative = Relative::Bias(self.relative_bias(bias)?);
            }
            LayerForm::PostNormDisentangled(disentangled) => {
                let positions = self.relative_positions(disentangled)?;
                self.relative = Relative::Disentangled(positions);
            }
            LayerForm::PostNormGated(gated) => match gated.positions {
                AttentionPositions::Rotary(rotary) => {
                    let positions = self.config.max_positions;
                    let size = self.config.hidden_size / self.config.heads;
                    let table = rotary.table(positions, size);
                    let table = self.floats("rotary", &[positions, size], table);
                    self.relative = Relative::Rotary(table);
                }
                AttentionPositions::Alibi => self.relative = Relative::Bias(self.alibi()),
            },
            LayerForm::PreNormGated(gated) => return self.encode_gated(gated),
            LayerForm::Decoder(_) => unreachable!("decoders have a graph of their own"),
        }
        let mut hidden = self.embeddings()?;
        for layer in 0..self.config.layers {
            let rows = if layer + 1 == self.config.layers {
                self.last_layer
            } else {
                Rows::All
            };
            hidden = self.layer(layer, &hidden, rows)?;
        }
        Ok(hidden)
    }

    /// `x W^T + b` as one node, for few rows: `[rows, out]`.
    pub(super) fn dense(
        &mut self,
        name: &str,
        x: &Value,
        input: usize,
        out: usize,
        bias: bool,
    ) -> Result<Value, ModelError> {
        let matrix = self.matrix(name, out, input)?;
        if !bias {
            return Ok(self.linear(name, x, input, &[&matrix]));
        }
        let weight = self.transposed(name, input, &[&matrix]);
        let bias = self.vector(&format!("{name}.bias"), out)?;
        let inputs = [x, &weight, &bias];
        Ok(self.graph.op(name, "Gemm", &inputs))
    }

    /// `LayerNorm(x)`.
    pub(super) fn plain_norm(
        &mut self,
        name: &str,
        x: &Value,
        size: usize,
        bias: bool,
        epsilon: f32,
    ) -> Result<Value, ModelError> {
        let gamma = self.vector(&format!("{name}.weight"), size)?;
        let mut inputs = vec![x.clone(), gamma];
        if bias {
            inputs.push(self.vector(&format!("{name}.bias"), size)?);
        }
        Ok(self.graph.node(
            name,
            STANDARD,
            "LayerNormalization",
            &inputs.iter().collect::<Vec<_>>(),
            &[
                AttributeProto::int("axis", -1),
                AttributeProto::float("epsilon", epsilon),
            ],
        ))
    }

    pub(super) fn finish(mut self, logits: &Value) -> Graph {
        let dims = [SEQUENCES, Dim::Fixed(self.model.manifest.labels.len())];
        self.graph
            .output(io::LOGITS, logits, DataType::Float, &dims);
        self.graph.finish(&self.model.manifest.id)
    }

    fn embeddings(&mut self) -> Result<Value, ModelError> {
        let EncoderConfig {
            hidden_size,
            embedding_size: size,
            vocab_size,
            ref tensors,
            ..
        } = *self.config;
        let words = format!("{}.weight", tensors.name(tensors.words));
        let norm = tensors.name(tensors.norm);
        let projection = tensors.name(tensors.projection);
        let data = self.model.weights.read(&words, &[vocab_size, size])?;
        let is_projected = size != hidden_size;
        if is_projected && matches!(self.config.form, LayerForm::PostNormDisentangled(_)) {
            let [word, position] = self.embedding_rows(&words, data)?;
            let sum = self.graph.op("embeddings.sum", "Add", &[&word, &position]);
            let projected = self.dense(&projection, &sum, size, hidden_size, false)?;
            let epsilon = self.config.layer_norm_eps;
            return self.plain_norm(&norm, &projected, hidden_size, true, epsilon);
        }
        let embedded = match self.precision {
            Precision::Int8 => self.quantized_embeddings(&norm, &data)?,
            Precision::Fp32 | Precision::Fp32Nodes | Precision::Bf16 => {
                let [word, position] = self.embedding_rows(&words, data)?;
                self.layer_norm(&norm, size, &word, &position, None)?
            }
        };
        if is_projected {
            return self.dense(&projection, &embedded, size, hidden_size, true);
        }
        Ok(embedded)
    }

    /// The words and positions of all tokens.
    fn embedding_rows(&mut self, name: &str, words: Vec<f32>) -> Result<[Value; 2], ModelError> {
        let size = self.config.embedding_size;
        let word = self.word_rows(name, size, words);
        let positions = self.position_table()?;
        let index = self.inputs.position_ids.clone();
        Ok([word, self.gather("position", &positions, &index)])
    }

    /// The word embeddings of all tokens, from a table `[vocabulary, size]`.
    pub(super) fn word_rows(&mut self, name: &str, size: usize, words: Vec<f32>) -> Value {
        let shape = [words.len() / size, size];
        if self.precision != Precision::Bf16 {
            let words = self.floats(name, &shape, words);
            let ids = self.inputs.input_ids.clone();
            return self.gather("word", &words, &ids);
        }
        self.bf16_word_rows(name, shape, to_bf16(&words))
    }

    /// The same from a table in bf16, in fp32.
    pub(super) fn bf16_word_rows(
        &mut self,
        name: &str,
        shape: [usize; 2],
        words: Vec<bf16>,
    ) -> Value {
        let words = self.graph.weight(name, &shape, Data::BF16(words));
        let ids = self.inputs.input_ids.clone();
        let rows = self.gather("word", &words, &ids);
        let float = AttributeProto::int("to", DataType::Float as i64);
        self.graph
            .node("word.wide", STANDARD, "Cast", &[&rows], &[float])
    }

    fn quantized_embeddings(&mut self, norm: &str, words: &[f32]) -> Result<Value, ModelError> {
        let size = self.config.embedding_size;
        let (numbers, scales) = quantize::by_row(words, size);
        let shape = [scales.len(), size];
        let words = self
            .graph
            .weight("embeddings.words", &shape, Data::I8(numbers));
        let scales = self.floats("embeddings.scales", &shape[..1], scales);
        let positions = self.position_table()?;
        let gamma = self.vector(&format!("{norm}.weight"), size)?;
        let beta = self.vector(&format!("{norm}.bias"), size)?;
        Ok(self.graph.node(
            "embeddings",
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
            &[AttributeProto::float(
                operator::EPSILON,
                self.config.layer_norm_eps,
            )],
        ))
    }

    /// One row per segment and position, so that both take a single lookup.
    fn position_table(&mut self) -> Result<Value, ModelError> {
        let EncoderConfig {
            embedding_size: size,
            type_vocab_size,
            ref tensors,
            ..
        } = *self.config;
        let rows = self.config.position_rows();
        let read = |part: &str, rows: usize| {
            let name = format!("{}.weight", tensors.name(part));
            self.model.weights.read(&name, &[rows, size])
        };
        let positions = match tensors.positions {
            Some(positions) => read(positions, rows)?,
            None => vec![0.0; rows * size],
        };
        let table = match tensors.types {
            None => positions,
            Some(types) => {
                let types = read(types, type_vocab_size)?;
                let mut table = Vec::with_capacity(type_vocab_size * positions.len());
                for segment in types.chunks_exact(size) {
                    for position in positions.chunks_exact(size) {
                        table.extend(position.iter().zip(segment).map(|(p, s)| p + s));
                    }
                }
                table
            }
        };
        let shape = [type_vocab_size * rows, size];
        Ok(self.floats("embeddings.position_table", &shape, table))
    }

    fn layer(&mut self, index: usize, hidden: &Value, rows: Rows) -> Result<Value, ModelError> {
        if self.precision != Precision::Fp32Nodes {
            return self.fused_layer(index, hidden, rows);
        }
        let tensors = &self.config.tensors;
        let base = tensors.layer(index);
        // The rows of the output.
        let residual = match rows {
            Rows::All => hidden.clone(),
            Rows::FirstOfEach => self.first_of_each(&format!("{base}.first"), hidden),
        };
        let context = self.attention(&base, hidden, &residual, rows)?;

        let size = self.config.hidden_size;
        let dense = format!("{base}.{}", tensors.output);
        let matrix = self.matrix(&dense, size, size)?;
        let projected = self.linear(&dense, &context, size, &[&matrix]);
        let bias = self.attention_output_bias(&base)?;
        let bias = self.floats(&format!("{dense}.bias"), &[size], bias);
        let norm = format!("{base}.{}", tensors.attention_norm);
        let attended = self.layer_norm(&norm, size, &projected, &residual, Some(&bias))?;

        let inner = self.config.intermediate_size;
        let up = format!("{base}.{}", tensors.up);
        let matrix = self.matrix(&up, inner, size)?;
        let expanded = self.linear(&up, &attended, size, &[&matrix]);
        let activated = match self.config.gate() {
            None => self.activation(&up, &expanded, inner)?,
            Some(gate) => {
                let gate = format!("{base}.{gate}");
                let matrix = self.matrix(&gate, inner, size)?;
                let gates = self.linear(&gate, &attended, size, &[&matrix]);
                self.gated(&up, &expanded, &gates)
            }
        };
        let down = format!("{base}.{}", tensors.down);
        let matrix = self.matrix(&down, size, inner)?;
        let contracted = self.linear(&down, &activated, inner, &[&matrix]);
        let bias = self.vector(&format!("{down}.bias"), size)?;
        let norm = format!("{base}.{}", tensors.output_norm);
        self.layer_norm(&norm, size, &contracted, &attended, Some(&bias))
    }

    /// A layer as one custom operator.
    fn fused_layer(
        &mut self,
        index: usize,
        hidden: &Value,
        rows: Rows,
    ) -> Result<Value, ModelError> {
        let &EncoderConfig {
            hidden_size: size,
            intermediate_size: inner,
            ref tensors,
            ..
        } = self.config;
        let weights = &self.model.weights;
        let base = tensors.layer(index);
        let part = |name: &str| format!("{base}.{name}");
        let mut inputs = vec![hidden.clone(), self.lengths()];

        let name = part(tensors.query);
        let query = self.scaled(self.matrix(&name, size, size)?);
        let bias = self.scaled(weights.read(&format!("{name}.bias"), &[size])?);
        let key = self.matrix(&part(tensors.key), size, size)?;
        let value = self.matrix(&part(tensors.value), size, size)?;
        let equalization = self.input_equalization(index, &[&query, &key, &value])?;
        let equalization = equalization.as_ref();
        inputs.extend(self.product(&name, size, &[&query], bias, equalization));
        let mut bias = self.key_bias(&base)?.unwrap_or_default();
        bias.resize(2 * size, 0.0);
        inputs.extend(self.product(&part("kv"), size, &[&key, &value], bias, equalization));
        let name = part(tensors.output);
        let matrix = self.matrix(&name, size, size)?;
        let bias = self.attention_output_bias(&base)?;
        inputs.extend(self.product(&name, size, &[&matrix], bias, None));
        let norm = part(tensors.attention_norm);
        let gate = self.config.gate();
        let mut expanding = Vec::new();
        for name in [Some(tensors.up), gate].into_iter().flatten() {
            let name = part(name);
            let matrix = self.matrix(&name, inner, size)?;
            expanding.push((name, matrix));
        }
        let matrices: Vec<&[f32]> = expanding.iter().map(|(_, matrix)| &matrix[..]).collect();
        let equalization = self.equalization(&norm, true, &matrices)?;
        for (name, matrix) in &expanding {
            let bias = self.bias(name, inner, gate.is_none())?;
            inputs.extend(self.product(name, size, &[matrix], bias, equalization.as_ref()));
        }
        let name = part(tensors.down);
        let matrix = self.matrix(&name, size, inner)?;
        let bias = self.bias(&name, size, true)?;
        inputs.extend(self.product(&name, inner, &[&matrix], bias, None));
        for norm in [tensors.attention_norm, tensors.output_norm] {
            for part in ["weight", "bias"] {
                inputs.push(self.vector(&format!("{base}.{norm}.{part}"), size)?);
            }
        }
        inputs.extend(self.position_inputs(&base)?);
        Ok(self.graph.node(
            &base,
            operator::DOMAIN,
            match (self.precision, gate) {
                (Precision::Bf16, None) => operator::BF16_LAYER,
                (Precision::Bf16, Some(_)) => operator::BF16_POST_NORM_GATED_LAYER,
                (Precision::Int8, None) => operator::QUANTIZED_LAYER,
                (_, None) => operator::LAYER,
                (Precision::Int8, Some(_)) => operator::QUANTIZED_POST_NORM_GATED_LAYER,
                (_, Some(_)) => operator::POST_NORM_GATED_LAYER,
            },
            &inputs.iter().collect::<Vec<_>>(),
            &self.layer_attributes(rows),
        ))
    }

    /// Attributes of a fused layer.
    pub(super) fn layer_attributes(&self, rows: Rows) -> Vec<AttributeProto> {
        let first_of_each = i64::from(rows == Rows::FirstOfEach);
        vec![
            AttributeProto::int(operator::HEADS, self.config.heads as i64),
            AttributeProto::int(operator::ACTIVATION, activation(self.config.hidden_act)),
            AttributeProto::int(operator::FIRST_OF_EACH, first_of_each),
            AttributeProto::float(operator::EPSILON, self.config.layer_norm_eps),
        ]
    }

    /// Folds the attention scale into the query projection.
    pub(super) fn scaled(&self, mut values: Vec<f32>) -> Vec<f32> {
        let size = self.config.hidden_size / self.config.heads;
        let terms = match &self.config.form {
            LayerForm::PostNormDisentangled(disentangled) => disentangled.terms,
            _ => 1,
        };
        let scale = ((size * terms) as f32).sqrt().recip();
        values.iter_mut().for_each(|value| *value *= scale);
        values
    }

    /// What int8 does to inputs that a norm writes and `matrices` read; `None` in other precisions, where nothing is
    /// lost without it.
    pub(super) fn equalization(
        &self,
        norm: &str,
        has_bias: bool,
        matrices: &[&[f32]],
    ) -> Result<Option<Equalization>, ModelError> {
        if self.precision != Precision::Int8 {
            return Ok(None);
        }
        let size = self.config.hidden_size;
        let weights = &self.model.weights;
        let gamma = weights.read(&format!("{norm}.weight"), &[size])?;
        let beta = self.bias(norm, size, has_bias)?;
        Ok(Some(Equalization::of_norm(&gamma, &beta, matrices)))
    }

    /// The same for the input of a post-norm layer, which the layer before it or the embeddings' norm writes.
    fn input_equalization(
        &self,
        layer: usize,
        matrices: &[&[f32]],
    ) -> Result<Option<Equalization>, ModelError> {
        let EncoderConfig {
            hidden_size: size,
            embedding_size,
            ref tensors,
            ..
        } = *self.config;
        let norm = match layer.checked_sub(1) {
            Some(before) => format!("{}.{}", tensors.layer(before), tensors.output_norm),
            None if size != embedding_size => return Ok(None),
            None => tensors.name(tensors.norm),
        };
        self.equalization(&norm, true, matrices)
    }

    /// Concatenated matrices `[out, input]` and a bias, as inputs of a fused layer.
    pub(super) fn product(
        &mut self,
        name: &str,
        input: usize,
        matrices: &[&[f32]],
        mut bias: Vec<f32>,
        equalization: Option<&Equalization>,
    ) -> Vec<Value> {
        let parts = match self.precision {
            Precision::Int8 => {
                let (quantized, shifts, factors) = match equalization {
                    None => (Quantized::new(matrices, input), Vec::new(), Vec::new()),
                    Some(equalization) => {
                        let folded = equalization.fold(matrices, &mut bias);
                        let Equalization { shifts, factors } = equalization.clone();
                        (Quantized::new(&[&folded], input), shifts, factors)
                    }
                };
                let Quantized {
                    strips,
                    scales,
                    sums,
                } = quantized;
                vec![
                    ("strips", Data::I8(strips)),
                    ("scales", Data::F32(scales)),
                    ("sums", Data::I32(sums)),
                    ("bias", Data::F32(bias)),
                    ("shifts", Data::F32(shifts)),
                    ("factors", Data::F32(factors)),
                ]
            }
            Precision::Bf16 => {
                let strips = rerankd_kernels::bf16::strips(matrices, input);
                vec![("strips", Data::I32(strips)), ("bias", Data::F32(bias))]
            }
            Precision::Fp32 | Precision::Fp32Nodes => {
                let strips = strips(matrices, input);
                vec![("strips", Data::F32(strips)), ("bias", Data::F32(bias))]
            }
        };
        let graph = &mut self.graph;
        let weight = |(part, data): (&str, Data)| {
            graph.weight(&format!("{name}.{part}"), &[data.len()], data)
        };
        parts.into_iter().map(weight).collect()
    }

    /// Self-attention of `queries` over all tokens of their sequence: one row per query.
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
            ref tensors,
            ..
        } = *self.config;
        let part = |name: &str| format!("{base}.{name}");
        let query = self.scaled(self.matrix(&part(tensors.query), size, size)?);
        let key = self.matrix(&part(tensors.key), size, size)?;
        let value = self.matrix(&part(tensors.value), size, size)?;
        let (query, keys) = match rows {
            Rows::All => {
                let all = self.linear(&part("qkv"), hidden, size, &[&query, &key, &value]);
                let all = self.with_key_bias(base, &part("qkv"), all, size)?;
                (all.clone(), all)
            }
            Rows::FirstOfEach => {
                let keys = self.linear(&part("kv"), hidden, size, &[&key, &value]);
                (
                    self.linear(&part(tensors.query), queries, size, &[&query]),
                    self.with_key_bias(base, &part("kv"), keys, 0)?,
                )
            }
        };
        let name = format!("{}.bias", part(tensors.query));
        let bias = self.scaled(self.model.weights.read(&name, &[size])?);
        let bias = self.floats(&name, &[size], bias);
        let mut inputs = vec![query, keys, bias, self.lengths()];
        inputs.extend(self.position_inputs(base)?);
        Ok(self.graph.node(
            &part("context"),
            operator::DOMAIN,
            operator::PACKED_ATTENTION,
            &inputs.iter().collect::<Vec<_>>(),
            &[AttributeProto::int(operator::HEADS, heads as i64)],
        ))
    }

    /// The optional position inputs of a layer's attention.
    fn position_inputs(&mut self, base: &str) -> Result<Vec<Value>, ModelError> {
        let missing = Value::missing();
        let (projected, buckets) = match &self.relative {
            Relative::None => return Ok(Vec::new()),
            Relative::Rotary(rotary) => return Ok(vec![rotary.clone()]),
            Relative::Bias(bias) => return Ok(vec![missing, bias.clone()]),
            Relative::Disentangled(positions) => {
                (self.projected(base, positions)?, positions.buckets.clone())
            }
        };
        let Projected { keys, queries } = projected;
        let width = self.config.hidden_size;
        let shape = [width, keys.len() / width];
        let keys = self.floats(&format!("{base}.position_keys"), &shape, keys);
        let queries = self.floats(&format!("{base}.position_queries"), &shape, queries);
        Ok(vec![missing.clone(), missing, keys, queries, buckets])
    }

    /// The bias of a layer's keys, where it does not cancel in softmax: a rotated one depends on the position, and
    /// queries of positions meet it. That of the values is in
    /// [`attention_output_bias`](Self::attention_output_bias).
    fn key_bias(&self, base: &str) -> Result<Option<Vec<f32>>, ModelError> {
        let matters = match &self.relative {
            Relative::None | Relative::Bias(_) => false,
            Relative::Rotary(_) => true,
            Relative::Disentangled(positions) => positions.config.position_queries,
        };
        let name = format!("{base}.{}", self.config.tensors.key);
        let bias = matters.then(|| self.bias(&name, self.config.hidden_size, true));
        bias.transpose()
    }

    /// Adds [`Self::key_bias`] to the columns of `x` from `first` on.
    fn with_key_bias(
        &mut self,
        base: &str,
        name: &str,
        x: Value,
        first: usize,
    ) -> Result<Value, ModelError> {
        let Some(key_bias) = self.key_bias(base)? else {
            return Ok(x);
        };
        let mut bias = vec![0.0; first];
        bias.extend_from_slice(&key_bias);
        bias.resize(first + 2 * key_bias.len(), 0.0);
        let bias = self.floats(&format!("{name}.bias"), &[bias.len()], bias);
        Ok(self
            .graph
            .op(&format!("{name}.biased"), "Add", &[&x, &bias]))
    }

    /// ALiBi as a relative position bias for every distance, `[heads, 2 * positions - 1]`.
    fn alibi(&mut self) -> Value {
        let EncoderConfig {
            heads,
            max_positions,
            ..
        } = *self.config;
        let width = 2 * max_positions - 1;
        let distances = (0..width).map(|column| column.abs_diff(max_positions - 1) as f32);
        let table = alibi_slopes(heads)
            .into_iter()
            .flat_map(|slope| distances.clone().map(move |distance| -slope * distance));
        let table = table.collect();
        self.floats("alibi", &[heads, width], table)
    }

    /// The relative position bias by distance, `[heads, 2 * reach + 1]`.
    fn relative_bias(&mut self, bias: &RelativeBias) -> Result<Value, ModelError> {
        let EncoderConfig {
            heads, ref tensors, ..
        } = *self.config;
        let name = format!("{}.weight", tensors.name(bias.table));
        let table = self.model.weights.read(&name, &[bias.buckets, heads])?;
        let by_distance: Vec<f32> = (0..heads)
            .flat_map(|head| bias.rows.iter().map(move |row| (head, row)))
            .map(|(head, row)| table[row * heads + head])
            .collect();
        let shape = [heads, bias.rows.len()];
        Ok(self.floats(&name, &shape, by_distance))
    }

    /// The bias of the attention output projection, with the value bias folded in: attention weights sum to
    /// one, so attention passes the value bias through unchanged.
    ///
    /// The key bias is dropped: it adds the same to all scores of a query, and softmax cancels it.
    fn attention_output_bias(&self, base: &str) -> Result<Vec<f32>, ModelError> {
        let EncoderConfig {
            hidden_size: size,
            ref tensors,
            ..
        } = *self.config;
        let weights = &self.model.weights;
        let values = weights.read(&format!("{base}.{}.bias", tensors.value), &[size])?;
        let output = format!("{base}.{}", tensors.output);
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
                let biased = self.graph.op(&biased, "Add", &[x, &bias]);
                self.graph.op(&output, "Relu", &[&biased])
            }
            HiddenAct::Silu => unreachable!("no encoder has it"),
        })
    }

    /// `LayerNorm(x + residual + bias)` as one node.
    fn layer_norm(
        &mut self,
        name: &str,
        size: usize,
        x: &Value,
        residual: &Value,
        bias: Option<&Value>,
    ) -> Result<Value, ModelError> {
        let gamma = self.vector(&format!("{name}.weight"), size)?;
        let beta = self.vector(&format!("{name}.bias"), size)?;
        let mut inputs = vec![x, residual, &gamma, &beta];
        inputs.extend(bias);
        Ok(self.graph.node(
            name,
            CONTRIB,
            "SkipLayerNormalization",
            &inputs,
            &[AttributeProto::float("epsilon", self.config.layer_norm_eps)],
        ))
    }

    /// `x W^T` for concatenated matrices `[out, input]`: `[rows, sum of outs]`.
    pub(super) fn linear(
        &mut self,
        name: &str,
        x: &Value,
        input: usize,
        matrices: &[&[f32]],
    ) -> Value {
        let weight = self.transposed(name, input, matrices);
        self.graph.op(name, "MatMul", &[x, &weight])
    }

    /// Concatenated matrices `[out, input]`, transposed: `[input, sum of outs]`.
    fn transposed(&mut self, name: &str, input: usize, matrices: &[&[f32]]) -> Value {
        let joined = transposed(input, matrices);
        let shape = [input, joined.len() / input];
        self.floats(&format!("{name}.weight^T"), &shape, joined)
    }

    /// The weights of a dense layer, `[out, input]`.
    pub(super) fn matrix(
        &self,
        name: &str,
        out: usize,
        input: usize,
    ) -> Result<Vec<f32>, ModelError> {
        self.model
            .weights
            .read(&format!("{name}.weight"), &[out, input])
    }

    pub(super) fn floats(&mut self, name: &str, shape: &[usize], data: Vec<f32>) -> Value {
        self.graph.weight(name, shape, Data::F32(data))
    }

    pub(super) fn vector(&mut self, name: &str, size: usize) -> Result<Value, ModelError> {
        let data = self.model.weights.read(name, &[size])?;
        Ok(self.floats(name, &[size], data))
    }

    /// As [`Self::vector`], or filled with `default` if the model has no such tensor.
    pub(super) fn vector_or(
        &mut self,
        name: &str,
        size: usize,
        exists: bool,
        default: f32,
    ) -> Result<Value, ModelError> {
        if exists {
            return self.vector(name, size);
        }
        Ok(self.floats(name, &[size], vec![default; size]))
    }

    pub(super) fn first_of_each(&mut self, name: &str, hidden: &Value) -> Value {
        let index = self.inputs.cls_index.clone();
        self.gather(name, hidden, &index)
    }

    pub(super) fn gather(&mut self, name: &str, rows: &Value, index: &Value) -> Value {
        self.graph.op(name, "Gather", &[rows, index])
    }
}

/// Concatenated matrices `[out, input]`, transposed: `[input, sum of outs]`.
pub(super) fn transposed(input: usize, matrices: &[&[f32]]) -> Vec<f32> {
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
    joined
}

/// The slope of each head in ALiBi: powers of two for a power of two heads; further heads have every other slope of
/// twice as many.
fn alibi_slopes(heads: usize) -> Vec<f32> {
    let powers = |count: usize| {
        let ratio = (-8.0 / count as f64).exp2();
        (1..=count).map(move |head| ratio.powi(head as i32) as f32)
    };
    let most = 1 << heads.ilog2();
    let further = powers(2 * most).step_by(2).take(heads - most);
    powers(most).chain(further).collect()
}

/// Numbers rounded to bf16.
pub(super) fn to_bf16(numbers: &[f32]) -> Vec<bf16> {
    numbers.iter().map(|&x| bf16::from_f32(x)).collect()
}

/// The attribute for the activation of the feed-forward network.
pub(super) fn activation(function: HiddenAct) -> i64 {
    match function {
        HiddenAct::Gelu => operator::GELU,
        HiddenAct::GeluTanh => operator::GELU_TANH,
        HiddenAct::Relu => operator::RELU,
        HiddenAct::Silu => operator::SILU,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alibi_slopes_are_those_of_the_paper() {
        let powers = |exponents: &[f32]| -> Vec<f32> {
            exponents.iter().map(|exponent| exponent.exp2()).collect()
        };
        let close = |ours: Vec<f32>, expected: Vec<f32>| {
            assert_eq!(ours.len(), expected.len());
            for (ours, expected) in ours.iter().zip(&expected) {
                assert!(
                    (ours - expected).abs() <= 1e-7 * expected,
                    "{ours} for {expected}"
                );
            }
        };
        let eight = [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0, -8.0];
        close(alibi_slopes(8), powers(&eight));
        close(alibi_slopes(1), powers(&[-8.0]));
        let further = [-0.5, -1.5, -2.5, -3.5];
        close(alibi_slopes(12), powers(&[&eight[..], &further].concat()));
    }
}
