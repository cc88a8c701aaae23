//! Tokenizes one text of a pair.

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::panic::catch_unwind;

use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{BertNormalizer, Lowercase, NFC, Replace, Sequence, Strip};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::{
    Model as _, NormalizerWrapper, OffsetReferential, OffsetType, Offsets, PreTokenizedString,
    PreTokenizer as _, PreTokenizerWrapper, SplitDelimiterBehavior, Token, Tokenizer,
    TruncationDirection,
};

use super::EncodeError;
use super::cut::Cuts;
use super::decoder;
use super::pieces::Pieces;
use super::shorten::WordShortener;
use super::vocabulary::{self, unusable};
use crate::{ModelError, TokenizerClass, TokenizerConfig};

/// The tokens of one text, without special tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TextTokens {
    /// Token ids, up to the limit, from the end of the text that is kept.
    pub ids: Vec<u32>,
    /// Number of tokens of the text; a lower bound if `all` is false.
    pub length: usize,
    /// Whether the whole text was tokenized.
    pub all: bool,
}

impl TextTokens {
    /// Limits the text to `most` tokens.
    pub fn capped(mut self, most: Option<NonZeroUsize>, direction: TruncationDirection) -> Self {
        if let Some(most) = most.map(NonZeroUsize::get)
            && most <= self.length
        {
            // A lower bound that reaches the cap is exact.
            self.all = true;
            self.length = most;
            if most < self.ids.len() {
                self.ids = keep(&self.ids, most, direction).to_vec();
            }
        }
        self
    }
}

/// The `length` ids that truncation keeps.
pub(crate) fn keep(ids: &[u32], length: usize, direction: TruncationDirection) -> &[u32] {
    match direction {
        TruncationDirection::Right => &ids[..length],
        TruncationDirection::Left => &ids[ids.len() - length..],
    }
}

/// Bytes of a prefix to try first, per token to keep; most languages need fewer.
const BYTES_PER_TOKEN: usize = 8;
/// Bytes of text that a token stands for, about.
pub(crate) const BYTES_PER_ID: usize = 4;
/// Growth factor of the prefix between attempts.
const GROWTH: usize = 4;
/// Maximum lookahead of a pre-tokenizer, in characters.
const LOOKAHEAD: usize = 2;

/// A tokenizer and its default truncation direction.
#[derive(Debug)]
pub(crate) struct TextTokenizer {
    tokenizer: Tokenizer,
    direction: TruncationDirection,
    /// Finds safe cuts; `None` if texts must be tokenized as a whole.
    cuts: Option<Cuts>,
    shortener: Option<WordShortener>,
    pieces: Option<Pieces>,
}

