//! Documents that may be objects, and what comes back of them.

use std::cell::RefCell;

use rerankd_core::{Limits, RerankError, Texts};
use serde::Serialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::answer::{DocumentForm, RankingAnswer};
use super::fusion::Evidence;
use super::read::content::{PartsSchema, text_of};
use super::read::list::List;
use super::read::{Path, Place, Read, Reader, half_a_pair, is_half_a_pair, next_known, unexpected};

/// Most fields of one document that are ranked together: more than any schema for search has.
const MAX_RANK_FIELDS: usize = 64;

/// A document as its client sent it. An object stays JSON: it comes back as it is, and is never
/// larger in memory than in the body.
#[derive(Debug, ToSchema)]
#[schema(as = DocumentItem)]
#[serde(untagged)]
pub enum Item {
    /// A text.
    Text(String),
    /// An object, which comes back as it is.
    #[schema(value_type = TextItem)]
    Object(Box<RawValue>),
}

/// An object that needs no `rank_fields`.
#[derive(ToSchema)]
#[schema(as = TextObject)]
#[serde(untagged)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
enum TextItem {
    Text {
        /// A string, or what is written as one.
        text: serde_json::Value,
    },
    Content {
        content: PartsSchema,
    },
}

impl Read for Item {
    const EXPECTED: &'static str = "a string or an object";

    fn read<'de, D: Deserializer<'de>>(at: Place<'_>, value: D) -> Result<Self, D::Error> {
        let raw = <&RawValue as serde::Deserialize>::deserialize(value)?;
        match raw.get().as_bytes() {
            [b'"', ..] => text(raw.get()).map(Self::Text),
            [b'{', ..] => Ok(Self::Object(raw.to_owned())),
            [b'[', ..] => Err(unexpected::<Self, D::Error>(at, &"sequence")),
            [b'n', ..] => Err(unexpected::<Self, D::Error>(at, &"null")),
            [b't' | b'f', ..] => Err(unexpected::<Self, D::Error>(at, &"boolean")),
            _ => Err(unexpected::<Self, D::Error>(at, &"a number")),
        }
    }
}

/// The text of a JSON string.
fn text<E: Error>(json: &str) -> Result<String, E> {
    // Without the position in the string, which would replace that in the body.
    serde_json::from_str(json).map_err(|_| E::custom("unexpected end of hex escape"))
}

/// The fields of a document that are ranked, each once: a field that is named again would repeat its
/// text, and a short list of names could make a large document many times larger.
#[derive(Debug, Default)]
pub struct RankFields(Vec<String>);

impl Read for RankFields {
    const EXPECTED: &'static str = "a list";

    fn list<'de, S: SeqAccess<'de>>(at: Place<'_>, mut items: S) -> Result<Self, S::Error> {
        let (mut names, mut index) = (Vec::new(), 0);
        loop {
            let path = Path::Item(at.path, index);
            let Some(name) = items.next_element_seed(Reader::<String>::at(at.at(&path)))? else {
                return Ok(Self(names));
            };
            if !names.contains(&name) {
                if names.len() == MAX_RANK_FIELDS {
                    return Err(S::Error::custom(format_args!(
                        "{} names more than {MAX_RANK_FIELDS} fields; name fewer",
                        at.path
                    )));
                }
                names.push(name);
            }
            index += 1;
        }
    }
}

/// A document in an answer.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Document<'a> {
    /// A text in an object.
    Object {
        /// The text.
        text: &'a str,
    },
    /// A bare text.
    String(&'a str),
    /// The object that the client sent.
    #[schema(value_type = Object)]
    Kept(&'a RawValue),
}

/// What an answer repeats of its documents.
#[derive(Debug, Default)]
pub struct Echo {
    wanted: bool,
    /// The documents that came as objects, by position; empty when none did.
    objects: Vec<Option<Box<RawValue>>>,
}

impl Echo {
    /// Repeats plain texts, where `wanted`.
    pub fn of_texts(wanted: bool) -> Self {
        let objects = Vec::new();
        Self { wanted, objects }
    }

    /// Takes `items` apart: the text of each that is ranked, and what is repeated where `wanted`.
    ///
    /// # Errors
    /// When there are none or too many, or an object has none of the fields that are ranked.
    pub fn of_items(
        wanted: bool,
        field: &'static str,
        items: List<Item>,
        rank_fields: Option<&RankFields>,
        limits: &Limits,
    ) -> Result<(Texts, Self), RerankError> {
        let mut echo = Self::of_texts(wanted);
        let items = items.within(field, limits)?;
        let mut texts = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            match item {
                Item::Text(text) => texts.push(text),
                Item::Object(object) => {
                    let path = Path::Field(field);
                    let path = Path::Item(&path, index);
                    let place = Place {
                        path: &path,
                        limits,
                        broken: &RefCell::default(),
                    };
                    texts.push(ranked_text(&object, rank_fields, place)?);
                    if wanted {
                        echo.objects.resize(index, None);
                        echo.objects.push(Some(object));
                    }
                }
            }
        }
        let items = texts;
        Ok((Texts { field, items }, echo))
    }

    /// The document at `index`, as its client sent it or else as `form` says.
    pub fn document_as<'a>(
        &'a self,
        form: DocumentForm,
        answer: &RankingAnswer<'a>,
        index: usize,
    ) -> Option<Document<'a>> {
        if !self.wanted || form == DocumentForm::Omit {
            return None;
        }
        if let Some(Some(object)) = self.objects.get(index) {
            return Some(Document::Kept(object));
        }
        let text = &*answer.pairs[index].document;
        Some(match form {
            DocumentForm::String => Document::String(text),
            DocumentForm::Object | DocumentForm::Omit => Document::Object { text },
        })
    }
}

