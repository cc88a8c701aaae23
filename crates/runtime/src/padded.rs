//! Runs an ONNX file that somebody else made: padded rows in, logits out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ort::session::builder::{GraphOptimizationLevel, PrepackedWeights};
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, Outlet, Tensor, TensorElementType, ValueType};

use super::assignment::{self, nodes_by_provider};
use super::library::Library;
use super::onnx::tensor;
use super::{ScoreError, Scorer};
use rerankd_core::Batch;
use rerankd_kernels::compute_pool::ComputePool;

use super::padding;
use rerankd_model::graph::file::OnnxFile;
use rerankd_model::{ExportedModel, ModelError};

/// An ONNX file, ready to be opened by any number of sessions that share its large weights.
pub struct PaddedModel {
    library: Library,
    file: OnnxFile,
    weights: Vec<(String, Arc<DynValue>)>,
    prepacked: PrepackedWeights,
    rows: Rows,
}

/// What rows are made of.
#[derive(Debug, Clone, Copy)]
struct Rows {
    labels: usize,
    pad_token_id: u32,
    first_position: usize,
    /// Whether each sequence is run by itself, as what shares its batch would change its score.
    alone: bool,
}

/// Why a file cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum PaddedError {
    /// It is not of the kind that is served.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// ONNX Runtime refuses it.
    #[error(transparent)]
    Runtime(#[from] ScoreError),
}

impl PaddedModel {
    /// Hands the large weights of `model`'s file to ONNX Runtime, once for all sessions.
    ///
    /// # Errors
    /// [`PaddedError`] when the file is broken.
    pub fn new(library: &Library, model: &ExportedModel) -> Result<Self, PaddedError> {
        let mut file = OnnxFile::open(&model.path)?;
        let weights = std::mem::take(&mut file.weights);
        let weights = weights
            .into_iter()
            .map(tensor)
            .collect::<ort::Result<_>>()
            .map_err(ScoreError::from)?;
        Ok(Self {
            library: library.clone(),
            weights,
            prepacked: PrepackedWeights::new(),
            rows: Rows {
                labels: model.labels.len(),
                pad_token_id: model.pad_token_id,
                first_position: model.first_position,
                alone: file.mixes_sequences(),
            },
            file,
        })
    }

    /// What was read of the file.
    pub fn file(&self) -> &OnnxFile {
        &self.file
    }

    /// Opens a session of `threads` threads, whose batches take a core of `pool`.
    ///
    /// # Errors
    /// [`PaddedError`] when ONNX Runtime refuses the file, or its inputs or output are not those of a model
    /// that classifies sequences.
    pub fn session(&self, threads: usize, pool: &ComputePool) -> Result<PaddedScorer, PaddedError> {
        let open = || -> ort::Result<Session> {
            let mut builder = Session::builder(&self.library.environment)?
                .with_optimization_level(GraphOptimizationLevel::All)?
                .with_intra_threads(threads)?
                .with_intra_op_spinning(false)?
                .with_memory_pattern(false)?
                .with_config_entry(assignment::RECORD, "1")?
                .with_prepacked_weights(&self.prepacked)?;
            for (name, value) in &self.weights {
                builder = builder.with_initializer(name, value.clone())?;
            }
            builder.commit_from_file(&self.file.path)
        };
        // What sessions prepack is put into a table that they share.
        static OPENING: Mutex<()> = Mutex::new(());
        let session = {
            let _one_at_a_time = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
            open().map_err(ScoreError::from)?
        };
        let place = format!("`{}`", self.file.path.display());
        let signature = Signature::read(session.inputs(), session.outputs(), self.rows.labels)
            .map_err(|error| ModelError::new(format!("{place} {error}"), EXPORT_HINT))?;
        Ok(PaddedScorer {
            session,
            pool: pool.clone(),
            signature,
            rows: self.rows,
        })
    }
}

const EXPORT_HINT: &str = "export the model for sequence classification, with dynamic batch and sequence: \
                           `optimum-cli export onnx --task text-classification`";

/// What a row of an input holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    InputIds,
    AttentionMask,
    TokenTypeIds,
    PositionIds,
}

