//! The subset of the ONNX file format that is read and written, as protobuf messages.
//!
//! Field numbers and enum values are those of the ONNX specification, `onnx.proto`. Unknown fields are
//! dropped, so a file that was read cannot be written back without loss.
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::path::Path;

use prost::Message;
use prost::bytes::Bytes;

use super::exported::stays_inside;
use super::{LFS_POINTER, ModelError, lfs_pointer};

/// `TensorProto.DataLocation.EXTERNAL`.
pub const EXTERNAL: i32 = 1;

/// Element types, `TensorProto.DataType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataType {
    Float = 1,
    Uint8 = 2,
    Int8 = 3,
    Int32 = 6,
    Int64 = 7,
    Float16 = 10,
    Bfloat16 = 16,
}

#[derive(Clone, PartialEq, Message)]
pub struct ModelProto {
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    #[prost(string, tag = "2")]
    pub producer_name: String,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
    #[prost(message, repeated, tag = "25")]
    pub functions: Vec<FunctionProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct FunctionProto {
    #[prost(message, repeated, tag = "7")]
    pub node: Vec<NodeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct OperatorSetIdProto {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "15")]
    pub sparse_initializer: Vec<SparseTensorProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    #[prost(string, tag = "7")]
    pub domain: String,
}

/// Which field of an [`AttributeProto`] holds its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttributeType {
    Float = 1,
    Int = 2,
    Ints = 7,
}

