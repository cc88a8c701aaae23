//! Combines the scores of a model with those of the first stage of a search, such as BM25. Pure.
//!
//! The first stage knows about exact words and the whole collection, which a cross-encoder does not. Both
//! scales are arbitrary, so each list of scores is brought to a common scale within its request.

use strum::{EnumString, IntoStaticStr, VariantArray, VariantNames};

use crate::error::RerankError;

/// How two lists of scores come to a common scale.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    EnumString,
    IntoStaticStr,
    VariantArray,
    VariantNames,
)]
#[strum(serialize_all = "lowercase")]
pub enum FusionMethod {
    /// Each list minus its mean, over its standard deviation.
    #[default]
    ZScore,
    /// Each list stretched to 0..1.
    MinMax,
    /// Reciprocal rank fusion: `1 / (60 + rank)`, which only depends on the order.
    Rrf,
}

/// The constant of reciprocal rank fusion, of Cormack, Clarke and Büttcher (2009).
const RRF_CONSTANT: f64 = 60.0;

/// The weight of the first stage, where the model has 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FusionWeight(f64);

impl FusionWeight {
    /// Largest weight: the model is then as good as ignored.
    pub const MAX: f64 = 100.0;

    /// `None` unless it is from 0 to [`FusionWeight::MAX`].
    pub fn new(weight: f64) -> Option<Self> {
        (0.0..=Self::MAX).contains(&weight).then_some(Self(weight))
    }

    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl Default for FusionWeight {
    fn default() -> Self {
        // The model leads, and the first stage decides between near equals: docs/models.md has figures.
        Self(0.25)
    }
}

/// What the first stage says about each document of a request, in their order. `None` for one that it did
/// not find.
#[derive(Debug, Clone, PartialEq)]
pub enum FirstStage {
    /// Scores; higher is better.
    Scores(Vec<Option<f64>>),
    /// Ranks from 1; lower is better.
    Ranks(Vec<Option<u32>>),
}

impl FirstStage {
    /// One value per document, higher is better.
    fn values(&self) -> Vec<Option<f64>> {
        match self {
            Self::Scores(scores) => scores.clone(),
            Self::Ranks(ranks) => {
                let ranks = ranks.iter();
                ranks
                    .map(|rank| rank.map(|rank| -f64::from(rank)))
                    .collect()
            }
        }
    }

    /// Number of documents.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Scores(scores) => scores.len(),
            Self::Ranks(ranks) => ranks.len(),
        }
    }
}

/// A first stage and how it is combined with the model's logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Fusion {
    method: FusionMethod,
    weight: FusionWeight,
    first_stage: FirstStage,
}

impl Fusion {
    /// Checks that there is something to combine.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidRequest`](crate::ErrorCode::InvalidRequest) if the first stage found no document
    /// of the list `field`, or a score is not finite.
    pub fn new(
        method: FusionMethod,
        weight: FusionWeight,
        first_stage: FirstStage,
        field: &str,
    ) -> Result<Self, RerankError> {
        if first_stage.values().iter().all(Option::is_none) {
            return Err(RerankError::invalid(format!(
                "`fusion` needs a `score` or a `rank` in at least one of `{field}`; add them, or leave \
                 `fusion` out"
            )));
        }
        if first_stage
            .values()
            .iter()
            .flatten()
            .any(|value| !value.is_finite())
        {
            return Err(RerankError::invalid(format!(
                "a `score` in `{field}` is not finite; send numbers that are"
            )));
        }
        Ok(Self {
            method,
            weight,
            first_stage,
        })
    }

    /// What the first stage says.
    pub fn first_stage(&self) -> &FirstStage {
        &self.first_stage
    }

    /// The combined score of each document: that of its logit, plus the weight times that of the first
    /// stage, both on the scale of the method.
    ///
    /// Of equal scores none counts: a list without differences adds the same to every document. A document
    /// that the first stage did not find counts as its worst; in reciprocal rank fusion it adds nothing.
    ///
    /// # Panics
    /// If there is not one logit per document.
    pub fn combine(&self, logits: &[f32]) -> Vec<f64> {
        assert_eq!(logits.len(), self.first_stage.len());
        let model: Vec<Option<f64>> = logits.iter().map(|&logit| Some(logit.into())).collect();
        let model = scaled(self.method, &model);
        let first = scaled(self.method, &self.first_stage.values());
        let weight = self.weight.get();
        model
            .into_iter()
            .zip(first)
            .map(|(model, first)| model + weight * first)
            .collect()
    }
}

