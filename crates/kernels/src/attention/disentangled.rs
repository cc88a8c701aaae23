//! Scores of disentangled attention (DeBERTa), where relative positions have keys and queries of their own.
//!
//! No product with a position is stored. A vector register holds one dimension of many queries. Their distances
//! from one key follow each other, and so do the positions if those of a head are laid out by distance: sums over
//! the dimensions read them at an offset that depends on key and block only.

use super::{STEP, WIDE_LANES};
use crate::isa::{Isa, multiply_add};

/// Relative positions as keys and queries.
///
/// The distance of a key is the position of the query minus the key's, and distances share buckets. A score is
/// `q · k + q · keys[bucket] + k · queries[bucket]`, for a query `q` and a key `k`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Disentangled<'a> {
    /// Keys of the buckets, for content to position: `[heads * size, buckets]`.
    pub keys: &'a [f32],
    /// Queries of the buckets, for position to content, scaled as the queries are: `[heads * size, buckets]`.
    pub queries: &'a [f32],
    /// Bucket of each distance, `[2 * reach + 1]`, distance 0 in the middle. Sequences have at most `reach + 1`
    /// tokens.
    pub buckets: &'a [i32],
}

/// Numbers of a cache line.
const LINE: usize = 16;

/// Columns of a sequence's distances, with what blocks of queries and keys read beyond them. An odd number of cache
/// lines, so that the rows of a head fall into all sets of the first-level cache.
fn columns(tokens: usize) -> usize {
    let lines = (2 * tokens + STEP + WIDE_LANES).div_ceil(LINE);
    (lines / 2 * 2 + 1) * LINE
}

/// Which of a sequence's buckets have a place before or after that of their neighbors, around distance 0.
fn adjacent(buckets: &[i32]) -> std::ops::Range<usize> {
    let middle = buckets.len() / 2;
    let follows = |pair: &[i32]| pair[1] == pair[0] + 1;
    let before = buckets[..=middle]
        .windows(2)
        .rev()
        .take_while(|&pair| follows(pair));
    let behind = buckets[middle..]
        .windows(2)
        .take_while(|&pair| follows(pair));
    middle - before.count()..middle + behind.count() + 1
}

impl Disentangled<'_> {
    /// Lays out a head's positions by distance, for a sequence of so many tokens: `[size, 2, columns]`, keys before
    /// queries. The greatest distance between a key and the query after it is first.
    #[inline(always)]
    pub(super) fn lay_out(
        &self,
        head: usize,
        (heads, size): (usize, usize),
        tokens: usize,
        positions: &mut Vec<f32>,
    ) {
        let columns = columns(tokens);
        // What is not overwritten is read for queries and keys that do not exist.
        positions.resize(size * 2 * columns, 0.0);
        let reach = self.buckets.len() / 2;
        let buckets = &self.buckets[reach + 1 - tokens..reach + tokens];
        let near = adjacent(buckets);
        let count = self.keys.len() / (heads * size);
        let rows = head * size * count..(head + 1) * size * count;
        let keys = self.keys[rows.clone()].chunks_exact(count);
        let queries = self.queries[rows].chunks_exact(count);
        let laid_out = positions.chunks_exact_mut(2 * columns);
        for ((keys, queries), row) in keys.zip(queries).zip(laid_out) {
            let (for_keys, for_queries) = row.split_at_mut(columns);
            for (table, row) in [(keys, for_keys), (queries, for_queries)] {
                let row = &mut row[STEP - 1..][..buckets.len()];
                let first = buckets[near.start] as usize;
                row[near.clone()].copy_from_slice(&table[first..first + near.len()]);
                for far in [0..near.start, near.end..buckets.len()] {
                    for (number, &bucket) in row[far.clone()].iter_mut().zip(&buckets[far]) {
                        *number = table[bucket as usize];
                    }
                }
            }
        }
    }
}

/// Scores `[tokens, LANES]` of queries `[size, LANES]`, the first at `place` in a sequence of so many tokens,
/// against the panels of keys and the positions that were laid out.
#[inline(always)]
pub(super) fn score<I: Isa, const LANES: usize>(
    queries: &[f32],
    keys: &[f32],
    positions: &[f32],
    (place, tokens): (usize, usize),
    scores: &mut Vec<f32>,
) {
    let size = queries.len() / LANES;
    let columns = columns(tokens);
    scores.resize(keys.len() / size * LANES, 0.0);
    let panels = keys.chunks_exact(size * STEP);
    let panels = panels.zip(scores.chunks_exact_mut(STEP * LANES));
    for (step, (panel, scores)) in panels.enumerate() {
        // Of the first query and the last key of the panel.
        let first = place + tokens - 1 - step * STEP;
        let mut sums = [[0.0_f32; LANES]; STEP];
        let rows = positions.chunks_exact(2 * columns);
        let dimensions = panel.chunks_exact(STEP).zip(queries.chunks_exact(LANES));
        for (row, (keys, queries)) in rows.zip(dimensions) {
            let for_keys = &row[first..][..LANES + STEP - 1];
            let for_queries = &row[columns + first..][..LANES + STEP - 1];
            for (index, (sums, &key)) in sums.iter_mut().zip(keys).enumerate() {
                let for_keys = &for_keys[STEP - 1 - index..][..LANES];
                let for_queries = &for_queries[STEP - 1 - index..][..LANES];
                let lanes = queries.iter().zip(for_keys).zip(for_queries);
                for (sum, ((&query, for_key), &for_query)) in sums.iter_mut().zip(lanes) {
                    *sum = multiply_add::<I>(key + for_key, query, *sum);
                    *sum = multiply_add::<I>(key, for_query, *sum);
                }
            }
        }
        for (scores, sums) in scores.chunks_exact_mut(LANES).zip(&sums) {
            scores.copy_from_slice(sums);
        }
    }
}
