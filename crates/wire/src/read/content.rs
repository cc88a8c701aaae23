//! Texts that may come as objects: with the text, or with the parts that it is made of.

use rerankd_core::{Limits, RerankError, Texts};
use serde::de::{Error, MapAccess, SeqAccess};
use utoipa::ToSchema;

use super::list::List;
use super::scalar::Refused;
use super::{Path, Place, Read, Reader, next_known, value_of};
use crate::error::missing;
use crate::fusion::Evidence;

/// A string, or an object that holds one under `text`, or its parts under `content`.
#[derive(Debug)]
pub struct TextObject(String);

impl From<TextObject> for String {
    fn from(text: TextObject) -> Self {
        text.0
    }
}

impl Read for TextObject {
    const EXPECTED: &'static str = "a string or an object with `text`";

    fn string<E: Error>(_: Place<'_>, text: &str) -> Result<Self, E> {
        Ok(Self(text.to_owned()))
    }

    fn object<'de, M: MapAccess<'de>>(at: Place<'_>, map: M) -> Result<Self, M::Error> {
        text_of(at, map)?.map(Self).ok_or_else(|| without_text(at))
    }
}

/// A text as [`TextObject`], with what a first stage said of it under `score` or `rank`.
#[derive(Debug)]
pub struct Candidate {
    text: String,
    /// What it says of the first stage.
    pub evidence: Evidence,
}

impl From<Candidate> for String {
    fn from(candidate: Candidate) -> Self {
        candidate.text
    }
}

impl Read for Candidate {
    const EXPECTED: &'static str = TextObject::EXPECTED;

    fn string<E: Error>(_: Place<'_>, text: &str) -> Result<Self, E> {
        let (text, evidence) = (text.to_owned(), Evidence::default());
        Ok(Self { text, evidence })
    }

    fn object<'de, M: MapAccess<'de>>(at: Place<'_>, map: M) -> Result<Self, M::Error> {
        let mut evidence = Evidence::default();
        let text = text_and_evidence(at, map, Some(&mut evidence))?;
        let text = text.ok_or_else(|| without_text(at))?;
        Ok(Self { text, evidence })
    }
}

fn without_text<E: Error>(at: Place<'_>) -> E {
    E::custom(format_args!("{} has no `text`; add it", at.path))
}

/// The same, where hardly a client sends an object.
#[derive(Debug)]
pub struct Query(String);

impl From<Query> for String {
    fn from(query: Query) -> Self {
        query.0
    }
}

impl Read for Query {
    const EXPECTED: &'static str = "a string";

    fn string<E: Error>(_: Place<'_>, text: &str) -> Result<Self, E> {
        Ok(Self(text.to_owned()))
    }

    fn object<'de, M: MapAccess<'de>>(at: Place<'_>, map: M) -> Result<Self, M::Error> {
        TextObject::object(at, map).map(|text| Self(text.0))
    }
}

/// The query and the documents of a request that calls them `query` and `documents`.
///
/// # Errors
/// If one is missing, or there are too many documents.
pub fn query_and_documents<Q: Into<String>, D: Into<String>>(
    query: Option<Q>,
    documents: Option<List<D>>,
    limits: &Limits,
) -> Result<(String, Texts), RerankError> {
    let query = query.ok_or_else(|| missing("query"))?.into();
    let documents = documents.ok_or_else(|| missing("documents"))?;
    Ok((query, documents.texts("documents", limits)?))
}

/// The text of an object; `None` where it has none.
///
/// # Errors
/// When `text` is no string, a part under `content` is no text, or there is a picture beside the text.
pub fn text_of<'de, M: MapAccess<'de>>(at: Place<'_>, map: M) -> Result<Option<String>, M::Error> {
    text_and_evidence(at, map, None)
}

