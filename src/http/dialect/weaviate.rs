//! The container that Weaviate's `reranker-transformers` module calls.
//!
//! Weaviate pairs scores with its objects by position, so they come in the order of the request.

use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::field::{Documents, OptionalText, Text};
use super::request::request;
use super::{Answer, RerankDialect, missing};
use crate::http::error::{Failure, json};
use rerankd_core::{Limits, RerankCommand, RerankError, ScoreOptions, Texts};

request! {
    /// A reranking as Weaviate asks for it; `property` tells it from others on a shared path.
    pub struct Request as WeaviateRerankRequest {
        /// What the documents are judged by.
        query: Text => String as String,
        /// The texts that are scored.
        documents: Documents => Vec<String> as Option<Vec<String>> { min_items = 1 },
        /// The single text that is scored where there are no `documents`; else empty.
        property: OptionalText => String as String,
    }
}

/// What the answer repeats.
#[derive(Debug)]
pub struct Kept {
    single: bool,
}

impl RerankDialect for Request {
    type Kept = Kept;

    fn model(&self) -> Option<&str> {
        None
    }

    fn into_command(self, limits: &Limits) -> Result<(RerankCommand, Kept), RerankError> {
        let query = self.query.ok_or_else(|| missing("query"))?;
        let single = self.documents.is_none();
        let texts = match self.documents {
            Some(documents) => Texts::from(documents),
            None => Texts {
                field: "property",
                items: vec![self.property.ok_or_else(|| missing("documents"))?],
            },
        };
        let command = RerankCommand::new(query, texts, None, ScoreOptions::default(), limits)?;
        Ok((command, Kept { single }))
    }

    fn fill<'a>(answer: &Answer<'a>, kept: &'a Kept) -> impl Serialize + 'a {
        let query = &*answer.pairs[0].query;
        let mut results = answer.ranking.results.clone();
        results.sort_by_key(|ranked| ranked.index);
        let text = |index: usize| &*answer.pairs[index].document;
        match kept.single {
            true => Body {
                query,
                scores: None,
                property: Some(text(0)),
                score: Some(results[0].score),
            },
            false => Body {
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
pub struct Body<'a> {
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
pub struct ErrorBody<'a> {
    error: &'a str,
}

/// What Weaviate is told about a failure; it shows the text to its own user.
pub fn error(failure: &Failure) -> Response {
    let error = &failure.message();
    json(failure.kind().0, &ErrorBody { error })
}
