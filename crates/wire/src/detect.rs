//! Telling which dialect a body is in, by its keys alone.
//!
//! Each key of a [`crate::dialect::Signature`] is sent by the clients of one dialect and by nobody else on a shared
//! path. Values do not matter, not even null.

use std::fmt;

use rerankd_core::RerankError;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::dialect::Endpoint;
use crate::read::{BYTE_ORDER_MARK, next_known};

/// The operation that `body` asks for: the first of `candidates` whose signature it has, else the
/// first of all.
///
/// # Errors
/// When the body is in two dialects at once.
///
/// # Panics
/// When there are no candidates.
pub fn detect(candidates: &[Endpoint], body: &[u8]) -> Result<Endpoint, RerankError> {
    if let [only] = candidates {
        return Ok(*only);
    }
    let found = keys(candidates, body);
    for endpoint in candidates {
        if endpoint.operation.signature.matches(&found)? {
            return Ok(*endpoint);
        }
    }
    Ok(candidates[0])
}

/// The keys of `body` that some candidate looks for.
fn keys(candidates: &[Endpoint], body: &[u8]) -> Vec<&'static str> {
    let mut names = Vec::new();
    for endpoint in candidates {
        for key in endpoint.operation.signature.keys() {
            if !names.contains(&key) {
                names.push(key);
            }
        }
    }
    let mut found = Vec::new();
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    let mut json = serde_json::Deserializer::from_slice(body);
    let collect = Collect {
        names: &names,
        found: &mut found,
    };
    // An error is met again, and reported, when the body is read as its dialect.
    let _ = json.deserialize_any(collect);
    found
}

struct Collect<'a> {
    names: &'a [&'static str],
    found: &'a mut Vec<&'static str>,
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
            if !self.found.contains(&key) {
                self.found.push(key);
            }
            map.next_value::<serde::de::IgnoredAny>()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{endpoints, sharing};

    /// The name of the operation that a body asks for at `path`.
    fn operation(path: &str, body: &str) -> Result<&'static str, RerankError> {
        let own = |endpoint: Endpoint| {
            let at = endpoint.operation.paths.iter().find(|at| at.path == path)?;
            Some(sharing(endpoint, at))
        };
        let candidates = endpoints().find_map(own).unwrap();
        detect(&candidates, body.as_bytes()).map(|endpoint| endpoint.operation.name)
    }

    #[test]
    fn each_dialect_has_its_telling_key() {
        for (body, expected) in [
            (r#"{"query":"q","texts":[]}"#, "tei"),
            (r#"{"input":[],"query":""}"#, "mixedbread"),
            (r#"{"documents":[],"property":""}"#, "weaviate"),
            (r#"{"documents":[],"top_k":null}"#, "voyage"),
            (r#"{"documents":[],"truncation":true}"#, "voyage"),
            (
                r#"{"documents":[],"raw_scores":false,"return_documents":true}"#,
                "infinity",
            ),
            (r#"{"documents":[],"raw_scores":false}"#, "cohere_v1"),
            (r#"{"documents":[],"use_activation":null}"#, "vllm"),
            (r#"{"documents":[],"input":[]}"#, "cohere_v1"),
            (
                r#"{"documents":[],"raw_scores":true,"return_documents":true,"truncate":null}"#,
                "cohere_v1",
            ),
            (r#"{"documents":[{"texts":[]}]}"#, "cohere_v1"),
            ("", "cohere_v1"),
            (r#""texts""#, "cohere_v1"),
            (r#"["texts"]"#, "cohere_v1"),
            (r#"{"texts":"#, "tei"),
        ] {
            assert_eq!(operation("/v1/rerank", body).unwrap(), expected, "{body}");
        }
        let predicted = |body| operation("/", body).unwrap();
        assert_eq!(predicted(r#"{"inputs":[]}"#), "tei_predict");
        assert_eq!(predicted(r#"{"texts":[]}"#), "tei");
    }

    #[test]
    fn two_dialects_at_once_are_refused() {
        let both = r#"{"documents":[],"texts":[]}"#;
        let error = operation("/rerank", both).unwrap_err();
        assert!(error.message().contains("both `texts` and `documents`"));
        let both = r#"{"inputs":[],"pairs":[]}"#;
        assert!(operation("/predict", both).is_err());
    }
}
