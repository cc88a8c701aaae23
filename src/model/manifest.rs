//! What the configuration files of a model say, resolved the way sentence-transformers 6.2 and
//! transformers 5 resolve it.
//!
//! Files and who reads them there: `config.json` always; `tokenizer_config.json` by the tokenizer;
//! `config_sentence_transformers.json` and `sentence_bert_config.json` only when `modules.json`
//! exists and the model was saved as a `CrossEncoder`. Without that they are ignored, here too.

use serde_json::Value;

use super::json::{Object, read_value};
use super::{Files, ModelError, Weights};
use crate::rerank::Activation;

const CONFIG: &str = "config.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const MODULES: &str = "modules.json";
const ST_CONFIG: &str = "config_sentence_transformers.json";
/// The names under which the Transformer module's own settings were saved over the years, in the
/// order in which sentence-transformers looks for them.
const MODULE_CONFIGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// Far beyond every published model, and small enough that no product of two overflows.
const MAX_WIDTH: usize = 1 << 17;
const MAX_LAYERS: usize = 1 << 10;
const MAX_VOCABULARY: usize = 1 << 25;
const MAX_POSITIONS: usize = 1 << 20;
/// Token types travel as one byte.
const MAX_TYPES: usize = 256;
const MAX_LABELS: usize = 1 << 16;

/// The graphs that can be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// BERT: positions from 0, a pooler before the classifier.
    Bert,
    /// RoBERTa, XLM-RoBERTa and CamemBERT: positions from `pad_token_id + 1`, a head of two layers.
    Roberta,
}

impl Architecture {
    /// The name shown to operators and clients.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Roberta => "roberta",
        }
    }

    /// The tensor that only a trained classifier has.
    fn head(self) -> &'static str {
        match self {
            Self::Bert => "classifier.weight",
            Self::Roberta => "classifier.out_proj.weight",
        }
    }
}

/// One kind of model that Hugging Face knows by a name of its own.
struct Kind {
    model_type: &'static str,
    class: &'static str,
    tokenizer: &'static str,
    architecture: Architecture,
    pad_token_id: u32,
}

const KINDS: [Kind; 4] = [
    Kind {
        model_type: "bert",
        class: "BertForSequenceClassification",
        tokenizer: "BertTokenizer",
        architecture: Architecture::Bert,
        pad_token_id: 0,
    },
    Kind {
        model_type: "roberta",
        class: "RobertaForSequenceClassification",
        tokenizer: "RobertaTokenizer",
        architecture: Architecture::Roberta,
        pad_token_id: 1,
    },
    Kind {
        model_type: "xlm-roberta",
        class: "XLMRobertaForSequenceClassification",
        tokenizer: "XLMRobertaTokenizer",
        architecture: Architecture::Roberta,
        pad_token_id: 1,
    },
    Kind {
        model_type: "camembert",
        class: "CamembertForSequenceClassification",
        tokenizer: "CamembertTokenizer",
        architecture: Architecture::Roberta,
        pad_token_id: 1,
    },
];

/// The function between the two matrices of a layer's feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HiddenAct {
    /// GELU by the error function.
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl HiddenAct {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "gelu" | "gelu_python" => Some(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Some(Self::GeluTanh),
            "relu" => Some(Self::Relu),
            _ => None,
        }
    }
}

/// The sizes of the encoder, all checked to be above 0 and to fit together.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// Width of a token's vector; a multiple of `heads`.
    pub hidden_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads of a layer.
    pub heads: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Rows of the word embeddings.
    pub vocab_size: usize,
    /// Rows of the position embeddings; RoBERTa uses `max_positions - pad_token_id - 1` of them.
    pub max_positions: usize,
    /// Rows of the token type embeddings, at most 256.
    pub type_vocab_size: usize,
    /// Added to the variance in LayerNorm.
    pub layer_norm_eps: f32,
    /// Id of the padding token; below `vocab_size`.
    pub pad_token_id: u32,
    /// Function of the feed-forward part.
    pub hidden_act: HiddenAct,
}

