//! Dialects as data: what each reads, where, and how its bodies are told from others.

use std::fmt;

use bytes::Bytes;
use rerankd_core::{
    Fusion, Limits, PredictCommand, Prediction, Priority, Ranking, RerankCommand, RerankError,
    SchedulingHints,
};
use serde::Serialize;

use crate::answer::{Context, RankingAnswer, Token};
use crate::error::{Problem, Reply, to_json};
use crate::read::{self, Read};
use crate::schema::{Form, Schemas};

/// A wire format.
pub struct Dialect {
    /// Its name in log lines.
    pub name: &'static str,
    /// What its clients ask for.
    pub operations: &'static [Operation],
    /// The answer to a request that failed.
    pub error: fn(&Problem<'_>) -> Reply,
}

impl fmt::Debug for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Reads a body as a request.
pub type ReadBody = fn(Body, &Served<'_>) -> Result<Asked, RerankError>;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Orders documents by their score for a query.
    Rerank,
    /// Gives every score of each pair.
    Predict,
    /// Gives one score of each pair.
    Score,
    /// Gives scores as tensors.
    Infer,
    /// Shows the tokens of texts.
    Tokenize,
    /// Shows the text of tokens.
    Decode,
}

impl Kind {
    /// Whether the model is asked.
    pub fn scores(self) -> bool {
        match self {
            Self::Rerank | Self::Predict | Self::Score | Self::Infer => true,
            Self::Tokenize | Self::Decode => false,
        }
    }
}

/// One kind of request of a dialect.
pub struct Operation {
    /// Its name among the examples of the API's description.
    pub name: &'static str,
    /// What it does.
    pub kind: Kind,
    /// Where it is asked for with `POST`, and is what a body is read as that matches nothing else.
    pub paths: &'static [Path],
    /// The marks that tell its bodies from others on a shared path.
    pub signature: Signature,
    /// The largest body, where it is smaller than the server's limit.
    pub max_body_bytes: Option<usize>,
    /// The header that says how many bytes of the body are JSON, where others may follow.
    pub json_length_header: Option<&'static str>,
    /// Fields of its documentation that are passed over: what it is read by elsewhere passes over them
    /// too, or the answer does not depend on them.
    pub ignored: &'static [&'static str],
    /// Reads a body.
    pub read: ReadBody,
    /// What its bodies look like.
    pub form: fn(&mut Schemas) -> Form,
}

impl Operation {
    /// An operation at `paths`, with the server's limit and nothing behind the JSON.
    pub const fn new(
        name: &'static str,
        kind: Kind,
        paths: &'static [Path],
        read: ReadBody,
        form: fn(&mut Schemas) -> Form,
    ) -> Self {
        Self {
            name,
            kind,
            paths,
            signature: Signature::NONE,
            max_body_bytes: None,
            json_length_header: None,
            ignored: &[],
            read,
            form,
        }
    }

    /// The same operation, whose documentation has these fields too.
    pub const fn ignoring(self, ignored: &'static [&'static str]) -> Self {
        Self { ignored, ..self }
    }

    /// The same operation, known on shared paths by `signature`.
    pub const fn told_by(self, signature: Signature) -> Self {
        Self { signature, ..self }
    }
}

/// A key that tells a body if its value is of one of these kinds; null, and every other kind, tell nothing.
#[derive(Debug, Clone, Copy)]
pub struct Mark(pub &'static str, pub &'static [ValueKind]);

/// What a value is in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// `true` or `false`.
    Flag,
    /// A number.
    Number,
    /// A string.
    Text,
    /// A list.
    List,
    /// An object.
    Object,
}

impl ValueKind {
    /// A flag, which may be written as a string.
    pub const FLAG: &'static [Self] = &[Self::Flag, Self::Text];
    /// A count, which may be written as a string.
    pub const COUNT: &'static [Self] = &[Self::Number, Self::Text];
    /// Whatever is not null.
    pub const ANY: &'static [Self] = &[
        Self::Flag,
        Self::Number,
        Self::Text,
        Self::List,
        Self::Object,
    ];
}

