//! Lists of texts.

use std::fmt::{self, Display};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{Text, refuse_strings, seed, text_of};

/// Declares the reader of a list, each item read by another reader that knows its place.
macro_rules! list {
    ($(#[$doc:meta])* $name:ident of $item:ident -> $value:ty) => {
        $(#[$doc])*
        pub struct $name<'a>(pub &'a str);

        seed!($name<'a> -> Vec<$value>);

        impl<'de> Visitor<'de> for $name<'_> {
            type Value = Vec<$value>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "`{}` to be a list", self.0)
            }

            refuse_strings!();

            fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<Self::Value, S::Error> {
                let mut values = Vec::new();
                loop {
                    let path = format_args!("{}[{}]", self.0, values.len());
                    match items.next_element_seed($item(&path))? {
                        Some(value) => values.push(value),
                        None => return Ok(values),
                    }
                }
            }
        }
    };
}

pub(super) use list;

list! {
    /// A list at this path, each item a string or an object that holds one under `text`.
    Documents of TextObject -> String
}

list! {
    /// A list of strings at this path.
    Strings of Text -> String
}

list! {
    /// A list at this path, each item a string or any object.
    Items of ItemAt -> Item
}

/// A list of strings, or null, at this path.
pub struct StringList<'a>(pub &'a str);

seed!(StringList<'a> -> Option<Vec<String>>);

impl<'de> Visitor<'de> for StringList<'_> {
    type Value = Option<Vec<String>>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        Strings(self.0).expecting(f)
    }

    refuse_strings!();

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, items: S) -> Result<Self::Value, S::Error> {
        Strings(self.0).visit_seq(items).map(Some)
    }
}

/// A string or a list of strings at this path.
pub struct OneOrMany<'a>(pub &'a str);

seed!(OneOrMany<'a> -> Vec<String>);

impl<'de> Visitor<'de> for OneOrMany<'_> {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be a string or a list", self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(vec![text.to_owned()])
    }

    fn visit_seq<S: SeqAccess<'de>>(self, items: S) -> Result<Self::Value, S::Error> {
        Strings(self.0).visit_seq(items)
    }
}

/// A document as its client sent it.
#[derive(Debug, Clone, PartialEq, ToSchema)]
#[schema(as = DocumentItem)]
#[serde(untagged)]
pub enum Item {
    /// A text.
    Text(String),
    /// An object, which comes back as it is.
    #[schema(value_type = TextItem)]
    Object(Map<String, Value>),
}

/// An object that needs no `rank_fields`.
#[derive(ToSchema)]
#[schema(as = TextObject)]
#[allow(
    dead_code,
    reason = "it stands for what a reader takes, in the API's description"
)]
struct TextItem {
    /// A string, or what is written as one.
    text: Value,
}

struct ItemAt<'a>(&'a dyn Display);

seed!(ItemAt<'a> -> Item);

impl<'de> Visitor<'de> for ItemAt<'_> {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be a string or an object", self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Item, E> {
        Ok(Item::Text(text.to_owned()))
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Item, M::Error> {
        let mut object = Map::new();
        while let Some((key, value)) = map.next_entry()? {
            object.insert(key, value);
        }
        Ok(Item::Object(object))
    }
}

/// A string, or an object that holds one under `text`, at this path.
pub struct TextObject<'a>(pub &'a dyn Display);

seed!(TextObject<'a> -> String);

impl<'de> Visitor<'de> for TextObject<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be a string or an object with `text`", self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<String, M::Error> {
        text_of(map, self.0, "text", "add it")
    }
}
