//! A `.safetensors` file: its header, and every tensor that the header promises.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rerankd_fuzz::Folder;
use rerankd_model::Weights;
use serde_json::{Map, Value};

static FOLDER: LazyLock<Folder> = LazyLock::new(Folder::new);

fuzz_target!(|data: &[u8]| {
    let path = FOLDER.write("model.safetensors", data);
    let Ok(weights) = Weights::open(&path) else {
        return;
    };
    // A header that was accepted is JSON, and names the tensors.
    let length = u64::from_le_bytes(data[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&data[8..][..length]).unwrap();
    for name in header.keys() {
        if let Some(shape) = weights.shape(name) {
            let shape = shape.to_vec();
            if let Ok(numbers) = weights.read(name, &shape) {
                assert_eq!(numbers.len(), shape.iter().product::<usize>());
            }
        }
    }
});
