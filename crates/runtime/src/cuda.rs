//! Runs the graph of [`graph::cuda`](rerankd_model::graph::cuda) on an NVIDIA GPU.
//!
//! There is one session, and two scorers that take turns on it: while one computes, the other has
//! packed its batch and copies it to the device, so that neither hides behind the other. That is one
//! batch ahead, and no more: what arrives later is not bound to a batch before it has to be.

pub mod inputs;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ort::ep;
use ort::ep::cuda::AttentionBackend;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{IoBinding, Session};
use ort::value::{DynValue, Tensor};

use self::inputs::{Input, Numbers, input};
use super::assignment::{self, nodes_by_provider};
use super::device::Gpu;
use super::library::Library;
use super::onnx::{self, Layout, PackedInputs};
use super::splitting::{Budget, Need, RunError, Runner, Splitting};
use super::{ScoreError, driver};
use rerankd_core::Batch;
use rerankd_model::graph::cuda::{Added, Floats};
use rerankd_model::graph::{Graph, io};
use rerankd_model::{AttentionPositions, LayerForm, Manifest};

/// Scorers that take turns on one session: one computes, one prepares.
pub const SCORERS: usize = 2;
/// The provider that has to run every node.
const PROVIDER: &str = "CUDAExecutionProvider";
/// Part of the free memory that batches may take, in percent: the rest is for what cuBLAS and the
/// allocator take beside what is asked of them.
const USABLE_PERCENT: u64 = 70;
/// Before [`AMPERE`], ONNX Runtime's fp32 attention lies in memory, padded, for sequences shorter than this.
const FUSED_FROM: usize = 256;
/// The compute capability of Ampere, the least that flash attention and bf16 need.
pub const AMPERE: (u32, u32) = (8, 0);
/// Most tokens of a batch: a kernel's grid has no more rows.
const MOST_TOKENS: usize = 65_535;

/// Batches of a GPU that is measured, small ones first; see the loading in `rerankd-engine`.
pub const SHAPES: [&[usize]; 7] = [
    &[32],
    &[128; 4],
    &[24; 64],
    &[512],
    &[64; 64],
    &[256; 16],
    &[512; 8],
];

/// A model on a GPU.
pub struct CudaModel {
    session: Arc<Mutex<Session>>,
    layout: Layout,
    inputs: Vec<String>,
    need: Need,
    budget: Arc<Budget>,
    providers: BTreeMap<String, usize>,
}

impl CudaModel {
    /// Copies the weights of `graph` to `gpu` and opens the session.
    ///
    /// # Errors
    /// [`ScoreError`] when ONNX Runtime refuses the graph or the device, or would run any of it
    /// elsewhere.
    pub fn open(
        library: &Library,
        graph: Graph,
        layout: Layout,
        need: Need,
        gpu: &Gpu,
    ) -> Result<Self, ScoreError> {
        let mut provider = ep::CUDA::default()
            .with_device_id(gpu.index as i32)
            // Grows by what a batch asks for: doubling would take memory that nothing uses.
            .with_arena_extend_strategy(ep::ArenaExtendStrategy::SameAsRequested)
            // Sums of 16-bit numbers in 32 bits, also in LayerNorm.
            .with_skip_layer_norm_strict_mode(true)
            // As the reference computes: fp32 is for those who want that.
            .with_tf32(false);
        if gpu.facts.capability >= AMPERE {
            // For short sequences too, where the default computes scores in memory (fp32).
            let kernels = AttentionBackend::FLASH_ATTENTION
                | AttentionBackend::EFFICIENT_ATTENTION
                | AttentionBackend::MATH;
            provider = provider.with_attention_backend(kernels);
        }
        let provider = provider.build().error_on_failure();
        let builder = Session::builder(&library.environment)?
            .with_disable_cpu_fallback()?
            .with_config_entry(assignment::RECORD, "1")?
            .with_execution_providers([provider])?;
        let session = read(builder, graph)?;
        let providers = nodes_by_provider(&session)?;
        check(&providers)?;
        let free = driver::free_memory(gpu.index).map_err(|error| ScoreError(error.to_string()))?;
        let budget = Budget::new(free / 100 * USABLE_PERCENT);
        tracing::info!(
            free_bytes = free,
            budget_bytes = budget.bytes(),
            bytes_per_token = need.per_token,
            "the model is on the GPU"
        );
        let inputs = session.inputs().iter().map(|i| i.name().to_owned());
        Ok(Self {
            inputs: inputs.collect(),
            session: Arc::new(Mutex::new(session)),
            layout,
            need,
            budget,
            providers,
        })
    }

    /// Nodes that each provider runs.
    pub fn providers(&self) -> &BTreeMap<String, usize> {
        &self.providers
    }

