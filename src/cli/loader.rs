//! Loads the engine as configured, and downloads the model if it comes from a hub.

use super::download::ProgressSink;
use super::hub;
use crate::config::{Config, Precision};
use rerankd_engine::bulk::Engine;
use rerankd_engine::load::{LoadConfig, LoadError};
use rerankd_hub::Source;
use rerankd_model::ModelError;

/// The engine's configuration. Downloads the model if `--model` names one of a hub that is not in the
/// cache, with progress on `sink`.
///
/// # Errors
/// When there is no such model, or it cannot be downloaded.
pub(super) fn load_config(config: &Config, sink: ProgressSink) -> Result<LoadConfig, ModelError> {
    let source = config.model.dir.as_deref().map(Source::parse).transpose()?;
    let model = match source {
        Some(Source::Directory(directory)) => Some(directory),
        Some(Source::Hub(id)) => Some(hub::fetch(&id, config, sink)?),
        None => None,
    };
    Ok(LoadConfig {
        model,
        onnx_file: config.model.onnx_file.clone(),
        served_model_name: config.model.served_name.clone(),
        truncation: config.model.truncation,
        profile: config.model.profile.clone(),
        max_length: config.model.max_length,
        instruction: config.model.instruction.clone(),
        runtime_library: std::env::var_os("ORT_DYLIB_PATH"),
        threads: config.model.threads.unwrap_or_else(cores),
        precision: config.model.precision,
        device: config.model.device,
        library_path: std::env::var_os("LD_LIBRARY_PATH"),
        batching: (&config.batching).into(),
        cache: (&config.cache).into(),
        share: 1,
        max_bytes: config.model.max_bytes,
    })
}

/// Loads the engine for commands, with progress on the standard error. `precision` overrides the setting.
///
/// # Errors
/// When the model cannot be downloaded or loaded.
pub(super) fn load_engine(
    config: &Config,
    precision: Option<Precision>,
) -> Result<Engine, LoadError> {
    let load = load_config(config, ProgressSink::Stderr)?;
    Engine::load(&LoadConfig {
        precision: precision.unwrap_or(load.precision),
        ..load
    })
}

/// How many cores this process may keep busy: the smaller of its affinity mask and its cgroup quota,
/// rounded down. A thread on a fraction of a core is throttled for most of each period, and delays
/// its whole batch by as much.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
