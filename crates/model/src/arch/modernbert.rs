//! `ModernBertForSequenceClassification`: pre-norm layers with rotary position embeddings, global and
//! sliding-window attention and GeGLU, and a head of a dense layer, LayerNorm and classifier.

use super::{
    Architecture, BERT_FIELDS, BERT_TENSORS, EncoderConfig, Fields, Kind, LayerForm, MAX_LAYERS,
    MAX_POSITIONS, PreNormGated, Tensors,
};
use crate::ModelError;
use crate::head::{Dense, Head, HeadAct, HeadStep, Norm, Pooling};
use crate::json::Object;

const FIELDS: Fields = Fields {
    hidden_act: "hidden_activation",
    layer_norm_eps: "norm_eps",
    default_eps: 1e-5,
    positions: None,
    ..BERT_FIELDS
};

const TENSORS: Tensors = Tensors {
    prefix: "model.",
    words: "embeddings.tok_embeddings",
    positions: None,
    types: None,
    norm: "embeddings.norm",
    layer: "layers",
    query: "attn.Wqkv",
    output: "attn.Wo",
    attention_norm: "attn_norm",
    up: "mlp.Wi",
    down: "mlp.Wo",
    output_norm: "mlp_norm",
    ..BERT_TENSORS
};

const GLOBAL: &str = "full_attention";
const LOCAL: &str = "sliding_attention";

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "modernbert",
    is_causal: false,
    kinds: &[Kind {
        model_type: "modernbert",
        class: "ModernBertForSequenceClassification",
        // Regardless of the class: published models name wrong ones.
        tokenizer: "TokenizersBackend",
        pad_token_id: 50283,
    }],
    encoder: |config, kind| {
        let encoder = EncoderConfig::read(config, kind, &FIELDS, TENSORS)?;
        if !(encoder.hidden_size / encoder.heads).is_multiple_of(2) {
            return Err(config.invalid(
                "num_attention_heads",
                "gives an odd head size; rotary embeddings need an even one",
            ));
        }
        let gated = gated(config, encoder.layers)?;
        Ok(EncoderConfig {
            form: LayerForm::PreNormGated(gated),
            ..encoder
        })
    },
    head: |config, encoder, labels| {
        let pooling = match config.text("classifier_pooling")? {
            None | Some("cls") => Pooling::First,
            Some("mean") => Pooling::Mean,
            Some(other) => {
                return Err(config.invalid(
                    "classifier_pooling",
                    &format!("is `{other}`; it must be `cls` or `mean`"),
                ));
            }
        };
        let name = config.text("classifier_activation")?.unwrap_or("gelu");
        let activation = HeadAct::from_name(name).ok_or_else(|| {
            config.unsupported(
                "classifier_activation",
                &format!("is `{name}`, which is not supported"),
            )
        })?;
        let dense = Dense {
            bias: flag(config, "classifier_bias")?,
            ..Dense::new("head.dense", encoder.hidden_size).then(activation)
        };
        Ok(Head {
            pooling: vec![pooling],
            steps: vec![
                HeadStep::Dense(dense),
                HeadStep::Norm(Norm {
                    name: "head.norm".into(),
                    bias: flag(config, "norm_bias")?,
                    epsilon: encoder.layer_norm_eps,
                }),
                HeadStep::Dense(Dense::new("classifier", labels)),
            ],
            folders: Vec::new(),
        })
    },
};

fn gated(config: &Object, layers: usize) -> Result<PreNormGated, ModelError> {
    let global_theta = theta(config, GLOBAL, "global_rope_theta", 160_000.0)?;
    Ok(PreNormGated {
        local: local(config, layers)?,
        // The reference reads its own name of half of the window, too.
        window: match config.value("sliding_window") {
            Some(_) => config.size("sliding_window", MAX_POSITIONS)?,
            None => config.size_or("local_attention", 128, MAX_POSITIONS)? / 2,
        },
        global_theta,
        local_theta: theta(config, LOCAL, "local_rope_theta", 10_000.0)?,
        attention_bias: flag(config, "attention_bias")?,
        feed_forward_bias: flag(config, "mlp_bias")?,
        norm_bias: flag(config, "norm_bias")?,
        final_norm: "final_norm",
    })
}

fn flag(config: &Object, field: &str) -> Result<bool, ModelError> {
    Ok(config.flag(field)?.unwrap_or(false))
}

/// Which layers have local attention: as listed, or all but every n-th.
fn local(config: &Object, layers: usize) -> Result<Vec<bool>, ModelError> {
    let Some(types) = config.list("layer_types")? else {
        let every = config.size_or("global_attn_every_n_layers", 3, MAX_LAYERS)?;
        return Ok((0..layers).map(|layer| layer % every != 0).collect());
    };
    if types.len() != layers {
        return Err(config.invalid(
            "layer_types",
            &format!("has {} entries for {layers} layers", types.len()),
        ));
    }
    let local = |kind: &serde_json::Value| match kind.as_str() {
        Some(LOCAL) => Ok(true),
        Some(GLOBAL) => Ok(false),
        _ => Err(config.unsupported(
            "layer_types",
            &format!("has {kind}; supported are `{GLOBAL}` and `{LOCAL}`"),
        )),
    };
    types.iter().map(local).collect()
}

/// Base of the rotary embeddings of a layer type, from the current field or the legacy one.
fn theta(config: &Object, kind: &str, legacy: &str, default: f64) -> Result<f32, ModelError> {
    if config.value("rope_scaling").is_some() {
        return Err(config.unsupported("rope_scaling", "is set, which is not supported"));
    }
    let mut theta = None;
    if let Some(all) = config.object("rope_parameters")?
        && let Some(parameters) = all.object(kind)?
    {
        let form = match parameters.text("rope_type")? {
            Some(form) => Some(form),
            None => parameters.text("type")?,
        };
        if let Some(form) = form
            && form != "default"
        {
            return Err(parameters.unsupported(
                "rope_type",
                &format!("is `{form}`; only `default` is supported"),
            ));
        }
        theta = parameters.number("rope_theta")?;
    }
    let theta = match theta {
        Some(theta) => theta,
        None => config.number(legacy)?.unwrap_or(default),
    };
    if theta.is_finite() && theta > 1.0 {
        return Ok(theta as f32);
    }
    Err(config.invalid(legacy, &format!("is {theta}; it must be above 1")))
}
