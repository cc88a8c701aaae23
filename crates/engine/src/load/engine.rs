//! Opens a model on the device that runs it.

use std::collections::BTreeMap;

use super::background::processor_time;
use super::calibrate::{SHAPES, Sample, wall_time};
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
    /// bf16 on a GPU that has none.
    #[error(
        "`--precision bf16` requires a GPU of compute capability 8.0 or higher, and this one has {}.{}; hint: \
         `--precision auto` works on every device", .0.0, .0.1
    )]
    NoBf16((u32, u32)),
}

/// What runs models.
#[derive(Clone, Copy)]
pub(super) struct Runtime<'a> {
    pub library: &'a Library,
    /// The cores of all models.
    pub compute: &'a ComputePool,
}

/// The number format that a model is computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arithmetic {
    Cpu(graph::Precision),
    Cuda(Floats),
}

impl Arithmetic {
    /// The configured precision on `device`, and why it is used.
    fn of(config: &LoadConfig, device: &Taken) -> Result<(Self, String), PrecisionError> {
        let set = InstructionSet::best();
        let asked = config.precision;
        match device {
            Taken::Cpu => {
                let measured = config.model.is_none();
                let (precision, because) = match asked {
                    Precision::Auto => automatic(set, measured),
                    Precision::Fp32 => (asked, "it is the default, or was asked for".to_owned()),
                    _ => (asked, "it was asked for".to_owned()),
                };
                let fp32 = match set.favors_own_fp32() {
                    true => graph::Precision::Fp32,
                    false => graph::Precision::Fp32Nodes,
                };
                Ok(match precision {
                    Precision::Fp32 | Precision::Auto => (Self::Cpu(fp32), because),
                    Precision::Int8 => (Self::Cpu(graph::Precision::Int8), because),
                    Precision::Bf16 => {
                        let because = format!("{because}; {}", bf16_products(set));
                        (Self::Cpu(graph::Precision::Bf16), because)
                    }
                    Precision::Fp16 => return Err(PrecisionError::HalfOnCpu),
                })
            }
            Taken::Cuda(gpu) => {
                let capability = gpu.facts.capability;
                let (floats, because) = match asked {
                    Precision::Fp32 => (Floats::Single, "it was asked for, or is the default"),
                    Precision::Fp16 => (Floats::Half, "it was asked for"),
                    Precision::Auto => (Floats::Half, "it is faster than fp32 on a GPU"),
                    Precision::Bf16 if capability < cuda::AMPERE => {
                        return Err(PrecisionError::NoBf16(capability));
                    }
                    Precision::Bf16 => (Floats::Bfloat, "it was asked for"),
                    Precision::Int8 => return Err(PrecisionError::Int8OnGpu),
                };
                Ok((Self::Cuda(floats), because.to_owned()))
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Cpu(precision) => precision.name(),
            Self::Cuda(Floats::Single) => "fp32",
            Self::Cuda(Floats::Half) => "fp16",
            Self::Cuda(Floats::Bfloat) => "bf16",
        }
    }
}

/// What `auto` is on a CPU, and why. `measured`: whether the effect of int8 on the model's scores is known.
fn automatic(set: InstructionSet, measured: bool) -> (Precision, String) {
    let name = set.name();
    if measured && set.favors_int8() {
        let because =
            format!("int8 is fastest with {name}, and its quality with this model is known");
        return (Precision::Int8, because);
    }
    let known = if measured {
        format!("int8 has no fast products with {name}")
    } else {
        "the quality of int8 with this model is not known".to_owned()
    };
    if set.has_bf16() {
        (Precision::Bf16, known)
    } else {
        (Precision::Fp32, format!("{known}; {}", bf16_products(set)))
    }
}

/// How products of bf16 are computed.
fn bf16_products(set: InstructionSet) -> String {
    let name = set.name();
    match set.has_bf16() {
        true => format!("{name} has instructions for bf16"),
        false => format!("{name} has no instructions for bf16, so its numbers are widened to fp32"),
    }
}

/// The device and the arithmetic, before the model is opened on it.
pub(super) struct Plan {
    choice: Choice,
    arithmetic: Arithmetic,
    arithmetic_because: String,
}

impl Plan {
    /// Probes the machine if a GPU is requested.
    ///
    /// # Errors
    /// If the requested device or precision is not available.
    pub(super) fn new(config: &LoadConfig, library: &Library) -> Result<Self, LoadError> {
        let machine = ThisMachine::new(config.library_path.as_deref());
        let choice = choose(config.device, &library.path, &library.version, &machine)?;
        let (arithmetic, arithmetic_because) = Arithmetic::of(config, &choice.device)?;
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
        Ok(Self {
            choice,
            arithmetic,
            arithmetic_because,
        })
    }

