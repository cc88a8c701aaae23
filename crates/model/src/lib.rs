//! A model as it lies on disk: what its configuration says, its tokenizer and its weights.
//!
//! Everything is checked here, once, so that a wrong directory fails at start-up and not in the
//! middle of a request.

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
pub mod weights;

#[cfg(feature = "embedded-model")]
mod embedded;

use std::borrow::Cow;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

pub use arch::{EncoderConfig, Gated, HiddenAct};
pub use exported::ExportedModel;
pub use head::Head;
pub use manifest::{Manifest, TokenizerClass, TokenizerConfig};
pub use weights::Weights;

use weights::Source;

/// Why a model cannot be served, in words for the person who starts the server.
///
/// The first line names the file and what is wrong with it, the second what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}\nhint: {hint}")]
pub struct ModelError {
    message: String,
    hint: String,
}

impl ModelError {
    /// `message` names the file and what is wrong with it, `hint` says what to do.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: hint.into(),
        }
    }

    /// What is wrong, and in which file.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it.
    pub fn hint(&self) -> &str {
        &self.hint
    }
}

/// A cross-encoder that can be served: no part of it is missing and all parts fit together as far
/// as the files tell. The shapes of the weights are checked when each is read.
#[derive(Debug)]
pub struct Model {
    /// The configuration, resolved once.
    pub manifest: Manifest,
    /// The bytes of `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// The weights, on disk until they are read.
    pub weights: Weights,
}

impl Model {
    /// Opens a Hugging Face directory as sentence-transformers or transformers write it.
    ///
    /// # Errors
    /// [`ModelError`] when a file is missing or broken, or the model is of a kind that cannot be
    /// served.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        Self::load(directory_name(dir), &Files::of(dir)?)
    }

    /// A model whose files, as pairs of name and content, are part of the program.
    ///
    /// # Errors
    /// As [`Model::open`]. The weights must be one `model.safetensors`.
    pub fn from_memory(
        id: &str,
        files: &'static [(&'static str, &'static [u8])],
    ) -> Result<Self, ModelError> {
        Self::load(id.to_owned(), &Files::Memory(files))
    }

    /// The model that is compiled into the program.
    ///
    /// # Errors
    /// [`ModelError`] when this build has no embedded model.
    pub fn embedded() -> Result<Self, ModelError> {
        #[cfg(feature = "embedded-model")]
        return Self::from_memory(embedded::ID, embedded::FILES);
        #[cfg(not(feature = "embedded-model"))]
        Err(ModelError::new(
            "this build has no embedded model",
            "pass `--model` with the directory of a cross-encoder",
        ))
    }

    /// The files beside the weights of the model in `dir`, or of the embedded one: configuration and
    /// tokenizer, as pairs of name and content.
    ///
    /// # Errors
    /// [`ModelError`] when one cannot be read.
    pub fn companions(dir: Option<&Path>) -> Result<Vec<(String, Vec<u8>)>, ModelError> {
        match dir {
            Some(dir) => Files::of(dir)?.companions(),
            #[cfg(feature = "embedded-model")]
            None => Files::Memory(embedded::FILES).companions(),
            #[cfg(not(feature = "embedded-model"))]
            None => Ok(Vec::new()),
        }
    }

    fn load(id: String, files: &Files) -> Result<Self, ModelError> {
        let mut manifest = Manifest::read(id, files)?;
        let tokenizer = files.tokenizer()?;
        let mut weights = files.weights()?;
        for folder in &manifest.head.folders {
            files.add_folder(&mut weights, folder)?;
        }
        manifest.encoder.tensors.settle(&weights);
        manifest
            .head
            .check(&weights, manifest.encoder.hidden_size)?;
        Ok(Self {
            manifest,
            tokenizer,
            weights,
        })
    }
}

/// A model of either kind.
#[derive(Debug)]
pub enum AnyModel {
    /// Its graph is built from its weights.
    Built(Box<Model>),
    /// Its graph comes as an ONNX file.
    Exported(Box<ExportedModel>),
}

impl AnyModel {
    /// Opens a directory: the ONNX file of this name in it, or, where none is named, the weights that a
    /// graph can be built for, and else the ONNX file that lies in one of the usual
    /// [places](exported::PLACES).
    ///
    /// # Errors
    /// [`ModelError`], as for [`Model::open`] and [`ExportedModel::open`].
    pub fn open(dir: &Path, onnx_file: Option<&Path>) -> Result<Self, ModelError> {
        let files = Files::of(dir)?;
        let exported = match onnx_file {
            Some(_) => true,
            None => {
                ExportedModel::find(&files).is_some()
                    && !(files.has_weights() && manifest::is_known(&files)?)
            }
        };
        Ok(match exported {
            true => Self::Exported(Box::new(ExportedModel::open(dir, onnx_file)?)),
            false => Self::Built(Box::new(Model::open(dir)?)),
        })
    }
}

/// The last component of a directory's real path, so that `--model .` has a name too; for one in the
/// cache of a hub the name of its model.
fn directory_name(dir: &Path) -> String {
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    if let Some(id) = names::ModelId::of_snapshot(&real) {
        return id.path();
    }
    real.file_name()
        .map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned())
}

