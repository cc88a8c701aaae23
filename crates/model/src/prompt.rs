//! Prompts of causal models: how a pair of texts becomes the input that a score is read from.
//!
//! sentence-transformers writes a pair as a conversation with the roles `query` and `document`, preceded
//! by the instruction as `system`, and renders it with the model's chat template. A [`Profile`] does the
//! same for models whose files do not say how: with a template of its own, or with pieces that are
//! tokenized one by one.

mod encoder;
mod pieces;
mod profile;
mod python;
mod source;
pub(crate) mod template;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

pub use encoder::{BoundPrompts, PromptEncoder, PromptQuery};
pub use pieces::Piece;
pub use profile::{PROFILE_FILE, Profile, ProfileChoice};
pub use source::{TEMPLATE_FILE, TEMPLATE_FOLDER};
pub use template::{ChatTemplate, LayoutError, Message, MessageFormat, TemplateError};

use crate::arch;
use crate::head::LogitScore;
use crate::json::Object;
use crate::modules::SavedSettings;
use crate::{Files, ModelError, ModelOptions};
use rerankd_core::Activation;

/// Maximum tokens of a pair, unless the operator sets another.
pub const DEFAULT_MAX_LENGTH: usize = 8192;

/// How a model's pairs are written.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptConfig {
    /// The form of a pair.
    pub layout: Layout,
    /// Instructions by name.
    pub prompts: BTreeMap<String, String>,
    /// The instruction of requests without one; never empty.
    pub default: Option<String>,
    /// Where it comes from, for logs: a file, or a profile.
    pub origin: String,
}

/// The form of a pair.
#[derive(Debug, Clone, PartialEq)]
pub enum Layout {
    /// A conversation, rendered as one text.
    Chat(ChatConfig),
    /// Texts that are tokenized one by one.
    Pieces(PiecesConfig),
}

/// A chat template and its settings.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatConfig {
    /// Source of the template.
    pub template: String,
    /// Its variables: special tokens, and settings such as `add_generation_prompt`.
    pub variables: Map<String, Value>,
    /// Form of the messages.
    pub format: MessageFormat,
    /// Whether the tail of the template is put back after truncation.
    pub restore_suffix: bool,
}

/// Pieces of a prompt, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct PiecesConfig {
    /// The pieces; exactly one has the document.
    pub pieces: Vec<Piece>,
    /// Variables of the pieces: special tokens.
    pub variables: Map<String, Value>,
    /// Maximum tokens of the pieces that are counted.
    pub max_length: usize,
    /// Share of `max_length` that a piece with the query may have, in percent.
    pub query_percent: usize,
}

/// What a causal model's files, or a profile, say about its pairs and their score.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prompted {
    /// `None` if the two texts are tokenized as a pair, without a prompt.
    pub config: Option<PromptConfig>,
    /// The tokens whose logits are the score; `None` if the model has a classification head.
    pub score: Option<LogitScore>,
    /// Maximum tokens of a pair.
    pub max_length: Option<usize>,
    /// From logits to scores, if a profile sets it.
    pub activation: Option<Activation>,
}

/// Resolves how the model `id` reads pairs. `None` if its attention is not causal.
///
/// # Errors
/// [`ModelError`] if the files do not say it and no profile does, or if a template drops a text.
pub(crate) fn resolve(
    id: &str,
    files: &Files,
    config: &Object,
    saved: &SavedSettings,
    options: &ModelOptions,
) -> Result<Option<Prompted>, ModelError> {
    let classes = config.list("architectures")?.into_iter().flatten();
    let class = classes.filter_map(Value::as_str).next();
    let saved_score = saved.head.as_ref().and_then(|head| head.score_tokens());
    let generates =
        saved_score.is_some() || class.is_some_and(|name| name.ends_with("ForCausalLM"));
    let family = config.text("model_type")?;
    let is_causal = family.is_some_and(|family| causal_types().contains(&family));
    if generates && !is_causal {
        let named = class.or(family).unwrap_or("unknown");
        return Err(ModelError::new(
            format!(
                "{}: `{named}`: language models of this kind are not supported",
                config.location()
            ),
            format!(
                "supported are those with a `model_type` of {}",
                causal_types().join(", ")
            ),
        ));
    }
    if !is_causal {
        if saved.reads_messages()? {
            return Err(unsupported_messages(files));
        }
        return match (&options.profile, options.max_length) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(ModelError::new(
                format!(
                    "a maximum length is set, but this model does not read prompts ({})",
                    config.location()
                ),
                "leave `--max-length` unset for this model",
            )),
            (Some(_), _) => Err(ModelError::new(
                format!(
                    "a profile is set, but this model does not read prompts ({})",
                    config.location()
                ),
                "leave `--profile` unset for this model",
            )),
        };
    }
    let model = Source {
        files,
        saved,
        generates,
    };
    let chosen = match &options.profile {
        Some(choice) => Some(choice.read()?),
        None => Profile::in_model(files)?,
    };
    if let Some(profile) = chosen {
        return model.with_profile(&profile).map(Some);
    }
    if saved.is_cross_encoder() {
        return model.as_saved(saved_score).map(Some);
    }
    model.without_modules(id).map(Some)
}

