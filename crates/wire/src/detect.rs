//! Telling which dialect a body is in, by its keys and the kinds of their values.
//!
//! Each mark of a [`crate::dialect::Signature`] is sent by the clients of one dialect and by nobody
//! else on a shared path. Null counts as absent, and a value of another kind than that dialect reads
//! does not tell it.

use std::fmt;

use http::HeaderMap;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::dialect::{Endpoint, ValueKind};
use crate::read::{BYTE_ORDER_MARK, next_known};

/// The operation that `body` asks for: the first of `candidates` whose signature it has, else the
/// first of all.
///
/// # Panics
/// When there are no candidates.
pub fn detect(candidates: &[Endpoint], body: &[u8]) -> Endpoint {
    if let [only] = candidates {
        return *only;
    }
    let (found, model) = marks(candidates, body);
    let told = |endpoint: &&Endpoint| endpoint.operation.signature.matches(&found, &model);
    *candidates.iter().find(told).unwrap_or(&candidates[0])
}

/// The operation whose clients alone send one of these `headers`.
pub fn detect_by_headers(candidates: &[Endpoint], headers: &HeaderMap) -> Option<Endpoint> {
    let told = |endpoint: &&Endpoint| {
        endpoint
            .operation
            .signature
            .header
            .is_some_and(|(name, start)| {
                let value = headers.get(name);
                value.is_some_and(|value| value.as_bytes().starts_with(start.as_bytes()))
            })
    };
    candidates.iter().find(told).copied()
}

/// The key that names a model, in every dialect.
const MODEL: &str = "model";

/// As much of a model's name as tells.
const MODEL_BYTES: usize = 32;

/// A key of a body, and the kind of its value.
type Found = (&'static str, ValueKind);

/// What `body` holds under the keys that some candidate looks for, and how its model's name begins.
fn marks(candidates: &[Endpoint], body: &[u8]) -> (Vec<Found>, String) {
    let mut names = vec![MODEL];
    for endpoint in candidates {
        for key in endpoint.operation.signature.keys() {
            if !names.contains(&key) {
                names.push(key);
            }
        }
    }
    let (mut found, mut model) = (Vec::new(), String::new());
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    let mut json = serde_json::Deserializer::from_slice(body);
    let collect = Collect {
        names: &names,
        found: &mut found,
        model: &mut model,
    };
    // An error is met again, and reported, when the body is read as its dialect.
    let _ = json.deserialize_any(collect);
    (found, model)
}

struct Collect<'a> {
    names: &'a [&'static str],
    found: &'a mut Vec<Found>,
    model: &'a mut String,
}

impl<'de> Visitor<'de> for Collect<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(key) = next_known(&mut map, self.names)? {
            // Of repeated keys the last counts.
            self.found.retain(|(found, _)| *found != key);
            let kind = KindOf {
                key,
                found: self.found,
                model: self.model,
            };
            map.next_value_seed(kind)?;
        }
        Ok(())
    }
}

/// Notes the kind of a value as soon as it begins: what follows may be broken.
struct KindOf<'a> {
    key: &'static str,
    found: &'a mut Vec<Found>,
    model: &'a mut String,
}

impl KindOf<'_> {
    fn note(&mut self, kind: ValueKind) {
        self.found.push((self.key, kind));
    }
}