/// The file of the weights, where it is one.
pub const SINGLE: &str = "model.safetensors";
/// The list of the files of the weights, where they are several.
pub const INDEX: &str = "model.safetensors.index.json";

/// Files that say how a model is used, beside [`modules::MODULE_CONFIGS`].
pub const COMPANIONS: [&str; 8] = [
    "config.json",
    "config_sentence_transformers.json",
    modules::MODULES,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "sentencepiece.bpe.model",
];

/// Where the files of a model come from; one code reads both kinds.
pub enum Files {
    /// A directory.
    Directory(PathBuf),
    /// Files that are compiled in, as pairs of name and content.
    Memory(&'static [(&'static str, &'static [u8])]),
}

impl Files {
    /// Those of a directory.
    pub fn of(dir: &Path) -> Result<Self, ModelError> {
        if !dir.is_dir() {
            return Err(ModelError::new(
                format!("`{}` is not a directory", dir.display()),
                "pass the directory that holds `config.json`, `tokenizer.json` and `model.safetensors`",
            ));
        }
        Ok(Self::Directory(dir.to_owned()))
    }

    /// The bytes of `tokenizer.json`.
    fn tokenizer(&self) -> Result<Vec<u8>, ModelError> {
        let tokenizer = self.read("tokenizer.json")?.ok_or_else(|| {
            ModelError::new(
                format!("{} is missing", self.place("tokenizer.json")),
                format!(
                    "make it with `python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('{0}').save_pretrained('{0}')\"`",
                    self.root()
                ),
            )
        })?;
        Ok(tokenizer.into_owned())
    }

    /// The content of a file, `None` when there is no such file.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, ModelError> {
        match self {
            Self::Memory(_) => Ok(self.in_memory(name).map(Cow::Borrowed)),
            Self::Directory(dir) => {
                let Some(mut file) = open_file(&dir.join(name))? else {
                    return Ok(None);
                };
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes)
                    .map_err(|error| unreadable(&dir.join(name), &error))?;
                Ok(Some(Cow::Owned(bytes)))
            }
        }
    }

    /// Whether there is such a file.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::Memory(_) => self.in_memory(name).is_some(),
            Self::Directory(dir) => dir.join(name).exists(),
        }
    }

    /// How messages name a file.
    pub fn place(&self, name: &str) -> String {
        match self {
            Self::Memory(_) => format!("`{name}` of the embedded model"),
            Self::Directory(dir) => format!("`{}`", dir.join(name).display()),
        }
    }

    /// How messages name the whole model.
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

    /// What lies beside the weights and has to go with them, as pairs of name and content.
    fn companions(&self) -> Result<Vec<(String, Vec<u8>)>, ModelError> {
        let known = COMPANIONS.into_iter().chain(modules::MODULE_CONFIGS);
        let mut names: Vec<String> = known.map(str::to_owned).collect();
        names.extend(modules::configs(self)?);
        let mut found = Vec::new();
        for name in names {
            if let Some(bytes) = self.read(&name)? {
                found.push((name, bytes.into_owned()));
            }
        }
        Ok(found)
    }

    fn has_weights(&self) -> bool {
        self.contains(SINGLE) || self.contains(INDEX)
    }

    fn weights(&self) -> Result<Weights, ModelError> {
        match self {
            Self::Memory(_) => match self.in_memory(SINGLE) {
                Some(bytes) => Weights::from_static(bytes, self.place(SINGLE)),
                None => Err(self.no_weights()),
            },
            Self::Directory(dir) if self.contains(SINGLE) => Weights::open(&dir.join(SINGLE)),
            Self::Directory(dir) if self.contains(INDEX) => Weights::open_sharded(dir, INDEX),
            Self::Directory(_) => Err(self.no_weights()),
        }
    }

    /// Adds the tensors of a module that lies in a folder of its own.
    fn add_folder(&self, weights: &mut Weights, folder: &str) -> Result<(), ModelError> {
        let name = format!("{folder}/{SINGLE}");
        let source = match self {
            Self::Memory(_) => self.in_memory(&name).map(Source::Memory),
            Self::Directory(dir) => open_file(&dir.join(&name))?.map(Source::File),
        };
        match source {
            Some(source) => weights.add_folder(folder, source, self.place(&name)),
            None => Err(ModelError::new(
                format!("{} is missing", self.place(&name)),
                "save the model with `CrossEncoder.save_pretrained`, or download the files in its folders too",
            )),
        }
    }

    fn no_weights(&self) -> ModelError {
        let root = self.root();
        let message = format!("{} is missing", self.place("model.safetensors"));
        for old in ["pytorch_model.bin", "pytorch_model.bin.index.json"] {
            if self.contains(old) {
                return ModelError::new(
                    format!(
                        "{message}; there is only `{old}`, a pickle, which can run code when it is read"
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

/// Opens a file for reading, `None` when there is no such file.
fn open_file(path: &Path) -> Result<Option<File>, ModelError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> ModelError {
    ModelError::new(
        format!("`{}` cannot be read: {error}", path.display()),
        "check that it is a file and that the server's user may read it",
    )
}

#[cfg(test)]
mod tests;
