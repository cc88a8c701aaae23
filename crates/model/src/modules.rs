//! Modules and settings saved by sentence-transformers.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::head::{Dense, Head, HeadAct, HeadStep, LogitScore, Norm, Pooling, Residual};
use super::json::{Object, read_value};
use super::names::is_file_name;
use super::prompt::template::MessageFormat;
use super::{Files, ModelError};

/// The list of modules.
pub const MODULES: &str = "modules.json";
const ST_CONFIG: &str = "config_sentence_transformers.json";
// Module names of the hidden states, the pooled vector and the logits.
const TOKENS: &str = "token_embeddings";
const VECTOR: &str = "sentence_embedding";
const SCORES: &str = "scores";
const LOGITS: &str = "causal_logits";
/// More than any model has.
const MAX_OUTPUTS: usize = 1 << 16;
/// torch's default epsilon of LayerNorm, which the module does not change.
const NORM_EPSILON: f32 = 1e-5;
/// Names of the Transformer module's settings over the years, in the order in which
/// sentence-transformers looks for them.
pub const MODULE_CONFIGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// Settings of sentence-transformers; all `None` if the model was not saved as a `CrossEncoder`.
#[derive(Default)]
pub(super) struct SavedSettings {
    /// `config_sentence_transformers.json`.
    pub(super) model: Option<Object>,
    /// `sentence_bert_config.json`.
    pub(super) module: Option<Object>,
    /// The modules after the Transformer; `None` if it has the head inside.
    pub(super) head: Option<Head>,
}

/// Settings of the chat template.
pub(super) struct ChatSettings {
    /// Name or source of the template, if it is not the default one.
    pub(super) template: Option<String>,
    /// Whether its tail is put back after truncation.
    pub(super) restore_suffix: bool,
    /// Its variables.
    pub(super) variables: Map<String, Value>,
}

impl SavedSettings {
    pub(super) fn read(files: &Files) -> Result<Self, ModelError> {
        let Some(modules) = modules(files)? else {
            return Ok(Self::default());
        };
        let model = Object::read(files, ST_CONFIG)?;
        let cross_encoder = match &model {
            Some(model) => model.text("model_type")? == Some("CrossEncoder"),
            None => false,
        };
        let after_transformer = &modules[1..];
        if !cross_encoder {
            return match after_transformer {
                [] => Ok(Self::default()),
                [module, ..] => Err(module.unsupported("is not part of a cross-encoder")),
            };
        }
        let mut module = None;
        for name in MODULE_CONFIGS {
            module = Object::read(files, name)?;
            if module.is_some() {
                break;
            }
        }
        if let Some(module) = &module {
            check_transformer(module, Task::before(after_transformer))?;
        }
        let head = match after_transformer {
            [] => None,
            modules => Some(head(files, modules)?),
        };
        Ok(Self {
            model,
            module,
            head,
        })
    }
}

/// Settings of pairs that are written as messages.
impl SavedSettings {
    /// Whether the model was saved as a `CrossEncoder`.
    pub(super) fn is_cross_encoder(&self) -> bool {
        self.model.is_some()
    }

    /// Whether pairs are written as messages, if the model was saved as a `CrossEncoder`.
    pub(super) fn reads_messages(&self) -> Result<bool, ModelError> {
        Ok(self.modality("message")?.is_some())
    }

    /// The form of messages; `None` if it depends on the template.
    pub(super) fn message_format(&self) -> Result<Option<MessageFormat>, ModelError> {
        let Some(message) = self.modality("message")? else {
            return Ok(None);
        };
        match message.text("format")? {
            None | Some("auto") => Ok(None),
            Some("flat") => Ok(Some(MessageFormat::Flat)),
            Some("structured") => Ok(Some(MessageFormat::Structured)),
            Some(other) => Err(message.invalid(
                "format",
                &format!("is `{other}`; it must be `flat`, `structured` or `auto`"),
            )),
        }
    }

    fn modality(&self, name: &str) -> Result<Option<Object>, ModelError> {
        let Some(module) = &self.module else {
            return Ok(None);
        };
        match module.object("modality_config")? {
            Some(modalities) => modalities.object(name),
            None => Ok(None),
        }
    }