    /// Tokens of a batch that the memory holds, at most `wanted`.
    pub fn batch_tokens(&self, wanted: usize) -> usize {
        let held = self.budget.bytes() / self.need.per_token.max(1);
        wanted.min(held as usize).clamp(1, MOST_TOKENS)
    }

    /// One of the [`SCORERS`] that take turns.
    ///
    /// # Errors
    /// [`ScoreError`] when ONNX Runtime refuses it.
    pub fn scorer(&self) -> Result<Splitting<CudaRunner>, ScoreError> {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let runner = CudaRunner {
            session: self.session.clone(),
            binding: session.create_binding()?,
            host: MemoryInfo::new(
                AllocationDevice::CPU,
                0,
                AllocatorType::Device,
                MemoryType::CPUOutput,
            )?,
            layout: self.layout,
            inputs: self.inputs.clone(),
        };
        Ok(Splitting::new(runner, self.need, self.budget.clone()))
    }
}

fn read(builder: SessionBuilder, graph: Graph) -> Result<Session, ScoreError> {
    let mut builder = builder
        .with_optimization_level(GraphOptimizationLevel::Disable)?
        .with_intra_threads(1)?
        .with_intra_op_spinning(false)?
        // A pattern is remembered for each shape, and shapes here hardly ever repeat.
        .with_memory_pattern(false)?;
    for weight in graph.weights {
        // Unlike what is given by `with_initializer`, this is copied to the device.
        let (name, tensor) = onnx::tensor(weight)?;
        builder = builder.with_external_initializer(name, tensor)?;
    }
    Ok(builder.commit_from_memory(&graph.model)?)
}

/// Has ONNX Runtime read `graph` where there is no GPU: it checks the file, the operators and the
/// types of everything, and ends at the first operator that no processor has.
///
/// # Errors
/// [`ScoreError`] with what it ended at.
pub fn check_without_gpu(library: &Library, graph: Graph) -> Result<(), ScoreError> {
    read(Session::builder(&library.environment)?, graph).map(|_| ())
}

/// That every node is where it was asked to be.
fn check(providers: &BTreeMap<String, usize>) -> Result<(), ScoreError> {
    let elsewhere: Vec<_> = providers
        .iter()
        .filter(|(name, _)| *name != PROVIDER)
        .collect();
    match (providers.get(PROVIDER), &elsewhere[..]) {
        (Some(_), []) => Ok(()),
        _ => Err(ScoreError(format!(
            "not all of the graph would run on the GPU: nodes by provider are {providers:?}"
        ))),
    }
}

/// What batches of a model need on a device of this compute capability.
pub fn need(manifest: &Manifest, floats: Floats, capability: (u32, u32)) -> Need {
    let config = &manifest.encoder;
    let bytes = floats.bytes() as u64;
    let (hidden, inner) = (config.hidden_size as u64, config.intermediate_size as u64);
    let heads = config.heads as u64;
    // In attention: the residual, its norm, queries, keys and values, what is turned, repeated or converted of them, and
    // the output; in the feed-forward part the residual, its norm, the output, and both sides of the activation, of two
    // products if it is gated.
    let (is_gated, is_rotary) = match &config.form {
        LayerForm::PostNorm
        | LayerForm::PostNormRelativeBias(_)
        | LayerForm::PostNormDisentangled(_) => (false, false),
        LayerForm::PostNormGated(gated) => (
            true,
            matches!(gated.positions, AttentionPositions::Rotary(_)),
        ),
        LayerForm::PreNormGated(_) | LayerForm::Decoder(_) => (true, true),
    };
    let copies = match (is_rotary, floats) {
        (false, Floats::Single | Floats::Half) => 0,
        (true, Floats::Single | Floats::Half) => 2,
        (false, Floats::Bfloat) => 4,
        (true, Floats::Bfloat) => 6,
    };
    let (size, repeated) = match config.decoder() {
        Some(decoder) => (decoder.head_size, 2),
        None => (config.hidden_size / config.heads, 0),
    };
    let width = heads * size as u64;
    let attention = 2 * hidden + (3 + copies + repeated + 1) * width;
    let mut live = attention.max(3 * hidden + if is_gated { 4 } else { 2 } * inner);
    // What is added to scores: the places that it is looked up by, 32-bit, and what is found.
    let places = size_of::<i32>() as u64;
    let (once_per_square, padded_per_square) = match Added::of(config) {
        Added::Nothing => (0, 0),
        Added::Once(rows) => (rows as u64 * bytes + 2 * places, 0),
        Added::PerHead { heads, buckets } => {
            // Two terms: tokens by head, and their products.
            live += 2 * (width + (heads * buckets) as u64);
            (3 * places, 2 * places + 3 * heads as u64 * bytes)
        }
    };
    // Padded rows of the hidden states in fp32, and their weights.
    let per_cell = if manifest.head.reads_all_tokens() && config.decoder().is_none() {
        4 * (hidden + 3)
    } else {
        0
    };
    // Kernels that never write the scores down take heads of a multiple of eight.
    let squares_up_to = match floats {
        _ if !size.is_multiple_of(8) => usize::MAX,
        Floats::Single if capability < AMPERE => FUSED_FROM - 1,
        _ => 0,
    };
    Need {
        // Half as much again: the allocator's pieces do not fit exactly.
        per_token: live * bytes * 3 / 2,
        per_cell,
        once_per_square,
        padded_per_square,
        // Scores, and what softmax makes of them.
        per_square: 2 * heads * bytes,
        squares_up_to,
        added: Added::of(config),
    }
}

