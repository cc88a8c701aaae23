//! `POST /tokenize` and `POST /decode`.

use serde::Serialize;
use utoipa::ToSchema;

use crate::http::dialect::field::{Flag, Ids, OneOrMany, OptionalText, TokenIds};
use crate::http::dialect::missing;
use crate::http::dialect::request::request;
use rerankd_core::RerankError;
use rerankd_model::encoder::TextToken;

request! {
    /// Texts whose tokens are asked for.
    pub struct TokenizeRequest as TeiTokenizeRequest {
        /// A text, or a list of them.
        inputs: OneOrMany => Vec<String> as TextsSchema,
        /// Whether the tokens around the text are shown; they are, without.
        add_special_tokens: Flag => bool as Option<bool>,
        /// The name of a prompt; this server has none by name.
        prompt_name: OptionalText => String as Option<String> { max_length = 0 },
    }
}

request! {
    /// Tokens whose text is asked for.
    pub struct DecodeRequest as TeiDecodeRequest {
        /// The ids of one text, or of each of several.
        ids: Ids => TokenIds as IdsSchema,
        /// Whether special tokens are left out; they are, without.
        skip_special_tokens: Flag => bool as Option<bool>,
    }
}

#[derive(ToSchema)]
#[schema(as = TeiTexts)]
#[serde(untagged)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
enum TextsSchema {
    One(String),
    Many(Vec<String>),
}

#[derive(ToSchema)]
#[schema(as = TeiIds)]
#[serde(untagged)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
enum IdsSchema {
    One(Vec<u32>),
    Many(Vec<Vec<u32>>),
}

impl TokenizeRequest {
    /// The texts, and whether special tokens are wanted.
    ///
    /// # Errors
    /// When there are none, or a prompt is named.
    pub fn into_texts(self) -> Result<(Vec<String>, bool), RerankError> {
        if self.prompt_name.is_some_and(|name| !name.is_empty()) {
            return Err(RerankError::invalid(
                "`prompt_name` names no prompt of this server; leave it out",
            ));
        }
        let inputs = self.inputs.ok_or_else(|| missing("inputs"))?;
        Ok((inputs, self.add_special_tokens.unwrap_or(true)))
    }
}

impl DecodeRequest {
    /// The ids of each text, and whether special tokens are left out.
    ///
    /// # Errors
    /// When there are none.
    pub fn into_ids(self) -> Result<(Vec<Vec<u32>>, bool), RerankError> {
        let ids = self.ids.ok_or_else(|| missing("ids"))?;
        Ok((ids.lists, self.skip_special_tokens.unwrap_or(true)))
    }
}

/// One token of a text.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TeiToken)]
pub struct Token<'a> {
    id: u32,
    text: &'a str,
    special: bool,
    start: Option<usize>,
    stop: Option<usize>,
}

/// The body that shows the tokens of each text.
pub fn fill_tokens(texts: &[Vec<TextToken>]) -> Vec<Vec<Token<'_>>> {
    fn token(token: &TextToken) -> Token<'_> {
        Token {
            id: token.id,
            text: &token.text,
            special: token.span.is_none(),
            start: token.span.map(|span| span.0),
            stop: token.span.map(|span| span.1),
        }
    }
    texts
        .iter()
        .map(|tokens| tokens.iter().map(token).collect())
        .collect()
}
