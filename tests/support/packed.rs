//! Packed graphs in sessions, without the loader.

use rerankd_kernels::compute_pool::ComputePool;
use rerankd_model::Model;
use rerankd_model::graph::{self, Precision, Rows};
use rerankd_runtime::library::Library;
use rerankd_runtime::onnx::{Layout, OnnxModel};

pub fn library() -> Library {
    Library::load(std::env::var_os("ORT_DYLIB_PATH").as_deref()).unwrap()
}

/// The graph of `model`, ready for sessions.
pub fn open(model: &Model, rows: Rows, precision: Precision, pool: ComputePool) -> OnnxModel {
    let graph = graph::build(model, rows, precision).unwrap();
    OnnxModel::new(&library(), graph, Layout::of(&model.manifest), pool).unwrap()
}
