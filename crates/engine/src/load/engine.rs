//! Opens a model on the device that runs it.

use std::collections::BTreeMap;

use super::calibrate::{SHAPES, Sample};
use super::{LoadConfig, LoadError};
use crate::config::Precision;
use crate::plan::BatchLimits;
use rerankd_kernels::compute_pool::ComputePool;
use rerankd_kernels::isa::InstructionSet;
use rerankd_model::graph::cuda::Floats;
use rerankd_model::graph::{self, Rows, Weight};
use rerankd_model::{Manifest, Model, ModelError};
use rerankd_runtime::Device;
use rerankd_runtime::cuda::{self, CudaModel};
use rerankd_runtime::device::{Choice, Gpu, Taken, ThisMachine, choose};
use rerankd_runtime::library::Library;
use rerankd_runtime::onnx::{Layout, OnnxModel, OnnxScorer};
use rerankd_runtime::padded::{PaddedModel, PaddedScorer};
use rerankd_runtime::{ScoreError, Scorer};

/// A device that does not support the requested precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PrecisionError {
    /// fp16 on a CPU.
    #[error("`--precision fp16` requires a GPU; hint: `--precision auto` works on every device")]
    HalfOnCpu,
    /// int8 on a GPU.
    #[error("`--precision int8` requires a CPU; hint: `--precision auto` works on every device")]
    Int8OnGpu,
}

/// The number format that a model is computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arithmetic {
    Cpu(graph::Precision),
    Cuda(Floats),
}

impl Arithmetic {
    /// The configured precision on `device`. `auto` uses int8 for the built-in model only: its effect on the
    /// scores of other models has not been measured.
    fn of(config: &LoadConfig, device: &Taken) -> Result<Self, PrecisionError> {
        use graph::Precision::{Fp32, Fp32Nodes, Int8};
        let (measured, set) = (config.model.is_none(), InstructionSet::best());
        let fp32 = match set.favors_own_fp32() {
            true => Fp32,
            false => Fp32Nodes,
        };
        match (device, config.precision) {
            (Taken::Cpu, Precision::Fp32) => Ok(Self::Cpu(fp32)),
            (Taken::Cpu, Precision::Int8) => Ok(Self::Cpu(Int8)),
            (Taken::Cpu, Precision::Fp16) => Err(PrecisionError::HalfOnCpu),
            (Taken::Cpu, Precision::Auto) if measured && set.favors_int8() => Ok(Self::Cpu(Int8)),
            (Taken::Cpu, Precision::Auto) => Ok(Self::Cpu(fp32)),
            (Taken::Cuda(_), Precision::Fp32) => Ok(Self::Cuda(Floats::Single)),
            (Taken::Cuda(_), Precision::Fp16 | Precision::Auto) => Ok(Self::Cuda(Floats::Half)),
            (Taken::Cuda(_), Precision::Int8) => Err(PrecisionError::Int8OnGpu),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Cpu(precision) => precision.name(),
            Self::Cuda(Floats::Single) => "fp32",
            Self::Cuda(Floats::Half) => "fp16",
        }
    }
}

/// The device and the arithmetic, before the model is opened on it.
pub(super) struct Plan {
    choice: Choice,
    arithmetic: Arithmetic,
}

impl Plan {
    /// Probes the machine if a GPU is requested.
    ///
    /// # Errors
    /// If the requested device or precision is not available.
    pub(super) fn new(config: &LoadConfig, library: &Library) -> Result<Self, LoadError> {
        let machine = ThisMachine::new(config.library_path.as_deref());
        let choice = choose(config.device, &library.path, &library.version, &machine)?;
        let arithmetic = Arithmetic::of(config, &choice.device)?;
        match &choice.device {
            Taken::Cpu => {
                tracing::info!(device = choice.name(), because = choice.because, "device")
            }
            Taken::Cuda(gpu) => tracing::info!(
                device = choice.name(),
                because = choice.because,
                name = gpu.facts.name,
                capability = %format_args!("{}.{}", gpu.facts.capability.0, gpu.facts.capability.1),
                memory_bytes = gpu.facts.memory_bytes,
                driver_cuda = %format_args!("{}.{}", gpu.facts.cuda.0, gpu.facts.cuda.1),
                "device"
            ),
        }
        Ok(Self { choice, arithmetic })
    }

    /// Opens all sessions, and drops the model to free its memory for them.
    ///
    /// # Errors
    /// If the model cannot be opened on the device.
    pub(super) fn open(
        self,
        config: &LoadConfig,
        library: &Library,
        model: Model,
    ) -> Result<Engine, LoadError> {
        let this = match model.manifest.encoder.decoder() {
            Some(_) => self.on_cpu_only(config, &model.manifest)?,
            None => self,
        };
        this.open_built(config, library, model)
    }

