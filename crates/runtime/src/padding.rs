//! Sequences that have to be of one length: which of them are padded together. Pure.

/// Padding that is taken for granted, in tokens: what a further run costs more than.
const SLACK: usize = 8;

/// The rows of `lengths` that are run together, longest first, each group by the index of its rows. No row
/// is padded by more than a third of its own tokens and 8 more, so that a batch in which lengths
/// mix costs no more than that of what it holds.
pub fn groups(lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut rows: Vec<usize> = (0..lengths.len()).collect();
    rows.sort_by_key(|&row| std::cmp::Reverse(lengths[row]));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for row in rows {
        match groups.last_mut() {
            Some(group) if lengths[group[0]] <= most(lengths[row]) => group.push(row),
            _ => groups.push(vec![row]),
        }
    }
    groups
}

/// What a row of `length` tokens may be padded to.
fn most(length: usize) -> usize {
    length + length / 3 + SLACK
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_alike_is_run_together() {
        assert_eq!(groups(&[]), Vec::<Vec<usize>>::new());
        assert_eq!(groups(&[5, 12, 7]), [vec![1, 2, 0]]);
        assert_eq!(groups(&[100, 20, 90, 128]), [vec![3, 0, 2], vec![1]]);
        assert_eq!(groups(&[512, 8, 8, 512]), [vec![0, 3], vec![1, 2]]);
    }

    proptest! {
        /// Every row is in one group, none is padded by more than its part, and so are all together.
        #[test]
        fn padding_is_bounded(lengths in prop::collection::vec(1_usize..600, 0..200)) {
            let groups = groups(&lengths);
            let mut seen: Vec<usize> = groups.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            let mut padded = 0;
            for group in &groups {
                let longest = group.iter().map(|&row| lengths[row]).max().unwrap();
                padded += longest * group.len();
                for &row in group {
                    prop_assert!(longest <= most(lengths[row]));
                }
            }
            let tokens: usize = lengths.iter().sum();
            prop_assert!(padded <= tokens + tokens / 3 + SLACK * lengths.len());
            // As few as any cover of the lengths by ranges that are as wide: no two neighbours would fit.
            for pair in groups.windows(2) {
                let (longest, next) = (lengths[pair[0][0]], lengths[pair[1][0]]);
                prop_assert!(longest > most(next));
            }
        }
    }
}
