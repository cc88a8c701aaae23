//! What a request cost, as most dialects tell it.

use serde::Serialize;
use utoipa::ToSchema;

/// Tokens that the model read.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl Usage {
    /// All tokens are read, none is written.
    pub fn new(tokens: usize) -> Self {
        Self {
            prompt_tokens: tokens,
            total_tokens: tokens,
        }
    }
}