/// The tokenizer classes of transformers that overrule parts of `tokenizer.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenizerClass {
    /// `BertTokenizer`: its three settings replace those of the normalizer.
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

/// What was read from `config.json` and its companions, resolved once.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// The directory's name, or that of the embedded model.
    pub id: String,
    /// Which graph the weights are for.
    pub architecture: Architecture,
    /// The sizes of the encoder.
    pub encoder: EncoderConfig,
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
    pub(super) fn read(id: String, files: &Files) -> Result<Self, ModelError> {
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
        let tokenizer = Object::read(files, TOKENIZER_CONFIG)?
            .unwrap_or_else(|| Object::empty(files.place(TOKENIZER_CONFIG)));
        let saved = SavedSettings::read(files)?;

        let kind = kind(&config)?;
        let encoder = encoder(&config, kind)?;
        let labels = labels(&config)?;
        let positions = usable_positions(&config, kind.architecture, &encoder)?;
        Ok(Self {
            id,
            architecture: kind.architecture,
            activation: activation(&config, &saved, labels.len())?,
            max_length: max_length(&tokenizer, &saved, &encoder)?.min(positions),
            prompt: prompt(&saved)?,
            tokenizer: tokenizer_config(&config, &tokenizer, &saved, kind)?,
            encoder,
            labels,
        })
    }

    /// Refuses weights without a classifier: transformers would make up a random one.
    pub(super) fn check_head(&self, weights: &Weights) -> Result<(), ModelError> {
        let name = self.architecture.head();
        let expected = [self.labels.len(), self.encoder.hidden_size];
        match weights.shape(name) {
            Some(shape) if shape == expected => Ok(()),
            Some(shape) => Err(ModelError::new(
                format!(
                    "{}: `{name}` has the shape {shape:?}; {} labels and `hidden_size` {} make it {expected:?}",
                    weights.place(),
                    self.labels.len(),
                    self.encoder.hidden_size
                ),
                "check that `config.json` (`id2label`) and the weights belong together",
            )),
            None => Err(no_head(&format!(
                "{}: there is no tensor `{name}`",
                weights.place()
            ))),
        }
    }
}

fn no_head(what: &str) -> ModelError {
    ModelError::new(
        format!("{what}, so this model has no classification head"),
        "pass a cross-encoder; an embedding model or a bare base model cannot judge a pair until it is trained to",
    )
}

/// The settings of sentence-transformers, where they count.
struct SavedSettings {
    /// `config_sentence_transformers.json`.
    model: Option<Object>,
    /// `sentence_bert_config.json`.
    module: Option<Object>,
}

impl SavedSettings {
    fn read(files: &Files) -> Result<Self, ModelError> {
        let ignored = Self {
            model: None,
            module: None,
        };
        if !has_plain_modules(files)? {
            return Ok(ignored);
        }
        let Some(model) = Object::read(files, ST_CONFIG)? else {
            return Ok(ignored);
        };
        if model.text("model_type")? != Some("CrossEncoder") {
            return Ok(ignored);
        }
        let mut module = None;
        for name in MODULE_CONFIGS {
            module = Object::read(files, name)?;
            if module.is_some() {
                break;
            }
        }
        if let Some(module) = &module {
            check_module(module)?;
        }
        Ok(Self {
            model: Some(model),
            module,
        })
    }
}

/// Whether there is a `modules.json`; an error when it lists more than the Transformer itself.
fn has_plain_modules(files: &Files) -> Result<bool, ModelError> {
    let Some(value) = read_value(files, MODULES)? else {
        return Ok(false);
    };
    let place = files.place(MODULES);
    let refuse = |what: String| {
        Err(ModelError::new(
            format!("{place}: {what}"),
            "only a cross-encoder of one `Transformer` module with its head inside can be served",
        ))
    };
    let Some(modules) = value.as_array().filter(|m| !m.is_empty()) else {
        return refuse("there is no list of modules".into());
    };
    for (i, module) in modules.iter().enumerate() {
        let field = |name: &str| module.get(name).and_then(Value::as_str).unwrap_or("");
        let (class, path) = (field("type"), field("path"));
        let plain = class.starts_with("sentence_transformers.")
            && class.ends_with(".Transformer")
            && path.is_empty();
        if i > 0 || !plain {
            return refuse(format!(
                "the module `{class}` at path `{path}` is not supported"
            ));
        }
    }
    Ok(true)
}

