//! Supported architectures, one module each: fields of `config.json`, tensor names and the
//! classification head. The graph is built from these descriptions.
//!
//! To add one, add its file and its name in `architectures!`.

mod decoder;

pub(super) use jina_bert::{ALIBI as JINA_BERT_POSITIONS, MODEL_TYPE as JINA_BERT};

use super::head::Head;
use super::json::Object;
use super::rotary::Rotary;
use super::{ModelError, Weights};

/// Makes the modules, and the list of what they declare.
macro_rules! architectures {
    ($($name:ident,)+) => {
        $(mod $name;)+

        /// Every architecture.
        const ALL: &[&Architecture] = &[$(&$name::ARCHITECTURE),+];
    };
}

architectures! {
    bert,
    jina_bert,
    roberta,
    distilbert,
    electra,
    mpnet,
    deberta,
    modernbert,
    gte,
    qwen3,
    qwen2,
    llama,
    mistral,
    gemma,
}

// Beyond every published model, and small enough that no product of two overflows.
const MAX_WIDTH: usize = 1 << 17;
const MAX_LAYERS: usize = 1 << 10;
pub(super) const MAX_VOCABULARY: usize = 1 << 25;
pub(super) const MAX_POSITIONS: usize = 1 << 20;
/// Token types are stored as one byte.
pub(super) const MAX_TYPES: usize = 256;

/// One architecture.
pub(super) struct Architecture {
    /// The name shown to operators and clients.
    pub(super) name: &'static str,
    /// Whether attention is causal, and pairs are written as prompts.
    pub(super) is_causal: bool,
    /// Model types with this architecture.
    pub(super) kinds: &'static [Kind],
    /// Reads `config.json`.
    pub(super) encoder: fn(&Object, &Kind) -> Result<EncoderConfig, ModelError>,
    /// The head of its sequence classification class, for a number of labels.
    pub(super) head: fn(&Object, &EncoderConfig, usize) -> Result<Head, ModelError>,
}

/// A model type of transformers.
pub(super) struct Kind {
    pub(super) model_type: &'static str,
    pub(super) class: &'static str,
    /// Default tokenizer class.
    pub(super) tokenizer: &'static str,
    /// Default padding token.
    pub(super) pad_token_id: u32,
}

impl Kind {
    fn class_prefix(&self) -> &'static str {
        self.class.trim_end_matches("SequenceClassification")
    }
}

/// Finds a model type. As in transformers, `model_type` takes precedence over the class in
/// `architectures`.
pub(super) fn find(
    model_type: Option<&str>,
    class: Option<&str>,
) -> Option<(&'static Architecture, &'static Kind)> {
    let wanted = |kind: &Kind| match (model_type, class) {
        (Some(model_type), _) => kind.model_type == model_type,
        (None, Some(class)) => class.starts_with(kind.class_prefix()),
        (None, None) => false,
    };
    kinds().find(|(_, kind)| wanted(kind))
}

/// All supported model types.
pub(super) fn kinds() -> impl Iterator<Item = (&'static Architecture, &'static Kind)> {
    let kinds = |of: &'static Architecture| of.kinds.iter().map(move |kind| (of, kind));
    ALL.iter().copied().flat_map(kinds)
}

/// The activation of the feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HiddenAct {
    /// GELU, exact (error function).
    Gelu,
    /// GELU, tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// SiLU (swish): `x / (1 + e^-x)`; of decoders only.
    Silu,
}

impl HiddenAct {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "gelu" | "gelu_python" => Some(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_accurate" => Some(Self::GeluTanh),
            "relu" => Some(Self::Relu),
            _ => None,
        }
    }

    fn read(config: &Object, field: &str) -> Result<Self, ModelError> {
        let name = config.text(field)?.unwrap_or("gelu");
        Self::from_name(name).ok_or_else(|| {
            config.unsupported(
                field,
                &format!(
                    "is `{name}`; supported are `gelu`, `gelu_new`, `gelu_pytorch_tanh` and `relu`"
                ),
            )
        })
    }
}

