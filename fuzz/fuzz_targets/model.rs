//! The settings of a model: `config.json`, the modules and the files beside them, and the graph that is
//! built from them and unchanged weights.
//!
//! An input holds the files in the order of [`FILES`], with a zero byte between them. An empty one is
//! left out.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rerankd_fuzz::Folder;
use rerankd_model::graph::{self, Precision, Rows};
use rerankd_model::{ExportedModel, Model};

const FILES: [&str; 8] = [
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer_config.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "4_LayerNorm/config.json",
];

static FOLDER: LazyLock<Folder> = LazyLock::new(|| {
    let folder = Folder::new();
    let model =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/reference/models/tiny-modular");
    for name in [
        "model.safetensors",
        "tokenizer.json",
        "2_Dense/model.safetensors",
        "4_LayerNorm/model.safetensors",
    ] {
        folder.write(name, &std::fs::read(model.join(name)).unwrap());
    }
    folder.write("model.onnx", b"");
    folder
});

fuzz_target!(|data: &[u8]| {
    let mut parts = data.split(|byte| *byte == 0);
    for name in FILES {
        match parts.next() {
            None | Some([]) => FOLDER.remove(name),
            Some(content) => {
                FOLDER.write(name, content);
            }
        }
    }
    if let Ok(model) = Model::open(FOLDER.path()) {
        for precision in [Precision::Fp32, Precision::Bf16, Precision::Int8] {
            let _ = graph::build(&model, Rows::FirstOfEach, precision);
        }
    }
    let _ = ExportedModel::open(FOLDER.path(), None);
});
