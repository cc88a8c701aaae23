//! `DebertaV2ForSequenceClassification`, of DeBERTa-v2 and -v3: disentangled attention, and a head of a dense layer
//! and a classifier.

use serde_json::Value;

use super::{
    Architecture, BERT_FIELDS, BERT_TENSORS, Disentangled, EncoderConfig, Fields, Kind, LayerForm,
    MAX_POSITIONS, MAX_WIDTH, Tensors,
};
use crate::ModelError;
use crate::head::{Dense, Head, HeadAct};
use crate::json::Object;

const FIELDS: Fields = Fields {
    default_eps: 1e-7,
    ..BERT_FIELDS
};

const TENSORS: Tensors = Tensors {
    prefix: "deberta.",
    projection: "embeddings.embed_proj",
    query: "attention.self.query_proj",
    key: "attention.self.key_proj",
    value: "attention.self.value_proj",
    ..BERT_TENSORS
};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "deberta-v2",
    is_causal: false,
    kinds: &[Kind {
        model_type: "deberta-v2",
        class: "DebertaV2ForSequenceClassification",
        tokenizer: "DebertaV2Tokenizer",
        pad_token_id: 0,
    }],
    encoder: |config, kind| {
        if config
            .number("conv_kernel_size")?
            .is_some_and(|size| size > 0.0)
        {
            return Err(config.unsupported(
                "conv_kernel_size",
                "is set; the convolution of deberta-v2-xlarge and -xxlarge is not supported",
            ));
        }
        // Both are missing in -v3.
        let has_types = config
            .number("type_vocab_size")?
            .is_some_and(|types| types != 0.0);
        let has_positions = config.flag("position_biased_input")?.unwrap_or(true);
        let tensors = Tensors {
            positions: TENSORS.positions.filter(|_| has_positions),
            types: TENSORS.types.filter(|_| has_types),
            ..TENSORS
        };
        let encoder = EncoderConfig::read(config, kind, &FIELDS, tensors)?;
        let size = encoder.hidden_size / encoder.heads;
        if config.size_or("attention_head_size", size, MAX_WIDTH)? != size {
            return Err(config.unsupported(
                "attention_head_size",
                &format!("is not {size}, `hidden_size` divided by `num_attention_heads`"),
            ));
        }
        Ok(EncoderConfig {
            embedding_size: config.size_or("embedding_size", encoder.hidden_size, MAX_WIDTH)?,
            form: LayerForm::PostNormDisentangled(disentangled(config, encoder.max_positions)?),
            ..encoder
        })
    },
    head: |config, encoder, labels| {
        let width = config.size_or("pooler_hidden_size", encoder.hidden_size, MAX_WIDTH)?;
        if width != encoder.hidden_size {
            return Err(config.unsupported(
                "pooler_hidden_size",
                &format!(
                    "is {width}; it must be `hidden_size` {}",
                    encoder.hidden_size
                ),
            ));
        }
        let name = config.text("pooler_hidden_act")?.unwrap_or("gelu");
        let activation = HeadAct::from_name(name).ok_or_else(|| {
            config.unsupported(
                "pooler_hidden_act",
                &format!("is `{name}`, which is not supported"),
            )
        })?;
        Ok(Head::on_first_token([
            Dense::new("pooler.dense", width).then(activation),
            Dense::new("classifier", labels),
        ]))
    },
};

