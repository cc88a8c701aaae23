//! Compares scores with reference scores, such as those of another machine or of sentence-transformers.

use std::path::Path;

use serde::Deserialize;

use rerankd_core::{Pair, Scale};
use rerankd_engine::bulk::{Engine, EngineError};
use rerankd_engine::load::LoadError;

/// Default of the maximum absolute difference.
pub const DEFAULT_TOLERANCE: f64 = 1e-4;

/// Reference scores: `pairs` with `logits`, `scores`, or both. Other keys are ignored.
#[derive(Debug, Clone, Deserialize)]
pub struct Golden {
    pairs: Vec<[Text; 2]>,
    /// Before the activation: a number per pair, or a list of one per label.
    logits: Option<Vec<Row>>,
    /// After the activation of the model.
    scores: Option<Vec<Row>>,
    /// Maximum absolute difference.
    pub tolerance: Option<f64>,
}

/// A text, or a long text as a repetition.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Text {
    Plain(String),
    Repeated { repeat: (String, usize) },
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Row {
    One(f64),
    Many(Vec<f64>),
}

/// Longest repetition.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// The comparison failed.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The reference scores are invalid.
    #[error("`{path}`: {reason}")]
    Golden {
        /// The file.
        path: String,
        /// What is wrong with the file.
        reason: String,
    },
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model fails.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// The differences of one kind of scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// `logits` or `scores`.
    pub what: &'static str,
    /// One for each number, in order.
    pub differences: Vec<Difference>,
}

/// A number and its reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// Index of the pair.
    pub pair: usize,
    /// The reference.
    pub golden: f64,
    /// The number that was computed here.
    pub ours: f64,
}

impl Difference {
    /// The absolute difference.
    pub fn size(&self) -> f64 {
        (self.ours - self.golden).abs()
    }
}

impl Compared {
    /// The largest difference.
    pub fn worst(&self) -> Option<&Difference> {
        let differences = self.differences.iter();
        differences.max_by(|a, b| a.size().total_cmp(&b.size()))
    }

    /// Differences beyond `tolerance`. NaN is beyond every tolerance.
    pub fn beyond(&self, tolerance: f64) -> impl Iterator<Item = &Difference> {
        let within = move |d: &&Difference| d.size() <= tolerance;
        self.differences.iter().filter(move |d| !within(d))
    }
}

impl Golden {
    /// Reads a file of reference scores.
    ///
    /// # Errors
    /// [`VerifyError::Golden`] when the file is invalid.
    pub fn read(path: &Path) -> Result<Self, VerifyError> {
        let wrong = |reason: String| VerifyError::Golden {
            path: path.display().to_string(),
            reason,
        };
        let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let golden: Self = serde_json::from_slice(&text).map_err(|error| {
            // The message of the parser may quote a text.
            wrong(format!(
                "not reference scores, at line {}; hint: `{{\"pairs\": [[query, document], …], \
                 \"logits\": […]}}`",
                error.line()
            ))
        })?;
        if golden.pairs.is_empty() {
            return Err(wrong("has no pairs".to_owned()));
        }
        if golden.logits.is_none() && golden.scores.is_none() {
            return Err(wrong("has neither `logits` nor `scores`".to_owned()));
        }
        for (name, rows) in [("logits", &golden.logits), ("scores", &golden.scores)] {
            let count = rows.as_ref().map_or(golden.pairs.len(), Vec::len);
            if count != golden.pairs.len() {
                return Err(wrong(format!(
                    "`{name}` has {count} items for {} pairs",
                    golden.pairs.len()
                )));
            }
        }
        let too_long = |text: &Text| match text {
            Text::Plain(_) => false,
            Text::Repeated { repeat } => repeat.0.len().saturating_mul(repeat.1) > MAX_TEXT_BYTES,
        };
        if golden.pairs.iter().flatten().any(too_long) {
            return Err(wrong(format!(
                "a text is longer than {MAX_TEXT_BYTES} bytes"
            )));
        }
        Ok(golden)
    }

    /// Number of pairs.
    pub fn pairs(&self) -> usize {
        self.pairs.len()
    }

    /// Scores every pair with `engine`, and compares the scores.
    ///
    /// # Errors
    /// [`VerifyError::Engine`] when the model fails, [`VerifyError::Golden`] when it has another number
    /// of labels.
    pub fn compare(&self, path: &Path, engine: &Engine) -> Result<Vec<Compared>, VerifyError> {
        let pairs: Vec<Pair> = self
            .pairs
            .iter()
            .map(|[query, document]| Pair {
                query: query.expand().into(),
                document: document.expand().into(),
            })
            .collect();
        let labels = engine.info().labels.len();
        let mut compared = Vec::new();
        for (what, golden, scale) in [
            ("logits", &self.logits, Scale::Raw),
            ("scores", &self.scores, Scale::Activated),
        ] {
            let Some(golden) = golden else { continue };
            if let Some(row) = golden.iter().find(|row| row.values().len() != labels) {
                return Err(VerifyError::Golden {
                    path: path.display().to_string(),
                    reason: format!(
                        "`{what}` has {} numbers per pair; the model returns {labels}",
                        row.values().len()
                    ),
                });
            }
            let ours = engine.score_all(&pairs, scale, |_| ())?;
            let golden = golden.iter().flat_map(Row::values);
            let differences = golden.zip(ours).enumerate();
            compared.push(Compared {
                what,
                differences: differences
                    .map(|(index, (&golden, ours))| Difference {
                        pair: index / labels,
                        golden,
                        ours: ours.into(),
                    })
                    .collect(),
            });
        }
        Ok(compared)
    }
}

impl Text {
    fn expand(&self) -> String {
        match self {
            Self::Plain(text) => text.clone(),
            Self::Repeated { repeat } => repeat.0.repeat(repeat.1),
        }
    }
}

impl Row {
    fn values(&self) -> &[f64] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}
