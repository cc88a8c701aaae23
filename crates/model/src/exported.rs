//! A model exported to an ONNX file, with its configuration and tokenizer.

use std::path::{Component, Path, PathBuf};

use super::arch::{MAX_TYPES, MAX_VOCABULARY, pad_token_id};
use super::json::Object;
use super::manifest;
use super::modules::SavedSettings;
use super::{Files, ModelError, ModelOptions, TokenizerConfig, directory_name, prompt};
use rerankd_core::Activation;

/// Default paths of the file, in order of preference.
pub const DEFAULT_PATHS: [&str; 2] = ["onnx/model.onnx", "model.onnx"];

/// Model types whose positions start after the id of the padding token.
const OFFSET_POSITIONS: [&str; 11] = [
    "camembert",
    "data2vec-text",
    "ibert",
    "lilt",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
];

/// A cross-encoder with an ONNX graph, which is not read yet.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportedModel {
    /// The model's id.
    pub id: String,
    /// `model_type` in `config.json`.
    pub architecture: String,
    /// Label names, in the order of the logits; at least one.
    pub labels: Vec<String>,
    /// Maximum tokens of a pair, special tokens included.
    pub max_length: usize,
    /// Text prepended to every query.
    pub prompt: Option<String>,
    /// Tokenizer settings.
    pub tokenizer_config: TokenizerConfig,
    /// Activation from logits to scores.
    pub activation: Activation,
    /// Rows of the word embeddings.
    pub vocab_size: usize,
    /// Number of token types.
    pub type_vocab_size: usize,
    /// Id of the padding token; below `vocab_size`.
    pub pad_token_id: u32,
    /// Position of the first token: 0, or the padding id plus 1 for RoBERTa and its relatives.
    pub first_position: usize,
    /// The content of `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// The ONNX file.
    pub path: PathBuf,
    /// Why the server builds no graph of its own; `None` if the file was asked for by name.
    pub reason: Option<String>,
}

impl ExportedModel {
    /// Opens a directory with an ONNX file: `name`, or one of the [`DEFAULT_PATHS`].
    ///
    /// # Errors
    /// [`ModelError`] if a file is missing or invalid.
    pub fn open(dir: &Path, name: Option<&Path>) -> Result<Self, ModelError> {
        let files = Files::in_directory(dir)?;
        let name = match name {
            Some(name) => relative_path(name)?,
            None => Self::find(&files).unwrap_or(DEFAULT_PATHS[0]).to_owned(),
        };
        let path = dir.join(&name);
        if !path.is_file() {
            return Err(ModelError::new(
                format!("`{}` is missing", path.display()),
                "export the model with `optimum-cli export onnx --task text-classification`, or download the file too",
            ));
        }
        Self::read(directory_name(dir), &files, path)
    }

    /// The first of the [`DEFAULT_PATHS`] that exists.
    pub fn find(files: &Files) -> Option<&'static str> {
        DEFAULT_PATHS.into_iter().find(|path| files.contains(path))
    }

    fn read(id: String, files: &Files, path: PathBuf) -> Result<Self, ModelError> {
        let config = manifest::config(files)?;
        let tokenizer = manifest::tokenizer_settings(files)?;
        let saved = SavedSettings::read(files)?;
        if prompt::resolve(&id, files, &config, &saved, &ModelOptions::default())?.is_some() {
            return Err(ModelError::new(
                format!(
                    "{}: an ONNX file of a causal model is not supported",
                    config.location()
                ),
                "use a directory with its weights in safetensors",
            ));
        }
        let labels = manifest::all_labels(&config, &saved)?;
        let architecture = config.text("model_type")?.unwrap_or("unknown").to_owned();
        let vocab_size = config.size("vocab_size", MAX_VOCABULARY)?;
        let pad_token_id = pad_token_id(&config, 0, vocab_size)?;
        let first_position = if OFFSET_POSITIONS.contains(&architecture.as_str()) {
            pad_token_id as usize + 1
        } else {
            0
        };
        let positions = config.count("max_position_embeddings")?;
        let positions = positions.unwrap_or(usize::MAX);
        let max_length = manifest::max_length(&tokenizer, &saved, positions)?
            .min(positions.saturating_sub(first_position));
        if max_length == 0 || max_length > 1 << 20 {
            return Err(ModelError::new(
                format!(
                    "{}: the maximum length of a pair is unknown",
                    config.location()
                ),
                "set `model_max_length` in `tokenizer_config.json` to the length the model was trained with",
            ));
        }
        Ok(Self {
            id,
            activation: manifest::activation(&config, &saved, labels.len())?,
            labels,
            max_length,
            prompt: saved.default_prompt()?,
            tokenizer_config: manifest::tokenizer_config(
                &config,
                &tokenizer,
                &saved,
                default_tokenizer(&architecture),
            )?,
            architecture,
            vocab_size,
            type_vocab_size: type_vocab_size(&config)?,
            pad_token_id,
            first_position,
            tokenizer: files.tokenizer()?,
            path,
            reason: None,
        })
    }
}