    /// `processing_kwargs.chat_template`.
    pub(super) fn chat_template(&self) -> Result<Option<ChatSettings>, ModelError> {
        let Some(kwargs) = self.chat_kwargs()? else {
            return Ok(None);
        };
        for field in ["padding", "truncation", "return_tensors"] {
            if kwargs.value(field).is_some() {
                return Err(kwargs.invalid(field, "is set, which is not supported"));
            }
        }
        const OWN: [&str; 3] = ["chat_template", "restore_suffix", "max_length"];
        let variables = kwargs.names().filter(|name| !OWN.contains(name));
        Ok(Some(ChatSettings {
            template: kwargs.text("chat_template")?.map(str::to_owned),
            restore_suffix: kwargs.flag("restore_suffix")?.unwrap_or(true),
            variables: variables
                .map(|name| {
                    let value = kwargs.value(name).cloned();
                    (name.to_owned(), value.unwrap_or_default())
                })
                .collect(),
        }))
    }

    fn chat_kwargs(&self) -> Result<Option<Object>, ModelError> {
        let Some(module) = &self.module else {
            return Ok(None);
        };
        match module.object("processing_kwargs")? {
            Some(processing) => processing.object("chat_template"),
            None => Ok(None),
        }
    }

    /// Maximum tokens of a pair that is written as messages.
    pub(super) fn chat_max_length(&self) -> Result<Option<usize>, ModelError> {
        match self.chat_kwargs()? {
            Some(kwargs) => kwargs.count("max_length"),
            None => Ok(None),
        }
    }

    /// The prompts by name, and the default one unless it is empty.
    pub(super) fn prompts(&self) -> Result<(BTreeMap<String, String>, Option<String>), ModelError> {
        let mut prompts = BTreeMap::new();
        let Some(model) = &self.model else {
            return Ok((prompts, None));
        };
        if let Some(saved) = model.object("prompts")? {
            for name in saved.names() {
                let text = saved.text(name)?.unwrap_or_default();
                prompts.insert(name.to_owned(), text.to_owned());
            }
        }
        Ok((prompts, self.default_prompt()?))
    }

    /// The default prompt, unless it is empty.
    pub(super) fn default_prompt(&self) -> Result<Option<String>, ModelError> {
        let Some(model) = &self.model else {
            return Ok(None);
        };
        let Some(name) = model.text("default_prompt_name")? else {
            return Ok(None);
        };
        let prompts = model.object("prompts")?;
        let Some(prompts) = prompts.filter(|p| p.contains(name)) else {
            return Err(model.invalid(
                "default_prompt_name",
                &format!("is `{name}`, which is not in `prompts`"),
            ));
        };
        let text = prompts.text(name)?.unwrap_or("");
        Ok(Some(text.to_owned()).filter(|t| !t.is_empty()))
    }
}

/// An entry of `modules.json`.
struct Module {
    /// The file, for messages.
    location: String,
    class: String,
    /// Its subfolder.
    path: String,
}

impl Module {
    /// The class name; empty for classes of other packages.
    fn name(&self) -> &str {
        match self.class.strip_prefix("sentence_transformers.") {
            Some(path) => path.rsplit('.').next().unwrap_or(""),
            None => "",
        }
    }

    fn unsupported(&self, what: &str) -> ModelError {
        ModelError::new(
            format!(
                "{}: the module `{}` at path `{}` {what}",
                self.location, self.class, self.path
            ),
            "a cross-encoder is a `Transformer` with a classification head, or a `Transformer` followed by \
             `Pooling`, `Dense` and `LayerNorm`, the last a `Dense` that writes `scores`",
        )
        .unsupported()
    }

    fn config(&self, files: &Files) -> Result<Object, ModelError> {
        let name = format!("{}/config.json", self.path);
        Object::read(files, &name)?.ok_or_else(|| {
            ModelError::new(
                format!("{} is missing", files.location(&name)),
                "download all files of the model, subfolders included",
            )
        })
    }
}

/// The modules in `modules.json`, a Transformer first; `None` if the file does not exist.
fn modules(files: &Files) -> Result<Option<Vec<Module>>, ModelError> {
    let Some(value) = read_value(files, MODULES)? else {
        return Ok(None);
    };
    let location = files.location(MODULES);
    let Some(entries) = value.as_array().filter(|m| !m.is_empty()) else {
        return Err(ModelError::new(
            format!("{location} is not a list of modules"),
            "download the file again from where the model was published",
        ));
    };
    let modules: Vec<Module> = entries
        .iter()
        .map(|entry| {
            let field = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or("");
            Module {
                location: location.clone(),
                class: field("type").to_owned(),
                path: field("path").to_owned(),
            }
        })
        .collect();
    for (i, module) in modules.iter().enumerate() {
        let known = match i {
            0 => module.name() == "Transformer" && module.path.is_empty(),
            _ => module.name() != "Transformer" && is_file_name(&module.path),
        };
        if !known {
            return Err(module.unsupported("is not supported"));
        }
    }
    Ok(Some(modules))
}

