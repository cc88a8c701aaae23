//! DeepInfra's `POST /v1/inference/{model}`: a score for each document, in the order of the request.

use rerankd_core::{
    Instruction, Limits, PredictCommand, Prediction, RerankError, Scale, ScoreOptions,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::Context;
use super::dialect::{Asked, Body, Dialect, Kind, Operation, Path, Served, Work};
use super::error::{Problem, Reply, missing, to_json};
use super::pairs::pairs;
use super::read::content::{TextObject, TextSchema};
use super::read::list::List;
use super::read::{self, request};
use super::schema::{Form, example};

/// DeepInfra.
pub static DEEPINFRA: Dialect = Dialect {
    name: "deepinfra",
    operations: &[Operation::new(
        "deepinfra",
        Kind::Score,
        &[
            Path::own("/v1/inference/{model}"),
            Path::own("/v1/inference/{publisher}/{model}"),
        ],
        read_scores,
        |schemas| {
            let example = example!("deepinfra/scores");
            Form::of::<DeepInfraRequest, DeepInfraResponse, DeepInfraError>(schemas, example)
        },
    )
    .ignoring(&["service_tier"])],
    error: |problem: &Problem<'_>| {
        let body = DeepInfraError {
            detail: Detail {
                error: problem.message,
            },
        };
        Reply::json(problem.status, &body)
    },
};

request! {
    /// Scores as DeepInfra is asked for them: of one query, or of as many as there are documents.
    pub struct DeepInfraRequest as DeepInfraRequest {
        /// What the documents are judged by.
        queries: List<TextObject> as Vec<TextSchema> { min_items = 1 },
        /// The texts that are scored.
        documents: List<TextObject> as Vec<TextSchema> { min_items = 1 },
        /// What the documents are judged by, beside the query; for models that take an instruction.
        instruction?: String as Option<String>,
    }
    refuses { webhook }
}

fn read_scores(body: Body, served: &Served<'_>) -> Result<Asked, RerankError> {
    let request: DeepInfraRequest = read::parse(&body.json, &served.limits)?;
    drop(body);
    let command = request.into_command(&served.limits)?;
    if served.labels().len() != 1 {
        return Err(RerankError::unsupported(format!(
            "this model gives {} scores a pair; use `/predict`",
            served.labels().len()
        )));
    }
    let fill =
        |context: &Context<'_>, prediction: &Prediction| to_json(&filled(context, prediction));
    Ok(served.asked(Work::Predict(command, Box::new(fill))))
}

impl DeepInfraRequest {
    /// The command this request spells.
    ///
    /// # Errors
    /// When a list is missing, they do not fit together, or there is too much.
    fn into_command(self, limits: &Limits) -> Result<PredictCommand, RerankError> {
        let queries = self.queries.ok_or_else(|| missing("queries"))?;
        let documents = self.documents.ok_or_else(|| missing("documents"))?;
        let queries = queries.texts("queries", limits)?.items;
        let documents = documents.texts("documents", limits)?.items;
        let pairs = pairs(queries, documents, |queries, documents| {
            format!(
                "`queries` has {queries} items and `documents` has {documents}; send one query, or as many of each"
            )
        })?;
        let options = ScoreOptions {
            scale: Scale::Unit,
            ..ScoreOptions::default()
        };
        let command = PredictCommand::named("documents", pairs, options, limits)?;
        Ok(command.with_instruction(Instruction::from_fields(self.instruction, None)))
    }
}

/// The body that tells `prediction`, whose model has one label.
fn filled<'a>(context: &Context<'a>, prediction: &'a Prediction) -> DeepInfraResponse<'a> {
    DeepInfraResponse {
        scores: &prediction.scores,
        input_tokens: prediction.tokens,
        request_id: context.id,
        inference_status: Status {
            status: "succeeded",
            runtime_ms: 0,
            cost: 0.0,
            tokens_generated: 0,
            tokens_input: prediction.tokens,
        },
    }
}

/// Answer of DeepInfra.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeepInfraResponse)]
pub struct DeepInfraResponse<'a> {
    scores: &'a [f32],
    input_tokens: usize,
    request_id: &'a str,
    inference_status: Status,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeepInfraStatus)]
struct Status {
    status: &'static str,
    /// Always 0: `server-timing` tells.
    runtime_ms: u64,
    cost: f32,
    tokens_generated: usize,
    tokens_input: usize,
}

/// Body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeepInfraError)]
pub struct DeepInfraError<'a> {
    detail: Detail<'a>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeepInfraErrorDetail)]
struct Detail<'a> {
    error: &'a str,
}
