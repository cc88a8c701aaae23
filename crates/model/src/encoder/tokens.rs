//! Tokenizes and decodes single texts, for inspection.

use super::{EncodeError, Encoder};

/// A token of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextToken {
    /// Token id.
    pub id: u32,
    /// Its part of the text, or the name of a special token.
    pub text: String,
    /// Byte range of that part; `None` for a special token.
    pub span: Option<(usize, usize)>,
}

impl Encoder {
    /// The tokens of a text, without truncation.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] if the tokenizer fails.
    pub fn text_tokens(&self, text: &str, special: bool) -> Result<Vec<TextToken>, EncodeError> {
        let tokens = self
            .tokenizer()
            .inner()
            .encode(text, special)
            .map_err(|error| EncodeError::Tokenizer(error.to_string()))?;
        let token = |index: usize| {
            let span = tokens.get_offsets()[index];
            let special = tokens.get_special_tokens_mask()[index] == 1;
            let part = text.as_bytes().get(span.0..span.1).unwrap_or_default();
            TextToken {
                id: tokens.get_ids()[index],
                text: if special {
                    tokens.get_tokens()[index].clone()
                } else {
                    // A token can be part of a character.
                    String::from_utf8_lossy(part).into_owned()
                },
                span: (!special).then_some(span),
            }
        };
        Ok((0..tokens.len()).map(token).collect())
    }

    /// Decodes token ids; unknown ids are skipped.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] if the tokenizer fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, EncodeError> {
        self.tokenizer()
            .inner()
            .decode(ids, skip_special)
            .map_err(|error| EncodeError::Tokenizer(error.to_string()))
    }
}
