//! What the configuration files of a model say, resolved the way sentence-transformers 6.2 and
//! transformers 5 resolve it.
//!
//! Files and who reads them there: `config.json` always; `tokenizer_config.json` by the tokenizer;
//! `config_sentence_transformers.json` and `sentence_bert_config.json` only when `modules.json`
//! exists and the model was saved as a `CrossEncoder`. Without that they are ignored, here too.

use serde_json::Value;

use super::arch::{self, Architecture, EncoderConfig, Kind};
use super::head::{Head, no_head};
use super::json::Object;
use super::modules::SavedSettings;
use super::{Files, ModelError, causal};
use rerankd_core::Activation;

const CONFIG: &str = "config.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const MAX_LABELS: usize = 1 << 16;

/// The tokenizer classes of transformers that overrule parts of `tokenizer.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenizerClass {
    /// `BertTokenizer` and its kin: three settings replace those of the normalizer.
    Bert {
        /// Text is lower-cased.
        lowercase: bool,
        /// Accents are removed; `None` means when lower-casing.
        strip_accents: Option<bool>,
        /// Chinese characters are tokens of their own.
        chinese_chars: bool,
    },
    /// `RobertaTokenizer`: its setting replaces that of the byte-level pre-tokenizer.
    Roberta {
        /// A text that starts with no space gets one.
        add_prefix_space: bool,
    },
    /// Any other: `tokenizer.json` as it is.
    AsSaved,
}

/// How texts become tokens, beyond what `tokenizer.json` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerConfig {
    /// Texts are lower-cased before anything else.
    pub lowercase: bool,
    /// Settings that overrule `tokenizer.json`.
    pub class: TokenizerClass,
    /// Whether the model is told first from second text; otherwise all token types are 0.
    pub uses_type_ids: bool,
    /// Whether texts lose their start instead of their end when they are too long; `None` leaves
    /// it to `tokenizer.json`.
    pub truncate_start: Option<bool>,
    /// Whether special tokens that are written out in a text are ordinary text.
    pub split_special_tokens: bool,
}

impl Default for TokenizerConfig {
    /// `tokenizer.json` as it is.
    fn default() -> Self {
        Self {
            lowercase: false,
            class: TokenizerClass::AsSaved,
            uses_type_ids: true,
            truncate_start: None,
            split_special_tokens: false,
        }
    }
}

impl TokenizerConfig {
    /// The same for a model that does or does not know token types.
    fn for_types(self, known: bool) -> Self {
        Self {
            uses_type_ids: known && self.uses_type_ids,
            ..self
        }
    }
}

/// What was read from `config.json` and its companions, resolved once.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// The directory's name, or that of the embedded model.
    pub id: String,
    /// The name of the architecture.
    pub architecture: &'static str,
    /// The encoder: its sizes, and what its tensors are called.
    pub encoder: EncoderConfig,
    /// What turns the encoder's answer into logits.
    pub head: Head,
    /// Names of the labels, in the order of the logits; at least one.
    pub labels: Vec<String>,
    /// Most tokens of a pair, special tokens included; never more than the model has positions.
    pub max_length: usize,
    /// Text that is put in front of every query.
    pub prompt: Option<String>,
    /// How texts become tokens.
    pub tokenizer: TokenizerConfig,
    /// What stands between logits and scores.
    pub activation: Activation,
}

