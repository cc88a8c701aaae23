//! `Qwen3ForCausalLM` and `Qwen3ForSequenceClassification`: norms of queries and keys.

use super::decoder::{Family, LLAMA, Window, head, read};
use super::{Architecture, Kind};

const FAMILY: Family = Family {
    head_dim: Some(128),
    kv_heads: Some(32),
    head_norms: true,
    reads_mlp_bias: false,
    window: Window::Declared,
    ..LLAMA
};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen3",
    is_causal: true,
    kinds: &[Kind {
        model_type: "qwen3",
        class: "Qwen3ForSequenceClassification",
        tokenizer: "Qwen2Tokenizer",
        pad_token_id: 0,
    }],
    encoder: |config, _| read(config, &FAMILY),
    head,
};
