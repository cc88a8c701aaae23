//! Pairs put together as one request wants them.

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use tokenizers::TruncationDirection;

use super::side::{Side, keep};
use super::{EncodeError, EncodedPair, PairEncoder, QueryTokens, longest_first};
use rerankd_core::Encoding;
use rerankd_core::{Fit, Pair, Strategy};

/// A [`PairEncoder`] and what one request says about long texts.
#[derive(Debug, Clone, Copy)]
pub struct Fitted<'a> {
    encoder: &'a PairEncoder,
    fit: Fit,
    strategy: Strategy,
    direction: TruncationDirection,
}

/// How many tokens each text of a pair keeps.
#[derive(Debug, Clone, Copy)]
struct Share {
    query: usize,
    /// Of each part, where the document is read in several.
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

    /// Tokenises a query, once for all its documents. The prompt goes in front of its text.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] when the tokenizer cannot represent the text.
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

    /// Tokenises a document and puts it together with a query.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] when the tokenizer cannot represent the text,
    /// [`EncodeError::QueryTooLong`] when the query must stay whole and leaves no room.
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

    /// The number of tokens of a pair before truncation, special ones included, however long.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] when the tokenizer cannot represent a text.
    pub fn full_length(&self, pair: &Pair) -> Result<usize, EncodeError> {
        let query = self.exact(&self.query(&pair.query)?)?;
        let document = self.count(&pair.document, self.fit.max_document_tokens)?;
        Ok(query + document + self.encoder.template.special_tokens())
    }

    /// Encodes all pairs on the current rayon pool, in their order. A query that is the same for
    /// pairs in a row is tokenised once.
    ///
    /// # Errors
    /// [`EncodeError::Cancelled`] soon after `cancelled` turns true, and as [`Fitted::pair`].
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
        // Every part repeats the query: one that fills more than half of each costs more than it
        // tells.
        let limit = match self.fit.chunks() {
            1 => room.saturating_sub(1),
            _ => room / 2,
        };
        if tokens > limit {
            return Err(EncodeError::QueryTooLong { tokens, limit });
        }
        Ok((tokens, side.length.min(room - tokens)))
    }

    /// Tokens that nobody reads matter only when both texts lose some and the longer one gets the
    /// odd token; only then are they counted.
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
        let document_length = match side.all {
            true => side.length,
            false => self.count(document, self.fit.max_document_tokens)?,
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
        let length = self.count(text, self.fit.max_query_tokens)?;
        Ok(*query.length.get_or_init(|| length))
    }

    fn count(&self, text: &str, cap: Option<NonZeroUsize>) -> Result<usize, EncodeError> {
        let length = self.encoder.side.count(text)?;
        Ok(cap.map_or(length, |most| length.min(most.get())))
    }

    /// Tokens that the two texts share.
    fn room(&self) -> usize {
        let asked = self.fit.max_tokens.map_or(usize::MAX, NonZeroUsize::get);
        let special = self.encoder.template.special_tokens();
        self.encoder.max_length.min(asked).saturating_sub(special)
    }
}
