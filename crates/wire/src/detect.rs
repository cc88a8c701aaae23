//! Telling which dialect a body is in, by its keys alone.
//!
//! Each key of a [`Signature`] is sent by the clients of one dialect and by nobody else on a shared
//! path. Values do not matter, not even null.

use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};

use super::dialect::Endpoint;
use super::read::{BYTE_ORDER_MARK, next_known};
use rerankd_core::RerankError;

/// The keys that tell the bodies of an operation.
#[derive(Debug, Clone, Copy)]
pub struct Signature {
    /// One of these is enough.
    pub any: &'static [&'static str],
    /// Or all of these.
    pub all: &'static [&'static str],
    /// A body with one of these is another's.
    pub none: &'static [&'static str],
    /// A body with one of these as well is refused.
    pub conflicts: &'static [&'static str],
}

impl Signature {
    /// No body is told by its keys.
    pub const NONE: Self = Self {
        any: &[],
        all: &[],
        none: &[],
        conflicts: &[],
    };

    /// A body with one of these keys.
    pub const fn any(any: &'static [&'static str]) -> Self {
        Self { any, ..Self::NONE }
    }

    /// Whether some body is told by its keys.
    pub fn tells(&self) -> bool {
        !self.any.is_empty() || !self.all.is_empty()
    }

    fn keys(&self) -> impl Iterator<Item = &'static str> {
        let lists = [self.any, self.all, self.none, self.conflicts];
        lists.into_iter().flatten().copied()
    }

    /// Whether a body with the keys `found` is meant.
    ///
    /// # Errors
    /// When it is in two dialects at once.
    fn matches(&self, found: &[&str]) -> Result<bool, RerankError> {
        let among = |keys: &[&'static str]| keys.iter().copied().find(|key| found.contains(key));
        let own = among(self.any);
        if let (Some(own), Some(other)) = (own, among(self.conflicts)) {
            return Err(RerankError::invalid(format!(
                "the body has both `{own}` and `{other}`; send one of them"
            )));
        }
        let all = !self.all.is_empty() && self.all.iter().all(|key| found.contains(key));
        Ok((own.is_some() || all) && among(self.none).is_none())
    }
}

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
    use crate::dialect::{endpoints, sharing};

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