/// Each `model_type` whose attention is causal, in alphabetical order.
fn causal_types() -> Vec<&'static str> {
    let causal = arch::kinds().filter(|(architecture, _)| architecture.is_causal);
    let mut types: Vec<_> = causal.map(|(_, kind)| kind.model_type).collect();
    types.sort_unstable();
    types
}

/// The files of a causal model.
struct Source<'a> {
    files: &'a Files,
    saved: &'a SavedSettings,
    /// Whether the score is a logit of the language model's own head.
    generates: bool,
}

impl Source<'_> {
    fn with_profile(&self, profile: &Profile) -> Result<Prompted, ModelError> {
        profile.resolve(self.files, self.generates)
    }

    /// A model with `modules.json`.
    fn as_saved(&self, score: Option<LogitScore>) -> Result<Prompted, ModelError> {
        if self.saved.reads_messages()? {
            return Ok(Prompted {
                config: Some(self.chat()?),
                score,
                max_length: None,
                activation: None,
            });
        }
        if self.generates {
            return Err(no_prompt(&format!(
                "{}: `modality_config` has no `message`, so the texts would be joined without a prompt",
                self.files.location("sentence_bert_config.json")
            )));
        }
        Ok(as_pair())
    }

    /// A model that sentence-transformers did not save.
    fn without_modules(&self, id: &str) -> Result<Prompted, ModelError> {
        let template = source::chat_template(self.files, None)?;
        let chat = template.is_some().then(|| self.chat());
        match chat {
            Some(Ok(config)) => Ok(Prompted {
                config: Some(config),
                score: self.yes_or_no()?,
                max_length: None,
                activation: None,
            }),
            // A template for chats says nothing about pairs.
            Some(Err(error)) => match Profile::for_model(id) {
                Some(profile) => self.with_profile(&profile),
                None => Err(error),
            },
            None if !self.generates => Ok(as_pair()),
            None => match Profile::for_model(id) {
                Some(profile) => self.with_profile(&profile),
                None => Err(no_prompt(&format!(
                    "{}: this language model has no chat template for pairs",
                    self.files.location("config.json")
                ))),
            },
        }
    }

    /// sentence-transformers' default for a model without modules.
    fn yes_or_no(&self) -> Result<Option<LogitScore>, ModelError> {
        if !self.generates {
            return Ok(None);
        }
        let vocabulary = source::Vocabulary::read(self.files)?;
        let token = |text: &str| {
            vocabulary.id(text).ok_or_else(|| {
                no_prompt(&format!(
                    "{}: there is no token `{text}` to read the score from",
                    self.files.location("tokenizer.json")
                ))
            })
        };
        Ok(Some(LogitScore {
            true_token: token("yes")?,
            false_token: Some(token("no")?),
        }))
    }

    /// The model's own template, which must carry both texts.
    fn chat(&self) -> Result<PromptConfig, ModelError> {
        let settings = self.saved.chat_template()?;
        let named = settings.as_ref().and_then(|s| s.template.as_deref());
        let Some(found) = source::chat_template(self.files, named)? else {
            return Err(no_prompt(&format!(
                "{}: the model has no chat template",
                self.files.location(TEMPLATE_FILE)
            )));
        };
        let mut variables = source::special_tokens(self.files)?;
        let restore_suffix = settings.as_ref().is_none_or(|s| s.restore_suffix);
        variables.extend(settings.into_iter().flat_map(|s| s.variables));
        let format = match self.saved.message_format()? {
            Some(format) => format,
            None => source::infer_format(&found.text),
        };
        let chat = ChatConfig {
            template: found.text,
            variables,
            format,
            restore_suffix,
        };
        encoder::check_roles(&chat).map_err(|error| {
            ModelError::new(
                format!("{}: the chat template cannot carry a pair", found.location),
                format!(
                    "add a `chat_template.jinja` that prints the messages with the roles `query` and \
                     `document`, or describe the prompt in `{PROFILE_FILE}` in the model's directory or with \
                     `--profile`"
                ),
            )
            .caused_by(error)
        })?;
        let (prompts, default) = self.saved.prompts()?;
        Ok(PromptConfig {
            layout: Layout::Chat(chat),
            prompts,
            default,
            origin: found.location,
        })
    }
}

fn as_pair() -> Prompted {
    Prompted {
        config: None,
        score: None,
        max_length: None,
        activation: None,
    }
}

fn no_prompt(what: &str) -> ModelError {
    ModelError::new(
        what,
        format!(
            "add a `chat_template.jinja` for the roles `query` and `document` with sentence-transformers' \
             `modules.json`, or describe the prompt and the answer tokens in a profile: `{PROFILE_FILE}` in \
             the model's directory, or `--profile` with a file or one of {}",
            Profile::names().join(", ")
        ),
    )
}

fn unsupported_messages(files: &Files) -> ModelError {
    ModelError::new(
        format!(
            "{}: `modality_config` has `message`, which is supported for causal models only",
            files.location("sentence_bert_config.json")
        ),
        "use a model that reads two texts",
    )
}

#[cfg(test)]
mod tests;
