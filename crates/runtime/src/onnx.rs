//! Runs a packed graph in ONNX Runtime.

use std::collections::BTreeMap;
use std::sync::Arc;

use ort::operator::OperatorDomain;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, PrepackedWeights};
use ort::value::{DynValue, Tensor, TensorRef};

use super::assignment::{self, nodes_by_provider};
use super::causal::{self, Causal, CausalInputs};
use super::library::Library;
use super::{LayerHook, ScoreError, Scorer, operators, preemption};
use rerankd_core::Batch;
use rerankd_kernels::compute_pool::ComputePool;
use rerankd_model::Manifest;
use rerankd_model::graph::{Data, Graph, Weight, io, operator};
use rerankd_model::head::Pooling;

/// A graph and its weights, ready to be opened by any number of sessions that share both.
pub struct OnnxModel {
    library: Library,
    graph: Vec<u8>,
    weights: Vec<(String, Arc<DynValue>)>,
    prepacked: PrepackedWeights,
    operators: Arc<OperatorDomain>,
    pool: ComputePool,
    layout: Layout,
}

/// How a model's sequences are laid out for its graph.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Position of a sequence's first token: 0, or past the padding id in RoBERTa's kind.
    pub first_position: usize,
    /// Positions the table has for each segment; 1 where the model has no position embeddings.
    pub positions: usize,
    /// A token that takes the place before the first and is not counted: in RoBERTa's kind the
    /// padding token, where a text spells it out.
    pub skipped_token: Option<u32>,
    /// For a decoder, whose graph takes [`CausalInputs`]; the fields above are unused then.
    pub causal: Option<Causal>,
}

impl Layout {
    /// Reads the layout off a model's configuration.
    pub fn of(manifest: &Manifest) -> Self {
        let encoder = &manifest.encoder;
        Self {
            first_position: encoder.first_position,
            positions: encoder.position_rows(),
            skipped_token: encoder.skipped_token,
            causal: encoder.decoder().map(|_| Causal {
                padding: match manifest.head.pooling[..] {
                    [Pooling::LastBefore(padding)] => Some(padding),
                    _ => None,
                },
                shares: true,
                keeps: causal::kept_tokens(encoder),
            }),
        }
    }
}

impl OnnxModel {
    /// Hands the weights of `graph` to ONNX Runtime, once for all sessions, which share the cores of
    /// `pool`.
    ///
    /// # Errors
    /// [`ScoreError`] when ONNX Runtime refuses a weight.
    #[expect(clippy::arc_with_non_send_sync, reason = "sessions take an `Arc`")]
    pub fn new(
        library: &Library,
        graph: Graph,
        layout: Layout,
        pool: ComputePool,
    ) -> Result<Self, ScoreError> {
        let weights = graph
            .weights
            .into_iter()
            .map(tensor)
            .collect::<ort::Result<_>>()?;
        Ok(Self {
            library: library.clone(),
            graph: graph.model,
            weights,
            prepacked: PrepackedWeights::new(),
            operators: Arc::new(operators::domain(&pool)?),
            pool,
            layout,
        })
    }

    /// Opens a session of `threads` threads.
    ///
    /// # Errors
    /// [`ScoreError`] when ONNX Runtime refuses the graph.
    pub fn session(&self, threads: usize) -> Result<OnnxScorer, ScoreError> {
        let mut builder = Session::builder(&self.library.environment)?
            // The graph is written as it should run; weights given from outside could not be
            // folded anyway.
            .with_optimization_level(GraphOptimizationLevel::Disable)?
            .with_intra_threads(threads)?
            // Threads that spin between batches would take the processor from whatever this
            // server stands beside.
            .with_intra_op_spinning(false)?
            // The arena stays on: without it sessions are slower and hold more memory
            // (docs/bench/2026-11-25-load.md).
            // A pattern is remembered for each shape, and shapes here hardly ever repeat.
            .with_memory_pattern(false)?
            .with_config_entry(assignment::RECORD, "1")?
            .with_prepacked_weights(&self.prepacked)?;
        for (name, value) in &self.weights {
            builder = builder.with_initializer(name, value.clone())?;
        }
        Ok(OnnxScorer {
            session: operators::open(builder, self.operators.clone(), &self.graph)?,
            pool: self.pool.clone(),
            layout: self.layout,
            kept: Vec::new(),
            hook: None,
            nested: None,
        })
    }

    /// Opens a session of one thread, and a second one for the batches that run between its layers.
    ///
    /// # Errors
    /// As [`Self::session`].
    pub fn interruptible_session(&self) -> Result<OnnxScorer, ScoreError> {
        let mut nested = self.session(1)?;
        // Small requests come one by one: there is no next batch to keep a prefix for.
        if let Some(causal) = &mut nested.layout.causal {
            causal.keeps = 0;
        }
        Ok(OnnxScorer {
            nested: Some(Box::new(nested)),
            ..self.session(1)?
        })
    }
}

