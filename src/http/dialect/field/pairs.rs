//! Lists of lists.

use std::fmt::{self, Display};

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, SeqAccess, Visitor};

use super::lists::list;
use super::{Text, refuse_strings, seed};

list! {
    /// A list at this path, each item a list of exactly two strings.
    Pairs of TextPair -> [String; 2]
}

struct TextPair<'a>(&'a dyn Display);

seed!(TextPair<'a> -> [String; 2]);

impl<'de> Visitor<'de> for TextPair<'_> {
    type Value = [String; 2];

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be a list of two strings", self.0)
    }

    refuse_strings!();

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<Self::Value, S::Error> {
        let first = items.next_element_seed(Text(&format_args!("{}[0]", self.0)))?;
        let second = items.next_element_seed(Text(&format_args!("{}[1]", self.0)))?;
        let mut count = usize::from(first.is_some()) + usize::from(second.is_some());
        while items.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        match (first, second, count) {
            (Some(first), Some(second), 2) => Ok([first, second]),
            _ => Err(S::Error::custom(format_args!(
                "`{}` has {count} items; send exactly two strings",
                self.0
            ))),
        }
    }
}

/// What TEI predicts: pairs, and whether they came as a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PredictInputs {
    /// The pairs, in their order.
    pub pairs: Vec<[String; 2]>,
    /// Whether the answer is a list of answers.
    pub batch: bool,
}

/// A pair of strings, or a list of such pairs, at this path.
pub struct Inputs<'a>(pub &'a str);

seed!(Inputs<'a> -> PredictInputs);

/// A string, or a pair of strings.
enum TextOrPair {
    Text(String),
    Pair([String; 2]),
}

struct TextOrPairAt<'a>(&'a dyn Display);

seed!(TextOrPairAt<'a> -> TextOrPair);

impl<'de> Visitor<'de> for TextOrPairAt<'_> {
    type Value = TextOrPair;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be a string or a list of two strings", self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<TextOrPair, E> {
        Ok(TextOrPair::Text(text.to_owned()))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, items: S) -> Result<TextOrPair, S::Error> {
        TextPair(self.0).visit_seq(items).map(TextOrPair::Pair)
    }
}

impl<'de> Visitor<'de> for Inputs<'_> {
    type Value = PredictInputs;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be two strings, or a list of such pairs", self.0)
    }

    refuse_strings!();

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<Self::Value, S::Error> {
        let (mut texts, mut pairs) = (Vec::new(), Vec::new());
        loop {
            let path = format_args!("{}[{}]", self.0, texts.len() + pairs.len());
            match items.next_element_seed(TextOrPairAt(&path))? {
                Some(TextOrPair::Text(text)) => texts.push(text),
                Some(TextOrPair::Pair(pair)) => pairs.push(pair),
                None => break,
            }
        }
        if texts.is_empty() {
            return Ok(PredictInputs { pairs, batch: true });
        }
        let count = texts.len();
        match <[String; 2]>::try_from(texts) {
            Ok(pair) if pairs.is_empty() => Ok(PredictInputs {
                pairs: vec![pair],
                batch: false,
            }),
            _ => Err(S::Error::custom(format_args!(
                "`{}` has {count} strings and {} pairs; send exactly two strings, or pairs alone",
                self.0,
                pairs.len()
            ))),
        }
    }
}

/// Token ids of one text, or of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenIds {
    /// One list a text.
    pub lists: Vec<Vec<u32>>,
}

/// A list of token ids, or a list of such lists, at this path.
pub struct Ids<'a>(pub &'a str);

seed!(Ids<'a> -> TokenIds);

/// A token id, or a list of them.
enum IdOrList {
    Id(u32),
    List(Vec<u32>),
}

struct IdOrListAt<'a>(&'a dyn Display);

seed!(IdOrListAt<'a> -> IdOrList);

impl<'de> Visitor<'de> for IdOrListAt<'_> {
    type Value = IdOrList;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be a token id or a list of them", self.0)
    }

    refuse_strings!();

    fn visit_u64<E: Error>(self, id: u64) -> Result<IdOrList, E> {
        // What is too large is no token of any model, and those are passed over.
        Ok(IdOrList::Id(u32::try_from(id).unwrap_or(u32::MAX)))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<IdOrList, S::Error> {
        let mut ids = Vec::new();
        loop {
            let path = format_args!("{}[{}]", self.0, ids.len());
            match items.next_element_seed(IdOrListAt(&path))? {
                Some(IdOrList::Id(id)) => ids.push(id),
                Some(IdOrList::List(_)) => {
                    return Err(S::Error::custom(format_args!(
                        "expected `{path}` to be a token id, not sequence"
                    )));
                }
                None => return Ok(IdOrList::List(ids)),
            }
        }
    }
}

impl<'de> Visitor<'de> for Ids<'_> {
    type Value = TokenIds;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "`{}` to be a list of token ids, or of such lists",
            self.0
        )
    }

    refuse_strings!();

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<TokenIds, S::Error> {
        let (mut ids, mut lists) = (Vec::new(), Vec::new());
        loop {
            let path = format_args!("{}[{}]", self.0, ids.len() + lists.len());
            match items.next_element_seed(IdOrListAt(&path))? {
                Some(IdOrList::Id(id)) => ids.push(id),
                Some(IdOrList::List(list)) => lists.push(list),
                None => break,
            }
        }
        match (ids.is_empty(), lists.is_empty()) {
            (_, true) => Ok(TokenIds { lists: vec![ids] }),
            (true, false) => Ok(TokenIds { lists }),
            (false, false) => Err(S::Error::custom(format_args!(
                "`{}` mixes token ids and lists of them; send one kind",
                self.0
            ))),
        }
    }
}