impl Role {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "input_ids" => Self::InputIds,
            "attention_mask" => Self::AttentionMask,
            "token_type_ids" => Self::TokenTypeIds,
            "position_ids" => Self::PositionIds,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Input {
    name: String,
    role: Role,
    /// Whether its numbers have 32 bits.
    narrow: bool,
}

/// Why a file does not classify sequences: a predicate that follows the name of the file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum SignatureError {
    #[error("has no input `{0}`")]
    MissingInput(&'static str),
    #[error(
        "has the input `{0}`; known are `input_ids`, `attention_mask`, `token_type_ids` and `position_ids`"
    )]
    UnknownInput(String),
    #[error("has the input `{name}` of type {kind}; it must be int64 or int32")]
    InputType {
        name: String,
        kind: TensorElementType,
    },
    #[error("has the input `{0}`, which is no tensor")]
    InputKind(String),
    #[error("has the input `{name}` of shape {shape:?}; both batch and sequence must be dynamic")]
    InputShape { name: String, shape: Vec<i64> },
    #[error("has the outputs `{}`, and none of them is `logits`", .0.join("`, `"))]
    NoLogits(Vec<String>),
    #[error("has the output `{0}`, which is no tensor of float32")]
    OutputKind(String),
    #[error("has the output `{name}` of shape {shape:?}; `config.json` makes it [batch, {labels}]")]
    OutputShape {
        name: String,
        shape: Vec<i64>,
        labels: usize,
    },
}

/// What a file wants, and what it gives.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Signature {
    inputs: Vec<Input>,
    output: String,
}

impl Signature {
    /// Reads it off a session.
    fn read(inputs: &[Outlet], outputs: &[Outlet], labels: usize) -> Result<Self, SignatureError> {
        let outlets = |outlets: &[Outlet]| -> Vec<(String, ValueType)> {
            let outlet = |o: &Outlet| (o.name().to_owned(), o.dtype().clone());
            outlets.iter().map(outlet).collect()
        };
        Self::of(&outlets(inputs), &outlets(outputs), labels)
    }

    fn of(
        inputs: &[(String, ValueType)],
        outputs: &[(String, ValueType)],
        labels: usize,
    ) -> Result<Self, SignatureError> {
        let inputs: Vec<Input> = inputs
            .iter()
            .map(|(name, kind)| input(name, kind))
            .collect::<Result<_, _>>()?;
        for (role, name) in [
            (Role::InputIds, "input_ids"),
            (Role::AttentionMask, "attention_mask"),
        ] {
            if inputs.iter().all(|input| input.role != role) {
                return Err(SignatureError::MissingInput(name));
            }
        }
        let named = outputs.iter().find(|(name, _)| name == "logits");
        let (name, kind) = match (named, outputs) {
            (Some(output), _) | (None, [output]) => output,
            _ => {
                let names = outputs.iter().map(|(name, _)| name.clone());
                return Err(SignatureError::NoLogits(names.collect()));
            }
        };
        check_output(name, kind, labels)?;
        Ok(Self {
            inputs,
            output: name.clone(),
        })
    }
}

fn input(name: &str, kind: &ValueType) -> Result<Input, SignatureError> {
    let name = name.to_owned();
    let Some(role) = Role::of(&name) else {
        return Err(SignatureError::UnknownInput(name));
    };
    let ValueType::Tensor { ty, shape, .. } = kind else {
        return Err(SignatureError::InputKind(name));
    };
    let narrow = match *ty {
        TensorElementType::Int64 => false,
        TensorElementType::Int32 => true,
        kind => return Err(SignatureError::InputType { name, kind }),
    };
    if shape.len() != 2 || shape.iter().any(|&dim| dim >= 0) {
        let shape = shape.to_vec();
        return Err(SignatureError::InputShape { name, shape });
    }
    Ok(Input { name, role, narrow })
}

fn check_output(name: &str, kind: &ValueType, labels: usize) -> Result<(), SignatureError> {
    let name = name.to_owned();
    let ValueType::Tensor {
        ty: TensorElementType::Float32,
        shape,
        ..
    } = kind
    else {
        return Err(SignatureError::OutputKind(name));
    };
    match shape[..] {
        [batch, columns]
            if batch < 0 && (columns < 0 || usize::try_from(columns) == Ok(labels)) =>
        {
            Ok(())
        }
        _ => Err(SignatureError::OutputShape {
            name,
            shape: shape.to_vec(),
            labels,
        }),
    }
}

/// One session. Its thread owns it.
pub struct PaddedScorer {
    session: Session,
    /// Its batches borrow no cores, and others should not borrow theirs.
    pool: ComputePool,
    signature: Signature,
    rows: Rows,
}

