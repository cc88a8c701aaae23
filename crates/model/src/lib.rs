//! Loads a cross-encoder from disk: configuration, tokenizer, weights and ONNX graphs.
//!
//! Everything is validated here, once, so that a broken model fails at startup and not during a
//! request.

pub mod arch;
mod causal;
pub mod encoder;
pub mod exported;
pub mod graph;
pub mod head;
pub mod json;
pub mod manifest;
pub mod modules;
pub mod names;
pub mod onnx;
pub mod prompt;
pub mod rotary;
pub mod tokenizer_class;
pub mod weights;

#[cfg(embedded_model)]
mod embedded;

use std::borrow::Cow;
use std::error::Error;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

pub use arch::{
    AttentionPositions, Decoder, Disentangled, EncoderConfig, HiddenAct, LayerForm, PostNormGated,
    PreNormGated, RelativeBias,
};
pub use exported::ExportedModel;
pub use head::Head;
pub use manifest::{Manifest, TokenizerConfig};
pub use prompt::ProfileChoice;
pub use tokenizer_class::TokenizerClass;
pub use weights::Weights;

use weights::Source;

/// Why a model cannot be loaded, for the operator who starts the server.
///
/// Displays as two lines: the problem, with the file and the underlying error, then `hint: ` and the fix.
#[derive(Debug, thiserror::Error)]
#[error("{message}\nhint: {hint}")]
pub struct ModelError {
    message: String,
    hint: String,
    source: Option<Box<dyn Error + Send + Sync>>,
    is_unsupported: bool,
}

impl ModelError {
    /// `message` names the file and the problem, `hint` the fix.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: hint.into(),
            source: None,
            is_unsupported: false,
        }
    }

    /// Marks a model that is intact but has no graph here, and can be served from an ONNX file.
    #[must_use]
    pub fn unsupported(self) -> Self {
        Self {
            is_unsupported: true,
            ..self
        }
    }

    /// Whether the model is intact but has no graph here.
    pub fn is_unsupported(&self) -> bool {
        self.is_unsupported
    }

    /// Appends the underlying error to the message, and returns it as [`Error::source`].
    #[must_use]
    pub fn caused_by(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let source = source.into();
        Self {
            message: format!("{}: {source}", self.message),
            source: Some(source),
            ..self
        }
    }

    /// The problem, the file it is in and the underlying error.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// How to fix it.
    pub fn hint(&self) -> &str {
        &self.hint
    }
}

/// What an operator sets about a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelOptions {
    /// The profile of a causal model, instead of what its files say.
    pub profile: Option<ProfileChoice>,
    /// Maximum tokens of a causal model's pairs, instead of [`prompt::DEFAULT_MAX_LENGTH`].
    pub max_length: Option<usize>,
}

/// A cross-encoder that the server builds a graph for. Its files are complete and consistent; the
/// shapes of the weights are checked as each one is read.
#[derive(Debug)]
pub struct Model {
    /// The resolved configuration.
    pub manifest: Manifest,
    /// The content of `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// The weights, read from disk on demand.
    pub weights: Weights,
}