/// Refuses settings of the Transformer module that change how a pair is read.
fn check_module(module: &Object) -> Result<(), ModelError> {
    if let Some(task) = module.text("transformer_task")?
        && task != "sequence-classification"
    {
        return Err(module.bad(
            "transformer_task",
            &format!("is `{task}`; only `sequence-classification` is served"),
        ));
    }
    if let Some(modalities) = module.object("modality_config")?
        && let Some(other) = modalities.names().find(|name| *name != "text")
    {
        return Err(module.bad(
            "modality_config",
            &format!("has `{other}`; only `text` is served"),
        ));
    }
    for field in ["query_expansion", "config_kwargs", "config_args"] {
        if module
            .value(field)
            .is_some_and(|v| v.as_object().is_none_or(|o| !o.is_empty()))
        {
            return Err(module.bad(field, "is set, which is not supported"));
        }
    }
    if let Some(processing) = module.object("processing_kwargs")? {
        check_processing(&processing)?;
    }
    Ok(())
}

fn check_processing(processing: &Object) -> Result<(), ModelError> {
    for name in processing.names() {
        let Some(kwargs) = processing.object(name)? else {
            continue;
        };
        let other = kwargs
            .names()
            .find(|kw| name != "text" || *kw != "max_length");
        if let Some(other) = other {
            return Err(kwargs.bad(other, "is set, which is not supported"));
        }
    }
    Ok(())
}

/// Which kind of model this is. As in transformers, `model_type` decides and the class named in
/// `architectures` only tells whether the head was trained.
fn kind(config: &Object) -> Result<&'static Kind, ModelError> {
    let class = class(config)?;
    let model_type = config.text("model_type")?;
    let kind = match (model_type, class) {
        (Some(model_type), _) => KINDS.iter().find(|k| k.model_type == model_type),
        (None, Some(class)) => KINDS.iter().find(|k| class.starts_with(k.class_prefix())),
        (None, None) => None,
    };
    let Some(kind) = kind else {
        return Err(unknown_architecture(config, model_type.or(class)));
    };
    match class {
        Some(class) if !class.ends_with("ForSequenceClassification") => Err(no_head(&format!(
            "{}: `architectures` is `{class}`",
            config.place()
        ))),
        _ => Ok(kind),
    }
}

impl Kind {
    fn class_prefix(&self) -> &'static str {
        self.class.trim_end_matches("SequenceClassification")
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
    let supported: Vec<String> = KINDS
        .iter()
        .map(|k| format!("`{}` (`{}`)", k.class, k.model_type))
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
        format!("supported are {}", supported.join(", ")),
    )
}

fn encoder(config: &Object, kind: &Kind) -> Result<EncoderConfig, ModelError> {
    check_attention(config)?;
    let encoder = EncoderConfig {
        hidden_size: config.size("hidden_size", MAX_WIDTH)?,
        layers: config.size("num_hidden_layers", MAX_LAYERS)?,
        heads: config.size("num_attention_heads", MAX_WIDTH)?,
        intermediate_size: config.size("intermediate_size", MAX_WIDTH)?,
        vocab_size: config.size("vocab_size", MAX_VOCABULARY)?,
        max_positions: config.size("max_position_embeddings", MAX_POSITIONS)?,
        type_vocab_size: config.size_or("type_vocab_size", 2, MAX_TYPES)?,
        layer_norm_eps: layer_norm_eps(config)?,
        pad_token_id: pad_token_id(config, kind)?,
        hidden_act: hidden_act(config)?,
    };
    if !encoder.hidden_size.is_multiple_of(encoder.heads) {
        return Err(config.bad(
            "num_attention_heads",
            &format!(
                "is {}, which does not divide `hidden_size` {}",
                encoder.heads, encoder.hidden_size
            ),
        ));
    }
    if encoder.pad_token_id as usize >= encoder.vocab_size {
        return Err(config.bad(
            "pad_token_id",
            &format!(
                "is {}, not below `vocab_size` {}",
                encoder.pad_token_id, encoder.vocab_size
            ),
        ));
    }
    Ok(encoder)
}

