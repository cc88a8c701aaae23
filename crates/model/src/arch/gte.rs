//! `NewForSequenceClassification` of GTE: post-norm layers with rotary position embeddings and GeGLU, whose queries,
//! keys and values may be stacked, and BERT's head. Published with code of its own, which is not run.

use super::{
    Architecture, AttentionPositions, BERT_FIELDS, BERT_TENSORS, EncoderConfig, Fields, Kind,
    LayerForm, PostNormGated, Tensors,
};
use crate::ModelError;
use crate::head::{Dense, Head, HeadAct};
use crate::json::Object;
use crate::rotary::Rotary;

const FIELDS: Fields = Fields {
    positions: Some("rope"),
    ..BERT_FIELDS
};

const TENSORS: Tensors = Tensors {
    prefix: "new.",
    positions: None,
    query: "attention.q_proj",
    key: "attention.k_proj",
    value: "attention.v_proj",
    output: "attention.o_proj",
    attention_norm: "attn_ln",
    // What the published code calls the gate is what it activates.
    up: "mlp.gate_proj",
    down: "mlp.down_proj",
    output_norm: "mlp_ln",
    stacked: &[
        (
            "attention.qkv_proj",
            &["attention.q_proj", "attention.k_proj", "attention.v_proj"],
        ),
        ("mlp.up_gate_proj", &["mlp.up_proj", "mlp.gate_proj"]),
    ],
    ..BERT_TENSORS
};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gte",
    is_causal: false,
    kinds: &[Kind {
        model_type: "new",
        class: "NewForSequenceClassification",
        tokenizer: "PreTrainedTokenizerFast",
        pad_token_id: 0,
    }],
    encoder: |config, kind| {
        check(config)?;
        let types = match config.number("type_vocab_size")? {
            Some(0.0) => None,
            _ => TENSORS.types,
        };
        let tensors = Tensors { types, ..TENSORS };
        let encoder = EncoderConfig::read(config, kind, &FIELDS, tensors)?;
        if !(encoder.hidden_size / encoder.heads).is_multiple_of(2) {
            return Err(config.invalid(
                "num_attention_heads",
                "gives an odd head size; rotary embeddings need an even one",
            ));
        }
        let rotary = Rotary::read_gte(config)?;
        Ok(EncoderConfig {
            form: LayerForm::PostNormGated(PostNormGated {
                positions: AttentionPositions::Rotary(rotary),
                gate: "mlp.up_proj",
            }),
            ..encoder
        })
    },
    head: |_, encoder, labels| {
        Ok(Head::on_first_token([
            Dense::new("new.pooler.dense", encoder.hidden_size).then(HeadAct::Tanh),
            Dense::new("classifier", labels),
        ]))
    },
};

/// Rejects options of the published code that no published reranker uses.
fn check(config: &Object) -> Result<(), ModelError> {
    if let Some(kind) = config.text("layer_norm_type")?
        && kind != "layer_norm"
    {
        return Err(config.unsupported(
            "layer_norm_type",
            &format!("is `{kind}`; only `layer_norm` is supported"),
        ));
    }
    match config.flag("logn_attention_scale")? {
        Some(true) => {
            Err(config.unsupported("logn_attention_scale", "is true, which is not supported"))
        }
        _ => Ok(()),
    }
}
