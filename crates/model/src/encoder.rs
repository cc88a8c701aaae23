//! Encodes pairs of texts to token ids.
//!
//! The ids equal those of the tokenizer's own pair encoding with `longest_first` truncation, but a query
//! is tokenized once for all its documents, and pairs are assembled by copying ids.

mod cut;
mod decoder;
mod either;
mod pieces;
mod shorten;
mod template;
pub(crate) mod text;
mod tokens;
mod truncate;
mod truncating;
mod vocabulary;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

pub use either::{BoundEncoder, EncodedQuery, Encoder};
pub use tokens::TextToken;
pub use truncate::longest_first;
pub use truncating::TruncatingEncoder;

use crate::prompt::template::TemplateError;
use crate::{ExportedModel, Model, ModelError, TokenizerConfig};
use rerankd_core::Encoding;
use rerankd_core::{Pair, TruncationOptions};
use template::PairTemplate;
use text::{TextTokenizer, TextTokens};
use vocabulary::unusable;

/// Why pairs could not be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The caller set `cancelled`.
    #[error("the request was cancelled")]
    Cancelled,
    /// The tokenizer failed on a text. The message contains none of the input.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    /// The query leaves no room for the document and must not be truncated.
    #[error("the query has {tokens} tokens; the limit is {limit}")]
    QueryTooLong {
        /// Tokens of the query, or a lower bound.
        tokens: usize,
        /// Maximum tokens of the query.
        limit: usize,
    },
    /// The model's template failed on the texts.
    #[error("the model's chat template fails on these texts: {0}")]
    Template(#[from] TemplateError),
    /// The texts leave nothing to read.
    #[error("a pair has no tokens; send a query or a document that has some")]
    EmptyPrompt,
    /// What must not be cut of a prompt is too long.
    #[error(
        "a prompt has {tokens} tokens that cannot be cut; the limit is {limit}; shorten the instruction, or allow more tokens"
    )]
    PromptTooLong {
        /// Tokens of the prompt that cannot be cut.
        tokens: usize,
        /// Maximum tokens of a prompt.
        limit: usize,
    },
    /// The request names a prompt that the model does not have.
    #[error("`prompt_name` is not one of the model's prompts: {known}")]
    UnknownPrompt {
        /// Their names.
        known: String,
    },
    /// The model has no place for an instruction.
    #[error("this model takes no instruction")]
    NoInstruction,
}

/// A tokenized query, prompt included.
#[derive(Debug, Clone)]
pub struct QueryTokens {
    tokens: TextTokens,
    /// The text, if `tokens` does not cover all of it.
    text: Option<String>,
    /// The exact number of tokens, computed on demand.
    length: OnceLock<usize>,
}

/// An encoded pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPair {
    /// The first chunk; at most the maximum length.
    pub encoding: Encoding,
    /// Further chunks of the document, each with the query.
    pub further_chunks: Vec<Encoding>,
    /// Tokens before truncation, special tokens included. If one text alone exceeds the maximum length, this
    /// is a lower bound above the maximum: the rest is not tokenized.
    pub full_length: usize,
    /// Tokens that the model reads, with those repeated in every chunk counted once.
    read_length: usize,
}

impl EncodedPair {
    /// Prompts of a pair of `full_length` tokens, of which the model reads `read_length`.
    pub(crate) fn of_prompts(
        prompts: Vec<Vec<u32>>,
        full_length: usize,
        read_length: usize,
    ) -> Self {
        let mut chunks = prompts.into_iter().map(|ids| Encoding {
            type_ids: vec![0; ids.len()],
            ids,
        });
        Self {
            encoding: chunks.next().expect("a pair has a prompt"),
            further_chunks: chunks.collect(),
            full_length,
            read_length,
        }
    }

    /// This pair, if a model that reads `max_length` tokens can read each of its chunks. Every pair passes here
    /// before it gets into a batch, where it would fail the pairs of others.
    pub(crate) fn readable(self, max_length: usize) -> Result<Self, EncodeError> {
        for chunk in std::iter::once(&self.encoding).chain(&self.further_chunks) {
            if chunk.is_empty() {
                return Err(EncodeError::EmptyPrompt);
            }
            if chunk.len() > max_length {
                return Err(EncodeError::PromptTooLong {
                    tokens: chunk.len(),
                    limit: max_length,
                });
            }
        }
        Ok(self)
    }

    /// Whether the pair was truncated.
    pub fn truncated(&self) -> bool {
        self.full_length > self.read_length
    }

    /// All chunks.
    pub fn encodings(self) -> impl Iterator<Item = Encoding> {
        std::iter::once(self.encoding).chain(self.further_chunks)
    }

    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        1 + self.further_chunks.len()
    }

    /// Tokens of all chunks.
    pub fn tokens(&self) -> usize {
        self.encoding.len() + self.further_chunks.iter().map(Encoding::len).sum::<usize>()
    }
}

