//! The server's own wire format: `POST /rerank` and `POST /predict`.
//!
//! An error is one text under four names, which is what the readers of other servers' clients look
//! for.

use std::num::NonZeroUsize;

use rerankd_core::{
    Instruction, Limits, Pair, PredictCommand, Prediction, Priority, RerankCommand, RerankError,
    Scale, ScoreOptions, TruncationOptions, TruncationPolicy, TruncationSide, TruncationStrategy,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{Context, RankingAnswer};
use super::cohere::{FUSION, FusedDocument, fused_results};
use super::dialect::{
    Asked, Body, Dialect, Kind, Operation, Path, RerankRequest, Served, Work, rerank, with_priority,
};
use super::document::Echo;
use super::error::{Problem, Reply, missing, to_json};
use super::fusion::{Evidence, FusionRequest};
use super::read::content::{Candidate, CandidateSchema, Query, TextSchema, query_and_documents};
use super::read::form::{Chunks, Count, Flag, Urgency};
use super::read::list::List;
use super::read::pair::TextPair;
use super::read::scalar::ModelName;
use super::read::{self, request};
use super::schema::{Form, example};
use super::usage::Usage;

/// The server's own.
pub static NATIVE: Dialect = Dialect {
    name: "native",
    operations: &[
        Operation::new(
            "native",
            Kind::Rerank,
            &[Path::shared("/rerank", &[Kind::Rerank])],
            rerank::<NativeRequest>,
            |schemas| {
                let example = example!("native/ranks");
                Form::of::<NativeRequest, NativeResponse, NativeError>(schemas, example)
            },
        )
        .told_by(FUSION),
        Operation::new(
            "native_predict",
            Kind::Predict,
            &[Path::shared("/predict", &[Kind::Predict])],
            predict,
            |schemas| {
                let example = example!("native/predict");
                Form::of::<PredictRequest, PredictResponse, NativeError>(schemas, example)
            },
        ),
    ],
    error: ERROR,
};

/// The answer to a request that failed, as more than one dialect has it.
pub const ERROR: fn(&Problem<'_>) -> Reply = |problem| {
    Reply::json(
        problem.status,
        &NativeError::new(problem.kind, problem.message),
    )
};

request! {
    /// A reranking in the server's own words.
    pub struct NativeRequest as RerankRequest {
        /// Any name, unless the server is strict.
        model?: ModelName as Option<serde_json::Value>,
        /// What the documents are judged by.
        query: Query as TextSchema,
        /// Texts, or objects that hold one under `text`, and may have a `score` or `rank` of a first stage.
        documents: List<Candidate> as Vec<CandidateSchema> { min_items = 1 },
        /// What the documents are judged by, beside the query; for models that take an instruction.
        instruction?: String as Option<String>,
        /// Another name of `instruction`.
        instruct?: String as Option<String>,
        /// The model's own instruction of this name.
        prompt_name?: String as Option<String>,
        /// Ranks by the model's scores and by the `score` or `rank` of the documents.
        fusion?: FusionRequest as Option<FusionRequest>,
        /// Most results; all without.
        top_n?: NonZeroUsize as Option<Count>,
        /// Whether each result repeats its document.
        return_documents?: bool as Option<Flag>,
        /// Logits instead of what the model makes of them.
        raw_scores?: bool as Option<Flag>,
        /// Whether texts that are too long are cut; otherwise they are refused.
        truncate?: bool as Option<Flag>,
        /// Which text gives way when a pair is too long; the server's choice without.
        truncation_strategy?: TruncationStrategy as Option<StrategyName>,
        /// Which end is cut; the tokenizer's choice without.
        truncation_direction?: TruncationSide as Option<SideName>,
        /// Tokens of a document that are read.
        max_tokens_per_doc?: NonZeroUsize as Option<Count>,
        /// Parts a long document may be read in; it is as good as its best. Without, one.
        max_chunks_per_doc?: NonZeroUsize as Option<Chunks>,
        /// How urgent it is, from 0, the default, to 999: a request of priority `p` has `1 / (1 + p)` of
        /// the share of one of priority 0.
        priority?: Priority as Option<Urgency>,
    }
}

request! {
    /// A prediction in the server's own words.
    pub struct PredictRequest as PredictRequest {
        /// Any name, unless the server is strict.
        model?: ModelName as Option<serde_json::Value>,
        /// Two texts each.
        pairs: List<TextPair> as Vec<[String; 2]> { min_items = 1 },
        /// What the pairs are judged by, beside their texts; for models that take an instruction.
        instruction?: String as Option<String>,
        /// Another name of `instruction`.
        instruct?: String as Option<String>,
        /// The model's own instruction of this name.
        prompt_name?: String as Option<String>,
        /// Logits instead of what the model makes of them.
        raw_scores?: bool as Option<Flag>,
        /// A softmax over the labels of each pair.
        softmax?: bool as Option<Flag>,
        /// Whether texts that are too long are cut; otherwise they are refused.
        truncate?: bool as Option<Flag>,
        /// How urgent it is, as in a reranking.
        priority?: Priority as Option<Urgency>,
    }
}

#[derive(ToSchema)]
#[schema(as = TruncationStrategy, rename_all = "snake_case")]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
enum StrategyName {
    LongestFirst,
    DocumentOnly,
}

#[derive(ToSchema)]
#[schema(as = TruncationDirection, rename_all = "snake_case")]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
enum SideName {
    Left,
    Right,
}

impl RerankRequest for NativeRequest {
    type Kept = Echo;

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn priority(&self) -> Priority {
        self.priority.unwrap_or_default()
    }

    fn into_command(self, served: &Served<'_>) -> Result<(RerankCommand, Echo), RerankError> {
        let limits = &served.limits;
        let truncation = TruncationOptions {
            strategy: self.truncation_strategy,
            side: self.truncation_direction,
            max_document_tokens: self.max_tokens_per_doc,
            max_chunks: self.max_chunks_per_doc,
            ..TruncationOptions::default()
        };
        let options = ScoreOptions {
            scale: scale(self.raw_scores, None)?,
            truncate: TruncationPolicy::from_flag(self.truncate),
            truncation,
            ..ScoreOptions::default()
        };
        let instruction = instruction(self.instruction, self.instruct, self.prompt_name)?;
        let evidence: Vec<Evidence> = match (&self.fusion, &self.documents) {
            (Some(_), Some(documents)) => {
                let documents = documents.kept().iter();
                documents.map(|document| document.evidence).collect()
            }
            _ => Vec::new(),
        };
        let (query, documents) = query_and_documents(self.query, self.documents, limits)?;
        let fusion = self
            .fusion
            .map(|fusion| fusion.with(&evidence, "documents"));
        let command = RerankCommand::new(query, documents, self.top_n, options, limits)?
            .with_instruction(instruction)
            .with_fusion(fusion.transpose()?);
        let echo = Echo::of_texts(self.return_documents.unwrap_or(served.return_documents));
        Ok((command, echo))
    }

    fn fill<'a>(answer: &RankingAnswer<'a>, echo: &'a Echo) -> impl Serialize + 'a {
        NativeResponse {
            id: answer.context.id,
            model: answer.context.model,
            results: fused_results(answer, echo),
            truncated: &answer.ranking.truncated,
            usage: Usage::new(answer.ranking.tokens),
        }
    }
}

fn predict(body: Body, served: &Served<'_>) -> Result<Asked, RerankError> {
    let request: PredictRequest = read::parse(&body.json, &served.limits)?;
    drop(body);
    let served = served.select(request.model.as_deref())?;
    let hints = with_priority(request.priority.unwrap_or_default());
    let command = request.into_command(&served.limits)?.with_hints(hints);
    let fill = |context: &Context<'_>, prediction: &Prediction| {
        to_json(&PredictResponse::fill(context.model, prediction))
    };
    Ok(served.asked(Work::Predict(command, Box::new(fill))))
}

