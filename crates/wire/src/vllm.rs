//! vLLM: `POST /rerank`, `/v1/rerank` and `/v2/rerank`, `/score` and `/v1/score`.

mod score;

use std::num::NonZeroUsize;

use http::StatusCode;
use rerankd_core::{
    Instruction, InstructionPolicy, Priority, RerankCommand, RerankError, Scale, ScoreOptions,
    TruncationOptions, TruncationSide,
};
use serde::Serialize;
use utoipa::ToSchema;

use self::score::{ScoreBody, ScoreRequest};
use super::answer::RankingAnswer;
use super::dialect::{
    Dialect, Kind, Mark, Operation, Path, RerankRequest, Served, Signature, ValueKind, rerank,
};
use super::error::{Problem, Reply, missing};
use super::read::content::{Contents, Query, TextSchema};
use super::read::form::{CountOrMinusOne, CountOrZero, Flag, Urgency};
use super::read::request;
use super::read::scalar::{ModelName, Whole};
use super::schema::{Form, example};
use super::usage::Usage;

/// vLLM.
pub static VLLM: Dialect = Dialect {
    name: "vllm",
    operations: &[
        Operation::new(
            "vllm",
            Kind::Rerank,
            &[
                Path::own("/vllm/rerank"),
                Path::own("/vllm/v1/rerank"),
                Path::own("/vllm/v2/rerank"),
            ],
            rerank::<VllmRequest>,
            |schemas| {
                let example = example!("vllm/ranks");
                Form::of::<VllmRequest, VllmResponse, VllmError>(schemas, example)
            },
        )
        .ignoring(&["user", "request_id", "cache_salt", "padding"])
        .told_by(Signature::any(&[
            Mark("truncate_prompt_tokens", ValueKind::COUNT),
            Mark("truncation_side", &[ValueKind::Text]),
            Mark("use_activation", ValueKind::FLAG),
            Mark("activation", ValueKind::FLAG),
            Mark("softmax", ValueKind::FLAG),
            Mark("max_tokens_per_query", ValueKind::COUNT),
            Mark("chat_template_kwargs", &[ValueKind::Object]),
            Mark("mm_processor_kwargs", &[ValueKind::Object]),
        ])),
        Operation::new(
            "vllm_score",
            Kind::Score,
            &[
                Path::own("/score"),
                Path::own("/v1/score"),
                Path::own("/vllm/score"),
                Path::own("/vllm/v1/score"),
            ],
            score::read,
            |schemas| {
                let example = example!("vllm/score_one_to_many");
                Form::of::<ScoreRequest, ScoreBody, VllmError>(schemas, example)
            },
        )
        .ignoring(&["user", "request_id", "cache_salt", "padding"]),
    ],
    error,
};

request! {
    /// A reranking as vLLM reads it.
    pub struct VllmRequest as VllmRerankRequest {
        /// Any name, unless the server is strict.
        model?: ModelName as Option<serde_json::Value>,
        /// What the documents are judged by.
        query: Query as TextSchema,
        /// The texts that are ranked.
        documents?: Contents as ContentList,
        /// Most results; 0 and nothing are all.
        top_n?: Whole<0> as Option<CountOrZero>,
        /// Most tokens of a pair; -1 is as many as the model reads.
        truncate_prompt_tokens?: Whole<-1> as Option<CountOrMinusOne>,
        /// Which end is cut.
        truncation_side?: TruncationSide as Option<SideName>,
        /// Most tokens of the query; 0 is no limit.
        max_tokens_per_query?: Whole<0> as Option<CountOrZero>,
        /// Most tokens of each document; 0 is no limit.
        max_tokens_per_doc?: Whole<0> as Option<CountOrZero>,
        /// False asks for logits.
        use_activation?: bool as Option<Flag>,
        /// Its older name.
        activation?: bool as Option<Flag>,
        /// Its oldest name.
        softmax?: bool as Option<Flag>,
        /// How urgent it is, from 0, the default, to 999.
        priority?: Priority as Option<Urgency>,
        /// What the texts are judged by; ignored by models that take no instruction.
        instruction?: String as Option<String>,
    }
    refuses { mm_processor_kwargs, chat_template_kwargs }
}

#[derive(ToSchema)]
#[schema(as = VllmContentList)]
#[serde(untagged)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
enum ContentList {
    One(TextSchema),
    Many(Vec<TextSchema>),
}