impl Model {
    /// Opens a directory saved by sentence-transformers or transformers.
    ///
    /// # Errors
    /// [`ModelError`] if a file is missing or invalid, or the architecture is not supported.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        Self::open_with(dir, &ModelOptions::default())
    }

    /// [`Model::open`] with settings of the operator.
    ///
    /// # Errors
    /// Same as [`Model::open`]; also if a profile is set and cannot be used.
    pub fn open_with(dir: &Path, options: &ModelOptions) -> Result<Self, ModelError> {
        Self::load(directory_name(dir), &Files::in_directory(dir)?, options)
    }

    /// Opens a model whose files, as pairs of name and content, are compiled in.
    ///
    /// # Errors
    /// Same as [`Model::open`]. The weights must be a single `model.safetensors`.
    pub fn from_memory(
        id: &str,
        files: &'static [(&'static str, &'static [u8])],
    ) -> Result<Self, ModelError> {
        Self::load(
            id.to_owned(),
            &Files::Memory(files),
            &ModelOptions::default(),
        )
    }

    /// Opens the embedded model.
    ///
    /// # Errors
    /// [`ModelError`] if this build has no embedded model.
    pub fn embedded() -> Result<Self, ModelError> {
        #[cfg(embedded_model)]
        return Self::from_memory(embedded::ID, embedded::FILES);
        #[cfg(not(embedded_model))]
        Err(ModelError::new(
            "this build has no built-in model",
            "pass `--model` with the directory of a cross-encoder, or its name on the hub: \
             `--model cross-encoder/ms-marco-MiniLM-L6-v2`",
        ))
    }

    /// Configuration and tokenizer files of the model in `dir`, or of the embedded model, as pairs of
    /// name and content.
    ///
    /// # Errors
    /// [`ModelError`] if a file cannot be read.
    pub fn companions(dir: Option<&Path>) -> Result<Vec<(String, Vec<u8>)>, ModelError> {
        match dir {
            Some(dir) => Files::in_directory(dir)?.companions(),
            #[cfg(embedded_model)]
            None => Files::Memory(embedded::FILES).companions(),
            #[cfg(not(embedded_model))]
            None => Ok(Vec::new()),
        }
    }

    fn load(id: String, files: &Files, options: &ModelOptions) -> Result<Self, ModelError> {
        let mut manifest = Manifest::read(id, files, options)?;
        let tokenizer = files.tokenizer()?;
        let mut weights = files.weights()?;
        for folder in &manifest.head.folders {
            files.add_folder(&mut weights, folder)?;
        }
        let layers = manifest.encoder.layers;
        manifest.encoder.tensors.resolve(&mut weights, layers);
        manifest.encoder.check_layout(&weights)?;
        manifest
            .head
            .check(&weights, manifest.encoder.hidden_size)?;
        if manifest.encoder.decoder().is_some() && !manifest.head.reads_last_token_only() {
            return Err(ModelError::new(
                format!(
                    "{}: a decoder whose head reads more than the last token is not supported",
                    files.root()
                ),
                "use a decoder that scores with its last token",
            ));
        }
        Ok(Self {
            manifest,
            tokenizer,
            weights,
        })
    }
}

/// A model in either format.
#[derive(Debug)]
pub enum AnyModel {
    /// The server builds the graph from the weights.
    Built(Box<Model>),
    /// The graph is an ONNX file.
    Exported(Box<ExportedModel>),
}

impl AnyModel {
    /// Opens a directory: the given ONNX file, else weights of a supported architecture, else an ONNX file
    /// at one of the [default paths](exported::DEFAULT_PATHS).
    ///
    /// # Errors
    /// Same as [`Model::open`] and [`ExportedModel::open`]. If the architecture is not supported, the hint names
    /// the files that could be passed as an ONNX file.
    pub fn open(dir: &Path, onnx_file: Option<&Path>) -> Result<Self, ModelError> {
        Self::open_with(dir, onnx_file, &ModelOptions::default())
    }

    /// [`AnyModel::open`] with settings of the operator.
    ///
    /// # Errors
    /// Same as [`AnyModel::open`]; also if a profile or a maximum length is set and cannot be used.
    pub fn open_with(
        dir: &Path,
        onnx_file: Option<&Path>,
        options: &ModelOptions,
    ) -> Result<Self, ModelError> {
        let files = Files::in_directory(dir)?;
        let reason = match onnx_file {
            Some(_) => None,
            None => {
                let has_onnx = ExportedModel::find(&files).is_some();
                if has_onnx && !files.has_weights() {
                    Some(format!("there is no `{WEIGHTS_FILE}`"))
                } else {
                    match Model::open_with(dir, options) {
                        Ok(model) => return Ok(Self::Built(Box::new(model))),
                        Err(error) if error.is_unsupported && has_onnx => Some(error.message),
                        Err(error) if error.is_unsupported => return Err(files.suggest_onnx(error)),
                        Err(error) => return Err(error),
                    }
                }
            }
        };
        if options.max_length.is_some() {
            return Err(ModelError::new(
                format!(
                    "a maximum length is set, but {} holds an ONNX file, which has its own",
                    dir.display()
                ),
                "leave `--max-length` unset for this model",
            ));
        }
        let model = ExportedModel::open(dir, onnx_file)?;
        Ok(Self::Exported(Box::new(ExportedModel { reason, ..model })))
    }
}

/// The model's id: `owner/name` for a hub snapshot, else the last component of the canonical path, so that
/// `--model .` has a name too.
fn directory_name(dir: &Path) -> String {
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    if let Some(id) = names::ModelId::from_snapshot(&real) {
        return id.path();
    }
    real.file_name()
        .map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned())
}