/// Configuration files of the modules after the Transformer.
pub(super) fn configs(files: &Files) -> Result<Vec<String>, ModelError> {
    let modules = modules(files)?.unwrap_or_default();
    let config = |module: &Module| format!("{}/config.json", module.path);
    Ok(modules.iter().skip(1).map(config).collect())
}

/// What the Transformer gives to the modules after it.
#[derive(Clone, Copy, PartialEq)]
enum Task {
    /// Scores: there are no modules after it.
    Classification,
    /// Hidden states.
    Features,
    /// Logits of tokens.
    Generation,
}

impl Task {
    fn before(modules: &[Module]) -> Self {
        match modules {
            [] => Self::Classification,
            [first, ..] if first.name() == "LogitScore" => Self::Generation,
            _ => Self::Features,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Classification => "sequence-classification",
            Self::Features => "feature-extraction",
            Self::Generation => "text-generation",
        }
    }
}

/// The modules after the Transformer, each of which must read the output of the one before it.
fn head(files: &Files, modules: &[Module]) -> Result<Head, ModelError> {
    let [first, rest @ ..] = modules else {
        unreachable!("the caller passes at least one module");
    };
    if first.name() == "LogitScore" {
        return match rest {
            [] => Ok(Head::logit_score(logit_score(&first.config(files)?)?)),
            [module, ..] => Err(module.unsupported("comes after the scores")),
        };
    }
    if first.name() != "Pooling" {
        return Err(first.unsupported("is not supported in this position"));
    }
    let mut head = Head {
        pooling: pooling(&first.config(files)?)?,
        steps: Vec::new(),
        folders: Vec::new(),
    };
    let mut scored = false;
    for module in rest {
        if scored {
            return Err(module.unsupported("comes after the scores"));
        }
        let step = match module.name() {
            // Only used in training.
            "Dropout" => continue,
            "Dense" => {
                let config = module.config(files)?;
                scored = config.text("module_output_name")? == Some(SCORES);
                HeadStep::Dense(dense(&config, &module.path)?)
            }
            "LayerNorm" => HeadStep::Norm(Norm {
                name: format!("{}/norm", module.path),
                bias: true,
                epsilon: NORM_EPSILON,
            }),
            _ => return Err(module.unsupported("is not supported")),
        };
        head.steps.push(step);
        head.folders.push(module.path.clone());
    }
    match (scored, modules.last()) {
        (false, Some(last)) => Err(last.unsupported("is the last, and none writes `scores`")),
        _ => Ok(head),
    }
}

fn logit_score(config: &Object) -> Result<LogitScore, ModelError> {
    expect(config, "module_input_name", LOGITS)?;
    let token = |field: &str| match config.number(field)? {
        None => Ok(None),
        Some(id) if id >= 0.0 && id.fract() == 0.0 && id <= f64::from(u32::MAX) => {
            Ok(Some(id as u32))
        }
        Some(id) => Err(config.invalid(field, &format!("is {id}; it must be a token id"))),
    };
    Ok(LogitScore {
        true_token: token("true_token_id")?
            .ok_or_else(|| config.invalid("true_token_id", "is missing"))?,
        false_token: token("false_token_id")?,
    })
}

