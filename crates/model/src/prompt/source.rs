//! Chat templates and special tokens in the files of a model.

use serde_json::{Map, Value};

use super::MessageFormat;
use crate::json::{Object, read_value};
use crate::tokenizer_class::{self, SPECIAL_TOKENS};
use crate::{Files, ModelError, arch};

/// File of a chat template; it takes precedence over that in the tokenizer's settings.
pub const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Folder of further chat templates.
pub const TEMPLATE_FOLDER: &str = "additional_chat_templates";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const DEFAULT: &str = "default";

/// The source of a template.
pub(super) struct Found {
    pub text: String,
    /// The file, for messages.
    pub location: String,
}

/// The template that transformers uses: `named` (a name or a source), else the default one. Files in Jinja
/// take precedence over `tokenizer_config.json`. `None` if there is none.
pub(super) fn chat_template(
    files: &Files,
    named: Option<&str>,
) -> Result<Option<Found>, ModelError> {
    let named_templates = named_templates(files)?;
    if let Some(named) = named {
        let template = named_templates.into_iter().find(|(name, _)| name == named);
        let found = template.map(|(_, found)| found);
        // transformers takes anything that is not a name as the source.
        return Ok(Some(found.unwrap_or_else(|| Found {
            text: named.to_owned(),
            location: files.location("sentence_bert_config.json"),
        })));
    }
    let only_named = named_templates
        .first()
        .map(|(_, found)| found.location.clone());
    let default = named_templates
        .into_iter()
        .find(|(name, _)| name == DEFAULT);
    match (default, only_named) {
        (Some((_, found)), _) => Ok(Some(found)),
        (None, None) => Ok(None),
        (None, Some(location)) => Err(ModelError::new(
            format!("{location}: there are several chat templates, and none is named `{DEFAULT}`"),
            "set `processing_kwargs.chat_template.chat_template` in `sentence_bert_config.json` to the name of one",
        )),
    }
}

/// All templates by name.
fn named_templates(files: &Files) -> Result<Vec<(String, Found)>, ModelError> {
    let mut templates = Vec::new();
    if let Some(found) = in_file(files, TEMPLATE_FILE)? {
        templates.push((DEFAULT.to_owned(), found));
    }
    for file in files.names_in(TEMPLATE_FOLDER)? {
        if let Some(name) = file.strip_suffix(".jinja")
            && let Some(found) = in_file(files, &format!("{TEMPLATE_FOLDER}/{file}"))?
        {
            templates.push((name.to_owned(), found));
        }
    }
    if !templates.is_empty() {
        return Ok(templates);
    }
    let location = files.location(TOKENIZER_CONFIG);
    let Some(config) = Object::read(files, TOKENIZER_CONFIG)? else {
        return Ok(templates);
    };
    let found = |text: &str| Found {
        text: text.to_owned(),
        location: location.clone(),
    };
    match config.value("chat_template") {
        None => {}
        Some(Value::String(text)) => templates.push((DEFAULT.to_owned(), found(text))),
        Some(Value::Array(entries)) => {
            for entry in entries {
                let field = |name| entry.get(name).and_then(Value::as_str);
                let (Some(name), Some(text)) = (field("name"), field("template")) else {
                    return Err(config
                        .invalid("chat_template", "has an entry without `name` or `template`"));
                };
                templates.push((name.to_owned(), found(text)));
            }
        }
        Some(_) => {
            return Err(config.invalid("chat_template", "is neither a string nor a list"));
        }
    }
    Ok(templates)
}

fn in_file(files: &Files, name: &str) -> Result<Option<Found>, ModelError> {
    let location = files.location(name);
    let Some(bytes) = files.read(name)? else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes.into_owned()).map_err(|error| {
        ModelError::new(
            format!("{location} is not UTF-8"),
            "download the file again from where the model was published",
        )
        .caused_by(error.utf8_error())
    })?;
    Ok(Some(Found { text, location }))
}

/// The special tokens by name, as variables of a template.
pub(super) fn special_tokens(files: &Files) -> Result<Map<String, Value>, ModelError> {
    let mut tokens = Map::new();
    let class = class(files)?;
    for name in SPECIAL_TOKENS {
        if let Some(token) = tokenizer_class::default_token(&class, name) {
            tokens.insert(name.to_owned(), Value::from(token));
        }
    }
    // The last file wins.
    for file in ["special_tokens_map.json", TOKENIZER_CONFIG] {
        let Some(config) = Object::read(files, file)? else {
            continue;
        };
        for name in SPECIAL_TOKENS {
            let token = match config.value(name) {
                Some(Value::Object(token)) => token.get("content").cloned(),
                other => other.cloned(),
            };
            match token {
                Some(Value::String(text)) => {
                    tokens.insert(name.to_owned(), Value::String(text));
                }
                // A `null` takes the default away.
                _ if config.contains(name) => {
                    tokens.remove(name);
                }
                _ => {}
            }
        }
    }
    Ok(tokens)
}

/// The tokenizer class.
fn class(files: &Files) -> Result<String, ModelError> {
    let object = |name| {
        let found = Object::read(files, name)?;
        Ok::<_, ModelError>(found.unwrap_or_else(|| Object::empty(files.location(name))))
    };
    let (config, tokenizer) = (object("config.json")?, object(TOKENIZER_CONFIG)?);
    let kind = arch::find(config.text("model_type")?, None);
    let default = kind.map_or(tokenizer_class::AS_SAVED, |(_, kind)| kind.tokenizer);
    tokenizer_class::name(&config, &tokenizer, default).map(str::to_owned)
}

/// The form of messages that a template expects, as sentence-transformers guesses it.
pub(super) fn infer_format(template: &str) -> MessageFormat {
    const STRUCTURED: [&str; 6] = [
        "content[0]",
        ".type",
        "'type'",
        "\"type\"",
        "item.type",
        "message.content[",
    ];
    match STRUCTURED.iter().any(|mark| template.contains(mark)) {
        true => MessageFormat::Structured,
        false => MessageFormat::Flat,
    }
}

/// The tokens of a vocabulary.
pub(super) struct Vocabulary(Value);

impl Vocabulary {
    pub fn read(files: &Files) -> Result<Self, ModelError> {
        let tokenizer = read_value(files, "tokenizer.json")?;
        Ok(Self(tokenizer.unwrap_or_default()))
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        let added = self.0.get("added_tokens").and_then(Value::as_array);
        let added = added
            .into_iter()
            .flatten()
            .find(|entry| entry["content"] == token);
        let id = match added {
            Some(entry) => entry.get("id"),
            None => self.0.get("model")?.get("vocab")?.get(token),
        };
        u32::try_from(id?.as_u64()?).ok()
    }
}
