//! `ElectraForSequenceClassification`: BERT with embeddings that may be narrower than the layers, and a head
//! of two dense layers with GELU.

use super::{Architecture, BERT_FIELDS, BERT_TENSORS, EncoderConfig, Kind, MAX_WIDTH, Tensors};
use crate::head::{Dense, Head, HeadAct};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "electra",
    is_causal: false,
    kinds: &[Kind {
        model_type: "electra",
        class: "ElectraForSequenceClassification",
        tokenizer: "BertTokenizer",
        pad_token_id: 0,
    }],
    encoder: |config, kind| {
        let tensors = Tensors {
            prefix: "electra.",
            ..BERT_TENSORS
        };
        Ok(EncoderConfig {
            embedding_size: config.size_or("embedding_size", 128, MAX_WIDTH)?,
            ..EncoderConfig::read(config, kind, &BERT_FIELDS, tensors)?
        })
    },
    head: |_, encoder, labels| {
        Ok(Head::on_first_token([
            // GELU regardless of `hidden_act`.
            Dense::new("classifier.dense", encoder.hidden_size).then(HeadAct::Gelu),
            Dense::new("classifier.out_proj", labels),
        ]))
    },
};
