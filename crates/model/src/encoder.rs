//! From a pair of texts to the token ids that the model reads.
//!
//! The ids are those of the tokenizer's own pair encoding, truncated `longest_first`, but a query
//! is tokenised once for all its documents, and a pair is put together by copying ids.

mod fitted;
mod prefix;
mod side;
mod template;
mod tokens;
mod truncate;

use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

pub use fitted::Fitted;
pub use tokens::TextToken;
pub use truncate::longest_first;

use crate::{ExportedModel, Model, ModelError, TokenizerConfig};
use rerankd_core::Encoding;
use rerankd_core::{Fit, Pair};
use side::{Side, SideTokenizer};
use template::PairTemplate;

/// Why pairs were not encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The caller turned `cancelled`.
    #[error("the request was cancelled")]
    Cancelled,
    /// The tokenizer failed on a text. The text is for the log and holds nothing of the input.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    /// The query leaves the document no room, and must not be cut.
    #[error("the query has {tokens} tokens; the limit is {limit}")]
    QueryTooLong {
        /// Tokens of the query, or at least so many.
        tokens: usize,
        /// Most it may have.
        limit: usize,
    },
}

/// A query that was tokenised once, prompt included.
#[derive(Debug, Clone)]
pub struct QueryTokens {
    side: Side,
    /// The text, where `side` does not stand for all of it.
    text: Option<String>,
    /// The number of tokens of the text, once it was needed.
    length: OnceLock<usize>,
}

/// One pair, ready for a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPair {
    /// What the model reads; at most the maximum length.
    pub encoding: Encoding,
    /// Further parts of a document that is read in several, each with the query.
    pub further: Vec<Encoding>,
    /// Tokens before truncation, special ones included. Where one text alone exceeds the maximum
    /// length it is a lower bound, still above the maximum: the rest is not tokenised.
    pub full_length: usize,
    /// Tokens of all this that the model reads, those that every part repeats counted once.
    read_length: usize,
}

impl EncodedPair {
    /// Whether the pair was cut to fit.
    pub fn truncated(&self) -> bool {
        self.full_length > self.read_length
    }

    /// All that the model reads, part by part.
    pub fn encodings(self) -> impl Iterator<Item = Encoding> {
        std::iter::once(self.encoding).chain(self.further)
    }

    /// Number of parts.
    pub fn parts(&self) -> usize {
        1 + self.further.len()
    }

    /// Tokens of all parts.
    pub fn tokens(&self) -> usize {
        self.encoding.len() + self.further.iter().map(Encoding::len).sum::<usize>()
    }
}

/// Encodes pairs for one model; shared by all threads.
#[derive(Debug)]
pub struct PairEncoder {
    side: SideTokenizer,
    template: PairTemplate,
    max_length: usize,
    prompt: Option<String>,
    strategy: rerankd_core::Strategy,
}

impl PairEncoder {
    /// The encoder of `model`, with all that its configuration says about texts.
    ///
    /// # Errors
    /// [`ModelError`] when `tokenizer.json` cannot be used, or does not fit the model.
    pub fn for_model(model: &Model) -> Result<Self, ModelError> {
        let manifest = &model.manifest;
        let encoder = Self::with_config(
            &model.tokenizer,
            manifest.max_length,
            manifest.prompt.as_deref(),
            &manifest.tokenizer,
        )?;
        encoder.check_fit(
            manifest.encoder.vocab_size,
            manifest.encoder.type_vocab_size,
        )?;
        Ok(encoder)
    }

    /// The encoder of a model that comes as an ONNX file.
    ///
    /// # Errors
    /// As [`Self::for_model`].
    pub fn for_exported(model: &ExportedModel) -> Result<Self, ModelError> {
        let encoder = Self::with_config(
            &model.tokenizer,
            model.max_length,
            model.prompt.as_deref(),
            &model.tokenizer_config,
        )?;
        encoder.check_fit(model.vocab_size, model.type_vocab_size)?;
        Ok(encoder)
    }

