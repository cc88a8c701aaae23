//! How a pair is brought to a length that the model reads.

use std::num::NonZeroUsize;

use strum::{EnumString, IntoStaticStr, VariantNames};

/// Which text is cut when a pair is longer than the model reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Strategy {
    /// The longer text first, as sentence-transformers does.
    #[default]
    LongestFirst,
    /// The document alone; a query that leaves it no room is refused.
    DocumentOnly,
}

/// The end of a text that is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The start; what is read are the last tokens.
    Left,
    /// The end; what is read are the first tokens.
    Right,
}

/// How a caller wants long texts to be read. Everything left open is as the model was trained.
///
/// What a caller limits is not truncation: a document of 900 tokens of which 100 were asked for is
/// a document of 100 tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fit {
    /// Which text gives way; the server's choice without.
    pub strategy: Option<Strategy>,
    /// Which end is cut; the tokenizer's own choice without.
    pub side: Option<Side>,
    /// Most tokens of a pair, special ones included, where that is less than the model reads.
    pub max_tokens: Option<NonZeroUsize>,
    /// Most tokens of the query.
    pub max_query_tokens: Option<NonZeroUsize>,
    /// Most tokens of the document.
    pub max_document_tokens: Option<NonZeroUsize>,
    /// Parts a long document may be read in, each with the query; its score is that of its best
    /// part.
    pub max_chunks: Option<NonZeroUsize>,
}

impl Fit {
    /// Most sequences that one pair can become.
    pub fn chunks(&self) -> usize {
        self.max_chunks.map_or(1, NonZeroUsize::get)
    }
}
