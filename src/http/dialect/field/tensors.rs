//! Tensors of texts.

use std::fmt::{self, Display};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::lists::list;
use super::{Text, refuse_strings, seed, skip, text_of};

/// A tensor as it was sent. Its texts are in the body, or lie behind it in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tensor {
    /// What it is called.
    pub name: String,
    /// What it claims to hold.
    pub datatype: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// Its texts, row by row.
    pub texts: Option<Vec<String>>,
    /// How many bytes behind the body are its own.
    pub binary_bytes: Option<u64>,
}

list! {
    /// A list of tensors at this path.
    Tensors of TensorAt -> Tensor
}

list! {
    /// A list at this path, each item an object of which the `name` is read.
    Names of NameAt -> String
}

list! {
    /// A list of whole numbers at this path.
    Shape of Size -> u64
}

/// What the parameters of an inference may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InferParameters {
    /// Logits instead of what the model makes of them.
    pub raw_scores: bool,
}

/// An object of parameters, or null, at this path.
pub struct Parameters<'a>(pub &'a str);

seed!(Parameters<'a> -> Option<InferParameters>);

impl<'de> Visitor<'de> for Parameters<'_> {
    type Value = Option<InferParameters>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be an object", self.0)
    }

    refuse_strings!();

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut parameters = InferParameters::default();
        while let Some(field) = map.next_key::<String>()? {
            match field.as_str() {
                "raw_scores" => {
                    let flag = map.next_value_seed(super::Flag("parameters.raw_scores"))?;
                    parameters.raw_scores = flag.unwrap_or(false);
                }
                _ => skip(&mut map)?,
            }
        }
        Ok(Some(parameters))
    }
}

struct NameAt<'a>(&'a dyn Display);

seed!(NameAt<'a> -> String);

impl<'de> Visitor<'de> for NameAt<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be an object with a `name`", self.0)
    }

    refuse_strings!();

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<String, M::Error> {
        text_of(map, self.0, "name", "add it")
    }
}

struct TensorAt<'a>(&'a dyn Display);

seed!(TensorAt<'a> -> Tensor);

impl<'de> Visitor<'de> for TensorAt<'_> {
    type Value = Tensor;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be a tensor", self.0)
    }

    refuse_strings!();

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Tensor, M::Error> {
        let mut tensor = Tensor::default();
        while let Some(field) = map.next_key::<String>()? {
            let path = format_args!("{}.{field}", self.0);
            match field.as_str() {
                "name" => tensor.name = map.next_value_seed(Text(&path))?,
                "datatype" => tensor.datatype = map.next_value_seed(Text(&path))?,
                "shape" => tensor.shape = map.next_value_seed(Shape(&path.to_string()))?,
                "parameters" => tensor.binary_bytes = map.next_value_seed(BinarySize(&path))?,
                "data" => {
                    let texts = tensor.texts.insert(Vec::new());
                    map.next_value_seed(Data { path: &path, texts })?;
                }
                _ => skip(&mut map)?,
            }
        }
        Ok(tensor)
    }
}

struct Size<'a>(&'a dyn Display);

seed!(Size<'a> -> u64);

impl Visitor<'_> for Size<'_> {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be a whole number from 0", self.0)
    }

    refuse_strings!();

    fn visit_u64<E: Error>(self, size: u64) -> Result<u64, E> {
        Ok(size)
    }
}

/// Of a tensor's parameters, how many bytes it has behind the body.
struct BinarySize<'a>(&'a dyn Display);

seed!(BinarySize<'a> -> Option<u64>);

impl<'de> Visitor<'de> for BinarySize<'_> {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to be an object", self.0)
    }

    refuse_strings!();

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut size = None;
        while let Some(field) = map.next_key::<String>()? {
            let path = format_args!("{}.{field}", self.0);
            match field.as_str() {
                "binary_data_size" => size = Some(map.next_value_seed(Size(&path))?),
                _ => skip(&mut map)?,
            }
        }
        Ok(size)
    }
}

/// Texts in lists of any depth, row by row.
struct Data<'a> {
    path: &'a dyn Display,
    texts: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Data<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Data<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "`{}` to hold strings, in lists", self.path)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.texts.push(text.to_owned());
        Ok(())
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<(), S::Error> {
        while let Some(()) = items.next_element_seed(Data {
            path: self.path,
            texts: self.texts,
        })? {}
        Ok(())
    }
}
