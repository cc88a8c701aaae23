//! Pairs of texts, and token ids.

use serde::de::{Error, IgnoredAny, SeqAccess};

use super::list::List;
use super::{Path, Place, Read, Reader};

/// Two strings.
pub type TextPair = [String; 2];

impl Read for TextPair {
    const EXPECTED: &'static str = "a list of two strings";

    fn list<'de, S: SeqAccess<'de>>(at: Place<'_>, mut items: S) -> Result<Self, S::Error> {
        let paths = [Path::Item(at.path, 0), Path::Item(at.path, 1)];
        let first = items.next_element_seed(Reader::at(at.at(&paths[0])))?;
        let second = items.next_element_seed(Reader::at(at.at(&paths[1])))?;
        let mut count = usize::from(first.is_some()) + usize::from(second.is_some());
        while items.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        match (first, second, count) {
            (Some(first), Some(second), 2) => Ok([first, second]),
            _ => Err(S::Error::custom(format_args!(
                "{} has {count} items; send exactly two strings",
                at.path
            ))),
        }
    }
}

/// What TEI predicts: pairs, and whether they came as a list.
#[derive(Debug)]
pub struct PredictInputs {
    /// The pairs, in their order.
    pub pairs: List<TextPair>,
    /// Whether the answer is a list of answers.
    pub batch: bool,
}

enum TextOrPair {
    Text(String),
    Pair(TextPair),
}

impl Read for TextOrPair {
    const EXPECTED: &'static str = "a string or a list of two strings";

    fn string<E: Error>(_: Place<'_>, text: &str) -> Result<Self, E> {
        Ok(Self::Text(text.to_owned()))
    }

    fn list<'de, S: SeqAccess<'de>>(at: Place<'_>, items: S) -> Result<Self, S::Error> {
        TextPair::list(at, items).map(Self::Pair)
    }
}

impl Read for PredictInputs {
    const EXPECTED: &'static str = "two strings, or a list of such pairs";

    fn list<'de, S: SeqAccess<'de>>(at: Place<'_>, mut items: S) -> Result<Self, S::Error> {
        let (mut texts, mut pairs) = (List::default(), List::default());
        loop {
            let path = Path::Item(at.path, texts.len() + pairs.len());
            match items.next_element_seed(Reader::at(at.at(&path)))? {
                Some(TextOrPair::Text(text)) => texts.push(text, at.limits),
                Some(TextOrPair::Pair(pair)) => pairs.push(pair, at.limits),
                None => break,
            }
        }
        match (texts.len(), pairs.len()) {
            (0, _) => Ok(Self { pairs, batch: true }),
            (2, 0) => {
                let [first, second] = texts.kept() else {
                    return Err(S::Error::custom(format_args!(
                        "{} has 2 items; the limit is {}",
                        at.path, at.limits.max_documents
                    )));
                };
                pairs.push([first.clone(), second.clone()], at.limits);
                let batch = false;
                Ok(Self { pairs, batch })
            }
            (texts, pairs) => Err(S::Error::custom(format_args!(
                "{} has {texts} strings and {pairs} pairs; send exactly two strings, or pairs alone",
                at.path
            ))),
        }
    }
}

/// Token ids of one text, or of several: one list a text.
#[derive(Debug)]
pub struct TokenIds(pub List<Vec<u32>>);

enum IdOrList {
    Id(u32),
    List(Vec<u32>),
}

/// What is too large is no token of any model, and those are passed over.
fn id(value: i128) -> Option<u32> {
    let value = u64::try_from(value).ok()?;
    Some(u32::try_from(value).unwrap_or(u32::MAX))
}

impl Read for IdOrList {
    const EXPECTED: &'static str = "a token id or a list of them";

    fn integer<E: Error>(at: Place<'_>, value: i128) -> Result<Self, E> {
        let found = format!("integer `{value}`");
        id(value)
            .map(Self::Id)
            .ok_or_else(|| super::unexpected::<Self, E>(at, &found))
    }

    fn list<'de, S: SeqAccess<'de>>(at: Place<'_>, mut items: S) -> Result<Self, S::Error> {
        let mut ids = Vec::new();
        loop {
            let path = Path::Item(at.path, ids.len());
            match items.next_element_seed(Reader::<TokenId>::at(at.at(&path)))? {
                Some(TokenId(id)) => ids.push(id),
                None => return Ok(Self::List(ids)),
            }
        }
    }
}

struct TokenId(u32);

impl Read for TokenId {
    const EXPECTED: &'static str = "a token id";

    fn integer<E: Error>(at: Place<'_>, value: i128) -> Result<Self, E> {
        let found = format!("integer `{value}`");
        id(value)
            .map(Self)
            .ok_or_else(|| super::unexpected::<Self, E>(at, &found))
    }
}

impl Read for TokenIds {
    const EXPECTED: &'static str = "a list of token ids, or of such lists";

    fn list<'de, S: SeqAccess<'de>>(at: Place<'_>, mut items: S) -> Result<Self, S::Error> {
        let (mut ids, mut lists) = (Vec::new(), List::default());
        loop {
            let path = Path::Item(at.path, ids.len() + lists.len());
            match items.next_element_seed(Reader::at(at.at(&path)))? {
                Some(IdOrList::Id(id)) => ids.push(id),
                Some(IdOrList::List(list)) => lists.push(list, at.limits),
                None => break,
            }
        }
        if lists.is_empty() {
            lists.push(ids, at.limits);
        } else if !ids.is_empty() {
            return Err(S::Error::custom(format_args!(
                "{} mixes token ids and lists of them; send one kind",
                at.path
            )));
        }
        Ok(Self(lists))
    }
}