/// Sizes and tensor names of the encoder. The sizes are positive and consistent.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// Width of the hidden states; of encoders, a multiple of `heads`.
    pub hidden_size: usize,
    /// Width of the embeddings; projected if it differs from `hidden_size`, after LayerNorm or, in DeBERTa, before it.
    pub embedding_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads per layer.
    pub heads: usize,
    /// Width of the feed-forward network.
    pub intermediate_size: usize,
    /// Rows of the word embeddings.
    pub vocab_size: usize,
    /// Rows of the position embeddings; the first `first_position` are unused.
    pub max_positions: usize,
    /// Rows of the token type embeddings, at most 256; 1 if there are none.
    pub type_vocab_size: usize,
    /// Epsilon of LayerNorm or RMSNorm.
    pub layer_norm_eps: f32,
    /// Id of the padding token; below `vocab_size`.
    pub pad_token_id: u32,
    /// Activation of the feed-forward network.
    pub hidden_act: HiddenAct,
    /// Position of the first token; below `max_positions`.
    pub first_position: usize,
    /// A token (the padding token) that positions skip, spelled out in a text: it takes the position before
    /// the first.
    pub skipped_token: Option<u32>,
    /// Structure of the layers.
    pub form: LayerForm,
    /// Tensor names.
    pub tensors: Tensors,
}

/// Structure of an encoder's layers. Each variant has its own graph builder.
#[derive(Debug, Clone, PartialEq)]
pub enum LayerForm {
    /// Post-norm with absolute position embeddings: BERT.
    PostNorm,
    /// The same with a relative position bias in attention: MPNet.
    PostNormRelativeBias(RelativeBias),
    /// Post-norm with a gated feed-forward network and positions in attention only: GTE, JinaBERT.
    PostNormGated(PostNormGated),
    /// The same with disentangled attention: DeBERTa-v2 and -v3.
    PostNormDisentangled(Disentangled),
    /// Pre-norm with rotary position embeddings, sliding-window attention and a gated feed-forward network:
    /// ModernBERT.
    PreNormGated(PreNormGated),
    /// Decoder layers, with causal attention: Qwen, Llama, Mistral, Gemma.
    Decoder(Decoder),
}

/// A relative position bias, added to attention scores by the distance from query to key, shared by all
/// layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelativeBias {
    /// Name of the table, `[buckets, heads]`.
    pub table: &'static str,
    /// Rows of the table.
    pub buckets: usize,
    /// Row of each distance, from `-reach` to `reach`; farther distances use the first and the last.
    pub rows: Vec<usize>,
}

/// Options of post-norm layers with a gated linear unit (GLU), whose two projections have no bias.
#[derive(Debug, Clone, PartialEq)]
pub struct PostNormGated {
    /// How attention knows the positions of tokens.
    pub positions: AttentionPositions,
    /// Tensor name of the projection that is not activated.
    pub gate: &'static str,
}

/// How attention knows the positions of tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AttentionPositions {
    /// Rotary position embeddings.
    Rotary(Rotary),
    /// ALiBi, symmetric: each head takes its slope times the distance from a score.
    Alibi,
}

/// Disentangled attention: relative positions have keys and queries of their own, which each layer projects from
/// one table of embeddings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disentangled {
    /// Name of the table, `[buckets, width]`.
    pub table: &'static str,
    /// Rows of the table.
    pub buckets: usize,
    /// LayerNorm of the table, if any.
    pub norm: Option<&'static str>,
    /// Where distances share rows: the number of rows in each direction, and the distance of the last. `None` if
    /// each distance has its own.
    pub shared: Option<(usize, usize)>,
    /// Row of each distance from a key to a query, from `-reach` to `reach`; the longest sequence has `reach + 1`
    /// tokens.
    pub rows: Vec<usize>,
    /// Whether queries meet the keys of positions (content to position).
    pub position_keys: bool,
    /// Whether keys meet the queries of positions (position to content).
    pub position_queries: bool,
    /// Terms of a score, which is divided by the root of their number times the size of a head.
    pub terms: usize,
    /// Tensor name of the projection of positions to keys, in a layer.
    pub key: &'static str,
    /// Tensor name of the projection of positions to queries, in a layer.
    pub query: &'static str,
}

/// Options of pre-norm layers with a gated linear unit (GLU; GeGLU where the activation is GELU).
#[derive(Debug, Clone, PartialEq)]
pub struct PreNormGated {
    /// Whether the attention of each layer is local (a sliding window) instead of global.
    pub local: Vec<bool>,
    /// Tokens on either side that a token of a local layer attends to.
    pub window: usize,
    /// Base of the rotary embeddings of global layers.
    pub global_theta: f32,
    /// Base of the rotary embeddings of local layers.
    pub local_theta: f32,
    /// Whether attention's dense layers have a bias.
    pub attention_bias: bool,
    /// Whether the dense layers of the feed-forward network have a bias.
    pub feed_forward_bias: bool,
    /// Whether LayerNorm has a bias.
    pub norm_bias: bool,
    /// LayerNorm after the last layer.
    pub final_norm: &'static str,
}

