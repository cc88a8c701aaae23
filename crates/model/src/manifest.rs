//! Resolves the configuration files of a model as sentence-transformers 6.2 and transformers 5 do.
//!
//! `config.json` is always read, `tokenizer_config.json` for the tokenizer, and
//! `config_sentence_transformers.json` and `sentence_bert_config.json` only if `modules.json` exists and
//! the model was saved as a `CrossEncoder`.

use serde_json::Value;

use super::arch::{self, Architecture, EncoderConfig, Kind, MAX_POSITIONS};
use super::head::{Head, no_head};
use super::json::Object;
use super::modules::SavedSettings;
use super::prompt::{self, DEFAULT_MAX_LENGTH, PromptConfig};
use super::tokenizer_class::{self, TokenizerClass};
use super::{Files, ModelError, ModelOptions, causal};
use rerankd_core::Activation;

const CONFIG: &str = "config.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const MAX_LABELS: usize = 1 << 16;
/// How classes for sequence classification are named.
const CLASSIFIER: &str = "ForSequenceClassification";

/// Tokenizer settings besides `tokenizer.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerConfig {
    /// Whether to lower-case texts before anything else.
    pub lowercase: bool,
    /// Settings that override `tokenizer.json`.
    pub class: TokenizerClass,
    /// Whether to pass token types; otherwise all are 0.
    pub uses_type_ids: bool,
    /// Whether to truncate texts at the start instead of the end; `None` means as in `tokenizer.json`.
    pub truncate_start: Option<bool>,
    /// Whether special tokens spelled out in a text are ordinary text.
    pub split_special_tokens: bool,
}

impl Default for TokenizerConfig {
    /// `tokenizer.json` unchanged.
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

/// The resolved configuration of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// The model's id.
    pub id: String,
    /// The name of the architecture.
    pub architecture: &'static str,
    /// Sizes and tensor names of the encoder.
    pub encoder: EncoderConfig,
    /// The classification head.
    pub head: Head,
    /// Label names, in the order of the logits; at least one.
    pub labels: Vec<String>,
    /// Maximum tokens of a pair, special tokens included; at most the usable positions.
    pub max_length: usize,
    /// Text prepended to every query.
    pub prompt: Option<String>,
    /// Whether attention is causal, so that the score is read from the last token.
    pub is_causal: bool,
    /// How pairs are written as prompts; `None` if the two texts are tokenized as a pair.
    pub prompts: Option<PromptConfig>,
    /// Tokenizer settings.
    pub tokenizer: TokenizerConfig,
    /// Activation from logits to scores.
    pub activation: Activation,
}

impl Manifest {
    /// Reads the configuration of the model `id` from its files.
    ///
    /// # Errors
    /// [`ModelError`] if a file is missing or invalid, or the model is not supported.
    pub fn read(id: String, files: &Files, options: &ModelOptions) -> Result<Self, ModelError> {
        let config = config(files)?;
        let tokenizer = tokenizer_settings(files)?;
        let mut saved = SavedSettings::read(files)?;
        let prompted = prompt::resolve(&id, files, &config, &saved, options)?;
        if let Some(score) = prompted.as_ref().and_then(|prompted| prompted.score) {
            saved.head = Some(Head::logit_score(score));
        }

        let (architecture, kind) = kind(&config, &saved)?;
        let mut encoder = (architecture.encoder)(&config, kind).map_err(|error| ModelError {
            // An ONNX file of a causal model cannot be served either.
            is_unsupported: error.is_unsupported && !architecture.is_causal,
            ..error
        })?;
        let labels = all_labels(&config, &saved)?;
        let mut tokenizer_config = tokenizer_config(&config, &tokenizer, &saved, kind.tokenizer)?;
        tokenizer_config.uses_type_ids &= encoder.tensors.types.is_some();
        let head = match &saved.head {
            Some(head) => head.clone(),
            None => (architecture.head)(&config, &encoder, labels.len())?,
        };
        let mut max_length = max_length(&tokenizer, &saved, encoder.max_positions)?;
        // Without a table of positions, the reference reads as far as the files say.
        encoder.extend_positions(max_length.min(MAX_POSITIONS));
        max_length = max_length.min(encoder.usable_positions());
        if let Some(prompted) = &prompted {
            let limit = prompted.max_length.unwrap_or(DEFAULT_MAX_LENGTH);
            max_length = max_length.min(options.max_length.unwrap_or(limit));
        }
        let is_causal = prompted.is_some();
        let (prompts, declared) = match prompted {
            Some(prompted) => (prompted.config, prompted.activation),
            None => (None, None),
        };
        Ok(Self {
            id,
            architecture: architecture.name,
            activation: match declared {
                Some(activation) => activation,
                None => activation(&config, &saved, labels.len())?,
            },
            max_length,
            prompt: match prompts {
                Some(_) => None,
                None => saved.default_prompt()?,
            },
            is_causal,
            prompts,
            tokenizer: tokenizer_config,
            encoder,
            head,
            labels,
        })
    }
}

