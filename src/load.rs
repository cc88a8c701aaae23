//! From files to a running [`Reranker`].

mod calibrate;
mod engine;
mod self_test;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use self::engine::{Engine, Plan};
use crate::batch::cost::Work;
use crate::config::{BatchConfig, CacheConfig, Device, Precision};
use crate::encoder::PairEncoder;
use crate::metrics::Metrics;
use crate::model::{Manifest, Model, ModelError};
use crate::rerank::Strategy;
use crate::scorer::device::DeviceError;
use crate::scorer::isa::Path;
use crate::scorer::library::{Library, LibraryError};
use crate::scorer::{ScoreError, Scorer};
use crate::service::{Capacity, ModelInfo, Reranker};

pub use engine::PrecisionError;
pub use self_test::SelfTestError;

use self_test::SelfTest;

/// What to load, and how much of the machine to give it.
#[derive(Debug, Clone, Default)]
pub struct LoadConfig {
    /// Directory of the model; `None` for the embedded one.
    pub model: Option<PathBuf>,
    /// Name that responses carry, in place of the model's own.
    pub served_model_name: Option<String>,
    /// Which text gives way when a pair is too long and its request does not say.
    pub truncation: Strategy,
    /// ONNX Runtime's library, as `ORT_DYLIB_PATH` gives it.
    pub runtime_library: Option<OsString>,
    /// Threads that score, each with a session of its own.
    pub threads: usize,
    /// Arithmetic of the matrix products.
    pub precision: Precision,
    /// What runs the model.
    pub device: Device,
    /// Where the system's loader looks first, as `LD_LIBRARY_PATH` gives it.
    pub library_path: Option<OsString>,
    /// How pairs become batches, and how many may wait.
    pub batching: BatchConfig,
    /// Which scores are kept.
    pub cache: CacheConfig,
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// ONNX Runtime is missing, broken or too old.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The device that was asked for cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device has not the arithmetic that was asked for.
    #[error(transparent)]
    Precision(#[from] PrecisionError),
    /// The model cannot be served.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// ONNX Runtime refused the model.
    #[error("ONNX Runtime cannot run the model: {0}")]
    Runtime(#[from] ScoreError),
    /// The model loaded, and its scores mean nothing.
    #[error(transparent)]
    SelfTest(#[from] SelfTestError),
}

/// Loads the model, opens its sessions, tests each and starts the workers. Blocks.
///
/// # Errors
/// [`LoadError`], in words for the person who starts the server.
pub fn load(config: &LoadConfig, metrics: Arc<Metrics>) -> Result<Reranker, LoadError> {
    let library = Library::load(config.runtime_library.as_deref())?;
    tracing::info!(
        model = config
            .model
            .as_ref()
            .map(|dir| tracing::field::display(dir.display())),
        "loading the model"
    );
    let plan = Plan::new(config, &library)?;
    let model = open(config)?;
    let encoder = PairEncoder::for_model(&model)?.with_strategy(config.truncation);
    let (manifest, parameters) = (model.manifest.clone(), model.weights.parameters());
    let mut engine = plan.open(config, &library, model)?;
    // It also warms the sessions up: no client pays for the first touch of their memory.
    let self_test = SelfTest::new(&encoder, manifest.labels.len())?;
    for scorer in &mut engine.opened.scorers {
        self_test.run(&mut **scorer)?;
    }
    let sample = engine.sample(manifest.encoder.pad_token_id, manifest.max_length);
    let started = Instant::now();
    let costs = calibrate::calibrate(&mut engine.opened.scorers, sample)?;
    let limits = engine.opened.limits;
    let full = Work::of(limits.max_tokens.min(manifest.max_length));
    tracing::info!(
        took_ms = started.elapsed().as_millis() as u64,
        tokens_per_second = (1.0 / costs.pace(full)) as u64,
        longest_pair_ms = costs.loaded().seconds(Work::of(manifest.max_length)) * 1e3,
        "sessions are warm, and the cost of batches is measured"
    );
    let info = info(config, &manifest, parameters, &library, &engine);
    let capacity = Capacity {
        batch: limits,
        max_queue_tokens: config.batching.max_queue_tokens,
        encode_threads: config.threads,
        cache: config.cache.clone(),
        costs,
    };
    let scorers = engine.opened.scorers;
    Ok(Reranker::start(info, encoder, scorers, capacity, metrics))
}

/// What [`load`] would run, with nothing around it.
pub struct Bare {
    /// Makes token ids of pairs.
    pub encoder: PairEncoder,
    /// What runs batches.
    pub sessions: Vec<Box<dyn Scorer>>,
    /// The arithmetic, such as `fp32`.
    pub precision: &'static str,
    /// The device, such as `cpu`.
    pub device: String,
    /// Most tokens of one batch.
    pub batch_tokens: usize,
}

/// Opens the encoder and the sessions that [`load`] would run. Blocks.
///
/// # Errors
/// As [`load`].
pub fn sessions(config: &LoadConfig) -> Result<Bare, LoadError> {
    let library = Library::load(config.runtime_library.as_deref())?;
    let plan = Plan::new(config, &library)?;
    let model = open(config)?;
    let encoder = PairEncoder::for_model(&model)?.with_strategy(config.truncation);
    let engine = plan.open(config, &library, model)?;
    Ok(Bare {
        encoder,
        sessions: engine.opened.scorers,
        precision: engine.precision,
        device: engine.device,
        batch_tokens: engine.opened.limits.max_tokens,
    })
}

fn open(config: &LoadConfig) -> Result<Model, ModelError> {
    match &config.model {
        Some(directory) => Model::open(directory),
        #[cfg(feature = "embedded-model")]
        None => Model::embedded(),
        #[cfg(not(feature = "embedded-model"))]
        None => Err(ModelError::new(
            "this build has no embedded model",
            "pass `--model` with the directory of a cross-encoder",
        )),
    }
}

fn info(
    config: &LoadConfig,
    manifest: &Manifest,
    parameters: usize,
    library: &Library,
    engine: &Engine,
) -> ModelInfo {
    ModelInfo {
        id: config
            .served_model_name
            .clone()
            .unwrap_or_else(|| manifest.id.clone()),
        architecture: manifest.architecture,
        labels: manifest.labels.clone(),
        max_length: manifest.max_length,
        activation: manifest.activation,
        precision: engine.precision,
        instructions: Path::best().name(),
        parameters,
        threads: config.threads,
        sessions: engine.opened.sessions,
        runtime_version: library.version.clone(),
        device: engine.device.clone(),
        device_because: engine.device_because.clone(),
        providers: engine.opened.providers.clone(),
        batch_tokens: engine.opened.limits.max_tokens,
    }
}
