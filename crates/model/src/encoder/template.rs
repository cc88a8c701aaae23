//! The template of a pair's special tokens, derived from the tokenizer's post-processor.

use tokenizers::{Encoding as Tokens, Token, Tokenizer};

use crate::ModelError;
use rerankd_core::Encoding;

// Sentinels for the two texts; no vocabulary is that large.
const QUERY: u32 = u32::MAX;
const DOCUMENT: u32 = u32::MAX - 1;

/// Special tokens.
#[derive(Debug, Default, PartialEq, Eq)]
struct Fixed {
    ids: Vec<u32>,
    type_ids: Vec<u8>,
}

/// Special tokens before, between and after the two texts of a pair, and the token types of the texts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PairTemplate {
    prefix: Fixed,
    query_type: u8,
    middle: Fixed,
    document_type: u8,
    suffix: Fixed,
}

impl PairTemplate {
    /// Derives the template by post-processing a pair of sentinels. The tokenizer must not pad or truncate.
    ///
    /// # Errors
    /// [`ModelError`] if the post-processor does anything but insert tokens around the two texts.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self, ModelError> {
        let sentinel = |id, type_id| {
            let token = Token::new(id, String::new(), (0, 0));
            Tokens::from_tokens(vec![token], type_id)
        };
        let tokens = tokenizer
            .post_process(sentinel(QUERY, 0), Some(sentinel(DOCUMENT, 1)), true)
            .map_err(|error| unsupported(&error.to_string()))?;
        let ids = tokens.get_ids();
        let types: Vec<u8> = tokens
            .get_type_ids()
            .iter()
            .map(|&t| u8::try_from(t))
            .collect::<Result<_, _>>()
            .map_err(|_| unsupported("it uses a token type above 255"))?;
        let query = only(ids, QUERY)?;
        let document = only(ids, DOCUMENT)?;
        if document < query {
            return Err(unsupported("it puts the document before the query"));
        }
        let fixed = |range: std::ops::Range<usize>| Fixed {
            ids: ids[range.clone()].to_vec(),
            type_ids: types[range].to_vec(),
        };
        Ok(Self {
            prefix: fixed(0..query),
            query_type: types[query],
            middle: fixed(query + 1..document),
            document_type: types[document],
            suffix: fixed(document + 1..ids.len()),
        })
    }

    /// Sets all token types to 0, for models that do not read them.
    pub fn clear_types(&mut self) {
        self.query_type = 0;
        self.document_type = 0;
        for fixed in [&mut self.prefix, &mut self.middle, &mut self.suffix] {
            fixed.type_ids.fill(0);
        }
    }

    /// Number of special tokens.
    pub fn special_tokens(&self) -> usize {
        self.prefix.ids.len() + self.middle.ids.len() + self.suffix.ids.len()
    }

    /// The highest token type of a pair.
    pub fn highest_type(&self) -> u8 {
        [&self.prefix, &self.middle, &self.suffix]
            .iter()
            .flat_map(|fixed| &fixed.type_ids)
            .fold(self.query_type.max(self.document_type), |a, &b| a.max(b))
    }

    /// Assembles a pair.
    pub fn assemble(&self, query: &[u32], document: &[u32]) -> Encoding {
        let length = self.special_tokens() + query.len() + document.len();
        let mut pair = Encoding {
            ids: Vec::with_capacity(length),
            type_ids: Vec::with_capacity(length),
        };
        append_fixed(&mut pair, &self.prefix);
        append(&mut pair, query, self.query_type);
        append_fixed(&mut pair, &self.middle);
        append(&mut pair, document, self.document_type);
        append_fixed(&mut pair, &self.suffix);
        pair
    }
}

fn append_fixed(pair: &mut Encoding, fixed: &Fixed) {
    pair.ids.extend_from_slice(&fixed.ids);
    pair.type_ids.extend_from_slice(&fixed.type_ids);
}

fn append(pair: &mut Encoding, ids: &[u32], type_id: u8) {
    pair.ids.extend_from_slice(ids);
    pair.type_ids.resize(pair.ids.len(), type_id);
}

/// The only position of `id`.
fn only(ids: &[u32], id: u32) -> Result<usize, ModelError> {
    let mut positions = (0..ids.len()).filter(|&i| ids[i] == id);
    match (positions.next(), positions.next()) {
        (Some(position), None) => Ok(position),
        _ => Err(unsupported("it omits or repeats a text")),
    }
}

fn unsupported(what: &str) -> ModelError {
    ModelError::new(
        format!("`tokenizer.json`: `post_processor` does not support pairs: {what}"),
        "save the tokenizer again with a current version of transformers",
    )
}
