//! Cohere's `POST /v1/rerank` and `POST /v2/rerank`.
//!
//! Jina, Xinference, LiteLLM's proxy and many servers speak these paths too, and their bodies
//! cannot be told apart: the answer is one that all their clients read. Scores are between 0 and 1
//! whatever the model's activation, as all of them promise.

use std::num::NonZeroUsize;

use rerankd_core::{
    Instruction, Priority, RerankCommand, RerankError, Scale, ScoreOptions, TruncationOptions,
};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::answer::{DocumentForm, RankingAnswer};
use super::dialect::{
    Dialect, Kind, Mark, Operation, Path, RerankRequest, Served, Signature, ValueKind, rerank,
};
use super::document::{Document, Echo, Item, RankFields, evidence};
use super::error::{Problem, Reply, missing};
use super::fusion::{FusedScores, FusionRequest};
use super::read::content::{Query, TextSchema};
use super::read::form::{Chunks, Count, Flag, Urgency};
use super::read::list::List;
use super::read::request;
use super::read::scalar::ModelName;
use super::schema::{Form, Schemas, example};
use super::usage::Usage;

/// Cohere's first version, which Jina, Xinference and many servers speak too.
pub static V1: Dialect = Dialect {
    name: "cohere_v1",
    operations: &[Operation::new(
        "cohere_v1",
        Kind::Rerank,
        &[
            Path::shared("/v1/rerank", &[Kind::Rerank]),
            // KServe's, and that of OpenVINO's model server.
            Path::shared("/openai/v1/rerank", &[Kind::Rerank]),
            Path::shared("/v3/rerank", &[Kind::Rerank]),
        ],
        rerank::<CohereRequest>,
        |schemas| form(schemas, example!("cohere/v1_ranks")),
    )
    .told_by(FUSION)],
    error: |problem| error(problem, Some(problem.message)),
};

/// Cohere's second version.
pub static V2: Dialect = Dialect {
    name: "cohere_v2",
    operations: &[Operation::new(
        "cohere_v2",
        Kind::Rerank,
        &[Path::shared("/v2/rerank", &[Kind::Rerank])],
        rerank::<CohereRequest>,
        |schemas| form(schemas, example!("cohere/v2_ranks")),
    )
    .told_by(FUSION)],
    error: |problem| error(problem, None),
};

/// What no other format reads: a body with it is that of the path, whatever else it has.
pub const FUSION: Signature = Signature::any(&[Mark("fusion", ValueKind::ANY)]);

fn form(schemas: &mut Schemas, example: Value) -> Form {
    Form::of::<CohereRequest, CohereResponse, CohereError>(schemas, example)
}

request! {
    /// A reranking as Cohere, Jina and their kin ask for it.
    pub struct CohereRequest as CohereRerankRequest {
        /// Any name, unless the server is strict.
        model?: ModelName as Option<serde_json::Value>,
        /// What the documents are judged by.
        query: Query as TextSchema,
        /// Texts, or objects whose `text` or `rank_fields` are ranked.
        documents: List<Item> as Vec<Item> { min_items = 1 },
        /// Most results; all without.
        top_n?: NonZeroUsize as Option<Count>,
        /// Fields of the objects that are ranked, in this order; `text` without.
        rank_fields?: RankFields as Option<Vec<String>>,
        /// Whether each result repeats its document.
        return_documents?: bool as Option<Flag>,
        /// Parts a long document may be read in; it is as good as its best. Without, one.
        max_chunks_per_doc?: NonZeroUsize as Option<Chunks>,
        /// Tokens of a document that are read.
        max_tokens_per_doc?: NonZeroUsize as Option<Count>,
        /// What the documents are judged by, beside the query; for models that take an instruction.
        instruction?: String as Option<String>,
        /// How urgent it is, from 0, the default, to 999: a request of priority `p` has `1 / (1 + p)` of
        /// the share of one of priority 0.
        priority?: Priority as Option<Urgency>,
        /// Ranks by the model's scores and by the `score` or `rank` that documents have as objects.
        fusion?: FusionRequest as Option<FusionRequest>,
    }
    refuses { relevant_spans, return_embeddings }
}

/// What the answer repeats, and whether all results were asked for.
#[derive(Debug)]
pub struct Kept {
    echo: Echo,
    all: bool,
}

impl RerankRequest for CohereRequest {
    type Kept = Kept;

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn priority(&self) -> Priority {
        self.priority.unwrap_or_default()
    }

    fn into_command(self, served: &Served<'_>) -> Result<(RerankCommand, Kept), RerankError> {
        let limits = &served.limits;
        let query = self.query.ok_or_else(|| missing("query"))?.into();
        let documents = self.documents.ok_or_else(|| missing("documents"))?;
        let evidence = match self.fusion {
            Some(_) => evidence("documents", &documents, limits)?,
            None => Vec::new(),
        };
        let (texts, echo) = Echo::of_items(
            self.return_documents.unwrap_or(served.return_documents),
            "documents",
            documents,
            self.rank_fields.as_ref(),
            limits,
        )?;
        let options = ScoreOptions {
            scale: Scale::Unit,
            truncation: TruncationOptions {
                max_chunks: self.max_chunks_per_doc,
                max_document_tokens: self.max_tokens_per_doc,
                ..TruncationOptions::default()
            },
            ..ScoreOptions::default()
        };
        let instruction = Instruction::from_fields(self.instruction, None);
        let command = RerankCommand::new(query, texts, self.top_n, options, limits)?
            .with_instruction(instruction);
        let fusion = self
            .fusion
            .map(|fusion| fusion.with(&evidence, "documents"));
        let command = command.with_fusion(fusion.transpose()?);
        let all = self.top_n.is_none();
        Ok((command, Kept { echo, all }))
    }

