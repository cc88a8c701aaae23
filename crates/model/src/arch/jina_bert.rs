//! `JinaBertForSequenceClassification`: BERT with ALiBi instead of position embeddings, and a gated feed-forward
//! network. Published with code of its own, which is not run; its `model_type` is BERT's.

use super::{
    Architecture, AttentionPositions, BERT_FIELDS, BERT_TENSORS, EncoderConfig, Fields, HiddenAct,
    Kind, LayerForm, PostNormGated, Tensors,
};
use crate::head::{Dense, Head, HeadAct};

/// The `position_embedding_type` that tells it from BERT.
pub(crate) const ALIBI: &str = "alibi";
/// What the registry calls it.
pub(crate) const MODEL_TYPE: &str = "jina-bert";

const FIELDS: Fields = Fields {
    positions: Some(ALIBI),
    ..BERT_FIELDS
};

const TENSORS: Tensors = Tensors {
    positions: None,
    up: "mlp.gated_layers.activated",
    down: "mlp.wo",
    output_norm: "mlp.layernorm",
    stacked: &[(
        "mlp.gated_layers",
        &["mlp.gated_layers.activated", "mlp.gated_layers.linear"],
    )],
    ..BERT_TENSORS
};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "jina-bert",
    is_causal: false,
    kinds: &[Kind {
        model_type: MODEL_TYPE,
        class: "JinaBertForSequenceClassification",
        tokenizer: "BertTokenizer",
        pad_token_id: 0,
    }],
    encoder: |config, kind| {
        let encoder = EncoderConfig::read(config, kind, &FIELDS, TENSORS)?;
        let field = "feed_forward_type";
        let hidden_act = match config.text(field)? {
            Some("geglu") => HiddenAct::Gelu,
            Some("reglu") => HiddenAct::Relu,
            other => {
                let found = other.unwrap_or("original");
                let what = format!("is `{found}`; supported are `geglu` and `reglu`");
                return Err(config.unsupported(field, &what));
            }
        };
        Ok(EncoderConfig {
            form: LayerForm::PostNormGated(PostNormGated {
                positions: AttentionPositions::Alibi,
                gate: "mlp.gated_layers.linear",
            }),
            hidden_act,
            ..encoder
        })
    },
    head: |_, encoder, labels| {
        Ok(Head::on_first_token([
            Dense::new("bert.pooler.dense", encoder.hidden_size).then(HeadAct::Tanh),
            Dense::new("classifier", labels),
        ]))
    },
};