#[derive(ToSchema)]
#[schema(as = VllmTruncationSide, rename_all = "lowercase")]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
enum SideName {
    Left,
    Right,
}

/// What vLLM's requests say about scores and long texts; 0 and -1 are no limit.
struct Options {
    use_activation: Option<bool>,
    side: Option<TruncationSide>,
    max_tokens: Option<Whole<-1>>,
    max_query_tokens: Option<Whole<0>>,
    max_document_tokens: Option<Whole<0>>,
}

impl Options {
    fn read(self) -> ScoreOptions {
        ScoreOptions {
            scale: match self.use_activation {
                Some(false) => Scale::Raw,
                _ => Scale::Activated,
            },
            truncation: TruncationOptions {
                side: self.side,
                max_tokens: token_limit(self.max_tokens),
                max_query_tokens: token_limit(self.max_query_tokens),
                max_document_tokens: token_limit(self.max_document_tokens),
                ..TruncationOptions::default()
            },
            instruction: InstructionPolicy::Ignore,
            ..ScoreOptions::default()
        }
    }
}

fn token_limit<const LEAST: i64>(number: Option<Whole<LEAST>>) -> Option<NonZeroUsize> {
    NonZeroUsize::new(usize::try_from(number?.0).unwrap_or(0))
}

impl RerankRequest for VllmRequest {
    type Kept = ();

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn priority(&self) -> Priority {
        self.priority.unwrap_or_default()
    }

    fn into_command(self, served: &Served<'_>) -> Result<(RerankCommand, ()), RerankError> {
        let limits = &served.limits;
        let query = self.query.ok_or_else(|| missing("query"))?;
        let documents = self.documents.ok_or_else(|| missing("documents"))?;
        let documents = documents.0.texts("documents", limits)?;
        let options = Options {
            use_activation: self.use_activation.or(self.softmax).or(self.activation),
            side: self.truncation_side,
            max_tokens: self.truncate_prompt_tokens,
            max_query_tokens: self.max_tokens_per_query,
            max_document_tokens: self.max_tokens_per_doc,
        };
        let top_n = token_limit(self.top_n);
        let instruction = Instruction::from_fields(self.instruction, None);
        let command = RerankCommand::new(query.into(), documents, top_n, options.read(), limits)?
            .with_instruction(instruction);
        Ok((command, ()))
    }

    fn fill<'a>(answer: &RankingAnswer<'a>, (): &'a ()) -> impl Serialize + 'a {
        let result = |ranked: &rerankd_core::Ranked| Ranked {
            index: ranked.index,
            document: Document {
                text: &answer.pairs[ranked.index].document,
                multi_modal: (),
            },
            relevance_score: ranked.score,
        };
        VllmResponse {
            id: format!("rerank-{}", answer.context.id),
            model: answer.context.model,
            usage: Usage::new(answer.ranking.tokens),
            results: answer.ranking.results.iter().map(result).collect(),
        }
    }
}

/// Answer of vLLM's reranking; documents always come back.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VllmRerankResponse)]
pub struct VllmResponse<'a> {
    id: String,
    model: &'a str,
    usage: Usage,
    results: Vec<Ranked<'a>>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VllmRanked)]
struct Ranked<'a> {
    index: usize,
    document: Document<'a>,
    relevance_score: f32,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VllmDocument)]
struct Document<'a> {
    text: &'a str,
    /// Always null: this server reads texts.
    multi_modal: (),
}

/// Body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VllmError)]
pub struct VllmError<'a> {
    error: ErrorDetail<'a>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = VllmErrorDetail)]
struct ErrorDetail<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'static str>,
    code: u16,
}

impl<'a> VllmError<'a> {
    /// The body of an error with this `status`.
    pub fn new(status: StatusCode, message: &'a str) -> Self {
        Self {
            error: ErrorDetail {
                message,
                r#type: status.canonical_reason().unwrap_or("Error"),
                param: None,
                code: status.as_u16(),
            },
        }
    }
}

fn error(problem: &Problem<'_>) -> Reply {
    let (status, message) = (problem.status, problem.message);
    if status == StatusCode::UNAUTHORIZED {
        // Keys are checked before what writes its other errors.
        return Reply::json(status, &serde_json::json!({ "error": message }));
    }
    Reply::json(status, &VllmError::new(status, message))
}