/// What each of `items` says of a first stage. Objects keep it: it comes back with them.
///
/// # Errors
/// When it cannot be read.
pub fn evidence(
    field: &'static str,
    items: &List<Item>,
    limits: &Limits,
) -> Result<Vec<Evidence>, RerankError> {
    let read = |(index, item): (usize, &Item)| match item {
        Item::Text(_) => Ok(Evidence::default()),
        Item::Object(object) => {
            let path = Path::Field(field);
            let path = Path::Item(&path, index);
            let place = Place {
                path: &path,
                limits,
                broken: &RefCell::default(),
            };
            let mut json = serde_json::Deserializer::from_str(object.get());
            Evidence::read(place, &mut json).map_err(|error| refusal(&error, place))
        }
    };
    items.kept().iter().enumerate().map(read).collect()
}

/// The values of the ranked fields, in the order in which they are named, one a line.
fn ranked_text(
    object: &RawValue,
    rank_fields: Option<&RankFields>,
    place: Place<'_>,
) -> Result<String, RerankError> {
    let names: Vec<&str> = match rank_fields {
        Some(RankFields(names)) => names.iter().map(String::as_str).collect(),
        None => vec!["text"],
    };
    let fields = Fields { names: &names };
    let mut json = serde_json::Deserializer::from_str(object.get());
    let values = fields
        .deserialize(&mut json)
        .map_err(|error| refusal(&error, place))?;
    let texts: Vec<String> = values.into_iter().flatten().collect();
    if texts.is_empty() {
        if rank_fields.is_none()
            && let Some(text) = content_of(object, place)?
        {
            return Ok(text);
        }
        let missing = match rank_fields {
            None => "no `text`; add it, or name its fields in `rank_fields`",
            Some(_) => "none of `rank_fields`; add one",
        };
        return Err(RerankError::invalid(format!(
            "{} has {missing}",
            place.path
        )));
    }
    // One text needs no copy.
    match <[String; 1]>::try_from(texts) {
        Ok([text]) => Ok(text),
        Err(texts) => Ok(texts.join("\n")),
    }
}

/// The text of the parts that an object has under `content`.
fn content_of(object: &RawValue, place: Place<'_>) -> Result<Option<String>, RerankError> {
    struct Content(Option<String>);

    impl Read for Content {
        const EXPECTED: &'static str = "an object";

        fn object<'de, M: MapAccess<'de>>(at: Place<'_>, map: M) -> Result<Self, M::Error> {
            text_of(at, map).map(Self)
        }
    }

    let mut json = serde_json::Deserializer::from_str(object.get());
    match Content::read(place, &mut json) {
        Ok(Content(text)) => Ok(text),
        Err(error) => Err(refusal(&error, place)),
    }
}

/// What is wrong with the object at `place`. The parser's position is in that object, not in the body.
fn refusal(error: &serde_json::Error, place: Place<'_>) -> RerankError {
    RerankError::invalid(match is_half_a_pair(error) {
        true => {
            let broken = place.broken.take();
            half_a_pair(&broken.unwrap_or_else(|| place.path.to_string()), "")
        }
        false => error.to_string(),
    })
}

/// The texts of the fields `names` of an object, in this order; `None` for those that are absent or
/// null.
struct Fields<'a> {
    names: &'a [&'a str],
}

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = Vec<Option<String>>;

    fn deserialize<D: Deserializer<'de>>(self, object: D) -> Result<Self::Value, D::Error> {
        object.deserialize_map(self)
    }
}

impl<'de> serde::de::Visitor<'de> for Fields<'_> {
    type Value = Vec<Option<String>>;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut values = vec![None; self.names.len()];
        while let Some(name) = next_known(&mut map, self.names)? {
            let value: &RawValue = map.next_value()?;
            let index = self.names.iter().position(|known| *known == name);
            let index = index.expect("the name is known");
            // The one before gives way first.
            values[index] = None;
            values[index] = match value.get().as_bytes() {
                [b'n', ..] => None,
                [b'"', ..] => Some(text(value.get())?),
                _ => Some(compact(value.get())),
            };
        }
        Ok(values)
    }
}

