//! Determines the first tokens of a word from its prefix.
//!
//! BPE and unigram models share a property: if the tokens of a word have a boundary at `m`, those before `m`
//! are the tokens of the first `m` bytes alone. No BPE merge crosses a final boundary, so the merges to its
//! left do not depend on what follows; and a best unigram path through `m` contains the best path to `m`. A
//! word with the prefix `start` either has a boundary at the end of `start`, or a token that spans the end
//! and begins with the last bytes of `start`. So the last boundary within `start` has few possible
//! positions, and the common prefix of the tokens up to each of them is certain.

use tokenizers::{Model, ModelWrapper};

/// Maximum candidates for the last boundary; with more, the word is undecided.
const MAX_BOUNDARIES: usize = 32;

/// The vocabulary of a BPE or unigram model.
#[derive(Debug)]
pub(super) struct Pieces {
    /// Sorted, so that tokens with a common prefix are adjacent.
    sorted: Vec<Box<str>>,
    /// Bytes of the longest token.
    longest: usize,
}

impl Pieces {
    /// `None` for models without the property above: those with random segmentation, or whose tokens depend
    /// on the end of a word.
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

    /// Whether a prefix of `length` bytes can decide the first `limit` tokens. Longer prefixes are not tried:
    /// the word probably has unknown characters, which form one long token.
    pub fn may_decide(&self, length: usize, limit: usize) -> bool {
        length <= 4 * self.longest.saturating_mul(limit.saturating_add(2))
    }

    /// The first ids of every word with the prefix `start`; at least one more follows.
    ///
    /// # Errors
    /// If the model fails.
    pub fn certain(&self, model: &ModelWrapper, start: &str) -> tokenizers::Result<Vec<u32>> {
        let ends = start
            .char_indices()
            .rev()
            .map(|(at, _)| at)
            .take_while(|at| start.len() - at < self.longest)
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
            // Following unknown characters would extend an unknown token at the end.
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

    /// Whether `start` is a proper prefix of a token.
    fn continues(&self, start: &str) -> bool {
        let at = self.sorted.partition_point(|piece| **piece <= *start);
        self.sorted
            .get(at)
            .is_some_and(|piece| piece.starts_with(start))
    }
}
