//! `DistilBertForSequenceClassification`: BERT without token types, with other tensor names, and a head of two
//! dense layers with ReLU.

use super::{Architecture, BERT_FIELDS, BERT_TENSORS, EncoderConfig, Fields, Kind, Tensors};
use crate::head::{Dense, Head, HeadAct};

const FIELDS: Fields = Fields {
    hidden_size: "dim",
    layers: "n_layers",
    heads: "n_heads",
    intermediate_size: "hidden_dim",
    hidden_act: "activation",
    ..BERT_FIELDS
};

const TENSORS: Tensors = Tensors {
    prefix: "distilbert.",
    types: None,
    layer: "transformer.layer",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    output_norm: "output_layer_norm",
    ..BERT_TENSORS
};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "distilbert",
    is_causal: false,
    kinds: &[Kind {
        model_type: "distilbert",
        class: "DistilBertForSequenceClassification",
        tokenizer: "DistilBertTokenizer",
        pad_token_id: 0,
    }],
    encoder: |config, kind| {
        Ok(EncoderConfig {
            // Not configurable.
            layer_norm_eps: 1e-12,
            ..EncoderConfig::read(config, kind, &FIELDS, TENSORS)?
        })
    },
    head: |_, encoder, labels| {
        Ok(Head::on_first_token([
            Dense::new("pre_classifier", encoder.hidden_size).then(HeadAct::Relu),
            Dense::new("classifier", labels),
        ]))
    },
};
