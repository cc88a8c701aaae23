//! `GemmaForCausalLM` and `GemmaForSequenceClassification`: scaled embeddings, and norms that multiply by 1 + weight.

use super::decoder::{Family, LLAMA, head, read};
use super::{Architecture, Kind};

const FAMILY: Family = Family {
    head_dim: Some(256),
    kv_heads: Some(16),
    // As in transformers, `hidden_activation` is ignored.
    hidden_act: "gelu_pytorch_tanh",
    tied: true,
    padding: Some(0),
    reads_mlp_bias: false,
    is_gemma: true,
    ..LLAMA
};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma",
    is_causal: true,
    kinds: &[Kind {
        model_type: "gemma",
        class: "GemmaForSequenceClassification",
        tokenizer: "GemmaTokenizer",
        pad_token_id: 0,
    }],
    encoder: |config, _| read(config, &FAMILY),
    head,
};