fn text_and_evidence<'de, M: MapAccess<'de>>(
    at: Place<'_>,
    mut map: M,
    mut evidence: Option<&mut Evidence>,
) -> Result<Option<String>, M::Error> {
    let (mut text, mut content) = (None, None);
    let names: &[&'static str] = match evidence {
        Some(_) => &["text", "content", "image", "video", "score", "rank"],
        None => &["text", "content", "image", "video"],
    };
    while let Some(key) = next_known(&mut map, names)? {
        let path = Path::Key(at.path, key);
        let at = at.at(&path);
        match key {
            "text" => text = map.next_value_seed(Reader::<Option<String>>::at(at))?,
            "content" => content = map.next_value_seed(Reader::<Option<Parts>>::at(at))?,
            "image" | "video" => {
                map.next_value_seed(Reader::<Option<Refused>>::at(at))?;
            }
            _ => {
                if let Some(evidence) = evidence.as_deref_mut() {
                    evidence.read_value(key, at, &mut map)?;
                }
            }
        }
    }
    Ok(text.or(content.map(|parts| parts.0)))
}

/// The texts of a content's parts, one after the other.
#[derive(Debug)]
pub struct Parts(pub String);

impl Read for Parts {
    const EXPECTED: &'static str = "a list of parts";

    fn string<E: Error>(_: Place<'_>, text: &str) -> Result<Self, E> {
        Ok(Self(text.to_owned()))
    }

    fn list<'de, S: SeqAccess<'de>>(at: Place<'_>, mut items: S) -> Result<Self, S::Error> {
        let (mut text, mut index) = (String::new(), 0);
        loop {
            let path = Path::Item(at.path, index);
            match items.next_element_seed(Reader::<Part>::at(at.at(&path)))? {
                Some(part) => text.push_str(&part.0),
                None => return Ok(Self(text)),
            }
            index += 1;
        }
    }
}

struct Part(String);

impl Read for Part {
    const EXPECTED: &'static str = "a part with a `text`";

    fn object<'de, M: MapAccess<'de>>(at: Place<'_>, map: M) -> Result<Self, M::Error> {
        value_of(at, map, "text", "this model reads nothing else").map(Self)
    }
}

/// One text, or a list of them.
#[derive(Debug)]
pub struct Contents(pub List<TextObject>);

impl Contents {
    fn one(content: TextObject, at: Place<'_>) -> Self {
        let mut list = List::default();
        list.push(content, at.limits);
        Self(list)
    }
}

impl Read for Contents {
    const EXPECTED: &'static str = "a text or a list of texts";

    fn string<E: Error>(at: Place<'_>, text: &str) -> Result<Self, E> {
        Ok(Self::one(TextObject(text.to_owned()), at))
    }

    fn object<'de, M: MapAccess<'de>>(at: Place<'_>, map: M) -> Result<Self, M::Error> {
        Ok(Self::one(TextObject::object(at, map)?, at))
    }

    fn list<'de, S: SeqAccess<'de>>(at: Place<'_>, items: S) -> Result<Self, S::Error> {
        List::list(at, items).map(Self)
    }
}

/// What [`TextObject`] takes, for the API's description.
#[derive(ToSchema)]
#[schema(as = Text)]
#[serde(untagged)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
pub enum TextSchema {
    /// A text.
    Text(String),
    /// A text in an object.
    Object { text: String },
    /// Its parts.
    Content { content: PartsSchema },
}

/// What [`Candidate`] takes, for the API's description.
#[derive(ToSchema)]
#[schema(as = Candidate)]
#[serde(untagged)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
pub enum CandidateSchema {
    /// A text.
    Text(String),
    /// A text in an object.
    Object {
        text: String,
        /// What a first stage gave it; higher is better.
        score: Option<serde_json::Value>,
        /// Its place in a first stage, from 1.
        rank: Option<serde_json::Value>,
    },
    /// Its parts.
    Content { content: PartsSchema },
}

/// What [`Parts`] takes, for the API's description.
#[derive(ToSchema)]
#[schema(as = TextParts)]
#[serde(untagged)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
pub enum PartsSchema {
    /// All of it.
    Text(String),
    /// One after the other.
    Parts(Vec<PartSchema>),
}

/// A part of a text.
#[derive(ToSchema)]
#[schema(as = TextPart)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
pub struct PartSchema {
    r#type: Option<serde_json::Value>,
    text: String,
}
