//! Correlation and ranking metrics. Pure.
//!
//! Ranking metrics follow `trec_eval`: the gain of a document is its relevance, and all relevant
//! documents count, whether or not they are in the ranking.

use std::cmp::Ordering;

/// Pearson's correlation of two lists of equal length. `None` if it is undefined: one of them does not
/// vary, or has fewer than two values.
pub fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    debug_assert_eq!(x.len(), y.len());
    let (x, x_norm) = centered(x)?;
    let (y, y_norm) = centered(y)?;
    let product: f64 = x
        .iter()
        .zip(&y)
        .map(|(a, b)| (a / x_norm) * (b / y_norm))
        .sum();
    Some(product.clamp(-1.0, 1.0))
}

/// The values minus their mean, and the norm of the result.
fn centered(values: &[f64]) -> Option<(Vec<f64>, f64)> {
    let first = values.first()?;
    if values.iter().all(|value| value == first) || values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let centered: Vec<f64> = values.iter().map(|value| value - mean).collect();
    // Scaled first, so that no square overflows or underflows.
    let largest = centered.iter().fold(0.0_f64, |most, v| most.max(v.abs()));
    let norm = largest
        * centered
            .iter()
            .map(|v| (v / largest).powi(2))
            .sum::<f64>()
            .sqrt();
    (norm > 0.0 && norm.is_finite()).then_some((centered, norm))
}

/// Spearman's rank correlation: Pearson's of the ranks. `None` as for [`pearson`].
pub fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    if x.iter().chain(y).any(|value| !value.is_finite()) {
        return None;
    }
    pearson(&ranks(x), &ranks(y))
}

/// The rank of each value, from 1 for the smallest; equal values have the mean of their ranks.
pub fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for group in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let mean = before as f64 + (group.len() + 1) as f64 / 2.0;
        for &index in group {
            ranks[index] = mean;
        }
        before += group.len();
    }
    ranks
}

/// The largest difference between two lists of equal length.
pub fn largest_difference(x: &[f64], y: &[f64]) -> f64 {
    let differences = x.iter().zip(y).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, f64::max)
}

/// The relevances of one query's ranking.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// Relevance of each document in the order of the ranking; 0 without a judgment.
    ranked: Vec<u32>,
    /// Every relevance above 0, in descending order, whether or not the document is in the ranking.
    ideal: Vec<u32>,
    /// Minimum relevance for binary metrics.
    relevant_from: u32,
}

impl Judged {
    /// A ranking with the relevances `ranked`, of a query with the relevances `judgments` in total.
    /// Negative relevances count as 0, as in `trec_eval`.
    pub fn new(
        ranked: impl IntoIterator<Item = i64>,
        judgments: impl IntoIterator<Item = i64>,
        relevant_from: u32,
    ) -> Self {
        let gain = |relevance: i64| u32::try_from(relevance.max(0)).unwrap_or(u32::MAX);
        let mut ideal: Vec<u32> = judgments.into_iter().map(gain).filter(|&g| g > 0).collect();
        ideal.sort_unstable_by(|a, b| b.cmp(a));
        Self {
            ranked: ranked.into_iter().map(gain).collect(),
            ideal,
            relevant_from: relevant_from.max(1),
        }
    }

    /// Normalized discounted cumulative gain of the first `k`: the sum of `rel / log2(rank + 1)`,
    /// divided by that of the ideal ranking. 0 if nothing is relevant.
    pub fn ndcg(&self, k: usize) -> f64 {
        let ideal = discounted(&self.ideal, k);
        if ideal == 0.0 {
            return 0.0;
        }
        discounted(&self.ranked, k) / ideal
    }

    /// The reciprocal rank of the first relevant document; 0 if it is not among the first `k`.
    pub fn reciprocal_rank(&self, k: usize) -> f64 {
        let first = self.ranked.iter().take(k).position(|&g| self.relevant(g));
        first.map_or(0.0, |index| 1.0 / (index + 1) as f64)
    }

