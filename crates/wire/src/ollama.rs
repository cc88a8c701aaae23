//! `POST /api/rerank` as proposed for Ollama, and as clients already ask for it.

use std::num::NonZeroUsize;

use rerankd_core::{Instruction, RerankCommand, RerankError, Scale, ScoreOptions};
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{DocumentForm, RankingAnswer};
use super::cohere::{RankedDocument, results_as};
use super::dialect::{Dialect, Kind, Operation, Path, RerankRequest, Served, rerank};
use super::document::Echo;
use super::error::{Problem, Reply};
use super::read::content::{Query, TextObject, TextSchema, query_and_documents};
use super::read::form::{Count, Flag};
use super::read::list::List;
use super::read::request;
use super::read::scalar::ModelName;
use super::schema::{Form, example};

/// Ollama.
pub static OLLAMA: Dialect = Dialect {
    name: "ollama",
    operations: &[Operation::new(
        "ollama",
        Kind::Rerank,
        &[Path::own("/api/rerank")],
        rerank::<OllamaRequest>,
        |schemas| {
            let example = example!("ollama/ranks");
            Form::of::<OllamaRequest, OllamaResponse, OllamaError>(schemas, example)
        },
    )
    .ignoring(&["keep_alive", "options"])],
    error: |problem: &Problem<'_>| {
        let error = problem.message;
        Reply::json(problem.status, &OllamaError { error })
    },
};

request! {
    /// A reranking as proposed for Ollama.
    pub struct OllamaRequest as OllamaRerankRequest {
        /// Any name, unless the server is strict.
        model?: ModelName as Option<serde_json::Value>,
        /// What the documents are judged by.
        query: Query as TextSchema,
        /// The texts that are ranked.
        documents: List<TextObject> as Vec<TextSchema> { min_items = 1 },
        /// Most results; all without.
        top_n?: NonZeroUsize as Option<Count>,
        /// Whether each result repeats its document, in an object; without, it does as a string.
        return_documents?: bool as Option<Flag>,
        /// What the documents are judged by, beside the query; for models that take an instruction.
        instruction?: String as Option<String>,
    }
}

/// What the answer repeats.
#[derive(Debug)]
pub struct Kept {
    echo: Echo,
    form: DocumentForm,
}

impl RerankRequest for OllamaRequest {
    type Kept = Kept;

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn into_command(self, served: &Served<'_>) -> Result<(RerankCommand, Kept), RerankError> {
        let limits = &served.limits;
        let (query, texts) = query_and_documents(self.query, self.documents, limits)?;
        let options = ScoreOptions {
            scale: Scale::Unit,
            ..ScoreOptions::default()
        };
        let command = RerankCommand::new(query, texts, self.top_n, options, limits)?
            .with_instruction(Instruction::from_fields(self.instruction, None));
        let kept = Kept {
            echo: Echo::of_texts(true),
            // The first proposal repeats strings, the second objects where they are asked for.
            form: match self.return_documents {
                None => DocumentForm::String,
                Some(true) => DocumentForm::Object,
                Some(false) => DocumentForm::Omit,
            },
        };
        Ok((command, kept))
    }

    fn fill<'a>(answer: &RankingAnswer<'a>, kept: &'a Kept) -> impl Serialize + 'a {
        OllamaResponse {
            model: answer.context.model,
            results: results_as(kept.form, answer, &kept.echo),
        }
    }
}

/// Answer of Ollama.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaRerankResponse)]
pub struct OllamaResponse<'a> {
    model: &'a str,
    results: Vec<RankedDocument<'a>>,
}

/// Body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaError)]
pub struct OllamaError<'a> {
    error: &'a str,
}