    /// The plan for a causal model, which runs on the CPU.
    fn on_cpu_only(self, config: &LoadConfig, manifest: &Manifest) -> Result<Self, LoadError> {
        if matches!(self.choice.device, Taken::Cpu) {
            return Ok(self);
        }
        if config.device != Device::Auto {
            return Err(LoadError::Model(ModelError::new(
                format!(
                    "`{}` is a causal model (`{}`), which runs on the CPU only",
                    manifest.id, manifest.architecture
                ),
                "serve it with `--device cpu`",
            )));
        }
        let choice = Choice {
            device: Taken::Cpu,
            because: "causal models run on the CPU".to_owned(),
        };
        let arithmetic = Arithmetic::of(config, &choice.device)?;
        Ok(Self { choice, arithmetic })
    }

    fn open_built(
        self,
        config: &LoadConfig,
        library: &Library,
        model: Model,
    ) -> Result<Engine, LoadError> {
        let opened = match (&self.choice.device, self.arithmetic) {
            (Taken::Cuda(gpu), Arithmetic::Cuda(floats)) => {
                on_gpu(gpu, floats, config, library, model)?
            }
            (_, Arithmetic::Cpu(precision)) => {
                let graph = graph::build(&model, Rows::FirstOfEach, precision)?;
                let weight_bytes = Weight::total_bytes(&graph.weights);
                config.check_memory(weight_bytes)?;
                let mut layout = Layout::of(&model.manifest);
                if config.cache.per_key
                    && let Some(causal) = &mut layout.causal
                {
                    // Response times would reveal to one tenant what another has sent.
                    causal.keeps = 0;
                }
                drop(model);
                let pool = match precision {
                    // This graph has no custom operators that would borrow cores.
                    graph::Precision::Fp32Nodes => ComputePool::default(),
                    graph::Precision::Fp32 | graph::Precision::Int8 => {
                        ComputePool::new(config.threads)?
                    }
                };
                let onnx = OnnxModel::new(library, graph, layout, pool)?;
                let opened = on_cpu(
                    config,
                    || onnx.interruptible_session(),
                    OnnxScorer::providers,
                )?;
                Opened {
                    weight_bytes,
                    ..opened
                }
            }
            (Taken::Cpu, Arithmetic::Cuda(_)) => {
                unreachable!("the precision was chosen for the device")
            }
        };
        Ok(Engine {
            device: self.choice.name(),
            device_because: self.choice.because,
            on_gpu: matches!(self.choice.device, Taken::Cuda(_)),
            precision: self.arithmetic.name(),
            opened,
        })
    }
}

impl Plan {
    /// Opens all sessions of an ONNX file, which runs unchanged on the CPU.
    ///
    /// # Errors
    /// If the settings contradict the file.
    pub(super) fn open_file(
        self,
        config: &LoadConfig,
        model: &PaddedModel,
    ) -> Result<Engine, LoadError> {
        let file = model.file();
        let place = file.path.display();
        if config.device != Device::Auto && matches!(self.choice.device, Taken::Cuda(_)) {
            return Err(LoadError::Model(ModelError::new(
                format!("`{place}` is an ONNX file; those run on the CPU only"),
                "use `--device cpu`, or serve the weights of the model",
            )));
        }
        if config.precision == Precision::Int8 && file.precision() != "int8" {
            return Err(LoadError::Model(ModelError::new(
                format!(
                    "`{place}` computes in {}, and ONNX files run unchanged",
                    file.precision()
                ),
                "leave `precision` unset, or set `onnx_file` to a quantized file",
            )));
        }
        config.check_memory(file.weight_bytes)?;
        Ok(Engine {
            device: "cpu".to_owned(),
            device_because: match self.choice.device {
                Taken::Cpu => self.choice.because,
                Taken::Cuda(_) => "ONNX files run on the CPU".to_owned(),
            },
            on_gpu: false,
            precision: file.precision(),
            opened: Opened {
                weight_bytes: file.weight_bytes,
                ..on_cpu(config, || model.session(1), PaddedScorer::providers)?
            },
        })
    }
}

/// Opens a session per thread. All are identical, so the first one tells which providers run them.
fn on_cpu<S: Scorer + 'static, E: From<ScoreError>>(
    config: &LoadConfig,
    open: impl Fn() -> Result<S, E>,
    providers: impl Fn(&S) -> Result<BTreeMap<String, usize>, ScoreError>,
) -> Result<Opened, E> {
    tracing::info!(sessions = config.threads, "opening sessions");
    let opened = (0..config.threads).map(|_| open());
    let sessions = opened.collect::<Result<Vec<S>, E>>()?;
    let providers = sessions.first().map(providers).transpose()?;
    let boxed = |session| Box::new(session) as Box<dyn Scorer>;
    Ok(Opened {
        scorers: sessions.into_iter().map(boxed).collect(),
        sessions: config.threads,
        providers: providers.unwrap_or_default(),
        weight_bytes: 0,
        limits: BatchLimits::of(&config.batching),
    })
}

