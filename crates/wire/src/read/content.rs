//! Texts as vLLM's clients send them: strings, or objects that list their parts.

use serde::de::{Error, MapAccess, SeqAccess};

use super::list::List;
use super::{Path, Place, Read, Reader, next_known, value_of};

/// A string, or an object whose `content` lists its parts.
#[derive(Debug)]
pub struct Content(String);

impl From<Content> for String {
    fn from(content: Content) -> Self {
        content.0
    }
}

impl Read for Content {
    const EXPECTED: &'static str = "a string or an object with `content`";

    fn string<E: Error>(_: Place<'_>, text: &str) -> Result<Self, E> {
        Ok(Self(text.to_owned()))
    }

    fn object<'de, M: MapAccess<'de>>(at: Place<'_>, mut map: M) -> Result<Self, M::Error> {
        let mut content = None;
        // vLLM reads no `text`, but where a client has objects, this is what they hold.
        while let Some(key) = next_known(&mut map, &["content", "text"])? {
            let path = Path::Key(at.path, key);
            let at = at.at(&path);
            content = Some(if key == "content" {
                map.next_value_seed(Reader::<Parts>::at(at))?.0
            } else {
                map.next_value_seed(Reader::<String>::at(at))?
            });
        }
        content
            .map(Self)
            .ok_or_else(|| M::Error::custom(format_args!("{} has no `content`; add it", at.path)))
    }
}

/// The texts of a content's parts, one after the other.
struct Parts(String);

impl Read for Parts {
    const EXPECTED: &'static str = "a list of parts";

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

/// One content, or a list of them.
#[derive(Debug)]
pub struct Contents(pub List<Content>);

impl Contents {
    fn one(content: Content, at: Place<'_>) -> Self {
        let mut list = List::default();
        list.push(content, at.limits);
        Self(list)
    }
}

impl Read for Contents {
    const EXPECTED: &'static str = "a text or a list of texts";

    fn string<E: Error>(at: Place<'_>, text: &str) -> Result<Self, E> {
        Ok(Self::one(Content(text.to_owned()), at))
    }

    fn object<'de, M: MapAccess<'de>>(at: Place<'_>, map: M) -> Result<Self, M::Error> {
        Ok(Self::one(Content::object(at, map)?, at))
    }

    fn list<'de, S: SeqAccess<'de>>(at: Place<'_>, items: S) -> Result<Self, S::Error> {
        List::list(at, items).map(Self)
    }
}
