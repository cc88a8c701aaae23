//! What decoders have in common: fields of `config.json`, tensor names, rotary embeddings and the head.

use super::{
    BERT_TENSORS, EncoderConfig, HiddenAct, LayerForm, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY,
    MAX_WIDTH, Tensors, epsilon,
};
use crate::head::{Dense, Head, HeadStep, Pooling};
use crate::json::Object;
use crate::rotary::Rotary;
use crate::{Decoder, ModelError};

const TENSORS: Tensors = Tensors {
    prefix: "model.",
    words: "embed_tokens",
    positions: None,
    types: None,
    norm: "norm",
    layer: "layers",
    query: "self_attn.q_proj",
    key: "self_attn.k_proj",
    value: "self_attn.v_proj",
    output: "self_attn.o_proj",
    attention_norm: "input_layernorm",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    output_norm: "post_attention_layernorm",
    ..BERT_TENSORS
};

const GLOBAL: &str = "full_attention";
const LOCAL: &str = "sliding_attention";

/// How the classes of transformers differ.
pub(super) struct Family {
    /// Default of `head_dim`; otherwise it is `hidden_size / num_attention_heads`.
    pub(super) head_dim: Option<usize>,
    /// Default of `num_key_value_heads`; otherwise it is `num_attention_heads`.
    pub(super) kv_heads: Option<usize>,
    /// Default of `hidden_act`.
    pub(super) hidden_act: &'static str,
    /// Default of `tie_word_embeddings`.
    pub(super) tied: bool,
    /// Default of `pad_token_id`.
    pub(super) padding: Option<u32>,
    /// Whether queries and keys have an RMSNorm.
    pub(super) head_norms: bool,
    /// Biases of attention.
    pub(super) attention_bias: AttentionBias,
    /// Whether `mlp_bias` is read.
    pub(super) reads_mlp_bias: bool,
    /// Whether norms multiply by 1 + weight, and embeddings by the root of their width.
    pub(super) is_gemma: bool,
    /// Sliding windows.
    pub(super) window: Window,
}

/// Which dense layers of attention have a bias.
pub(super) enum AttentionBias {
    /// None.
    Never,
    /// Queries, keys and values.
    Inputs,
    /// All, if `attention_bias` is true.
    Declared,
}

/// Where `sliding_window` applies.
pub(super) enum Window {
    /// Nowhere.
    Never,
    /// In every layer, or those that `layer_types` names, with a default.
    EveryLayer(usize),
    /// If `use_sliding_window` is true, in the layers that `layer_types` or `max_window_layers` names.
    Declared,
}

/// A family as Llama's, from which the others differ.
pub(super) const LLAMA: Family = Family {
    head_dim: None,
    kv_heads: None,
    hidden_act: "silu",
    tied: false,
    padding: None,
    head_norms: false,
    attention_bias: AttentionBias::Declared,
    reads_mlp_bias: true,
    is_gemma: false,
    window: Window::Never,
};

/// Reads `config.json`.
pub(super) fn read(config: &Object, family: &Family) -> Result<EncoderConfig, ModelError> {
    for (field, bidirectional) in [("use_bidirectional_attention", true), ("is_causal", false)] {
        if config.flag(field)? == Some(bidirectional) {
            return Err(config.invalid(
                field,
                &format!("is {bidirectional}; only causal attention is supported"),
            ));
        }
    }
    let hidden_size = config.size("hidden_size", MAX_WIDTH)?;
    let heads = config.size("num_attention_heads", MAX_WIDTH)?;
    let layers = config.size("num_hidden_layers", MAX_LAYERS)?;
    let vocab_size = config.size("vocab_size", MAX_VOCABULARY)?;
    let max_positions = config.size("max_position_embeddings", MAX_POSITIONS)?;
    let kv_heads = config.size_or(
        "num_key_value_heads",
        family.kv_heads.unwrap_or(heads),
        MAX_WIDTH,
    )?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(config.invalid(
            "num_key_value_heads",
            &format!("is {kv_heads}, which does not divide `num_attention_heads` {heads}"),
        ));
    }
    let size = family.head_dim.unwrap_or(hidden_size / heads);
    let head_size = match config.count("head_dim")? {
        None if size == 0 => {
            return Err(config.invalid(
                "num_attention_heads",
                &format!("is {heads}, more than `hidden_size` {hidden_size}"),
            ));
        }
        _ => config.size_or("head_dim", size, MAX_WIDTH)?,
    };
    if !head_size.is_multiple_of(2) || heads * head_size > MAX_WIDTH {
        return Err(config.invalid(
            "head_dim",
            &format!("is {head_size}; it must be even, and at most {MAX_WIDTH} for all heads"),
        ));
    }
    let padding = match config.value("pad_token_id") {
        Some(_) => padding(config, vocab_size)?,
        // Written as `null` where there is none.
        None if config.contains("pad_token_id") => None,
        None => family.padding,
    };
    let declared = |field| Ok::<_, ModelError>(config.flag(field)? == Some(true));
    let (inputs, output) = match family.attention_bias {
        AttentionBias::Never => (false, false),
        AttentionBias::Inputs => (true, false),
        AttentionBias::Declared => {
            let bias = declared("attention_bias")?;
            (bias, bias)
        }
    };
    let decoder = Decoder {
        kv_heads,
        head_size,
        rotary: Rotary::read(config, max_positions)?,
        windows: windows(config, family, layers)?,
        head_norms: family.head_norms,
        input_bias: inputs,
        output_bias: output,
        feed_forward_bias: family.reads_mlp_bias && declared("mlp_bias")?,
        is_gemma: family.is_gemma,
        tied: config.flag("tie_word_embeddings")?.unwrap_or(family.tied),
        padding,
        gate: "mlp.gate_proj",
    };
    Ok(EncoderConfig {
        hidden_size,
        embedding_size: hidden_size,
        layers,
        heads,
        intermediate_size: config.size("intermediate_size", MAX_WIDTH)?,
        vocab_size,
        max_positions,
        type_vocab_size: 1,
        layer_norm_eps: epsilon(config, "rms_norm_eps", 1e-6)?,
        pad_token_id: padding.unwrap_or(0),
        hidden_act: activation(config, family.hidden_act)?,
        first_position: 0,
        skipped_token: None,
        form: LayerForm::Decoder(decoder),
        tensors: TENSORS,
    })
}