/// `config.json`. Rejects adapters, and language models that are not supported.
pub(super) fn config(files: &Files) -> Result<Object, ModelError> {
    let Some(config) = Object::read(files, CONFIG)? else {
        return Err(ModelError::new(
            format!("{} is missing", files.location(CONFIG)),
            "pass a directory saved by `CrossEncoder.save_pretrained`",
        ));
    };
    if files.contains("adapter_config.json") {
        return Err(ModelError::new(
            format!(
                "{} marks this as an adapter, which is not supported",
                files.location("adapter_config.json")
            ),
            "merge it into its base model with `merge_and_unload()`, then save the result",
        ));
    }
    causal::reject(&config, files)?;
    Ok(config)
}

/// `tokenizer_config.json`, which is optional.
pub(super) fn tokenizer_settings(files: &Files) -> Result<Object, ModelError> {
    let settings = Object::read(files, TOKENIZER_CONFIG)?;
    Ok(settings.unwrap_or_else(|| Object::empty(files.location(TOKENIZER_CONFIG))))
}

/// Label names.
pub(super) fn all_labels(
    config: &Object,
    saved: &SavedSettings,
) -> Result<Vec<String>, ModelError> {
    match &saved.head {
        Some(head) => modular_labels(config, head),
        None => labels(config),
    }
}

/// The architecture and model type. The class in `architectures` only tells whether there is a trained head,
/// unless the head is in modules of its own.
fn kind(
    config: &Object,
    saved: &SavedSettings,
) -> Result<(&'static Architecture, &'static Kind), ModelError> {
    let class = class(config)?;
    let mut model_type = config.text("model_type")?;
    if config.text("position_embedding_type")? == Some(arch::JINA_BERT_POSITIONS) {
        // JinaBERT calls itself BERT.
        model_type = model_type.map(|kind| match kind {
            "bert" => arch::JINA_BERT,
            other => other,
        });
    }
    let Some(found) = arch::find(model_type, class) else {
        return Err(unknown_architecture(config, model_type.or(class)));
    };
    match class {
        Some(class)
            if saved.head.is_none()
                && !class.ends_with(CLASSIFIER)
                && !names_own_classifier(config)? =>
        {
            let what = format!("{}: `architectures` is `{class}`", config.location());
            Err(no_head(&what).unsupported())
        }
        _ => Ok(found),
    }
}

/// Whether the model comes with code of its own for sequence classification. Then `architectures` may name another
/// class; the weights tell whether there is a trained head.
fn names_own_classifier(config: &Object) -> Result<bool, ModelError> {
    let classes = config.object("auto_map")?;
    Ok(classes.is_some_and(|classes| classes.contains("AutoModelForSequenceClassification")))
}

/// The sequence classification class in `architectures`, or else its first class.
fn class(config: &Object) -> Result<Option<&str>, ModelError> {
    let Some(classes) = config.list("architectures")? else {
        return Ok(None);
    };
    let mut names = classes.iter().filter_map(Value::as_str);
    let first = names.clone().next();
    Ok(names.find(|name| name.ends_with(CLASSIFIER)).or(first))
}