impl TextTokenizer {
    pub fn new(tokenizer_json: &[u8], config: &TokenizerConfig) -> Result<Self, ModelError> {
        vocabulary::check(tokenizer_json)?;
        // The library panics on some damaged files, such as one with an invalid character map.
        let mut tokenizer = catch_unwind(|| Tokenizer::from_bytes(tokenizer_json))
            .map_err(|_| unusable("`tokenizer.json` is damaged"))?
            .map_err(|error| unusable("`tokenizer.json` is invalid").caused_by(error))?;
        let direction = match (config.truncate_start, tokenizer.get_truncation()) {
            (Some(true), _) => TruncationDirection::Left,
            (Some(false), _) | (None, None) => TruncationDirection::Right,
            (None, Some(saved)) => saved.direction,
        };
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| unusable("`tokenizer.json` cannot be used").caused_by(error))?;
        if let TokenizerClass::Decoder { form, added } = &config.class {
            tokenizer = decoder::rebuild(tokenizer, form, added)?;
        }
        tokenizer.set_encode_special_tokens(config.split_special_tokens);
        apply_overrides(&mut tokenizer, config)
            .map_err(|error| unusable("`tokenizer.json` cannot be used").caused_by(error))?;
        Ok(Self {
            cuts: Cuts::of(&tokenizer),
            shortener: WordShortener::of(&tokenizer),
            pieces: Pieces::of(tokenizer.get_model()),
            tokenizer,
            direction,
        })
    }

    pub fn inner(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Rejects a tokenizer with ids that have no embedding.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn check_vocabulary(&self, vocab_size: usize) -> Result<(), ModelError> {
        // Not their number: ids may have gaps.
        let ids = self.tokenizer.get_vocab(true).into_values();
        let tokens = ids.max().map_or(0, |id| id as usize + 1);
        if tokens <= vocab_size {
            return Ok(());
        }
        Err(ModelError::new(
            format!(
                "`tokenizer.json` has {tokens} tokens, but `vocab_size` in `config.json` is {vocab_size}"
            ),
            "use the tokenizer the model was trained with",
        ))
    }

    /// The default truncation direction.
    pub fn direction(&self) -> TruncationDirection {
        self.direction
    }

    /// Approximate bytes of a text of `length` bytes that are read for `limit` tokens.
    pub fn bytes_read(&self, length: usize, limit: usize, direction: TruncationDirection) -> usize {
        if self.cuts.is_some() && direction == TruncationDirection::Right {
            length.min(limit.saturating_mul(BYTES_PER_TOKEN))
        } else {
            length
        }
    }

    /// Tokenizes a text up to the word that reaches `limit` tokens, from the end that is kept.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] if the tokenizer fails.
    pub fn tokenize(
        &self,
        text: &str,
        limit: usize,
        direction: TruncationDirection,
    ) -> Result<TextTokens, EncodeError> {
        if direction == TruncationDirection::Right
            && let Some(tokens) = self.tokenize_start(text, limit)?
        {
            return Ok(tokens);
        }
        self.run(&self.shorten(text), limit, direction)
    }

    /// The number of tokens of the whole text.
    ///
    /// # Errors
    /// Same as [`TextTokenizer::tokenize`].
    pub fn count(&self, text: &str) -> Result<usize, EncodeError> {
        self.run(&self.shorten(text), usize::MAX, self.direction)
            .map(|tokens| tokens.length)
    }

    /// All ids of a text.
    ///
    /// # Errors
    /// Same as [`TextTokenizer::tokenize`].
    pub fn all(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        self.run(text, usize::MAX, TruncationDirection::Right)
            .map(|tokens| tokens.ids)
    }

    /// The byte ranges of a text's tokens; they may begin or end within a character.
    ///
    /// # Errors
    /// Same as [`TextTokenizer::tokenize`].
    pub fn spans(&self, text: &str) -> Result<Vec<Offsets>, EncodeError> {
        let tokens = self.tokenizer.encode(text, false);
        let tokens = tokens.map_err(|error| EncodeError::Tokenizer(error.to_string()))?;
        Ok(tokens.get_offsets().to_vec())
    }

    /// A text with the same tokens that may be shorter.
    fn shorten<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let Some(shortener) = &self.shortener else {
            return Cow::Borrowed(text);
        };
        let mut short = String::new();
        shortener.extend(text, 0, &mut short, usize::MAX);
        Cow::Owned(short)
    }

    /// Tokenizes only a prefix of a long text, if that decides `limit` tokens.
    pub(super) fn tokenize_start(
        &self,
        text: &str,
        limit: usize,
    ) -> Result<Option<TextTokens>, EncodeError> {
        let Some(cuts) = &self.cuts else {
            return Ok(None);
        };
        let mut read = 0;
        let mut short = String::new();
        let mut tried = 0;
        // Never 0, which does not grow.
        let mut target = limit.max(1).saturating_mul(BYTES_PER_TOKEN);
        while target < text.len() {
            let start = match &self.shortener {
                Some(shortener) => {
                    // One more character, because a cut is between two.
                    read = shortener.extend(text, read, &mut short, target.saturating_add(4));
                    if read == text.len() {
                        return self
                            .run(&short, limit, TruncationDirection::Right)
                            .map(Some);
                    }
                    short.as_str()
                }
                None => text,
            };
            if let Some(cut) = cuts.last(start, target, tried) {
                tried = cut;
                if let Some(tokens) = self.first_ids(&start[..cut], limit)? {
                    return Ok(Some(tokens));
                }
            }
            target = target.saturating_mul(GROWTH);
        }
        Ok(None)
    }

    /// The first `limit` ids of every longer text with the prefix `start`, which ends at a safe cut. `None` if
    /// `start` does not decide them.
    fn first_ids(&self, start: &str, limit: usize) -> Result<Option<TextTokens>, EncodeError> {
        let ids = self
            .try_first_ids(start, limit)
            .map_err(|error| EncodeError::Tokenizer(error.to_string()))?;
        let tokens = |ids: Vec<u32>| TextTokens {
            length: ids.len(),
            ids: ids[..limit].to_vec(),
            all: false,
        };
        Ok((ids.len() >= limit).then(|| tokens(ids)))
    }

    fn try_first_ids(&self, start: &str, limit: usize) -> tokenizers::Result<Vec<u32>> {
        let words = self.words(start)?;
        let words = splits(&words);
        let model = self.tokenizer.get_model();
        let Some((&(last, _, added), before)) = words.split_last() else {
            return Ok(Vec::new());
        };
        // The last word may continue after the cut, and a short one may be joined to the previous word.
        let whole = added.is_none() && last.chars().nth(LOOKAHEAD).is_some();
        let before = if whole {
            before
        } else {
            &before[..before.len().saturating_sub(1)]
        };
        let mut ids = Vec::new();
        for (word, _, added) in before {
            match added {
                Some(tokens) => ids.extend(tokens.iter().map(|token| token.id)),
                None => ids.extend(model.tokenize(word)?.iter().map(|token| token.id)),
            }
            if ids.len() >= limit {
                return Ok(ids);
            }
        }
        if whole
            && let Some(pieces) = &self.pieces
            && pieces.may_decide(last.len(), limit)
        {
            ids.extend(pieces.certain(model, last)?);
        }
        Ok(ids)
    }

    /// The words of a text: normalization and pre-tokenization of [`Tokenizer::encode`].
    fn words(&self, text: &str) -> tokenizers::Result<PreTokenizedString> {
        let tokenizer = &self.tokenizer;
        let mut words = tokenizer
            .get_added_vocabulary()
            .extract_and_normalize(tokenizer.get_normalizer(), text);
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut words)?;
        }
        Ok(words)
    }

    fn run(
        &self,
        text: &str,
        limit: usize,
        direction: TruncationDirection,
    ) -> Result<TextTokens, EncodeError> {
        self.try_run(text, limit, direction)
            .map_err(|error| EncodeError::Tokenizer(error.to_string()))
    }

    /// [`Tokenizer::encode`] without post-processing and offsets, up to the word that reaches `limit` tokens.
    fn try_run(
        &self,
        text: &str,
        limit: usize,
        direction: TruncationDirection,
    ) -> tokenizers::Result<TextTokens> {
        let mut words = self.words(text)?;
        let all = splits(&words).len();
        let model = self.tokenizer.get_model();
        words.tokenize_with_limit(|word| model.tokenize(word.get()), limit, direction)?;
        let words = splits(&words);
        let ids: Vec<u32> = words
            .iter()
            .flat_map(|(_, _, tokens)| tokens.iter().flatten().map(|token| token.id))
            .collect();
        Ok(TextTokens {
            ids: keep(&ids, ids.len().min(limit), direction).to_vec(),
            length: ids.len(),
            all: words.len() == all,
        })
    }
}