/// JSON without blanks, and with escapes only where they are needed.
fn compact(json: &str) -> String {
    let (mut out, mut rest) = (String::new(), json);
    while let Some(at) = rest.find(|c: char| c == '"' || c.is_ascii_whitespace()) {
        out.push_str(&rest[..at]);
        let blank = rest.as_bytes()[at] != b'"';
        let end = at + if blank { 1 } else { string_end(&rest[at..]) };
        if !blank {
            let string = &rest[at..end];
            match serde_json::from_str::<String>(string) {
                Ok(text) => out.push_str(&serde_json::Value::from(text).to_string()),
                Err(_) => out.push_str(string),
            }
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// How long the JSON string is that `json` begins with, quotes included.
fn string_end(json: &str) -> usize {
    let mut escaped = true;
    let closing = json.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    });
    closing.map_or(json.len(), |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read;

    const LIMITS: Limits = Limits { max_documents: 9 };

    read::request! {
        /// The fields that choose a document's text.
        pub struct Chosen as Chosen {
            /// Documents.
            documents: List<Item> as Vec<Item>,
            /// Their fields.
            rank_fields?: RankFields as Option<Vec<String>>,
        }
    }

    fn texts(body: &str) -> Result<Vec<String>, RerankError> {
        let request: Chosen = read::parse(body.as_bytes(), &LIMITS)?;
        let items = request.documents.unwrap();
        let fields = request.rank_fields.as_ref();
        Ok(Echo::of_items(true, "documents", items, fields, &LIMITS)?
            .0
            .items)
    }

    #[test]
    fn a_field_that_is_named_again_does_not_repeat_its_text() {
        let names = vec![r#""a","a","b""#; 1000].join(",");
        let body = format!(r#"{{"documents":[{{"a":"x","b":"y"}}],"rank_fields":[{names}]}}"#);
        assert_eq!(texts(&body).unwrap(), ["x\ny"]);
    }

    #[test]
    fn a_flood_of_fields_is_refused() {
        let names: Vec<String> = (0..=MAX_RANK_FIELDS).map(|i| format!("\"{i}\"")).collect();
        let body = format!(r#"{{"documents":[],"rank_fields":[{}]}}"#, names.join(","));
        let error = texts(&body).unwrap_err();
        assert!(error.message().contains("`rank_fields` names more than 64"));
    }

    #[test]
    fn what_is_no_string_is_ranked_as_compact_json() {
        let body = r#"{"documents":[
            {"text": {"b": [1.50, true], "a": "\u00e9 \" \\"}}, {"text": null, "text": 7}, {"text":"\n"}
        ]}"#;
        let expected = [r#"{"b":[1.50,true],"a":"é \" \\"}"#, "7", "\n"];
        assert_eq!(texts(body).unwrap(), expected);
    }

    #[test]
    fn an_object_comes_back_as_it_was_sent() {
        let sent = r#"{ "z": 1.0, "text": "a", "a": [1e2] }"#;
        let body = format!(r#"{{"documents":["b", {sent}]}}"#);
        let request: Chosen = read::parse(body.as_bytes(), &LIMITS).unwrap();
        let items = request.documents.unwrap();
        let (_, echo) = Echo::of_items(true, "documents", items, None, &LIMITS).unwrap();
        let kept = echo.objects[1].as_ref().unwrap();
        assert_eq!(kept.get(), sent);
    }

    #[test]
    fn documents_of_other_kinds_are_named_and_not_quoted() {
        for (item, found) in [
            ("[\"secret\"]", "sequence"),
            ("null", "null"),
            ("12", "a number"),
            ("true", "boolean"),
        ] {
            let error = texts(&format!(r#"{{"documents":["a",{item}]}}"#)).unwrap_err();
            let expected =
                format!("expected `documents[1]` to be a string or an object, not {found}");
            assert!(error.message().starts_with(&expected), "{error}");
        }
        let error = texts(r#"{"documents":["\ud800"]}"#).unwrap_err();
        assert!(error.message().contains("`documents[0]` is not valid"));
        for (item, place) in [
            (r#"{"text":"\ud800"}"#, "documents[1]"),
            (
                r#"{"content":[{"type":"text","text":"\ud800"}]}"#,
                "documents[1].content[0].text",
            ),
        ] {
            let error = texts(&format!(r#"{{"documents":["a",{item}]}}"#)).unwrap_err();
            let expected = format!("`{place}` is not valid Unicode: it contains half");
            assert!(error.message().starts_with(&expected), "{error}");
        }
    }
}