impl PredictRequest {
    fn into_command(self, limits: &Limits) -> Result<PredictCommand, RerankError> {
        let options = ScoreOptions {
            scale: scale(self.raw_scores, self.softmax)?,
            truncate: TruncationPolicy::from_flag(self.truncate),
            ..ScoreOptions::default()
        };
        let instruction = instruction(self.instruction, self.instruct, self.prompt_name)?;
        let pairs = self.pairs.ok_or_else(|| missing("pairs"))?;
        let pairs = pairs.within("pairs", limits)?.into_iter();
        let pairs = pairs.map(|[query, document]| Pair {
            query: query.into(),
            document: document.into(),
        });
        let command = PredictCommand::new(pairs.collect(), options, limits)?;
        Ok(command.with_instruction(instruction))
    }
}

/// The one instruction that is set; an empty string sets none.
fn instruction(
    instruction: Option<String>,
    instruct: Option<String>,
    prompt_name: Option<String>,
) -> Result<Instruction, RerankError> {
    let is_set = |text: &String| !text.is_empty();
    // An empty text alone stands for the template's own instruction.
    let empty = [&instruction, &instruct]
        .into_iter()
        .flatten()
        .any(|text| text.is_empty());
    let name = prompt_name.filter(is_set);
    match (instruction.filter(is_set), instruct.filter(is_set), name) {
        (Some(text), None, None) | (None, Some(text), None) => {
            Ok(Instruction::from_fields(Some(text), None))
        }
        (None, None, Some(name)) => Ok(Instruction::from_fields(None, Some(name))),
        (None, None, None) => Ok(Instruction::from_fields(empty.then(String::new), None)),
        _ => Err(RerankError::invalid(
            "`instruction`, `instruct` and `prompt_name` exclude each other; send one of them",
        )),
    }
}

