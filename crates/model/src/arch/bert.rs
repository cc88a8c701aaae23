//! `BertForSequenceClassification`: a pooler (dense, tanh) and a linear classifier.

use super::{Architecture, BERT_FIELDS, BERT_TENSORS, EncoderConfig, Kind};
use crate::head::{Dense, Head, HeadAct};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "bert",
    is_causal: false,
    kinds: &[Kind {
        model_type: "bert",
        class: "BertForSequenceClassification",
        tokenizer: "BertTokenizer",
        pad_token_id: 0,
    }],
    encoder: |config, kind| EncoderConfig::read(config, kind, &BERT_FIELDS, BERT_TENSORS),
    head: |_, encoder, labels| {
        Ok(Head::on_first_token([
            Dense::new("bert.pooler.dense", encoder.hidden_size).then(HeadAct::Tanh),
            Dense::new("classifier", labels),
        ]))
    },
};