    fn fill<'a>(answer: &RankingAnswer<'a>, kept: &'a Kept) -> impl Serialize + 'a {
        let voyage = kept.all && answer.context.dialect == V1.name && answer.first_stage.is_none();
        CohereResponse {
            id: answer.context.id,
            model: answer.context.model,
            results: fused_results(answer, &kept.echo),
            usage: Usage::new(answer.ranking.tokens),
            meta: Meta::of(answer),
            data: voyage.then(|| results_as(DocumentForm::Omit, answer, &kept.echo)),
        }
    }
}

/// Documents that make one unit of Cohere's bills.
const DOCUMENTS_A_SEARCH: usize = 100;

/// Answer of Cohere's reranking, with what Jina's clients read beside it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CohereRerankResponse)]
pub struct CohereResponse<'a> {
    id: &'a str,
    model: &'a str,
    results: Vec<FusedDocument<'a>>,
    usage: Usage,
    meta: Meta,
    /// The results once more at the paths of the first version, where `top_n` is absent: Voyage's clients
    /// share a path with it, send nothing else that would tell them, and read this.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Vec<RankedDocument<'a>>>,
}

/// One document's place.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RankedDocument)]
pub struct RankedDocument<'a> {
    index: usize,
    // Written as f32: the shortest number that reads back the same, always with a fraction or an
    // exponent, because some clients take a whole number for an integer.
    relevance_score: f32,
    // Left out rather than null: some clients fail on null.
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document<'a>>,
}

/// One document's place, by the scores of the model and of the first stage.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FusedDocument)]
pub struct FusedDocument<'a> {
    #[serde(flatten)]
    ranked: RankedDocument<'a>,
    #[serde(flatten)]
    scores: FusedScores,
}

/// The results of `answer` with what they tell of a fusion, where there is one.
pub fn fused_results<'a>(answer: &RankingAnswer<'a>, echo: &'a Echo) -> Vec<FusedDocument<'a>> {
    let results = results(answer, echo).into_iter();
    results
        .zip(&answer.ranking.results)
        .map(|(document, ranked)| FusedDocument {
            ranked: document,
            scores: FusedScores::of(ranked, answer),
        })
        .collect()
}

/// The results of `answer`, best first, with documents in the form that the operator chose.
pub fn results<'a>(answer: &RankingAnswer<'a>, echo: &'a Echo) -> Vec<RankedDocument<'a>> {
    results_as(answer.context.document_form, answer, echo)
}

/// The results of `answer`, best first, with documents in this form.
pub fn results_as<'a>(
    form: DocumentForm,
    answer: &RankingAnswer<'a>,
    echo: &'a Echo,
) -> Vec<RankedDocument<'a>> {
    let result = |ranked: &rerankd_core::Ranked| RankedDocument {
        index: ranked.index,
        relevance_score: ranked.score,
        document: echo.document_as(form, answer, ranked.index),
    };
    answer.ranking.results.iter().map(result).collect()
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CohereMeta)]
struct Meta {
    api_version: ApiVersion,
    billed_units: BilledUnits,
    tokens: Tokens,
    #[serde(skip_serializing_if = "Option::is_none")]
    warnings: Option<[String; 1]>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CohereApiVersion)]
struct ApiVersion {
    version: &'static str,
    is_experimental: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CohereBilledUnits)]
struct BilledUnits {
    search_units: usize,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CohereTokens)]
struct Tokens {
    input_tokens: usize,
    output_tokens: usize,
}

impl Meta {
    fn of(answer: &RankingAnswer<'_>) -> Self {
        let truncated = &answer.ranking.truncated;
        Self {
            api_version: ApiVersion {
                version: match answer.context.dialect {
                    "cohere_v1" => "1",
                    _ => "2",
                },
                is_experimental: false,
            },
            billed_units: BilledUnits {
                search_units: answer.pairs.len().div_ceil(DOCUMENTS_A_SEARCH),
            },
            tokens: Tokens {
                input_tokens: answer.ranking.tokens,
                output_tokens: 0,
            },
            warnings: truncated.first().map(|first| {
                [format!(
                    "{} of the documents were cut to fit the model, first `documents[{first}]`",
                    truncated.len()
                )]
            }),
        }
    }
}

/// Body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CohereError)]
pub struct CohereError<'a> {
    id: &'a str,
    message: &'a str,
    /// What Jina's clients read; they share the path of the first version.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

/// The answer to a request that failed; `detail` is what Jina's clients read.
fn error<'a>(problem: &Problem<'a>, detail: Option<&'a str>) -> Reply {
    let body = CohereError {
        id: problem.request_id,
        message: problem.message,
        detail,
    };
    Reply::json(problem.status, &body)
}
