//! `MPNetForSequenceClassification`: positions as in RoBERTa, and a relative position bias in attention.

use super::{
    Architecture, BERT_FIELDS, BERT_TENSORS, EncoderConfig, Kind, LayerForm, RelativeBias, Tensors,
};
use crate::head::{Dense, Head, HeadAct};

const TENSORS: Tensors = Tensors {
    prefix: "mpnet.",
    types: None,
    query: "attention.attn.q",
    key: "attention.attn.k",
    value: "attention.attn.v",
    output: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    ..BERT_TENSORS
};

/// Positions start after it, regardless of `pad_token_id`.
const PADDING: u32 = 1;
/// Rows of the bias in use, regardless of `relative_attention_num_buckets`: half for each direction.
const BUCKETS: usize = 32;
/// All distances from here on share a row.
const REACH: i64 = 128;

/// The row of a distance: exact for near tokens, logarithmic for distant ones.
fn bucket(distance: i64) -> usize {
    const HALF: usize = BUCKETS / 2;
    const EXACT: usize = HALF / 2;
    let direction = if distance > 0 { HALF } else { 0 };
    let away = distance.unsigned_abs() as usize;
    if away < EXACT {
        return direction + away;
    }
    // In f32, as torch computes it.
    let log = (away as f32 / EXACT as f32).ln();
    let span = (REACH as f64 / EXACT as f64).ln() as f32;
    let shared = (log / span * (HALF - EXACT) as f32) as usize;
    direction + (EXACT + shared).min(HALF - 1)
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "mpnet",
    is_causal: false,
    kinds: &[Kind {
        model_type: "mpnet",
        class: "MPNetForSequenceClassification",
        tokenizer: "MPNetTokenizer",
        pad_token_id: 1,
    }],
    encoder: |config, kind| {
        let buckets = config.size_or("relative_attention_num_buckets", BUCKETS, 1 << 16)?;
        if buckets < BUCKETS {
            return Err(config.invalid(
                "relative_attention_num_buckets",
                &format!("is {buckets}; {BUCKETS} are used"),
            ));
        }
        let encoder = EncoderConfig {
            form: LayerForm::PostNormRelativeBias(RelativeBias {
                table: "encoder.relative_attention_bias",
                buckets,
                rows: (-REACH..=REACH).map(bucket).collect(),
            }),
            ..EncoderConfig::read(config, kind, &BERT_FIELDS, TENSORS)?
        };
        encoder.with_positions_after(config, PADDING)
    },
    head: |_, encoder, labels| {
        Ok(Head::on_first_token([
            Dense::new("classifier.dense", encoder.hidden_size).then(HeadAct::Tanh),
            Dense::new("classifier.out_proj", labels),
        ]))
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_share_rows_as_in_the_reference() {
        // First distance of each row, by `relative_position_bucket` of transformers 5.23 for 0 to 200.
        let starts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91];
        for away in 0..=200 {
            let row = starts.iter().filter(|&&start| start <= away).count() - 1;
            assert_eq!(bucket(-away), row, "{away} behind");
            let ahead = if away == 0 { 0 } else { 16 + row };
            assert_eq!(bucket(away), ahead, "{away} ahead");
        }
    }
}
