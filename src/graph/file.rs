//! Reads what has to be known of an ONNX file before it is run: which operators it uses, what it keeps
//! in other files, and the weights that its sessions can share.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use prost::Message;

use super::onnx::{DataType, StringStringEntryProto};
use super::{Data, Weight};
use crate::model::ModelError;
use crate::model::exported::stays_inside;

/// Constants with fewer numbers are not worth sharing.
const SHARED_FROM: usize = 1024;
/// `TensorProto.DataLocation.EXTERNAL`.
const EXTERNAL: i32 = 1;
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
        let bytes = std::fs::read(path).map_err(|error| unreadable(path, &error.to_string()))?;
        let model = Model::decode(&bytes[..])
            .map_err(|error| unreadable(path, &format!("it is not an ONNX file: {error}")))?;
        drop(bytes);
        let Some(graph) = model.graph else {
            return Err(unreadable(path, "it holds no graph"));
        };
        let mut found = Found::default();
        found.graph(&graph);
        for function in &model.functions {
            found.nodes(&function.node);
        }
        for location in &found.locations {
            check_location(path, location)?;
        }
        let mut file = Self {
            path: path.to_owned(),
            weights: Vec::new(),
            parameters: found.parameters,
            operators: found.operators,
            has_halves: found.has_halves,
        };
        for tensor in graph.initializer {
            file.weights.extend(tensor.shared(path)?);
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

/// What is collected over a graph and those inside of it.
#[derive(Default)]
struct Found {
    operators: BTreeSet<String>,
    locations: BTreeSet<String>,
    parameters: usize,
    has_halves: bool,
}

impl Found {
    fn graph(&mut self, graph: &Graph) {
        for tensor in &graph.initializer {
            self.tensor(tensor);
        }
        self.nodes(&graph.node);
    }

    fn nodes(&mut self, nodes: &[Node]) {
        for node in nodes {
            self.operators.insert(node.op_type.clone());
            for attribute in &node.attribute {
                let tensors = attribute.t.iter().chain(&attribute.tensors);
                tensors.for_each(|tensor| self.tensor(tensor));
                let graphs = attribute.g.iter().chain(&attribute.graphs);
                graphs.for_each(|graph| self.graph(graph));
            }
        }
    }

    fn tensor(&mut self, tensor: &Tensor) {
        self.parameters = self
            .parameters
            .saturating_add(tensor.elements().unwrap_or(0));
        self.has_halves |= matches!(tensor.data_type, FLOAT16 | BFLOAT16);
        // Whatever the tensor says of its location: a path that is there may be followed.
        let location = |entry: &&StringStringEntryProto| entry.key == "location";
        let location = tensor.external_data.iter().find(location);
        self.locations
            .extend(location.map(|entry| entry.value.clone()));
        if tensor.is_external() && location.is_none() {
            self.locations.insert(String::new());
        }
    }
}

/// Refuses a place that is not below the folder of the file that names it.
fn check_location(path: &Path, location: &str) -> Result<(), ModelError> {
    if !stays_inside(Path::new(location)) {
        return Err(ModelError::new(
            format!(
                "`{}`: its weights are in `{location}`, which is not below its folder",
                path.display()
            ),
            "take the model from a source that you trust; the path of external data has neither a root nor `..`",
        ));
    }
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

fn unreadable(path: &Path, why: &str) -> ModelError {
    ModelError::new(
        format!("`{}` cannot be read: {why}", path.display()),
        "download the file again; a Git LFS pointer or an HTML page is a common cause",
    )
}

// The part of ONNX's protobuf that is read here. Fields that are left out are skipped, so none of this can
// be written again.

const FLOAT16: i32 = 10;
const BFLOAT16: i32 = 16;

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "25")]
    functions: Vec<Function>,
}

#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    node: Vec<Node>,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<Tensor>,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(message, repeated, tag = "7")]
    node: Vec<Node>,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(message, optional, tag = "5")]
    t: Option<Tensor>,
    #[prost(message, optional, tag = "6")]
    g: Option<Graph>,
    #[prost(message, repeated, tag = "10")]
    tensors: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    graphs: Vec<Graph>,
}

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "vec", tag = "9")]
    raw_data: Vec<u8>,
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<StringStringEntryProto>,
    #[prost(int32, tag = "14")]
    data_location: i32,
}

impl Tensor {
    fn is_external(&self) -> bool {
        self.data_location == EXTERNAL
    }

    /// Numbers in it; `None` for dimensions that are none.
    fn elements(&self) -> Option<usize> {
        self.dims.iter().try_fold(1_usize, |product, &dim| {
            product.checked_mul(usize::try_from(dim).ok()?)
        })
    }

    /// The weight as sessions can share it; `None` for one that is small, or not of a type or form that is
    /// worth it.
    fn shared(self, path: &Path) -> Result<Option<Weight>, ModelError> {
        let elements = self.elements().unwrap_or(0);
        let float = self.data_type == DataType::Float as i32;
        if elements < SHARED_FROM || !(float || self.data_type == DataType::Int8 as i32) {
            return Ok(None);
        }
        let size = elements * if float { 4 } else { 1 };
        let bytes = match self.is_external() {
            true => self.read_external(path, size)?,
            false => self.raw_data,
        };
        if bytes.len() != size {
            // Numbers that are written one by one; ONNX Runtime reads those.
            return Ok(None);
        }
        Ok(Some(Weight {
            name: self.name,
            shape: self.dims.iter().map(|&dim| dim as usize).collect(),
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

    fn read_external(&self, path: &Path, size: usize) -> Result<Vec<u8>, ModelError> {
        let value = |key: &str| {
            let entry = self.external_data.iter().find(|entry| entry.key == key);
            entry.map(|entry| entry.value.as_str())
        };
        let file = beside(path, value("location").unwrap_or(""));
        let damaged = |why: String| {
            ModelError::new(
                format!("`{}`, tensor `{}`: {why}", file.display(), self.name),
                "download the file again; it is shorter than the ONNX file says, or of another model",
            )
        };
        let number = |key: &str| match value(key) {
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
}
