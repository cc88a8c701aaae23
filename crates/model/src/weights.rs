//! Reads tensors from safetensors files, one at a time.
//!
//! Nothing is memory-mapped or cached: each tensor is read on demand. Headers are checked against the file
//! size, so that a damaged or hostile file causes an error, not a panic or a huge allocation.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::json::Object;
use super::names::is_file_name;
use super::{Files, LFS_POINTER, ModelError, lfs_pointer, open_file, unreadable};

/// Bytes of the header length at the start of a file.
const PREFIX: u64 = 8;
/// The format's limit on the header, in bytes.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes read and converted at a time; a multiple of every element size.
const CHUNK: usize = 1 << 18;

/// What programs put before the names of tensors when they save a network that they wrapped.
const WRAPPERS: [&str; 3] = ["_orig_mod.", "module.", "model."];

const DAMAGED: &str = "download the file again; it is damaged or incomplete";
const MISMATCH: &str = "check that `config.json` and the weights belong together";

/// The tensors of a model, by name.
#[derive(Debug)]
pub struct Weights {
    /// The file, or the index of the files, for messages.
    location: String,
    shards: Vec<Shard>,
    tensors: HashMap<String, Tensor>,
}

/// One safetensors file.
#[derive(Debug)]
struct Shard {
    location: String,
    source: Source,
}

/// The content of a file.
#[derive(Debug)]
pub(super) enum Source {
    File(File),
    Memory(&'static [u8]),
}

/// Location of a tensor, checked against the file size.
#[derive(Debug)]
struct Tensor {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Offset of the first byte in the file.
    start: u64,
    /// Number of elements.
    elements: usize,
}

impl Weights {
    /// Opens a `.safetensors` file and checks its header.
    ///
    /// # Errors
    /// [`ModelError`] if the file cannot be read or its header is invalid.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let mut weights = Self::empty(format!("`{}`", path.display()));
        weights.add(Shard::open(path)?, canonical_name)?;
        Ok(weights)
    }

    /// Reads tensors from the content of a `.safetensors` file, called `location` in messages.
    ///
    /// # Errors
    /// [`ModelError`] if the header is invalid.
    pub fn from_static(
        bytes: &'static [u8],
        location: impl Into<String>,
    ) -> Result<Self, ModelError> {
        let location = location.into();
        let mut weights = Self::empty(location.clone());
        let shard = Shard {
            location,
            source: Source::Memory(bytes),
        };
        weights.add(shard, canonical_name)?;
        Ok(weights)
    }

    /// Opens the shards listed in `index`, a file in `dir`.
    ///
    /// # Errors
    /// [`ModelError`] if a shard is missing, invalid or outside `dir`, or lacks a tensor that the index
    /// assigns to it.
    pub fn open_sharded(dir: &Path, index: &str) -> Result<Self, ModelError> {
        let files = Files::Directory(dir.to_owned());
        let mut weights = Self::empty(files.location(index));
        let shards = read_index(&files, index)?;
        for (file, tensors) in &shards {
            weights.add(Shard::open(&dir.join(file))?, canonical_name)?;
            for tensor in tensors {
                if !weights
                    .tensors
                    .contains_key(canonical_name(tensor).as_str())
                {
                    return Err(ModelError::new(
                        format!(
                            "{} assigns `{tensor}` to `{file}`, which does not contain it",
                            weights.location
                        ),
                        DAMAGED,
                    ));
                }
            }
        }
        Ok(weights)
    }

