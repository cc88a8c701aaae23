//! Loads a model into a running [`Reranker`].

mod background;
mod calibrate;
mod engine;
mod self_test;

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use self::engine::{Engine, Plan, Runtime};
use crate::config::{BatchConfig, CacheConfig, Precision, QueueLimits};
use crate::cost::Work;
use crate::host::{Host, HostConfig};
use crate::metrics::Metrics;
use crate::service::{self, ModelInfo, Reranker};
use rerankd_core::{Activation, TruncationStrategy};
use rerankd_kernels::compute_pool::{ComputePool, ThreadsError};
use rerankd_kernels::isa::InstructionSet;
use rerankd_model::encoder::Encoder;
use rerankd_model::{AnyModel, EncoderConfig, Model, ModelError, ModelOptions, ProfileChoice};
use rerankd_runtime::Device;
use rerankd_runtime::device::DeviceError;
use rerankd_runtime::library::{Library, LibraryError};
use rerankd_runtime::padded::{PaddedError, PaddedModel};
use rerankd_runtime::{ScoreError, Scorer, memory};

pub use background::in_background;
pub use engine::PrecisionError;
pub use self_test::SelfTestError;

use self_test::SelfTest;

/// What to load, and how much of the machine it may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadConfig {
    /// Directory of the model; `None` for the built-in one.
    pub model: Option<PathBuf>,
    /// ONNX file in that directory to run instead of the default.
    pub onnx_file: Option<PathBuf>,
    /// Model name in responses, instead of the model's own.
    pub served_model_name: Option<String>,
    /// What is truncated when a pair is too long and its request does not say.
    pub truncation: TruncationStrategy,
    /// Profile of a causal model, a name or a file, instead of what its files say.
    pub profile: Option<String>,
    /// Maximum number of tokens of a pair of a causal model.
    pub max_length: Option<usize>,
    /// Instruction of requests without one, instead of the model's.
    pub instruction: Option<String>,
    /// Path of the ONNX Runtime library, as in `ORT_DYLIB_PATH`.
    pub runtime_library: Option<OsString>,
    /// Number of scoring threads, each with its own session.
    pub threads: usize,
    /// Precision of the matrix products.
    pub precision: Precision,
    /// Device that runs the model.
    pub device: Device,
    /// Where the system's loader looks first, as in `LD_LIBRARY_PATH`.
    pub library_path: Option<OsString>,
    /// Batching and queueing.
    pub batching: BatchConfig,
    /// The score cache.
    pub cache: CacheConfig,
    /// Weight among the models of a host, at least 1.
    pub share: u32,
    /// Most bytes that the weights may take.
    pub max_bytes: Option<usize>,
}

impl LoadConfig {
    /// Checks that weights of so many bytes are allowed.
    fn check_memory(&self, needed: usize) -> Result<(), LoadError> {
        match self.max_bytes {
            Some(allowed) if needed > allowed => Err(LoadError::Memory { needed, allowed }),
            _ => Ok(()),
        }
    }

    /// The host of models with this configuration.
    pub fn host(&self) -> HostConfig {
        HostConfig {
            queue: QueueLimits::of(&self.batching),
            encode_threads: self.threads,
            cores: self.threads,
            cache: self.cache.clone(),
        }
    }
}

