//! The architectures that can be served, one file each: what its `config.json` says, what its tensors
//! are called, and how its head reads the encoder.
//!
//! A new one is a file here and its line in `ALL`. The graph is put together from what the file says.

mod bert;
mod distilbert;
mod electra;
mod modernbert;
mod mpnet;
mod roberta;

use super::head::Head;
use super::json::Object;
use super::{ModelError, Weights};

/// Every architecture.
const ALL: [&Architecture; 6] = [
    &bert::ARCHITECTURE,
    &roberta::ARCHITECTURE,
    &distilbert::ARCHITECTURE,
    &electra::ARCHITECTURE,
    &mpnet::ARCHITECTURE,
    &modernbert::ARCHITECTURE,
];

/// Far beyond every published model, and small enough that no product of two overflows.
const MAX_WIDTH: usize = 1 << 17;
const MAX_LAYERS: usize = 1 << 10;
const MAX_VOCABULARY: usize = 1 << 25;
const MAX_POSITIONS: usize = 1 << 20;
/// Token types travel as one byte.
const MAX_TYPES: usize = 256;

/// One architecture.
pub(super) struct Architecture {
    /// The name shown to operators and clients.
    pub(super) name: &'static str,
    /// The kinds of model that share it.
    pub(super) kinds: &'static [Kind],
    /// Reads `config.json`.
    pub(super) encoder: fn(&Object, &Kind) -> Result<EncoderConfig, ModelError>,
    /// The head of its classifying class, for so many labels.
    pub(super) head: fn(&Object, &EncoderConfig, usize) -> Result<Head, ModelError>,
}

/// One kind of model that Hugging Face knows by a name of its own.
pub(super) struct Kind {
    pub(super) model_type: &'static str,
    pub(super) class: &'static str,
    /// The tokenizer class where none is named.
    pub(super) tokenizer: &'static str,
    /// The padding token where none is named.
    pub(super) pad_token_id: u32,
}

impl Kind {
    fn class_prefix(&self) -> &'static str {
        self.class.trim_end_matches("SequenceClassification")
    }
}

/// The architecture and kind of a model. As in transformers, `model_type` decides, and the class named
/// in `architectures` where there is none.
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

/// Every kind of model that can be served.
pub(super) fn kinds() -> impl Iterator<Item = (&'static Architecture, &'static Kind)> {
    let kinds = |of: &'static Architecture| of.kinds.iter().map(move |kind| (of, kind));
    ALL.into_iter().flat_map(kinds)
}

/// The function between the two matrices of a layer's feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HiddenAct {
    /// GELU by the error function.
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl HiddenAct {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "gelu" | "gelu_python" => Some(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Some(Self::GeluTanh),
            "relu" => Some(Self::Relu),
            _ => None,
        }
    }

    fn read(config: &Object, field: &str) -> Result<Self, ModelError> {
        let name = config.text(field)?.unwrap_or("gelu");
        Self::from_name(name).ok_or_else(|| {
            config.bad(
                field,
                &format!(
                    "is `{name}`; `gelu`, `gelu_new`, `gelu_pytorch_tanh` and `relu` are served"
                ),
            )
        })
    }
}

/// The sizes of the encoder, all checked to be above 0 and to fit together, and its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// Width of a token's vector; a multiple of `heads`.
    pub hidden_size: usize,
    /// Width of the embeddings; where it is not `hidden_size`, they are projected.
    pub embedding_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads of a layer.
    pub heads: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Rows of the word embeddings.
    pub vocab_size: usize,
    /// Rows of the position embeddings, of which the first `first_position` are for no token.
    pub max_positions: usize,
    /// Rows of the token type embeddings, at most 256; 1 where there are none.
    pub type_vocab_size: usize,
    /// Added to the variance in LayerNorm.
    pub layer_norm_eps: f32,
    /// Id of the padding token; below `vocab_size`.
    pub pad_token_id: u32,
    /// Function of the feed-forward part.
    pub hidden_act: HiddenAct,
    /// Position of a sequence's first token; below `max_positions`.
    pub first_position: usize,
    /// A token that takes the place before the first and is not counted, where a text spells it out.
    pub uncounted: Option<u32>,
    /// What is added to attention's scores by distance.
    pub relative_bias: Option<RelativeBias>,
    /// What is different in layers with a gate; `None` for those of BERT.
    pub gated: Option<Gated>,
    /// What the encoder's tensors are called.
    pub tensors: Tensors,
}