    /// Average precision: the mean over all relevant documents of the precision at their rank, which is
    /// 0 for a document that is not in the ranking.
    pub fn average_precision(&self) -> f64 {
        let mut found = 0;
        let mut sum = 0.0;
        for (index, &gain) in self.ranked.iter().enumerate() {
            if self.relevant(gain) {
                found += 1;
                sum += f64::from(found) / (index + 1) as f64;
            }
        }
        share(sum, self.relevant_count())
    }

    /// The fraction of relevant documents among the first `k`.
    pub fn recall(&self, k: usize) -> f64 {
        let found = self.ranked.iter().take(k).filter(|&&g| self.relevant(g));
        share(found.count() as f64, self.relevant_count())
    }

    fn relevant(&self, gain: u32) -> bool {
        gain >= self.relevant_from
    }

    fn relevant_count(&self) -> usize {
        self.ideal.iter().filter(|&&g| self.relevant(g)).count()
    }
}

fn discounted(gains: &[u32], k: usize) -> f64 {
    let gains = gains.iter().take(k).enumerate();
    gains
        .map(|(index, &gain)| f64::from(gain) / ((index + 2) as f64).log2())
        .sum()
}

fn share(part: f64, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part / whole as f64 }
}

/// The order of two documents by score, best first; equal scores by id, the later in the alphabet
/// first, as `trec_eval` does, so that no figure depends on the order of a file.
pub fn best_first(a: (f64, &str), b: (f64, &str)) -> Ordering {
    b.0.total_cmp(&a.0).then_with(|| b.1.cmp(a.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn equal_values_share_the_mean_of_their_ranks() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
        assert_eq!(ranks(&[0.0, -0.0, 0.0]), [2.0, 2.0, 2.0]);
        assert_eq!(ranks(&[]), [0.0; 0]);
    }

    #[test]
    fn constant_values_have_no_correlation() {
        for (x, y) in [
            (vec![], vec![]),
            (vec![1.0], vec![2.0]),
            (vec![1.0, 1.0], vec![1.0, 2.0]),
            (vec![1.0, 2.0], vec![0.1 + 0.2; 2]),
            (vec![1.0, 2.0], vec![f64::NAN, 2.0]),
            (vec![1.0, 2.0], vec![f64::INFINITY, 2.0]),
        ] {
            assert_eq!(pearson(&x, &y), None, "{x:?} {y:?}");
            assert_eq!(spearman(&x, &y), None, "{x:?} {y:?}");
        }
    }

    #[test]
    fn figures_of_a_ranking_by_hand() {
        // Relevance 0 2 1 0 0, and another document of relevance 1 that was not found.
        let judged = Judged::new([0, 2, 1, -1, 0], [2, 1, 1, -1, 0], 1);
        let log3 = 3.0_f64.log2();
        let ideal = 2.0 + 1.0 / log3 + 0.5;
        assert!(close(judged.ndcg(10), (2.0 / log3 + 0.5) / ideal));
        assert!(close(judged.ndcg(2), (2.0 / log3) / (2.0 + 1.0 / log3)));
        assert!(close(judged.reciprocal_rank(10), 0.5));
        assert_eq!(judged.reciprocal_rank(1), 0.0);
        assert!(close(judged.average_precision(), (0.5 + 2.0 / 3.0) / 3.0));
        assert!(close(judged.recall(2), 1.0 / 3.0));
        assert!(close(judged.recall(5), 2.0 / 3.0));
        let strict = Judged::new([0, 2, 1], [2, 1, 1], 2);
        assert_eq!((strict.recall(2), strict.average_precision()), (1.0, 0.5));
        let hopeless = Judged::new([0, 0], [0, -1], 1);
        assert_eq!(hopeless.ndcg(10), 0.0);
        assert_eq!(
            (hopeless.recall(10), hopeless.average_precision()),
            (0.0, 0.0)
        );
    }

    #[test]
    fn equal_scores_go_by_id_from_the_end() {
        let mut found = [(1.0, "b"), (2.0, "a"), (1.0, "c")];
        found.sort_by(|a, b| best_first(*a, *b));
        assert_eq!(found, [(2.0, "a"), (1.0, "c"), (1.0, "b")]);
    }

    fn lists() -> impl Strategy<Value = (Vec<f64>, Vec<f64>)> {
        // Few values, so that ties are common.
        proptest::collection::vec((-9i32..9, -9i32..9), 2..40).prop_map(|pairs| {
            let pairs = pairs.into_iter();
            pairs
                .map(|(x, y)| (f64::from(x), f64::from(y) / 7.0))
                .unzip()
        })
    }

    fn ranking() -> impl Strategy<Value = (Vec<i64>, Vec<i64>)> {
        let relevance = || proptest::collection::vec(-1i64..4, 0..30);
        (relevance(), relevance())
    }

    proptest! {
        #[test]
        fn correlations_are_symmetric_and_bounded((x, y) in lists()) {
            for correlation in [pearson, spearman] {
                let found = correlation(&x, &y);
                prop_assert_eq!(found.is_some(), correlation(&y, &x).is_some());
                if let Some(found) = found {
                    prop_assert!(found.abs() <= 1.0);
                    prop_assert!(close(found, correlation(&y, &x).unwrap()));
                    let turned: Vec<f64> = y.iter().map(|y| -y).collect();
                    prop_assert!(close(-found, correlation(&x, &turned).unwrap()));
                }
            }
        }

        #[test]
        fn pearson_ignores_scale_and_spearman_all_that_keeps_the_order((x, y) in lists()) {
            let scaled: Vec<f64> = x.iter().map(|x| 1e-150 * x + 3e-149).collect();
            if let (Some(a), Some(b)) = (pearson(&x, &y), pearson(&scaled, &y)) {
                prop_assert!(close(a, b), "{} {}", a, b);
            }
            let bent: Vec<f64> = x.iter().map(|x| x.exp()).collect();
            prop_assert_eq!(spearman(&x, &y), spearman(&bent, &y));
        }

        #[test]
        fn ranks_add_up((x, _) in lists()) {
            let n = x.len() as f64;
            prop_assert!(close(ranks(&x).iter().sum(), n * (n + 1.0) / 2.0));
        }

        #[test]
        fn figures_are_between_0_and_1((found, missed) in ranking(), k in 1usize..40) {
            let all = found.iter().chain(&missed).copied();
            let judged = Judged::new(found.clone(), all, 1);
            for figure in [
                judged.ndcg(k), judged.reciprocal_rank(k), judged.recall(k), judged.average_precision(),
            ] {
                prop_assert!((0.0..=1.0 + 1e-12).contains(&figure));
            }
        }

        #[test]
        fn the_best_order_has_every_figure_1((mut found, _) in ranking(), k in 1usize..40) {
            found.sort_unstable_by(|a, b| b.cmp(a));
            prop_assume!(found.first().is_some_and(|&best| best > 0));
            let judged = Judged::new(found.clone(), found, 1);
            prop_assert!(close(judged.ndcg(k), 1.0));
            prop_assert_eq!(judged.reciprocal_rank(k), 1.0);
            prop_assert!(close(judged.average_precision(), 1.0));
            prop_assert_eq!(judged.recall(40), 1.0);
        }

        #[test]
        fn a_better_neighbour_in_front_never_lowers_a_figure(
            (mut found, missed) in ranking(), choice in any::<prop::sample::Index>(), k in 1usize..40
        ) {
            let better: Vec<usize> = (1..found.len()).filter(|&i| found[i - 1] < found[i]).collect();
            prop_assume!(!better.is_empty());
            let at = better[choice.index(better.len())] - 1;
            let all: Vec<i64> = found.iter().chain(&missed).copied().collect();
            let before = Judged::new(found.clone(), all.clone(), 1);
            found.swap(at, at + 1);
            let after = Judged::new(found, all, 1);
            prop_assert!(after.ndcg(k) >= before.ndcg(k) - 1e-12);
            prop_assert!(after.reciprocal_rank(k) >= before.reciprocal_rank(k));
            prop_assert!(after.average_precision() >= before.average_precision() - 1e-12);
            prop_assert!(after.recall(k) >= before.recall(k));
        }
    }
}