/// A path given by the user, normalized: components separated by `/`.
///
/// # Errors
/// [`ModelError`] if it leaves the model's directory.
pub fn relative_path(name: &Path) -> Result<String, ModelError> {
    if stays_inside(name) {
        return Ok(join("", name));
    }
    Err(ModelError::new(
        format!("`{}` is outside the model's directory", name.display()),
        "give its path in the directory, such as `onnx/model_quantized.onnx`",
    ))
}

/// `name` in the folder of the file `path`, for a name that [`stays_inside`] it.
pub fn sibling(path: &str, name: &Path) -> String {
    join(path.rsplit_once('/').map_or("", |(folder, _)| folder), name)
}

fn join(folder: &str, name: &Path) -> String {
    let names = name.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_string_lossy()),
        _ => None,
    });
    let folder = (!folder.is_empty()).then_some(folder.into());
    let parts: Vec<_> = folder.into_iter().chain(names).collect();
    parts.join("/")
}

/// Whether a relative path stays below its directory, without following links.
pub fn stays_inside(path: &Path) -> bool {
    let mut components = path.components();
    components.clone().next().is_some()
        && components.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// The default tokenizer class, which decides whether token types are passed.
fn default_tokenizer(model_type: &str) -> &'static str {
    match model_type {
        "bert" | "electra" | "mobilebert" | "nomic_bert" | "convbert" | "squeezebert" => {
            "BertTokenizer"
        }
        "deberta" => "DebertaTokenizer",
        "deberta-v2" => "DebertaV2Tokenizer",
        "roberta" => "RobertaTokenizer",
        _ => "PreTrainedTokenizer",
    }
}

/// DeBERTa writes 0 for a model without token types, which ignores them.
fn type_vocab_size(config: &Object) -> Result<usize, ModelError> {
    match config.number("type_vocab_size")? {
        Some(0.0) => Ok(MAX_TYPES),
        _ => config.size_or("type_vocab_size", 2, MAX_TYPES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_the_directory_of_the_model() {
        let named = |name: &str| relative_path(Path::new(name)).map_err(|_| ());
        assert_eq!(named("onnx/model.onnx"), Ok("onnx/model.onnx".into()));
        assert_eq!(named("./onnx//model.onnx"), Ok("onnx/model.onnx".into()));
        assert_eq!(named("../model.onnx"), Err(()));
        for (path, name, expected) in [
            ("model.onnx", "model.onnx_data", "model.onnx_data"),
            ("onnx/model.onnx", "./data", "onnx/data"),
            ("a/b/model.onnx", "c/data", "a/b/c/data"),
        ] {
            assert_eq!(sibling(path, Path::new(name)), expected);
        }
    }

    #[test]
    fn paths_outside_the_directory_are_rejected() {
        for inside in ["model.onnx", "onnx/model.onnx", "./model.onnx_data"] {
            assert!(stays_inside(Path::new(inside)), "{inside}");
        }
        for outside in ["", "/etc/passwd", "../weights", "onnx/../../weights", ".."] {
            assert!(!stays_inside(Path::new(outside)), "{outside}");
        }
    }
}
