//! `POST /tokenize` and `POST /decode`.

use rerankd_core::RerankError;
use utoipa::ToSchema;

use crate::answer::Context;
use crate::dialect::{Asked, Body, Served, Work};
use crate::error::{missing, to_json};
use crate::read::form::Flag;
use crate::read::list::OneOrMany;
use crate::read::pair::TokenIds;
use crate::read::{self, request};

/// Reads texts whose tokens are asked for.
pub fn read_texts(body: Body, served: &Served<'_>) -> Result<Asked, RerankError> {
    let request: TokenizeRequest = read::parse(&body.json, &served.limits)?;
    check_prompt(request.prompt_name.as_deref().unwrap_or_default())?;
    let inputs = request.inputs.ok_or_else(|| missing("inputs"))?;
    Ok(served.asked(Work::Tokenize {
        texts: inputs.0.within("inputs", &served.limits)?,
        special_tokens: request.add_special_tokens.unwrap_or(true),
        fill: Box::new(|_: &Context<'_>, tokens| to_json(tokens)),
    }))
}

/// Checks the name of a prompt, which must be empty.
///
/// # Errors
/// Where it names a prompt: this server has none by name.
pub fn check_prompt(name: &str) -> Result<(), RerankError> {
    match name {
        "" => Ok(()),
        _ => Err(RerankError::invalid(
            "`prompt_name` names no prompt of this server; leave it out",
        )),
    }
}

/// Reads tokens whose text is asked for.
pub fn read_ids(body: Body, served: &Served<'_>) -> Result<Asked, RerankError> {
    let request: DecodeRequest = read::parse(&body.json, &served.limits)?;
    let ids = request.ids.ok_or_else(|| missing("ids"))?;
    Ok(served.asked(Work::Decode {
        ids: ids.0.within("ids", &served.limits)?,
        skip_special_tokens: request.skip_special_tokens.unwrap_or(true),
        fill: Box::new(|_: &Context<'_>, texts| to_json(texts)),
    }))
}

request! {
    /// Texts whose tokens are asked for.
    pub struct TokenizeRequest as TeiTokenizeRequest {
        /// A text, or a list of them.
        inputs: OneOrMany as TextsSchema,
        /// Whether the tokens around the text are shown; they are, without.
        add_special_tokens?: bool as Option<Flag>,
        /// The name of a prompt; this server has none by name.
        prompt_name?: String as Option<String> { max_length = 0 },
    }
}

request! {
    /// Tokens whose text is asked for.
    pub struct DecodeRequest as TeiDecodeRequest {
        /// The ids of one text, or of each of several.
        ids: TokenIds as IdsSchema,
        /// Whether special tokens are left out; they are, without.
        skip_special_tokens?: bool as Option<Flag>,
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