impl Scorer for PaddedScorer {
    fn score(&mut self, batch: &Batch) -> Result<Vec<f32>, ScoreError> {
        let lengths = batch.lengths();
        let groups = match self.rows.alone {
            true => (0..lengths.len()).map(|row| vec![row]).collect(),
            false => padding::groups(lengths),
        };
        let starts = starts(lengths);
        let labels = self.rows.labels;
        let mut logits = vec![0.0; lengths.len() * labels];
        self.pool.clone().run(|| {
            for group in groups {
                let scored = self.run(batch, &starts, &group)?;
                for (row, scored) in group.iter().zip(scored.chunks_exact(labels)) {
                    logits[row * labels..][..labels].copy_from_slice(scored);
                }
            }
            Ok(logits)
        })
    }
}

/// Where each sequence begins.
fn starts(lengths: &[usize]) -> Vec<usize> {
    let begin = |end: &mut usize, &length: &usize| {
        let start = *end;
        *end += length;
        Some(start)
    };
    lengths.iter().scan(0, begin).collect()
}

impl PaddedScorer {
    /// How many nodes each provider of ONNX Runtime runs.
    ///
    /// # Errors
    /// [`ScoreError`] when ONNX Runtime does not tell.
    pub fn providers(&self) -> Result<BTreeMap<String, usize>, ScoreError> {
        nodes_by_provider(&self.session)
    }

    /// Logits of the sequences `group` of `batch`, padded to the longest of them.
    fn run(
        &mut self,
        batch: &Batch,
        starts: &[usize],
        group: &[usize],
    ) -> Result<Vec<f32>, ScoreError> {
        let longest = group.iter().map(|&row| batch.lengths()[row]).max();
        let shape = [group.len(), longest.unwrap_or(0)];
        let mut inputs: Vec<(&str, SessionInputValue<'_>)> = Vec::new();
        for input in &self.signature.inputs {
            let numbers = self
                .rows
                .numbers(input.role, batch, starts, group, shape[1]);
            let value = match input.narrow {
                true => {
                    let numbers: Vec<i32> = numbers.into_iter().map(|n| n as i32).collect();
                    Tensor::from_array((shape, numbers))?.into_dyn()
                }
                false => Tensor::from_array((shape, numbers))?.into_dyn(),
            };
            inputs.push((&input.name, value.into()));
        }
        let outputs = self.session.run(inputs)?;
        let (shape, logits) =
            outputs[self.signature.output.as_str()].try_extract_tensor::<f32>()?;
        match shape[..] == [group.len() as i64, self.rows.labels as i64] {
            true => Ok(logits.to_vec()),
            false => Err(ScoreError(format!(
                "the answer for {} sequences of {} labels has the shape {:?}",
                group.len(),
                self.rows.labels,
                &shape[..]
            ))),
        }
    }
}

impl Rows {
    /// The rows of one input, `[group, longest]`.
    fn numbers(
        &self,
        role: Role,
        batch: &Batch,
        starts: &[usize],
        group: &[usize],
        longest: usize,
    ) -> Vec<i64> {
        let mut numbers = Vec::with_capacity(group.len() * longest);
        for &row in group {
            let tokens = starts[row]..starts[row] + batch.lengths()[row];
            let end = numbers.len() + longest;
            let ids = &batch.ids()[tokens.clone()];
            match role {
                Role::InputIds => numbers.extend(ids.iter().map(|&id| i64::from(id))),
                Role::AttentionMask => numbers.resize(numbers.len() + ids.len(), 1),
                Role::TokenTypeIds => {
                    let types = &batch.type_ids()[tokens];
                    numbers.extend(types.iter().map(|&kind| i64::from(kind)));
                }
                Role::PositionIds => {
                    self.positions(ids, &mut numbers);
                }
            }
            let padding = match role {
                Role::InputIds => i64::from(self.pad_token_id),
                Role::AttentionMask | Role::TokenTypeIds => 0,
                // Attended by nobody, and any row of the table will do.
                Role::PositionIds => 0,
            };
            numbers.resize(end, padding);
        }
        numbers
    }

