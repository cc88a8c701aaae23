//! Real models, loaded as by the server, with settings for tests.

use std::path::Path;
use std::sync::Arc;

use rerankd_engine::config::{BatchConfig, CacheConfig, Precision};
use rerankd_engine::load::{LoadConfig, load};
use rerankd_engine::metrics::Metrics;
use rerankd_engine::service::Reranker;
use rerankd_runtime::Device;

/// The loader configuration for `model`, or for the embedded one, in fp32.
pub fn config(model: Option<&Path>, threads: usize) -> LoadConfig {
    LoadConfig {
        model: model.map(Path::to_owned),
        onnx_file: None,
        served_model_name: None,
        truncation: rerankd_core::TruncationStrategy::default(),
        profile: None,
        max_length: None,
        instruction: None,
        runtime_library: std::env::var_os("ORT_DYLIB_PATH"),
        threads,
        precision: Precision::Fp32,
        device: Device::Cpu,
        library_path: None,
        batching: BatchConfig::default(),
        cache: CacheConfig::default(),
        ..LoadConfig::default()
    }
}

/// Loads `model`, or the embedded one, as the server does.
pub fn reranker(model: Option<&Path>, threads: usize, metrics: Arc<Metrics>) -> Arc<Reranker> {
    let config = config(model, threads);
    Arc::new(load(&config, metrics).unwrap_or_else(|error| panic!("{error}")))
}
