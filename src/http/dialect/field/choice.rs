//! Names out of a few, and whole numbers from a least one.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, Visitor};

use super::{refuse_strings, seed};
use rerankd_core::{Side, Strategy, Truncate};

/// One of a few names, or null, at a path.
pub struct OneOf<'a, T: 'static> {
    path: &'a str,
    choices: &'static [(&'static str, T)],
}

/// An end of a text, or null, at this path.
pub fn direction<'a>(path: &'a str) -> OneOf<'a, Side> {
    let choices = &[
        ("left", Side::Left),
        ("right", Side::Right),
        ("Left", Side::Left),
        ("Right", Side::Right),
    ];
    OneOf { path, choices }
}

/// Whether a text that is too long is cut at its end or refused, or null, at this path.
pub fn end_or_none<'a>(path: &'a str) -> OneOf<'a, Truncate> {
    let choices = &[("END", Truncate::Cut), ("NONE", Truncate::Refuse)];
    OneOf { path, choices }
}

/// The text that gives way, or null, at this path.
pub fn strategy<'a>(path: &'a str) -> OneOf<'a, Strategy> {
    let choices = &[
        ("longest_first", Strategy::LongestFirst),
        ("document_only", Strategy::DocumentOnly),
    ];
    OneOf { path, choices }
}

impl<'de, T: Copy> DeserializeSeed<'de> for OneOf<'_, T> {
    type Value = Option<T>;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<Option<T>, D::Error> {
        value.deserialize_any(self)
    }
}

impl<T: Copy> Visitor<'_> for OneOf<'_, T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let names: Vec<String> = self
            .choices
            .iter()
            .map(|(name, _)| format!("`{name}`"))
            .collect();
        write!(f, "`{}` to be one of {}", self.path, names.join(", "))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Option<T>, E> {
        match self.choices.iter().find(|(name, _)| *name == text) {
            Some(&(_, value)) => Ok(Some(value)),
            None => Err(E::invalid_type(
                serde::de::Unexpected::Other("another string"),
                &self,
            )),
        }
    }

    fn visit_unit<E: Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }
}

/// A whole number that may have a meaning below 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole(pub i64);

/// A whole number from `least`, or null, at a path.
pub struct WholeFrom<'a> {
    path: &'a str,
    least: i64,
}

/// A whole number from 0, or null, at this path.
pub fn from_zero<'a>(path: &'a str) -> WholeFrom<'a> {
    WholeFrom { path, least: 0 }
}

/// A whole number from -1, or null, at this path.
pub fn from_minus_one<'a>(path: &'a str) -> WholeFrom<'a> {
    WholeFrom { path, least: -1 }
}

seed!(WholeFrom<'a> -> Option<Whole>);

impl Visitor<'_> for WholeFrom<'_> {
    type Value = Option<Whole>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be a whole number", self.path)
    }

    refuse_strings!();

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Some(Whole(i64::try_from(number).unwrap_or(i64::MAX))))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        if number < self.least {
            return Err(E::custom(format_args!(
                "`{}` is {number}; send at least {}, or leave it out",
                self.path, self.least
            )));
        }
        Ok(Some(Whole(number)))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}
