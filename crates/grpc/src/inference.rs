//! `inference.GRPCInferenceService`: the Open Inference Protocol of KServe and Triton, with the tensors of
//! its HTTP form.
//!
//! Texts come in `contents` or in `raw_input_contents`, and scores go back the same way.

use prost::Message;
use rerankd_core::{Limits, Prediction, RerankError};
use rerankd_wire::answer::Context;
use rerankd_wire::open_inference::{
    FP32, Inputs, Model, SCORES, Server, TensorHead, binary_texts, check_output, scores_shape,
};
use rerankd_wire::{Asked, List, Served, Work};

use crate::fields::{Fields, Value};
use crate::frame::Messages;
use crate::proto::inference as proto;
use crate::proto::inference::model_infer_response::InferOutputTensor;
use crate::proto::inference::model_metadata_response::TensorMetadata;

/// There are two inputs. A third is kept so that it is refused by name.
const TENSORS: Limits = Limits { max_documents: 3 };

/// A tensor as it was sent.
#[derive(Default)]
struct Tensor<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: List<u64>,
    texts: Option<List<String>>,
}

impl<'a> Tensor<'a> {
    fn read(fields: Fields<'a>, limits: &Limits) -> Result<Self, RerankError> {
        let mut tensor = Self::default();
        for field in fields {
            let (number, value) = field?;
            match number {
                1 => tensor.name = value.text("inputs.name")?,
                2 => tensor.datatype = value.text("inputs.datatype")?,
                // A negative size is a large number here, which holds no texts.
                3 => value.numbers("inputs.shape", |size| tensor.shape.push(size, limits))?,
                5 => tensor.contents(value.message("inputs.contents")?, limits)?,
                _ => {}
            }
        }
        Ok(tensor)
    }

