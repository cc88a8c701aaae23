//! Tensors of a safetensors model, read one at a time.
//!
//! Nothing is mapped or held: each tensor is read from its file when it is asked for. A header is
//! believed only as far as the file's size bears it out, so that a broken or hostile file is an
//! error and never a panic or a huge allocation.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::json::Object;
use super::{Files, ModelError, open_file, unreadable};

/// The header's length, at the start of a file.
const PREFIX: u64 = 8;
/// The longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes that are read and widened at a time; a multiple of every element size.
const CHUNK: usize = 1 << 18;

const DAMAGED: &str = "download the file again; it is damaged or was only partly downloaded";

/// The tensors of a model by name.
#[derive(Debug)]
pub struct Weights {
    /// How messages name the file, or the index of the files.
    place: String,
    shards: Vec<Shard>,
    tensors: HashMap<String, Tensor>,
}

/// One safetensors file.
#[derive(Debug)]
struct Shard {
    place: String,
    source: Source,
}

/// Where the bytes of a file are.
#[derive(Debug)]
pub(super) enum Source {
    File(File),
    Memory(&'static [u8]),
}

/// Where a tensor is; checked against the file's size.
#[derive(Debug)]
struct Tensor {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Offset of the first byte in the file.
    start: u64,
    /// Number of elements; together they fill exactly the bytes that the header gives them.
    elements: usize,
}

impl Weights {
    /// Opens one `.safetensors` file and checks its header.
    ///
    /// # Errors
    /// [`ModelError`] when the file cannot be read, or its header does not fit it.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let mut weights = Self::empty(format!("`{}`", path.display()));
        weights.add(Shard::open(path)?, modern_name)?;
        Ok(weights)
    }

    /// Reads tensors out of the content of a `.safetensors` file; messages call it `place`.
    ///
    /// # Errors
    /// [`ModelError`] when the header does not fit the content.
    pub fn from_static(bytes: &'static [u8], place: impl Into<String>) -> Result<Self, ModelError> {
        let place = place.into();
        let mut weights = Self::empty(place.clone());
        let shard = Shard {
            place,
            source: Source::Memory(bytes),
        };
        weights.add(shard, modern_name)?;
        Ok(weights)
    }

    /// Opens the files that `index`, a file in `dir`, spreads the tensors over.
    ///
    /// # Errors
    /// [`ModelError`] when one of the files is missing or broken, lies outside `dir`, or lacks a
    /// tensor that the index promises.
    pub fn open_sharded(dir: &Path, index: &str) -> Result<Self, ModelError> {
        let files = Files::Directory(dir.to_owned());
        let mut weights = Self::empty(files.place(index));
        let shards = read_index(&files, index)?;
        for (file, tensors) in &shards {
            weights.add(Shard::open(&dir.join(file))?, modern_name)?;
            for tensor in tensors {
                if !weights.tensors.contains_key(modern_name(tensor).as_str()) {
                    return Err(ModelError::new(
                        format!(
                            "{} says that `{file}` holds `{tensor}`, but it does not",
                            weights.place
                        ),
                        DAMAGED,
                    ));
                }
            }
        }
        Ok(weights)
    }