/// `values` on the scale of `method`.
fn scaled(method: FusionMethod, values: &[Option<f64>]) -> Vec<f64> {
    match method {
        FusionMethod::Rrf => reciprocal_ranks(values),
        FusionMethod::ZScore => linear(values, |known| {
            let count = known.len() as f64;
            let mean = known.iter().sum::<f64>() / count;
            let variance = known.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
            (mean, variance.sqrt())
        }),
        FusionMethod::MinMax => linear(values, |known| {
            let least = known.iter().copied().fold(f64::INFINITY, f64::min);
            let most = known.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            (least, most - least)
        }),
    }
}

/// `values` minus an offset and over a scale, which `fit` finds from those that are known. Unknown ones are
/// as low as the lowest. All are 0 where there is no difference.
fn linear(values: &[Option<f64>], fit: impl Fn(&[f64]) -> (f64, f64)) -> Vec<f64> {
    let known: Vec<f64> = values.iter().copied().flatten().collect();
    let differ = known.iter().any(|value| *value != known[0]);
    if !differ {
        return vec![0.0; values.len()];
    }
    // Scaled first, so that no square overflows or underflows.
    let largest = known
        .iter()
        .fold(0.0_f64, |most, value| most.max(value.abs()));
    let known: Vec<f64> = known.iter().map(|value| value / largest).collect();
    let (offset, scale) = fit(&known);
    if scale == 0.0 {
        // They differ by less than their sum can tell.
        return vec![0.0; values.len()];
    }
    let least = known.iter().copied().fold(f64::INFINITY, f64::min);
    values
        .iter()
        .map(|value| (value.map_or(least, |value| value / largest) - offset) / scale)
        .collect()
}

