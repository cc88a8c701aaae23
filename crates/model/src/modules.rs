//! What sentence-transformers saved beside a model: its modules and their settings.

use serde_json::Value;

use super::head::{Dense, Head, HeadAct, HeadStep, Norm, Pooling, Residual};
use super::json::{Object, read_value};
use super::weights::is_file_name;
use super::{Files, ModelError};

/// The list of the modules of sentence-transformers.
pub const MODULES: &str = "modules.json";
const ST_CONFIG: &str = "config_sentence_transformers.json";
/// What modules call the hidden states, the vector that is made of them, and the logits.
const TOKENS: &str = "token_embeddings";
const VECTOR: &str = "sentence_embedding";
const SCORES: &str = "scores";
/// Far more than any model has.
const MAX_OUTPUTS: usize = 1 << 16;
/// LayerNorm's in torch, which the module does not change.
const NORM_EPSILON: f32 = 1e-5;
/// The names under which the Transformer module's own settings were saved over the years, in the
/// order in which sentence-transformers looks for them.
pub const MODULE_CONFIGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// The settings of sentence-transformers, where they count.
pub(super) struct SavedSettings {
    /// `config_sentence_transformers.json`.
    pub(super) model: Option<Object>,
    /// `sentence_bert_config.json`.
    pub(super) module: Option<Object>,
    /// The modules behind the Transformer; `None` where its own head is all there is.
    pub(super) head: Option<Head>,
}

impl SavedSettings {
    pub(super) fn read(files: &Files) -> Result<Self, ModelError> {
        let ignored = Self {
            model: None,
            module: None,
            head: None,
        };
        let Some(modules) = modules(files)? else {
            return Ok(ignored);
        };
        let model = Object::read(files, ST_CONFIG)?;
        let cross_encoder = match &model {
            Some(model) => model.text("model_type")? == Some("CrossEncoder"),
            None => false,
        };
        let [_, behind @ ..] = &modules[..] else {
            return Ok(ignored);
        };
        if !cross_encoder {
            return match behind {
                [] => Ok(ignored),
                [module, ..] => Err(module.refused("is not of a cross-encoder")),
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
            check_transformer(module, !behind.is_empty())?;
        }
        let head = match behind {
            [] => None,
            _ => Some(head(files, behind)?),
        };
        Ok(Self {
            model,
            module,
            head,
        })
    }
}

/// An entry of `modules.json`.
struct Module {
    /// How messages name the file.
    place: String,
    class: String,
    /// Its folder, with nothing else in front.
    path: String,
}

impl Module {
    /// The name of the class; none for one that is not of sentence-transformers.
    fn name(&self) -> &str {
        match self.class.strip_prefix("sentence_transformers.") {
            Some(path) => path.rsplit('.').next().unwrap_or(""),
            None => "",
        }
    }

    fn refused(&self, what: &str) -> ModelError {
        ModelError::new(
            format!(
                "{}: the module `{}` at path `{}` {what}",
                self.place, self.class, self.path
            ),
            "a cross-encoder is a `Transformer` with its head inside, or one with `Pooling`, `Dense` and \
             `LayerNorm` behind it, the last of which is a `Dense` that writes `scores`",
        )
    }

