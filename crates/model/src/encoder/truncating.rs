//! Encodes pairs with the truncation options of a request.

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use tokenizers::TruncationDirection;

use super::text::{BYTES_PER_ID, TextTokens, keep};
use super::{EncodeError, EncodedPair, PairEncoder, QueryTokens, longest_first};
use rerankd_core::Encoding;
use rerankd_core::{Pair, TruncationOptions, TruncationStrategy};

/// A [`PairEncoder`] with the truncation options of a request.
#[derive(Debug, Clone, Copy)]
pub struct TruncatingEncoder<'a> {
    encoder: &'a PairEncoder,
    options: TruncationOptions,
    strategy: TruncationStrategy,
    direction: TruncationDirection,
}

/// Tokens that each text of a pair keeps.
#[derive(Debug, Clone, Copy)]
struct Share {
    query: usize,
    /// Per chunk.
    document: usize,
}

impl<'a> TruncatingEncoder<'a> {
    pub(super) fn new(encoder: &'a PairEncoder, options: TruncationOptions) -> Self {
        let direction = match options.side {
            Some(rerankd_core::TruncationSide::Left) => TruncationDirection::Left,
            Some(rerankd_core::TruncationSide::Right) => TruncationDirection::Right,
            None => encoder.tokenizer.direction(),
        };
        Self {
            encoder,
            options,
            strategy: options.strategy.unwrap_or(encoder.strategy),
            direction,
        }
    }

    /// Tokenizes a query, once for all its documents, with the prompt prepended.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] if the tokenizer fails.
    pub fn query(&self, text: &str) -> Result<QueryTokens, EncodeError> {
        let text = match &self.encoder.prompt {
            Some(prompt) => Cow::Owned(format!("{prompt}{text}")),
            None => Cow::Borrowed(text),
        };
        let tokens = self.tokenize(
            &text,
            self.encoder.max_length,
            self.options.max_query_tokens,
        )?;
        Ok(QueryTokens {
            text: (!tokens.all).then(|| text.into_owned()),
            tokens,
            length: OnceLock::new(),
        })
    }

    /// Tokenizes a document and combines it with a query.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] if the tokenizer fails, [`EncodeError::QueryTooLong`] if the query must not
    /// be truncated and leaves no room, [`EncodeError::EmptyPrompt`] if the pair has no tokens.
    pub fn pair(&self, query: &QueryTokens, document: &str) -> Result<EncodedPair, EncodeError> {
        let limit = self
            .encoder
            .max_length
            .saturating_mul(self.options.chunks());
        let tokens = self.tokenize(document, limit, self.options.max_document_tokens)?;
        let share = self.share(query, &tokens, document)?;
        let special = self.encoder.template.special_tokens();
        let read = tokens
            .ids
            .len()
            .min(share.document.saturating_mul(self.options.chunks()));
        let query_ids = keep(&query.tokens.ids, share.query, self.direction);
        let assemble = |ids: &[u32]| self.encoder.template.assemble(query_ids, ids);
        let mut chunks = keep(&tokens.ids, read, self.direction).chunks(share.document.max(1));
        let encoding = assemble(chunks.next().unwrap_or_default());
        let known = query.tokens.length + tokens.length + special;
        let pair = EncodedPair {
            encoding,
            further_chunks: chunks.map(assemble).collect::<Vec<Encoding>>(),
            full_length: known + usize::from(!query.tokens.all || !tokens.all),
            read_length: share.query + read + special,
        };
        pair.readable(self.encoder.max_length)
    }

    /// The exact number of tokens of a pair before truncation, special tokens included.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] if the tokenizer fails.
    pub fn full_length(&self, pair: &Pair) -> Result<usize, EncodeError> {
        let query = self.exact_length(&self.query(&pair.query)?)?;
        let document = self.count(&pair.document, self.options.max_document_tokens)?;
        Ok(query + document + self.encoder.template.special_tokens())
    }

    /// Approximate bytes of a text of `length` bytes that are tokenized: its cost.
    pub fn bytes_read(&self, length: usize) -> usize {
        let limit = self
            .encoder
            .max_length
            .saturating_mul(self.options.chunks());
        self.encoder
            .tokenizer
            .bytes_read(length, limit, self.direction)
    }

