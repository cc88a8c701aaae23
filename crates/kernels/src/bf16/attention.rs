//! Attention in bf16: queries, keys, values and the weights of softmax are rounded; scores and softmax are fp32.

use std::ops::Range;

use super::{Pair, pair};
use crate::attention::{Attention, SequenceQueries};
use crate::elementary::rough_exp2;
use crate::isa::{
    FloatSums, InstructionSet, Isa, MAX_STRIPS, MAX_SUMS, PAIR_PADDING, PairTile, Step,
};
use crate::quantize::COLUMNS;

/// Memory that one call leaves to the next. `pairs` are of the numbers of a head, `token pairs` of tokens, both as
/// [`Isa::pairs`] counts them. Behind rows that are multiplied, there are others of anything.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Keys of a head: `[tokens, pairs]`.
    keys: Vec<Pair>,
    /// Values of a head: `[size, token pairs]`.
    values: Vec<Pair>,
    /// Some queries: `[strips, pairs, COLUMNS]`.
    queries: Vec<Pair>,
    /// Their scores: `[tokens, strips, COLUMNS]`.
    scores: Vec<f32>,
    /// Weights of softmax: `[strips, token pairs, COLUMNS]`.
    weights: Vec<Pair>,
}

/// Whether [`attend`] computes such attention.
pub(super) fn supports(attention: &Attention<'_>) -> bool {
    attention.is_plain() && attention.size.is_multiple_of(2)
}

/// As [`crate::attention::attend`].
pub(super) fn attend(
    set: InstructionSet,
    attention: &Attention<'_>,
    first: usize,
    scratch: &mut Scratch,
    output: &mut [f32],
) {
    set.perform(Attend {
        attention,
        first,
        scratch,
        output,
    });
}

struct Attend<'a> {
    attention: &'a Attention<'a>,
    first: usize,
    scratch: &'a mut Scratch,
    output: &'a mut [f32],
}

impl Step for Attend<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self {
            attention,
            first,
            scratch,
            output,
        } = self;
        let width = attention.heads * attention.size;
        for SequenceQueries {
            tokens,
            queries: wanted,
            output,
        } in attention.sequences(first, output)
        {
            for head in 0..attention.heads {
                let head = Head {
                    attention,
                    head,
                    tokens: tokens.clone(),
                };
                head.load::<I>(scratch);
                let block = I::PAIR_STRIPS * COLUMNS;
                for query in wanted.clone().step_by(block) {
                    let queries = query..wanted.end.min(query + block);
                    let output = &mut output[(query - wanted.start) * width..];
                    head.attend(isa, queries, scratch, output);
                }
            }
        }
    }
}

/// A head of one sequence.
struct Head<'a> {
    attention: &'a Attention<'a>,
    head: usize,
    tokens: Range<usize>,
}