/// The reciprocal rank of each value, the highest first; equal values share the best of their ranks.
fn reciprocal_ranks(values: &[Option<f64>]) -> Vec<f64> {
    let mut order: Vec<f64> = values.iter().copied().flatten().collect();
    order.sort_unstable_by(|a, b| b.total_cmp(a));
    let reciprocal = |value: f64| {
        let better = order.partition_point(|other| other.total_cmp(&value).is_gt());
        1.0 / (RRF_CONSTANT + (better + 1) as f64)
    };
    let values = values.iter();
    values.map(|value| value.map_or(0.0, reciprocal)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn combine(
        method: FusionMethod,
        weight: f64,
        scores: &[Option<f64>],
        logits: &[f32],
    ) -> Vec<f64> {
        let weight = FusionWeight::new(weight).unwrap();
        let first = FirstStage::Scores(scores.to_vec());
        let fusion = Fusion::new(method, weight, first, "documents").unwrap();
        fusion.combine(logits)
    }

    fn close(a: &[f64], b: &[f64]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9)
    }

    #[test]
    fn scores_by_hand() {
        let (first, logits) = ([Some(4.0), Some(0.0), Some(2.0)], [1.0, 3.0, 2.0]);
        let deviation = (2.0_f64 / 3.0).sqrt();
        let expected = [-0.75, 0.75, 0.0].map(|score| score / deviation);
        let found = combine(FusionMethod::ZScore, 0.25, &first, &logits);
        assert!(close(&found, &expected), "{found:?}");
        let found = combine(FusionMethod::MinMax, 0.25, &first, &logits);
        assert!(close(&found, &[0.25, 1.0, 0.625]), "{found:?}");
        let found = combine(FusionMethod::Rrf, 0.5, &first, &logits);
        let [one, two, three] = [1.0 / 61.0, 1.0 / 62.0, 1.0 / 63.0];
        let expected = [three + one / 2.0, one + three / 2.0, two + two / 2.0];
        assert!(close(&found, &expected), "{found:?}");
    }

    #[test]
    fn ranks_are_scores_in_reverse() {
        let logits = [1.0, 3.0, 2.0];
        for &method in <FusionMethod as VariantArray>::VARIANTS {
            let of = |first| {
                let weight = FusionWeight::default();
                Fusion::new(method, weight, first, "documents")
                    .unwrap()
                    .combine(&logits)
            };
            let ranks = of(FirstStage::Ranks(vec![Some(1), None, Some(2)]));
            let scores = of(FirstStage::Scores(vec![Some(9.0), None, Some(8.0)]));
            assert!(close(&ranks, &scores), "{method:?}");
        }
    }

    #[test]
    fn equal_scores_change_nothing() {
        let logits = [1.0, 3.0, 2.0];
        for &method in <FusionMethod as VariantArray>::VARIANTS {
            let equal = combine(method, 5.0, &[Some(7.0); 3], &logits);
            let alone = combine(method, 0.0, &[Some(7.0); 3], &logits);
            let added: Vec<f64> = equal.iter().zip(&alone).map(|(a, b)| a - b).collect();
            assert!(close(&added, &[added[0]; 3]), "{method:?}");
        }
        let one = combine(FusionMethod::ZScore, 1.0, &[Some(7.0)], &[2.0]);
        assert_eq!(one, [0.0]);
    }

    #[test]
    fn a_document_that_was_not_found_counts_as_the_worst() {
        let logits = [0.0; 3];
        let first = [Some(4.0), None, Some(2.0)];
        for method in [FusionMethod::ZScore, FusionMethod::MinMax] {
            let found = combine(method, 1.0, &first, &logits);
            assert_eq!(found[1], found[2]);
            assert!(found[0] > found[1]);
        }
        let found = combine(FusionMethod::Rrf, 1.0, &first, &logits);
        assert!(found[1] < found[2]);
        let none = FirstStage::Scores(vec![None, None]);
        let weight = FusionWeight::default();
        let error = Fusion::new(FusionMethod::ZScore, weight, none, "documents").unwrap_err();
        assert!(error.message().contains("at least one of `documents`"));
    }

    #[test]
    fn weights_are_bounded() {
        assert!(FusionWeight::new(0.0).is_some() && FusionWeight::new(100.0).is_some());
        for weight in [-0.1, 100.1, f64::NAN, f64::INFINITY] {
            assert!(FusionWeight::new(weight).is_none(), "{weight}");
        }
    }

    fn lists() -> impl Strategy<Value = (Vec<Option<f64>>, Vec<f32>)> {
        let score = prop_oneof![
            4 => (-9i32..9).prop_map(|score| Some(f64::from(score) * 0.7)),
            1 => Just(None),
            1 => prop_oneof![Just(f64::MAX), Just(f64::MIN), Just(5e-324)].prop_map(Some),
        ];
        proptest::collection::vec((score, -9i32..9), 1..30).prop_map(|pairs| {
            let pairs = pairs.into_iter();
            let (mut first, logits): (Vec<_>, Vec<f32>) =
                pairs.map(|(score, logit)| (score, logit as f32)).unzip();
            first[0] = first[0].or(Some(0.0));
            (first, logits)
        })
    }

    proptest! {
        #[test]
        fn combined_scores_are_finite((first, logits) in lists(), weight in 0.0..100.0) {
            for &method in <FusionMethod as VariantArray>::VARIANTS {
                let found = combine(method, weight, &first, &logits);
                prop_assert!(found.iter().all(|score| score.is_finite()), "{:?}", found);
            }
        }

        #[test]
        fn without_weight_the_order_is_that_of_the_logits((first, logits) in lists()) {
            for &method in <FusionMethod as VariantArray>::VARIANTS {
                let found = combine(method, 0.0, &first, &logits);
                for (i, j) in (0..found.len()).zip(1..found.len()) {
                    prop_assert_eq!(found[i].total_cmp(&found[j]), logits[i].total_cmp(&logits[j]));
                }
            }
        }

        #[test]
        fn a_better_first_stage_never_lowers_a_document((first, logits) in lists(), weight in 0.0..100.0) {
            let best = first.iter().flatten().fold(f64::MIN, |most, score| most.max(*score));
            prop_assume!(best < 100.0);
            for method in [FusionMethod::MinMax, FusionMethod::Rrf] {
                let place = |found: &[f64]| found.iter().filter(|score| **score > found[0]).count();
                let before = place(&combine(method, weight, &first, &logits));
                let mut better = first.clone();
                better[0] = Some(best);
                let after = place(&combine(method, weight, &better, &logits));
                prop_assert!(after <= before, "{:?}", method);
            }
        }
    }
}