/// `weight` as ONNX Runtime takes it, with its name.
pub(super) fn tensor(weight: Weight) -> ort::Result<(String, Arc<DynValue>)> {
    let shape = weight.shape;
    let tensor = match weight.data {
        Data::F32(data) => Tensor::from_array((shape, data))?.into_dyn(),
        Data::F16(data) => Tensor::from_array((shape, data))?.into_dyn(),
        Data::BF16(data) => Tensor::from_array((shape, data))?.into_dyn(),
        Data::I8(data) => Tensor::from_array((shape, data))?.into_dyn(),
        Data::I32(data) => Tensor::from_array((shape, data))?.into_dyn(),
    };
    Ok((weight.name, Arc::new(tensor)))
}

/// One session. Its thread owns it.
pub struct OnnxScorer {
    session: Session,
    pool: ComputePool,
    layout: Layout,
    /// For a decoder: the tokens in its KV cache. Empty after a failed run.
    kept: Vec<u32>,
    hook: Option<LayerHook>,
    nested: Option<Box<OnnxScorer>>,
}

impl Scorer for OnnxScorer {
    fn score(&mut self, batch: &Batch) -> Result<Vec<f32>, ScoreError> {
        self.forward(batch, false)
    }

    fn score_alone(&mut self, batch: &Batch) -> Result<Vec<f32>, ScoreError> {
        self.forward(batch, true)
    }

    fn shares_prefixes(&self) -> bool {
        self.layout.causal.is_some_and(|causal| causal.shares)
    }

    fn on_layer(&mut self, hook: LayerHook) {
        self.hook = Some(hook);
    }

    fn nested(&mut self) -> Option<&mut (dyn Scorer + 'static)> {
        let nested = self.nested.as_deref_mut()?;
        Some(nested)
    }

    fn take_nested(&mut self) -> Option<Box<dyn Scorer>> {
        self.nested.take().map(|nested| nested as Box<dyn Scorer>)
    }
}

impl OnnxScorer {
    fn forward(&mut self, batch: &Batch, alone: bool) -> Result<Vec<f32>, ScoreError> {
        let Some(causal) = self.layout.causal else {
            let inputs = PackedInputs::new(batch, self.layout);
            return self.compute(batch.tokens(), alone, |session| run(session, &inputs));
        };
        let inputs = CausalInputs::new(batch, causal, &std::mem::take(&mut self.kept));
        let rows = inputs.input_ids.len();
        let logits = self.compute(rows, alone, |session| run_causal(session, &inputs))?;
        self.kept = inputs.kept;
        Ok(logits)
    }

    /// Computes so many rows, on this thread or, if nothing else runs, on all cores.
    fn compute(
        &mut self,
        rows: usize,
        alone: bool,
        run: impl FnOnce(&mut Session) -> Result<Vec<f32>, ScoreError> + Send,
    ) -> Result<Vec<f32>, ScoreError> {
        let (hook, session) = (self.hook.as_ref(), &mut self.session);
        let run = || preemption::with(hook, || run(session));
        match alone {
            true => self.pool.run_alone(rows, run),
            false => self.pool.run(run),
        }
    }

    /// Nodes that each provider of ONNX Runtime runs.
    ///
    /// # Errors
    /// [`ScoreError`] when ONNX Runtime does not tell.
    pub fn providers(&self) -> Result<BTreeMap<String, usize>, ScoreError> {
        nodes_by_provider(&self.session)
    }

    /// Runs the graph on tensors that are already laid out.
    ///
    /// # Errors
    /// [`ScoreError`] when ONNX Runtime fails.
    pub fn run(&mut self, inputs: &PackedInputs) -> Result<Vec<f32>, ScoreError> {
        self.compute(inputs.input_ids.len(), false, |session| {
            run(session, inputs)
        })
    }
}

fn run(session: &mut Session, inputs: &PackedInputs) -> Result<Vec<f32>, ScoreError> {
    let tokens = [inputs.input_ids.len()];
    let sequences = [inputs.lengths.len()];
    let outputs = session.run(ort::inputs![
        io::INPUT_IDS => TensorRef::from_array_view((tokens, &inputs.input_ids[..]))?,
        io::POSITION_IDS => TensorRef::from_array_view((tokens, &inputs.position_ids[..]))?,
        io::LENGTHS => TensorRef::from_array_view((sequences, &inputs.lengths[..]))?,
        io::CLS_INDEX => TensorRef::from_array_view((sequences, &inputs.cls_index[..]))?,
    ])?;
    let (_, logits) = outputs[io::LOGITS].try_extract_tensor::<f32>()?;
    Ok(logits.to_vec())
}

