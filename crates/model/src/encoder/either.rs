//! The encoder of any model: of pairs of texts, or of prompts.

use std::sync::atomic::AtomicBool;

use super::text::TextTokenizer;
use super::{EncodeError, EncodedPair, PairEncoder, QueryTokens, TruncatingEncoder};
use crate::prompt::{BoundPrompts, PromptEncoder, PromptQuery};
use crate::{ExportedModel, Model, ModelError};
use rerankd_core::{Instruction, Pair, TruncationOptions, TruncationStrategy};

/// Encodes pairs for a model. Shared by all threads.
#[derive(Debug)]
pub enum Encoder {
    /// The tokenizer joins the two texts.
    Pairs(PairEncoder),
    /// The two texts are written into a prompt.
    Prompts(PromptEncoder),
}

/// A query, ready for its documents.
#[derive(Debug, Clone)]
pub enum EncodedQuery {
    /// Of [`Encoder::Pairs`].
    Pairs(QueryTokens),
    /// Of [`Encoder::Prompts`].
    Prompts(PromptQuery),
}

/// An [`Encoder`] with the options and the instruction of a request.
#[derive(Debug, Clone, Copy)]
pub enum BoundEncoder<'a> {
    /// Of [`Encoder::Pairs`].
    Pairs(TruncatingEncoder<'a>),
    /// Of [`Encoder::Prompts`].
    Prompts(BoundPrompts<'a>),
}

impl From<PairEncoder> for Encoder {
    fn from(encoder: PairEncoder) -> Self {
        Self::Pairs(encoder)
    }
}

impl From<PromptEncoder> for Encoder {
    fn from(encoder: PromptEncoder) -> Self {
        Self::Prompts(encoder)
    }
}

impl Encoder {
    /// The encoder of `model`.
    ///
    /// # Errors
    /// [`ModelError`] if the tokenizer or a template is invalid or does not match the model.
    pub fn for_model(model: &Model) -> Result<Self, ModelError> {
        Ok(match &model.manifest.prompts {
            None => PairEncoder::for_model(model)?.into(),
            Some(_) => PromptEncoder::for_model(model)?.into(),
        })
    }

    /// The encoder of an exported model.
    ///
    /// # Errors
    /// Same as [`Self::for_model`].
    pub fn for_exported(model: &ExportedModel) -> Result<Self, ModelError> {
        PairEncoder::for_exported(model).map(Self::Pairs)
    }

    /// Sets the default truncation strategy.
    #[must_use]
    pub fn with_strategy(self, strategy: TruncationStrategy) -> Self {
        match self {
            Self::Pairs(encoder) => encoder.with_strategy(strategy).into(),
            Self::Prompts(encoder) => encoder.with_strategy(strategy).into(),
        }
    }

    /// Sets the instruction of requests without one; `None` leaves the model's.
    ///
    /// # Errors
    /// [`ModelError`] if the model takes no instruction, or if this one leaves no room for texts.
    pub fn with_instruction(self, instruction: Option<&str>) -> Result<Self, ModelError> {
        match (self, instruction) {
            (Self::Prompts(encoder), Some(text)) => {
                let encoder = encoder.with_instruction(text);
                encoder.check_room()?;
                Ok(encoder.into())
            }
            (Self::Pairs(_), Some(_)) => Err(ModelError::new(
                "an instruction is set, and this model takes none",
                "leave `--instruction` unset for this model",
            )),
            (encoder, None) => Ok(encoder),
        }
    }

    /// Whether requests can have an instruction.
    pub fn takes_instructions(&self) -> bool {
        matches!(self, Self::Prompts(_))
    }

    /// Maximum tokens of a pair.
    pub fn max_length(&self) -> usize {
        match self {
            Self::Pairs(encoder) => encoder.max_length(),
            Self::Prompts(encoder) => encoder.max_length(),
        }
    }

    /// Binds the options and the instruction of a request.
    ///
    /// # Errors
    /// [`EncodeError::NoInstruction`] if the model takes none, [`EncodeError::UnknownPrompt`] if it has no
    /// prompt of this name.
    pub fn bind<'a>(
        &'a self,
        options: TruncationOptions,
        instruction: &'a Instruction,
    ) -> Result<BoundEncoder<'a>, EncodeError> {
        match (self, instruction) {
            (Self::Pairs(encoder), Instruction::Default) => {
                Ok(BoundEncoder::Pairs(encoder.truncating(options)))
            }
            (Self::Pairs(_), _) => Err(EncodeError::NoInstruction),
            (Self::Prompts(encoder), _) => encoder
                .bind(options, instruction)
                .map(BoundEncoder::Prompts),
        }
    }

    /// Encodes pairs with default options.
    ///
    /// # Errors
    /// Same as [`BoundEncoder::encode`].
    pub fn encode(
        &self,
        pairs: &[Pair],
        cancelled: &AtomicBool,
    ) -> Result<Vec<EncodedPair>, EncodeError> {
        self.bind(TruncationOptions::default(), &Instruction::Default)?
            .encode(pairs, cancelled)
    }

    pub(super) fn tokenizer(&self) -> &TextTokenizer {
        match self {
            Self::Pairs(encoder) => &encoder.tokenizer,
            Self::Prompts(encoder) => encoder.tokenizer(),
        }
    }
}

