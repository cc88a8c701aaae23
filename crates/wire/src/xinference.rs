//! Xinference's `POST /v1/rerank`, as its own client and RAGFlow ask for it.

use std::num::NonZeroUsize;

use rerankd_core::{
    Instruction, RerankCommand, RerankError, Scale, ScoreOptions, TruncationOptions,
};
use serde::Serialize;
use serde::de::{Error, MapAccess};
use utoipa::ToSchema;

use super::answer::RankingAnswer;
use super::dialect::{
    Dialect, Kind, Mark, Operation, Path, RerankRequest, Served, Signature, ValueKind, rerank,
};
use super::native::{self, NativeError};
use super::read::content::{Query, TextObject, TextSchema, query_and_documents};
use super::read::form::{Chunks, Count, Flag};
use super::read::list::List;
use super::read::scalar::{ModelName, Refused};
use super::read::{Place, Read, Reader, request, unexpected};
use super::schema::{Form, example};
use super::usage::Usage;

/// Xinference, whose client reads `detail` of an error.
pub static XINFERENCE: Dialect = Dialect {
    name: "xinference",
    operations: &[Operation::new(
        "xinference",
        Kind::Rerank,
        &[Path::own("/xinference/v1/rerank")],
        rerank::<XinferenceRequest>,
        |schemas| {
            let example = example!("xinference/ranks");
            Form::of::<XinferenceRequest, XinferenceResponse, NativeError>(schemas, example)
        },
    )
    // Its client always sends the first, RAGFlow the last.
    .told_by(Signature::any(&[
        Mark("kwargs", &[ValueKind::Text]),
        Mark("return_len", ValueKind::FLAG),
    ]))],
    error: native::ERROR,
};

request! {
    /// A reranking as Xinference reads it; `kwargs` or `return_len` tells it from others on a shared
    /// path.
    pub struct XinferenceRequest as XinferenceRerankRequest {
        /// Any name, unless the server is strict.
        model?: ModelName as Option<serde_json::Value>,
        /// What the documents are judged by.
        query: Query as TextSchema,
        /// The texts that are ranked.
        documents: List<TextObject> as Vec<TextSchema> { min_items = 1 },
        /// Most results; all without.
        top_n?: NonZeroUsize as Option<Count>,
        /// Parts a long document may be read in; it is as good as its best. Without, one.
        max_chunks_per_doc?: NonZeroUsize as Option<Chunks>,
        /// Whether each result repeats its document.
        return_documents?: bool as Option<Flag>,
        /// Whether the answer counts the tokens.
        return_len?: bool as Option<Flag>,
        /// What the documents are judged by, beside the query; for models that take an instruction.
        instruction?: String as Option<String>,
        /// Further arguments of its client as JSON in a string, of which `instruction` is read.
        kwargs?: Arguments as Option<String>,
    }
}

/// What its client passes on to the model.
#[derive(Debug, Default)]
struct Arguments {
    instruction: Option<String>,
}

impl Read for Arguments {
    const EXPECTED: &'static str = "a string with a JSON object";

    fn string<E: Error>(at: Place<'_>, text: &str) -> Result<Self, E> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let mut json = serde_json::Deserializer::from_str(text);
        let arguments = ArgumentsObject::read(at, &mut json);
        let arguments = arguments.and_then(|arguments| json.end().map(|()| arguments.0));
        // The parser's position is in the string, not in the body.
        arguments.map_err(|error| match error.is_data() {
            true => E::custom(format_args!(
                "{} may only have a string `instruction`; leave other arguments out",
                at.path
            )),
            false => unexpected::<Self, E>(at, &"another string"),
        })
    }
}

/// The object in the string.
struct ArgumentsObject(Arguments);

impl Read for ArgumentsObject {
    const EXPECTED: &'static str = "a JSON object";

    fn object<'de, M: MapAccess<'de>>(at: Place<'_>, mut map: M) -> Result<Self, M::Error> {
        let mut arguments = Arguments::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == "instruction" {
                arguments.instruction = map.next_value_seed(Reader::<Option<String>>::at(at))?;
            } else {
                map.next_value_seed(Reader::<Option<Refused>>::at(at))?;
            }
        }
        Ok(Self(arguments))
    }
}

/// What the answer repeats.
#[derive(Debug)]
pub struct Kept {
    documents: bool,
    tokens: bool,
}

impl RerankRequest for XinferenceRequest {
    type Kept = Kept;

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn into_command(self, served: &Served<'_>) -> Result<(RerankCommand, Kept), RerankError> {
        let limits = &served.limits;
        let (query, documents) = query_and_documents(self.query, self.documents, limits)?;
        let options = ScoreOptions {
            scale: Scale::Unit,
            truncation: TruncationOptions {
                max_chunks: self.max_chunks_per_doc,
                ..TruncationOptions::default()
            },
            ..ScoreOptions::default()
        };
        let arguments = self.kwargs.unwrap_or_default();
        let instruction = self.instruction.or(arguments.instruction);
        let command = RerankCommand::new(query, documents, self.top_n, options, limits)?
            .with_instruction(Instruction::from_fields(instruction, None));
        let kept = Kept {
            documents: self.return_documents.unwrap_or(served.return_documents),
            tokens: self.return_len.unwrap_or(false),
        };
        Ok((command, kept))
    }

    fn fill<'a>(answer: &RankingAnswer<'a>, kept: &'a Kept) -> impl Serialize + 'a {
        let result = |ranked: &rerankd_core::Ranked| Ranked {
            index: ranked.index,
            relevance_score: ranked.score,
            document: kept.documents.then(|| Document {
                text: &answer.pairs[ranked.index].document,
            }),
        };
        XinferenceResponse {
            id: answer.context.id,
            model: answer.context.model,
            results: answer.ranking.results.iter().map(result).collect(),
            meta: Meta {
                api_version: (),
                billed_units: (),
                tokens: kept.tokens.then_some(Tokens {
                    input_tokens: answer.ranking.tokens,
                    output_tokens: 0,
                }),
                warnings: (),
            },
            usage: Usage::new(answer.ranking.tokens),
        }
    }
}

/// Answer of Xinference.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = XinferenceRerankResponse)]
pub struct XinferenceResponse<'a> {
    id: &'a str,
    model: &'a str,
    results: Vec<Ranked<'a>>,
    meta: Meta,
    usage: Usage,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = XinferenceRanked)]
struct Ranked<'a> {
    index: usize,
    relevance_score: f32,
    /// Null where it was not asked for.
    document: Option<Document<'a>>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = XinferenceDocument)]
struct Document<'a> {
    text: &'a str,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = XinferenceMeta)]
struct Meta {
    api_version: (),
    billed_units: (),
    /// Null where they were not asked for.
    tokens: Option<Tokens>,
    warnings: (),
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = XinferenceTokens)]
struct Tokens {
    input_tokens: usize,
    output_tokens: usize,
}