/// The head of the sequence classification class: `score` on the last token that is not padding.
pub(super) fn head(_: &Object, encoder: &EncoderConfig, labels: usize) -> Result<Head, ModelError> {
    let padding = encoder.decoder().and_then(|decoder| decoder.padding);
    Ok(Head {
        pooling: vec![padding.map_or(Pooling::Last, Pooling::LastBefore)],
        steps: vec![HeadStep::Dense(Dense {
            bias: false,
            ..Dense::new("score", labels)
        })],
        folders: Vec::new(),
    })
}

fn activation(config: &Object, default: &str) -> Result<HiddenAct, ModelError> {
    let name = config.text("hidden_act")?.unwrap_or(default);
    match name {
        "silu" | "swish" => Ok(HiddenAct::Silu),
        name => HiddenAct::from_name(name).ok_or_else(|| {
            config.invalid(
                "hidden_act",
                &format!(
                    "is `{name}`; supported are `silu`, `gelu`, `gelu_new`, `gelu_pytorch_tanh` and `relu`"
                ),
            )
        }),
    }
}

/// The padding token; -1, as some old models have it, is none.
fn padding(config: &Object, vocab_size: usize) -> Result<Option<u32>, ModelError> {
    match config.number("pad_token_id")? {
        Some(-1.0) => Ok(None),
        _ => super::pad_token_id(config, 0, vocab_size).map(Some),
    }
}

/// The sliding window of each layer.
fn windows(
    config: &Object,
    family: &Family,
    layers: usize,
) -> Result<Vec<Option<usize>>, ModelError> {
    let declared = config.flag("use_sliding_window")? == Some(true);
    let size = match family.window {
        Window::Never => None,
        Window::EveryLayer(_) if config.contains("sliding_window") => {
            config.count("sliding_window")?
        }
        Window::EveryLayer(default) => Some(default),
        Window::Declared if !declared => None,
        Window::Declared if config.contains("sliding_window") => config.count("sliding_window")?,
        Window::Declared => Some(4096),
    };
    let Some(size) = size else {
        return Ok(vec![None; layers]);
    };
    if let Window::EveryLayer(_) = family.window
        && !config.contains("layer_types")
    {
        return Ok(vec![Some(size); layers]);
    }
    let Some(types) = config.list("layer_types")? else {
        let first = match config.number("max_window_layers")? {
            Some(0.0) => 0,
            _ => config.size_or("max_window_layers", 28, usize::MAX)?,
        };
        let window = |layer| (layer >= first).then_some(size);
        return Ok((0..layers).map(window).collect());
    };
    if types.len() != layers {
        return Err(config.invalid(
            "layer_types",
            &format!("has {} entries for {layers} layers", types.len()),
        ));
    }
    let window = |kind: &serde_json::Value| match kind.as_str() {
        Some(LOCAL) => Ok(Some(size)),
        Some(GLOBAL) => Ok(None),
        _ => Err(config.invalid(
            "layer_types",
            &format!("has {kind}; supported are `{GLOBAL}` and `{LOCAL}`"),
        )),
    };
    types.iter().map(window).collect()
}
