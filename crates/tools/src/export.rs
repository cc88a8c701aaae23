//! Exports a model to an ONNX file with standard operators, for other programs.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use prost::Message;

use rerankd_model::graph::standard::{self, Positions, UnsupportedOperator};
use rerankd_model::graph::{self, Precision, Rows};
use rerankd_model::onnx::{EXTERNAL, ModelProto, StringStringEntryProto};
use rerankd_model::{Model, ModelError};
use rerankd_runtime::onnx::Layout;

/// Path of the file within a directory, where Hugging Face libraries look for it.
const PATH: &str = "onnx/model.onnx";
/// Protobuf messages are limited to 2 GiB; weights of a larger model are stored in a separate file.
const LARGEST: usize = (1 << 31) - (1 << 24);
/// Alignment of weights in a separate file, so that it can be mapped to memory.
const ALIGNMENT: usize = 64;

/// The export failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The model cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model has no graph of standard operators.
    #[error("{0}\nhint: export it with `optimum-cli export onnx --task text-classification`")]
    Form(#[from] UnsupportedOperator),
    /// There is something already.
    #[error("`{}` exists\nhint: name another place, or remove it", .0.display())]
    Exists(PathBuf),
    /// A file cannot be written.
    #[error("cannot write `{}`: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The files of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The files, the ONNX file first.
    pub files: Vec<PathBuf>,
    /// Their total size.
    pub bytes: u64,
}

/// Writes `model` to `out`: one file if its extension is `.onnx`, else a directory with
/// `onnx/model.onnx` and the `companions` (configuration and tokenizer), as servers such as Text
/// Embeddings Inference expect it.
///
/// # Errors
/// [`ExportError`]. No existing file is overwritten.
pub fn export(
    model: &Model,
    companions: &[(String, Vec<u8>)],
    out: &Path,
    precision: Precision,
) -> Result<Written, ExportError> {
    export_with(model, companions, out, precision, LARGEST)
}

/// As [`export`], with the weights of a model of more than `largest` bytes in a separate file.
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
    if model.manifest.encoder.decoder().is_some() {
        let manifest = &model.manifest;
        return Err(ExportError::Model(ModelError::new(
            format!(
                "`{}` is a causal model (`{}`), which cannot be exported",
                manifest.id, manifest.architecture
            ),
            "serve its weights as they are",
        )));
    }
    let alone = out.extension().is_some_and(|extension| extension == "onnx");
    let path = if alone {
        out.to_owned()
    } else {
        out.join(PATH)
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
    let data = (file.encoded_len() > largest).then(|| move_weights(&mut file, &path));
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
        write(path, content).map_err(|source| ExportError::Write {
            path: path.clone(),
            source,
        })?;
        bytes += content.len() as u64;
    }
    Ok(Written {
        files: files.into_iter().map(|(path, _)| path).collect(),
        bytes,
    })
}

/// Creates a file and its directory. Fails if the file exists.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = fs::File::create_new(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Moves the weights out of `file`. Returns the path and the content of the file for them.
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
        // Shapes and other small constants must be in the graph for shape inference.
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
