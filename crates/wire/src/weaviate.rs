//! The container that Weaviate's `reranker-transformers` module calls.
//!
//! Weaviate pairs scores with its objects by position, so they come in the order of the request.

use rerankd_core::{RerankCommand, RerankError, ScoreOptions, Texts};
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::RankingAnswer;
use super::dialect::{
    Dialect, Kind, Mark, Operation, RerankRequest, Served, Signature, ValueKind, rerank,
};
use super::error::{Problem, Reply, missing};
use super::read::content::{Query, TextObject, TextSchema};
use super::read::list::List;
use super::read::request;
use super::schema::{Form, example};

/// The container that Weaviate's `reranker-transformers` module calls.
pub static WEAVIATE: Dialect = Dialect {
    name: "weaviate",
    operations: &[Operation::new(
        "weaviate",
        Kind::Rerank,
        &[],
        rerank::<WeaviateRequest>,
        |schemas| {
            let example = example!("weaviate/scores");
            Form::of::<WeaviateRequest, WeaviateResponse, WeaviateError>(schemas, example)
        },
    )
    .told_by(
        Signature::any(&[Mark("property", &[ValueKind::Text])])
            .unless(&[Mark("top_n", ValueKind::COUNT)]),
    )],
    error,
};

request! {
    /// A reranking as Weaviate asks for it; `property` tells it from others on a shared path.
    pub struct WeaviateRequest as WeaviateRerankRequest {
        /// What the documents are judged by.
        query: Query as TextSchema,
        /// The texts that are scored.
        documents?: List<TextObject> as Option<Vec<TextSchema>> { min_items = 1 },
        /// The single text that is scored where there are no `documents`; else empty.
        property?: String as String,
    }
}

/// What the answer repeats.
#[derive(Debug)]
pub struct Kept {
    single: bool,
}

impl RerankRequest for WeaviateRequest {
    type Kept = Kept;

    fn model(&self) -> Option<&str> {
        None
    }

    fn into_command(self, served: &Served<'_>) -> Result<(RerankCommand, Kept), RerankError> {
        let limits = &served.limits;
        let query = self.query.ok_or_else(|| missing("query"))?.into();
        let single = self.documents.is_none();
        let texts = match self.documents {
            Some(documents) => documents.texts("documents", limits)?,
            None => Texts {
                field: "property",
                items: vec![self.property.ok_or_else(|| missing("documents"))?],
            },
        };
        let command = RerankCommand::new(query, texts, None, ScoreOptions::default(), limits)?;
        Ok((command, Kept { single }))
    }

    fn fill<'a>(answer: &RankingAnswer<'a>, kept: &'a Kept) -> impl Serialize + 'a {
        let query = &*answer.pairs[0].query;
        let mut results = answer.ranking.results.clone();
        results.sort_by_key(|ranked| ranked.index);
        let text = |index: usize| &*answer.pairs[index].document;
        match kept.single {
            true => WeaviateResponse {
                query,
                scores: None,
                property: Some(text(0)),
                score: Some(results[0].score),
            },
            false => WeaviateResponse {
                query,
                scores: Some(
                    results
                        .iter()
                        .map(|ranked| Score {
                            document: text(ranked.index),
                            score: ranked.score,
                        })
                        .collect(),
                ),
                property: None,
                score: None,
            },
        }
    }
}

/// Answer of the container.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WeaviateRerankResponse)]
pub struct WeaviateResponse<'a> {
    query: &'a str,
    scores: Option<Vec<Score<'a>>>,
    property: Option<&'a str>,
    score: Option<f32>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WeaviateScore)]
struct Score<'a> {
    document: &'a str,
    score: f32,
}

/// Body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WeaviateError)]
pub struct WeaviateError<'a> {
    error: &'a str,
}

/// Weaviate shows the text to its own user.
fn error(problem: &Problem<'_>) -> Reply {
    let error = problem.message;
    Reply::json(problem.status, &WeaviateError { error })
}