/// Encodes pairs for a model. Shared by all threads.
#[derive(Debug)]
pub struct PairEncoder {
    tokenizer: TextTokenizer,
    template: PairTemplate,
    max_length: usize,
    prompt: Option<String>,
    strategy: rerankd_core::TruncationStrategy,
}

impl PairEncoder {
    /// The encoder of `model`.
    ///
    /// # Errors
    /// [`ModelError`] if `tokenizer.json` is invalid or does not match the model.
    pub fn for_model(model: &Model) -> Result<Self, ModelError> {
        let manifest = &model.manifest;
        let encoder = Self::with_config(
            &model.tokenizer,
            manifest.max_length,
            manifest.prompt.as_deref(),
            &manifest.tokenizer,
        )?;
        encoder.check_compatible(
            manifest.encoder.vocab_size,
            manifest.encoder.type_vocab_size,
            !manifest.is_causal,
        )?;
        Ok(encoder)
    }

    /// The encoder of an exported model.
    ///
    /// # Errors
    /// Same as [`Self::for_model`].
    pub fn for_exported(model: &ExportedModel) -> Result<Self, ModelError> {
        let encoder = Self::with_config(
            &model.tokenizer,
            model.max_length,
            model.prompt.as_deref(),
            &model.tokenizer_config,
        )?;
        encoder.check_compatible(model.vocab_size, model.type_vocab_size, true)?;
        Ok(encoder)
    }

    /// An encoder for an unmodified `tokenizer.json` that truncates pairs to `max_length` tokens, special tokens
    /// included.
    ///
    /// # Errors
    /// [`ModelError`] if the tokenizer is invalid, or `max_length` leaves no room besides special tokens.
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
        let tokenizer = TextTokenizer::new(tokenizer_json, config)?;
        // The library panics on a template that names a special token which the file does not define.
        let mut template = catch_unwind(AssertUnwindSafe(|| PairTemplate::of(tokenizer.inner())))
            .unwrap_or_else(|_| {
            Err(unusable(
                "the post-processor of `tokenizer.json` is damaged",
            ))
        })?;
        if !config.uses_type_ids {
            template.clear_types();
        }
        let special = template.special_tokens();
        if max_length <= special {
            return Err(ModelError::new(
                format!(
                    "the maximum length of {max_length} tokens leaves no room besides the {special} special tokens of a pair"
                ),
                "set `model_max_length` in `tokenizer_config.json` to the length the model was trained with",
            ));
        }
        Ok(Self {
            tokenizer,
            template,
            max_length,
            prompt: prompt.map(str::to_owned),
            strategy: rerankd_core::TruncationStrategy::default(),
        })
    }

    /// Sets the default truncation strategy.
    #[must_use]
    pub fn with_strategy(self, strategy: rerankd_core::TruncationStrategy) -> Self {
        Self { strategy, ..self }
    }

    /// Maximum tokens of a pair, special tokens included.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Binds the truncation options of a request.
    pub fn truncating(&self, options: TruncationOptions) -> TruncatingEncoder<'_> {
        TruncatingEncoder::new(self, options)
    }

    /// [`TruncatingEncoder::query`] with default options.
    ///
    /// # Errors
    /// Same as [`TruncatingEncoder::query`].
    pub fn query(&self, text: &str) -> Result<QueryTokens, EncodeError> {
        self.truncating(TruncationOptions::default()).query(text)
    }

    /// [`TruncatingEncoder::pair`] with default options.
    ///
    /// # Errors
    /// Same as [`TruncatingEncoder::pair`].
    pub fn pair(&self, query: &QueryTokens, document: &str) -> Result<EncodedPair, EncodeError> {
        self.truncating(TruncationOptions::default())
            .pair(query, document)
    }

    /// [`TruncatingEncoder::encode`] with default options.
    ///
    /// # Errors
    /// Same as [`TruncatingEncoder::encode`].
    pub fn encode(
        &self,
        pairs: &[Pair],
        cancelled: &AtomicBool,
    ) -> Result<Vec<EncodedPair>, EncodeError> {
        self.truncating(TruncationOptions::default())
            .encode(pairs, cancelled)
    }

    /// Rejects a tokenizer with ids or token types that have no embedding, or that adds no special tokens if
    /// the head may read the first one.
    fn check_compatible(
        &self,
        vocab_size: usize,
        type_vocab_size: usize,
        reads_first_token: bool,
    ) -> Result<(), ModelError> {
        self.tokenizer.check_vocabulary(vocab_size)?;
        if self.template.special_tokens() == 0 && reads_first_token {
            return Err(ModelError::new(
                "`tokenizer.json`: `post_processor` adds no special tokens to a pair",
                "save the tokenizer again with the class the model was trained with, such as `BertTokenizer`",
            ));
        }
        let types = usize::from(self.template.highest_type()) + 1;
        if types > type_vocab_size {
            return Err(ModelError::new(
                format!(
                    "`tokenizer.json` has {types} token types, but `type_vocab_size` in `config.json` is {type_vocab_size}"
                ),
                "set `model_input_names` in `tokenizer_config.json` to `[\"input_ids\", \"attention_mask\"]` if the model was trained without token types",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
