//! Model directories for tests: modified fixtures and synthetic models.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use half::{bf16, f16};
use rerankd_model::{Manifest, Model};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::reference::model_dir;

pub const WEIGHTS: &str = "model.safetensors";

/// A copy of a reference model, to be modified.
pub fn copy(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_folder(&model_dir(name), dir.path());
    dir
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&to).unwrap();
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Modifies a JSON file of a model.
pub fn edit(dir: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.join(file);
    let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Replaces every `from` in a file with `to`, of the same length.
pub fn replace(dir: &Path, file: &str, from: &str, to: &str) {
    let path = dir.join(file);
    let bytes = replaced(fs::read(&path).unwrap(), from, to);
    fs::write(path, bytes).unwrap();
}

/// Bytes with every `from` replaced with `to`, of the same length.
pub fn replaced(mut bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut at = 0;
    while let Some(found) = bytes[at..]
        .windows(from.len())
        .position(|window| window == from.as_bytes())
    {
        bytes[at + found..][..to.len()].copy_from_slice(to.as_bytes());
        at += found + to.len();
    }
    assert!(at > 0, "there is no {from}");
    bytes
}

/// Tensors by name: shape and values.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Reads F32 tensors.
pub fn read_tensors(dir: &Path) -> Tensors {
    let bytes = fs::read(dir.join(WEIGHTS)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, view): (String, TensorView)| {
        assert_eq!(view.dtype(), Dtype::F32, "{name}");
        let (numbers, _) = view.data().as_chunks::<4>();
        let numbers = numbers.iter().map(|b| f32::from_le_bytes(*b)).collect();
        (name, (view.shape().to_vec(), numbers))
    };
    file.tensors().into_iter().map(tensor).collect()
}

/// Writes tensors, rounded to `dtype`.
pub fn write_tensors(path: &Path, tensors: &Tensors, dtype: Dtype) {
    let bytes = |numbers: &[f32]| -> Vec<u8> {
        match dtype {
            Dtype::F32 => numbers.iter().flat_map(|n| n.to_le_bytes()).collect(),
            Dtype::F16 => numbers
                .iter()
                .flat_map(|&n| f16::from_f32(n).to_le_bytes())
                .collect(),
            Dtype::BF16 => numbers
                .iter()
                .flat_map(|&n| bf16::from_f32(n).to_le_bytes())
                .collect(),
            other => panic!("{other:?} is not written"),
        }
    };
    let data: Vec<Vec<u8>> = tensors
        .values()
        .map(|(_, numbers)| bytes(numbers))
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, (shape, _)), data)| {
        let view = TensorView::new(dtype, shape.clone(), data).unwrap();
        (name, view)
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A synthetic BERT with one label.
pub struct Bert {
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub intermediate: usize,
    pub positions: usize,
    pub vocabulary: usize,
}

/// The words of its tokenizer. Ids are indices here, except that the last word has the last id of the
/// vocabulary.
pub const WORDS: [&str; 7] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "near", "far", "last"];

impl Bert {
    /// The size of the embedded model, with a small vocabulary.
    pub const LIKE_EMBEDDED: Self = Self {
        layers: 6,
        hidden: 384,
        heads: 12,
        intermediate: 1536,
        positions: 512,
        vocabulary: 100,
    };

