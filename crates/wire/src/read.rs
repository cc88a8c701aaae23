//! Reading the fields of a request, with errors that name the field and never repeat a text.
//!
//! The derived readers of serde quote the value they did not expect, and a value here may be
//! somebody's document; they also take an array for an object. These name the field instead. Unknown
//! fields are skipped, of repeated ones the last counts. Memory is bounded by the body: lists keep no
//! more items than a request may have, objects keep the fields that are asked for.

pub mod content;
pub mod form;
pub mod list;
pub mod pair;
pub mod scalar;
pub mod tensor;

use std::cell::RefCell;
use std::fmt::{self, Display};
use std::marker::PhantomData;

use rerankd_core::{Limits, RerankError};
use serde::de::{
    DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde_json::error::Category;

/// What Windows tools begin files with.
pub const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Where in a body a value is.
#[derive(Debug, Clone, Copy)]
pub enum Path<'a> {
    /// The body itself.
    Body,
    /// A field of the body.
    Field(&'static str),
    /// An item of a list.
    Item(&'a Path<'a>, usize),
    /// A field of an object in the body.
    Key(&'a Path<'a>, &'static str),
}

impl Path<'_> {
    fn write(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Body => Ok(()),
            Self::Field(name) => f.write_str(name),
            Self::Item(list, index) => {
                list.write(f)?;
                write!(f, "[{index}]")
            }
            Self::Key(Path::Body, name) => f.write_str(name),
            Self::Key(object, name) => {
                object.write(f)?;
                write!(f, ".{name}")
            }
        }
    }
}

impl Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if let Self::Body = self {
            return f.write_str("the body");
        }
        f.write_str("`")?;
        self.write(f)?;
        f.write_str("`")
    }
}

/// Where a value is, and how much of it may be kept.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Its place in the body.
    pub path: &'a Path<'a>,
    /// Of the request.
    pub limits: &'a Limits,
    /// The innermost value that could not be read.
    pub broken: &'a RefCell<Option<String>>,
}

impl Place<'_> {
    /// The same limits, elsewhere.
    pub fn at<'a>(&'a self, path: &'a Path<'a>) -> Place<'a> {
        Place {
            path,
            limits: self.limits,
            broken: self.broken,
        }
    }

    /// Notes that the value here could not be read. Of values within each other, the first to say so
    /// is the innermost.
    fn note(&self) {
        let mut broken = self.broken.borrow_mut();
        if broken.is_none() {
            *broken = Some(self.path.to_string());
        }
    }
}

/// A value that a request may hold. Each form of JSON that a type does not override is refused.
pub trait Read: Sized {
    /// What is expected, after "to be".
    const EXPECTED: &'static str;

    /// From a string.
    ///
    /// # Errors
    /// When it is none of those expected. The same holds for the others.
    fn string<E: Error>(at: Place<'_>, _: &str) -> Result<Self, E> {
        Err(unexpected::<Self, E>(at, &"string"))
    }

    /// From `true` or `false`.
    fn boolean<E: Error>(at: Place<'_>, value: bool) -> Result<Self, E> {
        Err(unexpected::<Self, E>(at, &Unexpected::Bool(value)))
    }

    /// From a whole number.
    fn integer<E: Error>(at: Place<'_>, value: i128) -> Result<Self, E> {
        Err(unexpected::<Self, E>(
            at,
            &format_args!("integer `{value}`"),
        ))
    }

    /// From another number.
    fn float<E: Error>(at: Place<'_>, value: f64) -> Result<Self, E> {
        Err(unexpected::<Self, E>(at, &Unexpected::Float(value)))
    }

    /// From a list.
    fn list<'de, S: SeqAccess<'de>>(at: Place<'_>, _: S) -> Result<Self, S::Error> {
        Err(unexpected::<Self, S::Error>(at, &"sequence"))
    }

