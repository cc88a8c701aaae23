//! Reads an ONNX file that somebody else made: its graphs, and which other files it keeps numbers in.
//!
//! Fields that are not needed are skipped, so none of this can be written again. Field numbers are those of
//! the ONNX specification, `onnx.proto`.

use std::collections::BTreeSet;
use std::path::Path;

use prost::Message;
use prost::bytes::Bytes;

use super::ModelError;
use super::exported::stays_inside;

/// `TensorProto.DataLocation.EXTERNAL`.
const EXTERNAL: i32 = 1;

/// An ONNX file.
#[derive(Clone, PartialEq, Message)]
pub struct OnnxModel {
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
    #[prost(message, repeated, tag = "15")]
    sparse_initializer: Vec<SparseTensor>,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(message, repeated, tag = "7")]
    node: Vec<Node>,
}

/// One step of a graph.
#[derive(Clone, PartialEq, Message)]
pub struct Node {
    /// Its operator.
    #[prost(string, tag = "4")]
    pub op_type: String,
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
    #[prost(message, optional, tag = "22")]
    sparse_tensor: Option<SparseTensor>,
    #[prost(message, repeated, tag = "23")]
    sparse_tensors: Vec<SparseTensor>,
}

#[derive(Clone, PartialEq, Message)]
struct SparseTensor {
    #[prost(message, optional, tag = "1")]
    values: Option<Tensor>,
    #[prost(message, optional, tag = "2")]
    indices: Option<Tensor>,
}

/// A constant.
#[derive(Clone, PartialEq, Message)]
pub struct Tensor {
    /// Its shape.
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    /// Its type, by the number that ONNX has for it.
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    /// Its name in the graph.
    #[prost(string, tag = "8")]
    pub name: String,
    /// Its numbers, where they are in the file and not written one by one.
    #[prost(bytes = "bytes", tag = "9")]
    pub raw_data: Bytes,
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<Entry>,
    #[prost(int32, tag = "14")]
    data_location: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// What a graph is made of.
pub enum Part<'a> {
    /// A step.
    Node(&'a Node),
    /// A constant, wherever it stands.
    Tensor(&'a Tensor),
}

impl OnnxModel {
    /// Reads the file at `path`, and nothing beside it.
    ///
    /// # Errors
    /// [`ModelError`] when it is not an ONNX file.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let bytes = std::fs::read(path).map_err(|error| unreadable(path, &error.to_string()))?;
        // Constants are not copied out of it.
        let model = Self::decode(Bytes::from(bytes))
            .map_err(|error| unreadable(path, &format!("it is not an ONNX file: {error}")))?;
        match model.graph {
            Some(_) => Ok(model),
            None => Err(unreadable(path, "it holds no graph")),
        }
    }

    /// Shows every node and every constant to `see`, those of inner graphs and functions included.
    pub fn visit<'a>(&'a self, see: &mut dyn FnMut(Part<'a>)) {
        if let Some(graph) = &self.graph {
            visit_graph(graph, see);
        }
        for function in &self.functions {
            visit_nodes(&function.node, see);
        }
    }

    /// The constants of its outermost graph.
    pub fn into_constants(self) -> Vec<Tensor> {
        self.graph.map_or_else(Vec::new, |graph| graph.initializer)
    }

    /// The other files that it keeps numbers in, as paths from the folder of the file at `path`; all of them
    /// below that folder.
    ///
    /// # Errors
    /// [`ModelError`] when one is not.
    pub fn external_files(&self, path: &Path) -> Result<BTreeSet<String>, ModelError> {
        let mut locations = BTreeSet::new();
        self.visit(&mut |part| {
            if let Part::Tensor(tensor) = part {
                // Whatever the tensor says of its place: a path that is there may be followed.
                let location = tensor.external("location");
                let nowhere = tensor.is_external().then_some("");
                locations.extend(location.or(nowhere).map(str::to_owned));
            }
        });
        let outside = |location: &&String| !stays_inside(Path::new(location));
        match locations.iter().find(outside) {
            None => Ok(locations),
            Some(location) => Err(ModelError::new(
                format!(
                    "`{}`: its weights are in `{location}`, which is not below its folder",
                    path.display()
                ),
                "take the model from a source that you trust; the path of external data has neither a root nor `..`",
            )),
        }
    }
}

fn visit_graph<'a>(graph: &'a Graph, see: &mut dyn FnMut(Part<'a>)) {
    let sparse = graph
        .sparse_initializer
        .iter()
        .flat_map(SparseTensor::parts);
    for tensor in graph.initializer.iter().chain(sparse) {
        see(Part::Tensor(tensor));
    }
    visit_nodes(&graph.node, see);
}

fn visit_nodes<'a>(nodes: &'a [Node], see: &mut dyn FnMut(Part<'a>)) {
    for node in nodes {
        see(Part::Node(node));
        for attribute in &node.attribute {
            let sparse = attribute
                .sparse_tensor
                .iter()
                .chain(&attribute.sparse_tensors);
            let tensors = attribute.t.iter().chain(&attribute.tensors);
            for tensor in tensors.chain(sparse.flat_map(SparseTensor::parts)) {
                see(Part::Tensor(tensor));
            }
            for graph in attribute.g.iter().chain(&attribute.graphs) {
                visit_graph(graph, see);
            }
        }
    }
}

impl SparseTensor {
    fn parts(&self) -> impl Iterator<Item = &Tensor> {
        self.values.iter().chain(&self.indices)
    }
}

impl Tensor {
    /// Whether its numbers are in another file.
    pub fn is_external(&self) -> bool {
        self.data_location == EXTERNAL
    }

