//! `MistralForCausalLM` and `MistralForSequenceClassification`: a sliding window in every layer, unless it is `null`.

use super::decoder::{AttentionBias, Family, LLAMA, Window, head, read};
use super::{Architecture, Kind};

const FAMILY: Family = Family {
    kv_heads: Some(8),
    attention_bias: AttentionBias::Never,
    reads_mlp_bias: false,
    window: Window::EveryLayer(4096),
    ..LLAMA
};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "mistral",
    is_causal: true,
    kinds: &[Kind {
        model_type: "mistral",
        class: "MistralForSequenceClassification",
        tokenizer: "TokenizersBackend",
        pad_token_id: 0,
    }],
    encoder: |config, _| read(config, &FAMILY),
    head,
};
