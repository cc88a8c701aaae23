//! SGLang's `POST /v1/rerank`, whose answer is a bare list. Its bodies are also those of others, so that
//! it has a path of its own.

use std::num::NonZeroUsize;

use http::StatusCode;
use rerankd_core::{Instruction, RerankCommand, RerankError, ScoreOptions};
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::RankingAnswer;
use super::dialect::{Dialect, Kind, Operation, Path, RerankRequest, Served, rerank};
use super::error::{Problem, Reply};
use super::read::content::{Query, TextObject, TextSchema, query_and_documents};
use super::read::form::{Count, Flag};
use super::read::list::List;
use super::read::request;
use super::read::scalar::ModelName;
use super::schema::{Form, example, list, reference};

/// SGLang.
pub static SGLANG: Dialect = Dialect {
    name: "sglang",
    operations: &[Operation::new(
        "sglang",
        Kind::Rerank,
        &[Path::own("/sglang/v1/rerank")],
        rerank::<SglangRequest>,
        |schemas| Form {
            request: reference::<SglangRequest>(schemas),
            response: list(reference::<Ranked>(schemas)),
            error: reference::<SglangError>(schemas),
            example: example!("sglang/ranks"),
        },
    )],
    error,
};

request! {
    /// A reranking as SGLang reads it.
    pub struct SglangRequest as SglangRerankRequest {
        /// Any name, unless the server is strict.
        model?: ModelName as Option<serde_json::Value>,
        /// What the documents are judged by.
        query: Query as TextSchema,
        /// The texts that are ranked.
        documents: List<TextObject> as Vec<TextSchema> { min_items = 1 },
        /// Most results; all without.
        top_n?: NonZeroUsize as Option<Count>,
        /// Whether each result repeats its document; it does, without.
        return_documents?: bool as Option<Flag>,
        /// What the documents are judged by, beside the query; for models that take an instruction.
        instruct?: String as Option<String>,
    }
}

/// What the answer repeats.
#[derive(Debug)]
pub struct Kept {
    documents: bool,
}

impl RerankRequest for SglangRequest {
    type Kept = Kept;

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn into_command(self, served: &Served<'_>) -> Result<(RerankCommand, Kept), RerankError> {
        let limits = &served.limits;
        let (query, texts) = query_and_documents(self.query, self.documents, limits)?;
        let options = ScoreOptions::default();
        let command = RerankCommand::new(query, texts, self.top_n, options, limits)?
            .with_instruction(Instruction::from_fields(self.instruct, None));
        let documents = self.return_documents.unwrap_or(true);
        Ok((command, Kept { documents }))
    }

    fn fill<'a>(answer: &RankingAnswer<'a>, kept: &'a Kept) -> impl Serialize + 'a {
        let result = |ranked: &rerankd_core::Ranked| Ranked {
            score: ranked.score,
            document: (kept.documents).then(|| &*answer.pairs[ranked.index].document),
            index: ranked.index,
            meta_info: MetaInfo {
                id: answer.context.id,
            },
        };
        let results = answer.ranking.results.iter();
        results.map(result).collect::<Vec<Ranked<'a>>>()
    }
}

/// One document's place; the answer is a bare list of them, best first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SglangRanked)]
pub struct Ranked<'a> {
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<&'a str>,
    index: usize,
    meta_info: MetaInfo<'a>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SglangMetaInfo)]
struct MetaInfo<'a> {
    id: &'a str,
}

/// Body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SglangError)]
pub struct SglangError<'a> {
    object: &'static str,
    message: &'a str,
    r#type: &'static str,
    /// Always null: the text names the field.
    param: (),
    code: u16,
}

fn error(problem: &Problem<'_>) -> Reply {
    let body = SglangError {
        object: "error",
        message: problem.message,
        r#type: match problem.status {
            StatusCode::BAD_REQUEST => "BadRequest",
            status => status.canonical_reason().unwrap_or("Error"),
        },
        param: (),
        code: problem.status.as_u16(),
    };
    Reply::json(problem.status, &body)
}
