//! ONNX files: nodes, constants and external data.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rerankd_fuzz::Folder;
use rerankd_model::onnx::{GraphItem, ModelProto};

static FOLDER: LazyLock<Folder> = LazyLock::new(Folder::new);

fuzz_target!(|data: &[u8]| {
    let path = FOLDER.write("model.onnx", data);
    let Ok(model) = ModelProto::read(&path) else {
        return;
    };
    model.visit(&mut |item| {
        if let GraphItem::Tensor(tensor) = item {
            let _ = tensor.elements();
        }
    });
    if let Ok(files) = model.external_files(&path) {
        assert!(files.iter().all(|file| !file.starts_with('/')));
    }
});