fn pooling(config: &Object) -> Result<Vec<Pooling>, ModelError> {
    /// Current name and former flag of each mode, in the order in which flags are concatenated.
    const MODES: [(&str, &str, Pooling); 6] = [
        ("cls", "pooling_mode_cls_token", Pooling::First),
        ("max", "pooling_mode_max_tokens", Pooling::Max),
        ("mean", "pooling_mode_mean_tokens", Pooling::Mean),
        (
            "mean_sqrt_len_tokens",
            "pooling_mode_mean_sqrt_len_tokens",
            Pooling::MeanSqrt,
        ),
        (
            "weightedmean",
            "pooling_mode_weightedmean_tokens",
            Pooling::WeightedMean,
        ),
        ("lasttoken", "pooling_mode_lasttoken", Pooling::Last),
    ];
    if config.flag("include_prompt")? == Some(false) {
        return Err(config.invalid("include_prompt", "is false, which is not supported"));
    }
    let named = match config.value("pooling_mode") {
        Some(Value::String(name)) => vec![name.as_str()],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        Some(_) => return Err(config.invalid("pooling_mode", "is neither a name nor a list")),
        None => {
            let mut named = Vec::new();
            for (name, flag, _) in MODES {
                if config.flag(flag)? == Some(true) {
                    named.push(name);
                }
            }
            if named.is_empty() {
                named.push("mean");
            }
            named
        }
    };
    let mode = |name: &&str| {
        let known = MODES.iter().find(|(mode, ..)| mode == name);
        known.map(|&(.., pooling)| pooling).ok_or_else(|| {
            config.invalid(
                "pooling_mode",
                &format!("is `{name}`, which is not supported"),
            )
        })
    };
    let modes: Vec<Pooling> = named.iter().map(mode).collect::<Result<_, _>>()?;
    if modes.is_empty() {
        return Err(config.invalid("pooling_mode", "is empty"));
    }
    Ok(modes)
}

fn dense(config: &Object, path: &str) -> Result<Dense, ModelError> {
    expect(config, "module_input_name", VECTOR)?;
    if config.text("module_output_name")? != Some(SCORES) {
        expect(config, "module_output_name", VECTOR)?;
    }
    let activation = match config.text("activation_function")? {
        // The module's default.
        None => HeadAct::Tanh,
        Some(function) => HeadAct::from_torch_path(function).ok_or_else(|| {
            config.invalid(
                "activation_function",
                &format!("is `{function}`, which is not supported"),
            )
        })?,
    };
    let out = config.size("out_features", MAX_OUTPUTS)?;
    let residual = match config.flag("use_residual")? {
        Some(true) if config.size("in_features", MAX_OUTPUTS)? == out => Residual::Input,
        Some(true) => Residual::Projected(format!("{path}/residual")),
        _ => Residual::None,
    };
    Ok(Dense {
        name: format!("{path}/linear"),
        out,
        bias: config.flag("bias")?.unwrap_or(true),
        activation,
        residual,
    })
}

/// Rejects a field with another value.
fn expect(config: &Object, field: &str, value: &str) -> Result<(), ModelError> {
    match config.text(field)? {
        Some(other) if other != value => {
            Err(config.invalid(field, &format!("is `{other}`; only `{value}` is supported")))
        }
        _ => Ok(()),
    }
}

/// Rejects settings of the Transformer module that change the encoding of pairs.
fn check_transformer(module: &Object, task: Task) -> Result<(), ModelError> {
    let expected = task.name();
    if let Some(task) = module.text("transformer_task")?
        && task != expected
    {
        return Err(module.invalid(
            "transformer_task",
            &format!("is `{task}`; with these modules only `{expected}` is supported"),
        ));
    }
    match task {
        Task::Classification => {}
        Task::Features => expect(module, "module_output_name", TOKENS)?,
        Task::Generation => expect(module, "module_output_name", LOGITS)?,
    }
    if let Some(modalities) = module.object("modality_config")?
        && let Some(other) = modalities
            .names()
            .find(|name| !["text", "message"].contains(name))
    {
        return Err(module.invalid(
            "modality_config",
            &format!("has `{other}`; only `text` and `message` are supported"),
        ));
    }
    for field in ["query_expansion", "config_kwargs", "config_args"] {
        if module
            .value(field)
            .is_some_and(|v| v.as_object().is_none_or(|o| !o.is_empty()))
        {
            return Err(module.invalid(field, "is set, which is not supported"));
        }
    }
    if let Some(processing) = module.object("processing_kwargs")? {
        check_processing(&processing)?;
    }
    Ok(())
}

fn check_processing(processing: &Object) -> Result<(), ModelError> {
    // Those of `chat_template` are variables of the template.
    for name in processing.names().filter(|name| *name != "chat_template") {
        let Some(kwargs) = processing.object(name)? else {
            continue;
        };
        let other = kwargs
            .names()
            .find(|kw| name != "text" || *kw != "max_length");
        if let Some(other) = other {
            return Err(kwargs.invalid(other, "is set, which is not supported"));
        }
    }
    Ok(())
}
