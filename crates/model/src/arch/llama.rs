//! `LlamaForCausalLM` and `LlamaForSequenceClassification`: optional biases everywhere.

use super::decoder::{LLAMA, head, read};
use super::{Architecture, Kind};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "llama",
    is_causal: true,
    kinds: &[Kind {
        model_type: "llama",
        class: "LlamaForSequenceClassification",
        tokenizer: "LlamaTokenizer",
        pad_token_id: 0,
    }],
    encoder: |config, _| read(config, &LLAMA),
    head,
};
