//! Text Embeddings Inference: `POST /rerank`, `/predict`, `/tokenize` and `/decode`.

mod predict;
mod tokenize;

use std::num::NonZeroUsize;

use http::StatusCode;
use rerankd_core::{
    ErrorCode, RerankCommand, RerankError, Scale, ScoreOptions, TieOrder, TruncationOptions,
    TruncationPolicy, TruncationSide,
};
use serde::Serialize;
use utoipa::ToSchema;

pub use self::predict::best_first;
use self::predict::{PredictBody, PredictRequest};
pub use self::tokenize::check_prompt;
use self::tokenize::{DecodeRequest, TokenizeRequest};
use super::answer::{RankingAnswer, Token};
use super::dialect::{
    Dialect, Kind, Mark, Operation, Path, RerankRequest, Served, Signature, ValueKind, rerank,
};
use super::error::{Problem, Reply, missing};
use super::read::content::{Query, TextSchema};
use super::read::form::{Count, Flag};
use super::read::list::List;
use super::read::request;
use super::schema::{Form, example, list, reference};

/// Most bytes of a body whose tokens are shown. Every token comes back with its text and place, some
/// thirty times what was sent, and none of it waits in the queue of the model: it is for looking at
/// texts, not for bulk.
pub const MAX_TOKENIZE_BYTES: usize = 256 * 1024;

/// Text Embeddings Inference, of Hugging Face.
pub static TEI: Dialect = Dialect {
    name: "tei",
    operations: &[
        // Before the rerankings: where both are asked for at one path, `inputs` means this one.
        Operation::new(
            "tei_predict",
            Kind::Predict,
            &[],
            predict::read,
            |schemas| {
                let example = example!("tei/predict_batch");
                Form::of::<PredictRequest, PredictBody, TeiError>(schemas, example)
            },
        )
        .told_by(
            // One text is a string.
            Signature::any(&[Mark("inputs", &[ValueKind::List, ValueKind::Text])])
                .unless(&[Mark("pairs", &[ValueKind::List])]),
        ),
        Operation::new(
            "tei",
            Kind::Rerank,
            &[
                Path::shared("/", &[Kind::Predict, Kind::Rerank]),
                Path::shared("/invocations", &[Kind::Predict, Kind::Rerank]),
            ],
            rerank::<TeiRequest>,
            |schemas| Form {
                request: reference::<TeiRequest>(schemas),
                response: list(reference::<TeiRank>(schemas)),
                error: reference::<TeiError>(schemas),
                example: example!("tei/ranks"),
            },
        )
        .told_by(
            Signature::any(&[Mark("texts", &[ValueKind::List])])
                .unless(&[Mark("documents", &[ValueKind::List])]),
        ),
        Operation {
            max_body_bytes: Some(MAX_TOKENIZE_BYTES),
            ..Operation::new(
                "tei_tokenize",
                Kind::Tokenize,
                &[Path::own("/tokenize")],
                tokenize::read_texts,
                |schemas| Form {
                    request: reference::<TokenizeRequest>(schemas),
                    response: list(list(reference::<Token>(schemas))),
                    error: reference::<TeiError>(schemas),
                    example: example!("tei/tokenize"),
                },
            )
        },
        Operation {
            max_body_bytes: Some(MAX_TOKENIZE_BYTES),
            ..Operation::new(
                "tei_decode",
                Kind::Decode,
                &[Path::own("/decode")],
                tokenize::read_ids,
                |schemas| Form {
                    request: reference::<DecodeRequest>(schemas),
                    response: list(serde_json::json!({ "type": "string" })),
                    error: reference::<TeiError>(schemas),
                    example: example!("tei/decode"),
                },
            )
        },
    ],
    error,
};

request! {
    /// A reranking as TEI reads it; `texts` tells it from others on a shared path.
    pub struct TeiRequest as TeiRerankRequest {
        /// What the texts are judged by.
        query: Query as TextSchema,
        /// The texts that are ranked.
        texts: List<String> as Vec<String> { min_items = 1 },
        /// Most results; all without. Not in TEI, but its clients send it.
        top_n?: NonZeroUsize as Option<Count>,
        /// Whether texts that are too long are cut; otherwise they are refused.
        truncate?: bool as Option<Flag>,
        /// Which end is cut.
        truncation_direction?: TruncationSide as Option<Direction>,
        /// Logits instead of scores between 0 and 1.
        raw_scores?: bool as Option<Flag>,
        /// Whether each result repeats its text.
        return_text?: bool as Option<Flag>,
    }
}