impl Head<'_> {
    /// Lays out keys and values.
    #[inline(always)]
    fn load<I: Isa>(&self, scratch: &mut Scratch) {
        let &Attention {
            size, key, value, ..
        } = self.attention;
        let count = self.tokens.len();
        let pairs = I::pairs(size);
        scratch.keys.resize(padded_rows(count) * pairs, 0);
        for (token, cells) in self
            .tokens
            .clone()
            .zip(scratch.keys.chunks_exact_mut(pairs))
        {
            let row = key.row(token, self.head, size).as_chunks::<2>().0;
            for (cell, &[first, second]) in cells.iter_mut().zip(row) {
                *cell = pair(first, second);
            }
            cells[row.len()..].fill(0);
        }
        let token_pairs = I::pairs(count);
        scratch.values.clear();
        scratch.values.resize(padded_rows(size) * token_pairs, 0);
        for (index, token) in self.tokens.clone().step_by(2).enumerate() {
            let cells = scratch.values[index..].iter_mut().step_by(token_pairs);
            let first = value.row(token, self.head, size);
            if token + 1 == self.tokens.end {
                for (cell, &first) in cells.zip(first) {
                    *cell = pair(first, 0.0);
                }
            } else {
                let second = value.row(token + 1, self.head, size);
                for (cell, (&first, &second)) in cells.zip(first.iter().zip(second)) {
                    *cell = pair(first, second);
                }
            }
        }
    }

    /// Writes the context of `queries` to `output`, which begins with that of the first.
    #[inline(always)]
    fn attend<I: Isa>(
        &self,
        isa: I,
        queries: Range<usize>,
        scratch: &mut Scratch,
        output: &mut [f32],
    ) {
        let size = self.attention.size;
        let pairs = I::pairs(size);
        let lanes = queries.len().next_multiple_of(COLUMNS);
        self.load_queries(&queries, pairs, scratch);
        let Scratch {
            keys,
            values,
            queries: strips,
            scores,
            weights,
        } = scratch;
        let count = self.tokens.len();
        scores.resize(padded_rows(count) * lanes, 0.0);
        for first in (0..count).step_by(I::PAIR_ROWS) {
            let tile = PairTile {
                rows: &keys[first * pairs..],
                count: I::PAIR_ROWS.min(count - first),
                strips,
                pairs,
            };
            isa.multiply_pairs(&tile, &mut scores[first * lanes..]);
        }
        let scores = &scores[..count * lanes];
        let token_pairs = I::pairs(count);
        weights.resize(lanes * token_pairs, 0);
        let mut totals = [0.0; MAX_STRIPS * COLUMNS];
        let strips = weights.chunks_exact_mut(token_pairs * COLUMNS);
        for ((strip, weights), totals) in strips.enumerate().zip(totals.chunks_exact_mut(COLUMNS)) {
            softmax::<I>(scores, (strip * COLUMNS, lanes), weights, totals);
        }
        let reciprocals = totals.map(|total| 1.0 / total);
        let width = self.attention.heads * size;
        let mut sums: FloatSums = [0.0; MAX_SUMS];
        for first in (0..size).step_by(I::PAIR_ROWS) {
            let dimensions = I::PAIR_ROWS.min(size - first);
            let tile = PairTile {
                rows: &values[first * token_pairs..],
                count: dimensions,
                strips: weights,
                pairs: token_pairs,
            };
            isa.multiply_pairs(&tile, &mut sums);
            let first = self.head * size + first;
            for lane in 0..queries.len() {
                let output = &mut output[lane * width + first..][..dimensions];
                for (output, sums) in output.iter_mut().zip(sums.chunks_exact(lanes)) {
                    *output = sums[lane] * reciprocals[lane];
                }
            }
        }
    }

    /// Transposes queries; lanes without one are zero.
    #[inline(always)]
    fn load_queries(&self, queries: &Range<usize>, pairs: usize, scratch: &mut Scratch) {
        let &Attention {
            query,
            query_bias,
            size,
            ..
        } = self.attention;
        let bias = &query_bias[self.head * size..(self.head + 1) * size];
        let bias = bias.as_chunks::<2>().0;
        scratch.queries.clear();
        let lanes = queries.len().next_multiple_of(COLUMNS);
        scratch.queries.resize(lanes * pairs, 0);
        for (lane, token) in queries.clone().enumerate() {
            let start = lane / COLUMNS * COLUMNS * pairs + lane % COLUMNS;
            let cells = scratch.queries[start..].iter_mut().step_by(COLUMNS);
            let row = query.row(token, self.head, size).as_chunks::<2>().0;
            for (cell, (row, bias)) in cells.zip(row.iter().zip(bias)) {
                *cell = pair(row[0] + bias[0], row[1] + bias[1]);
            }
        }
    }
}

/// How many rows there is room for.
fn padded_rows(count: usize) -> usize {
    count.next_multiple_of(PAIR_PADDING)
}

/// Turns the scores of sixteen queries from `first` on, of `[tokens, lanes]`, into weights `[token pairs, COLUMNS]`,
/// and says what the rounded weights sum to.
#[inline(always)]
fn softmax<I: Isa>(
    scores: &[f32],
    (first, lanes): (usize, usize),
    weights: &mut [Pair],
    totals: &mut [f32],
) {
    let of =
        |scores: &[f32]| -> [f32; COLUMNS] { std::array::from_fn(|lane| scores[first + lane]) };
    let mut largest = [f32::NEG_INFINITY; COLUMNS];
    for scores in scores.chunks_exact(lanes) {
        for (largest, score) in largest.iter_mut().zip(of(scores)) {
            *largest = if score > *largest { score } else { *largest };
        }
    }
    let mut sums = [0.0_f32; COLUMNS];
    let (cells, padding) = weights
        .as_chunks_mut::<COLUMNS>()
        .0
        .split_at_mut((scores.len() / lanes).div_ceil(2));
    padding.fill([0; COLUMNS]);
    for (scores, cells) in scores.chunks(2 * lanes).zip(cells) {
        let (one, two) = scores.split_at(lanes);
        let one = of(one);
        let two = if two.is_empty() {
            [f32::NEG_INFINITY; COLUMNS]
        } else {
            of(two)
        };
        for lane in 0..COLUMNS {
            let weight = |score: f32| {
                let exponent = (score - largest[lane]) * std::f32::consts::LOG2_E;
                rough_exp2::<I>(exponent)
            };
            let last = if two[lane] == f32::NEG_INFINITY {
                0.0
            } else {
                weight(two[lane])
            };
            let both = pair(weight(one[lane]), last);
            let [one, two] = super::widened(both);
            sums[lane] += one + two;
            cells[lane] = both;
        }
    }
    totals.copy_from_slice(&sums);
}
