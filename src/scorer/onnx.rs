//! Runs a packed graph in ONNX Runtime.

use std::sync::Arc;

use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, PrepackedWeights};
use ort::value::{DynValue, Tensor, TensorRef};

use super::library::Library;
use super::{ScoreError, Scorer};
use crate::batch::Batch;
use crate::graph::{Graph, io};
use crate::model::{Architecture, Manifest};

/// A graph and its weights, ready to be opened by any number of sessions that share both.
pub struct OnnxModel {
    library: Library,
    graph: Vec<u8>,
    weights: Vec<(String, Arc<DynValue>)>,
    prepacked: PrepackedWeights,
    layout: Layout,
}

/// What a model's sequences look like to its position table.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Position of a sequence's first token: 0, or past the padding id in RoBERTa's kind.
    pub first_position: usize,
    /// Positions the table has for each segment.
    pub positions: usize,
}

impl Layout {
    /// Reads the layout off a model's configuration.
    pub fn of(manifest: &Manifest) -> Self {
        Self {
            first_position: match manifest.architecture {
                Architecture::Bert => 0,
                Architecture::Roberta => manifest.encoder.pad_token_id as usize + 1,
            },
            positions: manifest.encoder.max_positions,
        }
    }
}

impl OnnxModel {
    /// Hands the weights of `graph` to ONNX Runtime, once for all sessions.
    ///
    /// # Errors
    /// [`ScoreError`] when ONNX Runtime refuses a weight.
    pub fn new(library: &Library, graph: Graph, layout: Layout) -> Result<Self, ScoreError> {
        let weights = graph
            .weights
            .into_iter()
            .map(|weight| {
                let tensor = Tensor::from_array((weight.shape, weight.data))?;
                Ok((weight.name, Arc::new(tensor.into_dyn())))
            })
            .collect::<ort::Result<_>>()?;
        Ok(Self {
            library: library.clone(),
            graph: graph.model,
            weights,
            prepacked: PrepackedWeights::new(),
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
            // A pattern is remembered for each shape, and shapes here hardly ever repeat.
            .with_memory_pattern(false)?
            .with_prepacked_weights(&self.prepacked)?;
        for (name, value) in &self.weights {
            builder = builder.with_initializer(name, value.clone())?;
        }
        Ok(OnnxScorer {
            session: builder.commit_from_memory(&self.graph)?,
            layout: self.layout,
        })
    }
}

/// One session. Its thread owns it.
pub struct OnnxScorer {
    session: Session,
    layout: Layout,
}

impl Scorer for OnnxScorer {
    fn score(&mut self, batch: &Batch) -> Result<Vec<f32>, ScoreError> {
        self.run(&PackedInputs::new(batch, self.layout))
    }
}

impl OnnxScorer {
    /// Runs the graph on tensors that are already laid out.
    ///
    /// # Errors
    /// [`ScoreError`] when ONNX Runtime fails, or answers with a number that is not finite.
    pub fn run(&mut self, inputs: &PackedInputs) -> Result<Vec<f32>, ScoreError> {
        let tokens = [inputs.input_ids.len()];
        let sequences = [inputs.lengths.len()];
        let padded = [sequences[0], inputs.pad_index.len() / sequences[0]];
        let outputs = self.session.run(ort::inputs![
            io::INPUT_IDS => TensorRef::from_array_view((tokens, &inputs.input_ids[..]))?,
            io::POSITION_IDS => TensorRef::from_array_view((tokens, &inputs.position_ids[..]))?,
            io::LENGTHS => TensorRef::from_array_view((sequences, &inputs.lengths[..]))?,
            io::PAD_INDEX => TensorRef::from_array_view((padded, &inputs.pad_index[..]))?,
            io::UNPAD_INDEX => TensorRef::from_array_view((tokens, &inputs.unpad_index[..]))?,
            io::CLS_INDEX => TensorRef::from_array_view((sequences, &inputs.cls_index[..]))?,
        ])?;
        let (_, logits) = outputs[io::LOGITS].try_extract_tensor::<f32>()?;
        if let Some(row) = logits.iter().position(|logit| !logit.is_finite()) {
            return Err(ScoreError(format!("logit {row} is {}", logits[row])));
        }
        Ok(logits.to_vec())
    }
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
    pub pad_index: Vec<i64>,
    pub unpad_index: Vec<i64>,
    pub cls_index: Vec<i64>,
}

impl PackedInputs {
    /// Lays out `batch` for a model of the given layout.
    pub fn new(batch: &Batch, layout: Layout) -> Self {
        let longest = batch.longest();
        let mut inputs = Self {
            input_ids: batch.ids().iter().map(|&id| i64::from(id)).collect(),
            position_ids: Vec::with_capacity(batch.tokens()),
            lengths: batch.lengths().iter().map(|&l| l as i32).collect(),
            pad_index: Vec::with_capacity(batch.sequences() * longest),
            unpad_index: Vec::with_capacity(batch.tokens()),
            cls_index: Vec::with_capacity(batch.sequences()),
        };
        let mut first = 0;
        for (sequence, &length) in batch.lengths().iter().enumerate() {
            inputs.cls_index.push(first as i64);
            for place in 0..longest {
                // Padding repeats the last token: a row that exists, and the mask hides it.
                inputs
                    .pad_index
                    .push((first + place.min(length - 1)) as i64);
            }
            for place in 0..length {
                inputs.unpad_index.push((sequence * longest + place) as i64);
                let segment = usize::from(batch.type_ids()[first + place]);
                let position = layout.first_position + place;
                inputs
                    .position_ids
                    .push((segment * layout.positions + position) as i64);
            }
            first += length;
        }
        inputs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Encoding;

    #[test]
    fn two_sequences_are_laid_out_end_to_end() {
        let batch = Batch::pack(&[
            Encoding {
                ids: vec![7, 8, 9],
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
        };
        assert_eq!(
            PackedInputs::new(&batch, layout),
            PackedInputs {
                input_ids: vec![7, 8, 9, 5],
                position_ids: vec![2, 3, 14, 2],
                lengths: vec![3, 1],
                pad_index: vec![0, 1, 2, 3, 3, 3],
                unpad_index: vec![0, 1, 2, 3],
                cls_index: vec![0, 3],
            }
        );
    }
}