impl Manifest {
    /// Reads the configuration of the model `id` from its files.
    ///
    /// # Errors
    /// [`ModelError`] when one is missing, broken, or of a model that cannot be served.
    pub fn read(id: String, files: &Files) -> Result<Self, ModelError> {
        let config = config(files)?;
        let tokenizer = tokenizer_settings(files)?;
        let saved = SavedSettings::read(files)?;

        let (architecture, kind) = kind(&config, &saved)?;
        let encoder = (architecture.encoder)(&config, kind)?;
        let labels = all_labels(&config, &saved)?;
        let positions = encoder.usable_positions();
        let head = match &saved.head {
            Some(head) => head.clone(),
            None => (architecture.head)(&config, &encoder, labels.len())?,
        };
        Ok(Self {
            id,
            architecture: architecture.name,
            activation: activation(&config, &saved, labels.len())?,
            max_length: max_length(&tokenizer, &saved, encoder.max_positions)?.min(positions),
            prompt: prompt(&saved)?,
            tokenizer: tokenizer_config(&config, &tokenizer, &saved, kind.tokenizer)?
                .for_types(encoder.tensors.types.is_some()),
            encoder,
            head,
            labels,
        })
    }
}

/// `config.json`, of a model that is whole.
pub(super) fn config(files: &Files) -> Result<Object, ModelError> {
    let Some(config) = Object::read(files, CONFIG)? else {
        return Err(ModelError::new(
            format!("{} is missing", files.place(CONFIG)),
            "pass the directory that `CrossEncoder.save_pretrained` wrote",
        ));
    };
    if files.contains("adapter_config.json") {
        return Err(ModelError::new(
            format!(
                "{} makes this an adapter, which cannot be served",
                files.place("adapter_config.json")
            ),
            "merge it into its base model with `merge_and_unload()` and save that",
        ));
    }
    causal::refuse(&config, files)?;
    Ok(config)
}

/// `tokenizer_config.json`, or what its absence means.
pub(super) fn tokenizer_settings(files: &Files) -> Result<Object, ModelError> {
    let settings = Object::read(files, TOKENIZER_CONFIG)?;
    Ok(settings.unwrap_or_else(|| Object::empty(files.place(TOKENIZER_CONFIG))))
}

/// Whether the graph of the model that `config.json` describes can be built here.
pub fn is_known(files: &Files) -> Result<bool, ModelError> {
    Ok(kind(&config(files)?, &SavedSettings::read(files)?).is_ok())
}

/// Labels of the model that `config.json` and modules describe.
pub(super) fn all_labels(
    config: &Object,
    saved: &SavedSettings,
) -> Result<Vec<String>, ModelError> {
    match &saved.head {
        Some(head) => modular_labels(config, head),
        None => labels(config),
    }
}

/// Which kind of model this is; the class named in `architectures` only tells whether the head was
/// trained, unless the head is in modules of its own.
fn kind(
    config: &Object,
    saved: &SavedSettings,
) -> Result<(&'static Architecture, &'static Kind), ModelError> {
    let class = class(config)?;
    let model_type = config.text("model_type")?;
    let Some(found) = arch::find(model_type, class) else {
        return Err(unknown_architecture(config, model_type.or(class)));
    };
    match class {
        Some(class) if saved.head.is_none() && !class.ends_with("ForSequenceClassification") => {
            Err(no_head(&format!(
                "{}: `architectures` is `{class}`",
                config.place()
            )))
        }
        _ => Ok(found),
    }
}

/// The classifying class in `architectures`, or else its first one.
fn class(config: &Object) -> Result<Option<&str>, ModelError> {
    let Some(classes) = config.list("architectures")? else {
        return Ok(None);
    };
    let mut names = classes.iter().filter_map(Value::as_str);
    let first = names.clone().next();
    Ok(names
        .find(|name| name.ends_with("ForSequenceClassification"))
        .or(first))
}

fn unknown_architecture(config: &Object, found: Option<&str>) -> ModelError {
    let supported: Vec<String> = arch::kinds()
        .map(|(_, kind)| format!("`{}` (`{}`)", kind.class, kind.model_type))
        .collect();
    ModelError::new(
        match found {
            Some(found) => format!(
                "{}: the architecture `{found}` cannot be served",
                config.place()
            ),
            None => format!(
                "{}: neither `model_type` nor `architectures` says what the model is",
                config.place()
            ),
        },
        format!(
            "graphs are built for {}; any other model is served from an ONNX file, which `optimum-cli export onnx --task text-classification` makes",
            supported.join(", ")
        ),
    )
}