fn unknown_architecture(config: &Object, found: Option<&str>) -> ModelError {
    let supported: Vec<String> = arch::kinds()
        .map(|(_, kind)| format!("`{}` (`{}`)", kind.class, kind.model_type))
        .collect();
    ModelError::new(
        match found {
            Some(found) => format!(
                "{}: the architecture `{found}` is not supported",
                config.location()
            ),
            None => format!(
                "{}: neither `model_type` nor `architectures` names the architecture",
                config.location()
            ),
        },
        format!(
            "supported are {}; export any other model with `optimum-cli export onnx --task text-classification`",
            supported.join(", ")
        ),
    )
    .unsupported()
}

/// Label names from `config.json`. By default, transformers assumes two labels, and sentence-transformers
/// one if `architectures` names no sequence classifier.
fn labels(config: &Object) -> Result<Vec<String>, ModelError> {
    let named = named_labels(config)?;
    let is_classifier = class(config)?.is_some_and(|class| class.ends_with(CLASSIFIER));
    if !is_classifier && named.as_ref().is_none_or(|labels| labels.len() != 1) {
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

/// Label names from `config.json` if there is one per output of the last module.
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
        return Err(config.invalid("id2label", &format!("has {count} labels")));
    }
    let label = |i: usize| match names.value(&i.to_string()) {
        Some(Value::String(name)) => Ok(name.clone()),
        Some(other) => Ok(other.to_string()),
        None => Err(config.invalid("id2label", &format!("has {count} labels but no label {i}"))),
    };
    (0..count).map(label).collect::<Result<_, _>>().map(Some)
}

pub(super) fn tokenizer_config(
    config: &Object,
    tokenizer: &Object,
    saved: &SavedSettings,
    default_class: &str,
) -> Result<TokenizerConfig, ModelError> {
    let class = tokenizer_class::name(config, tokenizer, default_class)?;
    Ok(TokenizerConfig {
        lowercase: match &saved.module {
            Some(module) => module.flag("do_lower_case")?.unwrap_or(false),
            None => false,
        },
        uses_type_ids: uses_type_ids(tokenizer, class)?,
        class: TokenizerClass::read(tokenizer, class)?,
        truncate_start: truncate_start(tokenizer)?,
        split_special_tokens: tokenizer.flag("split_special_tokens")?.unwrap_or(false),
    })
}

/// The length to which sentence-transformers truncates. A saved length may exceed the positions, which
/// the caller must check.
pub(super) fn max_length(
    tokenizer: &Object,
    saved: &SavedSettings,
    max_positions: usize,
) -> Result<usize, ModelError> {
    if let Some(length) = saved.chat_max_length()? {
        return Ok(length);
    }
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

/// The length passed with every call, which takes precedence.
fn call_length(module: &Object) -> Result<Option<usize>, ModelError> {
    let Some(processing) = module.object("processing_kwargs")? else {
        return Ok(None);
    };
    match processing.object("text")? {
        Some(text) => text.count("max_length"),
        None => Ok(None),
    }
}

/// Whether the tokenizer class passes token types; by default only a few do.
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
        Some(other) => Err(tokenizer.invalid(
            "truncation_side",
            &format!("is `{other}`; it must be `right` or `left`"),
        )),
    }
}

/// The activation, from the first file that sets one.
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
    const LEGACY: &str = "sbert_ce_default_activation_function";
    match config.object("sentence_transformers")? {
        // `null` selects the default; it is not a missing field.
        Some(section) if section.contains("activation_fn") => {
            if let Some(path) = section.text("activation_fn")? {
                return named_activation(&section, "activation_fn", path);
            }
        }
        _ => {
            if let Some(path) = config.text(LEGACY)? {
                return named_activation(config, LEGACY, path);
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
            format!("{}: `{field}` is `{path}`, which is not supported", object.location()),
            "supported are `torch.nn.modules.activation.Sigmoid` and `torch.nn.modules.linear.Identity`",
        )
    })
}
