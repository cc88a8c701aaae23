//! Packed graphs in sessions, without what the loader puts around them.

use rerankd_kernels::hardware::Hardware;
use rerankd_model::Model;
use rerankd_model::graph::{self, Precision, Rows};
use rerankd_runtime::library::Library;
use rerankd_runtime::onnx::{Layout, OnnxModel};

pub fn library() -> Library {
    Library::load(std::env::var_os("ORT_DYLIB_PATH").as_deref()).unwrap()
}

/// The graph of `model`, ready to be opened by sessions.
pub fn open(model: &Model, rows: Rows, precision: Precision, hardware: Hardware) -> OnnxModel {
    let graph = graph::build(model, rows, precision).unwrap();
    OnnxModel::new(&library(), graph, Layout::of(&model.manifest), hardware).unwrap()
}
