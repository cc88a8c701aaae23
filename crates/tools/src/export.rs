//! A model as an ONNX file in standard operators, for other programs.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use prost::Message;

use rerankd_model::graph::standard::{self, Positions, UnsupportedOperator};
use rerankd_model::graph::{self, Precision, Rows};
use rerankd_model::onnx::{EXTERNAL, ModelProto, StringStringEntryProto};
use rerankd_model::{Model, ModelError};
use rerankd_runtime::onnx::Layout;

/// Where the file lies in a directory: where programs of Hugging Face look for it.
const PLACE: &str = "onnx/model.onnx";
/// A protobuf message ends at 2 GiB; weights of more than this go to a file of their own.
const LARGEST: usize = (1 << 31) - (1 << 24);
/// Weights in a file of their own begin at a multiple of this, so that it can be mapped.
const ALIGNMENT: usize = 64;

/// Why a model was not written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Its weights cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Its graph cannot be written in standard operators.
    #[error("{0}\nhint: export it with `optimum-cli export onnx --task text-classification`")]
    Form(#[from] UnsupportedOperator),
    /// There is something already.
    #[error("`{}` exists\nhint: name another place, or remove it", .0.display())]
    Exists(PathBuf),
    /// A file cannot be written.
    #[error("`{}` cannot be written: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Each file, the ONNX file first.
    pub files: Vec<PathBuf>,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// Writes `model` to `out`: one file where the name ends in `.onnx`, else a directory that holds
/// `onnx/model.onnx` and the `companions` of the model, which is what a server such as Text Embeddings
/// Inference is given.
///
/// # Errors
/// [`ExportError`]; nothing that existed is overwritten.
pub fn export(
    model: &Model,
    companions: &[(String, Vec<u8>)],
    out: &Path,
    precision: Precision,
) -> Result<Written, ExportError> {
    export_with(model, companions, out, precision, LARGEST)
}

/// As [`export`], with weights of more than `largest` bytes in a file of their own.
///
/// # Errors
/// As [`export`].
pub fn export_with(
    model: &Model,
    companions: &[(String, Vec<u8>)],
    out: &Path,
    precision: Precision,
    largest: usize,
) -> Result<Written, ExportError> {
    let alone = out.extension().is_some_and(|extension| extension == "onnx");
    let path = match alone {
        true => out.to_owned(),
        false => out.join(PLACE),
    };
    let graph = graph::build(model, Rows::FirstOfEach, Precision::Fp32Nodes)?;
    let layout = Layout::of(&model.manifest);
    let positions = Positions {
        first: layout.first_position,
        of_segment: layout.positions,
        skipped_token: layout.skipped_token,
        segments: model.manifest.tokenizer.uses_type_ids,
    };
    let mut file = standard::padded(graph, positions, precision)?;
    let data = match file.encoded_len() > largest {
        true => Some(move_weights(&mut file, &path)),
        false => None,
    };
    let mut files = vec![(path.clone(), file.encode_to_vec())];
    files.extend(data);
    if !alone {
        let companion = |(name, bytes): &(String, Vec<u8>)| (out.join(name), bytes.clone());
        files.extend(companions.iter().map(companion));
    }
    if let Some((path, _)) = files.iter().find(|(path, _)| path.exists()) {
        return Err(ExportError::Exists(path.clone()));
    }
    let mut bytes = 0;
    for (path, content) in &files {
        write(path, content).map_err(|error| ExportError::Write {
            path: path.clone(),
            error,
        })?;
        bytes += content.len() as u64;
    }
    Ok(Written {
        files: files.into_iter().map(|(path, _)| path).collect(),
        bytes,
    })
}

/// Never over what came to be meanwhile.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = fs::File::create_new(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Takes the weights out of a file: the file beside it that they go to, and its content.
fn move_weights(file: &mut ModelProto, path: &Path) -> (PathBuf, Vec<u8>) {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push("_data");
    let location = name.to_string_lossy().into_owned();
    let mut data = Vec::new();
    let constants = file
        .graph
        .iter_mut()
        .flat_map(|graph| &mut graph.initializer);
    for constant in constants {
        // Shapes and other small ones are read while the graph is looked at.
        if constant.raw_data.len() < 1024 {
            continue;
        }
        let bytes = std::mem::take(&mut constant.raw_data);
        data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        let entry = |key: &str, value: String| StringStringEntryProto {
            key: key.into(),
            value,
        };
        constant.data_location = EXTERNAL;
        constant.external_data = vec![
            entry("location", location.clone()),
            entry("offset", data.len().to_string()),
            entry("length", bytes.len().to_string()),
        ];
        data.extend(bytes);
    }
    (path.with_file_name(name), data)
}
