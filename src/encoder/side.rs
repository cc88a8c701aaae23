//! Tokenising one text of a pair.

use tokenizers::normalizers::{BertNormalizer, Lowercase, Sequence};
use tokenizers::{
    Model as _, NormalizerWrapper, OffsetReferential, OffsetType, Offsets, PreTokenizedString,
    PreTokenizer as _, PreTokenizerWrapper, Token, Tokenizer, TruncationDirection,
};

use super::EncodeError;
use super::prefix::{allows_cuts, safe_cut};
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

/// Bytes of a text that are tried first for each token that is wanted; most languages need fewer.
const BYTES_A_TOKEN: usize = 8;
/// How much longer the next try is.
const GROWTH: usize = 4;

/// A tokenizer and how much of its output can matter.
#[derive(Debug)]
pub(super) struct SideTokenizer {
    tokenizer: Tokenizer,
    max_length: usize,
    direction: TruncationDirection,
    /// Whether the first tokens of a text can be told from its start.
    allows_cuts: bool,
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
            allows_cuts: direction == TruncationDirection::Right && allows_cuts(&tokenizer),
            tokenizer,
            max_length,
            direction,
        })
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Tokenises a text up to the word that fills a pair.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] when the tokenizer cannot represent the text.
    pub fn tokenize(&self, text: &str) -> Result<Side, EncodeError> {
        if self.allows_cuts
            && let Some(side) = self.tokenize_start(text)?
        {
            return Ok(side);
        }
        self.run(text, self.max_length)
    }

    /// The number of tokens of the whole text.
    ///
    /// # Errors
    /// As [`SideTokenizer::tokenize`].
    pub fn count(&self, text: &str) -> Result<usize, EncodeError> {
        self.run(text, usize::MAX).map(|side| side.length)
    }

    /// Tokenises only the start of a long text, where that is enough to fill a pair.
    pub(super) fn tokenize_start(&self, text: &str) -> Result<Option<Side>, EncodeError> {
        let mut tried = 0;
        let mut target = self.max_length.saturating_mul(BYTES_A_TOKEN);
        while target < text.len() {
            if let Some(cut) = safe_cut(text, target).filter(|&cut| cut > tried) {
                tried = cut;
                let side = self.run(&text[..cut], self.max_length)?;
                // Where all words of the start were needed, the last one may be half a word.
                if !side.all {
                    return Ok(Some(side));
                }
            }
            target = target.saturating_mul(GROWTH);
        }
        Ok(None)
    }

    fn run(&self, text: &str, limit: usize) -> Result<Side, EncodeError> {
        self.try_run(text, limit)
            .map_err(|error| EncodeError::Tokenizer(error.to_string()))
    }

    /// The steps of [`Tokenizer::encode`] up to its post-processor, without offsets, and no
    /// further than the word that reaches `limit` tokens.
    fn try_run(&self, text: &str, limit: usize) -> tokenizers::Result<Side> {
        let tokenizer = &self.tokenizer;
        let mut words = tokenizer
            .get_added_vocabulary()
            .extract_and_normalize(tokenizer.get_normalizer(), text);
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut words)?;
        }
        let all = splits(&words).len();
        let model = tokenizer.get_model();
        words.tokenize_with_limit(|word| model.tokenize(word.get()), limit, self.direction)?;
        let words = splits(&words);
        let ids: Vec<u32> = words
            .iter()
            .flat_map(|(_, _, tokens)| tokens.iter().flatten().map(|token| token.id))
            .collect();
        Ok(Side {
            ids: self.keep(&ids, ids.len().min(self.max_length)).to_vec(),
            length: ids.len(),
            all: words.len() == all,
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
