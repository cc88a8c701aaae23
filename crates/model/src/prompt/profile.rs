//! Profiles: declared prompts for models whose files do not describe them.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::encoder::check_roles;
use super::pieces::{self, Part, Piece, Texts};
use super::template::LayoutError;
use super::{
    ChatConfig, DEFAULT_MAX_LENGTH, Layout, MessageFormat, PiecesConfig, PromptConfig, Prompted,
    source,
};
use crate::encoder::text::TextTokenizer;
use crate::head::LogitScore;
use crate::{Files, ModelError, TokenizerConfig};
use rerankd_core::Activation;

/// A profile in the directory of a model.
pub const PROFILE_FILE: &str = "rerankd_profile.json";

/// The shipped profiles, by name.
const SHIPPED: [(&str, &str); 3] = [
    (
        "bge-reranker-v2-gemma",
        include_str!("profiles/bge-reranker-v2-gemma.json"),
    ),
    (
        "mxbai-rerank-v2",
        include_str!("profiles/mxbai-rerank-v2.json"),
    ),
    (
        "qwen3-reranker",
        include_str!("profiles/qwen3-reranker.json"),
    ),
];

/// How a model reads pairs, and which tokens answer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Where it comes from, for messages.
    #[serde(skip)]
    origin: String,
    /// Names of models that it is for; only used by shipped profiles.
    #[serde(default)]
    models: Vec<String>,
    /// The token that means "relevant", as text; unset for a model with a classification head.
    true_token: Option<String>,
    /// The token that means "not relevant"; without it, the score is the logit of `true_token`.
    false_token: Option<String>,
    /// The instruction of requests without one.
    instruction: Option<String>,
    /// Maximum tokens of a pair, or of the pieces that are counted.
    max_length: Option<usize>,
    /// Share of `max_length` that the query may have, in percent; for pieces.
    #[serde(default = "all")]
    query_percent: usize,
    /// From logits to scores.
    activation: Option<ActivationName>,
    /// A chat template with the roles `system` (the instruction), `query` and `document`.
    template: Option<String>,
    /// Pieces that are tokenized one by one, instead of a template.
    pieces: Option<Vec<Piece>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ActivationName {
    Identity,
    Sigmoid,
}

fn all() -> usize {
    100
}

/// The profile that an operator chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProfileChoice {
    /// A shipped profile.
    Shipped(&'static str),
    /// A file.
    File(PathBuf),
}

impl ProfileChoice {
    /// The shipped profile of this name, or else a file.
    pub fn parse(name: &str) -> Self {
        match SHIPPED.iter().find(|(shipped, _)| *shipped == name) {
            Some((shipped, _)) => Self::Shipped(shipped),
            None => Self::File(name.into()),
        }
    }

    pub(super) fn read(&self) -> Result<Profile, ModelError> {
        match self {
            Self::Shipped(name) => Ok(Profile::shipped(name).expect("the choice is shipped")),
            Self::File(path) => Profile::from_file(path),
        }
    }
}

impl Profile {
    /// Names of the shipped profiles, quoted.
    pub fn names() -> Vec<String> {
        SHIPPED
            .iter()
            .map(|(name, _)| format!("`{name}`"))
            .collect()
    }

    /// A shipped profile.
    pub fn shipped(name: &str) -> Option<Self> {
        let (_, text) = SHIPPED.iter().find(|(shipped, _)| *shipped == name)?;
        let profile = Self::parse(text.as_bytes(), format!("the profile `{name}`"));
        Some(profile.expect("a test reads every shipped profile"))
    }

    /// The shipped profile for the model `id`, by the last part of the id.
    pub(super) fn for_model(id: &str) -> Option<Self> {
        let name = id.rsplit('/').next().unwrap_or(id);
        SHIPPED
            .iter()
            .filter_map(|(shipped, _)| Self::shipped(shipped))
            .find(|profile| profile.models.iter().any(|m| m.eq_ignore_ascii_case(name)))
    }

    /// The profile in the model's directory.
    pub(super) fn in_model(files: &Files) -> Result<Option<Self>, ModelError> {
        match files.read(PROFILE_FILE)? {
            None => Ok(None),
            Some(bytes) => Self::parse(&bytes, files.location(PROFILE_FILE)).map(Some),
        }
    }

    fn from_file(path: &Path) -> Result<Self, ModelError> {
        let location = format!("`{}`", path.display());
        let bytes = std::fs::read(path).map_err(|error| {
            ModelError::new(
                format!("cannot read the profile {location}"),
                format!(
                    "pass the path of a JSON file, or one of {}",
                    Self::names().join(", ")
                ),
            )
            .caused_by(error)
        })?;
        Self::parse(&bytes, location)
    }

