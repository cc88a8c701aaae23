//! An ONNX file: its nodes, its constants, and the other files that it names.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rerankd_fuzz::Folder;
use rerankd_model::onnx::{OnnxModel, Part};

static FOLDER: LazyLock<Folder> = LazyLock::new(Folder::new);

fuzz_target!(|data: &[u8]| {
    let path = FOLDER.write("model.onnx", data);
    let Ok(model) = OnnxModel::read(&path) else {
        return;
    };
    model.visit(&mut |part| {
        if let Part::Tensor(tensor) = part {
            let _ = tensor.elements();
        }
    });
    if let Ok(files) = model.external_files(&path) {
        assert!(files.iter().all(|file| !file.starts_with('/')));
    }
});
