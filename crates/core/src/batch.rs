//! Tokenized pairs ([`Encoding`]) and packed batches of them ([`Batch`]).

/// Identifies the model input of a pair: equal keys have equal scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PairKey(pub u128);

/// A tokenized pair, truncated, with special tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Token types, one per id: 0 for the first text, 1 for the second if the tokenizer distinguishes them.
    pub type_ids: Vec<u8>,
}

impl Encoding {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// Concatenated sequences without padding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    ids: Vec<u32>,
    type_ids: Vec<u8>,
    lengths: Vec<usize>,
}

impl Batch {
    /// Concatenates `encodings` in order.
    ///
    /// # Panics
    /// If an encoding is empty, or the numbers of ids and type ids differ.
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

    /// Splits the batch in two with about the same number of tokens, in order. The first has at least one
    /// sequence, and so does the second if there are two.
    pub fn halves(&self) -> (Self, Self) {
        let (mut tokens, mut count) = (0, 0);
        for &length in &self.lengths {
            let closer = 2 * tokens + length <= self.tokens();
            if count > 0 && (!closer || count + 1 == self.sequences()) {
                break;
            }
            tokens += length;
            count += 1;
        }
        let part = |ids: &[u32], type_ids: &[u8], lengths: &[usize]| Self {
            ids: ids.to_vec(),
            type_ids: type_ids.to_vec(),
            lengths: lengths.to_vec(),
        };
        let (ids, more_ids) = self.ids.split_at(tokens);
        let (types, more_types) = self.type_ids.split_at(tokens);
        let (lengths, more_lengths) = self.lengths.split_at(count);
        (
            part(ids, types, lengths),
            part(more_ids, more_types, more_lengths),
        )
    }

    /// Token ids of all sequences, `[tokens]`.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Token types of all sequences, `[tokens]`.
    pub fn type_ids(&self) -> &[u8] {
        &self.type_ids
    }

    /// Tokens of each sequence, `[sequences]`; all positive.
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

    /// Tokens of the longest sequence; 0 if there are none.
    pub fn longest(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn halves_are_balanced_and_cover_the_batch(lengths in prop::collection::vec(1_usize..50, 2..20)) {
            let encoding = |(i, &length): (usize, &usize)| Encoding {
                ids: vec![i as u32; length],
                type_ids: vec![(i % 2) as u8; length],
            };
            let encodings: Vec<Encoding> = lengths.iter().enumerate().map(encoding).collect();
            let (first, second) = Batch::pack(&encodings).halves();
            prop_assert!(first.sequences() > 0 && second.sequences() > 0);
            let (a, b) = encodings.split_at(first.sequences());
            prop_assert_eq!(first.clone(), Batch::pack(a));
            prop_assert_eq!(second.clone(), Batch::pack(b));
            let longest = lengths.iter().max().unwrap();
            prop_assert!(first.tokens().abs_diff(second.tokens()) <= *longest);
        }
    }
}
