//! Tensors of texts.

use serde::de::{Error, MapAccess, SeqAccess};

use super::list::List;
use super::{Path, Place, Read, Reader, next_known, value_of};

/// A tensor as it was sent. Its texts are in the body, or lie behind it in bytes.
#[derive(Debug, Default)]
pub struct Tensor {
    /// What it is called.
    pub name: String,
    /// What it claims to hold.
    pub datatype: String,
    /// Its dimensions.
    pub shape: List<u64>,
    /// Its texts, row by row.
    pub texts: Option<List<String>>,
    /// How many bytes behind the body are its own.
    pub binary_bytes: Option<u64>,
}

impl Read for Tensor {
    const EXPECTED: &'static str = "a tensor";

    fn object<'de, M: MapAccess<'de>>(at: Place<'_>, mut map: M) -> Result<Self, M::Error> {
        const KEYS: [&str; 5] = ["name", "datatype", "shape", "parameters", "data"];
        let mut tensor = Self::default();
        while let Some(key) = next_known(&mut map, &KEYS)? {
            let path = Path::Key(at.path, key);
            let at = at.at(&path);
            match key {
                "name" => tensor.name = map.next_value_seed(Reader::at(at))?,
                "datatype" => tensor.datatype = map.next_value_seed(Reader::at(at))?,
                "shape" => tensor.shape = map.next_value_seed(Reader::at(at))?,
                "parameters" => {
                    let sizes: Option<TensorParameters> = map.next_value_seed(Reader::at(at))?;
                    tensor.binary_bytes = sizes.and_then(|sizes| sizes.0);
                }
                _ => tensor.texts = Some(map.next_value_seed(Reader::<Data>::at(at))?.0),
            }
        }
        Ok(tensor)
    }
}

/// Of a tensor's parameters, how many bytes it has behind the body.
struct TensorParameters(Option<u64>);

impl Read for TensorParameters {
    const EXPECTED: &'static str = "an object";

    fn object<'de, M: MapAccess<'de>>(at: Place<'_>, mut map: M) -> Result<Self, M::Error> {
        let mut size = None;
        while let Some(key) = next_known(&mut map, &["binary_data_size"])? {
            let path = Path::Key(at.path, key);
            size = Some(map.next_value_seed(Reader::at(at.at(&path)))?);
        }
        Ok(Self(size))
    }
}

/// Texts in lists of any depth, row by row.
struct Data(List<String>);

impl Read for Data {
    const EXPECTED: &'static str = "a list of strings";

    fn string<E: Error>(at: Place<'_>, text: &str) -> Result<Self, E> {
        let mut list = List::default();
        list.push(text.to_owned(), at.limits);
        Ok(Self(list))
    }

    fn list<'de, S: SeqAccess<'de>>(at: Place<'_>, mut items: S) -> Result<Self, S::Error> {
        let mut list = List::default();
        while let Some(Self(texts)) = items.next_element_seed(Reader::at(at))? {
            list.append(texts, at.limits);
        }
        Ok(Self(list))
    }
}

/// The name of an output.
#[derive(Debug)]
pub struct OutputName(pub String);

impl Read for OutputName {
    const EXPECTED: &'static str = "an object with a `name`";

    fn object<'de, M: MapAccess<'de>>(at: Place<'_>, map: M) -> Result<Self, M::Error> {
        value_of(at, map, "name", "add it").map(Self)
    }
}

/// What the parameters of an inference may ask for.
#[derive(Debug, Clone, Copy, Default)]
pub struct InferParameters {
    /// Logits instead of what the model makes of them.
    pub raw_scores: bool,
}

impl Read for InferParameters {
    const EXPECTED: &'static str = "an object";

    fn object<'de, M: MapAccess<'de>>(at: Place<'_>, mut map: M) -> Result<Self, M::Error> {
        let mut parameters = Self::default();
        while let Some(key) = next_known(&mut map, &["raw_scores"])? {
            let path = Path::Key(at.path, key);
            let flag: Option<bool> = map.next_value_seed(Reader::at(at.at(&path)))?;
            parameters.raw_scores = flag.unwrap_or(false);
        }
        Ok(parameters)
    }
}
