//! `POST /v2/models/{model}/infer` of the Open Inference Protocol, which KServe and Triton speak.
//!
//! The model looks like one with two inputs of texts, `query` and `documents`, and one output of
//! numbers, `scores`, in the order of the documents. Texts are taken from the body, or from behind it
//! in Triton's binary form; scores are always in the body, which clients of either kind read.

use rerankd_core::{Limits, PredictCommand, Prediction, RerankError, Scale, ScoreOptions};
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::Context;
use super::dialect::{Asked, Body, Dialect, Kind, Operation, Path, Served, Work};
use super::error::{Problem, Reply, missing, to_json};
use super::pairs::pairs;
use super::read::form::Flag;
use super::read::list::List;
use super::read::tensor::{InferParameters, OutputName, Tensor};
use super::read::{self, request};
use super::schema::{Form, example};

/// The Open Inference Protocol, version 2, of KServe and Triton.
pub static OPEN_INFERENCE: Dialect = Dialect {
    name: "open_inference",
    operations: &[Operation {
        json_length_header: Some("inference-header-content-length"),
        ..Operation::new(
            "open_inference",
            Kind::Infer,
            &[
                Path::own("/v2/models/{model}/infer"),
                Path::own("/v2/models/{model}/versions/{version}/infer"),
            ],
            read_inference,
            |schemas| {
                let example = example!("open_inference/scores");
                Form::of::<InferRequest, InferResponse, OpenInferenceError>(schemas, example)
            },
        )
        .ignoring(&[
            "parameters.binary_data_output",
            "parameters.priority",
            "parameters.sequence_end",
            "parameters.sequence_id",
            "parameters.sequence_start",
            "parameters.timeout",
        ])
    }],
    error: |problem: &Problem<'_>| {
        let error = problem.message;
        Reply::json(problem.status, &OpenInferenceError { error })
    },
};

fn read_inference(body: Body, served: &Served<'_>) -> Result<Asked, RerankError> {
    let request: InferRequest = read::parse(&body.json, &served.limits)?;
    let (command, id) = request.into_command(&body.binary, &served.limits)?;
    let fill = move |context: &Context<'_>, prediction: &Prediction| {
        to_json(&fill(context.model, id.as_deref(), prediction))
    };
    Ok(served.asked(Work::Predict(command, Box::new(fill))))
}

const QUERY: &str = "query";
const DOCUMENTS: &str = "documents";
/// The name of the output.
pub const SCORES: &str = "scores";
/// The protocol's name of strings.
const BYTES: &str = "BYTES";
/// The protocol's name of the scores' type.
pub const FP32: &str = "FP32";

request! {
    /// An inference: a `query`, and the `documents` that are scored for it; or as many of each.
    pub struct InferRequest as OpenInferenceRequest {
        /// Comes back in the answer.
        id?: String as Option<String>,
        /// `raw_scores` asks for logits.
        parameters?: InferParameters as Option<ParametersSchema>,
        /// `query` and `documents`, of datatype `BYTES`.
        inputs: List<Tensor> as Vec<TensorSchema> { min_items = 2 },
        /// The outputs that are wanted; there is one, `scores`.
        outputs?: List<OutputName> as Option<Vec<OutputNameSchema>>,
    }
}

#[derive(ToSchema)]
#[schema(as = OpenInferenceParameters)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
struct ParametersSchema {
    #[schema(value_type = Option<Flag>)]
    raw_scores: (),
}

#[derive(ToSchema)]
#[schema(as = OpenInferenceInput)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
struct TensorSchema {
    name: InputName,
    datatype: Datatype,
    shape: Vec<u64>,
    data: Vec<String>,
}

#[derive(ToSchema)]
#[schema(as = OpenInferenceInputName)]
#[serde(rename_all = "lowercase")]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
enum InputName {
    Query,
    Documents,
}

#[derive(ToSchema)]
#[schema(as = OpenInferenceDatatype)]
#[serde(rename_all = "UPPERCASE")]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
enum Datatype {
    Bytes,
}