#[derive(Clone, PartialEq, Message)]
pub struct AttributeProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    #[prost(message, optional, tag = "5")]
    pub t: Option<TensorProto>,
    #[prost(message, optional, tag = "6")]
    pub g: Option<GraphProto>,
    #[prost(int64, repeated, tag = "8")]
    pub ints: Vec<i64>,
    #[prost(message, repeated, tag = "10")]
    pub tensors: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    pub graphs: Vec<GraphProto>,
    #[prost(int32, tag = "20")]
    pub r#type: i32,
    #[prost(message, optional, tag = "22")]
    pub sparse_tensor: Option<SparseTensorProto>,
    #[prost(message, repeated, tag = "23")]
    pub sparse_tensors: Vec<SparseTensorProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SparseTensorProto {
    #[prost(message, optional, tag = "1")]
    pub values: Option<TensorProto>,
    #[prost(message, optional, tag = "2")]
    pub indices: Option<TensorProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ValueInfoProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TypeProto {
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorTypeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorTypeProto {
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShapeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorShapeProto {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<DimensionProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct DimensionProto {
    #[prost(int64, optional, tag = "1")]
    pub dim_value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub dim_param: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    #[prost(string, tag = "8")]
    pub name: String,
    #[prost(bytes = "bytes", tag = "9")]
    pub raw_data: Bytes,
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<StringStringEntryProto>,
    #[prost(int32, tag = "14")]
    pub data_location: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

impl NodeProto {
    /// A node with one output, which is also its name. The domain of standard operators is empty.
    pub fn new(
        name: &str,
        domain: &str,
        operator: &str,
        inputs: impl IntoIterator<Item: Into<String>>,
        attributes: &[AttributeProto],
    ) -> Self {
        Self {
            name: name.to_owned(),
            input: inputs.into_iter().map(Into::into).collect(),
            output: vec![name.to_owned()],
            op_type: operator.to_owned(),
            domain: domain.to_owned(),
            attribute: attributes.to_vec(),
        }
    }

    /// The integer attribute `name`.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.attribute.iter().find(|a| a.name == name)?.i
    }
}

impl AttributeProto {
    pub fn float(name: &str, value: f32) -> Self {
        Self {
            name: name.to_owned(),
            f: Some(value),
            r#type: AttributeType::Float as i32,
            ..Self::default()
        }
    }

    pub fn int(name: &str, value: i64) -> Self {
        Self {
            name: name.to_owned(),
            i: Some(value),
            r#type: AttributeType::Int as i32,
            ..Self::default()
        }
    }

    pub fn ints(name: &str, values: &[i64]) -> Self {
        Self {
            name: name.to_owned(),
            ints: values.to_vec(),
            r#type: AttributeType::Ints as i32,
            ..Self::default()
        }
    }
}

/// An item of a graph.
pub enum GraphItem<'a> {
    Node(&'a NodeProto),
    /// A constant, wherever it occurs.
    Tensor(&'a TensorProto),
}

impl ModelProto {
    /// Reads the file at `path`, without external data.
    ///
    /// # Errors
    /// [`ModelError`] if it is not an ONNX file.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let invalid = |what: &str| {
            ModelError::new(
                format!("`{}` {what}", path.display()),
                "download the file again; an HTML page is a common cause",
            )
        };
        let bytes = std::fs::read(path).map_err(|e| invalid("cannot be read").caused_by(e))?;
        if bytes.starts_with(LFS_POINTER) {
            return Err(lfs_pointer(&format!("`{}`", path.display())));
        }
        // From `Bytes`, so that constants are not copied.
        let model = Self::decode(Bytes::from(bytes))
            .map_err(|e| invalid("is not an ONNX file").caused_by(e))?;
        if model.graph.is_none() {
            return Err(invalid("has no graph"));
        }
        Ok(model)
    }

    /// Visits every node and constant, those of subgraphs and functions included.
    pub fn visit<'a>(&'a self, visitor: &mut dyn FnMut(GraphItem<'a>)) {
        if let Some(graph) = &self.graph {
            visit_graph(graph, visitor);
        }
        for function in &self.functions {
            visit_nodes(&function.node, visitor);
        }
    }

    /// External data files, as paths relative to the folder of the file at `path`.
    ///
    /// # Errors
    /// [`ModelError`] if one is outside that folder.
    pub fn external_files(&self, path: &Path) -> Result<BTreeSet<String>, ModelError> {
        let mut locations = BTreeSet::new();
        self.visit(&mut |item| {
            if let GraphItem::Tensor(tensor) = item {
                // Whatever `data_location` says: the runtime may follow a path that is present.
                let location = tensor.external("location");
                let missing = tensor.is_external().then_some("");
                locations.extend(location.or(missing).map(str::to_owned));
            }
        });
        let outside = |location: &&String| !stays_inside(Path::new(location));
        match locations.iter().find(outside) {
            None => Ok(locations),
            Some(location) => Err(ModelError::new(
                format!(
                    "`{}`: its external data `{location}` is outside its folder",
                    path.display()
                ),
                "use a model from a source that you trust; the path of external data must be relative, without `..`",
            )),
        }
    }
}

fn visit_graph<'a>(graph: &'a GraphProto, visitor: &mut dyn FnMut(GraphItem<'a>)) {
    let sparse = graph.sparse_initializer.iter();
    let sparse = sparse.flat_map(SparseTensorProto::tensors);
    for tensor in graph.initializer.iter().chain(sparse) {
        visitor(GraphItem::Tensor(tensor));
    }
    visit_nodes(&graph.node, visitor);
}

fn visit_nodes<'a>(nodes: &'a [NodeProto], visitor: &mut dyn FnMut(GraphItem<'a>)) {
    for node in nodes {
        visitor(GraphItem::Node(node));
        for attribute in &node.attribute {
            let sparse = attribute.sparse_tensor.iter();
            let sparse = sparse.chain(&attribute.sparse_tensors);
            let tensors = attribute.t.iter().chain(&attribute.tensors);
            for tensor in tensors.chain(sparse.flat_map(SparseTensorProto::tensors)) {
                visitor(GraphItem::Tensor(tensor));
            }
            for graph in attribute.g.iter().chain(&attribute.graphs) {
                visit_graph(graph, visitor);
            }
        }
    }
}

impl SparseTensorProto {
    fn tensors(&self) -> impl Iterator<Item = &TensorProto> {
        self.values.iter().chain(&self.indices)
    }
}

impl TensorProto {
    /// A constant whose elements, little-endian and row-major, are in the graph file.
    pub fn inline(name: &str, shape: &[usize], data_type: DataType, bytes: Vec<u8>) -> Self {
        Self {
            dims: shape.iter().map(|&dim| dim as i64).collect(),
            data_type: data_type as i32,
            name: name.to_owned(),
            raw_data: bytes.into(),
            ..Self::default()
        }
    }

    /// Whether the elements are in another file.
    pub fn is_external(&self) -> bool {
        self.data_location == EXTERNAL
    }

    /// An entry of `external_data`: `location`, `offset` or `length`.
    pub fn external(&self, key: &str) -> Option<&str> {
        let entry = self.external_data.iter().find(|entry| entry.key == key);
        entry.map(|entry| entry.value.as_str())
    }

    /// Number of elements; `None` for invalid dimensions.
    pub fn elements(&self) -> Option<usize> {
        self.dims.iter().try_fold(1_usize, |product, &dim| {
            product.checked_mul(usize::try_from(dim).ok()?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outside(location: &str) -> TensorProto {
        let entry = StringStringEntryProto {
            key: "location".to_owned(),
            value: location.to_owned(),
        };
        TensorProto {
            external_data: vec![entry],
            ..TensorProto::default()
        }
    }

    fn node(attribute: AttributeProto) -> NodeProto {
        NodeProto {
            attribute: vec![attribute],
            ..NodeProto::default()
        }
    }

    #[test]
    fn external_data_is_found_in_every_kind_of_constant() {
        let sparse = |location: &str| SparseTensorProto {
            values: Some(outside(location)),
            indices: None,
        };
        let inner = GraphProto {
            initializer: vec![outside("inner")],
            ..GraphProto::default()
        };
        let in_node = AttributeProto {
            t: Some(outside("t")),
            g: Some(inner),
            tensors: vec![outside("tensors")],
            graphs: vec![GraphProto {
                sparse_initializer: vec![sparse("inner sparse")],
                ..GraphProto::default()
            }],
            sparse_tensor: Some(sparse("sparse tensor")),
            sparse_tensors: vec![sparse("sparse tensors")],
            ..AttributeProto::default()
        };
        let in_function = AttributeProto {
            t: Some(outside("function")),
            ..AttributeProto::default()
        };
        let model = ModelProto {
            graph: Some(GraphProto {
                node: vec![node(in_node)],
                initializer: vec![TensorProto::default(), outside("./outer")],
                sparse_initializer: vec![sparse("sparse")],
                ..GraphProto::default()
            }),
            functions: vec![FunctionProto {
                node: vec![node(in_function)],
            }],
            ..ModelProto::default()
        };
        let found = model.external_files(Path::new("model.onnx")).unwrap();
        let found: Vec<&str> = found.iter().map(String::as_str).collect();
        let expected = [
            "./outer",
            "function",
            "inner",
            "inner sparse",
            "sparse",
            "sparse tensor",
            "sparse tensors",
            "t",
            "tensors",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn external_data_outside_the_folder_is_an_error() {
        let of = |tensor: TensorProto| ModelProto {
            graph: Some(GraphProto {
                initializer: vec![tensor],
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        };
        let path = Path::new("onnx/model.onnx");
        let missing = TensorProto {
            data_location: EXTERNAL,
            ..TensorProto::default()
        };
        let tensors = ["/etc/hosts", "../x", "a/../../x"].map(outside);
        for tensor in tensors.into_iter().chain([missing]) {
            let error = of(tensor).external_files(path).unwrap_err();
            assert!(error.message().contains("outside its folder"), "{error}");
        }
    }
}
