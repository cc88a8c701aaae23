//! `Qwen2ForCausalLM` and `Qwen2ForSequenceClassification`: biases of queries, keys and values.

use super::decoder::{AttentionBias, Family, LLAMA, Window, head, read};
use super::{Architecture, Kind};

const FAMILY: Family = Family {
    kv_heads: Some(32),
    attention_bias: AttentionBias::Inputs,
    reads_mlp_bias: false,
    window: Window::Declared,
    ..LLAMA
};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen2",
    is_causal: true,
    kinds: &[Kind {
        model_type: "qwen2",
        class: "Qwen2ForSequenceClassification",
        tokenizer: "Qwen2Tokenizer",
        pad_token_id: 0,
    }],
    encoder: |config, _| read(config, &FAMILY),
    head,
};
