//! Several models: the tables `[[models]]` of a configuration file, and `--model NAME=SOURCE`.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use super::{Config, ModelConfig, Setting};

/// A model among several. It is served with the settings of `config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelEntry {
    /// Name in requests and responses.
    pub name: String,
    /// Other names in requests.
    pub aliases: Vec<String>,
    /// Source, revision, precision and the like.
    pub model: ModelConfig,
    /// Weight among the models.
    pub share: u32,
    /// Most bytes that its weights may take.
    pub max_bytes: Option<usize>,
    /// Whether it answers requests that name no model.
    pub is_default: bool,
    /// Whether the others are served if it cannot be loaded.
    pub is_optional: bool,
}

/// The fields of an entry, and the settings that some of them are.
const FIELDS: [(&str, Option<&str>); 14] = [
    ("name", None),
    ("aliases", None),
    ("source", Some("model")),
    ("revision", None),
    ("precision", Some("precision")),
    ("onnx_file", Some("onnx_file")),
    ("profile", Some("profile")),
    ("max_length", Some("max_length")),
    ("instruction", Some("instruction")),
    ("truncation", Some("truncation")),
    ("share", None),
    ("max_bytes", None),
    ("default", None),
    ("optional", None),
];

/// Names all [`FIELDS`].
static FIELDS_HINT: LazyLock<String> = LazyLock::new(|| {
    let names = FIELDS.map(|(name, _)| format!("`{name}`"));
    let (last, others) = names.split_last().expect("there are fields");
    format!(
        "the fields of `[[models]]` are {} and {last}",
        others.join(", ")
    )
});

/// Settings of one model that no entry takes over from the settings of the process.
const NOT_INHERITED: [&str; 6] = [
    "model",
    "onnx_file",
    "served_model_name",
    "profile",
    "max_length",
    "instruction",
];

/// The largest weight of a model.
const MAX_SHARE: u32 = 1000;

/// A value of an entry: a text, or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryValue {
    /// A text, a number or a flag, as the environment would have it.
    One(String),
    /// An array of texts.
    Many(Vec<String>),
}

impl ModelEntry {
    /// The names of settings that cannot be set beside entries, since each entry has its own.
    pub fn replaces(name: &str) -> bool {
        NOT_INHERITED.contains(&name)
    }

    /// The settings with which this model is loaded.
    pub fn config(&self, config: &Config) -> Config {
        Config {
            model: self.model.clone(),
            ..config.clone()
        }
    }

    /// The entry `NAME=SOURCE` of a command line; `None` if `text` is a source alone.
    pub fn named(text: &str) -> Option<(&str, &str)> {
        let (name, source) = text.split_once('=')?;
        let is_name = !name.is_empty() && !name.contains(['/', '\\']);
        (is_name && !source.is_empty() && !std::path::Path::new(text).exists())
            .then_some((name, source))
    }

    /// An entry with these fields, beside the settings of `config`.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn of(
        fields: &[(String, EntryValue)],
        config: &Config,
    ) -> Result<Self, (String, &'static str)> {
        let mut own = Config {
            model: ModelConfig {
                precision: config.model.precision,
                truncation: config.model.truncation,
                device: config.model.device,
                threads: config.model.threads,
                ..ModelConfig::default()
            },
            ..Config::default()
        };
        let mut entry = Self {
            name: String::new(),
            aliases: Vec::new(),
            model: ModelConfig::default(),
            share: 1,
            max_bytes: None,
            is_default: false,
            is_optional: false,
        };
        let mut revision = None;
        for (field, value) in fields {
            let wrong = |what: &str| (format!("`{field}` {what}"), FIELDS_HINT.as_str());
            let one = match value {
                EntryValue::One(text) => text,
                EntryValue::Many(texts) if field == "aliases" => {
                    entry.aliases.clone_from(texts);
                    continue;
                }
                EntryValue::Many(_) => return Err(wrong("must be a single value")),
            };
            let flag = || one.parse().map_err(|_| wrong("must be `true` or `false`"));
            match field.as_str() {
                "name" => entry.name.clone_from(one),
                "aliases" => entry.aliases = vec![one.clone()],
                "revision" => revision = Some(one),
                "share" => {
                    let share = one
                        .parse()
                        .ok()
                        .filter(|share| (1..=MAX_SHARE).contains(share));
                    entry.share = share.ok_or_else(|| wrong("must be from `1` to `1000`"))?;
                }
                "max_bytes" => {
                    let bytes = one.parse().map_err(|_| wrong("must be a whole number"))?;
                    entry.max_bytes = Some(bytes);
                }
                "default" => entry.is_default = flag()?,
                "optional" => entry.is_optional = flag()?,
                _ => {
                    let known = FIELDS.iter().find(|(name, _)| name == field);
                    let name = known.and_then(|(_, setting)| *setting);
                    let name = name.ok_or_else(|| wrong("is not a field of a model"))?;
                    let (setting, _) = Setting::find(name).expect("it is a setting");
                    let set = setting.set(&mut own, one);
                    set.map_err(|error| wrong(&error.to_string()))?;
                }
            }
        }
        if entry.name.is_empty() {
            return Err(("a model has no `name`".to_owned(), "give each model a name"));
        }
        if let Some(revision) = revision {
            let source = own
                .model
                .dir
                .as_deref()
                .map(|dir| dir.display().to_string());
            let source = source.ok_or((
                format!("`{}` has a `revision` and no `source`", entry.name),
                "set `source` to `owner/name` on the hub",
            ))?;
            own.model.dir = Some(format!("{source}@{revision}").into());
        }
        own.model.served_name = Some(entry.name.clone());
        entry.model = own.model;
        Ok(entry)
    }
}

/// What is wrong with a list of models, and what to do.
pub fn check(entries: &[ModelEntry]) -> Result<(), (String, &'static str)> {
    let mut names = BTreeSet::new();
    let all = entries
        .iter()
        .flat_map(|entry| std::iter::once(&entry.name).chain(&entry.aliases));
    for name in all {
        if !names.insert(name) {
            return Err((
                format!("two models are called `{name}`"),
                "give every model names of its own",
            ));
        }
    }
    if entries.iter().filter(|entry| entry.is_default).count() > 1 {
        return Err((
            "several models have `default = true`".to_owned(),
            "mark one of them; without any, the first is the default",
        ));
    }
    if let Some(entry) = entries
        .get(default_of(entries))
        .filter(|entry| entry.is_optional)
    {
        return Err((
            format!("the default model `{}` is `optional`", entry.name),
            "it answers requests that name no model; mark another one with `default = true`, or remove `optional`",
        ));
    }
    Ok(())
}

/// The place of the default model.
pub fn default_of(entries: &[ModelEntry]) -> usize {
    let marked = entries.iter().position(|entry| entry.is_default);
    marked.unwrap_or_default()
}
