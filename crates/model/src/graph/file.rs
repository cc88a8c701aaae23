//! Inspects an ONNX file before it is run: its operators, its external data, and the weights that sessions
//! can share.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use prost::bytes::Bytes;

use super::{Data, Weight};
use crate::ModelError;
use crate::onnx::{DataType, GraphItem, ModelProto, TensorProto};

/// Smaller constants are not shared.
const MIN_SHARED_ELEMENTS: usize = 1024;
const FLOAT16: i32 = DataType::Float16 as i32;
const BFLOAT16: i32 = DataType::Bfloat16 as i32;
/// Operators with int8 arithmetic.
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
/// Operators that quantize with one dynamic scale for all rows.
const DYNAMIC_OPERATORS: [&str; 2] = ["DynamicQuantizeLinear", "DynamicQuantizeMatMul"];

/// An inspected ONNX file.
#[derive(Debug)]
pub struct OnnxFile {
    /// Path of the file.
    pub path: PathBuf,
    /// Large constants, shared by all sessions.
    pub weights: Vec<Weight>,
    /// Memory of those.
    pub weight_bytes: usize,
    /// Number of parameters.
    pub parameters: usize,
    operators: BTreeSet<String>,
    has_halves: bool,
    has_bfloats: bool,
}

impl OnnxFile {
    /// Reads the file at `path` and its external data.
    ///
    /// # Errors
    /// [`ModelError`] if it is not an ONNX file, or its external data is missing, too short or outside the
    /// folder of the file.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let model = ModelProto::read(path)?;
        for location in model.external_files(path)? {
            check_exists(path, &location)?;
        }
        let mut file = Self {
            path: path.to_owned(),
            weights: Vec::new(),
            weight_bytes: 0,
            parameters: 0,
            operators: BTreeSet::new(),
            has_halves: false,
            has_bfloats: false,
        };
        model.visit(&mut |item| match item {
            GraphItem::Node(node) => {
                file.operators.insert(node.op_type.clone());
            }
            GraphItem::Tensor(tensor) => {
                let elements = tensor.elements().unwrap_or(0);
                file.parameters = file.parameters.saturating_add(elements);
                file.has_halves |= tensor.data_type == FLOAT16;
                file.has_bfloats |= tensor.data_type == BFLOAT16;
            }
        });
        for tensor in model.graph.into_iter().flat_map(|graph| graph.initializer) {
            file.weights.extend(shared_weight(tensor, path)?);
        }
        file.weight_bytes = Weight::total_bytes(&file.weights);
        Ok(file)
    }

    /// The precision of its matrix products, inferred from its operators.
    pub fn precision(&self) -> &'static str {
        let quantized = |name: &&str| self.operators.contains(*name);
        if self.operators.contains("MatMulNBits") {
            "int4"
        } else if INT8_OPERATORS.iter().any(quantized) {
            "int8"
        } else if self.has_halves {
            "fp16"
        } else if self.has_bfloats {
            "bf16"
        } else {
            "fp32"
        }
    }

    /// Whether scores depend on the other sequences of a batch, because all rows are quantized with one
    /// dynamic scale.
    pub fn mixes_sequences(&self) -> bool {
        let dynamic = |name: &&str| self.operators.contains(*name);
        DYNAMIC_OPERATORS.iter().any(dynamic)
    }
}

fn check_exists(path: &Path, location: &str) -> Result<(), ModelError> {
    let data = external_path(path, location);
    if data.is_file() {
        return Ok(());
    }
    Err(ModelError::new(
        format!(
            "`{}` is missing, the external data of `{}`",
            data.display(),
            path.display()
        ),
        "download that file too",
    ))
}

fn external_path(path: &Path, location: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(location)
}

/// A weight that sessions can share; `None` if it is small, of another type, or stored element by element.
fn shared_weight(tensor: TensorProto, path: &Path) -> Result<Option<Weight>, ModelError> {
    let elements = tensor.elements().unwrap_or(0);
    let float = tensor.data_type == DataType::Float as i32;
    if elements < MIN_SHARED_ELEMENTS || !(float || tensor.data_type == DataType::Int8 as i32) {
        return Ok(None);
    }
    let Some(size) = elements.checked_mul(if float { 4 } else { 1 }) else {
        return Ok(None);
    };
    let bytes = if tensor.is_external() {
        Bytes::from(read_external(&tensor, path, size)?)
    } else {
        tensor.raw_data
    };
    if bytes.len() != size {
        // Stored in a typed field such as `float_data`, which ONNX Runtime reads.
        return Ok(None);
    }
    let data = if float {
        let (values, _) = bytes.as_chunks();
        Data::F32(
            values
                .iter()
                .map(|&value| f32::from_le_bytes(value))
                .collect(),
        )
    } else {
        Data::I8(bytes.into_iter().map(|byte| byte as i8).collect())
    };
    Ok(Some(Weight {
        name: tensor.name,
        shape: tensor.dims.iter().map(|&dim| dim as usize).collect(),
        data,
    }))
}

fn read_external(tensor: &TensorProto, path: &Path, size: usize) -> Result<Vec<u8>, ModelError> {
    let file = external_path(path, tensor.external("location").unwrap_or(""));
    let damaged = |why: String| {
        ModelError::new(
            format!("`{}`, tensor `{}`: {why}", file.display(), tensor.name),
            "download the file again; it is incomplete or belongs to another model",
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
            "it has {length} bytes, but its shape requires {size}"
        )));
    }
    let io = |error: std::io::Error| damaged("cannot be read".to_owned()).caused_by(error);
    let mut source = File::open(&file).map_err(io)?;
    // Checked before the allocation, which a damaged file could make huge.
    let available = source.metadata().map_err(io)?.len();
    if offset
        .checked_add(size as u64)
        .is_none_or(|end| end > available)
    {
        return Err(damaged(format!(
            "it ends after the end of the file ({available} bytes)"
        )));
    }
    source.seek(SeekFrom::Start(offset)).map_err(io)?;
    let mut bytes = vec![0; size];
    source.read_exact(&mut bytes).map_err(io)?;
    Ok(bytes)
}