/// Runs the graph of a decoder: logits in the order of the batch.
fn run_causal(session: &mut Session, inputs: &CausalInputs) -> Result<Vec<f32>, ScoreError> {
    let rows = [inputs.input_ids.len()];
    let segments = [inputs.segments.len() / operator::SEGMENT, operator::SEGMENT];
    let outputs = session.run(ort::inputs![
        io::INPUT_IDS => TensorRef::from_array_view((rows, &inputs.input_ids[..]))?,
        io::SEGMENTS => TensorRef::from_array_view((segments, &inputs.segments[..]))?,
        io::KEEP => TensorRef::from_array_view(([operator::KEEP], &inputs.keep[..]))?,
    ])?;
    let (_, logits) = outputs[io::LOGITS].try_extract_tensor::<f32>()?;
    Ok(inputs.restore(logits))
}

impl<R> From<ort::Error<R>> for ScoreError {
    fn from(error: ort::Error<R>) -> Self {
        Self(error.to_string())
    }
}

/// The graph's inputs for one batch; see [`io`] for what each holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PackedInputs {
    pub input_ids: Vec<i64>,
    pub position_ids: Vec<i64>,
    pub lengths: Vec<i32>,
    pub cls_index: Vec<i64>,
    pub padding: Option<u32>,
}

impl PackedInputs {
    /// Lays out `batch` for a model of the given layout.
    pub fn new(batch: &Batch, layout: Layout) -> Self {
        let mut inputs = Self {
            input_ids: batch.ids().iter().map(|&id| i64::from(id)).collect(),
            position_ids: Vec::with_capacity(batch.tokens()),
            lengths: batch.lengths().iter().map(|&l| l as i32).collect(),
            cls_index: Vec::with_capacity(batch.sequences()),
            padding: layout.causal.and_then(|causal| causal.padding),
        };
        let mut first = 0;
        for &length in batch.lengths() {
            inputs.cls_index.push(first as i64);
            let mut next = layout.first_position;
            for token in first..first + length {
                let position = if layout.positions == 1 {
                    0
                } else if layout.skipped_token == Some(batch.ids()[token]) {
                    layout.first_position - 1
                } else {
                    next += 1;
                    next - 1
                };
                let segment = usize::from(batch.type_ids()[token]);
                inputs
                    .position_ids
                    .push((segment * layout.positions + position) as i64);
            }
            first += length;
        }
        inputs
    }

    /// The row of the last token of each sequence of `batch`, trailing padding aside.
    pub fn last_index(&self, batch: &Batch) -> Vec<i64> {
        let rows = self.cls_index.iter().zip(batch.lengths());
        rows.map(|(&first, &length)| {
            let ids = &batch.ids()[first as usize..][..length];
            first + causal::without_trailing(ids, self.padding).len() as i64 - 1
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rerankd_core::Encoding;

    #[test]
    fn two_sequences_are_laid_out_end_to_end() {
        let batch = Batch::pack(&[
            Encoding {
                ids: vec![7, 1, 9],
                type_ids: vec![0, 0, 1],
            },
            Encoding {
                ids: vec![5],
                type_ids: vec![0],
            },
        ]);
        let layout = Layout {
            first_position: 2,
            positions: 10,
            skipped_token: Some(1),
            causal: None,
        };
        let inputs = PackedInputs::new(&batch, layout);
        assert_eq!(inputs.last_index(&batch), [2, 3]);
        assert_eq!(
            inputs,
            PackedInputs {
                input_ids: vec![7, 1, 9, 5],
                position_ids: vec![2, 1, 13, 2],
                lengths: vec![3, 1],
                cls_index: vec![0, 3],
                padding: None,
            }
        );
    }

    #[test]
    fn padding_at_the_end_is_not_the_last_token() {
        let of = |ids: &[u32]| Encoding {
            ids: ids.to_vec(),
            type_ids: vec![0; ids.len()],
        };
        let batch = Batch::pack(&[of(&[7, 0, 9, 0]), of(&[5]), of(&[0, 0])]);
        let last = |padding| {
            let layout = Layout {
                first_position: 0,
                positions: 1,
                skipped_token: None,
                causal: Some(Causal {
                    padding,
                    shares: false,
                    keeps: 0,
                }),
            };
            PackedInputs::new(&batch, layout).last_index(&batch)
        };
        assert_eq!(last(Some(0)), [2, 4, 5]);
        assert_eq!(last(None), [3, 4, 6]);
    }
}