    fn parse(bytes: &[u8], origin: String) -> Result<Self, ModelError> {
        let mut profile: Self = serde_json::from_slice(bytes).map_err(|error| {
            ModelError::new(
                format!("{origin} is not a profile"),
                "the fields of a profile are in `docs/models.md`",
            )
            .caused_by(error)
        })?;
        profile.origin = origin;
        Ok(profile)
    }

    /// Applies the profile to a model. `generates` is whether the score is a logit of its own head.
    pub(super) fn resolve(&self, files: &Files, generates: bool) -> Result<Prompted, ModelError> {
        let tokenizer = TextTokenizer::new(&files.tokenizer()?, &TokenizerConfig::default())?;
        let score = match (&self.true_token, generates) {
            (Some(text), true) => Some(LogitScore {
                true_token: self.token(&tokenizer, "true_token", text)?,
                false_token: match &self.false_token {
                    Some(text) => Some(self.token(&tokenizer, "false_token", text)?),
                    None => None,
                },
            }),
            (None, false) => None,
            (None, true) => return Err(self.invalid("`true_token` is missing")),
            (Some(_), false) => {
                return Err(
                    self.invalid("`true_token` is set, but the model has a classification head")
                );
            }
        };
        let variables = source::special_tokens(files)?;
        let (layout, max_length) = match (&self.template, &self.pieces) {
            (Some(template), None) => {
                let chat = ChatConfig {
                    template: template.clone(),
                    variables,
                    format: MessageFormat::Flat,
                    restore_suffix: true,
                };
                check_roles(&chat).map_err(|error| self.invalid("`template`").caused_by(error))?;
                (Layout::Chat(chat), self.max_length)
            }
            (None, Some(pieces)) => {
                let config = PiecesConfig {
                    pieces: pieces.clone(),
                    variables,
                    max_length: self.max_length.unwrap_or(DEFAULT_MAX_LENGTH),
                    query_percent: self.query_percent.clamp(1, 100),
                };
                let uncounted = self.uncounted(&config, &tokenizer)?;
                let max_length = config.max_length.saturating_add(uncounted);
                (Layout::Pieces(config), Some(max_length))
            }
            _ => {
                return Err(self.invalid("it needs either `template` or `pieces`"));
            }
        };
        Ok(Prompted {
            config: Some(PromptConfig {
                layout,
                prompts: Default::default(),
                default: self.instruction.clone().filter(|text| !text.is_empty()),
                origin: self.origin.clone(),
            }),
            score,
            max_length,
            activation: self.activation.map(|name| match name {
                ActivationName::Identity => Activation::Identity,
                ActivationName::Sigmoid => Activation::Sigmoid,
            }),
        })
    }

    /// Tokens of the pieces that do not count.
    fn uncounted(
        &self,
        config: &PiecesConfig,
        tokenizer: &TextTokenizer,
    ) -> Result<usize, ModelError> {
        let invalid = |error: LayoutError| self.invalid("`pieces`").caused_by(error);
        let mut tokens = 0;
        for piece in pieces::compile(config).map_err(invalid)? {
            if piece.counted {
                continue;
            }
            if piece.part != Part::Fixed {
                return Err(invalid(LayoutError::TextNotCounted));
            }
            let nothing = Texts {
                instruction: None,
                query: "",
                document: "",
            };
            let text = piece
                .render(nothing)
                .map_err(|error| invalid(error.into()))?;
            tokens += tokenizer
                .count(&text)
                .map_err(|error| self.invalid("`pieces`").caused_by(error))?;
        }
        Ok(tokens)
    }

    fn token(&self, tokenizer: &TextTokenizer, field: &str, text: &str) -> Result<u32, ModelError> {
        let tokens = tokenizer.all(text);
        match tokens.as_deref() {
            Ok([id]) => Ok(*id),
            _ => Err(self.invalid(&format!(
                "`{field}` is `{text}`, which is not one token of this model"
            ))),
        }
    }

    fn invalid(&self, what: &str) -> ModelError {
        ModelError::new(
            format!("{}: {what}", self.origin),
            "the fields of a profile are in `docs/models.md`",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_profiles_are_valid() {
        for (name, text) in SHIPPED {
            let profile = Profile::parse(text.as_bytes(), name.to_owned()).unwrap();
            assert!(
                profile.template.is_some() != profile.pieces.is_some(),
                "{name}"
            );
            assert!(
                profile.true_token.is_some() && !profile.models.is_empty(),
                "{name}"
            );
        }
        let named = |id: &str| Profile::for_model(id).map(|profile| profile.origin);
        assert_eq!(
            named("Qwen/Qwen3-Reranker-0.6B").as_deref(),
            Some("the profile `qwen3-reranker`")
        );
        assert_eq!(named("Qwen/Qwen3-0.6B"), None);
    }

    #[test]
    fn a_profile_with_an_unknown_field_is_refused() {
        let error = Profile::parse(br#"{"templat": "x"}"#, "p".into()).unwrap_err();
        assert!(error.to_string().contains("templat"), "{error}");
    }
}
