//! From a pair of texts to the token ids that the model reads.
//!
//! The ids are those of the tokenizer's own pair encoding, truncated `longest_first`, but a query
//! is tokenised once for all its documents, and a pair is put together by copying ids.

mod prefix;
mod side;
mod template;
mod truncate;

use std::borrow::Cow;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

pub use truncate::longest_first;

use crate::batch::Encoding;
use crate::model::{Model, ModelError, TokenizerConfig};
use crate::rerank::Pair;
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
    /// Tokens before truncation, special ones included. Where one text alone exceeds the maximum
    /// length it is a lower bound, still above the maximum: the rest is not tokenised.
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
        let text = match &self.prompt {
            Some(prompt) => Cow::Owned(format!("{prompt}{text}")),
            None => Cow::Borrowed(text),
        };
        let side = self.side.tokenize(&text)?;
        Ok(QueryTokens {
            text: (!side.all).then(|| text.into_owned()),
            side,
            length: OnceLock::new(),
        })
    }

    /// Tokenises a document and puts it together with a query.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] when the tokenizer cannot represent the text.
    pub fn pair(&self, query: &QueryTokens, document: &str) -> Result<EncodedPair, EncodeError> {
        let side = self.side.tokenize(document)?;
        let (query_keeps, document_keeps) = self.share(query, &side, document)?;
        let known = query.side.length + side.length + self.template.special_tokens();
        Ok(EncodedPair {
            encoding: self.template.assemble(
                self.side.keep(&query.side.ids, query_keeps),
                self.side.keep(&side.ids, document_keeps),
            ),
            full_length: known + usize::from(!query.side.all || !side.all),
        })
    }

    /// The number of tokens of a pair before truncation, special ones included, however long.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] when the tokenizer cannot represent a text.
    pub fn full_length(&self, pair: &Pair) -> Result<usize, EncodeError> {
        let query = self.exact(&self.query(&pair.query)?)?;
        let document = self.side.count(&pair.document)?;
        Ok(query + document + self.template.special_tokens())
    }

    /// How many tokens each text keeps. Tokens that nobody reads matter only when both texts lose
    /// some and the longer one gets the odd token; only then are they counted.
    fn share(
        &self,
        query: &QueryTokens,
        side: &Side,
        document: &str,
    ) -> Result<(usize, usize), EncodeError> {
        let room = self.room();
        let both_lose = query.side.length.min(side.length) > room / 2;
        if (query.side.all && side.all) || room.is_multiple_of(2) || !both_lose {
            return Ok(longest_first(query.side.length, side.length, room));
        }
        let document_length = match side.all {
            true => side.length,
            false => self.side.count(document)?,
        };
        Ok(longest_first(self.exact(query)?, document_length, room))
    }

    /// The number of tokens of a query, counted at most once.
    fn exact(&self, query: &QueryTokens) -> Result<usize, EncodeError> {
        let Some(text) = &query.text else {
            return Ok(query.side.length);
        };
        if let Some(&length) = query.length.get() {
            return Ok(length);
        }
        let length = self.side.count(text)?;
        Ok(*query.length.get_or_init(|| length))
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

    /// Refuses a tokenizer that makes ids for which the model has no embedding, or pairs without
    /// the first token that the head reads.
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