    /// The file, or the index of the files, for messages.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// The shape of a tensor; `None` if it does not exist.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.shape.as_slice())
    }

    /// Whether a tensor is stored in bf16.
    pub fn is_bf16(&self, name: &str) -> bool {
        let tensor = self.tensors.get(name);
        tensor.is_some_and(|tensor| tensor.dtype == Dtype::BF16)
    }

    /// The names of all tensors, in no particular order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Takes what wraps a saved network (`torch.compile`, data parallelism, a class around it) off the names of
    /// its tensors, until one of them is in `known`. Names in folders are not touched.
    pub(super) fn unwrap(&mut self, known: &[String]) {
        loop {
            let outside = |name: &&str| !name.contains('/');
            if known.iter().any(|name| self.tensors.contains_key(name)) {
                return;
            }
            let wrapper = WRAPPERS.into_iter().find(|wrapper| {
                let mut names = self.names().filter(outside).peekable();
                names.peek().is_some() && names.all(|name| name.starts_with(wrapper))
            });
            let Some(wrapper) = wrapper else {
                return;
            };
            let tensors = std::mem::take(&mut self.tensors).into_iter();
            self.tensors = tensors
                .map(|(name, tensor)| match name.strip_prefix(wrapper) {
                    Some(inner) => (inner.to_owned(), tensor),
                    None => (name, tensor),
                })
                .collect();
        }
    }

    /// Replaces a tensor that several were stacked into by its parts: rows in order, as many each. Nothing
    /// happens if it does not exist or its rows cannot be shared out evenly.
    pub(super) fn split(&mut self, name: &str, parts: &[String]) {
        let divides = |tensor: &Tensor| {
            let rows = tensor.shape.first().copied().unwrap_or(0);
            rows.is_multiple_of(parts.len())
        };
        if !self.tensors.get(name).is_some_and(divides) {
            return;
        }
        let Some(stacked) = self.tensors.remove(name) else {
            return;
        };
        let elements = stacked.elements / parts.len();
        let bytes = elements * stacked.dtype.bitsize() / 8;
        for (index, part) in parts.iter().enumerate() {
            let mut shape = stacked.shape.clone();
            shape[0] /= parts.len();
            let tensor = Tensor {
                shard: stacked.shard,
                dtype: stacked.dtype,
                shape,
                start: stacked.start + (index * bytes) as u64,
                elements,
            };
            self.tensors.insert(part.clone(), tensor);
        }
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(|t| t.elements).sum()
    }

    /// Reads a tensor of the given shape, row-major, converted to `f32`.
    ///
    /// # Errors
    /// [`ModelError`] if the tensor does not exist, has another shape or element type, holds a value that is
    /// not finite, or cannot be read.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let tensor = self.find(name, shape)?;
        self.checked(name, tensor)
    }

    /// Reads a tensor that is stored in bf16 as it is: of a large table, twice its size in fp32 would be needed
    /// beside it.
    ///
    /// # Errors
    /// As [`Self::read`]; also if the tensor is not stored in bf16.
    pub fn read_bf16(&self, name: &str, shape: &[usize]) -> Result<Vec<bf16>, ModelError> {
        let tensor = self.find(name, shape)?;
        let shard = &self.shards[tensor.shard];
        if tensor.dtype != Dtype::BF16 {
            return Err(shard.unsupported(name, tensor.dtype));
        }
        let values = shard.convert(tensor, bf16::from_le_bytes)?;
        shard.check_finite(name, &values, |value| value.to_f32())?;
        Ok(values)
    }

    /// Reads the row `index` of a tensor of the given shape, as [`Self::read`].
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_row(
        &self,
        name: &str,
        shape: [usize; 2],
        index: usize,
    ) -> Result<Vec<f32>, ModelError> {
        let tensor = self.find(name, &shape)?;
        if index >= shape[0] {
            return Err(ModelError::new(
                format!("{}: `{name}` has no row {index}", self.location),
                MISMATCH,
            ));
        }
        let bytes = shape[1] * tensor.dtype.bitsize() / 8;
        let row = Tensor {
            shard: tensor.shard,
            dtype: tensor.dtype,
            shape: vec![shape[1]],
            start: tensor.start + (index * bytes) as u64,
            elements: shape[1],
        };
        self.checked(name, &row)
    }

    /// A tensor, whose shape is checked.
    fn find(&self, name: &str, shape: &[usize]) -> Result<&Tensor, ModelError> {
        let Some(tensor) = self.tensors.get(name) else {
            return Err(ModelError::new(
                format!("{}: there is no tensor `{name}`", self.location),
                MISMATCH,
            ));
        };
        if tensor.shape != shape {
            return Err(ModelError::new(
                format!(
                    "{}: `{name}` has the shape {:?}; `config.json` requires {shape:?}",
                    self.location, tensor.shape
                ),
                MISMATCH,
            ));
        }
        Ok(tensor)
    }

    /// Reads a tensor, whose values must be finite.
    fn checked(&self, name: &str, tensor: &Tensor) -> Result<Vec<f32>, ModelError> {
        let shard = &self.shards[tensor.shard];
        let values = match tensor.dtype {
            Dtype::F32 => shard.convert(tensor, f32::from_le_bytes),
            Dtype::F16 => shard.convert(tensor, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => shard.convert(tensor, |b| bf16::from_le_bytes(b).to_f32()),
            other => Err(shard.unsupported(name, other)),
        }?;
        shard.check_finite(name, &values, |value| value)?;
        Ok(values)
    }

    fn empty(location: String) -> Self {
        Self {
            location,
            shards: Vec::new(),
            tensors: HashMap::new(),
        }
    }

    /// Adds the tensors of another file as `folder/name`.
    pub(super) fn add_folder(
        &mut self,
        folder: &str,
        source: Source,
        location: String,
    ) -> Result<(), ModelError> {
        self.add(Shard { location, source }, |name| {
            format!("{folder}/{name}")
        })
    }

    fn add(&mut self, shard: Shard, rename: impl Fn(&str) -> String) -> Result<(), ModelError> {
        let (data_start, metadata) = shard.header()?;
        for (name, info) in metadata.tensors() {
            let tensor = Tensor {
                shard: self.shards.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                start: data_start + info.data_offsets.0 as u64,
                elements: info.shape.iter().product(),
            };
            self.tensors.insert(rename(&name), tensor);
        }
        self.shards.push(shard);
        Ok(())
    }
}