/// What is added to attention's scores by how far behind a query a key stands, in all layers the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelativeBias {
    /// The name of the table, `[buckets, heads]`.
    pub table: &'static str,
    /// Its rows; distances share them.
    pub buckets: usize,
    /// The row of each distance, as far behind as ahead; the first and last are for all that are farther.
    pub rows: Vec<usize>,
}

/// Layers that normalise before each part instead of after it, turn queries and keys by their places,
/// and multiply the feed-forward part by a gate.
#[derive(Debug, Clone, PartialEq)]
pub struct Gated {
    /// Whether a layer attends to what is near only, of each layer.
    pub local: Vec<bool>,
    /// How far before and behind its place a token of such a layer sees.
    pub window: usize,
    /// Base of the angles of a layer that attends to everything.
    pub global_theta: f32,
    /// Base of the angles of one that does not.
    pub local_theta: f32,
    /// Whether attention's matrices have a bias.
    pub attention_bias: bool,
    /// Whether those of the feed-forward part have.
    pub feed_forward_bias: bool,
    /// Whether LayerNorm has.
    pub norm_bias: bool,
    /// LayerNorm behind the last layer.
    pub final_norm: &'static str,
}

/// What the tensors of an encoder are called, without `.weight` and `.bias`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensors {
    /// In front of all other names, with its dot; empty in the checkpoint of an encoder without a head.
    pub prefix: &'static str,
    /// Word embeddings.
    pub words: &'static str,
    /// Position embeddings, where there are some.
    pub positions: Option<&'static str>,
    /// Token type embeddings, where there are some.
    pub types: Option<&'static str>,
    /// LayerNorm of the sum of these.
    pub norm: &'static str,
    /// Projection of the embeddings, where they are narrower than the layers.
    pub projection: &'static str,
    /// In front of the number of a layer.
    pub layer: &'static str,
    /// In a layer: queries, keys and values. Layers with a gate have all three in the first.
    pub query: &'static str,
    /// See `query`.
    pub key: &'static str,
    /// See `query`.
    pub value: &'static str,
    /// In a layer: projection of what attention gives.
    pub output: &'static str,
    /// In a layer: LayerNorm after attention, or before it.
    pub attention_norm: &'static str,
    /// In a layer: the first matrix of the feed-forward part.
    pub up: &'static str,
    /// In a layer: the second one.
    pub down: &'static str,
    /// In a layer: LayerNorm after all, or before the feed-forward part.
    pub output_norm: &'static str,
}

impl Tensors {
    /// The full name of a tensor outside the layers.
    pub fn name(&self, part: &str) -> String {
        format!("{}{part}", self.prefix)
    }

    /// Takes the prefix off where the weights have none: so encoders are saved that have no head.
    pub(super) fn settle(&mut self, weights: &Weights) {
        let words = format!("{}.weight", self.words);
        let prefixed = format!("{}{words}", self.prefix);
        if weights.shape(&prefixed).is_none() && weights.shape(&words).is_some() {
            self.prefix = "";
        }
    }

    /// The full name of a layer.
    pub fn layer(&self, index: usize) -> String {
        format!("{}{}.{index}", self.prefix, self.layer)
    }
}

/// The names of BERT, which most of its descendants kept.
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
};

/// What `config.json` calls the sizes of an encoder.
#[derive(Clone, Copy)]
struct Fields {
    hidden_size: &'static str,
    layers: &'static str,
    heads: &'static str,
    intermediate_size: &'static str,
    hidden_act: &'static str,
    layer_norm_eps: &'static str,
    /// Where `layer_norm_eps` is missing.
    default_eps: f64,
}

/// The names of BERT.
const BERT_FIELDS: Fields = Fields {
    hidden_size: "hidden_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    intermediate_size: "intermediate_size",
    hidden_act: "hidden_act",
    layer_norm_eps: "layer_norm_eps",
    default_eps: 1e-12,
};