    /// How messages name the file, or the index of the files.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The shape of a tensor, `None` when there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.shape.as_slice())
    }

    /// Number of parameters in all tensors.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(|t| t.elements).sum()
    }

    /// Reads a tensor of the given shape, row by row, widened to `f32`.
    ///
    /// # Errors
    /// [`ModelError`] when there is no such tensor, it has another shape, its elements are not
    /// F32, F16 or BF16, or the file cannot be read.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let Some(tensor) = self.tensors.get(name) else {
            return Err(ModelError::new(
                format!("{}: there is no tensor `{name}`", self.place),
                "check that `config.json` and the weights belong together",
            ));
        };
        if tensor.shape != shape {
            return Err(ModelError::new(
                format!(
                    "{}: `{name}` has the shape {:?}; `config.json` makes it {shape:?}",
                    self.place, tensor.shape
                ),
                "check that `config.json` and the weights belong together",
            ));
        }
        let shard = &self.shards[tensor.shard];
        let numbers = match tensor.dtype {
            Dtype::F32 => shard.widen(tensor, f32::from_le_bytes),
            Dtype::F16 => shard.widen(tensor, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => shard.widen(tensor, |b| bf16::from_le_bytes(b).to_f32()),
            other => Err(ModelError::new(
                format!("{}: `{name}` is stored as {other:?}", shard.place),
                "save the model in F32, F16 or BF16",
            )),
        }?;
        // Eight-bit weights would hide such a number; in 32 bits it would spoil every score.
        if let Some(index) = numbers.iter().position(|number| !number.is_finite()) {
            return Err(ModelError::new(
                format!(
                    "{}: `{name}` holds {} at {index}",
                    shard.place, numbers[index]
                ),
                "the weights are damaged; save or fetch them again",
            ));
        }
        Ok(numbers)
    }

    fn empty(place: String) -> Self {
        Self {
            place,
            shards: Vec::new(),
            tensors: HashMap::new(),
        }
    }

    /// Adds what another file holds, each of its tensors under `folder/name`.
    pub(super) fn add_folder(
        &mut self,
        folder: &str,
        source: Source,
        place: String,
    ) -> Result<(), ModelError> {
        self.add(Shard { place, source }, |name| format!("{folder}/{name}"))
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
        let place = format!("`{}`", path.display());
        let Some(file) = open_file(path)? else {
            return Err(ModelError::new(
                format!("{place} is missing"),
                "download all files of the model",
            ));
        };
        Ok(Self {
            place,
            source: Source::File(file),
        })
    }

    /// Reads and checks the header; returns where the data starts and what lies there.
    fn header(&self) -> Result<(u64, Metadata), ModelError> {
        let size = self.size()?;
        let mut prefix = [0; PREFIX as usize];
        if size < PREFIX {
            return Err(self.damaged(&format!("has {size} bytes, too few for a header")));
        }
        self.read_at(&mut prefix, 0)?;
        let length = u64::from_le_bytes(prefix);
        if length > MAX_HEADER.min(size - PREFIX) {
            return Err(self.damaged(&format!(
                "has {size} bytes but says that its header has {length}"
            )));
        }
        let mut header = vec![0; length as usize];
        self.read_at(&mut header, PREFIX)?;
        // Reading it also checks that the tensors lie end to end and that each has exactly the
        // bytes that its shape and type need.
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| self.damaged(&format!("has a broken header: {error}")))?;
        let start = PREFIX + length;
        let data = metadata.data_len() as u64;
        if size - start != data {
            return Err(self.damaged(&format!(
                "has {} bytes of tensors; its header says {data}",
                size - start
            )));
        }
        Ok((start, metadata))
    }

    fn widen<const N: usize>(
        &self,
        tensor: &Tensor,
        convert: impl Fn([u8; N]) -> f32,
    ) -> Result<Vec<f32>, ModelError> {
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
                Err(error) => Err(self.unreadable(&error)),
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
        result.map_err(|error| self.unreadable(&error))
    }

    fn damaged(&self, what: &str) -> ModelError {
        ModelError::new(format!("{} {what}", self.place), DAMAGED)
    }

    fn unreadable(&self, error: &std::io::Error) -> ModelError {
        unreadable(Path::new(self.place.trim_matches('`')), error)
    }
}

/// The files that an index names.
///
/// # Errors
/// As [`Weights::open_sharded`], of the index alone.
pub fn shard_names(files: &Files, index: &str) -> Result<Vec<String>, ModelError> {
    Ok(read_index(files, index)?.into_keys().collect())
}

/// The files that an index names, each with its tensors.
fn read_index(files: &Files, index: &str) -> Result<BTreeMap<String, Vec<String>>, ModelError> {
    let object = Object::read(files, index)?
        .ok_or_else(|| ModelError::new(format!("{} is missing", files.place(index)), DAMAGED))?;
    let map = object
        .object("weight_map")?
        .ok_or_else(|| object.bad("weight_map", "is missing"))?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for tensor in map.names() {
        let file = map.text(tensor)?.unwrap_or("");
        if !is_file_name(file) {
            return Err(map.bad(
                tensor,
                &format!("is in `{file}`, which is not the name of a file beside the index"),
            ));
        }
        shards.entry(file.into()).or_default().push(tensor.into());
    }
    if shards.is_empty() {
        return Err(object.bad("weight_map", "is empty"));
    }
    Ok(shards)
}

/// Whether `name` stays in its directory: one ordinary component, no root and no `..`.
pub fn is_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!(components.next(), Some(Component::Normal(part)) if part == name)
        && components.next().is_none()
}

/// Checkpoints converted from TensorFlow call the parameters of LayerNorm gamma and beta.
fn modern_name(name: &str) -> String {
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
