//! Showing what the tokenizer makes of a text.

use super::{EncodeError, PairEncoder};

/// One token of a text, for people who look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextToken {
    /// What the model reads.
    pub id: u32,
    /// The part of the text it stands for, or the name of a special token.
    pub text: String,
    /// Where that part lies in the text, in bytes; nowhere for a special token.
    pub span: Option<(usize, usize)>,
}

impl PairEncoder {
    /// The tokens of a single text, none of them cut.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] when the tokenizer cannot represent the text.
    pub fn text_tokens(&self, text: &str, special: bool) -> Result<Vec<TextToken>, EncodeError> {
        let tokens = self
            .side
            .tokenizer()
            .encode(text, special)
            .map_err(|error| EncodeError::Tokenizer(error.to_string()))?;
        let token = |index: usize| {
            let span = tokens.get_offsets()[index];
            let special = tokens.get_special_tokens_mask()[index] == 1;
            let part = text.as_bytes().get(span.0..span.1).unwrap_or_default();
            TextToken {
                id: tokens.get_ids()[index],
                text: match special {
                    true => tokens.get_tokens()[index].clone(),
                    // One character can be several tokens, each of them some of its bytes.
                    false => String::from_utf8_lossy(part).into_owned(),
                },
                span: (!special).then_some(span),
            }
        };
        Ok((0..tokens.len()).map(token).collect())
    }

    /// The text that token ids stand for; ids of no token are passed over.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`] when the tokenizer cannot put them together.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, EncodeError> {
        self.side
            .tokenizer()
            .decode(ids, skip_special)
            .map_err(|error| EncodeError::Tokenizer(error.to_string()))
    }
}