    /// In RoBERTa's kind, a padding token that a text spells out takes the place before the first and is
    /// not counted.
    fn positions(&self, ids: &[u32], numbers: &mut Vec<i64>) {
        let mut next = self.first_position;
        for &id in ids {
            let uncounted = self.first_position > 0 && id == self.pad_token_id;
            numbers.push(match uncounted {
                true => self.first_position as i64 - 1,
                false => next as i64,
            });
            next += usize::from(!uncounted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ort::value::{Shape, SymbolicDimensions};
    use rerankd_core::Encoding;

    fn kind(ty: TensorElementType, shape: &[i64]) -> ValueType {
        ValueType::Tensor {
            ty,
            shape: Shape::new(shape.iter().copied()),
            dimension_symbols: SymbolicDimensions::empty(shape.len()),
        }
    }

    fn named(name: &str, ty: TensorElementType, shape: &[i64]) -> (String, ValueType) {
        (name.to_owned(), kind(ty, shape))
    }

    const LONG: TensorElementType = TensorElementType::Int64;
    const FLOAT: TensorElementType = TensorElementType::Float32;

    fn usual() -> Vec<(String, ValueType)> {
        vec![
            named("input_ids", LONG, &[-1, -1]),
            named("attention_mask", LONG, &[-1, -1]),
        ]
    }

    #[test]
    fn inputs_are_told_by_name_and_type() {
        let mut inputs = usual();
        inputs.push(named("position_ids", TensorElementType::Int32, &[-1, -1]));
        let outputs = [named("logits", FLOAT, &[-1, 1])];
        let signature = Signature::of(&inputs, &outputs, 1).unwrap();
        let found: Vec<_> = signature
            .inputs
            .iter()
            .map(|input| (input.role, input.narrow))
            .collect();
        assert_eq!(
            found,
            [
                (Role::InputIds, false),
                (Role::AttentionMask, false),
                (Role::PositionIds, true)
            ]
        );
        // The only output is the answer, whatever it is called.
        let outputs = [named("score", FLOAT, &[-1, -1])];
        assert_eq!(
            Signature::of(&usual(), &outputs, 3).unwrap().output,
            "score"
        );
    }

    #[track_caller]
    fn check_refused(
        inputs: &[(String, ValueType)],
        outputs: &[(String, ValueType)],
        expected: &str,
    ) {
        let error = Signature::of(inputs, outputs, 2).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn files_of_other_kinds_are_refused() {
        let good = [named("logits", FLOAT, &[-1, 2])];
        let with = |name: &str, ty, shape: &[i64]| {
            let mut inputs = usual();
            inputs.push(named(name, ty, shape));
            inputs
        };
        check_refused(&usual()[..1], &good, "no input `attention_mask`");
        check_refused(&usual()[1..], &good, "no input `input_ids`");
        check_refused(&with("pixel_values", FLOAT, &[-1]), &good, "`pixel_values`");
        check_refused(&with("token_type_ids", FLOAT, &[-1, -1]), &good, "int64");
        check_refused(&with("token_type_ids", LONG, &[1, -1]), &good, "dynamic");
        check_refused(&with("token_type_ids", LONG, &[-1, 128]), &good, "dynamic");
        check_refused(&with("token_type_ids", LONG, &[-1]), &good, "dynamic");
        for shape in [&[-1, 3][..], &[-1, -1, 2], &[-1], &[1, 2]] {
            check_refused(&usual(), &[named("logits", FLOAT, shape)], "[batch, 2]");
        }
        check_refused(&usual(), &[named("logits", LONG, &[-1, 2])], "float32");
        let several = [named("a", FLOAT, &[-1, 2]), named("b", FLOAT, &[-1, 2])];
        check_refused(&usual(), &several, "`a`, `b`");
    }

    #[test]
    fn rows_are_padded_to_the_longest() {
        let encoding = |ids: &[u32], type_ids: &[u8]| Encoding {
            ids: ids.to_vec(),
            type_ids: type_ids.to_vec(),
        };
        let batch = Batch::pack(&[
            encoding(&[5], &[0]),
            encoding(&[7, 1, 9], &[0, 0, 1]),
            encoding(&[8, 6], &[0, 1]),
        ]);
        let rows = Rows {
            labels: 1,
            pad_token_id: 1,
            first_position: 2,
            alone: false,
        };
        let starts = starts(batch.lengths());
        let numbers = |role| rows.numbers(role, &batch, &starts, &[1, 2], 3);
        assert_eq!(numbers(Role::InputIds), [7, 1, 9, 8, 6, 1]);
        assert_eq!(numbers(Role::AttentionMask), [1, 1, 1, 1, 1, 0]);
        assert_eq!(numbers(Role::TokenTypeIds), [0, 0, 1, 0, 1, 0]);
        assert_eq!(numbers(Role::PositionIds), [2, 1, 3, 2, 3, 0]);
    }
}