/// Options of decoder layers: RMSNorm before attention and before a gated feed-forward network (SwiGLU or GeGLU),
/// rotary position embeddings, and causal grouped-query attention (GQA).
#[derive(Debug, Clone, PartialEq)]
pub struct Decoder {
    /// Heads of keys and values; divides the heads of queries.
    pub kv_heads: usize,
    /// Numbers of one head; even.
    pub head_size: usize,
    /// Rotary position embeddings.
    pub rotary: Rotary,
    /// Sliding window of each layer, if any: most keys that a query attends to, its own position included.
    pub windows: Vec<Option<usize>>,
    /// Whether the queries and keys of each head have an RMSNorm.
    pub head_norms: bool,
    /// Whether the projections of queries, keys and values have a bias.
    pub input_bias: bool,
    /// Whether the output projection of attention has a bias.
    pub output_bias: bool,
    /// Whether the dense layers of the feed-forward network have a bias.
    pub feed_forward_bias: bool,
    /// Whether norms multiply by 1 + weight, and embeddings by the root of their width, as Gemma's do.
    pub is_gemma: bool,
    /// Whether the language model's head is the word embeddings.
    pub tied: bool,
    /// The padding token, if any.
    pub padding: Option<u32>,
    /// Tensor name of the gate of a layer.
    pub gate: &'static str,
}

impl EncoderConfig {
    /// The tensor name of the second projection of a post-norm layer's gated feed-forward network, if it has
    /// one.
    pub(crate) fn gate(&self) -> Option<&'static str> {
        match &self.form {
            LayerForm::PostNormGated(gated) => Some(gated.gate),
            _ => None,
        }
    }

    /// Rows of the position table for each token type: one if there are no position embeddings.
    pub fn position_rows(&self) -> usize {
        match self.tensors.positions {
            Some(_) => self.max_positions,
            None => 1,
        }
    }

    /// Rejects weights whose first layer lacks tensors of this architecture, or has others.
    pub(super) fn check_layout(&self, weights: &Weights) -> Result<(), ModelError> {
        let Tensors {
            query,
            key,
            value,
            output,
            attention_norm,
            up,
            down,
            output_norm,
            ..
        } = self.tensors;
        let names = match &self.form {
            LayerForm::PostNorm
            | LayerForm::PostNormRelativeBias(_)
            | LayerForm::PostNormGated(_) => [
                &[query, key, value, output, attention_norm][..],
                &[up, down, output_norm],
                self.gate().as_slice(),
            ]
            .concat(),
            _ => return Ok(()),
        };
        let layer = self.tensors.layer(0);
        let unknown = |what: String| {
            ModelError::new(
                format!("{}: {what}", weights.location()),
                "the tensors are not those of a known layout of this architecture; check that `config.json` and the weights belong together",
            )
            .unsupported()
        };
        let tensor = |name: &&str| format!("{layer}.{name}.weight");
        if let Some(missing) = names
            .iter()
            .map(tensor)
            .find(|name| weights.shape(name).is_none())
        {
            return Err(unknown(format!("there is no tensor `{missing}`")));
        }
        let known = |name: &str| {
            let Some(part) = name.strip_prefix(&layer).and_then(|n| n.strip_prefix('.')) else {
                return true;
            };
            let is_glu = |name: &str| self.gate().is_some_and(|gate| name == gate || name == up);
            match part.rsplit_once('.') {
                Some((part, "weight")) => names.contains(&part),
                Some((part, "bias")) => names.contains(&part) && !is_glu(part),
                _ => true,
            }
        };
        match weights.names().filter(|name| !known(name)).min() {
            Some(name) => Err(unknown(format!("the tensor `{name}` is not understood"))),
            None => Ok(()),
        }
    }

    /// The options of decoder layers; `None` for an encoder.
    pub fn decoder(&self) -> Option<&Decoder> {
        match &self.form {
            LayerForm::Decoder(decoder) => Some(decoder),
            _ => None,
        }
    }
}

