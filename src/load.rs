//! From files to a running [`Reranker`].

mod calibrate;
mod self_test;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use self::calibrate::Sample;
use crate::batch::cost::Work;
use crate::batch::plan::BatchLimits;
use crate::config::{BatchConfig, CacheConfig, Precision};
use crate::encoder::PairEncoder;
use crate::graph::{self, Rows};
use crate::metrics::Metrics;
use crate::model::{Model, ModelError};
use crate::rerank::Strategy;
use crate::scorer::isa::Path;
use crate::scorer::library::{Library, LibraryError};
use crate::scorer::onnx::{Layout, OnnxModel};
use crate::scorer::{ScoreError, Scorer};
use crate::service::{Capacity, ModelInfo, Reranker};

pub use self_test::SelfTestError;

use self_test::SelfTest;

/// What to load, and how much of the machine to give it.
#[derive(Debug, Clone)]
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
    let model = open(config)?;
    let encoder = PairEncoder::for_model(&model)?.with_strategy(config.truncation);
    let info = info(config, &model, &library);
    let manifest = model.manifest.clone();
    let graph = graph::build(&model, Rows::FirstOfEach, precision(config))?;
    // The source is not needed any more, and its memory is wanted for the sessions.
    drop(model);
    let onnx = OnnxModel::new(&library, graph, Layout::of(&manifest))?;
    // It also warms the session up: no client pays for the first touch of its memory.
    let self_test = SelfTest::new(&encoder, manifest.labels.len())?;
    tracing::info!(sessions = config.threads, "opening sessions");
    let mut scorers = (0..config.threads)
        .map(|_| {
            let mut scorer: Box<dyn Scorer> = Box::new(onnx.session(1)?);
            self_test.run(&mut *scorer)?;
            Ok(scorer)
        })
        .collect::<Result<Vec<_>, LoadError>>()?;
    let sample = Sample {
        token: manifest.encoder.pad_token_id,
        max_length: manifest.max_length,
    };
    let started = Instant::now();
    let costs = calibrate::calibrate(&mut scorers, sample)?;
    let full = Work::of(config.batching.max_batch_tokens.min(manifest.max_length));
    tracing::info!(
        took_ms = started.elapsed().as_millis() as u64,
        tokens_per_second = (1.0 / costs.pace(full)) as u64,
        longest_pair_ms = costs.loaded().seconds(Work::of(manifest.max_length)) * 1e3,
        "sessions are warm, and the cost of batches is measured"
    );
    let capacity = Capacity {
        batch: BatchLimits::of(&config.batching),
        max_queue_tokens: config.batching.max_queue_tokens,
        encode_threads: config.threads,
        cache: config.cache.clone(),
        costs,
    };
    Ok(Reranker::start(info, encoder, scorers, capacity, metrics))
}

/// Opens the encoder and the sessions that [`load`] would run, with nothing around them. Blocks.
///
/// # Errors
/// As [`load`].
pub fn sessions(config: &LoadConfig) -> Result<(PairEncoder, Vec<Box<dyn Scorer>>), LoadError> {
    let library = Library::load(config.runtime_library.as_deref())?;
    let model = open(config)?;
    let encoder = PairEncoder::for_model(&model)?.with_strategy(config.truncation);
    let layout = Layout::of(&model.manifest);
    let graph = graph::build(&model, Rows::FirstOfEach, precision(config))?;
    let onnx = OnnxModel::new(&library, graph, layout)?;
    let sessions = (0..config.threads)
        .map(|_| Ok(Box::new(onnx.session(1)?) as Box<dyn Scorer>))
        .collect::<Result<_, LoadError>>()?;
    Ok((encoder, sessions))
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

/// The arithmetic that a model is run with. `auto` trusts eight bits with the embedded model alone: of
/// others nobody has measured what becomes of their scores.
pub fn precision(config: &LoadConfig) -> graph::Precision {
    let measured = config.model.is_none();
    let path = Path::best();
    match config.precision {
        Precision::Int8 => graph::Precision::Int8,
        Precision::Auto if measured && path.favours_int8() => graph::Precision::Int8,
        _ if path.favours_own_fp32() => graph::Precision::Fp32,
        _ => graph::Precision::Fp32Nodes,
    }
}

fn info(config: &LoadConfig, model: &Model, library: &Library) -> ModelInfo {
    let manifest = &model.manifest;
    ModelInfo {
        id: config
            .served_model_name
            .clone()
            .unwrap_or_else(|| manifest.id.clone()),
        architecture: manifest.architecture,
        labels: manifest.labels.clone(),
        max_length: manifest.max_length,
        activation: manifest.activation,
        precision: precision(config).name(),
        instructions: Path::best().name(),
        parameters: model.weights.parameters(),
        threads: config.threads,
        sessions: config.threads,
        runtime_version: library.version.clone(),
    }
}