/// The keys that tell the bodies of an operation.
#[derive(Debug, Clone, Copy)]
pub struct Signature {
    /// One of these is enough.
    pub any: &'static [Mark],
    /// Or all of these.
    pub all: &'static [Mark],
    /// Or a model whose name begins so: its clients' own, whoever serves it.
    pub models: &'static [&'static str],
    /// A body with one of these is another's.
    pub none: &'static [Mark],
    /// A header that only its clients send, and how its value begins. It tells more than the body.
    pub header: Option<(&'static str, &'static str)>,
}

impl Signature {
    /// No body is told by its keys.
    pub const NONE: Self = Self {
        any: &[],
        all: &[],
        models: &[],
        none: &[],
        header: None,
    };

    /// A body with one of these marks.
    pub const fn any(any: &'static [Mark]) -> Self {
        Self { any, ..Self::NONE }
    }

    /// The same, unless it has one of these.
    pub const fn unless(self, none: &'static [Mark]) -> Self {
        Self { none, ..self }
    }

    /// The same, with a header that tells it too.
    pub const fn or_header(self, name: &'static str, start: &'static str) -> Self {
        let header = Some((name, start));
        Self { header, ..self }
    }

    /// The same, with names of models that tell it too.
    pub const fn or_models(self, models: &'static [&'static str]) -> Self {
        Self { models, ..self }
    }

    /// Whether some request is told from those at a path that is another's.
    pub fn tells(&self) -> bool {
        !self.any.is_empty() || !self.all.is_empty() || self.header.is_some()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &'static str> {
        let lists = [self.any, self.all, self.none];
        lists.into_iter().flatten().map(|mark| mark.0)
    }

    /// Whether a body is meant that has values of these kinds under the keys `found`, and asks for `model`.
    pub(crate) fn matches(&self, found: &[(&str, ValueKind)], model: &str) -> bool {
        let has = |mark: &Mark| {
            let is = |(key, kind): &(&str, ValueKind)| *key == mark.0 && mark.1.contains(kind);
            found.iter().any(is)
        };
        let all = !self.all.is_empty() && self.all.iter().all(has);
        let named = self.models.iter().any(|start| model.starts_with(start));
        (all || named || self.any.iter().any(has)) && !self.none.iter().any(has)
    }
}

/// A path of an operation.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    /// Such as `/rerank`.
    pub path: &'static str,
    /// The kinds of operations of other dialects that its bodies may ask for.
    pub shared_with: &'static [Kind],
}

impl Path {
    /// A path of this operation alone, for clients whose bodies do not tell their dialect.
    pub const fn own(path: &'static str) -> Self {
        let shared_with = &[];
        Self { path, shared_with }
    }

    /// A path that is shared with operations of these kinds.
    pub const fn shared(path: &'static str, shared_with: &'static [Kind]) -> Self {
        Self { path, shared_with }
    }
}

/// An operation and the dialect that it is of.
#[derive(Clone, Copy)]
pub struct Endpoint {
    /// The dialect.
    pub dialect: &'static Dialect,
    /// The operation.
    pub operation: &'static Operation,
}

/// A request's body.
#[derive(Debug, Clone, Default)]
pub struct Body {
    /// JSON.
    pub json: Bytes,
    /// What follows it.
    pub binary: Bytes,
}

/// A model that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedModel {
    /// Its name.
    pub name: String,
    /// Other names of it.
    pub aliases: Vec<String>,
    /// Names of its scores.
    pub labels: Vec<String>,
}

impl ServedModel {
    /// Whether it is meant by `name`.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.aliases.iter().any(|alias| alias == name)
    }
}

/// What a request is read against.
#[derive(Debug, Clone, Copy)]
pub struct Served<'a> {
    /// The models that are served; never empty.
    pub models: &'a [ServedModel],
    /// Names and aliases of models that should be served, and failed to load.
    pub failed: &'a [String],
    /// Which of the models answers: the default one, until the request asks for another.
    pub chosen: usize,
    /// Whether requests for models that are not served are refused.
    pub strict_model_name: bool,
    /// Whether results repeat their documents where a request does not say, in dialects that have a
    /// field for it.
    pub return_documents: bool,
    /// The most that one request may ask for.
    pub limits: Limits,
}