fn disentangled(config: &Object, max_positions: usize) -> Result<Disentangled, ModelError> {
    if config.flag("relative_attention")? != Some(true) {
        return Err(config.unsupported(
            "relative_attention",
            "is not true; DeBERTa without relative positions is not supported",
        ));
    }
    // Below 1 is unset.
    let set = |field: &str| -> Result<Option<usize>, ModelError> {
        match config.number(field)? {
            Some(number) if number >= 1.0 => config.size(field, MAX_POSITIONS).map(Some),
            _ => Ok(None),
        }
    };
    let farthest = set("max_relative_positions")?.unwrap_or(max_positions);
    let shared_by_distance = set("position_buckets")?;
    if let Some(buckets) = shared_by_distance
        && (buckets < 2 || farthest <= buckets / 2 + 1)
    {
        return Err(config.invalid(
            "position_buckets",
            &format!("is {buckets}, which `max_relative_positions` {farthest} does not fit"),
        ));
    }
    let [position_keys, position_queries] = terms(config)?;
    // Names between bars; the reference ignores those it does not know, also in `pos_att_type`.
    let norm = config
        .text("norm_rel_ebd")?
        .unwrap_or("none")
        .to_lowercase();
    let is_normed = norm.split('|').any(|name| name.trim() == "layer_norm");
    let norm = is_normed.then_some("encoder.LayerNorm");
    let (key, query) = match config.flag("share_att_key")? {
        Some(true) => (TENSORS.key, TENSORS.query),
        _ => (
            "attention.self.pos_key_proj",
            "attention.self.pos_query_proj",
        ),
    };
    let span = shared_by_distance.unwrap_or(farthest);
    let mut relative = Disentangled {
        table: "encoder.rel_embeddings",
        buckets: 2 * span,
        norm,
        shared: shared_by_distance.map(|buckets| (buckets, farthest)),
        rows: Vec::new(),
        position_keys,
        position_queries,
        terms: 1 + usize::from(position_keys) + usize::from(position_queries),
        key,
        query,
    };
    relative.extend_positions(max_positions);
    Ok(relative)
}

/// Whether scores have the terms content to position and position to content: a list, or names between bars.
fn terms(config: &Object) -> Result<[bool; 2], ModelError> {
    let field = "pos_att_type";
    let names: Vec<String> = match config.value(field) {
        None => Vec::new(),
        Some(Value::String(names)) => {
            let names = names.to_lowercase();
            names
                .split('|')
                .map(|name| name.trim().to_owned())
                .collect()
        }
        Some(_) => {
            let names = config.list(field)?.into_iter().flatten();
            names
                .map(|name| name.as_str().unwrap_or_default().to_owned())
                .collect()
        }
    };
    let has = |term| names.iter().any(|name| name == term);
    Ok([has("c2p"), has("p2c")])
}

impl Disentangled {
    /// Finds the rows for sequences of up to `positions` tokens.
    pub(super) fn extend_positions(&mut self, positions: usize) {
        let (reach, span) = (positions as i64 - 1, self.buckets as i64 / 2);
        let row = |distance| {
            let bucket = match self.shared {
                Some((buckets, farthest)) => log_bucket(distance, buckets, farthest),
                None => distance,
            };
            (bucket + span).clamp(0, 2 * span - 1) as usize
        };
        self.rows = (-reach..=reach).map(row).collect();
    }
}

/// The bucket of a distance: exact for near tokens, logarithmic for distant ones.
fn log_bucket(distance: i64, buckets: usize, farthest: usize) -> i64 {
    let exact = buckets as i64 / 2;
    let away = distance.abs();
    if away <= exact {
        return distance;
    }
    // In f32, as torch computes it.
    let exact = exact as f32;
    let span = ((farthest as f64 - 1.0) / f64::from(exact)) as f32;
    let shared = ((away as f32 / exact).ln() / span.ln() * (exact - 1.0)).ceil() + exact;
    distance.signum() * shared as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of `make_log_bucket_position` of transformers 5.23.
    #[test]
    fn distances_share_buckets_as_in_the_reference() {
        // First distance of each bucket from 16 on, beyond which they are shared; up to 200.
        let starts = [
            16, 17, 19, 22, 25, 28, 32, 37, 43, 49, 56, 64, 74, 84, 97, 111, 128, 146, 168, 193,
        ];
        for away in 0..=200 {
            let bucket = match away {
                0..16 => away,
                _ => 15 + starts.iter().filter(|&&start| start <= away).count() as i64,
            };
            assert_eq!(log_bucket(away, 32, 128), bucket, "{away}");
            assert_eq!(log_bucket(-away, 32, 128), -bucket, "{away}");
        }
        let published = [
            (128, 128),
            (129, 129),
            (200, 169),
            (300, 207),
            (400, 233),
            (510, 255),
            (511, 255),
            (512, 256),
            (600, 270),
        ];
        for (away, bucket) in published {
            assert_eq!(log_bucket(away, 256, 512), bucket, "{away}");
            assert_eq!(log_bucket(-away, 256, 512), -bucket, "{away}");
        }
    }
}
