//! Telling which dialect a body is in, by its keys alone.
//!
//! The order of the tests is that in which clients can be told apart: each key that is looked for
//! is sent by the clients of one dialect and by nobody else on these paths.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::Dialect;
use super::field::BYTE_ORDER_MARK;
use rerankd_core::RerankError;

/// Which telling keys a body has; their values do not matter, not even null.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keys(u16);

const TEXTS: u16 = 1;
const DOCUMENTS: u16 = 1 << 1;
const INPUT: u16 = 1 << 2;
const PROPERTY: u16 = 1 << 3;
const VOYAGE: u16 = 1 << 4;
const RAW_SCORES: u16 = 1 << 5;
const VLLM: u16 = 1 << 6;
const NATIVE: u16 = 1 << 7;
const INPUTS: u16 = 1 << 8;
const PAIRS: u16 = 1 << 9;
const ECHO: u16 = 1 << 10;

impl Keys {
    /// Reads the keys of `body`. What is no object has none: reading it in full says why.
    pub fn of(body: &[u8]) -> Self {
        let mut keys = Self::default();
        let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
        let mut json = serde_json::Deserializer::from_slice(body);
        // An error is met again, and told, when the body is read as its dialect.
        let _ = json.deserialize_any(Collect(&mut keys));
        keys
    }

    fn has(self, keys: u16) -> bool {
        self.0 & keys != 0
    }

    /// The dialect of a reranking on a path whose own dialect is `default`.
    ///
    /// # Errors
    /// When the body is in two dialects at once.
    pub fn rerank_dialect(self, default: Dialect) -> Result<Dialect, RerankError> {
        if self.has(TEXTS) && self.has(DOCUMENTS) {
            return Err(RerankError::invalid(
                "the body has both `texts` and `documents`; send one of them",
            ));
        }
        Ok(match self {
            _ if self.has(TEXTS) => Dialect::Tei,
            _ if self.has(INPUT) && !self.has(DOCUMENTS) => Dialect::Mixedbread,
            _ if self.has(PROPERTY) => Dialect::Weaviate,
            _ if self.has(VOYAGE) => Dialect::Voyage,
            _ if self.has(VLLM) => Dialect::Vllm,
            // Its client always sends both; the server's own format has them too, but few send them.
            _ if self.has(RAW_SCORES) && self.has(ECHO) && !self.has(NATIVE) => Dialect::Infinity,
            _ => default,
        })
    }

    /// The dialect of a prediction.
    ///
    /// # Errors
    /// When the body is in two dialects at once.
    pub fn predict_dialect(self) -> Result<Dialect, RerankError> {
        match (self.has(INPUTS), self.has(PAIRS)) {
            (true, true) => Err(RerankError::invalid(
                "the body has both `inputs` and `pairs`; send one of them",
            )),
            (true, false) => Ok(Dialect::Tei),
            (false, _) => Ok(Dialect::Native),
        }
    }

    /// Whether this is TEI's prediction, on a path that it shares with its reranking.
    pub fn is_prediction(self) -> bool {
        self.has(INPUTS)
    }
}

struct Collect<'a>(&'a mut Keys);

impl<'de> Visitor<'de> for Collect<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(key) = map.next_key_seed(Key)? {
            self.0.0 |= key;
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = u16;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<u16, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = u16;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<u16, E> {
        Ok(match key {
            "texts" => TEXTS,
            "documents" => DOCUMENTS,
            "input" => INPUT,
            "inputs" => INPUTS,
            "pairs" => PAIRS,
            "property" => PROPERTY,
            "truncation" | "top_k" => VOYAGE,
            "raw_scores" => RAW_SCORES,
            "return_documents" => ECHO,
            "truncate_prompt_tokens"
            | "truncation_side"
            | "use_activation"
            | "max_tokens_per_query" => VLLM,
            "truncate" | "truncation_strategy" | "truncation_direction" => NATIVE,
            _ => 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect(body: &str) -> Dialect {
        let keys = Keys::of(body.as_bytes());
        keys.rerank_dialect(Dialect::CohereV1).unwrap()
    }

    #[test]
    fn each_dialect_has_its_telling_key() {
        for (body, dialect) in [
            (r#"{"query":"q","texts":[]}"#, Dialect::Tei),
            (r#"{"input":[],"query":""}"#, Dialect::Mixedbread),
            (r#"{"documents":[],"property":""}"#, Dialect::Weaviate),
            (r#"{"documents":[],"top_k":null}"#, Dialect::Voyage),
            (r#"{"documents":[],"truncation":true}"#, Dialect::Voyage),
            (
                r#"{"documents":[],"raw_scores":false,"return_documents":true}"#,
                Dialect::Infinity,
            ),
            (r#"{"documents":[],"raw_scores":false}"#, Dialect::CohereV1),
            (r#"{"documents":[],"use_activation":null}"#, Dialect::Vllm),
            (r#"{"documents":[],"input":[]}"#, Dialect::CohereV1),
            (
                r#"{"documents":[],"raw_scores":true,"return_documents":true,"truncate":null}"#,
                Dialect::CohereV1,
            ),
            (r#"{"documents":[{"texts":[]}]}"#, Dialect::CohereV1),
            ("", Dialect::CohereV1),
            (r#"["texts"]"#, Dialect::CohereV1),
            (r#"{"texts":"#, Dialect::Tei),
        ] {
            assert_eq!(detect(body), dialect, "{body}");
        }
    }

    #[test]
    fn two_dialects_at_once_are_refused() {
        let keys = Keys::of(br#"{"documents":[],"texts":[]}"#);
        assert!(keys.rerank_dialect(Dialect::Native).is_err());
        let keys = Keys::of(br#"{"inputs":[],"pairs":[]}"#);
        assert!(keys.predict_dialect().is_err());
    }
}
