//! Puts an ONNX graph together, node by node. Knows the file format, nothing of models.

use half::f16;
use prost::Message;

use super::onnx::{
    AttributeProto, AttributeType, DataType, DimensionProto, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto,
    TypeProto, ValueInfoProto,
};
use super::operator;

/// ONNX Runtime's own operators.
pub const CONTRIB: &str = "com.microsoft";
/// The standard operators.
pub const STANDARD: &str = "";

/// First IR version whose initializers are constants unless they are also inputs.
const IR_VERSION: i64 = 8;
pub(super) const OPSET_VERSION: i64 = 17;
/// `TensorProto.DataLocation.EXTERNAL`.
const EXTERNAL: i32 = 1;

/// The name of a value in the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value(String);

/// A dimension of an input or output.
#[derive(Debug, Clone, Copy)]
pub enum Dim {
    /// Known when the graph is made.
    Fixed(usize),
    /// Named, and known only when the graph runs.
    Named(&'static str),
}

/// A constant kept outside the graph file, so that the size of a model is not bounded by what a
/// protobuf message can hold (2 GiB).
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    /// Name of the value it initialises.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its elements, row by row.
    pub data: Data,
}

/// Elements of a constant.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 16-bit floats.
    F16(Vec<f16>),
    /// 8-bit whole numbers.
    I8(Vec<i8>),
    /// 32-bit whole numbers.
    I32(Vec<i32>),
}

impl Data {
    fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::F16(data) => data.len(),
            Self::I8(data) => data.len(),
            Self::I32(data) => data.len(),
        }
    }

    fn data_type(&self) -> DataType {
        match self {
            Self::F32(_) => DataType::Float,
            Self::F16(_) => DataType::Float16,
            Self::I8(_) => DataType::Int8,
            Self::I32(_) => DataType::Int32,
        }
    }
}

/// An attribute of a node.
#[derive(Debug, Clone, Copy)]
pub enum Attr {
    /// A number.
    Float(&'static str, f32),
    /// A whole number.
    Int(&'static str, i64),
}

/// A finished graph and the weights it refers to.
#[derive(Debug, Clone)]
pub struct Graph {
    /// The ONNX file, without weights.
    pub model: Vec<u8>,
    /// What to give the session beside it.
    pub weights: Vec<Weight>,
}

/// Collects nodes, inputs and weights.
#[derive(Debug, Default)]
pub struct GraphBuilder {
    graph: GraphProto,
    weights: Vec<Weight>,
}

impl Value {
    /// In place of an input that is left out.
    pub fn missing() -> Self {
        Self(String::new())
    }
}

impl GraphBuilder {
    /// An input that the caller feeds.
    pub fn input(&mut self, name: &str, data_type: DataType, dims: &[Dim]) -> Value {
        self.graph
            .input
            .push(value_info(name, data_type, dims.iter().copied()));
        Value(name.to_owned())
    }

    /// Names `value` as the output that the caller reads.
    pub fn output(&mut self, name: &str, value: &Value, data_type: DataType, dims: &[Dim]) {
        self.graph
            .output
            .push(value_info(name, data_type, dims.iter().copied()));
        self.node(name, STANDARD, "Identity", &[value], &[]);
    }

    /// A constant, kept outside the graph file.
    ///
    /// # Panics
    /// When `data` does not fill `shape`: a mistake in the graph's code, not in a model.
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

    /// A node with one output, named `name`.
    pub fn node(
        &mut self,
        name: &str,
        domain: &str,
        operator: &str,
        inputs: &[&Value],
        attributes: &[Attr],
    ) -> Value {
        self.graph.node.push(NodeProto {
            name: name.to_owned(),
            input: inputs.iter().map(|v| v.0.clone()).collect(),
            output: vec![name.to_owned()],
            op_type: operator.into(),
            domain: domain.into(),
            attribute: attributes.iter().map(attribute).collect(),
        });
        Value(name.to_owned())
    }

    /// The finished graph.
    pub fn finish(self, name: &str) -> Graph {
        let opset = |domain: &str, version| OperatorSetIdProto {
            domain: domain.into(),
            version,
        };
        let model = ModelProto {
            ir_version: IR_VERSION,
            producer_name: env!("CARGO_PKG_NAME").into(),
            graph: Some(GraphProto {
                name: name.into(),
                ..self.graph
            }),
            opset_import: vec![
                opset(STANDARD, OPSET_VERSION),
                opset(CONTRIB, 1),
                opset(operator::DOMAIN, 1),
            ],
        };
        Graph {
            model: model.encode_to_vec(),
            weights: self.weights,
        }
    }
}

/// What stands in the graph file for a weight that is kept outside.
pub(super) fn placeholder(weight: &Weight) -> TensorProto {
    TensorProto {
        dims: dims(&weight.shape),
        data_type: weight.data.data_type() as i32,
        name: weight.name.clone(),
        // Never read: the session is given the data under this name. ONNX Runtime only checks that
        // the path exists.
        external_data: vec![StringStringEntryProto {
            key: "location".into(),
            value: ".".into(),
        }],
        data_location: Some(EXTERNAL),
        ..TensorProto::default()
    }
}

pub(super) fn attribute(attr: &Attr) -> AttributeProto {
    match *attr {
        Attr::Float(name, value) => AttributeProto {
            name: name.into(),
            f: Some(value),
            r#type: AttributeType::Float as i32,
            ..AttributeProto::default()
        },
        Attr::Int(name, value) => AttributeProto {
            name: name.into(),
            i: Some(value),
            r#type: AttributeType::Int as i32,
            ..AttributeProto::default()
        },
    }
}

fn dims(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&d| d as i64).collect()
}

impl From<Dim> for DimensionProto {
    fn from(dim: Dim) -> Self {
        match dim {
            Dim::Fixed(size) => Self {
                dim_value: Some(size as i64),
                dim_param: None,
            },
            Dim::Named(name) => Self {
                dim_value: None,
                dim_param: Some(name.into()),
            },
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
