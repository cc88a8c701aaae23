//! Values that come in several forms.

use std::fmt::{self, Display};

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Text, refuse_strings, seed, skip, text_of};

/// The name of a model at this path. Clients send anything, so that what is no name is one that no
/// model has.
pub struct Name<'a>(pub &'a str);

seed!(Name<'a> -> Option<String>);

impl<'de> Visitor<'de> for Name<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be a string", self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(text.to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Some(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Some(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Some(value.to_string()))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<Self::Value, S::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Some("[]".to_owned()))
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Some("{}".to_owned()))
    }
}

/// A string, or null, at this path.
pub struct OptionalText<'a>(pub &'a str);

seed!(OptionalText<'a> -> Option<String>);

impl Visitor<'_> for OptionalText<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be a string", self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(text.to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// A text at this path: a string, or an object whose `content` lists its parts.
pub struct OneContent<'a>(pub &'a dyn Display);

seed!(OneContent<'a> -> String);

impl<'de> Visitor<'de> for OneContent<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be a string or an object with `content`", self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<String, M::Error> {
        let mut content = None;
        while let Some(field) = map.next_key::<String>()? {
            match field.as_str() {
                "content" => content = Some(map.next_value_seed(Parts(self.0))?),
                // Not in vLLM, but where a client has objects, this is what they hold.
                "text" => {
                    let path = format_args!("{}.text", self.0);
                    content = Some(map.next_value_seed(Text(&path))?);
                }
                _ => skip(&mut map)?,
            }
        }
        content
            .ok_or_else(|| M::Error::custom(format_args!("`{}` has no `content`; add it", self.0)))
    }
}

/// The texts of a content's parts, one after the other.
struct Parts<'a>(&'a dyn Display);

seed!(Parts<'a> -> String);

impl<'de> Visitor<'de> for Parts<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}.content` to be a list of parts", self.0)
    }

    refuse_strings!();

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<String, S::Error> {
        let mut text = String::new();
        let mut index = 0;
        loop {
            let path = format_args!("{}.content[{index}]", self.0);
            match items.next_element_seed(Part(&path))? {
                Some(part) => text.push_str(&part),
                None => return Ok(text),
            }
            index += 1;
        }
    }
}

struct Part<'a>(&'a dyn Display);

seed!(Part<'a> -> String);

impl<'de> Visitor<'de> for Part<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be a part with a `text`", self.0)
    }

    refuse_strings!();

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<String, M::Error> {
        text_of(map, self.0, "text", "this model reads nothing else")
    }
}

/// A text or a list of texts at this path, each a string or an object as [`OneContent`] reads it.
pub struct Contents<'a>(pub &'a str);

seed!(Contents<'a> -> Option<Vec<String>>);

impl<'de> Visitor<'de> for Contents<'_> {
    type Value = Option<Vec<String>>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be a text or a list of texts", self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(vec![text.to_owned()]))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Self::Value, M::Error> {
        let text = OneContent(&self.0).visit_map(map)?;
        Ok(Some(vec![text]))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<Self::Value, S::Error> {
        let mut texts = Vec::new();
        loop {
            let path = format_args!("{}[{}]", self.0, texts.len());
            match items.next_element_seed(OneContent(&path))? {
                Some(text) => texts.push(text),
                None => return Ok(Some(texts)),
            }
        }
    }
}