/// Unsharded weights.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Index of sharded weights.
pub const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// Weights in pickle format, which can run code when they are loaded.
pub const PICKLES: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/// Configuration and tokenizer files, besides [`modules::MODULE_CONFIGS`].
const COMPANIONS: [&str; 10] = [
    prompt::TEMPLATE_FILE,
    "config.json",
    "config_sentence_transformers.json",
    modules::MODULES,
    prompt::PROFILE_FILE,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "sentencepiece.bpe.model",
];

/// The files of a model.
pub enum Files {
    /// In a directory.
    Directory(PathBuf),
    /// Compiled in, as pairs of name and content.
    Memory(&'static [(&'static str, &'static [u8])]),
}

impl Files {
    /// The files in `dir`.
    ///
    /// # Errors
    /// [`ModelError`] if it is not a directory.
    pub fn in_directory(dir: &Path) -> Result<Self, ModelError> {
        if !dir.is_dir() {
            return Err(ModelError::new(
                format!("`{}` is not a directory", dir.display()),
                "pass a directory with `config.json`, `tokenizer.json` and `model.safetensors`",
            ));
        }
        Ok(Self::Directory(dir.to_owned()))
    }

    /// The content of `tokenizer.json`.
    fn tokenizer(&self) -> Result<Vec<u8>, ModelError> {
        let tokenizer = self.read("tokenizer.json")?.ok_or_else(|| {
            ModelError::new(
                format!("{} is missing", self.location("tokenizer.json")),
                format!(
                    "create it with `python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('{0}').save_pretrained('{0}')\"`",
                    self.root()
                ),
            )
        })?;
        Ok(tokenizer.into_owned())
    }