impl Shard {
    fn open(path: &Path) -> Result<Self, ModelError> {
        let location = format!("`{}`", path.display());
        let Some(file) = open_file(path)? else {
            return Err(ModelError::new(
                format!("{location} is missing"),
                "download all files of the model",
            ));
        };
        Ok(Self {
            location,
            source: Source::File(file),
        })
    }

    /// Reads and checks the header; returns the offset of the data and the tensors.
    fn header(&self) -> Result<(u64, Metadata), ModelError> {
        let size = self.size()?;
        let mut prefix = [0; PREFIX as usize];
        if size < PREFIX {
            return Err(self.damaged(&format!("is too short for a header ({size} bytes)")));
        }
        self.read_at(&mut prefix, 0)?;
        if LFS_POINTER.starts_with(&prefix) {
            return Err(lfs_pointer(&self.location));
        }
        let length = u64::from_le_bytes(prefix);
        if length > MAX_HEADER.min(size - PREFIX) {
            return Err(self.damaged(&format!(
                "has {size} bytes but declares a header of {length} bytes"
            )));
        }
        let mut header = vec![0; length as usize];
        self.read_at(&mut header, PREFIX)?;
        // Parsing also checks that tensors are contiguous and match their shapes and types.
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| self.damaged("has an invalid header").caused_by(error))?;
        let start = PREFIX + length;
        let data = metadata.data_len() as u64;
        if size - start != data {
            return Err(self.damaged(&format!(
                "has {} bytes of tensors; its header declares {data}",
                size - start
            )));
        }
        Ok((start, metadata))
    }

    /// int8 quantization would hide what is not finite; in fp32 it would make every score NaN.
    fn check_finite<T: Copy>(
        &self,
        name: &str,
        values: &[T],
        widen: impl Fn(T) -> f32,
    ) -> Result<(), ModelError> {
        match values.iter().position(|&value| !widen(value).is_finite()) {
            None => Ok(()),
            Some(index) => Err(ModelError::new(
                format!(
                    "{}: `{name}` is {} at index {index}",
                    self.location,
                    widen(values[index])
                ),
                "the weights are damaged; save or download them again",
            )),
        }
    }

    fn unsupported(&self, name: &str, dtype: Dtype) -> ModelError {
        ModelError::new(
            format!("{}: `{name}` is stored as {dtype:?}", self.location),
            "save the model in F32, F16 or BF16",
        )
    }

    fn convert<const N: usize, T>(
        &self,
        tensor: &Tensor,
        convert: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, ModelError> {
        let mut values = Vec::with_capacity(tensor.elements);
        let mut buffer = vec![0; CHUNK.min(tensor.elements * N)];
        let mut offset = tensor.start;
        while values.len() < tensor.elements {
            let wanted = (tensor.elements - values.len()) * N;
            let chunk = &mut buffer[..wanted.min(CHUNK)];
            self.read_at(chunk, offset)?;
            offset += chunk.len() as u64;
            let (elements, _) = chunk.as_chunks::<N>();
            values.extend(elements.iter().map(|&bytes| convert(bytes)));
        }
        Ok(values)
    }

    fn size(&self) -> Result<u64, ModelError> {
        match &self.source {
            Source::Memory(bytes) => Ok(bytes.len() as u64),
            Source::File(file) => match file.metadata() {
                Ok(metadata) => Ok(metadata.len()),
                Err(error) => Err(self.unreadable(error)),
            },
        }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ModelError> {
        let result = match &self.source {
            Source::File(file) => file.read_exact_at(buffer, offset),
            Source::Memory(bytes) => {
                let start = offset as usize;
                match bytes.get(start..start + buffer.len()) {
                    Some(part) => {
                        buffer.copy_from_slice(part);
                        Ok(())
                    }
                    None => Err(std::io::ErrorKind::UnexpectedEof.into()),
                }
            }
        };
        result.map_err(|error| self.unreadable(error))
    }

    fn damaged(&self, what: &str) -> ModelError {
        ModelError::new(format!("{} {what}", self.location), DAMAGED)
    }

    fn unreadable(&self, error: std::io::Error) -> ModelError {
        unreadable(Path::new(self.location.trim_matches('`')), error)
    }
}

/// The shards listed in an index.
///
/// # Errors
/// [`ModelError`] if the index is missing or invalid.
pub fn shard_names(files: &Files, index: &str) -> Result<Vec<String>, ModelError> {
    Ok(read_index(files, index)?.into_keys().collect())
}

/// The shards listed in an index, each with its tensors.
fn read_index(files: &Files, index: &str) -> Result<BTreeMap<String, Vec<String>>, ModelError> {
    let object = Object::read(files, index)?
        .ok_or_else(|| ModelError::new(format!("{} is missing", files.location(index)), DAMAGED))?;
    let map = object
        .object("weight_map")?
        .ok_or_else(|| object.invalid("weight_map", "is missing"))?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for tensor in map.names() {
        let file = map.text(tensor)?.unwrap_or("");
        if !is_file_name(file) {
            return Err(map.invalid(tensor, &format!("is in `{file}`, which is not a file name")));
        }
        shards.entry(file.into()).or_default().push(tensor.into());
    }
    if shards.is_empty() {
        return Err(object.invalid("weight_map", "is empty"));
    }
    Ok(shards)
}

/// Checkpoints converted from TensorFlow name the parameters of LayerNorm gamma and beta.
fn canonical_name(name: &str) -> String {
    for (old, new) in [
        ("LayerNorm.gamma", "LayerNorm.weight"),
        ("LayerNorm.beta", "LayerNorm.bias"),
    ] {
        if let Some(stem) = name.strip_suffix(old) {
            return format!("{stem}{new}");
        }
    }
    name.to_owned()
}

#[cfg(test)]
mod tests;
