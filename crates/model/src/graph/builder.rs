//! Builds an ONNX graph node by node. Knows the file format, nothing about models.

use half::{bf16, f16};
use prost::Message;

use super::operator;
use crate::onnx::{
    AttributeProto, DataType, DimensionProto, EXTERNAL, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto,
    TypeProto, ValueInfoProto,
};

/// Domain of ONNX Runtime's contrib operators.
pub const CONTRIB: &str = "com.microsoft";
/// Domain of the standard operators.
pub const STANDARD: &str = "";

/// The IR version that operator set 17 was released with.
pub(super) const IR_VERSION: i64 = 8;
pub(super) const OPSET_VERSION: i64 = 17;

/// A value in the graph, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value(String);

/// A dimension of an input or output.
#[derive(Debug, Clone, Copy)]
pub enum Dim {
    /// Known when the graph is built.
    Fixed(usize),
    /// Symbolic, known when the graph runs.
    Named(&'static str),
}

/// A constant stored outside the graph file, because a protobuf message is limited to 2 GiB.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    /// Name of the initializer.
    pub name: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub data: Data,
}

/// Elements of a constant.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 16-bit floats.
    F16(Vec<f16>),
    /// 16-bit floats with the exponents of 32-bit ones.
    BF16(Vec<bf16>),
    /// 8-bit integers.
    I8(Vec<i8>),
    /// 32-bit integers.
    I32(Vec<i32>),
}

impl Data {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::F16(data) => data.len(),
            Self::BF16(data) => data.len(),
            Self::I8(data) => data.len(),
            Self::I32(data) => data.len(),
        }
    }

    /// Bytes of all elements.
    fn bytes(&self) -> usize {
        match self {
            Self::F32(data) => size_of_val(&data[..]),
            Self::F16(data) => size_of_val(&data[..]),
            Self::BF16(data) => size_of_val(&data[..]),
            Self::I8(data) => size_of_val(&data[..]),
            Self::I32(data) => size_of_val(&data[..]),
        }
    }

    pub(super) fn data_type(&self) -> DataType {
        match self {
            Self::F32(_) => DataType::Float,
            Self::F16(_) => DataType::Float16,
            Self::BF16(_) => DataType::Bfloat16,
            Self::I8(_) => DataType::Int8,
            Self::I32(_) => DataType::Int32,
        }
    }

    /// The elements as ONNX stores them, little-endian.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::F32(data) => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::F16(data) => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::BF16(data) => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::I8(data) => data.iter().map(|&x| x as u8).collect(),
            Self::I32(data) => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

impl Weight {
    /// Bytes of all weights together.
    pub fn total_bytes(weights: &[Self]) -> usize {
        weights.iter().map(|weight| weight.data.bytes()).sum()
    }
}

/// A finished graph and its weights.
#[derive(Debug, Clone)]
pub struct Graph {
    /// The ONNX file, without weights.
    pub model: Vec<u8>,
    /// Initializers to pass to the session.
    pub weights: Vec<Weight>,
}

/// Collects nodes, inputs and weights.
#[derive(Debug, Default)]
pub struct GraphBuilder {
    graph: GraphProto,
    weights: Vec<Weight>,
}

impl Value {
    /// An omitted optional input.
    pub fn missing() -> Self {
        Self(String::new())
    }

    pub(super) fn name(&self) -> &str {
        &self.0
    }
}

impl GraphBuilder {
    /// Adds a graph input.
    pub fn input(&mut self, name: &str, data_type: DataType, dims: &[Dim]) -> Value {
        self.graph
            .input
            .push(value_info(name, data_type, dims.iter().copied()));
        Value(name.to_owned())
    }

    /// Adds `value` as a graph output called `name`.
    pub fn output(&mut self, name: &str, value: &Value, data_type: DataType, dims: &[Dim]) {
        self.graph
            .output
            .push(value_info(name, data_type, dims.iter().copied()));
        self.op(name, "Identity", &[value]);
    }

    /// Adds a constant stored outside the graph file.
    ///
    /// # Panics
    /// If `data` does not match `shape`: a bug in the graph, not in a model.
    pub fn weight(&mut self, name: &str, shape: &[usize], data: Data) -> Value {
        assert_eq!(data.len(), shape.iter().product::<usize>(), "{name}");
        let weight = Weight {
            name: name.to_owned(),
            shape: shape.to_vec(),
            data,
        };
        self.graph.initializer.push(placeholder(&weight));
        self.weights.push(weight);
        Value(name.to_owned())
    }

    /// Adds a shape, stored in the graph file.
    pub(super) fn shape(&mut self, name: &str, dims: &[i64]) -> Value {
        let bytes = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
        let shape = TensorProto::inline(name, &[dims.len()], DataType::Int64, bytes);
        self.graph.initializer.push(shape);
        Value(name.to_owned())
    }

    /// Adds a node with one output, called `name`.
    pub fn node(
        &mut self,
        name: &str,
        domain: &str,
        operator: &str,
        inputs: &[&Value],
        attributes: &[AttributeProto],
    ) -> Value {
        let inputs = inputs.iter().map(|value| &value.0);
        let node = NodeProto::new(name, domain, operator, inputs, attributes);
        self.graph.node.push(node);
        Value(name.to_owned())
    }

    /// Adds a standard node without attributes.
    pub fn op(&mut self, name: &str, operator: &str, inputs: &[&Value]) -> Value {
        self.node(name, STANDARD, operator, inputs, &[])
    }

    /// The finished graph.
    pub fn finish(self, name: &str) -> Graph {
        let opset = |domain: &str, version| OperatorSetIdProto {
            domain: domain.into(),
            version,
        };
        let model = ModelProto {
            ir_version: IR_VERSION,
            producer_name: "rerankd".into(),
            graph: Some(GraphProto {
                name: name.into(),
                ..self.graph
            }),
            opset_import: vec![
                opset(STANDARD, OPSET_VERSION),
                opset(CONTRIB, 1),
                opset(operator::DOMAIN, 1),
            ],
            ..ModelProto::default()
        };
        Graph {
            model: model.encode_to_vec(),
            weights: self.weights,
        }
    }
}

/// The initializer for a weight stored outside the graph file.
pub(super) fn placeholder(weight: &Weight) -> TensorProto {
    TensorProto {
        dims: weight.shape.iter().map(|&dim| dim as i64).collect(),
        data_type: weight.data.data_type() as i32,
        name: weight.name.clone(),
        // Never read: the session gets the data by name. ONNX Runtime only checks that the path exists.
        external_data: vec![StringStringEntryProto {
            key: "location".into(),
            value: ".".into(),
        }],
        data_location: EXTERNAL,
        ..TensorProto::default()
    }
}

impl From<Dim> for DimensionProto {
    fn from(dim: Dim) -> Self {
        let (dim_value, dim_param) = match dim {
            Dim::Fixed(size) => (Some(size as i64), None),
            Dim::Named(name) => (None, Some(name.into())),
        };
        Self {
            dim_value,
            dim_param,
        }
    }
}

pub(super) fn value_info(
    name: &str,
    data_type: DataType,
    dims: impl IntoIterator<Item: Into<DimensionProto>>,
) -> ValueInfoProto {
    let dim = dims.into_iter().map(Into::into).collect();
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: data_type as i32,
                shape: Some(TensorShapeProto { dim }),
            }),
        }),
    }
}