    /// An encoder that takes `tokenizer.json` as it is, and cuts pairs to `max_length` tokens,
    /// special ones included.
    ///
    /// # Errors
    /// [`ModelError`] when the tokenizer cannot be used, or `max_length` has no room for a token
    /// beside the special ones.
    pub fn new(
        tokenizer_json: &[u8],
        max_length: usize,
        prompt: Option<&str>,
    ) -> Result<Self, ModelError> {
        Self::with_config(
            tokenizer_json,
            max_length,
            prompt,
            &TokenizerConfig::default(),
        )
    }

    fn with_config(
        tokenizer_json: &[u8],
        max_length: usize,
        prompt: Option<&str>,
        config: &TokenizerConfig,
    ) -> Result<Self, ModelError> {
        let side = SideTokenizer::new(tokenizer_json, config)?;
        let mut template = PairTemplate::of(side.tokenizer())?;
        if !config.uses_type_ids {
            template.forget_types();
        }
        let special = template.special_tokens();
        if max_length <= special {
            return Err(ModelError::new(
                format!(
                    "the maximum length of {max_length} tokens has no room beside the {special} special tokens of a pair"
                ),
                "set `model_max_length` in `tokenizer_config.json` to what the model was trained with",
            ));
        }
        Ok(Self {
            side,
            template,
            max_length,
            prompt: prompt.map(str::to_owned),
            strategy: rerankd_core::Strategy::default(),
        })
    }

    /// The same encoder, which cuts by `strategy` unless a request says otherwise.
    #[must_use]
    pub fn with_strategy(self, strategy: rerankd_core::Strategy) -> Self {
        Self { strategy, ..self }
    }

    /// Most tokens of a pair, special ones included.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The encoder for texts that are to be read as `fit` says.
    pub fn fitting(&self, fit: Fit) -> Fitted<'_> {
        Fitted::new(self, fit)
    }

    /// As [`Fitted::query`], with nothing asked for.
    ///
    /// # Errors
    /// As [`Fitted::query`].
    pub fn query(&self, text: &str) -> Result<QueryTokens, EncodeError> {
        self.fitting(Fit::default()).query(text)
    }

    /// As [`Fitted::pair`], with nothing asked for.
    ///
    /// # Errors
    /// As [`Fitted::pair`].
    pub fn pair(&self, query: &QueryTokens, document: &str) -> Result<EncodedPair, EncodeError> {
        self.fitting(Fit::default()).pair(query, document)
    }

    /// As [`Fitted::encode`], with nothing asked for.
    ///
    /// # Errors
    /// As [`Fitted::encode`].
    pub fn encode(
        &self,
        pairs: &[Pair],
        cancelled: &AtomicBool,
    ) -> Result<Vec<EncodedPair>, EncodeError> {
        self.fitting(Fit::default()).encode(pairs, cancelled)
    }

    /// Refuses a tokenizer that makes ids for which the model has no embedding, or pairs without
    /// the first token that the head reads.
    fn check_fit(&self, vocab_size: usize, type_vocab_size: usize) -> Result<(), ModelError> {
        // Not their number: ids may have gaps, and a table is read at the id.
        let ids = self.side.tokenizer().get_vocab(true).into_values();
        let tokens = ids.max().map_or(0, |id| id as usize + 1);
        if tokens > vocab_size {
            return Err(ModelError::new(
                format!(
                    "`tokenizer.json` has {tokens} tokens, but `vocab_size` in `config.json` is {vocab_size}"
                ),
                "use the tokenizer that the model was trained with",
            ));
        }
        if self.template.special_tokens() == 0 {
            return Err(ModelError::new(
                "`tokenizer.json`: `post_processor` adds no special tokens to a pair",
                "save the tokenizer again with the class that the model was trained with, such as `BertTokenizer`",
            ));
        }
        let types = usize::from(self.template.highest_type()) + 1;
        if types > type_vocab_size {
            return Err(ModelError::new(
                format!(
                    "`tokenizer.json` makes {types} token types, but `type_vocab_size` in `config.json` is {type_vocab_size}"
                ),
                "set `model_input_names` in `tokenizer_config.json` to `[\"input_ids\", \"attention_mask\"]` if the model was trained without token types",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