    /// What it says of its place in another file: `location`, `offset` or `length`.
    pub fn external(&self, key: &str) -> Option<&str> {
        let entry = self.external_data.iter().find(|entry| entry.key == key);
        entry.map(|entry| entry.value.as_str())
    }

    /// Numbers in it; `None` for dimensions that are none.
    pub fn elements(&self) -> Option<usize> {
        self.dims.iter().try_fold(1_usize, |product, &dim| {
            product.checked_mul(usize::try_from(dim).ok()?)
        })
    }
}

fn unreadable(path: &Path, why: &str) -> ModelError {
    ModelError::new(
        format!("`{}` cannot be read: {why}", path.display()),
        "download the file again; a Git LFS pointer or an HTML page is a common cause",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outside(location: &str) -> Tensor {
        let entry = Entry {
            key: "location".to_owned(),
            value: location.to_owned(),
        };
        Tensor {
            external_data: vec![entry],
            ..Tensor::default()
        }
    }

    fn node(attribute: Attribute) -> Node {
        Node {
            attribute: vec![attribute],
            ..Node::default()
        }
    }

    /// Wherever a constant stands, the file that it names is known.
    #[test]
    fn every_place_of_a_constant_is_looked_at() {
        let sparse = |location: &str| SparseTensor {
            values: Some(outside(location)),
            indices: None,
        };
        let inner = Graph {
            initializer: vec![outside("inner")],
            ..Graph::default()
        };
        let in_node = Attribute {
            t: Some(outside("t")),
            g: Some(inner),
            tensors: vec![outside("tensors")],
            graphs: vec![Graph {
                sparse_initializer: vec![sparse("inner sparse")],
                ..Graph::default()
            }],
            sparse_tensor: Some(sparse("sparse tensor")),
            sparse_tensors: vec![sparse("sparse tensors")],
        };
        let in_function = Attribute {
            t: Some(outside("function")),
            ..Attribute::default()
        };
        let model = OnnxModel {
            graph: Some(Graph {
                node: vec![node(in_node)],
                initializer: vec![Tensor::default(), outside("./outer")],
                sparse_initializer: vec![sparse("sparse")],
            }),
            functions: vec![Function {
                node: vec![node(in_function)],
            }],
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
    fn a_place_outside_of_the_folder_is_an_error() {
        let of = |tensor: Tensor| OnnxModel {
            graph: Some(Graph {
                initializer: vec![tensor],
                ..Graph::default()
            }),
            functions: Vec::new(),
        };
        let path = Path::new("onnx/model.onnx");
        let nowhere = Tensor {
            data_location: EXTERNAL,
            ..Tensor::default()
        };
        let tensors = ["/etc/hosts", "../x", "a/../../x"].map(outside);
        for tensor in tensors.into_iter().chain([nowhere]) {
            let error = of(tensor).external_files(path).unwrap_err();
            assert!(error.message().contains("not below its folder"), "{error}");
        }
    }
}