impl EncoderConfig {
    /// Reads what all architectures have in common; positions are numbered from 0.
    fn read(
        config: &Object,
        kind: &Kind,
        fields: &Fields,
        tensors: Tensors,
    ) -> Result<Self, ModelError> {
        check_attention(config)?;
        let hidden_size = config.size(fields.hidden_size, MAX_WIDTH)?;
        let encoder = Self {
            hidden_size,
            embedding_size: hidden_size,
            layers: config.size(fields.layers, MAX_LAYERS)?,
            heads: config.size(fields.heads, MAX_WIDTH)?,
            intermediate_size: config.size(fields.intermediate_size, MAX_WIDTH)?,
            vocab_size: config.size("vocab_size", MAX_VOCABULARY)?,
            max_positions: config.size("max_position_embeddings", MAX_POSITIONS)?,
            type_vocab_size: match tensors.types {
                Some(_) => config.size_or("type_vocab_size", 2, MAX_TYPES)?,
                None => 1,
            },
            layer_norm_eps: epsilon(config, fields.layer_norm_eps, fields.default_eps)?,
            pad_token_id: pad_token_id(config, kind)?,
            hidden_act: HiddenAct::read(config, fields.hidden_act)?,
            first_position: 0,
            uncounted: None,
            relative_bias: None,
            gated: None,
            tensors,
        };
        if !encoder.hidden_size.is_multiple_of(encoder.heads) {
            return Err(config.bad(
                fields.heads,
                &format!(
                    "is {}, which does not divide `{}` {}",
                    encoder.heads, fields.hidden_size, encoder.hidden_size
                ),
            ));
        }
        if encoder.pad_token_id as usize >= encoder.vocab_size {
            return Err(config.bad(
                "pad_token_id",
                &format!(
                    "is {}, not below `vocab_size` {}",
                    encoder.pad_token_id, encoder.vocab_size
                ),
            ));
        }
        Ok(encoder)
    }

    /// The same with positions that begin behind the id of the padding token, which itself takes the
    /// place before them.
    fn numbered_past(self, config: &Object, padding: u32) -> Result<Self, ModelError> {
        let first_position = padding as usize + 1;
        if first_position >= self.max_positions {
            return Err(config.bad(
                "max_position_embeddings",
                &format!(
                    "is {}, which leaves no position after `pad_token_id` {padding}",
                    self.max_positions
                ),
            ));
        }
        Ok(Self {
            first_position,
            uncounted: Some(padding),
            ..self
        })
    }

    /// Tokens that the position embeddings have room for.
    pub fn usable_positions(&self) -> usize {
        self.max_positions - self.first_position
    }
}

/// Refuses attention that the graph does not compute.
fn check_attention(config: &Object) -> Result<(), ModelError> {
    if let Some(kind) = config.text("position_embedding_type")?
        && kind != "absolute"
    {
        return Err(config.bad(
            "position_embedding_type",
            &format!("is `{kind}`; only `absolute` is served"),
        ));
    }
    for field in ["is_decoder", "add_cross_attention"] {
        if config.flag(field)? == Some(true) {
            return Err(config.bad(field, "is true; only encoders are served"));
        }
    }
    Ok(())
}

/// What LayerNorm adds to a variance.
fn epsilon(config: &Object, field: &str, default: f64) -> Result<f32, ModelError> {
    let eps = config.number(field)?.unwrap_or(default);
    if eps > 0.0 && eps < 1.0 {
        return Ok(eps as f32);
    }
    Err(config.bad(field, &format!("is {eps}; it must be between 0 and 1")))
}

fn pad_token_id(config: &Object, kind: &Kind) -> Result<u32, ModelError> {
    let Some(id) = config.number("pad_token_id")? else {
        return Ok(kind.pad_token_id);
    };
    if id >= 0.0 && id.fract() == 0.0 && id < MAX_VOCABULARY as f64 {
        return Ok(id as u32);
    }
    Err(config.bad("pad_token_id", &format!("is {id}; it must be a token id")))
}
