//! Single values.

use std::num::NonZeroUsize;

use rerankd_core::{Priority, TruncationPolicy, TruncationSide, TruncationStrategy};
use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess};

use super::{Place, Read, unexpected};

impl Read for String {
    const EXPECTED: &'static str = "a string";

    fn string<E: Error>(_: Place<'_>, text: &str) -> Result<Self, E> {
        Ok(text.to_owned())
    }
}

impl Read for bool {
    const EXPECTED: &'static str = "true or false";

    fn boolean<E: Error>(_: Place<'_>, value: bool) -> Result<Self, E> {
        Ok(value)
    }
}

impl Read for NonZeroUsize {
    const EXPECTED: &'static str = "a whole number";

    fn integer<E: Error>(at: Place<'_>, value: i128) -> Result<Self, E> {
        let number = Whole::<1>::integer(at, value)?.0;
        Ok(Self::new(usize::try_from(number).unwrap_or(usize::MAX)).unwrap_or(Self::MIN))
    }
}

/// A whole number of at least `LEAST`. One that is beyond the type is as large as can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole<const LEAST: i64>(pub i64);

impl<const LEAST: i64> Read for Whole<LEAST> {
    const EXPECTED: &'static str = "a whole number";

    fn integer<E: Error>(at: Place<'_>, value: i128) -> Result<Self, E> {
        if value < LEAST.into() {
            return Err(E::custom(format_args!(
                "{} is {value}; send at least {LEAST}, or leave it out",
                at.path
            )));
        }
        Ok(Self(i64::try_from(value).unwrap_or(i64::MAX)))
    }
}

impl Read for u64 {
    const EXPECTED: &'static str = "a whole number from 0";

    fn integer<E: Error>(at: Place<'_>, value: i128) -> Result<Self, E> {
        let number = Self::try_from(value);
        number.map_err(|_| unexpected::<Self, E>(at, &format_args!("integer `{value}`")))
    }
}

impl Read for Priority {
    const EXPECTED: &'static str = "a whole number from 0 to 999";

    fn integer<E: Error>(at: Place<'_>, value: i128) -> Result<Self, E> {
        let priority = u16::try_from(value).ok().and_then(Self::new);
        priority.ok_or_else(|| {
            E::custom(format_args!(
                "{} is {value}; send 0, the most urgent, to {}",
                at.path,
                Self::MAX
            ))
        })
    }
}

/// Reads a type from one of a few names.
macro_rules! names {
    ($type:ty { $first:literal => $first_value:expr $(, $name:literal => $value:expr)* $(,)? }) => {
        impl Read for $type {
            const EXPECTED: &'static str =
                concat!("one of `", $first, "`" $(, ", `", $name, "`")*);

            fn string<E: Error>(at: Place<'_>, text: &str) -> Result<Self, E> {
                match text {
                    $first => Ok($first_value),
                    $($name => Ok($value),)*
                    _ => Err(unexpected::<Self, E>(at, &"another string")),
                }
            }
        }
    };
}

names!(TruncationSide {
    "left" => Self::Left,
    "right" => Self::Right,
    "Left" => Self::Left,
    "Right" => Self::Right,
});

names!(TruncationPolicy { "END" => Self::Truncate, "NONE" => Self::Reject });

names!(TruncationStrategy {
    "longest_first" => Self::LongestFirst,
    "document_only" => Self::DocumentOnly,
});

/// Longest name of a model that is read in full.
const MODEL_NAME_BYTES: usize = 1024;

/// The name of a model. Clients send anything: what is no name is one that no model has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelName(String);

impl std::ops::Deref for ModelName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Read for ModelName {
    const EXPECTED: &'static str = "a string";

    fn string<E: Error>(_: Place<'_>, text: &str) -> Result<Self, E> {
        let end = text.floor_char_boundary(MODEL_NAME_BYTES);
        let cut = if end < text.len() { "…" } else { "" };
        Ok(Self(format!("{}{cut}", &text[..end])))
    }

    fn boolean<E: Error>(_: Place<'_>, value: bool) -> Result<Self, E> {
        Ok(Self(value.to_string()))
    }

    fn integer<E: Error>(_: Place<'_>, value: i128) -> Result<Self, E> {
        Ok(Self(value.to_string()))
    }

    fn float<E: Error>(_: Place<'_>, value: f64) -> Result<Self, E> {
        Ok(Self(value.to_string()))
    }

    fn list<'de, S: SeqAccess<'de>>(_: Place<'_>, mut items: S) -> Result<Self, S::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self("[]".to_owned()))
    }

    fn object<'de, M: MapAccess<'de>>(_: Place<'_>, mut map: M) -> Result<Self, M::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Self("{}".to_owned()))
    }
}