/// Refuses attention that the graph does not compute.
fn check_attention(config: &Object) -> Result<(), ModelError> {
    if let Some(kind) = config.text("position_embedding_type")?
        && kind != "absolute"
    {
        return Err(config.bad(
            "position_embedding_type",
            &format!("is `{kind}`; only `absolute` is served"),
        ));
    }
    for field in ["is_decoder", "add_cross_attention"] {
        if config.flag(field)? == Some(true) {
            return Err(config.bad(field, "is true; only encoders are served"));
        }
    }
    Ok(())
}

fn layer_norm_eps(config: &Object) -> Result<f32, ModelError> {
    let eps = config.number("layer_norm_eps")?.unwrap_or(1e-12);
    if eps > 0.0 && eps < 1.0 {
        return Ok(eps as f32);
    }
    Err(config.bad(
        "layer_norm_eps",
        &format!("is {eps}; it must be between 0 and 1"),
    ))
}

fn pad_token_id(config: &Object, kind: &Kind) -> Result<u32, ModelError> {
    let Some(id) = config.number("pad_token_id")? else {
        return Ok(kind.pad_token_id);
    };
    if id >= 0.0 && id.fract() == 0.0 && id < MAX_VOCABULARY as f64 {
        return Ok(id as u32);
    }
    Err(config.bad("pad_token_id", &format!("is {id}; it must be a token id")))
}

fn hidden_act(config: &Object) -> Result<HiddenAct, ModelError> {
    let name = config.text("hidden_act")?.unwrap_or("gelu");
    HiddenAct::from_name(name).ok_or_else(|| {
        config.bad(
            "hidden_act",
            &format!("is `{name}`; `gelu`, `gelu_new`, `gelu_pytorch_tanh` and `relu` are served"),
        )
    })
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

/// Tokens that the position embeddings have room for: RoBERTa leaves the first rows to padding.
fn usable_positions(
    config: &Object,
    architecture: Architecture,
    encoder: &EncoderConfig,
) -> Result<usize, ModelError> {
    let unused = match architecture {
        Architecture::Bert => 0,
        Architecture::Roberta => encoder.pad_token_id as usize + 1,
    };
    match encoder.max_positions.checked_sub(unused) {
        Some(positions) if positions > 0 => Ok(positions),
        _ => Err(config.bad(
            "max_position_embeddings",
            &format!(
                "is {}, which leaves no position after `pad_token_id` {}",
                encoder.max_positions, encoder.pad_token_id
            ),
        )),
    }
}

fn tokenizer_config(
    config: &Object,
    tokenizer: &Object,
    saved: &SavedSettings,
    kind: &Kind,
) -> Result<TokenizerConfig, ModelError> {
    let class = match (
        tokenizer.text("tokenizer_class")?,
        config.text("tokenizer_class")?,
    ) {
        (Some(class), _) | (None, Some(class)) => class,
        (None, None) => kind.tokenizer,
    };
    let class = class.strip_suffix("Fast").unwrap_or(class);
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
fn max_length(
    tokenizer: &Object,
    saved: &SavedSettings,
    encoder: &EncoderConfig,
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
    Ok(limit.min(encoder.max_positions))
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
fn prompt(saved: &SavedSettings) -> Result<Option<String>, ModelError> {
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
        "BertTokenizer" => TokenizerClass::Bert {
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
        None => Ok(class == "BertTokenizer"),
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
fn activation(
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
