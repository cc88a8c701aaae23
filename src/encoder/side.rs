//! Tokenising one text of a pair.

use std::cell::Cell;

use tokenizers::normalizers::{BertNormalizer, Lowercase, Sequence};
use tokenizers::{
    Model as _, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizer as _,
    PreTokenizerWrapper, Tokenizer, TruncationDirection,
};

use super::EncodeError;
use crate::model::{ModelError, TokenizerClass, TokenizerConfig};

/// The tokens of one text, without special ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Side {
    /// Its ids; no more than a pair holds, from the end of the text that is kept.
    pub ids: Vec<u32>,
    /// How many ids the text has, or at least has when `all` is false.
    pub length: usize,
    /// Whether `length` counts the whole text.
    pub all: bool,
}

/// How much of a text is worth tokenising.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it, because its exact length matters.
    All,
    /// Up to the word that fills a pair; the length is then a lower bound.
    Enough,
}

/// A tokenizer and how much of its output can matter.
#[derive(Debug)]
pub(super) struct SideTokenizer {
    tokenizer: Tokenizer,
    max_length: usize,
    direction: TruncationDirection,
}

impl SideTokenizer {
    pub fn new(
        tokenizer_json: &[u8],
        max_length: usize,
        config: &TokenizerConfig,
    ) -> Result<Self, ModelError> {
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
            tokenizer,
            max_length,
            direction,
        })
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The steps of [`Tokenizer::encode`] up to its post-processor, without offsets.
    pub fn tokenize(&self, text: &str, extent: Extent) -> Result<Side, EncodeError> {
        self.try_tokenize(text, extent)
            .map_err(|error| EncodeError::Tokenizer(error.to_string()))
    }

    fn try_tokenize(&self, text: &str, extent: Extent) -> tokenizers::Result<Side> {
        let tokenizer = &self.tokenizer;
        let mut words = tokenizer
            .get_added_vocabulary()
            .extract_and_normalize(tokenizer.get_normalizer(), text);
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut words)?;
        }
        let all = Cell::new(0);
        words.normalize(|_| {
            all.set(all.get() + 1);
            Ok(())
        })?;
        let limit = match extent {
            Extent::All => usize::MAX,
            Extent::Enough => self.max_length,
        };
        let read = Cell::new(0);
        let model = tokenizer.get_model();
        words.tokenize_with_limit(
            |word| {
                read.set(read.get() + 1);
                model.tokenize(word.get())
            },
            limit,
            self.direction,
        )?;
        let ids: Vec<u32> = words
            .get_splits(OffsetReferential::Normalized, OffsetType::None)
            .into_iter()
            .flat_map(|(_, _, tokens)| tokens.iter().flatten().map(|token| token.id))
            .collect();
        Ok(Side {
            ids: self.keep(&ids, ids.len().min(self.max_length)).to_vec(),
            length: ids.len(),
            all: read.get() == all.get(),
        })
    }

    /// The `length` ids that stay of a text that is cut.
    pub fn keep<'a>(&self, ids: &'a [u32], length: usize) -> &'a [u32] {
        match self.direction {
            TruncationDirection::Right => &ids[..length],
            TruncationDirection::Left => &ids[ids.len() - length..],
        }
    }
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
