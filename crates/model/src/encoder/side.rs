//! Tokenising one text of a pair.

use std::num::NonZeroUsize;

use tokenizers::normalizers::{BertNormalizer, Lowercase, Sequence};
use tokenizers::{
    Model as _, NormalizerWrapper, OffsetReferential, OffsetType, Offsets, PreTokenizedString,
    PreTokenizer as _, PreTokenizerWrapper, Token, Tokenizer, TruncationDirection,
};

use super::EncodeError;
use super::prefix::{allows_cuts, safe_cut};
use crate::{ModelError, TokenizerClass, TokenizerConfig};

/// The tokens of one text, without special ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Side {
    /// Its ids; no more than were wanted, from the end of the text that is kept.
    pub ids: Vec<u32>,
    /// How many ids the text has, or at least has when `all` is false.
    pub length: usize,
    /// Whether `length` counts the whole text.
    pub all: bool,
}

impl Side {
    /// The text as if it had no more than `most` tokens.
    pub fn capped(mut self, most: Option<NonZeroUsize>, direction: TruncationDirection) -> Self {
        if let Some(most) = most.map(NonZeroUsize::get)
            && most <= self.length
        {
            // A lower bound that reaches the cap tells all there is to know.
            self.all = true;
            self.length = most;
            if most < self.ids.len() {
                self.ids = keep(&self.ids, most, direction).to_vec();
            }
        }
        self
    }
}

/// The `length` ids that stay of a text that is cut.
pub(super) fn keep(ids: &[u32], length: usize, direction: TruncationDirection) -> &[u32] {
    match direction {
        TruncationDirection::Right => &ids[..length],
        TruncationDirection::Left => &ids[ids.len() - length..],
    }
}

/// Bytes of a text that are tried first for each token that is wanted; most languages need fewer.
const BYTES_A_TOKEN: usize = 8;
/// How much longer the next try is.
const GROWTH: usize = 4;

/// A tokenizer, and how it cuts texts unless it is told otherwise.
#[derive(Debug)]
pub(super) struct SideTokenizer {
    tokenizer: Tokenizer,
    direction: TruncationDirection,
    /// Whether the first tokens of a text can be told from its start.
    allows_cuts: bool,
}

impl SideTokenizer {
    pub fn new(tokenizer_json: &[u8], config: &TokenizerConfig) -> Result<Self, ModelError> {
        let mut tokenizer = Tokenizer::from_bytes(tokenizer_json)
            .map_err(|error| unusable(format!("`tokenizer.json` cannot be read: {error}")))?;
        let direction = match (config.truncate_start, tokenizer.get_truncation()) {
            (Some(true), _) => TruncationDirection::Left,
            (Some(false), _) | (None, None) => TruncationDirection::Right,
            (None, Some(saved)) => saved.direction,
        };
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| unusable(error.to_string()))?;
        tokenizer.set_encode_special_tokens(config.split_special_tokens);
        overrule(&mut tokenizer, config)
            .map_err(|error| unusable(format!("`tokenizer.json` cannot be used: {error}")))?;
        Ok(Self {
            allows_cuts: allows_cuts(&tokenizer),
            tokenizer,
            direction,
        })
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Which end of a text is cut, unless a request says so.
    pub fn direction(&self) -> TruncationDirection {
        self.direction
    }

    /// Tokenises a text up to the word that reaches `limit` tokens, from the end that is kept.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] when the tokenizer cannot represent the text.
    pub fn tokenize(
        &self,
        text: &str,
        limit: usize,
        direction: TruncationDirection,
    ) -> Result<Side, EncodeError> {
        if self.allows_cuts
            && direction == TruncationDirection::Right
            && let Some(side) = self.tokenize_start(text, limit)?
        {
            return Ok(side);
        }
        self.run(text, limit, direction)
    }

    /// The number of tokens of the whole text.
    ///
    /// # Errors
    /// As [`SideTokenizer::tokenize`].
    pub fn count(&self, text: &str) -> Result<usize, EncodeError> {
        self.run(text, usize::MAX, self.direction)
            .map(|side| side.length)
    }

    /// Tokenises only the start of a long text, where that is enough for `limit` tokens.
    pub(super) fn tokenize_start(
        &self,
        text: &str,
        limit: usize,
    ) -> Result<Option<Side>, EncodeError> {
        let mut tried = 0;
        let mut target = limit.saturating_mul(BYTES_A_TOKEN);
        while target < text.len() {
            if let Some(cut) = safe_cut(text, target).filter(|&cut| cut > tried) {
                tried = cut;
                let side = self.run(&text[..cut], limit, TruncationDirection::Right)?;
                // Where all words of the start were needed, the last one may be half a word.
                if !side.all {
                    return Ok(Some(side));
                }
            }
            target = target.saturating_mul(GROWTH);
        }
        Ok(None)
    }

    fn run(
        &self,
        text: &str,
        limit: usize,
        direction: TruncationDirection,
    ) -> Result<Side, EncodeError> {
        self.try_run(text, limit, direction)
            .map_err(|error| EncodeError::Tokenizer(error.to_string()))
    }

    /// The steps of [`Tokenizer::encode`] up to its post-processor, without offsets, and no
    /// further than the word that reaches `limit` tokens.
    fn try_run(
        &self,
        text: &str,
        limit: usize,
        direction: TruncationDirection,
    ) -> tokenizers::Result<Side> {
        let tokenizer = &self.tokenizer;
        let mut words = tokenizer
            .get_added_vocabulary()
            .extract_and_normalize(tokenizer.get_normalizer(), text);
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut words)?;
        }
        let all = splits(&words).len();
        let model = tokenizer.get_model();
        words.tokenize_with_limit(|word| model.tokenize(word.get()), limit, direction)?;
        let words = splits(&words);
        let ids: Vec<u32> = words
            .iter()
            .flat_map(|(_, _, tokens)| tokens.iter().flatten().map(|token| token.id))
            .collect();
        Ok(Side {
            ids: keep(&ids, ids.len().min(limit), direction).to_vec(),
            length: ids.len(),
            all: words.len() == all,
        })
    }
}

/// The words of a text, with their tokens where they have some.
fn splits(words: &PreTokenizedString) -> Vec<(&str, Offsets, &Option<Vec<Token>>)> {
    words.get_splits(OffsetReferential::Normalized, OffsetType::None)
}

/// Applies the settings that transformers lets overrule `tokenizer.json`.
fn overrule(tokenizer: &mut Tokenizer, config: &TokenizerConfig) -> tokenizers::Result<()> {
    match config.class {
        TokenizerClass::AsSaved => {}
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
    }
    if config.lowercase {
        lowercase_first(tokenizer)?;
    }
    Ok(())
}

/// Puts a lower-casing step in front, unless there is one.
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

fn unusable(message: String) -> ModelError {
    ModelError::new(
        message,
        "save the tokenizer again with a current version of transformers",
    )
}
