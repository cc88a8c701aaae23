//! Documents on their way back to the client.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::Answer;
use super::field::Item;
use crate::config::DocumentForm;
use rerankd_core::RerankError;

/// Fields of one document that may be ranked together: more than any schema for search has.
const MAX_RANK_FIELDS: usize = 64;

/// A document as it comes back.
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
    Kept(&'a Map<String, Value>),
}

/// What an answer repeats of its documents.
#[derive(Debug, Default)]
pub struct Echo {
    wanted: bool,
    /// The documents that came as objects, by position; empty when none did.
    objects: Vec<Option<Map<String, Value>>>,
}

impl Echo {
    /// Repeats plain texts, where `wanted`.
    pub fn of_texts(wanted: bool) -> Self {
        Self {
            wanted,
            objects: Vec::new(),
        }
    }

    /// Takes `items` apart: the text of each that is ranked, and what is repeated where `wanted`.
    ///
    /// # Errors
    /// When an object has none of the fields that are ranked, or too many are named.
    pub fn of_items(
        wanted: bool,
        field: &str,
        items: Vec<Item>,
        rank_fields: Option<&[String]>,
    ) -> Result<(Vec<String>, Self), RerankError> {
        let rank_fields = rank_fields.map(distinct).transpose()?;
        let rank_fields = rank_fields.as_deref();
        let mut echo = Self::of_texts(wanted);
        let mut texts = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            match item {
                Item::Text(text) => texts.push(text),
                Item::Object(object) => {
                    texts.push(ranked_text(&object, rank_fields).ok_or_else(|| {
                        let wanted = match rank_fields {
                            None => "no `text`; add it, or name its fields in `rank_fields`",
                            Some(_) => "none of `rank_fields`; add one",
                        };
                        RerankError::invalid(format!("`{field}[{index}]` has {wanted}"))
                    })?);
                    if wanted {
                        echo.objects.resize(index, None);
                        echo.objects.push(Some(object));
                    }
                }
            }
        }
        Ok((texts, echo))
    }

    /// The document at `index`, in the form that the operator chose.
    pub fn document<'a>(&'a self, answer: &Answer<'a>, index: usize) -> Option<Document<'a>> {
        self.document_as(answer.document_form, answer, index)
    }

    /// The document at `index`, as its client sent it or else as `form` says.
    pub fn document_as<'a>(
        &'a self,
        form: DocumentForm,
        answer: &Answer<'a>,
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
            _ => Document::Object { text },
        })
    }
}

/// Each of `names` once: a field that is named again would repeat its text, and a short list of names
/// could make a large document many times larger.
fn distinct(names: &[String]) -> Result<Vec<&str>, RerankError> {
    let mut distinct: Vec<&str> = Vec::new();
    for name in names {
        if !distinct.contains(&name.as_str()) {
            if distinct.len() == MAX_RANK_FIELDS {
                return Err(RerankError::invalid(format!(
                    "`rank_fields` names more than {MAX_RANK_FIELDS} fields; name fewer"
                )));
            }
            distinct.push(name);
        }
    }
    Ok(distinct)
}

/// The values of the ranked fields, in the order in which they are named, one a line.
fn ranked_text(object: &Map<String, Value>, rank_fields: Option<&[&str]>) -> Option<String> {
    let texts: Vec<String> = rank_fields
        .unwrap_or(&["text"])
        .iter()
        .filter_map(|name| match object.get(*name)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        })
        .collect();
    (!texts.is_empty()).then(|| texts.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_is_named_again_does_not_repeat_its_text() {
        let object = serde_json::json!({ "a": "x", "b": "y" });
        let items = vec![Item::Object(object.as_object().unwrap().clone())];
        let names: Vec<String> = ["a", "a", "b"]
            .repeat(1000)
            .into_iter()
            .map(str::to_owned)
            .collect();
        let (texts, _) = Echo::of_items(false, "documents", items, Some(&names)).unwrap();
        assert_eq!(texts, ["x\ny"]);
    }

    #[test]
    fn a_flood_of_fields_is_refused() {
        let names: Vec<String> = (0..=MAX_RANK_FIELDS).map(|i| i.to_string()).collect();
        let error = Echo::of_items(false, "documents", Vec::new(), Some(&names)).unwrap_err();
        assert!(error.message().contains("`rank_fields` names more than 64"));
    }
}