    /// Makes `auto` bf16 for causal models on a GPU that has it: their hidden states may overflow fp16.
    fn prefer_bf16_for_causal(&mut self, asked: Precision, manifest: &Manifest) {
        let Taken::Cuda(gpu) = &self.choice.device else {
            return;
        };
        let causal = manifest.encoder.decoder().is_some();
        if asked == Precision::Auto && causal && gpu.facts.capability >= cuda::AMPERE {
            self.arithmetic = Arithmetic::Cuda(Floats::Bfloat);
            self.arithmetic_because = "causal models need the range of bf16".to_owned();
        }
    }

    /// Opens all sessions, and drops the model to free its memory for them.
    ///
    /// # Errors
    /// If the model cannot be opened on the device.
    pub(super) fn open(
        mut self,
        config: &LoadConfig,
        Runtime { library, compute }: Runtime<'_>,
        model: Model,
    ) -> Result<Engine, LoadError> {
        self.prefer_bf16_for_causal(config.precision, &model.manifest);
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
                    graph::Precision::Fp32Nodes => compute.clone().without_borrowing(),
                    graph::Precision::Fp32 | graph::Precision::Bf16 | graph::Precision::Int8 => {
                        compute.clone()
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
            precision_because: self.arithmetic_because,
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
        compute: &ComputePool,
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
        let asked = config.precision;
        let chosen = matches!(asked, Precision::Bf16 | Precision::Int8);
        if chosen && file.precision() != asked.name() {
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
            precision_because: "ONNX files run unchanged".to_owned(),
            opened: Opened {
                weight_bytes: file.weight_bytes,
                ..on_cpu(
                    config,
                    || model.session(1, compute),
                    PaddedScorer::providers,
                )?
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
    let graph = graph::cuda::build(&model, floats)?;
    let weight_bytes = Weight::total_bytes(&graph.weights);
    config.check_memory(weight_bytes)?;
    let layout = Layout::of(&model.manifest);
    let need = cuda::need(&model.manifest, floats, gpu.facts.capability);
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
    pub(super) precision_because: String,
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
            clock: match self.on_gpu {
                true => wall_time,
                false => processor_time,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rerankd_runtime::device::Gpu;
    use std::path::PathBuf;

    fn gpu_of(capability: (u32, u32)) -> Taken {
        let mut gpu = Gpu::default();
        gpu.facts.capability = capability;
        Taken::Cuda(gpu)
    }

    fn arithmetic(device: &Taken, precision: Precision) -> Result<&'static str, PrecisionError> {
        let config = LoadConfig {
            model: Some(PathBuf::from("model")),
            precision,
            ..LoadConfig::default()
        };
        Arithmetic::of(&config, device).map(|(arithmetic, _)| arithmetic.name())
    }

    #[test]
    fn causal_models_are_in_bf16_on_a_gpu_that_has_it() {
        let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference/models");
        for (name, capability, asked, expected) in [
            ("causal-qwen3", (9, 0), Precision::Auto, "bf16"),
            ("causal-qwen3", (7, 5), Precision::Auto, "fp16"),
            ("causal-qwen3", (9, 0), Precision::Fp16, "fp16"),
            ("tiny-deberta-v3", (9, 0), Precision::Auto, "fp16"),
        ] {
            let config = LoadConfig {
                model: Some(models.join(name)),
                precision: asked,
                ..LoadConfig::default()
            };
            let choice = Choice {
                device: gpu_of(capability),
                because: "a GPU is there".into(),
            };
            let (arithmetic, arithmetic_because) = Arithmetic::of(&config, &choice.device).unwrap();
            let mut plan = Plan {
                choice,
                arithmetic,
                arithmetic_because,
            };
            let model = Model::open(&models.join(name)).unwrap();
            plan.prefer_bf16_for_causal(asked, &model.manifest);
            assert_eq!(plan.arithmetic.name(), expected, "{name}, {capability:?}");
        }
    }

    #[test]
    fn every_device_has_its_arithmetic() {
        let gpu = gpu_of((9, 0));
        let native = InstructionSet::best().has_bf16();
        let unmeasured = if native { "bf16" } else { "fp32" };
        assert_eq!(arithmetic(&Taken::Cpu, Precision::Auto), Ok(unmeasured));
        assert_eq!(arithmetic(&Taken::Cpu, Precision::Bf16), Ok("bf16"));
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
        assert_eq!(arithmetic(&gpu, Precision::Bf16), Ok("bf16"));
        let old = gpu_of((7, 5));
        assert_eq!(
            arithmetic(&old, Precision::Bf16),
            Err(PrecisionError::NoBf16((7, 5)))
        );
    }

    #[test]
    fn auto_says_why() {
        for set in InstructionSet::available() {
            let (precision, because) = automatic(set, false);
            let expected = if set.has_bf16() {
                Precision::Bf16
            } else {
                Precision::Fp32
            };
            assert_eq!(precision, expected, "{}", set.name());
            assert!(because.contains("int8"), "{because}");
            let (precision, because) = automatic(set, true);
            assert_eq!(precision == Precision::Int8, set.favors_int8());
            assert!(because.contains(set.name()), "{because}");
        }
    }
}
