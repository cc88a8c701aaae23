//! DashScope's reranking, of Alibaba's Model Studio: at its own path, and at the one that is compatible
//! with others.

use std::num::NonZeroUsize;

use http::StatusCode;
use rerankd_core::{Instruction, RerankCommand, RerankError, Scale, ScoreOptions, Texts};
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{DocumentForm, RankingAnswer};
use super::cohere::{RankedDocument, results_as};
use super::dialect::{Dialect, Kind, Operation, Path, RerankRequest, Served, rerank};
use super::document::Echo;
use super::error::{Problem, Reply, missing};
use super::read::content::{Query, TextObject, TextSchema, query_and_documents};
use super::read::form::{Count, Flag};
use super::read::list::List;
use super::read::request;
use super::read::scalar::ModelName;
use super::schema::{Form, example};

/// DashScope.
pub static DASHSCOPE: Dialect = Dialect {
    name: "dashscope",
    operations: &[
        Operation::new(
            "dashscope",
            Kind::Rerank,
            &[Path::own("/api/v1/services/rerank/text-rerank/text-rerank")],
            rerank::<DashScopeRequest>,
            |schemas| {
                let example = example!("dashscope/ranks");
                Form::of::<DashScopeRequest, DashScopeResponse, DashScopeError>(schemas, example)
            },
        ),
        Operation::new(
            "dashscope_compatible",
            Kind::Rerank,
            &[Path::own("/compatible-api/v1/reranks")],
            rerank::<CompatibleRequest>,
            |schemas| {
                let example = example!("dashscope/compatible");
                Form::of::<CompatibleRequest, CompatibleResponse, DashScopeError>(schemas, example)
            },
        ),
    ],
    error,
};

request! {
    /// A reranking as DashScope reads it.
    pub struct DashScopeRequest as DashScopeRerankRequest {
        /// Any name, unless the server is strict.
        model?: ModelName as Option<serde_json::Value>,
        /// The texts.
        input: Input as Input,
        /// How they are ranked.
        parameters?: Parameters as Option<Parameters>,
    }
}

request! {
    /// The texts of a reranking.
    pub struct Input as DashScopeInput {
        /// What the documents are judged by.
        query: Query as TextSchema,
        /// The texts that are ranked.
        documents: List<TextObject> as Vec<TextSchema> { min_items = 1 },
    }
}

request! {
    /// How texts are ranked.
    pub struct Parameters as DashScopeParameters {
        /// Most results; all without.
        top_n?: NonZeroUsize as Option<Count>,
        /// Whether each result repeats its document.
        return_documents?: bool as Option<Flag>,
        /// What the documents are judged by, beside the query; for models that take an instruction.
        instruct?: String as Option<String>,
    }
}

request! {
    /// A reranking as DashScope reads it at its compatible path.
    pub struct CompatibleRequest as DashScopeCompatibleRequest {
        /// Any name, unless the server is strict.
        model?: ModelName as Option<serde_json::Value>,
        /// What the documents are judged by.
        query: Query as TextSchema,
        /// The texts that are ranked.
        documents: List<TextObject> as Vec<TextSchema> { min_items = 1 },
        /// Most results; all without.
        top_n?: NonZeroUsize as Option<Count>,
        /// Whether each result repeats its document.
        return_documents?: bool as Option<Flag>,
        /// What the documents are judged by, beside the query; for models that take an instruction.
        instruct?: String as Option<String>,
    }
}

/// The command of either form; `texts` are what it ranks.
fn command(
    query: String,
    texts: Texts,
    parameters: Parameters,
    served: &Served<'_>,
) -> Result<(RerankCommand, Echo), RerankError> {
    let options = ScoreOptions {
        scale: Scale::Unit,
        ..ScoreOptions::default()
    };
    let instruction = Instruction::from_fields(parameters.instruct, None);
    let top_n = parameters.top_n;
    let command = RerankCommand::new(query, texts, top_n, options, &served.limits)?
        .with_instruction(instruction);
    let repeat = parameters
        .return_documents
        .unwrap_or(served.return_documents);
    Ok((command, Echo::of_texts(repeat)))
}

impl RerankRequest for DashScopeRequest {
    type Kept = Echo;

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn into_command(self, served: &Served<'_>) -> Result<(RerankCommand, Echo), RerankError> {
        let input = self.input.ok_or_else(|| missing("input"))?;
        let query = input.query.ok_or_else(|| missing("input.query"))?.into();
        let documents = input.documents.ok_or_else(|| missing("input.documents"))?;
        let texts = documents.texts("input.documents", &served.limits)?;
        command(query, texts, self.parameters.unwrap_or_default(), served)
    }

    fn fill<'a>(answer: &RankingAnswer<'a>, echo: &'a Echo) -> impl Serialize + 'a {
        DashScopeResponse {
            output: Output {
                results: results_as(DocumentForm::Object, answer, echo),
            },
            usage: Usage {
                total_tokens: answer.ranking.tokens,
            },
            request_id: answer.context.id,
        }
    }
}

impl RerankRequest for CompatibleRequest {
    type Kept = Echo;

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn into_command(self, served: &Served<'_>) -> Result<(RerankCommand, Echo), RerankError> {
        let (query, texts) = query_and_documents(self.query, self.documents, &served.limits)?;
        let parameters = Parameters {
            top_n: self.top_n,
            return_documents: self.return_documents,
            instruct: self.instruct,
        };
        command(query, texts, parameters, served)
    }

    fn fill<'a>(answer: &RankingAnswer<'a>, echo: &'a Echo) -> impl Serialize + 'a {
        CompatibleResponse {
            object: "list",
            results: results_as(DocumentForm::Object, answer, echo),
            model: answer.context.model,
            id: answer.context.id,
            usage: Usage {
                total_tokens: answer.ranking.tokens,
            },
        }
    }
}

/// Answer of DashScope.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopeRerankResponse)]
pub struct DashScopeResponse<'a> {
    output: Output<'a>,
    usage: Usage,
    request_id: &'a str,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopeOutput)]
struct Output<'a> {
    results: Vec<RankedDocument<'a>>,
}

/// Answer of DashScope at its compatible path.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopeCompatibleResponse)]
pub struct CompatibleResponse<'a> {
    object: &'static str,
    results: Vec<RankedDocument<'a>>,
    model: &'a str,
    id: &'a str,
    usage: Usage,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopeUsage)]
struct Usage {
    total_tokens: usize,
}

/// Body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopeError)]
pub struct DashScopeError<'a> {
    code: &'static str,
    message: &'a str,
    request_id: &'a str,
}

fn error(problem: &Problem<'_>) -> Reply {
    let code = match problem.status {
        StatusCode::UNAUTHORIZED => "InvalidApiKey",
        StatusCode::FORBIDDEN => "AccessDenied",
        StatusCode::NOT_FOUND => "ModelNotFound",
        StatusCode::TOO_MANY_REQUESTS => "Throttling",
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => "RequestTimeOut",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
        status if status.is_server_error() => "InternalError",
        _ => "InvalidParameter",
    };
    let body = DashScopeError {
        code,
        message: problem.message,
        request_id: problem.request_id,
    };
    Reply::json(problem.status, &body)
}