    /// From an object.
    fn object<'de, M: MapAccess<'de>>(at: Place<'_>, _: M) -> Result<Self, M::Error> {
        Err(unexpected::<Self, M::Error>(at, &"map"))
    }

    /// From any value.
    fn read<'de, D: Deserializer<'de>>(at: Place<'_>, value: D) -> Result<Self, D::Error> {
        value.deserialize_any(Reader::<Self>::at(at))
    }
}

/// The refusal of a value that is not a `T`.
pub fn unexpected<T: Read, E: Error>(at: Place<'_>, found: &dyn Display) -> E {
    let (path, wanted) = (at.path, T::EXPECTED);
    E::custom(format_args!("expected {path} to be {wanted}, not {found}"))
}

/// Reads a `T`, which may not be null.
pub struct Reader<'a, T> {
    at: Place<'a>,
    marker: PhantomData<T>,
}

impl<'a, T> Reader<'a, T> {
    /// Reads the value at this place.
    pub fn at(at: Place<'a>) -> Self {
        let marker = PhantomData;
        Self { at, marker }
    }
}

impl<'de, T: Read> DeserializeSeed<'de> for Reader<'_, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<T, D::Error> {
        let at = self.at;
        T::read(at, value).inspect_err(|_| at.note())
    }
}

impl<'de, T: Read> Visitor<'de> for Reader<'_, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        T::string(self.at, text)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<T, E> {
        T::boolean(self.at, value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<T, E> {
        T::integer(self.at, value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<T, E> {
        T::integer(self.at, value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<T, E> {
        T::float(self.at, value)
    }

    fn visit_unit<E: Error>(self) -> Result<T, E> {
        Err(unexpected::<T, E>(self.at, &"null"))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, items: S) -> Result<T, S::Error> {
        T::list(self.at, items)
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<T, M::Error> {
        T::object(self.at, map)
    }
}

/// A value that may be null.
impl<T: Read> Read for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;

    fn read<'de, D: Deserializer<'de>>(at: Place<'_>, value: D) -> Result<Self, D::Error> {
        value.deserialize_option(Nullable(Reader::at(at)))
    }
}

struct Nullable<'a, T>(Reader<'a, T>);

impl<'de, T: Read> Visitor<'de> for Nullable<'_, T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<Self::Value, D::Error> {
        self.0.deserialize(value).map(Some)
    }
}

/// The next key of `map` that is one of `names`. Others are skipped, with their values.
///
/// # Errors
/// When the object is not JSON.
pub fn next_known<'de, 'n, M: MapAccess<'de>>(
    map: &mut M,
    names: &[&'n str],
) -> Result<Option<&'n str>, M::Error> {
    while let Some(key) = map.next_key_seed(KnownKey(names))? {
        if key.is_some() {
            return Ok(key);
        }
        map.next_value::<IgnoredAny>()?;
    }
    Ok(None)
}

struct KnownKey<'a, 'n>(&'a [&'n str]);

impl<'de, 'n> DeserializeSeed<'de> for KnownKey<'_, 'n> {
    type Value = Option<&'n str>;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<Self::Value, D::Error> {
        key.deserialize_str(self)
    }
}

impl<'n> Visitor<'_> for KnownKey<'_, 'n> {
    type Value = Option<&'n str>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|name| **name == key).copied())
    }
}

/// The value under `key` of an object; `otherwise` is what to do where there is none.
pub fn value_of<'de, T: Read, M: MapAccess<'de>>(
    at: Place<'_>,
    mut map: M,
    key: &'static str,
    otherwise: &str,
) -> Result<T, M::Error> {
    let (mut value, path) = (None, Path::Key(at.path, key));
    while next_known(&mut map, &[key])?.is_some() {
        value = Some(map.next_value_seed(Reader::at(at.at(&path)))?);
    }
    value.ok_or_else(|| M::Error::custom(format_args!("{} has no `{key}`; {otherwise}", at.path)))
}