/// An end of a text.
#[derive(ToSchema)]
#[schema(as = TeiTruncationDirection)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
enum Direction {
    #[schema(rename = "left")]
    LowerLeft,
    #[schema(rename = "right")]
    LowerRight,
    Left,
    Right,
}

/// What the answer repeats.
#[derive(Debug)]
pub struct Kept {
    return_text: bool,
}

impl RerankRequest for TeiRequest {
    type Kept = Kept;

    fn model(&self) -> Option<&str> {
        None
    }

    fn into_command(self, served: &Served<'_>) -> Result<(RerankCommand, Kept), RerankError> {
        let limits = &served.limits;
        let options = options(self.raw_scores, self.truncate, self.truncation_direction);
        let query = self.query.ok_or_else(|| missing("query"))?.into();
        let texts = self.texts.ok_or_else(|| missing("texts"))?;
        let texts = texts.texts("texts", limits)?;
        let command = RerankCommand::new(query, texts, self.top_n, options, limits)?
            .with_ties(TieOrder::ReverseOrder);
        let return_text = self.return_text.unwrap_or(false);
        Ok((command, Kept { return_text }))
    }

    fn fill<'a>(answer: &RankingAnswer<'a>, kept: &'a Kept) -> impl Serialize + 'a {
        let rank = |ranked: &rerankd_core::Ranked| TeiRank {
            index: ranked.index,
            text: (kept.return_text).then(|| &*answer.pairs[ranked.index].document),
            score: ranked.score,
        };
        answer
            .ranking
            .results
            .iter()
            .map(rank)
            .collect::<Vec<TeiRank<'a>>>()
    }
}

/// The options of scores that TEI's requests have: whether they are logits, whether texts that are too long
/// are cut, and at which end. Without a side, the tokenizer decides.
pub fn options(
    raw: Option<bool>,
    truncate: Option<bool>,
    side: Option<TruncationSide>,
) -> ScoreOptions {
    ScoreOptions {
        scale: Scale::unit_or_raw(raw),
        truncate: TruncationPolicy::from_flag(truncate),
        truncation: TruncationOptions {
            side,
            ..TruncationOptions::default()
        },
        ..ScoreOptions::default()
    }
}

/// One text's place; the answer is a bare list of them, best first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TeiRank)]
pub struct TeiRank<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    score: f32,
}

/// Body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TeiError)]
pub struct TeiError<'a> {
    error: &'a str,
    error_type: ErrorType,
}

/// TEI's kinds of failure.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[schema(as = TeiErrorType)]
enum ErrorType {
    Unhealthy,
    Backend,
    Overloaded,
    Validation,
    Empty,
}

fn error(problem: &Problem<'_>) -> Reply {
    let usual = problem.status;
    let (status, error_type) = match problem.code {
        None => (usual, ErrorType::Validation),
        Some(code) => match code {
            ErrorCode::InvalidRequest => (StatusCode::UNPROCESSABLE_ENTITY, ErrorType::Validation),
            ErrorCode::Malformed | ErrorCode::UnknownModel | ErrorCode::TooLarge => {
                (usual, ErrorType::Validation)
            }
            ErrorCode::Empty => (StatusCode::BAD_REQUEST, ErrorType::Empty),
            ErrorCode::Unsupported | ErrorCode::Internal => {
                (StatusCode::FAILED_DEPENDENCY, ErrorType::Backend)
            }
            ErrorCode::Overloaded | ErrorCode::TooLate | ErrorCode::DeadlinePassed => {
                (usual, ErrorType::Overloaded)
            }
            ErrorCode::NotReady | ErrorCode::Draining => (usual, ErrorType::Unhealthy),
        },
    };
    let error = problem.message;
    Reply::json(status, &TeiError { error, error_type })
}
