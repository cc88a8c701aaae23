//! Encodes pairs with the truncation options of a request.

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use tokenizers::TruncationDirection;

use super::side::{Side, keep};
use super::{EncodeError, EncodedPair, PairEncoder, QueryTokens, longest_first};
use rerankd_core::Encoding;
use rerankd_core::{Fit, Pair, Strategy};

/// A [`PairEncoder`] with the truncation options of a request.
#[derive(Debug, Clone, Copy)]
pub struct Fitted<'a> {
    encoder: &'a PairEncoder,
    fit: Fit,
    strategy: Strategy,
    direction: TruncationDirection,
}

/// Tokens that each text of a pair keeps.
#[derive(Debug, Clone, Copy)]
struct Share {
    query: usize,
    /// Per chunk.
    document: usize,
}

impl<'a> Fitted<'a> {
    pub(super) fn new(encoder: &'a PairEncoder, fit: Fit) -> Self {
        let direction = match fit.side {
            Some(rerankd_core::Side::Left) => TruncationDirection::Left,
            Some(rerankd_core::Side::Right) => TruncationDirection::Right,
            None => encoder.side.direction(),
        };
        Self {
            encoder,
            fit,
            strategy: fit.strategy.unwrap_or(encoder.strategy),
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
        let side = self.tokenize(&text, self.encoder.max_length, self.fit.max_query_tokens)?;
        Ok(QueryTokens {
            text: (!side.all).then(|| text.into_owned()),
            side,
            length: OnceLock::new(),
        })
    }

    /// Tokenizes a document and combines it with a query.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] if the tokenizer fails, [`EncodeError::QueryTooLong`] if the query must not
    /// be truncated and leaves no room.
    pub fn pair(&self, query: &QueryTokens, document: &str) -> Result<EncodedPair, EncodeError> {
        let limit = self.encoder.max_length.saturating_mul(self.fit.chunks());
        let side = self.tokenize(document, limit, self.fit.max_document_tokens)?;
        let share = self.share(query, &side, document)?;
        let special = self.encoder.template.special_tokens();
        let read = side
            .ids
            .len()
            .min(share.document.saturating_mul(self.fit.chunks()));
        let query_ids = keep(&query.side.ids, share.query, self.direction);
        let assemble = |ids: &[u32]| self.encoder.template.assemble(query_ids, ids);
        let mut parts = keep(&side.ids, read, self.direction).chunks(share.document.max(1));
        let encoding = assemble(parts.next().unwrap_or_default());
        let known = query.side.length + side.length + special;
        Ok(EncodedPair {
            encoding,
            further: parts.map(assemble).collect::<Vec<Encoding>>(),
            full_length: known + usize::from(!query.side.all || !side.all),
            read_length: share.query + read + special,
        })
    }

    /// The exact number of tokens of a pair before truncation, special tokens included.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] if the tokenizer fails.
    pub fn full_length(&self, pair: &Pair) -> Result<usize, EncodeError> {
        let query = self.exact_length(&self.query(&pair.query)?)?;
        let document = self.count(&pair.document, self.fit.max_document_tokens)?;
        Ok(query + document + self.encoder.template.special_tokens())
    }

    /// Approximate bytes of a text of `length` bytes that are tokenized: its cost.
    pub fn bytes_read(&self, length: usize) -> usize {
        let limit = self.encoder.max_length.saturating_mul(self.fit.chunks());
        self.encoder.side.bytes_read(length, limit, self.direction)
    }

    /// Encodes pairs in order, on the calling thread. A query shared by consecutive pairs is tokenized once.
    ///
    /// # Errors
    /// [`EncodeError::Cancelled`] soon after `cancelled` is set; otherwise the same as [`Fitted::pair`].
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
    ) -> Result<Side, EncodeError> {
        let side = self.encoder.side.tokenize(text, limit, self.direction)?;
        Ok(side.capped(cap, self.direction))
    }

    fn share(
        &self,
        query: &QueryTokens,
        side: &Side,
        document: &str,
    ) -> Result<Share, EncodeError> {
        let (query, document) = match self.strategy {
            Strategy::LongestFirst => self.share_longest_first(query, side, document)?,
            Strategy::DocumentOnly => self.share_document_only(query, side)?,
        };
        Ok(Share { query, document })
    }

    fn share_document_only(
        &self,
        query: &QueryTokens,
        side: &Side,
    ) -> Result<(usize, usize), EncodeError> {
        let room = self.room();
        let tokens = query.side.length;
        if query.side.all && side.all && tokens + side.length <= room {
            return Ok((tokens, side.length));
        }
        // Every chunk repeats the query; beyond half of a chunk it costs more than it is worth.
        let limit = match self.fit.chunks() {
            1 => room.saturating_sub(1),
            _ => room / 2,
        };
        if tokens > limit {
            return Err(EncodeError::QueryTooLong { tokens, limit });
        }
        Ok((tokens, side.length.min(room - tokens)))
    }

    /// Exact lengths matter only if both texts are truncated and the longer one gets the odd token; only then
    /// are they computed.
    fn share_longest_first(
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
        let document_length = if side.all {
            side.length
        } else {
            self.count(document, self.fit.max_document_tokens)?
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
            return Ok(query.side.length);
        };
        if let Some(&length) = query.length.get() {
            return Ok(length);
        }
        let length = self.count(text, self.fit.max_query_tokens)?;
        Ok(*query.length.get_or_init(|| length))
    }

    fn count(&self, text: &str, cap: Option<NonZeroUsize>) -> Result<usize, EncodeError> {
        let length = self.encoder.side.count(text)?;
        Ok(cap.map_or(length, |most| length.min(most.get())))
    }

    /// Tokens available for the two texts.
    fn room(&self) -> usize {
        let asked = self.fit.max_tokens.map_or(usize::MAX, NonZeroUsize::get);
        let special = self.encoder.template.special_tokens();
        self.encoder.max_length.min(asked).saturating_sub(special)
    }
}