/// Reads a body.
///
/// # Errors
/// [`RerankError`], with what is wrong and where.
pub fn parse<T: Read>(body: &[u8], limits: &Limits) -> Result<T, RerankError> {
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
    let broken = RefCell::default();
    let place = Place {
        path: &Path::Body,
        limits,
        broken: &broken,
    };
    T::read(place, &mut json)
        .and_then(|request| json.end().map(|()| request))
        .map_err(|error| describe(&error, broken.take().as_deref()))
}

/// What is wrong with a body, and with the value of it that is `broken`.
fn describe(error: &serde_json::Error, broken: Option<&str>) -> RerankError {
    let is_data = error.classify() == Category::Data;
    let (line, column) = (error.line(), error.column());
    match broken {
        Some(place) if is_half_a_pair(error) => {
            let message = half_a_pair(&place, &format!(" at line {line} column {column}"));
            match is_data {
                true => RerankError::invalid(message),
                false => RerankError::malformed(message),
            }
        }
        _ if is_data => RerankError::invalid(error.to_string()),
        _ => RerankError::malformed(format!("the body is not valid JSON: {error}")),
    }
}

/// Whether a string holds half of a surrogate pair: the parser calls so that, and nothing else.
pub fn is_half_a_pair(error: &serde_json::Error) -> bool {
    error.to_string().contains("hex escape")
}

/// The refusal of a string at `place` that holds half of a surrogate pair; `position` is empty, or
/// where that is in the body.
pub fn half_a_pair(place: &dyn Display, position: &str) -> String {
    format!(
        "{place} is not valid Unicode{position}: it contains half of a surrogate pair; send both \
         halves or neither"
    )
}

/// Declares a request: its fields, each with the type that reads it and the type that the API's
/// description shows. Every field starts absent; `field?:` takes null as well. Those that it `refuses`
/// are of the dialect too, and cannot be honored.
macro_rules! request {
    (
        $(#[$meta:meta])*
        pub struct $name:ident as $schema_name:ident {
            $(
                $(#[$doc:meta])*
                $field:ident $(?: $nullable:ty)? $(: $value:ty)? as $schema:ty $({ $($extra:tt)* })?
            ),* $(,)?
        }
        $(refuses { $($refused:ident),* $(,)? })?
    ) => {
        $(#[$meta])*
        #[derive(Debug, Default, utoipa::ToSchema)]
        #[schema(as = $schema_name)]
        pub struct $name {
            $(
                $(#[$doc])*
                #[schema(value_type = $schema $(, $($extra)*)?)]
                $field: Option<$($nullable)? $($value)?>,
            )*
            $($(
                /// Refused where it asks for something.
                #[schema(value_type = Option<$crate::read::form::Nothing>)]
                #[allow(dead_code, reason = "it is refused when it is read")]
                $refused: (),
            )*)?
        }

        impl $crate::read::Read for $name {
            const EXPECTED: &'static str = "an object";

            fn object<'de, M: serde::de::MapAccess<'de>>(
                at: $crate::read::Place<'_>,
                mut map: M,
            ) -> Result<Self, M::Error> {
                use $crate::read::{Path, Reader, next_known};
                let mut request = Self::default();
                const NAMES: &[&str] =
                    &[$(stringify!($field),)* $($(stringify!($refused),)*)?];
                while let Some(key) = next_known(&mut map, NAMES)? {
                    let path = Path::Key(at.path, key);
                    let at = at.at(&path);
                    match key {
                        $(stringify!($field) => {
                            $(request.$field =
                                map.next_value_seed(Reader::<Option<$nullable>>::at(at))?;)?
                            $(request.$field =
                                Some(map.next_value_seed(Reader::<$value>::at(at))?);)?
                        })*
                        $($(stringify!($refused) => {
                            map.next_value_seed(
                                Reader::<Option<$crate::read::scalar::Refused>>::at(at),
                            )?;
                        })*)?
                        _ => {}
                    }
                }
                Ok(request)
            }
        }
    };
}

pub(crate) use request;