/// The labels' names. transformers assumes two labels where `config.json` names none, and
/// sentence-transformers one where `architectures` names no class.
fn labels(config: &Object) -> Result<Vec<String>, ModelError> {
    let named = named_labels(config)?;
    if class(config)?.is_none() && named.as_ref().is_none_or(|labels| labels.len() != 1) {
        return Ok(default_labels(1));
    }
    match named {
        Some(labels) => Ok(labels),
        None => Ok(default_labels(config.size_or(
            "num_labels",
            2,
            MAX_LABELS,
        )?)),
    }
}

/// The names that `config.json` has, where there are as many as the last module has outputs.
fn modular_labels(config: &Object, head: &Head) -> Result<Vec<String>, ModelError> {
    let count = head.outputs();
    let named = named_labels(config)?.filter(|labels| labels.len() == count);
    Ok(named.unwrap_or_else(|| default_labels(count)))
}

fn default_labels(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("LABEL_{i}")).collect()
}

fn named_labels(config: &Object) -> Result<Option<Vec<String>>, ModelError> {
    let Some(names) = config.object("id2label")? else {
        return Ok(None);
    };
    let count = names.names().count();
    if count == 0 || count > MAX_LABELS {
        return Err(config.bad("id2label", &format!("has {count} labels")));
    }
    let label = |i: usize| match names.value(&i.to_string()) {
        Some(Value::String(name)) => Ok(name.clone()),
        Some(other) => Ok(other.to_string()),
        None => Err(config.bad(
            "id2label",
            &format!("has {count} labels but none numbered {i}"),
        )),
    };
    (0..count).map(label).collect::<Result<_, _>>().map(Some)
}

pub(super) fn tokenizer_config(
    config: &Object,
    tokenizer: &Object,
    saved: &SavedSettings,
    default_class: &str,
) -> Result<TokenizerConfig, ModelError> {
    let class = match (
        tokenizer.text("tokenizer_class")?,
        config.text("tokenizer_class")?,
    ) {
        _ if default_class == "TokenizersBackend" => default_class,
        (Some(class), _) | (None, Some(class)) => class,
        (None, None) => default_class,
    };
    let class = match class.strip_suffix("Fast").unwrap_or(class) {
        "ElectraTokenizer" => "BertTokenizer",
        class => class,
    };
    Ok(TokenizerConfig {
        lowercase: match &saved.module {
            Some(module) => module.flag("do_lower_case")?.unwrap_or(false),
            None => false,
        },
        uses_type_ids: uses_type_ids(tokenizer, class)?,
        class: tokenizer_class(tokenizer, class)?,
        truncate_start: truncate_start(tokenizer)?,
        split_special_tokens: tokenizer.flag("split_special_tokens")?.unwrap_or(false),
    })
}

/// The length that sentence-transformers cuts to. It would let a stored length exceed the
/// positions and then fail on long texts; the caller takes the smaller.
pub(super) fn max_length(
    tokenizer: &Object,
    saved: &SavedSettings,
    max_positions: usize,
) -> Result<usize, ModelError> {
    if let Some(module) = &saved.module {
        if let Some(length) = call_length(module)? {
            return Ok(length);
        }
        for field in ["processor_kwargs", "tokenizer_args"] {
            if let Some(kwargs) = module.object(field)?
                && let Some(length) = kwargs.count("model_max_length")?
            {
                return Ok(length);
            }
        }
        if let Some(length) = module.count("max_seq_length")? {
            return Ok(length);
        }
    }
    let limit = match tokenizer.count("model_max_length")? {
        Some(length) => length,
        None => tokenizer.count("max_len")?.unwrap_or(usize::MAX),
    };
    Ok(limit.min(max_positions))
}

/// The length that is passed with every call, which beats all others.
fn call_length(module: &Object) -> Result<Option<usize>, ModelError> {
    let Some(processing) = module.object("processing_kwargs")? else {
        return Ok(None);
    };
    match processing.object("text")? {
        Some(text) => text.count("max_length"),
        None => Ok(None),
    }
}

