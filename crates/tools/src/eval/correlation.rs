//! Correlation of scores with human judgments, as in `CrossEncoderCorrelationEvaluator`.

use super::data::GoldPair;
use super::metric::{pearson, spearman};

/// Correlations of scores with gold scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Correlation {
    /// Pearson's; `None` if the scores do not vary.
    pub pearson: Option<f64>,
    /// Spearman's; `None` if the scores do not vary.
    pub spearman: Option<f64>,
}

impl Correlation {
    /// The correlations of `scores`, one for each of `pairs`.
    pub fn of(pairs: &[GoldPair], scores: &[f64]) -> Self {
        let gold: Vec<f64> = pairs.iter().map(|pair| pair.score).collect();
        Self {
            pearson: pearson(&gold, scores),
            spearman: spearman(&gold, scores),
        }
    }
}
