//! `POST /predict`: every label of each pair.

use rerankd_core::{Limits, Pair, PredictCommand, Prediction, RerankError, TruncationSide};
use serde::Serialize;
use utoipa::ToSchema;

use super::options;
use crate::answer::Context;
use crate::dialect::{Asked, Body, Served, Work};
use crate::error::{missing, to_json};
use crate::read::form::Flag;
use crate::read::pair::PredictInputs;
use crate::read::{self, request};

/// Reads a prediction.
pub fn read(body: Body, served: &Served<'_>) -> Result<Asked, RerankError> {
    let request: PredictRequest = read::parse(&body.json, &served.limits)?;
    drop(body);
    let (command, batch) = request.into_command(&served.limits)?;
    let fill = move |context: &Context<'_>, prediction: &Prediction| {
        to_json(&fill_prediction(context.labels, prediction, batch))
    };
    Ok(served.asked(Work::Predict(command, Box::new(fill))))
}

request! {
    /// A prediction as TEI reads it.
    pub struct PredictRequest as TeiPredictRequest {
        /// Two texts, or a list of such pairs.
        inputs: PredictInputs as InputsSchema,
        /// Whether texts that are too long are cut; otherwise they are refused.
        truncate?: bool as Option<Flag>,
        /// Which end is cut.
        truncation_direction?: TruncationSide as Option<super::Direction>,
        /// Logits instead of scores between 0 and 1.
        raw_scores?: bool as Option<Flag>,
    }
}

/// A pair, or a list of pairs.
#[derive(ToSchema)]
#[schema(as = TeiPredictInputs)]
#[serde(untagged)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
enum InputsSchema {
    One([String; 2]),
    Many(Vec<[String; 2]>),
}

impl PredictRequest {
    /// The command this request spells, and whether it is a batch.
    ///
    /// # Errors
    /// When something is missing or beyond `limits`.
    fn into_command(self, limits: &Limits) -> Result<(PredictCommand, bool), RerankError> {
        let options = options(self.raw_scores, self.truncate, self.truncation_direction);
        let inputs = self.inputs.ok_or_else(|| missing("inputs"))?;
        let pairs = inputs.pairs.within("inputs", limits)?.into_iter();
        let pairs = pairs.map(|[query, document]| Pair {
            query: query.into(),
            document: document.into(),
        });
        let command = PredictCommand::named("inputs", pairs.collect(), options, limits)?;
        Ok((command, inputs.batch))
    }
}

/// One label of a pair.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TeiPrediction)]
pub struct Label<'a> {
    score: f32,
    label: &'a str,
}

/// All labels of one pair, or of each pair, best first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TeiPredictResponse)]
#[serde(untagged)]
pub enum PredictBody<'a> {
    /// Of one pair.
    One(Vec<Label<'a>>),
    /// Of a batch, in the order of the request.
    Batch(Vec<Vec<Label<'a>>>),
}

/// The scores of a pair with the names of their labels, the highest first.
pub fn best_first<'a>(scores: &[f32], labels: &'a [String]) -> Vec<(f32, &'a str)> {
    let scores = scores.iter().copied();
    let mut row: Vec<_> = scores.zip(labels.iter().map(String::as_str)).collect();
    row.sort_by(|a, b| b.0.total_cmp(&a.0));
    row
}

/// The body that tells `prediction` with the names of its labels.
fn fill_prediction<'a>(
    labels: &'a [String],
    prediction: &Prediction,
    batch: bool,
) -> PredictBody<'a> {
    let row = |scores: &[f32]| -> Vec<Label<'a>> {
        let row = best_first(scores, labels).into_iter();
        row.map(|(score, label)| Label { score, label }).collect()
    };
    let mut rows = prediction.scores.chunks(prediction.labels).map(row);
    if batch {
        PredictBody::Batch(rows.collect())
    } else {
        PredictBody::One(rows.next().unwrap_or_default())
    }
}
