//! Reading the fields of a request, with errors that say where and what, and never repeat a text.
//!
//! The derived readers of serde quote the value they did not expect, and a value here may be
//! somebody's document; they also take an array for an object. These readers name the field
//! instead. Unknown fields are skipped, of repeated ones the last counts, null is as good as absent
//! where a field is optional.

mod choice;
mod lists;
mod loose;
mod pairs;
mod tensors;

use std::fmt::{self, Display};
use std::num::NonZeroUsize;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::error::Category;

pub use choice::{Whole, direction, end_or_none, from_minus_one, from_zero, strategy};
pub use lists::{Documents, Item, Items, OneOrMany, StringList, Strings, TextObject};
pub use loose::{Contents, Name, OneContent, OptionalText};
pub use pairs::{Ids, Inputs, Pairs, PredictInputs, TokenIds};
pub use tensors::{InferParameters, Names, Parameters, Tensor, Tensors};

use rerankd_core::{Priority, RerankError};

/// A request that reads itself field by field. It starts empty; what is missing is said later.
pub trait Fields: Default + Send + 'static {
    /// Reads the value of `field` from `map`, or skips it with [`skip`].
    ///
    /// # Errors
    /// When the value has a wrong type.
    fn read<'de, M: MapAccess<'de>>(&mut self, field: &str, map: &mut M) -> Result<(), M::Error>;
}

/// What Windows tools begin files with.
pub(super) const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// The string that an object at `path` holds under `key`; `otherwise` is what to do where it has none.
fn text_of<'de, M: MapAccess<'de>>(
    mut map: M,
    path: &dyn Display,
    key: &str,
    otherwise: &str,
) -> Result<String, M::Error> {
    let mut text = None;
    while let Some(field) = map.next_key::<String>()? {
        if field == key {
            let path = format_args!("{path}.{key}");
            text = Some(map.next_value_seed(Text(&path))?);
        } else {
            skip(&mut map)?;
        }
    }
    text.ok_or_else(|| M::Error::custom(format_args!("`{path}` has no `{key}`; {otherwise}")))
}

/// Reads a body.
///
/// # Errors
/// [`RerankError`], with what is wrong and where.
pub fn parse<T: Fields>(body: &[u8]) -> Result<T, RerankError> {
    let text = std::str::from_utf8(body).map_err(|error| {
        RerankError::malformed(format!(
            "the body is not UTF-8 at byte {}; encode it so",
            error.valid_up_to()
        ))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_ascii().is_empty() {
        return Err(RerankError::malformed(
            "the body is empty; send a JSON object",
        ));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let mut request = T::default();
    Body(&mut request)
        .deserialize(&mut json)
        .and_then(|()| json.end())
        .map_err(|error| describe(&error))?;
    Ok(request)
}

/// What is wrong, then where.
fn describe(error: &serde_json::Error) -> RerankError {
    let text = error.to_string();
    if error.classify() != Category::Data {
        return RerankError::malformed(format!("the body is not valid JSON: {text}"));
    }
    let place = format!(" at line {} column {}", error.line(), error.column());
    let (text, place) = match text.strip_suffix(&place) {
        Some(text) => (text, place.as_str()),
        None => (text.as_str(), ""),
    };
    // serde says what it found before what it wanted; a reader looks for the field first.
    let halves = text.strip_prefix("invalid type: ");
    RerankError::invalid(
        match halves.and_then(|text| text.split_once(", expected ")) {
            Some((found, wanted)) => format!("expected {wanted}, not {found}{place}"),
            None => format!("{text}{place}"),
        },
    )
}

/// Leaves a value unread.
///
/// # Errors
/// When it is not JSON.
pub fn skip<'de, M: MapAccess<'de>>(map: &mut M) -> Result<(), M::Error> {
    map.next_value::<IgnoredAny>().map(drop)
}

/// Refuses a string without repeating it, where serde's own refusal would.
macro_rules! refuse_strings {
    () => {
        fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
            Err(E::invalid_type(
                serde::de::Unexpected::Other("string"),
                &self,
            ))
        }
    };
}

/// Lets a visitor read whatever comes, and complain itself.
macro_rules! seed {
    ($name:ident<$life:lifetime> -> $value:ty) => {
        impl<'de, $life> DeserializeSeed<'de> for $name<$life> {
            type Value = $value;

            fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<$value, D::Error> {
                value.deserialize_any(self)
            }
        }
    };
}

use {refuse_strings, seed};

struct Body<'a, T>(&'a mut T);

impl<'de, T: Fields> DeserializeSeed<'de> for Body<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de, T: Fields> Visitor<'de> for Body<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("the body to be an object")
    }

    refuse_strings!();

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(field) = map.next_key::<String>()? {
            self.0.read(&field, &mut map)?;
        }
        Ok(())
    }
}

/// A string at this path.
pub struct Text<'a>(pub &'a dyn Display);

seed!(Text<'a> -> String);

impl<'de> Visitor<'de> for Text<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be a string", self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}

/// True, false, or null at this path.
pub struct Flag<'a>(pub &'a str);

seed!(Flag<'a> -> Option<bool>);

impl<'de> Visitor<'de> for Flag<'_> {
    type Value = Option<bool>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be true or false", self.0)
    }

    refuse_strings!();

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Self::Value, E> {
        Ok(Some(flag))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// A whole number from 1, or null, at this path.
pub struct Count<'a>(pub &'a str);

seed!(Count<'a> -> Option<NonZeroUsize>);

impl<'de> Visitor<'de> for Count<'_> {
    type Value = Option<NonZeroUsize>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be a whole number", self.0)
    }

    refuse_strings!();

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        match NonZeroUsize::new(number) {
            Some(number) => Ok(Some(number)),
            None => self.visit_i64(0),
        }
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Err(E::custom(format_args!(
            "`{}` is {number}; send at least 1, or leave it out",
            self.0
        )))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// A priority, or null, at this path.
pub struct Urgency<'a>(pub &'a str);

seed!(Urgency<'a> -> Option<Priority>);

impl<'de> Visitor<'de> for Urgency<'_> {
    type Value = Option<Priority>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "`{}` to be a whole number from 0 to {}",
            self.0,
            Priority::MAX
        )
    }

    refuse_strings!();

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        let priority = u16::try_from(number).ok().and_then(Priority::new);
        match priority {
            Some(priority) => Ok(Some(priority)),
            None => Err(E::custom(format_args!(
                "`{}` is {number}; the least urgent is {}",
                self.0,
                Priority::MAX
            ))),
        }
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Err(E::custom(format_args!(
            "`{}` is {number}; the most urgent is 0",
            self.0
        )))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}