/// The built-in model on all cores that this process may use.
impl Default for LoadConfig {
    fn default() -> Self {
        Self {
            model: None,
            onnx_file: None,
            served_model_name: None,
            truncation: TruncationStrategy::default(),
            profile: None,
            max_length: None,
            instruction: None,
            runtime_library: None,
            threads: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            precision: Precision::default(),
            device: Device::default(),
            library_path: None,
            batching: BatchConfig::default(),
            cache: CacheConfig::default(),
            share: 1,
            max_bytes: None,
        }
    }
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// ONNX Runtime is missing, broken or too old.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The requested device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device does not support the requested precision.
    #[error(transparent)]
    Precision(#[from] PrecisionError),
    /// The model cannot be served.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// ONNX Runtime refused the model.
    #[error("ONNX Runtime cannot run the model: {0}")]
    Runtime(#[from] ScoreError),
    /// The weights take more memory than is allowed.
    #[error(
        "the weights take {needed} bytes, and {allowed} are left for them; hint: raise \
         `max_model_bytes` or the model's `max_bytes`, use `int8`, or serve fewer models"
    )]
    Memory {
        /// Bytes of the weights.
        needed: usize,
        /// Bytes that they may take.
        allowed: usize,
    },
    /// The system could not start the scoring threads.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
    /// The model loaded, but its scores are meaningless.
    #[error(transparent)]
    SelfTest(#[from] SelfTestError),
}

impl From<PaddedError> for LoadError {
    fn from(error: PaddedError) -> Self {
        match error {
            PaddedError::Model(error) => Self::Model(error),
            PaddedError::Runtime(error) => Self::Runtime(error),
        }
    }
}

/// Loads the model, opens its sessions, tests each of them, and starts the workers. Blocks.
///
/// # Errors
/// [`LoadError`]; its message is for the person who starts the server.
pub fn load(config: &LoadConfig, metrics: Arc<Metrics>) -> Result<Reranker, LoadError> {
    load_on(&Host::start(&config.host(), metrics)?, config)
}

/// As [`load`], on `host`, whose models do not serve yet.
///
/// # Errors
/// Same as [`load`].
pub fn load_on(host: &Arc<Host>, config: &LoadConfig) -> Result<Reranker, LoadError> {
    Ok(Reranker::start_on(host, tested(host, config, None)?))
}

/// As [`load`], while other models of `host` serve: at low priority. If the model is as expensive as the one that it
/// `replaces`, what is known about that one's batches is kept.
///
/// # Errors
/// Same as [`load`]; the other models are not affected.
///
/// # Panics
/// When the system refuses a thread.
pub fn load_beside(
    host: &Arc<Host>,
    config: &LoadConfig,
    replaces: Option<&Reranker>,
) -> Result<Reranker, LoadError> {
    let model = in_background(|| {
        let model = tested(host, config, replaces);
        // What was needed only to load it.
        memory::give_back();
        model
    });
    // On this thread, so that workers have its priority.
    Ok(Reranker::start_on(host, model?))
}

/// Loads a model for `host`, and tests and measures its sessions.
fn tested(
    host: &Host,
    config: &LoadConfig,
    replaces: Option<&Reranker>,
) -> Result<service::Prepared, LoadError> {
    let library = Library::load(config.runtime_library.as_deref())?;
    tracing::info!(
        model = config
            .model
            .as_ref()
            .map(|dir| tracing::field::display(dir.display())),
        "loading model"
    );
    let plan = Plan::new(config, &library)?;
    let runtime = Runtime {
        library: &library,
        compute: &host.compute,
    };
    let Prepared {
        encoder,
        card,
        mut engine,
    } = prepare(config, runtime, plan)?;
    tracing::info!(
        architecture = card.architecture,
        format = card.format,
        layout = card.layout,
        precision = engine.precision,
        precision_because = engine.precision_because,
        "model loaded"
    );
    // This also warms up the sessions: no request pays for the first use of their memory.
    let self_test = SelfTest::new(&encoder, card.labels.len())?;
    for scorer in &mut engine.opened.scorers {
        self_test.run(&mut **scorer)?;
        if let Some(nested) = scorer.nested() {
            self_test.run(nested)?;
        }
    }
    let sample = engine.sample(card.sample_tokens, card.max_length);
    let (limits, max_length) = (engine.opened.limits, card.max_length);
    let info = info(config, card, &library, &engine);
    let started = Instant::now();
    calibrate::warm_up(&mut engine.opened.scorers, sample)?;
    let known = replaces.filter(|model| model.info().costs_as(&info));
    let costs = match known {
        Some(model) => model.costs(),
        None => calibrate::calibrate(&mut engine.opened.scorers, sample)?,
    };
    let full = Work::of(limits.max_tokens.min(max_length));
    tracing::info!(
        took_ms = started.elapsed().as_millis() as u64,
        tokens_per_second = (1.0 / costs.pace(full)) as u64,
        longest_pair_ms = costs.loaded().seconds(Work::of(max_length)) * 1e3,
        as_before = known.is_some(),
        "calibrated"
    );
    Ok(service::Prepared {
        info,
        encoder,
        scorers: engine.opened.scorers,
        batch: limits,
        costs,
        share: config.share,
    })
}

/// The encoder and the sessions that [`load`] would use, without queue and workers.
pub struct Bare {
    /// Tokenizes pairs.
    pub encoder: Encoder,
    /// Sessions that score batches.
    pub sessions: Vec<Box<dyn Scorer>>,
    /// The precision, such as `fp32`.
    pub precision: &'static str,
    /// The device, such as `cpu`.
    pub device: String,
    /// Maximum number of tokens in a batch.
    pub batch_tokens: usize,
}

/// Opens the encoder and the sessions that [`load`] would use. Blocks.
///
/// # Errors
/// Same as [`load`].
pub fn sessions(config: &LoadConfig) -> Result<Bare, LoadError> {
    let library = Library::load(config.runtime_library.as_deref())?;
    let plan = Plan::new(config, &library)?;
    let runtime = Runtime {
        library: &library,
        compute: &ComputePool::new(config.threads)?,
    };
    let Prepared {
        encoder, engine, ..
    } = prepare(config, runtime, plan)?;
    Ok(Bare {
        encoder,
        sessions: engine.opened.scorers,
        precision: engine.precision,
        device: engine.device,
        batch_tokens: engine.opened.limits.max_tokens,
    })
}

/// A model and its sessions.
struct Prepared {
    encoder: Encoder,
    card: Card,
    engine: Engine,
}

/// Facts about a model, whatever its format.
struct Card {
    id: String,
    architecture: String,
    format: &'static str,
    layout: &'static str,
    labels: Vec<String>,
    max_length: usize,
    activation: Activation,
    parameters: usize,
    /// Tokens for calibration.
    sample_tokens: [u32; 2],
}

fn prepare(config: &LoadConfig, runtime: Runtime<'_>, plan: Plan) -> Result<Prepared, LoadError> {
    let bound = |encoder: Encoder| {
        encoder
            .with_strategy(config.truncation)
            .with_instruction(config.instruction.as_deref())
    };
    match open(config)? {
        AnyModel::Built(model) => {
            if let Some(prompts) = &model.manifest.prompts {
                tracing::info!(
                    prompts = prompts.origin,
                    max_length = model.manifest.max_length,
                    "pairs are formatted as prompts"
                );
            }
            let encoder = bound(Encoder::for_model(&model)?)?;
            let (manifest, parameters) = (model.manifest.clone(), model.weights.parameters());
            let engine = plan.open(config, runtime, *model)?;
            let card = Card {
                id: manifest.id,
                architecture: manifest.architecture.to_owned(),
                format: "safetensors",
                layout: "packed",
                labels: manifest.labels,
                max_length: manifest.max_length,
                activation: manifest.activation,
                parameters,
                sample_tokens: sample_tokens(&manifest.encoder),
            };
            Ok(Prepared {
                encoder,
                card,
                engine,
            })
        }
        AnyModel::Exported(model) => {
            if let Some(reason) = &model.reason {
                tracing::warn!(
                    file = %model.path.display(),
                    reason,
                    "the model is served from its ONNX file, padded"
                );
            }
            let encoder = bound(Encoder::for_exported(&model)?)?;
            let padded = PaddedModel::new(runtime.library, &model)?;
            let parameters = padded.file().parameters;
            let engine = plan.open_file(config, runtime.compute, &padded)?;
            let card = Card {
                id: model.id,
                architecture: model.architecture,
                format: "onnx",
                layout: "padded",
                labels: model.labels,
                max_length: model.max_length,
                activation: model.activation,
                parameters,
                sample_tokens: [model.pad_token_id; 2],
            };
            Ok(Prepared {
                encoder,
                card,
                engine,
            })
        }
    }
}

/// For a causal model, two tokens that are not padding; otherwise the padding token.
fn sample_tokens(encoder: &EncoderConfig) -> [u32; 2] {
    let Some(decoder) = encoder.decoder() else {
        return [encoder.pad_token_id; 2];
    };
    let last = encoder.vocab_size as u32 - 1;
    let mut others = (0..=last).filter(|&token| Some(token) != decoder.padding);
    let first = others.next().unwrap_or(last);
    [first, others.next().unwrap_or(first)]
}

/// Opens the configured model, or the built-in one.
///
/// # Errors
/// [`ModelError`] if it cannot be served.
pub fn open(config: &LoadConfig) -> Result<AnyModel, ModelError> {
    let options = ModelOptions {
        profile: config.profile.as_deref().map(ProfileChoice::parse),
        max_length: config.max_length,
    };
    match &config.model {
        Some(directory) => AnyModel::open_with(directory, config.onnx_file.as_deref(), &options),
        None if options.profile.is_some() => Err(ModelError::new(
            "a profile is set, but no model",
            "pass `--model` with the directory of a causal model",
        )),
        None if options.max_length.is_some() => Err(ModelError::new(
            "a maximum length is set, but no model",
            "pass `--model` with the directory of a causal model, or leave `--max-length` unset",
        )),
        None if config.onnx_file.is_some() => Err(ModelError::new(
            "`onnx_file` is set, but no model",
            "pass `--model` with the directory that contains the file",
        )),
        None => Ok(AnyModel::Built(Box::new(Model::embedded()?))),
    }
}

fn info(config: &LoadConfig, card: Card, library: &Library, engine: &Engine) -> ModelInfo {
    ModelInfo {
        id: config.served_model_name.clone().unwrap_or(card.id),
        architecture: card.architecture,
        format: card.format,
        layout: card.layout,
        labels: card.labels,
        max_length: card.max_length,
        activation: card.activation,
        precision: engine.precision,
        precision_because: engine.precision_because.clone(),
        instructions: InstructionSet::best().name(),
        parameters: card.parameters,
        weight_bytes: engine.opened.weight_bytes,
        threads: config.threads,
        sessions: engine.opened.sessions,
        runtime_version: library.version.clone(),
        device: engine.device.clone(),
        device_because: engine.device_because.clone(),
        providers: engine.opened.providers.clone(),
        batch_tokens: engine.opened.limits.max_tokens,
    }
}