/// The text of the default prompt; an empty one is none.
pub(super) fn prompt(saved: &SavedSettings) -> Result<Option<String>, ModelError> {
    let Some(model) = &saved.model else {
        return Ok(None);
    };
    let Some(name) = model.text("default_prompt_name")? else {
        return Ok(None);
    };
    let prompts = model.object("prompts")?;
    let Some(prompts) = prompts.filter(|p| p.mentions(name)) else {
        return Err(model.bad(
            "default_prompt_name",
            &format!("is `{name}`, which is not among `prompts`"),
        ));
    };
    let text = prompts.text(name)?.unwrap_or("");
    Ok(Some(text.to_owned()).filter(|t| !t.is_empty()))
}

/// What transformers sets by class, whatever `tokenizer.json` says; absent settings count as the
/// class's defaults.
fn tokenizer_class(tokenizer: &Object, class: &str) -> Result<TokenizerClass, ModelError> {
    Ok(match class {
        "BertTokenizer" | "DistilBertTokenizer" | "MPNetTokenizer" => TokenizerClass::Bert {
            lowercase: tokenizer.flag("do_lower_case")?.unwrap_or(true),
            strip_accents: tokenizer.flag("strip_accents")?,
            chinese_chars: tokenizer.flag("tokenize_chinese_chars")?.unwrap_or(true),
        },
        "RobertaTokenizer" => TokenizerClass::Roberta {
            add_prefix_space: tokenizer.flag("add_prefix_space")?.unwrap_or(false),
        },
        _ => TokenizerClass::AsSaved,
    })
}

/// Of the classes that these models use, only BERT's own passes token types unless it is told to.
fn uses_type_ids(tokenizer: &Object, class: &str) -> Result<bool, ModelError> {
    match tokenizer.list("model_input_names")? {
        Some(inputs) => Ok(inputs.iter().any(|name| name == "token_type_ids")),
        None => Ok(matches!(
            class,
            "BertTokenizer" | "MobileBertTokenizer" | "DebertaTokenizer" | "DebertaV2Tokenizer"
        )),
    }
}

fn truncate_start(tokenizer: &Object) -> Result<Option<bool>, ModelError> {
    match tokenizer.text("truncation_side")? {
        None => Ok(None),
        Some("right") => Ok(Some(false)),
        Some("left") => Ok(Some(true)),
        Some(other) => Err(tokenizer.bad(
            "truncation_side",
            &format!("is `{other}`; it must be `right` or `left`"),
        )),
    }
}

/// The activation, from the first place that names one.
pub(super) fn activation(
    config: &Object,
    saved: &SavedSettings,
    labels: usize,
) -> Result<Activation, ModelError> {
    if let Some(model) = &saved.model
        && let Some(path) = model.text("activation_fn")?
    {
        return named_activation(model, "activation_fn", path);
    }
    const OLD: &str = "sbert_ce_default_activation_function";
    match config.object("sentence_transformers")? {
        // An `activation_fn` of null is a decision for the default, not a missing field.
        Some(section) if section.mentions("activation_fn") => {
            if let Some(path) = section.text("activation_fn")? {
                return named_activation(&section, "activation_fn", path);
            }
        }
        _ => {
            if let Some(path) = config.text(OLD)? {
                return named_activation(config, OLD, path);
            }
        }
    }
    Ok(match labels {
        1 => Activation::Sigmoid,
        _ => Activation::Identity,
    })
}

fn named_activation(object: &Object, field: &str, path: &str) -> Result<Activation, ModelError> {
    Activation::from_torch_path(path).ok_or_else(|| {
        ModelError::new(
            format!("{}: `{field}` is `{path}`, which is not known", object.place()),
            "known are `torch.nn.modules.activation.Sigmoid` and `torch.nn.modules.linear.Identity`",
        )
    })
}