/// The words of a text, with their tokens if they have any.
fn splits(words: &PreTokenizedString) -> Vec<(&str, Offsets, &Option<Vec<Token>>)> {
    words.get_splits(OffsetReferential::Normalized, OffsetType::None)
}

/// Applies the settings with which transformers overrides `tokenizer.json`.
fn apply_overrides(tokenizer: &mut Tokenizer, config: &TokenizerConfig) -> tokenizers::Result<()> {
    match config.class {
        TokenizerClass::AsSaved | TokenizerClass::Decoder { .. } => {}
        TokenizerClass::Bert {
            lowercase,
            strip_accents,
            chinese_chars,
        } => {
            if let Some(NormalizerWrapper::BertNormalizer(saved)) = tokenizer.get_normalizer() {
                let normalizer =
                    BertNormalizer::new(saved.clean_text, chinese_chars, strip_accents, lowercase);
                tokenizer.with_normalizer(Some(normalizer))?;
            }
        }
        TokenizerClass::Roberta { add_prefix_space } => {
            if let Some(PreTokenizerWrapper::ByteLevel(saved)) = tokenizer.get_pre_tokenizer() {
                let pre_tokenizer = saved.add_prefix_space(add_prefix_space);
                tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
            }
        }
        TokenizerClass::DebertaV2 {
            lowercase,
            split_by_punct,
            add_prefix_space,
        } => {
            let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
            if lowercase {
                normalizers.push(Lowercase.into());
            }
            let whitespace = ReplacePattern::Regex(r"\s{2,}|[\n\r\t]".into());
            normalizers.push(Replace::new(whitespace, " ")?.into());
            normalizers.push(NFC.into());
            normalizers.push(Strip::new(false, true).into());
            tokenizer.with_normalizer(Some(Sequence::new(normalizers)))?;

            let mut pre_tokenizers: Vec<PreTokenizerWrapper> = Vec::new();
            if split_by_punct {
                pre_tokenizers.push(Punctuation::new(SplitDelimiterBehavior::Isolated).into());
            }
            let prepend = match add_prefix_space {
                true => PrependScheme::Always,
                false => PrependScheme::First,
            };
            pre_tokenizers.push(Metaspace::new('▁', prepend, true).into());
            tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(pre_tokenizers)));
        }
    }
    if config.lowercase {
        lowercase_first(tokenizer)?;
    }
    Ok(())
}

/// Prepends a lower-casing step, unless there is one.
fn lowercase_first(tokenizer: &mut Tokenizer) -> tokenizers::Result<()> {
    let saved: Vec<NormalizerWrapper> = match tokenizer.get_normalizer() {
        None => Vec::new(),
        Some(NormalizerWrapper::Sequence(sequence)) => sequence.as_ref().to_vec(),
        Some(other) => vec![other.clone()],
    };
    if saved
        .iter()
        .any(|step| matches!(step, NormalizerWrapper::Lowercase(_)))
    {
        return Ok(());
    }
    let mut steps = vec![NormalizerWrapper::from(Lowercase)];
    steps.extend(saved);
    tokenizer.with_normalizer(Some(Sequence::new(steps)))?;
    Ok(())
}