fn scale(raw_scores: Option<bool>, softmax: Option<bool>) -> Result<Scale, RerankError> {
    match (raw_scores.unwrap_or(false), softmax.unwrap_or(false)) {
        (false, false) => Ok(Scale::Activated),
        (true, false) => Ok(Scale::Raw),
        (false, true) => Ok(Scale::Softmax),
        (true, true) => Err(RerankError::invalid(
            "`raw_scores` and `softmax` exclude each other; send one of them",
        )),
    }
}

/// Answer of `POST /rerank`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RerankResponse)]
pub struct NativeResponse<'a> {
    id: &'a str,
    model: &'a str,
    results: Vec<FusedDocument<'a>>,
    /// Positions of the documents that were cut to fit the model; absent where none was.
    #[serde(skip_serializing_if = "<[usize]>::is_empty")]
    truncated: &'a [usize],
    usage: Usage,
}

/// Answer of `POST /predict`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PredictResponse)]
pub struct PredictResponse<'a> {
    model: &'a str,
    scores: Scores<'a>,
    #[serde(skip_serializing_if = "<[usize]>::is_empty")]
    truncated: &'a [usize],
    usage: Usage,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PredictScores)]
#[serde(untagged)]
enum Scores<'a> {
    /// One number a pair.
    Flat(&'a [f32]),
    /// One list a pair, one number a label.
    Rows(Vec<&'a [f32]>),
}

impl<'a> PredictResponse<'a> {
    /// The answer that tells `prediction`.
    pub fn fill(model: &'a str, prediction: &'a Prediction) -> Self {
        let scores = match prediction.labels {
            1 => Scores::Flat(&prediction.scores),
            labels => Scores::Rows(prediction.scores.chunks(labels).collect()),
        };
        Self {
            model,
            scores,
            truncated: &prediction.truncated,
            usage: Usage::new(prediction.tokens),
        }
    }
}

/// Body of every error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Error)]
pub struct NativeError<'a> {
    error: &'a str,
    error_type: &'a str,
    message: &'a str,
    detail: &'a str,
}

impl<'a> NativeError<'a> {
    /// One `message` under each of its names.
    pub fn new(error_type: &'a str, message: &'a str) -> Self {
        Self {
            error: message,
            error_type,
            message,
            detail: message,
        }
    }
}
