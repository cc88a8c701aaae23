//! What a request asks a model to judge by.

use std::sync::Arc;

/// The instruction of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Instruction {
    /// The model's, or the server's.
    #[default]
    Default,
    /// A prompt that the model's files name.
    Named(Arc<str>),
    /// The text itself; empty for none.
    Text(Arc<str>),
}

impl Instruction {
    /// From the fields of a request, of which the text wins.
    pub fn from_fields(text: Option<String>, name: Option<String>) -> Self {
        match (text, name) {
            (Some(text), _) => Self::Text(text.into()),
            (None, Some(name)) => Self::Named(name.into()),
            (None, None) => Self::Default,
        }
    }

    /// Length of the text, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Default | Self::Named(_) => 0,
        }
    }
}

/// What happens to an instruction that the model has no place for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InstructionPolicy {
    /// The request is rejected.
    #[default]
    Reject,
    /// It is ignored.
    Ignore,
}
