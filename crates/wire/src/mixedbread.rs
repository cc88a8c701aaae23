//! `POST /v1/reranking` of Mixedbread.

use std::num::NonZeroUsize;

use rerankd_core::{Instruction, RerankCommand, RerankError, Scale, ScoreOptions};
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{DocumentForm, RankingAnswer};
use super::dialect::{
    Dialect, Kind, Mark, Operation, RerankRequest, Served, Signature, ValueKind, rerank,
};
use super::document::{Document, Echo, Item, RankFields};
use super::error::missing;
use super::native::{self, NativeError};
use super::read::content::{Query, TextSchema};
use super::read::form::{Count, Flag};
use super::read::list::List;
use super::read::request;
use super::read::scalar::ModelName;
use super::schema::{Form, example};
use super::usage::Usage;

/// Mixedbread, whose client keeps whatever JSON an error has.
pub static MIXEDBREAD: Dialect = Dialect {
    name: "mixedbread",
    operations: &[Operation::new(
        "mixedbread",
        Kind::Rerank,
        &[],
        rerank::<MixedbreadRequest>,
        |schemas| {
            let example = example!("mixedbread/ranks");
            Form::of::<MixedbreadRequest, MixedbreadResponse, NativeError>(schemas, example)
        },
    )
    .told_by(
        Signature::any(&[Mark("input", &[ValueKind::List])])
            .unless(&[Mark("documents", &[ValueKind::List])]),
    )],
    error: native::ERROR,
};

request! {
    /// A reranking as Mixedbread reads it; `input` tells it from others on a shared path.
    pub struct MixedbreadRequest as MixedbreadRerankRequest {
        /// Any name, unless the server is strict.
        model?: ModelName as Option<serde_json::Value>,
        /// What the input is judged by.
        query: Query as TextSchema,
        /// Texts, or objects whose `text` or `rank_fields` are ranked.
        input: List<Item> as Vec<Item> { min_items = 1 },
        /// Fields of the objects that are ranked, in this order; `text` without.
        rank_fields?: RankFields as Option<Vec<String>>,
        /// Most results; all without.
        top_k?: NonZeroUsize as Option<Count>,
        /// Whether each result repeats its input.
        return_input?: bool as Option<Flag>,
        /// What the documents are judged by, beside the query; for models that take an instruction.
        instruction?: String as Option<String>,
    }
    refuses { rewrite_query }
}

/// What the answer repeats.
#[derive(Debug)]
pub struct Kept {
    echo: Echo,
    return_input: bool,
}

impl RerankRequest for MixedbreadRequest {
    type Kept = Kept;

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn into_command(self, served: &Served<'_>) -> Result<(RerankCommand, Kept), RerankError> {
        let limits = &served.limits;
        let query = self.query.ok_or_else(|| missing("query"))?.into();
        let input = self.input.ok_or_else(|| missing("input"))?;
        let return_input = self.return_input.unwrap_or(false);
        let fields = self.rank_fields.as_ref();
        let (texts, echo) = Echo::of_items(return_input, "input", input, fields, limits)?;
        let options = ScoreOptions {
            scale: Scale::Unit,
            ..ScoreOptions::default()
        };
        let command = RerankCommand::new(query, texts, self.top_k, options, limits)?
            .with_instruction(Instruction::from_fields(self.instruction, None));
        Ok((command, Kept { echo, return_input }))
    }

    fn fill<'a>(answer: &RankingAnswer<'a>, kept: &'a Kept) -> impl Serialize + 'a {
        let result = |ranked: &rerankd_core::Ranked| Ranked {
            index: ranked.index,
            score: ranked.score,
            input: kept
                .echo
                .document_as(DocumentForm::String, answer, ranked.index),
            object: "rank_result",
        };
        MixedbreadResponse {
            usage: Usage::new(answer.ranking.tokens),
            model: answer.context.model,
            data: answer.ranking.results.iter().map(result).collect(),
            object: "list",
            top_k: answer.ranking.results.len(),
            return_input: kept.return_input,
        }
    }
}

/// Answer of Mixedbread.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MixedbreadRerankResponse)]
pub struct MixedbreadResponse<'a> {
    usage: Usage,
    model: &'a str,
    data: Vec<Ranked<'a>>,
    object: &'static str,
    top_k: usize,
    return_input: bool,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MixedbreadRanked)]
struct Ranked<'a> {
    index: usize,
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<Document<'a>>,
    object: &'static str,
}