    /// The content of a file; `None` if it does not exist.
    ///
    /// # Errors
    /// [`ModelError`] if it exists and cannot be read, or is a Git LFS pointer.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, ModelError> {
        match self {
            Self::Memory(_) => Ok(self.in_memory(name).map(Cow::Borrowed)),
            Self::Directory(dir) => {
                let Some(mut file) = open_file(&dir.join(name))? else {
                    return Ok(None);
                };
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes)
                    .map_err(|error| unreadable(&dir.join(name), error))?;
                if bytes.starts_with(LFS_POINTER) {
                    return Err(lfs_pointer(&self.location(name)));
                }
                Ok(Some(Cow::Owned(bytes)))
            }
        }
    }

    /// Whether a file exists.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::Memory(_) => self.in_memory(name).is_some(),
            Self::Directory(dir) => dir.join(name).exists(),
        }
    }

    /// Names of the files in a folder, sorted; none if it does not exist.
    fn names_in(&self, folder: &str) -> Result<Vec<String>, ModelError> {
        let mut names: Vec<String> = match self {
            Self::Memory(files) => {
                let inside = |(name, _): &(&'static str, _)| {
                    let (inside, name) = name.rsplit_once('/')?;
                    (inside == folder).then(|| name.to_owned())
                };
                files.iter().filter_map(inside).collect()
            }
            Self::Directory(dir) => {
                let path = dir.join(folder);
                if !path.is_dir() {
                    return Ok(Vec::new());
                }
                let entries = path.read_dir().map_err(|error| unreadable(&path, error))?;
                let name = |entry: std::fs::DirEntry| entry.file_name().into_string().ok();
                entries.flatten().filter_map(name).collect()
            }
        };
        names.sort_unstable();
        Ok(names)
    }

    /// A file's name in messages.
    pub fn location(&self, name: &str) -> String {
        match self {
            Self::Memory(_) => format!("`{name}` of the embedded model"),
            Self::Directory(dir) => format!("`{}`", dir.join(name).display()),
        }
    }

    /// The model's name in hints.
    fn root(&self) -> String {
        match self {
            Self::Memory(_) => "embedded".into(),
            Self::Directory(dir) => dir.display().to_string(),
        }
    }

    fn in_memory(&self, name: &str) -> Option<&'static [u8]> {
        let Self::Memory(files) = self else {
            return None;
        };
        files.iter().find(|(n, _)| *n == name).map(|(_, b)| *b)
    }

    /// Configuration and tokenizer files, as pairs of name and content.
    fn companions(&self) -> Result<Vec<(String, Vec<u8>)>, ModelError> {
        let known = COMPANIONS.into_iter().chain(modules::MODULE_CONFIGS);
        let mut names: Vec<String> = known.map(str::to_owned).collect();
        names.extend(modules::configs(self)?);
        let templates = self.names_in(prompt::TEMPLATE_FOLDER)?.into_iter();
        names.extend(templates.map(|name| format!("{}/{name}", prompt::TEMPLATE_FOLDER)));
        let mut found = Vec::new();
        for name in names {
            if let Some(bytes) = self.read(&name)? {
                found.push((name, bytes.into_owned()));
            }
        }
        Ok(found)
    }

    /// Extends the hint of a model without a graph by the ONNX files that are there, else by all files.
    fn suggest_onnx(&self, error: ModelError) -> ModelError {
        let in_folder = |folder: &str| {
            let names = self.names_in(folder).unwrap_or_default().into_iter();
            let path = |name: String| match folder {
                "" => name,
                _ => format!("{folder}/{name}"),
            };
            names.map(path).collect::<Vec<_>>()
        };
        let all = in_folder("");
        let candidates = all.iter().cloned().chain(in_folder("onnx"));
        let onnx: Vec<String> = candidates.filter(|name| name.ends_with(".onnx")).collect();
        let listed = |names: &[String]| {
            let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            quoted.join(", ")
        };
        let hint = match onnx.is_empty() {
            true => format!(
                "{}; an ONNX file can be passed with `--onnx-file`, but there is none among {}",
                error.hint,
                listed(&all)
            ),
            false => format!(
                "{}; or serve an ONNX file that is there with `--onnx-file`: {}",
                error.hint,
                listed(&onnx)
            ),
        };
        ModelError { hint, ..error }
    }

    fn has_weights(&self) -> bool {
        self.contains(WEIGHTS_FILE) || self.contains(WEIGHTS_INDEX)
    }

    fn weights(&self) -> Result<Weights, ModelError> {
        match self {
            Self::Memory(_) => match self.in_memory(WEIGHTS_FILE) {
                Some(bytes) => Weights::from_static(bytes, self.location(WEIGHTS_FILE)),
                None => Err(self.no_weights()),
            },
            Self::Directory(dir) if self.contains(WEIGHTS_FILE) => {
                Weights::open(&dir.join(WEIGHTS_FILE))
            }
            Self::Directory(dir) if self.contains(WEIGHTS_INDEX) => {
                Weights::open_sharded(dir, WEIGHTS_INDEX)
            }
            Self::Directory(_) => Err(self.no_weights()),
        }
    }

    /// Adds the tensors of a module in a subfolder.
    fn add_folder(&self, weights: &mut Weights, folder: &str) -> Result<(), ModelError> {
        let name = format!("{folder}/{WEIGHTS_FILE}");
        let source = match self {
            Self::Memory(_) => self.in_memory(&name).map(Source::Memory),
            Self::Directory(dir) => open_file(&dir.join(&name))?.map(Source::File),
        };
        match source {
            Some(source) => weights.add_folder(folder, source, self.location(&name)),
            None => Err(ModelError::new(
                format!("{} is missing", self.location(&name)),
                "save the model with `CrossEncoder.save_pretrained`, or download the files in its subfolders too",
            )),
        }
    }

    fn no_weights(&self) -> ModelError {
        let root = self.root();
        let message = format!("{} is missing", self.location("model.safetensors"));
        for pickle in PICKLES {
            if self.contains(pickle) {
                return ModelError::new(
                    format!(
                        "{message}; there is only `{pickle}`, a pickle, which can run code when it is loaded"
                    ),
                    format!(
                        "convert it with `python -c \"from transformers import AutoModelForSequenceClassification as M; M.from_pretrained('{root}').save_pretrained('{root}')\"`"
                    ),
                );
            }
        }
        ModelError::new(
            message,
            "save the model with `CrossEncoder.save_pretrained`, or download `model.safetensors` too",
        )
    }
}

/// How a file begins that stands for one which Git LFS keeps elsewhere.
pub(crate) const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

fn lfs_pointer(location: &str) -> ModelError {
    ModelError::new(
        format!("{location} is a Git LFS pointer, not the file itself"),
        "run `git lfs install` and `git lfs pull` in the model's directory, or download the file from the hub",
    )
}

/// Opens a file for reading; `None` if it does not exist.
fn open_file(path: &Path) -> Result<Option<File>, ModelError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, error)),
    }
}

fn unreadable(path: &Path, error: std::io::Error) -> ModelError {
    ModelError::new(
        format!("cannot read `{}`", path.display()),
        "check that it is a file and that the server's user may read it",
    )
    .caused_by(error)
}

#[cfg(test)]
mod tests;