    /// Approximate bytes of a pair beside its texts: its special tokens and the prompt before the query.
    pub fn overhead(&self) -> usize {
        let prompt = self.encoder.prompt.as_ref().map_or(0, String::len);
        BYTES_PER_ID * self.encoder.template.special_tokens() + prompt
    }

    /// Encodes pairs in order, on the calling thread. A query shared by consecutive pairs is tokenized once.
    ///
    /// # Errors
    /// [`EncodeError::Cancelled`] soon after `cancelled` is set; otherwise the same as [`TruncatingEncoder::pair`].
    pub fn encode(
        &self,
        pairs: &[Pair],
        cancelled: &AtomicBool,
    ) -> Result<Vec<EncodedPair>, EncodeError> {
        let mut encoded = Vec::with_capacity(pairs.len());
        for run in pairs.chunk_by(|a, b| a.query == b.query) {
            let query = self.query(&run[0].query)?;
            for pair in run {
                if cancelled.load(Ordering::Relaxed) {
                    return Err(EncodeError::Cancelled);
                }
                encoded.push(self.pair(&query, &pair.document)?);
            }
        }
        Ok(encoded)
    }

    fn tokenize(
        &self,
        text: &str,
        limit: usize,
        cap: Option<NonZeroUsize>,
    ) -> Result<TextTokens, EncodeError> {
        let tokens = self
            .encoder
            .tokenizer
            .tokenize(text, limit, self.direction)?;
        Ok(tokens.capped(cap, self.direction))
    }

    fn share(
        &self,
        query: &QueryTokens,
        tokens: &TextTokens,
        document: &str,
    ) -> Result<Share, EncodeError> {
        let (query, document) = match self.strategy {
            TruncationStrategy::LongestFirst => {
                self.share_longest_first(query, tokens, document)?
            }
            TruncationStrategy::DocumentOnly => self.share_document_only(query, tokens)?,
        };
        Ok(Share { query, document })
    }

    fn share_document_only(
        &self,
        query: &QueryTokens,
        tokens: &TextTokens,
    ) -> Result<(usize, usize), EncodeError> {
        let room = self.room();
        let query_length = query.tokens.length;
        if query.tokens.all && tokens.all && query_length + tokens.length <= room {
            return Ok((query_length, tokens.length));
        }
        // Every chunk repeats the query; beyond half of a chunk it costs more than it is worth.
        let limit = match self.options.chunks() {
            1 => room.saturating_sub(1),
            _ => room / 2,
        };
        if query_length > limit {
            return Err(EncodeError::QueryTooLong {
                tokens: query_length,
                limit,
            });
        }
        Ok((query_length, tokens.length.min(room - query_length)))
    }

    /// Exact lengths matter only if both texts are truncated and the longer one gets the odd token; only then
    /// are they computed.
    fn share_longest_first(
        &self,
        query: &QueryTokens,
        tokens: &TextTokens,
        document: &str,
    ) -> Result<(usize, usize), EncodeError> {
        let room = self.room();
        let both_lose = query.tokens.length.min(tokens.length) > room / 2;
        if (query.tokens.all && tokens.all) || room.is_multiple_of(2) || !both_lose {
            return Ok(longest_first(query.tokens.length, tokens.length, room));
        }
        let document_length = if tokens.all {
            tokens.length
        } else {
            self.count(document, self.options.max_document_tokens)?
        };
        Ok(longest_first(
            self.exact_length(query)?,
            document_length,
            room,
        ))
    }

    /// The exact number of tokens of a query, counted at most once.
    fn exact_length(&self, query: &QueryTokens) -> Result<usize, EncodeError> {
        let Some(text) = &query.text else {
            return Ok(query.tokens.length);
        };
        if let Some(&length) = query.length.get() {
            return Ok(length);
        }
        let length = self.count(text, self.options.max_query_tokens)?;
        Ok(*query.length.get_or_init(|| length))
    }

    fn count(&self, text: &str, cap: Option<NonZeroUsize>) -> Result<usize, EncodeError> {
        let length = self.encoder.tokenizer.count(text)?;
        Ok(cap.map_or(length, |most| length.min(most.get())))
    }

    /// Tokens available for the two texts.
    fn room(&self) -> usize {
        let asked = self
            .options
            .max_tokens
            .map_or(usize::MAX, NonZeroUsize::get);
        let special = self.encoder.template.special_tokens();
        self.encoder.max_length.min(asked).saturating_sub(special)
    }
}
