//! Reference scores of sentence-transformers, from `tests/reference/`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rerankd_core::Pair;
use rerankd_tools::eval::metric::spearman;
use serde::Deserialize;

/// The reference of a model.
#[derive(Debug, Deserialize)]
pub struct Reference {
    pub max_length: usize,
    pub pairs: Vec<[Text; 2]>,
    pub ids: Vec<Vec<u32>>,
    pub type_ids: Vec<Vec<u8>>,
    /// A number for a single label, a list for several.
    pub logits: Vec<OneOrMany>,
    pub scores: Vec<OneOrMany>,
    #[serde(default)]
    pub rank: Vec<RankCase>,
    pub prompt: PromptCase,
    /// A list per pair, for several labels.
    #[serde(default)]
    pub softmax: Vec<OneOrMany>,
}

/// Pairs with a query prompt.
#[derive(Debug, Deserialize)]
pub struct PromptCase {
    pub prompt: String,
    pub pairs: Vec<[Text; 2]>,
    pub logits: Vec<OneOrMany>,
}

impl PromptCase {
    pub fn logits(&self) -> Vec<f32> {
        flat(&self.logits)
    }
}

/// Documents of a query in the order of `CrossEncoder.rank`.
#[derive(Debug, Deserialize)]
pub struct RankCase {
    pub query: String,
    pub documents: Vec<Text>,
    pub order: Vec<usize>,
    pub scores: Vec<f32>,
}

/// A text; long ones are stored as a repeated string and a count.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Text {
    Plain(String),
    Repeat { repeat: (String, usize) },
}

impl Text {
    pub fn expand(&self) -> String {
        match self {
            Self::Plain(text) => text.clone(),
            Self::Repeat {
                repeat: (text, times),
            } => text.repeat(*times),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    One(f32),
    Many(Vec<f32>),
}

impl OneOrMany {
    pub fn values(&self) -> &[f32] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

impl Reference {
    pub fn read(name: &str) -> Self {
        let path = fixture(&format!("{name}.json"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path:?}: {e}"))
    }

    pub fn pairs(&self) -> Vec<Pair> {
        let pair = |[query, document]: &[Text; 2]| Pair {
            query: query.expand().into(),
            document: document.expand().into(),
        };
        self.pairs.iter().map(pair).collect()
    }

    /// All logits, row-major.
    pub fn logits(&self) -> Vec<f32> {
        flat(&self.logits)
    }

    /// All scores, row-major.
    pub fn scores(&self) -> Vec<f32> {
        flat(&self.scores)
    }

    /// The softmax of all logits, row-major.
    pub fn softmax(&self) -> Vec<f32> {
        flat(&self.softmax)
    }
}

fn flat(rows: &[OneOrMany]) -> Vec<f32> {
    let values = rows.iter().flat_map(|row| row.values());
    values.copied().collect()
}

/// Spearman's, of two lists of logits.
pub fn rank_correlation(a: &[f32], b: &[f32]) -> f64 {
    let wide = |logits: &[f32]| logits.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    spearman(&wide(a), &wide(b)).unwrap()
}

/// A file in the reference directory.
pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/reference").join(name)
}

/// Names of the small encoders for which a graph is built from the weights.
pub fn encoders() -> Vec<String> {
    let entries = std::fs::read_dir(root().join("tests/reference/models")).unwrap();
    let dirs = entries.map(|entry| entry.unwrap().path());
    let names = dirs.filter(|dir| dir.join("model.safetensors").exists());
    let names = names.map(|dir| dir.file_name().unwrap().to_str().unwrap().to_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("tiny-")).collect();
    names.sort();
    assert!(names.len() > 10, "{names:?}");
    names
}

/// Calls `check` with every one of [`encoders`], on all cores.
pub fn for_each_encoder(check: impl Fn(&str) + Sync) {
    let (names, next) = (encoders(), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check(name);
                }
            });
        }
    });
}

pub fn model_dir(name: &str) -> PathBuf {
    root().join("tests/reference/models").join(name)
}

/// The repository: that of the build, or the copy of its fixtures that `RERANKD_TEST_ROOT` names, for tests that run
/// on another machine.
pub fn root() -> PathBuf {
    let built = || env!("CARGO_MANIFEST_DIR").into();
    std::env::var_os("RERANKD_TEST_ROOT").map_or_else(built, PathBuf::from)
}