/// Runs batches in turn with the others of its session.
pub struct CudaRunner {
    session: Arc<Mutex<Session>>,
    /// Holds what is on the device of the batch that is next. Its memory comes from the session's
    /// arena, which hands the same pieces out again and again.
    binding: IoBinding,
    /// Where logits are written.
    host: MemoryInfo<'static>,
    layout: Layout,
    inputs: Vec<String>,
}

impl Runner for CudaRunner {
    fn run(&mut self, batch: &Batch) -> Result<Vec<f32>, RunError> {
        self.try_run(batch).map_err(|error| {
            let text = error.to_string();
            match is_out_of_memory(&text) {
                true => RunError::OutOfMemory(text),
                false => RunError::Failed(text),
            }
        })
    }
}

impl CudaRunner {
    fn try_run(&mut self, batch: &Batch) -> Result<Vec<f32>, ScoreError> {
        // Beside the other scorer's run.
        self.copy(batch)?;
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let outputs = session.run_binding(&self.binding)?;
        let (_, logits) = outputs[io::LOGITS].try_extract_tensor::<f32>()?;
        Ok(logits.to_vec())
    }

    /// Lays `batch` out and brings it to the device.
    fn copy(&mut self, batch: &Batch) -> Result<(), ScoreError> {
        let packed = PackedInputs::new(batch, self.layout);
        for name in &self.inputs {
            let found = input(name, batch, &packed);
            let input =
                found.ok_or_else(|| ScoreError(format!("the graph has an input `{name}`")))?;
            self.binding.bind_input(name, &tensor(input)?)?;
        }
        // A binding keeps its output, and refuses a run with another number of sequences.
        self.binding.bind_output_to_device(io::LOGITS, &self.host)?;
        self.binding.synchronize_inputs()?;
        Ok(())
    }
}

fn tensor(Input { shape, numbers }: Input) -> ort::Result<DynValue> {
    Ok(match numbers {
        Numbers::I32(numbers) => Tensor::from_array((shape, numbers))?.into_dyn(),
        Numbers::I64(numbers) => Tensor::from_array((shape, numbers))?.into_dyn(),
        Numbers::F32(numbers) => Tensor::from_array((shape, numbers))?.into_dyn(),
    })
}

/// Whether ONNX Runtime's `message` says that the device's memory is full.
fn is_out_of_memory(message: &str) -> bool {
    const SIGNS: [&str; 5] = [
        "Failed to allocate memory for requested buffer",
        "Available memory of",
        "out of memory",
        "cudaErrorMemoryAllocation",
        "ALLOC_FAILED",
    ];
    SIGNS.iter().any(|sign| message.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_memory_is_told_from_other_failures() {
        for message in [
            "Non-zero status code returned while running MatMul node. Status Message: bfc_arena.cc:359 \
             Failed to allocate memory for requested buffer of size 4294967296",
            "CUDA failure 2: out of memory ; GPU=0 ; hostname=a ; expr=cudaMalloc((void**)&p, size);",
            "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        ] {
            assert!(is_out_of_memory(message), "{message}");
        }
        assert!(!is_out_of_memory(
            "CUDA failure 700: an illegal memory access was encountered"
        ));
    }

    #[test]
    fn a_node_elsewhere_is_an_error() {
        let counts = |counts: &[(&str, usize)]| {
            let owned = counts.iter().map(|&(name, count)| (name.to_owned(), count));
            owned.collect::<BTreeMap<_, _>>()
        };
        assert!(check(&counts(&[(PROVIDER, 90)])).is_ok());
        for elsewhere in [&[(PROVIDER, 90), ("CPUExecutionProvider", 1)][..], &[]] {
            let error = check(&counts(elsewhere)).unwrap_err().to_string();
            assert!(error.contains("nodes by provider"), "{error}");
        }
    }
}
