//! RoBERTa, XLM-RoBERTa and CamemBERT `ForSequenceClassification`: positions from `pad_token_id + 1`, and a head
//! of two dense layers with tanh.

use super::{Architecture, BERT_FIELDS, BERT_TENSORS, EncoderConfig, Kind, Tensors};
use crate::head::{Dense, Head, HeadAct};

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
        let tensors = Tensors {
            prefix: "roberta.",
            ..BERT_TENSORS
        };
        let encoder = EncoderConfig::read(config, kind, &BERT_FIELDS, tensors)?;
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