#[derive(ToSchema)]
#[schema(as = OpenInferenceOutputName)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
struct OutputNameSchema {
    name: String,
}

impl InferRequest {
    /// The command this request spells, and the id that its answer repeats. `behind` is what came
    /// after the body.
    ///
    /// # Errors
    /// When a tensor is missing, of another type, or not of its shape; when the texts do not fit
    /// together; when there is too much.
    fn into_command(
        self,
        behind: &[u8],
        limits: &Limits,
    ) -> Result<(PredictCommand, Option<String>), RerankError> {
        for name in self.outputs.unwrap_or_default().kept() {
            check_output(&name.0)?;
        }
        let mut inputs = Inputs::default();
        let mut behind = behind;
        let tensors = self.inputs.ok_or_else(|| missing("inputs"))?;
        for tensor in tensors.into_kept() {
            add(&mut inputs, tensor, &mut behind, limits)?;
        }
        if !behind.is_empty() {
            return Err(RerankError::invalid(format!(
                "{} bytes behind the body belong to no tensor; announce them as `binary_data_size`",
                behind.len()
            )));
        }
        let raw_scores = self.parameters.unwrap_or_default().raw_scores;
        let command = inputs.into_command(raw_scores, limits)?;
        Ok((command, self.id))
    }
}

/// Checks the name of an output that is asked for.
///
/// # Errors
/// When it is not that of the scores.
pub fn check_output(name: &str) -> Result<(), RerankError> {
    match name {
        SCORES => Ok(()),
        _ => Err(RerankError::invalid(format!(
            "`outputs` names what this model does not give; ask for `{SCORES}`, or for none"
        ))),
    }
}

/// What a tensor says about itself.
#[derive(Debug, Clone, Copy)]
pub struct TensorHead<'a> {
    /// What it is called.
    pub name: &'a str,
    /// What it claims to hold.
    pub datatype: &'a str,
    /// Its dimensions.
    pub shape: &'a List<u64>,
}

/// The inputs of an inference, in whatever form they were sent.
#[derive(Debug, Default)]
pub struct Inputs {
    query: Option<List<String>>,
    documents: Option<List<String>>,
}

