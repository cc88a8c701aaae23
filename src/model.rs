//! A model as it lies on disk: what its configuration says, its tokenizer and its weights.
//!
//! Everything is checked here, once, so that a wrong directory fails at start-up and not in the
//! middle of a request.

pub mod arch;
pub mod head;
pub mod hub;
mod json;
pub mod manifest;
mod modules;
pub mod weights;

#[cfg(feature = "embedded-model")]
mod embedded;

use std::borrow::Cow;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

pub use arch::{EncoderConfig, Gated, HiddenAct};
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
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
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
        if !dir.is_dir() {
            return Err(ModelError::new(
                format!("`{}` is not a directory", dir.display()),
                "pass the directory that holds `config.json`, `tokenizer.json` and `model.safetensors`",
            ));
        }
        Self::load(directory_name(dir), &Files::Directory(dir.to_owned()))
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
    /// As [`Model::open`]; none for a program that passed its tests.
    #[cfg(feature = "embedded-model")]
    pub fn embedded() -> Result<Self, ModelError> {
        Self::from_memory(embedded::ID, embedded::FILES)
    }

    fn load(id: String, files: &Files) -> Result<Self, ModelError> {
        let mut manifest = Manifest::read(id, files)?;
        let tokenizer = files.read("tokenizer.json")?.ok_or_else(|| {
            ModelError::new(
                format!("{} is missing", files.place("tokenizer.json")),
                format!(
                    "make it with `python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('{0}').save_pretrained('{0}')\"`",
                    files.root()
                ),
            )
        })?;
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
            tokenizer: tokenizer.into_owned(),
            weights,
        })
    }
}

/// The last component of a directory's real path, so that `--model .` has a name too; for one in the
/// cache of a hub the name of its model.
fn directory_name(dir: &Path) -> String {
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    if let Some(id) = hub::ModelId::of_snapshot(&real) {
        return id.path();
    }
    real.file_name()
        .map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned())
}

/// The file of the weights, where it is one.
const SINGLE: &str = "model.safetensors";

/// Where the files of a model come from; one code reads both kinds.
pub(crate) enum Files {
    Directory(PathBuf),
    Memory(&'static [(&'static str, &'static [u8])]),
}

impl Files {
    /// The content of a file, `None` when there is no such file.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, ModelError> {
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

    pub(crate) fn contains(&self, name: &str) -> bool {
        match self {
            Self::Memory(_) => self.in_memory(name).is_some(),
            Self::Directory(dir) => dir.join(name).exists(),
        }
    }

    /// How messages name a file.
    pub(crate) fn place(&self, name: &str) -> String {
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

    fn weights(&self) -> Result<Weights, ModelError> {
        const INDEX: &str = "model.safetensors.index.json";
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
