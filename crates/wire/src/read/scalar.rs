//! Single values.

use std::num::NonZeroUsize;

use rerankd_core::{
    FusionMethod, FusionWeight, Priority, TruncationPolicy, TruncationSide, TruncationStrategy,
};
use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Unexpected};

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

    // What Python and JavaScript write where a client makes a string of everything.
    fn string<E: Error>(at: Place<'_>, text: &str) -> Result<Self, E> {
        match text {
            "true" | "True" | "TRUE" => Ok(true),
            "false" | "False" | "FALSE" => Ok(false),
            _ => Err(unexpected::<Self, E>(at, &"string")),
        }
    }
}

/// The number that a string spells in digits; one that is beyond the type is as large as can be.
fn spelled<T: Read, E: Error>(at: Place<'_>, text: &str) -> Result<i128, E> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(unexpected::<T, E>(at, &"string"));
    }
    let beyond = if digits.len() < text.len() {
        i128::MIN
    } else {
        i128::MAX
    };
    Ok(text.parse().unwrap_or(beyond))
}

/// The whole number that a float is, such as 3.0.
fn whole<T: Read, E: Error>(at: Place<'_>, value: f64) -> Result<i128, E> {
    if value.fract() != 0.0 {
        return Err(unexpected::<T, E>(at, &Unexpected::Float(value)));
    }
    #[allow(
        clippy::cast_possible_truncation,
        reason = "it is whole, and saturates"
    )]
    Ok(value as i128)
}

/// Reads whole numbers however they are written.
macro_rules! however_written {
    () => {
        fn string<E: Error>(at: Place<'_>, text: &str) -> Result<Self, E> {
            let number = spelled::<Self, E>(at, text)?;
            Self::integer(at, number)
        }

        fn float<E: Error>(at: Place<'_>, value: f64) -> Result<Self, E> {
            let number = whole::<Self, E>(at, value)?;
            Self::integer(at, number)
        }
    };
}

impl Read for NonZeroUsize {
    const EXPECTED: &'static str = "a whole number";

    fn integer<E: Error>(at: Place<'_>, value: i128) -> Result<Self, E> {
        let number = Whole::<1>::integer(at, value)?.0;
        Ok(Self::new(usize::try_from(number).unwrap_or(usize::MAX)).unwrap_or(Self::MIN))
    }

    however_written!();
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

    however_written!();
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

    however_written!();
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

names!(FusionMethod {
    "zscore" => Self::ZScore,
    "minmax" => Self::MinMax,
    "rrf" => Self::Rrf,
});

impl Read for FusionWeight {
    const EXPECTED: &'static str = "a number from 0 to 100";

    fn integer<E: Error>(at: Place<'_>, value: i128) -> Result<Self, E> {
        #[allow(clippy::cast_precision_loss, reason = "those that fit are small")]
        Self::float(at, value as f64)
    }

    fn float<E: Error>(at: Place<'_>, value: f64) -> Result<Self, E> {
        Self::new(value).ok_or_else(|| unexpected::<Self, E>(at, &Unexpected::Float(value)))
    }

    fn string<E: Error>(at: Place<'_>, text: &str) -> Result<Self, E> {
        let number = text.parse().ok().and_then(Self::new);
        number.ok_or_else(|| unexpected::<Self, E>(at, &"another string"))
    }
}

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

/// A field that this server cannot honor: a value that asks for something is refused, and none is read.
#[derive(Debug)]
pub struct Refused;

impl Refused {
    fn unless<E: Error>(at: Place<'_>, nothing: bool) -> Result<Self, E> {
        if nothing {
            return Ok(Self);
        }
        Err(E::custom(format_args!(
            "{} asks for what this server does not do; leave it out",
            at.path
        )))
    }
}

impl Read for Refused {
    const EXPECTED: &'static str = "absent";

    fn string<E: Error>(at: Place<'_>, text: &str) -> Result<Self, E> {
        Self::unless(at, text.is_empty())
    }

    fn boolean<E: Error>(at: Place<'_>, value: bool) -> Result<Self, E> {
        Self::unless(at, !value)
    }

    fn integer<E: Error>(at: Place<'_>, value: i128) -> Result<Self, E> {
        Self::unless(at, value == 0)
    }

    fn float<E: Error>(at: Place<'_>, value: f64) -> Result<Self, E> {
        Self::unless(at, value == 0.0)
    }

    fn list<'de, S: SeqAccess<'de>>(at: Place<'_>, mut items: S) -> Result<Self, S::Error> {
        Self::unless(at, items.next_element::<IgnoredAny>()?.is_none())
    }

    fn object<'de, M: MapAccess<'de>>(at: Place<'_>, mut map: M) -> Result<Self, M::Error> {
        Self::unless(at, map.next_entry::<IgnoredAny, IgnoredAny>()?.is_none())
    }
}