/// Tensor names of an encoder, without `.weight` and `.bias`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensors {
    /// Prefix of all names, with its dot; empty in the checkpoint of a bare encoder.
    pub prefix: &'static str,
    /// Word embeddings.
    pub words: &'static str,
    /// Absolute position embeddings, if any.
    pub positions: Option<&'static str>,
    /// Token type embeddings, if any.
    pub types: Option<&'static str>,
    /// LayerNorm of the sum of the embeddings; of decoders, the norm after the last layer.
    pub norm: &'static str,
    /// Projection of the embeddings, if they are narrower than the layers.
    pub projection: &'static str,
    /// Prefix of the layer index.
    pub layer: &'static str,
    /// Query projection of a layer; of gated layers, the fused QKV projection.
    pub query: &'static str,
    /// Key projection of a layer.
    pub key: &'static str,
    /// Value projection of a layer.
    pub value: &'static str,
    /// Output projection of a layer's attention.
    pub output: &'static str,
    /// LayerNorm after attention (post-norm) or before it (pre-norm).
    pub attention_norm: &'static str,
    /// Up projection of the feed-forward network; of gated layers, fused with the gate.
    pub up: &'static str,
    /// Down projection of the feed-forward network.
    pub down: &'static str,
    /// LayerNorm after the feed-forward network (post-norm) or before it (pre-norm).
    pub output_norm: &'static str,
    /// Names of tensors of a layer that dense layers may be stacked in, and of their parts, which the fields
    /// above name.
    pub stacked: &'static [(&'static str, &'static [&'static str])],
    /// Other layouts of the same network.
    pub alternatives: &'static [Tensors],
}

impl Tensors {
    /// The full name of a tensor outside the layers.
    pub fn name(&self, part: &str) -> String {
        format!("{}{part}", self.prefix)
    }

    /// Adapts to the names in `weights`: the layout, wrappers around all names, and a missing prefix, as in the
    /// checkpoint of a bare encoder. Splits stacked tensors of `layers` layers.
    pub(super) fn resolve(&mut self, weights: &mut Weights, layers: usize) {
        weights.unwrap(&self.names_of(self.words));
        let fits = |layout: &&Tensors| {
            let names = layout.names_of(layout.norm);
            names.iter().any(|name| weights.shape(name).is_some())
        };
        if let Some(layout) = self.alternatives.iter().find(fits) {
            *self = layout.clone();
        }
        let [prefixed, bare] = self.names_of(self.words);
        if weights.shape(&prefixed).is_none() && weights.shape(&bare).is_some() {
            self.prefix = "";
        }
        for (layer, (stack, parts)) in
            (0..layers).flat_map(|layer| self.stacked.iter().map(move |stacked| (layer, stacked)))
        {
            let layer = self.layer(layer);
            for kind in ["weight", "bias"] {
                let name = |part: &&str| format!("{layer}.{part}.{kind}");
                let parts: Vec<String> = parts.iter().map(name).collect();
                weights.split(&name(stack), &parts);
            }
        }
    }

    /// The names that the weights of a part outside the layers may have.
    fn names_of(&self, part: &str) -> [String; 2] {
        [
            format!("{}{part}.weight", self.prefix),
            format!("{part}.weight"),
        ]
    }

    /// The full name of a layer.
    pub fn layer(&self, index: usize) -> String {
        format!("{}{}.{index}", self.prefix, self.layer)
    }
}

/// Tensor names of BERT, which most of its descendants kept.
const BERT_TENSORS: Tensors = Tensors {
    prefix: "bert.",
    words: "embeddings.word_embeddings",
    positions: Some("embeddings.position_embeddings"),
    types: Some("embeddings.token_type_embeddings"),
    norm: "embeddings.LayerNorm",
    projection: "embeddings_project",
    layer: "encoder.layer",
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    output_norm: "output.LayerNorm",
    stacked: &[],
    alternatives: &[],
};

/// Field names in `config.json`.
#[derive(Clone, Copy)]
struct Fields {
    hidden_size: &'static str,
    layers: &'static str,
    heads: &'static str,
    intermediate_size: &'static str,
    hidden_act: &'static str,
    layer_norm_eps: &'static str,
    /// Default of `layer_norm_eps`.
    default_eps: f64,
    /// The `position_embedding_type` of the architecture; `None` if its class does not read the field.
    positions: Option<&'static str>,
}

/// Field names of BERT.
const BERT_FIELDS: Fields = Fields {
    hidden_size: "hidden_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    intermediate_size: "intermediate_size",
    hidden_act: "hidden_act",
    layer_norm_eps: "layer_norm_eps",
    default_eps: 1e-12,
    positions: Some("absolute"),
};