impl Inputs {
    /// Adds a tensor; `read` gives the texts of the one with this name.
    ///
    /// # Errors
    /// When it is of another name or type, was added before, or its texts are not of its shape.
    pub fn add(
        &mut self,
        tensor: TensorHead<'_>,
        read: impl FnOnce(&'static str) -> Result<List<String>, RerankError>,
    ) -> Result<(), RerankError> {
        let (name, slot) = match tensor.name {
            QUERY => (QUERY, &mut self.query),
            DOCUMENTS => (DOCUMENTS, &mut self.documents),
            _ => {
                return Err(RerankError::invalid(format!(
                    "`inputs` has a tensor of another name; send `{QUERY}` and `{DOCUMENTS}`"
                )));
            }
        };
        if slot.is_some() {
            return Err(RerankError::invalid(format!(
                "`inputs` has two tensors `{name}`; send one"
            )));
        }
        if tensor.datatype != BYTES {
            return Err(RerankError::invalid(format!(
                "`{name}` is of another datatype; send `{BYTES}`"
            )));
        }
        let texts = read(name)?;
        let shape = tensor.shape.kept();
        let held = shape.iter().try_fold(1_u64, |n, &size| n.checked_mul(size));
        if shape.len() < tensor.shape.len() || held != Some(texts.len() as u64) {
            return Err(RerankError::invalid(format!(
                "`{name}` has {} texts, which its `shape` does not hold; make them agree",
                texts.len()
            )));
        }
        *slot = Some(texts);
        Ok(())
    }

    /// The command that they spell.
    ///
    /// # Errors
    /// When a tensor is missing, when the texts do not fit together, or when there are too many.
    pub fn into_command(
        self,
        raw_scores: bool,
        limits: &Limits,
    ) -> Result<PredictCommand, RerankError> {
        let query = self.query.ok_or_else(|| missing_tensor(QUERY))?;
        let documents = self.documents.ok_or_else(|| missing_tensor(DOCUMENTS))?;
        let documents = documents.within(DOCUMENTS, limits)?;
        let query = query.within(QUERY, limits)?;
        let pairs = pairs(query, documents, |queries, documents| {
            format!(
                "`{QUERY}` has {queries} texts and `{DOCUMENTS}` {documents}; send one, or as many of each"
            )
        })?;
        let options = ScoreOptions {
            scale: if raw_scores {
                Scale::Raw
            } else {
                Scale::Activated
            },
            ..ScoreOptions::default()
        };
        PredictCommand::named(DOCUMENTS, pairs, options, limits)
    }
}

fn missing_tensor(name: &str) -> RerankError {
    RerankError::invalid(format!(
        "`inputs` has no tensor `{name}`; send it with datatype `{BYTES}`"
    ))
}

/// Adds a tensor to `inputs`.
fn add(
    inputs: &mut Inputs,
    tensor: Tensor,
    behind: &mut &[u8],
    limits: &Limits,
) -> Result<(), RerankError> {
    let head = TensorHead {
        name: &tensor.name,
        datatype: &tensor.datatype,
        shape: &tensor.shape,
    };
    inputs.add(head, |name| {
        texts(name, tensor.binary_bytes, tensor.texts, behind, limits)
    })
}

/// The texts of a tensor; those that lie `behind` the body are taken from there.
fn texts(
    name: &str,
    binary_bytes: Option<u64>,
    data: Option<List<String>>,
    behind: &mut &[u8],
    limits: &Limits,
) -> Result<List<String>, RerankError> {
    match (binary_bytes, data) {
        (Some(size), None) => {
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            let (own, rest) = behind.split_at_checked(size).ok_or_else(|| {
                RerankError::invalid(format!(
                    "`{name}` announces {size} bytes of texts and {} are there; send all",
                    behind.len()
                ))
            })?;
            *behind = rest;
            binary_texts(name, own, limits)
        }
        (None, Some(texts)) => Ok(texts),
        (None, None) => Err(RerankError::invalid(format!(
            "`{name}` has no `data`; add it"
        ))),
        (Some(_), Some(_)) => Err(RerankError::invalid(format!(
            "`{name}` has both `data` and bytes behind the body; send one of them"
        ))),
    }
}

/// Texts as Triton's clients lay them out: four bytes of length, low ones first, before each.
///
/// # Errors
/// When a text breaks off or is not UTF-8.
pub fn binary_texts(
    name: &str,
    mut bytes: &[u8],
    limits: &Limits,
) -> Result<List<String>, RerankError> {
    let broken = || {
        RerankError::invalid(format!(
            "`{name}` breaks off inside a text; send each as its length in four bytes, then itself"
        ))
    };
    let mut texts = List::default();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(broken)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (text, rest) = rest.split_at_checked(length).ok_or_else(broken)?;
        let text = std::str::from_utf8(text).map_err(|_| {
            RerankError::invalid(format!(
                "`{name}[{}]` is not UTF-8; encode it so",
                texts.len()
            ))
        })?;
        texts.push_text(text, limits);
        bytes = rest;
    }
    Ok(texts)
}

/// Answer of an inference.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenInferenceResponse)]
pub struct InferResponse<'a> {
    model_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    outputs: [Output<'a>; 1],
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenInferenceOutput)]
struct Output<'a> {
    name: &'static str,
    datatype: &'static str,
    shape: Vec<usize>,
    data: &'a [f32],
}

/// `[documents]`, or `[documents, labels]` where a document has several scores.
pub fn scores_shape(prediction: &Prediction) -> Vec<usize> {
    let count = prediction.scores.len() / prediction.labels;
    match prediction.labels {
        1 => vec![count],
        labels => vec![count, labels],
    }
}

/// The body that tells `prediction`.
fn fill<'a>(model: &'a str, id: Option<&'a str>, prediction: &'a Prediction) -> InferResponse<'a> {
    InferResponse {
        model_name: model,
        id,
        outputs: [Output {
            name: SCORES,
            datatype: FP32,
            shape: scores_shape(prediction),
            data: &prediction.scores,
        }],
    }
}

