//! The first tokens of a word of which only the start is known.
//!
//! Byte-pair merges and the best path of a unigram model share a property: if the tokens of a word have a
//! boundary at `m`, those before `m` are the tokens of the word's first `m` bytes alone. No merge crosses
//! a boundary that is there in the end, so the merges on its left are the same with and without what
//! follows; and a best path to the end through `m` contains the best path to `m`. A word that starts with
//! `start` has a boundary at the end of `start`, or a token lies across that end, which begins with the
//! last bytes of `start`. So there are few places where the last boundary within `start` can be, and
//! what the tokens up to each of them have in common is certain.

use tokenizers::{Model, ModelWrapper};

/// Possible last boundaries that are looked at before the word counts as undecided.
const MAX_BOUNDARIES: usize = 32;

/// The vocabulary of a model whose tokens are found from left to right.
#[derive(Debug)]
pub(super) struct Pieces {
    /// Sorted, so that those with a common start lie together.
    sorted: Vec<Box<str>>,
    /// Bytes of the longest.
    longest: usize,
}

impl Pieces {
    /// `None` for models without the property above: those that draw tokens at random, or whose tokens
    /// depend on the end of a word.
    pub fn of(model: &ModelWrapper) -> Option<Self> {
        let empty = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
        let decided = match model {
            ModelWrapper::BPE(bpe) => {
                let plain = !bpe.fuse_unk && !bpe.byte_fallback && !bpe.ignore_merges;
                let affixes = [&bpe.continuing_subword_prefix, &bpe.end_of_word_suffix];
                plain && bpe.dropout.is_none_or(|p| p == 0.0) && affixes.into_iter().all(empty)
            }
            ModelWrapper::Unigram(unigram) => {
                unigram.alpha.is_none_or(|alpha| alpha == 0.0) && !unigram.byte_fallback()
            }
            _ => false,
        };
        if !decided {
            return None;
        }
        let vocabulary = model.get_vocab().into_keys();
        let mut sorted: Vec<Box<str>> = vocabulary.map(String::into_boxed_str).collect();
        sorted.sort_unstable();
        let longest = sorted.iter().map(|piece| piece.len()).max().unwrap_or(0);
        Some(Self { sorted, longest })
    }

    /// Whether `length` bytes of a word are worth a look for its first `limit` tokens. Where so many did
    /// not decide them, characters that the model does not know make one long token, and more would not.
    pub fn may_decide(&self, length: usize, limit: usize) -> bool {
        length <= 4 * self.longest.saturating_mul(limit.saturating_add(2))
    }

    /// The ids that every word that starts with `start` begins with. At least one more follows.
    ///
    /// # Errors
    /// As the model.
    pub fn certain(&self, model: &ModelWrapper, start: &str) -> tokenizers::Result<Vec<u32>> {
        let earliest = start.len().saturating_sub(self.longest);
        let ends = start[..]
            .char_indices()
            .rev()
            .map(|(at, _)| at)
            .take_while(|&at| at > earliest)
            .filter(|&at| self.continues(&start[at..]));
        let ends: Vec<usize> = std::iter::once(start.len())
            .chain(ends)
            .take(MAX_BOUNDARIES + 1)
            .collect();
        if ends.len() > MAX_BOUNDARIES {
            return Ok(Vec::new());
        }
        let mut certain: Option<Vec<u32>> = None;
        for end in ends {
            let tokens = model.tokenize(&start[..end])?;
            // Unknown characters that follow are merged into an unknown token at the end.
            let ids = tokens[..tokens.len().saturating_sub(1)]
                .iter()
                .map(|token| token.id);
            certain = Some(match certain {
                None => ids.collect(),
                Some(before) => {
                    let same = before.iter().zip(ids).take_while(|(a, b)| **a == *b);
                    same.map(|(id, _)| *id).collect()
                }
            });
        }
        Ok(certain.unwrap_or_default())
    }

    /// Whether a piece begins with `start` and is longer.
    fn continues(&self, start: &str) -> bool {
        let at = self.sorted.partition_point(|piece| **piece <= *start);
        self.sorted
            .get(at)
            .is_some_and(|piece| piece.starts_with(start))
    }
}