impl EncoderConfig {
    /// Reads the common fields; positions start at 0.
    fn read(
        config: &Object,
        kind: &Kind,
        fields: &Fields,
        tensors: Tensors,
    ) -> Result<Self, ModelError> {
        check_attention(config, fields.positions)?;
        let hidden_size = config.size(fields.hidden_size, MAX_WIDTH)?;
        let vocab_size = config.size("vocab_size", MAX_VOCABULARY)?;
        let encoder = Self {
            hidden_size,
            embedding_size: hidden_size,
            layers: config.size(fields.layers, MAX_LAYERS)?,
            heads: config.size(fields.heads, MAX_WIDTH)?,
            intermediate_size: config.size(fields.intermediate_size, MAX_WIDTH)?,
            vocab_size,
            max_positions: config.size("max_position_embeddings", MAX_POSITIONS)?,
            type_vocab_size: match tensors.types {
                Some(_) => config.size_or("type_vocab_size", 2, MAX_TYPES)?,
                None => 1,
            },
            layer_norm_eps: epsilon(config, fields.layer_norm_eps, fields.default_eps)?,
            pad_token_id: pad_token_id(config, kind.pad_token_id, vocab_size)?,
            hidden_act: HiddenAct::read(config, fields.hidden_act)?,
            first_position: 0,
            skipped_token: None,
            form: LayerForm::PostNorm,
            tensors,
        };
        if !encoder.hidden_size.is_multiple_of(encoder.heads) {
            return Err(config.invalid(
                fields.heads,
                &format!(
                    "is {}, which does not divide `{}` {}",
                    encoder.heads, fields.hidden_size, encoder.hidden_size
                ),
            ));
        }
        Ok(encoder)
    }

    /// Starts positions after the id of the padding token, which itself takes the position before them.
    fn with_positions_after(self, config: &Object, padding: u32) -> Result<Self, ModelError> {
        let first_position = padding as usize + 1;
        if first_position >= self.max_positions {
            return Err(config.invalid(
                "max_position_embeddings",
                &format!(
                    "is {}, which leaves no position after `pad_token_id` {padding}",
                    self.max_positions
                ),
            ));
        }
        Ok(Self {
            first_position,
            skipped_token: Some(padding),
            ..self
        })
    }

    /// Raises the maximum tokens of a sequence to `positions`, where no table of the weights limits them.
    pub(super) fn extend_positions(&mut self, positions: usize) {
        if self.tensors.positions.is_some() || positions <= self.max_positions {
            return;
        }
        self.max_positions = positions;
        if let LayerForm::PostNormDisentangled(relative) = &mut self.form {
            relative.extend_positions(positions);
        }
    }

    /// Maximum tokens of a sequence.
    pub fn usable_positions(&self) -> usize {
        self.max_positions - self.first_position
    }
}

/// Rejects kinds of attention that the graph does not implement.
fn check_attention(config: &Object, positions: Option<&str>) -> Result<(), ModelError> {
    if let Some(positions) = positions
        && let Some(kind) = config.text("position_embedding_type")?
        && kind != positions
    {
        return Err(config.unsupported(
            "position_embedding_type",
            &format!("is `{kind}`; only `{positions}` is supported"),
        ));
    }
    for field in ["is_decoder", "add_cross_attention"] {
        if config.flag(field)? == Some(true) {
            return Err(config.unsupported(field, "is true; only encoders are supported"));
        }
    }
    Ok(())
}

/// Epsilon of LayerNorm.
fn epsilon(config: &Object, field: &str, default: f64) -> Result<f32, ModelError> {
    let eps = config.number(field)?.unwrap_or(default);
    if eps > 0.0 && eps < 1.0 {
        return Ok(eps as f32);
    }
    Err(config.invalid(field, &format!("is {eps}; it must be between 0 and 1")))
}

pub(super) fn pad_token_id(
    config: &Object,
    default: u32,
    vocab_size: usize,
) -> Result<u32, ModelError> {
    let id = config.number("pad_token_id")?.unwrap_or(default.into());
    if id >= 0.0 && id.fract() == 0.0 && id < vocab_size as f64 {
        return Ok(id as u32);
    }
    Err(config.invalid(
        "pad_token_id",
        &format!("is {id}; it must be a token id below `vocab_size` {vocab_size}"),
    ))
}
