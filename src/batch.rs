//! Token ids on their way to the model: one [`Encoding`] a pair, many of them packed in a [`Batch`].

pub mod cost;
pub mod plan;

/// Names what a model reads of a pair: equal keys, equal scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PairKey(pub u128);

/// One tokenised pair, truncated and with its special tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Segment of each token, `ids.len()` long: 0 for the first text, 1 for the second where the
    /// tokenizer tells them apart.
    pub type_ids: Vec<u8>,
}

impl Encoding {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// Sequences laid end to end, with no padding between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    ids: Vec<u32>,
    type_ids: Vec<u8>,
    lengths: Vec<usize>,
}

impl Batch {
    /// Lays `encodings` end to end, in their order.
    ///
    /// # Panics
    /// When an encoding has no token or another number of type ids than of ids.
    pub fn pack<'a>(encodings: impl IntoIterator<Item = &'a Encoding>) -> Self {
        let mut batch = Self::default();
        for encoding in encodings {
            assert!(!encoding.is_empty(), "an encoding has at least one token");
            assert_eq!(encoding.ids.len(), encoding.type_ids.len());
            batch.ids.extend_from_slice(&encoding.ids);
            batch.type_ids.extend_from_slice(&encoding.type_ids);
            batch.lengths.push(encoding.len());
        }
        batch
    }

    /// Token ids of all sequences, `[tokens]`.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Segments of all tokens, `[tokens]`.
    pub fn type_ids(&self) -> &[u8] {
        &self.type_ids
    }

    /// Tokens of each sequence, `[sequences]`; none is 0.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.lengths.len()
    }

    /// Number of tokens in all sequences.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Tokens of the longest sequence; 0 when there is none.
    pub fn longest(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }
}
