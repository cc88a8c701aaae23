//! The embedded model, so that the server runs without a download.

/// Its id in responses and logs.
pub(super) const ID: &str = "minilm-l6-rank";

macro_rules! files {
    ($($name:literal)+) => {
        &[$((
            $name,
            include_bytes!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../models/minilm-l6-rank/",
                $name
            ))
            .as_slice(),
        )),+]
    };
}

/// Its files, as pairs of name and content.
pub(super) static FILES: &[(&str, &[u8])] = files![
    "config.json"
    "config_sentence_transformers.json"
    "modules.json"
    "sentence_bert_config.json"
    "tokenizer.json"
    "tokenizer_config.json"
    "model.safetensors"
];