/// What a client learns about the model before it asks.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenInferenceModel)]
pub struct Model<'a> {
    /// Name of the model.
    pub name: &'a str,
    /// Runtime and format of the model.
    pub platform: &'static str,
    /// What it takes.
    pub inputs: [TensorType; 2],
    /// What it gives.
    pub outputs: [TensorType; 1],
}

/// The name and the form of a tensor.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenInferenceTensorType)]
pub struct TensorType {
    /// Name of the tensor.
    pub name: &'static str,
    /// What it holds.
    pub datatype: &'static str,
    /// -1 where any size is taken.
    pub shape: Vec<i64>,
}

impl<'a> Model<'a> {
    /// The description of a model called `name` that gives each document `labels` scores.
    pub fn new(name: &'a str, labels: usize) -> Self {
        let texts = |name| TensorType {
            name,
            datatype: BYTES,
            shape: vec![-1],
        };
        Self {
            name,
            platform: "onnxruntime",
            inputs: [texts(QUERY), texts(DOCUMENTS)],
            outputs: [TensorType {
                name: SCORES,
                datatype: FP32,
                shape: match labels {
                    1 => vec![-1],
                    labels => vec![-1, i64::try_from(labels).unwrap_or(i64::MAX)],
                },
            }],
        }
    }
}

/// What a client learns about the server.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenInferenceServer)]
pub struct Server {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    extensions: [&'static str; 0],
}

impl Server {
    /// This server.
    pub const THIS: Self = Self {
        name: "rerankd",
        version: env!("CARGO_PKG_VERSION"),
        extensions: [],
    };
}

/// That a model is ready.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenInferenceReady)]
pub struct Ready<'a> {
    /// The name that was asked for.
    pub name: &'a str,
    /// Always true: what is not ready answers 503.
    pub ready: bool,
}

/// Body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenInferenceError)]
pub struct OpenInferenceError<'a> {
    error: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(texts: &[&str]) -> Vec<u8> {
        let one = |text: &&str| [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
        texts.iter().flat_map(one).collect()
    }

    const LIMITS: Limits = Limits { max_documents: 9 };

    fn tensor(shape: &[u64], binary_bytes: usize) -> Tensor {
        let mut sizes = List::default();
        shape.iter().for_each(|size| sizes.push(*size, &LIMITS));
        Tensor {
            name: DOCUMENTS.to_owned(),
            datatype: BYTES.to_owned(),
            shape: sizes,
            texts: None,
            binary_bytes: Some(binary_bytes as u64),
        }
    }

    #[test]
    fn texts_behind_the_body_are_read_in_turn() {
        let bytes = [binary(&["a", "", "\u{1f642}"]), binary(&["rest"])].concat();
        let mut behind = bytes.as_slice();
        let size = bytes.len() - 8;
        let mut inputs = Inputs::default();
        add(&mut inputs, tensor(&[3, 1], size), &mut behind, &LIMITS).unwrap();
        let read = inputs.documents.unwrap();
        assert_eq!(read.kept(), ["a", "", "\u{1f642}"]);
        assert_eq!(behind, binary(&["rest"]));
    }

    #[test]
    fn broken_binary_texts_are_refused() {
        let whole = binary(&["abc", "d"]);
        for (bytes, shape) in [
            (&whole[..whole.len() - 1], &[2][..]),
            (&whole[..2], &[1]),
            (&whole[..], &[3]),
            (&whole[..], &[u64::MAX, u64::MAX]),
            (b"\x01\0\0\0\xff", &[1]),
            (b"\xff\xff\xff\xff", &[1]),
        ] {
            let mut behind = bytes;
            let tensor = tensor(shape, bytes.len());
            let refused = add(&mut Inputs::default(), tensor, &mut behind, &LIMITS);
            assert!(refused.is_err(), "{bytes:?} as {shape:?}");
        }
        let mut behind = whole.as_slice();
        let tensor = tensor(&[2], whole.len() + 1);
        let refused = add(&mut Inputs::default(), tensor, &mut behind, &LIMITS);
        assert!(refused.is_err());
    }
}
