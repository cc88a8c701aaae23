//! Checks the vocabulary in a `tokenizer.json` before the library reads it.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::ModelError;

/// Longest token of a Unigram vocabulary in bytes. The library keeps such a vocabulary in a trie, one level a
/// byte, and drops it recursively: a token of some ten thousand bytes overflows the stack, which ends the process.
const MAX_TOKEN_BYTES: usize = 4096;

/// A `tokenizer.json` that cannot be used.
pub(super) fn unusable(message: &str) -> ModelError {
    ModelError::new(
        message,
        "save the tokenizer again with a current version of transformers",
    )
}

#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    model: TokenizerModel,
}

#[derive(Default, Deserialize)]
struct TokenizerModel {
    #[serde(default)]
    vocab: Vocabulary,
}

/// Bytes of the longest token of a Unigram vocabulary; 0 for the other kinds, which are objects.
#[derive(Default)]
struct Vocabulary {
    longest: usize,
}

/// Rejects a `tokenizer.json` whose Unigram vocabulary cannot be dropped safely.
///
/// # Errors
/// [`ModelError`], also if the file is not JSON.
pub(super) fn check(tokenizer_json: &[u8]) -> Result<(), ModelError> {
    let file: TokenizerFile = serde_json::from_slice(tokenizer_json)
        .map_err(|error| unusable("`tokenizer.json` is invalid").caused_by(error))?;
    let longest = file.model.vocab.longest;
    if longest <= MAX_TOKEN_BYTES {
        return Ok(());
    }
    Err(unusable(&format!(
        "`tokenizer.json` is invalid: its vocabulary has a token of {longest} bytes, \
         and the limit is {MAX_TOKEN_BYTES}"
    )))
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VocabularyVisitor)
    }
}

struct VocabularyVisitor;

impl<'de> Visitor<'de> for VocabularyVisitor {
    type Value = Vocabulary;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a vocabulary")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Vocabulary::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut tokens: A) -> Result<Vocabulary, A::Error> {
        let mut longest = 0;
        while let Some((token, _)) = tokens.next_element::<(Text, IgnoredAny)>()? {
            longest = longest.max(token.0.len());
        }
        Ok(Vocabulary { longest })
    }
}

/// A string that is copied only if it has escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
