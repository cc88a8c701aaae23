//! Truncation options.

use std::num::NonZeroUsize;

use strum::{EnumString, IntoStaticStr, VariantNames};

/// Which text to truncate if a pair exceeds the maximum length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum TruncationStrategy {
    /// The longer text first, as sentence-transformers does.
    #[default]
    LongestFirst,
    /// Only the document; a query that leaves no room is rejected.
    DocumentOnly,
}

/// The end of a text that is truncated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TruncationSide {
    /// The start; the last tokens are kept.
    Left,
    /// The end; the first tokens are kept.
    Right,
}

/// Truncation options of a request. Unset options default to those of the model.
///
/// Limits set by the caller do not count as truncation: a document of 900 tokens with a limit of 100 is
/// treated as a document of 100 tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TruncationOptions {
    /// Which text to truncate; defaults to the server's strategy.
    pub strategy: Option<TruncationStrategy>,
    /// Which end to truncate; defaults to the tokenizer's.
    pub side: Option<TruncationSide>,
    /// Maximum tokens of a pair, special tokens included.
    pub max_tokens: Option<NonZeroUsize>,
    /// Maximum tokens of the query.
    pub max_query_tokens: Option<NonZeroUsize>,
    /// Maximum tokens of the document.
    pub max_document_tokens: Option<NonZeroUsize>,
    /// Maximum chunks of a long document, each scored with the query; the best score counts.
    pub max_chunks: Option<NonZeroUsize>,
}

impl TruncationOptions {
    /// Maximum sequences per pair.
    pub fn chunks(&self) -> usize {
        self.max_chunks.map_or(1, NonZeroUsize::get)
    }
}