impl Served<'_> {
    /// The same, with the model that `asked` names as the one that answers. A name that is not known changes
    /// nothing, unless names are strict.
    ///
    /// # Errors
    /// [`RerankError::unknown_model`], and [`RerankError::failed_model`] in any case.
    pub fn select(self, asked: Option<&str>) -> Result<Self, RerankError> {
        let Some(asked) = asked else {
            return Ok(self);
        };
        match self.models.iter().position(|model| model.is_called(asked)) {
            Some(chosen) => Ok(Self { chosen, ..self }),
            None if self.failed.iter().any(|name| name == asked) => {
                Err(RerankError::failed_model(asked))
            }
            None if self.strict_model_name => {
                let served: Vec<&str> = self.models.iter().map(|model| &*model.name).collect();
                Err(RerankError::unknown_model(asked, &served))
            }
            None => Ok(self),
        }
    }

    /// The names of the scores of the model that answers.
    pub fn labels(&self) -> &[String] {
        &self.models[self.chosen].labels
    }

    /// A request that this model answers with `work`.
    pub fn asked(&self, work: Work) -> Asked {
        Asked {
            model: self.chosen,
            work,
        }
    }
}

/// A request that was read.
pub struct Asked {
    /// Which of the served models answers.
    pub model: usize,
    /// What it asks for.
    pub work: Work,
}

/// Writes a result as an answer in JSON.
pub type Fill<T> = Box<dyn FnOnce(&Context<'_>, &T) -> Vec<u8> + Send>;

/// What a request asks of the service, and how its answer is written.
pub enum Work {
    /// A ranking.
    Rerank(RerankCommand, Fill<Ranking>),
    /// Scores in the order of the request.
    Predict(PredictCommand, Fill<Prediction>),
    /// The tokens of texts.
    Tokenize {
        /// The texts.
        texts: Vec<String>,
        /// Whether the tokens around a text are shown.
        special_tokens: bool,
        /// Writes the answer.
        fill: Fill<Vec<Vec<Token>>>,
    },
    /// The text of tokens.
    Decode {
        /// Token ids, one list a text.
        ids: Vec<Vec<u32>>,
        /// Whether special tokens are left out.
        skip_special_tokens: bool,
        /// Writes the answer.
        fill: Fill<Vec<String>>,
    },
}

/// How one dialect asks for a reranking and reads the answer.
pub(crate) trait RerankRequest: Read + 'static {
    /// What the answer repeats of the request.
    type Kept: Send + 'static;

    /// The model that is asked for.
    fn model(&self) -> Option<&str>;

    /// How urgent the request is.
    fn priority(&self) -> Priority {
        Priority::default()
    }

    /// The command this request spells.
    ///
    /// # Errors
    /// When something is missing, contradicts itself or is beyond the limits of what is `served`.
    fn into_command(self, served: &Served<'_>) -> Result<(RerankCommand, Self::Kept), RerankError>;

    /// The body that tells `answer`.
    fn fill<'a>(answer: &RankingAnswer<'a>, kept: &'a Self::Kept) -> impl Serialize + 'a;
}

/// Reads a reranking.
pub(crate) fn rerank<T: RerankRequest>(
    body: Body,
    served: &Served<'_>,
) -> Result<Asked, RerankError> {
    let request: T = read::parse(&body.json, &served.limits)?;
    // Its texts are copied from here on.
    drop(body);
    let served = served.select(request.model())?;
    let hints = with_priority(request.priority());
    let (command, kept) = request.into_command(&served)?;
    let command = command.with_hints(hints);
    let pairs = command.scoring().pairs().clone();
    let fusion = command.fusion().cloned();
    let fill = move |context: &Context<'_>, ranking: &Ranking| {
        let answer = RankingAnswer {
            context,
            pairs: &pairs,
            first_stage: fusion.as_deref().map(Fusion::first_stage),
            ranking,
        };
        to_json(&T::fill(&answer, &kept))
    };
    Ok(served.asked(Work::Rerank(command, Box::new(fill))))
}

/// The scheduling hints of a request of this `priority`.
pub(crate) fn with_priority(priority: Priority) -> SchedulingHints {
    SchedulingHints {
        priority,
        ..SchedulingHints::default()
    }
}
