//! RoBERTa, XLM-RoBERTa and CamemBERT `ForSequenceClassification`: positions from `pad_token_id + 1`, and a head
//! of two dense layers with tanh. Jina's XLM-RoBERTa has the same network under the names of flash-attention.

use super::{Architecture, BERT_FIELDS, BERT_TENSORS, EncoderConfig, Kind, Tensors};
use crate::head::{Dense, Head, HeadAct};

const TENSORS: Tensors = Tensors {
    prefix: "roberta.",
    alternatives: &[STACKED],
    ..BERT_TENSORS
};

/// As published with `jinaai/xlm-roberta-flash-implementation`.
const STACKED: Tensors = Tensors {
    prefix: "roberta.",
    norm: "emb_ln",
    layer: "encoder.layers",
    query: "mixer.Wq",
    key: "mixer.Wk",
    value: "mixer.Wv",
    output: "mixer.out_proj",
    attention_norm: "norm1",
    up: "mlp.fc1",
    down: "mlp.fc2",
    output_norm: "norm2",
    stacked: &[("mixer.Wqkv", &["mixer.Wq", "mixer.Wk", "mixer.Wv"])],
    ..BERT_TENSORS
};

const fn kind(model_type: &'static str, class: &'static str, tokenizer: &'static str) -> Kind {
    Kind {
        model_type,
        class,
        tokenizer,
        pad_token_id: 1,
    }
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "roberta",
    is_causal: false,
    kinds: &[
        kind(
            "roberta",
            "RobertaForSequenceClassification",
            "RobertaTokenizer",
        ),
        kind(
            "xlm-roberta",
            "XLMRobertaForSequenceClassification",
            "XLMRobertaTokenizer",
        ),
        kind(
            "camembert",
            "CamembertForSequenceClassification",
            "CamembertTokenizer",
        ),
    ],
    encoder: |config, kind| {
        let encoder = EncoderConfig::read(config, kind, &BERT_FIELDS, TENSORS)?;
        let padding = encoder.pad_token_id;
        encoder.with_positions_after(config, padding)
    },
    head: |_, encoder, labels| {
        Ok(Head::on_first_token([
            Dense::new("classifier.dense", encoder.hidden_size).then(HeadAct::Tanh),
            Dense::new("classifier.out_proj", labels),
        ]))
    },
};
