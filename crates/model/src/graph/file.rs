//! Reads what has to be known of an ONNX file before it is run: which operators it uses, what it keeps
//! in other files, and the weights that its sessions can share.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use prost::bytes::Bytes;

use super::onnx::DataType;
use super::{Data, Weight};
use crate::ModelError;
use crate::onnx::{OnnxModel, Part, Tensor};

/// Constants with fewer numbers are not worth sharing.
const SHARED_FROM: usize = 1024;
const FLOAT16: i32 = 10;
const BFLOAT16: i32 = 16;
/// Operators that compute with whole numbers of eight bits.
const INT8_OPERATORS: [&str; 9] = [
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QAttention",
    "QGemm",
    "QLinearMatMul",
    "QuantizeLinear",
];
/// Operators that take one scale for all rows that they are given.
const MEASURING_OPERATORS: [&str; 2] = ["DynamicQuantizeLinear", "DynamicQuantizeMatMul"];

/// What was read of an ONNX file.
#[derive(Debug)]
pub struct OnnxFile {
    /// The file itself.
    pub path: PathBuf,
    /// Large constants, for all sessions to share.
    pub weights: Vec<Weight>,
    /// Numbers in all constants.
    pub parameters: usize,
    operators: BTreeSet<String>,
    has_halves: bool,
}

impl OnnxFile {
    /// Reads the file at `path`, and the constants that lie beside it.
    ///
    /// # Errors
    /// [`ModelError`] when it is not an ONNX file, or keeps weights in a file that is missing, too short or
    /// outside the folder of the model.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let model = OnnxModel::read(path)?;
        for location in model.external_files(path)? {
            check_there(path, &location)?;
        }
        let mut found = Found::default();
        model.visit(&mut |part| found.take(&part));
        let mut file = Self {
            path: path.to_owned(),
            weights: Vec::new(),
            parameters: found.parameters,
            operators: found.operators,
            has_halves: found.has_halves,
        };
        for tensor in model.into_constants() {
            file.weights.extend(shared(tensor, path)?);
        }
        Ok(file)
    }

    /// The arithmetic of its matrix products, as far as its operators tell.
    pub fn precision(&self) -> &'static str {
        let quantized = |name: &&str| self.operators.contains(*name);
        if self.operators.contains("MatMulNBits") {
            "int4"
        } else if INT8_OPERATORS.iter().any(quantized) {
            "int8"
        } else if self.has_halves {
            "fp16"
        } else {
            "fp32"
        }
    }

    /// Whether what it computes for a sequence depends on what shares its batch: it quantises all rows by
    /// the largest number among them.
    pub fn mixes_sequences(&self) -> bool {
        let measuring = |name: &&str| self.operators.contains(*name);
        MEASURING_OPERATORS.iter().any(measuring)
    }
}

/// What is collected over all graphs of a file.
#[derive(Default)]
struct Found {
    operators: BTreeSet<String>,
    parameters: usize,
    has_halves: bool,
}

impl Found {
    fn take(&mut self, part: &Part<'_>) {
        match part {
            Part::Node(node) => {
                self.operators.insert(node.op_type.clone());
            }
            Part::Tensor(tensor) => {
                let elements = tensor.elements().unwrap_or(0);
                self.parameters = self.parameters.saturating_add(elements);
                self.has_halves |= matches!(tensor.data_type, FLOAT16 | BFLOAT16);
            }
        }
    }
}

/// Refuses a file that keeps weights where nothing is.
fn check_there(path: &Path, location: &str) -> Result<(), ModelError> {
    let beside = beside(path, location);
    match beside.is_file() {
        true => Ok(()),
        false => Err(ModelError::new(
            format!(
                "`{}` is missing, where `{}` keeps its weights",
                beside.display(),
                path.display()
            ),
            "download that file too",
        )),
    }
}

fn beside(path: &Path, location: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(location)
}

/// The weight as sessions can share it; `None` for one that is small, or not of a type or form that is
/// worth it.
fn shared(tensor: Tensor, path: &Path) -> Result<Option<Weight>, ModelError> {
    let elements = tensor.elements().unwrap_or(0);
    let float = tensor.data_type == DataType::Float as i32;
    if elements < SHARED_FROM || !(float || tensor.data_type == DataType::Int8 as i32) {
        return Ok(None);
    }
    let Some(size) = elements.checked_mul(if float { 4 } else { 1 }) else {
        return Ok(None);
    };
    let bytes = match tensor.is_external() {
        true => Bytes::from(read_external(&tensor, path, size)?),
        false => tensor.raw_data,
    };
    if bytes.len() != size {
        // Numbers that are written one by one; ONNX Runtime reads those.
        return Ok(None);
    }
    Ok(Some(Weight {
        name: tensor.name,
        shape: tensor.dims.iter().map(|&dim| dim as usize).collect(),
        data: match float {
            true => Data::F32(
                bytes
                    .chunks_exact(4)
                    .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
                    .collect(),
            ),
            false => Data::I8(bytes.into_iter().map(|byte| byte as i8).collect()),
        },
    }))
}

fn read_external(tensor: &Tensor, path: &Path, size: usize) -> Result<Vec<u8>, ModelError> {
    let file = beside(path, tensor.external("location").unwrap_or(""));
    let damaged = |why: String| {
        ModelError::new(
            format!("`{}`, tensor `{}`: {why}", file.display(), tensor.name),
            "download the file again; it is shorter than the ONNX file says, or of another model",
        )
    };
    let number = |key: &str| match tensor.external(key) {
        Some(text) => match text.parse::<u64>() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(damaged(format!("its {key} is `{text}`"))),
        },
        None => Ok(None),
    };
    let offset = number("offset")?.unwrap_or(0);
    if let Some(length) = number("length")?
        && length != size as u64
    {
        return Err(damaged(format!(
            "it has {length} bytes, and its shape makes it {size}"
        )));
    }
    let io = |error: std::io::Error| damaged(error.to_string());
    let mut source = File::open(&file).map_err(io)?;
    // Before anything is allocated for what the ONNX file claims.
    let there = source.metadata().map_err(io)?.len();
    if offset
        .checked_add(size as u64)
        .is_none_or(|end| end > there)
    {
        return Err(damaged(format!(
            "it ends behind the {there} bytes of the file"
        )));
    }
    source.seek(SeekFrom::Start(offset)).map_err(io)?;
    let mut bytes = vec![0; size];
    source.read_exact(&mut bytes).map_err(io)?;
    Ok(bytes)
}