fn on_gpu(
    gpu: &Gpu,
    floats: Floats,
    config: &LoadConfig,
    library: &Library,
    model: Model,
) -> Result<Opened, LoadError> {
    let graph = graph::build(&model, Rows::FirstOfEach, graph::Precision::Fp32Nodes)?;
    let graph = graph::cuda::lower(graph, floats)?;
    let weight_bytes = Weight::total_bytes(&graph.weights);
    config.check_memory(weight_bytes)?;
    let layout = Layout::of(&model.manifest);
    let need = cuda::need(&model.manifest.encoder, floats);
    drop(model);
    let model = CudaModel::open(library, graph, layout, need, gpu)?;
    let scorers = (0..cuda::SCORERS)
        .map(|_| Ok(Box::new(model.scorer()?) as Box<dyn Scorer>))
        .collect::<Result<_, ScoreError>>()?;
    let tokens = model.batch_tokens(config.batching.cuda_batch_tokens);
    Ok(Opened {
        scorers,
        sessions: 1,
        providers: model.providers().clone(),
        weight_bytes,
        limits: BatchLimits {
            max_tokens: tokens,
            // The scorers take turns on one device, so sharing a batch would gain nothing.
            share_above: tokens,
            ..BatchLimits::of(&config.batching)
        },
    })
}

/// The scorers on a device, and their limits.
pub(super) struct Opened {
    pub(super) scorers: Vec<Box<dyn Scorer>>,
    pub(super) sessions: usize,
    pub(super) providers: BTreeMap<String, usize>,
    /// Of what all sessions share.
    pub(super) weight_bytes: usize,
    pub(super) limits: BatchLimits,
}

/// A model on its device.
pub(super) struct Engine {
    pub(super) device: String,
    pub(super) device_because: String,
    pub(super) precision: &'static str,
    pub(super) opened: Opened,
    on_gpu: bool,
}

impl Engine {
    /// Batches for calibration, of `tokens` and sequences of `max_length`.
    pub(super) fn sample(&self, tokens: [u32; 2], max_length: usize) -> Sample {
        // A GPU's first run of each size is slow: it loads kernels and allocates memory.
        let (shapes, warm_up): (&[&[usize]], &[&[usize]]) = match self.on_gpu {
            true => (&cuda::SHAPES, &cuda::SHAPES),
            false => (&SHAPES, &[]),
        };
        Sample {
            tokens,
            max_length,
            shapes,
            warm_up,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rerankd_runtime::device::Gpu;
    use std::path::PathBuf;

    fn arithmetic(device: &Taken, precision: Precision) -> Result<&'static str, PrecisionError> {
        let config = LoadConfig {
            model: Some(PathBuf::from("model")),
            precision,
            ..LoadConfig::default()
        };
        Arithmetic::of(&config, device).map(Arithmetic::name)
    }

    #[test]
    fn causal_models_run_on_the_cpu() {
        let name = "../../tests/reference/models/causal-qwen3";
        let model = Model::open(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
        let plan = |device| {
            let config = LoadConfig {
                device,
                ..LoadConfig::default()
            };
            let choice = Choice {
                device: Taken::Cuda(Gpu::default()),
                because: "a GPU is there".into(),
            };
            let arithmetic = Arithmetic::of(&config, &choice.device).unwrap();
            Plan { choice, arithmetic }.on_cpu_only(&config, &model.manifest)
        };
        let error = plan(Device::Cuda(0)).map(|_| ()).unwrap_err().to_string();
        assert!(
            error.contains("`causal-qwen3`") && error.contains("--device cpu"),
            "{error}"
        );
        let plan = plan(Device::Auto).unwrap();
        assert_eq!(plan.choice.name(), "cpu");
        assert!(matches!(plan.arithmetic, Arithmetic::Cpu(_)));
    }

    #[test]
    fn every_device_has_its_arithmetic() {
        let gpu = Taken::Cuda(Gpu::default());
        assert_eq!(arithmetic(&Taken::Cpu, Precision::Auto), Ok("fp32"));
        assert_eq!(arithmetic(&gpu, Precision::Auto), Ok("fp16"));
        assert_eq!(arithmetic(&gpu, Precision::Fp16), Ok("fp16"));
        assert_eq!(arithmetic(&gpu, Precision::Fp32), Ok("fp32"));
        assert_eq!(
            arithmetic(&Taken::Cpu, Precision::Fp16),
            Err(PrecisionError::HalfOnCpu)
        );
        assert_eq!(
            arithmetic(&gpu, Precision::Int8),
            Err(PrecisionError::Int8OnGpu)
        );
    }
}
