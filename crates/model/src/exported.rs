//! A model that somebody else made a graph of: an ONNX file with the configuration and the tokenizer of
//! the model beside it.

use std::path::{Component, Path, PathBuf};

use super::json::Object;
use super::manifest;
use super::modules::SavedSettings;
use super::{Files, ModelError, TokenizerConfig, directory_name};
use rerankd_core::Activation;

/// Where the file lies when it is not named, in the order in which it is looked for.
pub const PLACES: [&str; 2] = ["onnx/model.onnx", "model.onnx"];

/// Kinds of model whose positions begin behind the id of the padding token.
const NUMBERED_PAST_PADDING: [&str; 11] = [
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
const MAX_VOCABULARY: usize = 1 << 25;
/// Token types travel as one byte.
const MAX_TYPES: usize = 256;

/// A cross-encoder whose graph is in an ONNX file. What the file says of itself is not read yet.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportedModel {
    /// The directory's name.
    pub id: String,
    /// What `config.json` calls this kind of model.
    pub architecture: String,
    /// Names of the labels, in the order of the logits; at least one.
    pub labels: Vec<String>,
    /// Most tokens of a pair, special tokens included.
    pub max_length: usize,
    /// Text that is put in front of every query.
    pub prompt: Option<String>,
    /// How texts become tokens.
    pub tokenizer_config: TokenizerConfig,
    /// What stands between logits and scores.
    pub activation: Activation,
    /// Rows of the word embeddings.
    pub vocab_size: usize,
    /// Token types that the model knows.
    pub type_vocab_size: usize,
    /// Id of the padding token; below `vocab_size`.
    pub pad_token_id: u32,
    /// Position of a sequence's first token: 0, or behind the padding id in RoBERTa's kind.
    pub first_position: usize,
    /// The bytes of `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// The ONNX file.
    pub path: PathBuf,
}

impl ExportedModel {
    /// Opens a directory with an ONNX file: the one of this `name` in it, or the one that lies in one of
    /// the usual [`PLACES`].
    ///
    /// # Errors
    /// [`ModelError`] when a file is missing or broken.
    pub fn open(dir: &Path, name: Option<&Path>) -> Result<Self, ModelError> {
        let files = Files::of(dir)?;
        let name = match name {
            Some(name) => place_of(name)?,
            None => Self::find(&files).unwrap_or(PLACES[0]).to_owned(),
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

    /// The file of the usual name, where there is one.
    pub fn find(files: &Files) -> Option<&'static str> {
        PLACES.into_iter().find(|place| files.contains(place))
    }

    fn read(id: String, files: &Files, path: PathBuf) -> Result<Self, ModelError> {
        let config = manifest::config(files)?;
        let tokenizer = manifest::tokenizer_settings(files)?;
        let saved = SavedSettings::read(files)?;
        let labels = manifest::all_labels(&config, &saved)?;
        let architecture = config.text("model_type")?.unwrap_or("unknown").to_owned();
        let vocab_size = config.size("vocab_size", MAX_VOCABULARY)?;
        let pad_token_id = pad_token_id(&config, vocab_size)?;
        let first_position = match NUMBERED_PAST_PADDING.contains(&architecture.as_str()) {
            true => pad_token_id as usize + 1,
            false => 0,
        };
        let positions = config.count("max_position_embeddings")?;
        let positions = positions.unwrap_or(usize::MAX);
        let max_length = manifest::max_length(&tokenizer, &saved, positions)?
            .min(positions.saturating_sub(first_position));
        if max_length == 0 || max_length > 1 << 20 {
            return Err(ModelError::new(
                format!("{}: nothing says how long a pair may be", config.place()),
                "set `model_max_length` in `tokenizer_config.json` to what the model was trained with",
            ));
        }
        Ok(Self {
            id,
            activation: manifest::activation(&config, &saved, labels.len())?,
            labels,
            max_length,
            prompt: manifest::prompt(&saved)?,
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
        })
    }
}

/// The place of a file that somebody named, in the directory of its model: names with `/` between them.
///
/// # Errors
/// [`ModelError`] when it does not lie in there.
pub fn place_of(name: &Path) -> Result<String, ModelError> {
    match stays_inside(name) {
        true => Ok(below("", name)),
        false => Err(ModelError::new(
            format!("`{}` does not lie in the model's directory", name.display()),
            "name it by its path in the directory, such as `onnx/model_quantized.onnx`",
        )),
    }
}

/// The place of the file `name` in the folder of the file at `place`, for a name that
/// [`stays_inside`] of it.
pub fn beside(place: &str, name: &Path) -> String {
    below(
        place.rsplit_once('/').map_or("", |(folder, _)| folder),
        name,
    )
}

fn below(folder: &str, name: &Path) -> String {
    let names = name.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_string_lossy()),
        _ => None,
    });
    let folder = (!folder.is_empty()).then_some(folder.into());
    let parts: Vec<_> = folder.into_iter().chain(names).collect();
    parts.join("/")
}

/// Whether a path leads to a place below the directory that it is taken from, by its names alone.
pub fn stays_inside(path: &Path) -> bool {
    let mut components = path.components();
    components.clone().next().is_some()
        && components.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// The tokenizer's class where no file names one: it only matters to those that pass token types.
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

/// DeBERTa says 0 for a model that does not read them; passing them to it changes nothing.
fn type_vocab_size(config: &Object) -> Result<usize, ModelError> {
    match config.number("type_vocab_size")? {
        Some(0.0) => Ok(MAX_TYPES),
        _ => config.size_or("type_vocab_size", 2, MAX_TYPES),
    }
}

fn pad_token_id(config: &Object, vocab_size: usize) -> Result<u32, ModelError> {
    let id = config.number("pad_token_id")?.unwrap_or(0.0);
    if id >= 0.0 && id.fract() == 0.0 && id < vocab_size as f64 {
        return Ok(id as u32);
    }
    Err(config.bad(
        "pad_token_id",
        &format!("is {id}; it must be a token id below `vocab_size` {vocab_size}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_names_from_the_directory_of_the_model() {
        let named = |name: &str| place_of(Path::new(name)).map_err(|_| ());
        assert_eq!(named("onnx/model.onnx"), Ok("onnx/model.onnx".into()));
        assert_eq!(named("./onnx//model.onnx"), Ok("onnx/model.onnx".into()));
        assert_eq!(named("../model.onnx"), Err(()));
        for (place, name, expected) in [
            ("model.onnx", "model.onnx_data", "model.onnx_data"),
            ("onnx/model.onnx", "./data", "onnx/data"),
            ("a/b/model.onnx", "c/data", "a/b/c/data"),
        ] {
            assert_eq!(beside(place, Path::new(name)), expected);
        }
    }

    #[test]
    fn paths_that_lead_out_of_a_directory_are_told() {
        for inside in ["model.onnx", "onnx/model.onnx", "./model.onnx_data"] {
            assert!(stays_inside(Path::new(inside)), "{inside}");
        }
        for outside in ["", "/etc/passwd", "../weights", "onnx/../../weights", ".."] {
            assert!(!stays_inside(Path::new(outside)), "{outside}");
        }
    }
}
