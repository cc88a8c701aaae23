//! From a pair of texts to the token ids that the model reads.
//!
//! The ids are those of the tokenizer's own pair encoding, truncated `longest_first`, but a query
//! is tokenised once for all its documents, and a pair is put together by copying ids.

mod side;
mod template;
mod truncate;

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

pub use truncate::longest_first;

use crate::batch::Encoding;
use crate::model::{Model, ModelError, TokenizerConfig};
use crate::rerank::Pair;
use side::{Extent, Side, SideTokenizer};
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
}

/// A query that was tokenised once, prompt included.
#[derive(Debug, Clone)]
pub struct QueryTokens(Side);

/// One pair, ready for a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPair {
    /// What the model reads; at most the maximum length.
    pub encoding: Encoding,
    /// Tokens before truncation, special ones included. For a document that alone exceeds the
    /// maximum length it may be a lower bound, still above the maximum: the rest of such a text is
    /// not tokenised when it cannot matter.
    pub full_length: usize,
}

impl EncodedPair {
    /// Whether the pair was cut to fit.
    pub fn truncated(&self) -> bool {
        self.full_length > self.encoding.len()
    }
}

/// Encodes pairs for one model; shared by all threads.
#[derive(Debug)]
pub struct PairEncoder {
    side: SideTokenizer,
    template: PairTemplate,
    max_length: usize,
    prompt: Option<String>,
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
        let side = SideTokenizer::new(tokenizer_json, max_length, config)?;
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
        })
    }

    /// Most tokens of a pair, special ones included.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Tokenises a query, once for all its documents. The prompt goes in front of its text.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] when the tokenizer cannot represent the text.
    pub fn query(&self, text: &str) -> Result<QueryTokens, EncodeError> {
        let side = match &self.prompt {
            Some(prompt) => self.side.tokenize(&format!("{prompt}{text}"), Extent::All),
            None => self.side.tokenize(text, Extent::All),
        };
        side.map(QueryTokens)
    }

    /// Tokenises a document and puts it together with a query.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] when the tokenizer cannot represent the text.
    pub fn pair(&self, query: &QueryTokens, document: &str) -> Result<EncodedPair, EncodeError> {
        let extent = self.extent_beside(&query.0);
        let document = self.side.tokenize(document, extent)?;
        Ok(self.assemble(&query.0, &document))
    }

    /// How much of a document has to be tokenised. Tokens that do not fit a pair matter only when
    /// both texts lose some and the longer one gets the odd token.
    fn extent_beside(&self, query: &Side) -> Extent {
        let room = self.room();
        if query.length > room / 2 && room % 2 == 1 {
            Extent::All
        } else {
            Extent::Enough
        }
    }

    /// Tokens that the two texts share.
    fn room(&self) -> usize {
        self.max_length - self.template.special_tokens()
    }

    /// Encodes all pairs on the current rayon pool, in their order. A query that is the same for
    /// pairs in a row is tokenised once.
    ///
    /// # Errors
    /// [`EncodeError::Cancelled`] soon after `cancelled` turns true, and as [`PairEncoder::pair`].
    pub fn encode(
        &self,
        pairs: &[Pair],
        cancelled: &AtomicBool,
    ) -> Result<Vec<EncodedPair>, EncodeError> {
        let go_on = || match cancelled.load(Ordering::Relaxed) {
            true => Err(EncodeError::Cancelled),
            false => Ok(()),
        };
        let runs: Vec<&[Pair]> = pairs.chunk_by(|a, b| a.query == b.query).collect();
        let queries: Vec<QueryTokens> = runs
            .par_iter()
            .map(|run| go_on().and_then(|()| self.query(&run[0].query)))
            .collect::<Result<_, _>>()?;
        let work: Vec<(&QueryTokens, &Pair)> = queries
            .iter()
            .zip(&runs)
            .flat_map(|(query, run)| run.iter().map(move |pair| (query, pair)))
            .collect();
        work.par_iter()
            .map(|(query, pair)| go_on().and_then(|()| self.pair(query, &pair.document)))
            .collect()
    }

    fn assemble(&self, query: &Side, document: &Side) -> EncodedPair {
        let (query_length, document_length) =
            longest_first(query.length, document.length, self.room());
        let encoding = self.template.assemble(
            self.side.keep(&query.ids, query_length),
            self.side.keep(&document.ids, document_length),
        );
        let known = query.length + document.length + self.template.special_tokens();
        EncodedPair {
            full_length: known + usize::from(!document.all),
            encoding,
        }
    }

    /// Refuses a tokenizer that makes ids for which the model has no embedding.
    fn check_fit(&self, vocab_size: usize, type_vocab_size: usize) -> Result<(), ModelError> {
        let tokens = self.side.tokenizer().get_vocab_size(true);
        if tokens > vocab_size {
            return Err(ModelError::new(
                format!(
                    "`tokenizer.json` has {tokens} tokens, but `vocab_size` in `config.json` is {vocab_size}"
                ),
                "use the tokenizer that the model was trained with",
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