    /// Names and shapes of its tensors.
    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let Self {
            hidden,
            intermediate,
            ..
        } = *self;
        let mut shapes = Vec::new();
        let mut add = |name: String, shape: &[usize]| shapes.push((name, shape.to_vec()));
        let embeddings = "bert.embeddings";
        add(
            format!("{embeddings}.position_embeddings.weight"),
            &[self.positions, hidden],
        );
        add(
            format!("{embeddings}.token_type_embeddings.weight"),
            &[2, hidden],
        );
        let mut norms = vec![format!("{embeddings}.LayerNorm")];
        let mut dense = vec![("bert.pooler.dense".to_owned(), hidden, hidden)];
        for layer in 0..self.layers {
            let base = format!("bert.encoder.layer.{layer}");
            for part in ["query", "key", "value"] {
                dense.push((format!("{base}.attention.self.{part}"), hidden, hidden));
            }
            dense.push((format!("{base}.attention.output.dense"), hidden, hidden));
            norms.push(format!("{base}.attention.output.LayerNorm"));
            dense.push((format!("{base}.intermediate.dense"), intermediate, hidden));
            dense.push((format!("{base}.output.dense"), hidden, intermediate));
            norms.push(format!("{base}.output.LayerNorm"));
        }
        dense.push(("classifier".to_owned(), 1, hidden));
        for (name, out, input) in dense {
            add(format!("{name}.weight"), &[out, input]);
            add(format!("{name}.bias"), &[out]);
        }
        for name in norms {
            add(format!("{name}.weight"), &[hidden]);
            add(format!("{name}.bias"), &[hidden]);
        }
        // The large one comes last, so that its unwritten part is the end of the file.
        add(
            format!("{embeddings}.word_embeddings.weight"),
            &[self.vocabulary, hidden],
        );
        shapes
    }

    /// Writes the model. Values depend on the tensor name and the index only; of the word embeddings, only the
    /// rows of [`WORDS`] are written, the others are holes in the file.
    pub fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: Value| {
            fs::write(dir.path().join(name), content.to_string()).unwrap();
        };
        file("config.json", self.config());
        file("tokenizer.json", self.tokenizer());

        let mut header = serde_json::Map::new();
        let mut end = 0;
        let shapes = self.shapes();
        for (name, shape) in &shapes {
            let start = end;
            end += 4 * shape.iter().product::<usize>();
            let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
            header.insert(name.clone(), entry);
        }
        let header = Value::Object(header).to_string();
        let weights = File::create(dir.path().join(WEIGHTS)).unwrap();
        let mut offset = 8 + header.len() as u64;
        weights.set_len(offset + end as u64).unwrap();
        weights
            .write_all_at(&(header.len() as u64).to_le_bytes(), 0)
            .unwrap();
        weights.write_all_at(header.as_bytes(), 8).unwrap();
        for (name, shape) in &shapes {
            let write = |numbers: Vec<f32>, at: usize| {
                let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
                weights
                    .write_all_at(&bytes, offset + 4 * at as u64)
                    .unwrap();
            };
            if name.ends_with("word_embeddings.weight") {
                for word in 0..WORDS.len() {
                    let row = numbers(&format!("word {word}"), self.hidden, 1.0);
                    write(row, self.id(word) * self.hidden);
                }
            } else {
                let count = shape.iter().product();
                let spread = if shape.len() == 1 {
                    0.5
                } else {
                    (3.0 / self.hidden as f32).sqrt()
                };
                write(numbers(name, count, spread), 0);
            }
            offset += 4 * shape.iter().product::<usize>() as u64;
        }
        dir
    }

    fn id(&self, word: usize) -> usize {
        if word + 1 == WORDS.len() {
            self.vocabulary - 1
        } else {
            word
        }
    }

    fn config(&self) -> Value {
        json!({
            "architectures": ["BertForSequenceClassification"],
            "model_type": "bert",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.positions,
            "vocab_size": self.vocabulary,
            "id2label": {"0": "relevance"},
        })
    }

    fn tokenizer(&self) -> Value {
        let ids: serde_json::Map<String, Value> = WORDS
            .iter()
            .enumerate()
            .map(|(word, text)| ((*text).to_owned(), self.id(word).into()))
            .collect();
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": {
                "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2],
            },
            "decoder": null,
            "model": {"type": "WordLevel", "vocab": ids, "unk_token": "[UNK]"},
        })
    }
}

/// Values between `-spread` and `spread`, seeded by a name.
fn numbers(name: &str, count: usize, spread: f32) -> Vec<f32> {
    // FNV-1a, then xorshift.
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next() * spread).collect()
}

/// Configuration files of a model directory.
pub fn manifest(dir: &Path) -> Manifest {
    Model::open(dir).unwrap().manifest
}