    fn contents(&mut self, fields: Fields<'_>, limits: &Limits) -> Result<(), RerankError> {
        let texts = self.texts.get_or_insert_default();
        for field in fields {
            if let (8, value) = field? {
                let text = value.item("bytes_contents", texts.len())?;
                texts.push_text(text, limits);
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Infer<'a> {
    model: Option<&'a str>,
    id: &'a str,
    raw_scores: bool,
    inputs: List<Tensor<'a>>,
    raw: List<&'a [u8]>,
}

impl<'a> Infer<'a> {
    fn read(message: &'a [u8], limits: &Limits) -> Result<Self, RerankError> {
        let mut request = Self::default();
        for field in Fields::of(message) {
            let (number, value) = field?;
            match number {
                1 => {
                    request.model = Some(value.text("model_name")?).filter(|name| !name.is_empty())
                }
                3 => request.id = value.text("id")?,
                4 => request.parameter(value.message("parameters")?)?,
                5 => {
                    let tensor = Tensor::read(value.message("inputs")?, limits)?;
                    request.inputs.push(tensor, &TENSORS);
                }
                6 => output(value.message("outputs")?)?,
                7 => {
                    let bytes = value.bytes("raw_input_contents", "bytes")?;
                    request.raw.push(bytes, limits);
                }
                _ => {}
            }
        }
        Ok(request)
    }

    /// Reads an entry of the map of parameters.
    fn parameter(&mut self, entry: Fields<'_>) -> Result<(), RerankError> {
        let (mut name, mut flag) = ("", None);
        for field in entry {
            match field? {
                (1, value) => name = value.text("parameters")?,
                (2, value) => flag = flag_of(value.message("parameters")?)?,
                _ => {}
            }
        }
        if name == "raw_scores" {
            self.raw_scores = flag.ok_or_else(|| {
                RerankError::invalid("`parameters.raw_scores` is no boolean; send `bool_param`")
            })?;
        }
        Ok(())
    }
}

fn flag_of(parameter: Fields<'_>) -> Result<Option<bool>, RerankError> {
    let mut flag = None;
    for field in parameter {
        let (number, value) = field?;
        flag = match (number, value) {
            (1, Value::Number(number)) => Some(number != 0),
            (2..=5, _) => None,
            _ => flag,
        };
    }
    Ok(flag)
}

/// Checks the name of an output that is asked for.
fn output(fields: Fields<'_>) -> Result<(), RerankError> {
    let mut name = "";
    for field in fields {
        if let (1, value) = field? {
            name = value.text("outputs.name")?;
        }
    }
    check_output(name)
}

/// Reads a `ModelInferRequest`.
///
/// # Errors
/// When it is malformed, when a tensor is missing, of another type or not of its shape, when the texts do
/// not fit together, or when there is too much.
pub fn infer(message: &[u8], served: &Served<'_>) -> Result<Asked, RerankError> {
    let limits = &served.limits;
    let request = Infer::read(message, limits)?;
    let served = served.select(request.model)?;
    let is_raw = !request.raw.is_empty();
    if is_raw && request.raw.len() != request.inputs.len() {
        return Err(RerankError::invalid(format!(
            "`raw_input_contents` has {} items and `inputs` {}; send as many of each",
            request.raw.len(),
            request.inputs.len()
        )));
    }
    let mut inputs = Inputs::default();
    let raw = request.raw.into_kept();
    for (place, tensor) in request.inputs.into_kept().into_iter().enumerate() {
        let head = TensorHead {
            name: tensor.name,
            datatype: tensor.datatype,
            shape: &tensor.shape,
        };
        let texts = |name: &'static str| match (raw.get(place), tensor.texts) {
            (None, Some(texts)) => Ok(texts),
            (Some(bytes), None) => binary_texts(name, bytes, limits),
            (None, None) => Err(RerankError::invalid(format!(
                "`{name}` has no `contents`; add them, or `raw_input_contents` for all inputs"
            ))),
            (Some(_), Some(_)) => Err(RerankError::invalid(format!(
                "`{name}` has both `contents` and `raw_input_contents`; send one of them"
            ))),
        };
        inputs.add(head, texts)?;
    }
    let command = inputs.into_command(request.raw_scores, limits)?;
    let id = request.id.to_owned();
    let fill = move |context: &Context<'_>, prediction: &Prediction| {
        response(context.model, id, is_raw, prediction).encode_to_vec()
    };
    Ok(served.asked(Work::Predict(command, Box::new(fill))))
}

/// `[documents]` scores, or `[documents, labels]` where a document has several.
fn response(
    model: &str,
    id: String,
    is_raw: bool,
    prediction: &Prediction,
) -> proto::ModelInferResponse {
    let scores = &prediction.scores;
    let contents = || proto::InferTensorContents {
        fp32_contents: scores.clone(),
        ..proto::InferTensorContents::default()
    };
    let shape = scores_shape(prediction).into_iter();
    proto::ModelInferResponse {
        model_name: model.to_owned(),
        id,
        outputs: vec![InferOutputTensor {
            name: SCORES.to_owned(),
            datatype: FP32.to_owned(),
            shape: shape
                .map(|size| i64::try_from(size).unwrap_or(i64::MAX))
                .collect(),
            contents: (!is_raw).then(contents),
            ..InferOutputTensor::default()
        }],
        raw_output_contents: match is_raw {
            true => vec![
                scores
                    .iter()
                    .flat_map(|score| score.to_le_bytes())
                    .collect(),
            ],
            false => Vec::new(),
        },
        ..proto::ModelInferResponse::default()
    }
}

/// The name of the model that a `ModelReadyRequest` or a `ModelMetadataRequest` asks about.
///
/// # Errors
/// When it is malformed.
pub fn model_name(messages: Messages<'_>) -> Result<Option<&str>, RerankError> {
    let mut name = None;
    for field in Fields::of(messages.only()?) {
        if let (1, value) = field? {
            name = Some(value.text("name")?);
        }
    }
    Ok(name.filter(|name| !name.is_empty()))
}

/// A `ServerLiveResponse`, `ServerReadyResponse` or `ModelReadyResponse`, which have one form.
pub fn ready(ready: bool) -> Vec<u8> {
    proto::ServerReadyResponse { ready }.encode_to_vec()
}

/// A `ServerMetadataResponse`.
pub fn server() -> Vec<u8> {
    let response = proto::ServerMetadataResponse {
        name: Server::THIS.name.to_owned(),
        version: Server::THIS.version.to_owned(),
        extensions: Vec::new(),
    };
    response.encode_to_vec()
}

/// A `ModelMetadataResponse` that describes a model as over HTTP.
pub fn model(model: &Model<'_>) -> Vec<u8> {
    let tensors = |types: &[rerankd_wire::open_inference::TensorType]| {
        let types = types.iter().map(|tensor| TensorMetadata {
            name: tensor.name.to_owned(),
            datatype: tensor.datatype.to_owned(),
            shape: tensor.shape.clone(),
        });
        types.collect()
    };
    let response = proto::ModelMetadataResponse {
        name: model.name.to_owned(),
        versions: Vec::new(),
        platform: model.platform.to_owned(),
        inputs: tensors(&model.inputs),
        outputs: tensors(&model.outputs),
    };
    response.encode_to_vec()
}