    fn config(&self, files: &Files) -> Result<Object, ModelError> {
        let name = format!("{}/config.json", self.path);
        Object::read(files, &name)?.ok_or_else(|| {
            ModelError::new(
                format!("{} is missing", files.place(&name)),
                "download all files of the model, those in folders too",
            )
        })
    }
}

/// What `modules.json` lists, a Transformer first; `None` when there is no such file.
fn modules(files: &Files) -> Result<Option<Vec<Module>>, ModelError> {
    let Some(value) = read_value(files, MODULES)? else {
        return Ok(None);
    };
    let place = files.place(MODULES);
    let Some(entries) = value.as_array().filter(|m| !m.is_empty()) else {
        return Err(ModelError::new(
            format!("{place}: there is no list of modules"),
            "take the file from the place the model was published at",
        ));
    };
    let modules: Vec<Module> = entries
        .iter()
        .map(|entry| {
            let field = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or("");
            Module {
                place: place.clone(),
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
            return Err(module.refused("is not supported"));
        }
    }
    Ok(Some(modules))
}

/// The settings of the modules behind the Transformer.
pub fn configs(files: &Files) -> Result<Vec<String>, ModelError> {
    let modules = modules(files)?.unwrap_or_default();
    let behind = modules.iter().skip(1);
    Ok(behind
        .map(|module| format!("{}/config.json", module.path))
        .collect())
}

/// The modules behind the Transformer, each of which has to read what the one before it wrote.
fn head(files: &Files, modules: &[Module]) -> Result<Head, ModelError> {
    let [first, rest @ ..] = modules else {
        unreachable!("the caller saw a module");
    };
    if first.name() != "Pooling" {
        return Err(first.refused("is not supported in this place"));
    }
    let mut head = Head {
        pooling: pooling(&first.config(files)?)?,
        steps: Vec::new(),
        folders: Vec::new(),
    };
    let mut scored = false;
    for module in rest {
        if scored {
            return Err(module.refused("comes after the scores"));
        }
        let step = match module.name() {
            // It does nothing when a model is used.
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
            _ => return Err(module.refused("is not supported")),
        };
        head.steps.push(step);
        head.folders.push(module.path.clone());
    }
    match (scored, modules.last()) {
        (false, Some(last)) => Err(last.refused("is the last, and none writes `scores`")),
        _ => Ok(head),
    }
}

fn pooling(config: &Object) -> Result<Vec<Pooling>, ModelError> {
    /// The names of today, those of the flags before, and what they mean, in the order in which
    /// flags are laid side by side.
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
        return Err(config.bad("include_prompt", "is false, which is not supported"));
    }
    let named = match config.value("pooling_mode") {
        Some(Value::String(name)) => vec![name.as_str()],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        Some(_) => return Err(config.bad("pooling_mode", "is neither a name nor a list")),
        None => {
            let mut named = Vec::new();
            for (name, flag, _) in MODES {
                if config.flag(flag)? == Some(true) {
                    named.push(name);
                }
            }
            match named.is_empty() {
                true => vec!["mean"],
                false => named,
            }
        }
    };
    let mode = |name: &&str| {
        let known = MODES.iter().find(|(mode, ..)| mode == name);
        known
            .map(|&(.., pooling)| pooling)
            .ok_or_else(|| config.bad("pooling_mode", &format!("is `{name}`, which is not known")))
    };
    let modes: Vec<Pooling> = named.iter().map(mode).collect::<Result<_, _>>()?;
    match modes.is_empty() {
        true => Err(config.bad("pooling_mode", "names nothing")),
        false => Ok(modes),
    }
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
            config.bad(
                "activation_function",
                &format!("is `{function}`, which is not known"),
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

/// Refuses a field that is there and has another value.
fn expect(config: &Object, field: &str, value: &str) -> Result<(), ModelError> {
    match config.text(field)? {
        Some(other) if other != value => {
            Err(config.bad(field, &format!("is `{other}`; only `{value}` is served")))
        }
        _ => Ok(()),
    }
}

/// Refuses settings of the Transformer module that change how a pair is read.
fn check_transformer(module: &Object, modular: bool) -> Result<(), ModelError> {
    let wanted = match modular {
        true => "feature-extraction",
        false => "sequence-classification",
    };
    if let Some(task) = module.text("transformer_task")?
        && task != wanted
    {
        return Err(module.bad(
            "transformer_task",
            &format!("is `{task}`; with these modules only `{wanted}` is served"),
        ));
    }
    if modular {
        expect(module, "module_output_name", TOKENS)?;
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