impl<'de> DeserializeSeed<'de> for KindOf<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for KindOf<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(mut self, _: bool) -> Result<(), E> {
        self.note(ValueKind::Flag);
        Ok(())
    }

    fn visit_u64<E>(mut self, _: u64) -> Result<(), E> {
        self.note(ValueKind::Number);
        Ok(())
    }

    fn visit_i64<E>(mut self, _: i64) -> Result<(), E> {
        self.note(ValueKind::Number);
        Ok(())
    }

    fn visit_f64<E>(mut self, _: f64) -> Result<(), E> {
        self.note(ValueKind::Number);
        Ok(())
    }

    fn visit_str<E>(mut self, text: &str) -> Result<(), E> {
        if self.key == MODEL {
            let start = &text[..text.floor_char_boundary(MODEL_BYTES)];
            start.clone_into(self.model);
        }
        self.note(ValueKind::Text);
        Ok(())
    }

    fn visit_seq<S: SeqAccess<'de>>(mut self, mut items: S) -> Result<(), S::Error> {
        self.note(ValueKind::List);
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<M: MapAccess<'de>>(mut self, mut map: M) -> Result<(), M::Error> {
        self.note(ValueKind::Object);
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{endpoints, sharing};

    /// The name of the operation that a body asks for at `path`.
    fn operation(path: &str, body: &str) -> &'static str {
        let own = |endpoint: Endpoint| {
            let at = endpoint.operation.paths.iter().find(|at| at.path == path)?;
            Some(sharing(endpoint, at))
        };
        let candidates = endpoints().find_map(own).unwrap();
        detect(&candidates, body.as_bytes()).operation.name
    }

    #[test]
    fn each_dialect_has_its_telling_key() {
        for (body, expected) in [
            (r#"{"query":"q","texts":[]}"#, "tei"),
            (r#"{"input":[],"query":""}"#, "mixedbread"),
            (r#"{"documents":[],"property":""}"#, "weaviate"),
            (r#"{"documents":[],"top_k":3}"#, "voyage"),
            (r#"{"documents":[],"truncation":true}"#, "voyage"),
            (
                r#"{"documents":[],"raw_scores":false,"return_documents":true}"#,
                "infinity",
            ),
            (r#"{"documents":[],"raw_scores":false}"#, "cohere_v1"),
            (r#"{"documents":[],"use_activation":false}"#, "vllm"),
            (r#"{"documents":[],"activation":false}"#, "vllm"),
            (r#"{"documents":[],"softmax":false}"#, "vllm"),
            (r#"{"documents":[],"chat_template_kwargs":{}}"#, "vllm"),
            (r#"{"documents":[],"mm_processor_kwargs":{}}"#, "vllm"),
            (r#"{"documents":[],"input":[]}"#, "cohere_v1"),
            (
                r#"{"documents":[],"raw_scores":true,"return_documents":true,"truncate":true}"#,
                "cohere_v1",
            ),
            (r#"{"documents":[{"texts":[]}]}"#, "cohere_v1"),
            ("", "cohere_v1"),
            (r#""texts""#, "cohere_v1"),
            (r#"["texts"]"#, "cohere_v1"),
            (r#"{"texts":"#, "cohere_v1"),
            (r#"{"texts":["#, "tei"),
        ] {
            assert_eq!(operation("/v1/rerank", body), expected, "{body}");
        }
        let predicted = |body| operation("/", body);
        assert_eq!(predicted(r#"{"inputs":[]}"#), "tei_predict");
        assert_eq!(predicted(r#"{"texts":[]}"#), "tei");
    }

    #[test]
    fn null_and_values_of_another_kind_tell_nothing() {
        for body in [
            r#"{"documents":[],"top_k":null}"#,
            r#"{"documents":[],"truncation":null}"#,
            r#"{"documents":[],"property":null}"#,
            r#"{"documents":[],"texts":null}"#,
            r#"{"documents":[],"use_activation":null}"#,
            r#"{"query":"q","texts":"a"}"#,
            r#"{"documents":[],"property":[]}"#,
            r#"{"documents":[],"top_k":5,"top_k":null}"#,
        ] {
            assert_eq!(operation("/v1/rerank", body), "cohere_v1", "{body}");
        }
    }

    #[test]
    fn flags_and_counts_tell_as_strings_too() {
        for (field, expected) in [
            (r#""top_k":"1""#, "voyage"),
            (r#""truncation":"true""#, "voyage"),
            (r#""truncation":"true","top_n":"1""#, "cohere_v1"),
            (r#""property":"","top_n":"1""#, "cohere_v1"),
            (r#""use_activation":"false""#, "vllm"),
            (r#""activation":"false""#, "vllm"),
            (r#""truncate_prompt_tokens":"64""#, "vllm"),
            (r#""max_tokens_per_query":"64""#, "vllm"),
        ] {
            let body = format!(r#"{{"documents":[],{field}}}"#);
            assert_eq!(operation("/v1/rerank", &body), expected, "{body}");
        }
    }

    #[test]
    fn fields_of_the_servers_own_format_are_not_lost() {
        let body = |field: &str| {
            format!(r#"{{"documents":[],"raw_scores":true,"return_documents":true{field}}}"#)
        };
        assert_eq!(operation("/rerank", &body("")), "infinity");
        for field in [
            r#","instruction":"i""#,
            r#","instruct":"i""#,
            r#","prompt_name":"p""#,
            r#","max_tokens_per_doc":3"#,
            r#","max_tokens_per_doc":"3""#,
            r#","max_chunks_per_doc":3"#,
            r#","max_chunks_per_doc":"3""#,
            r#","priority":0"#,
            r#","priority":"0""#,
            r#","truncate":"false""#,
        ] {
            assert_eq!(operation("/rerank", &body(field)), "native", "{field}");
        }
    }

    #[test]
    fn the_path_wins_where_a_body_has_its_fields_too() {
        for (path, body, expected) in [
            (
                "/v1/rerank",
                r#"{"documents":[],"truncation":true,"top_n":1}"#,
                "cohere_v1",
            ),
            (
                "/v1/rerank",
                r#"{"documents":[],"truncation":true,"top_n":null}"#,
                "voyage",
            ),
            (
                "/v1/rerank",
                r#"{"documents":[],"property":"","top_n":1}"#,
                "cohere_v1",
            ),
            ("/v1/rerank", r#"{"documents":[],"texts":[]}"#, "cohere_v1"),
            (
                "/v1/rerank",
                r#"{"documents":[],"truncation":true,"fusion":{}}"#,
                "cohere_v1",
            ),
            (
                "/v1/rerank",
                r#"{"documents":[],"truncation":true,"fusion":null}"#,
                "voyage",
            ),
            (
                "/v2/rerank",
                r#"{"documents":[],"use_activation":true,"fusion":{}}"#,
                "cohere_v2",
            ),
            (
                "/rerank",
                r#"{"documents":[],"texts":[],"fusion":{}}"#,
                "native",
            ),
            (
                "/v1/reranking",
                r#"{"documents":[],"top_k":1,"fusion":{}}"#,
                "native",
            ),
            ("/rerank", r#"{"documents":[],"texts":[]}"#, "native"),
            ("/", r#"{"documents":[],"texts":[]}"#, "tei"),
            ("/predict", r#"{"inputs":[],"pairs":[]}"#, "native_predict"),
        ] {
            assert_eq!(operation(path, body), expected, "{body}");
        }
    }
}