impl BoundEncoder<'_> {
    /// Approximate bytes that the model reads of a pair beside its texts: special tokens, the template and the
    /// instruction.
    pub fn overhead(&self) -> usize {
        match self {
            Self::Pairs(encoder) => encoder.overhead(),
            Self::Prompts(encoder) => encoder.overhead(),
        }
    }

    /// Approximate bytes that are tokenized once for a query of `query` bytes.
    pub fn query_cost(&self, query: usize) -> usize {
        match self {
            Self::Pairs(encoder) => encoder.bytes_read(query),
            Self::Prompts(encoder) => encoder.query_cost(query),
        }
    }

    /// Approximate bytes that are tokenized for each document, of `document` bytes, of a query of `query` bytes.
    pub fn pair_cost(&self, query: usize, document: usize) -> usize {
        match self {
            Self::Pairs(encoder) => encoder.bytes_read(document),
            Self::Prompts(encoder) => encoder.pair_cost(query, document),
        }
    }

    /// Prepares a query for its documents.
    ///
    /// # Errors
    /// [`EncodeError`] if the tokenizer or a template fails.
    pub fn query(&self, text: &str) -> Result<EncodedQuery, EncodeError> {
        match self {
            Self::Pairs(encoder) => encoder.query(text).map(EncodedQuery::Pairs),
            Self::Prompts(encoder) => encoder.query(text).map(EncodedQuery::Prompts),
        }
    }

    /// Encodes a document with its query.
    ///
    /// # Errors
    /// [`EncodeError`] if the tokenizer or a template fails, if what must not be cut leaves no room, or if the
    /// pair has no tokens.
    ///
    /// # Panics
    /// If the query is of another kind of encoder.
    pub fn pair(&self, query: &EncodedQuery, document: &str) -> Result<EncodedPair, EncodeError> {
        match (self, query) {
            (Self::Pairs(encoder), EncodedQuery::Pairs(query)) => encoder.pair(query, document),
            (Self::Prompts(encoder), EncodedQuery::Prompts(query)) => encoder.pair(query, document),
            _ => panic!("a query is paired by the encoder that made it"),
        }
    }

    /// Encodes pairs in order. A query shared by consecutive pairs is prepared once.
    ///
    /// # Errors
    /// [`EncodeError::Cancelled`] soon after `cancelled` is set; otherwise the same as [`Self::pair`].
    pub fn encode(
        &self,
        pairs: &[Pair],
        cancelled: &AtomicBool,
    ) -> Result<Vec<EncodedPair>, EncodeError> {
        match self {
            Self::Pairs(encoder) => encoder.encode(pairs, cancelled),
            Self::Prompts(encoder) => encoder.encode(pairs, cancelled),
        }
    }

    /// The exact number of tokens of a pair before truncation, special tokens included.
    ///
    /// # Errors
    /// Same as [`Self::pair`].
    pub fn full_length(&self, pair: &Pair) -> Result<usize, EncodeError> {
        match self {
            Self::Pairs(encoder) => encoder.full_length(pair),
            Self::Prompts(encoder) => encoder.full_length(pair),
        }
    }
}
