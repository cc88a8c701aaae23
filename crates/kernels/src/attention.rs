//! Self-attention over unpadded (varlen) sequences, laid end to end: no padding, no mask, no gather.
//!
//! A block of queries is transposed, so that a vector register holds one dimension of many queries,
//! and softmax needs no sum across a register. The keys and values of a head are laid out once in the
//! order in which every block reads them, because rows of the whole model lie so far apart that they
//! would fall into few sets of the first-level cache.

mod disentangled;

use std::ops::Range;

pub use self::disentangled::Disentangled;
use super::elementary::exp;
pub(super) use super::isa::STEP;
use super::isa::{InstructionSet, Isa, Step};

/// Queries of one block where registers are wide: two registers of AVX-512.
pub(super) const WIDE_LANES: usize = 32;
/// Queries of one block: two registers of AVX2.
pub(super) const LANES: usize = 16;
/// Queries of the last block of a sequence, when no more are left: one register.
pub(super) const FEW_LANES: usize = 8;

/// A column of heads in a matrix whose rows are tokens.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    /// The matrix, row by row.
    pub data: &'a [f32],
    /// Numbers of one row.
    pub stride: usize,
    /// Where in a row the first head begins.
    pub offset: usize,
}

impl<'a> Columns<'a> {
    pub(super) fn row(&self, token: usize, head: usize, size: usize) -> &'a [f32] {
        let start = token * self.stride + self.offset + head * size;
        &self.data[start..start + size]
    }
}

/// Which queries there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queries {
    /// One for each token.
    EveryToken,
    /// One for each sequence.
    OnePerSequence,
}

/// How the positions of tokens enter attention.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PositionalEncoding<'a> {
    /// Rotary position embeddings: cosines, then sines, of each position, `[positions, size]`. The size of a
    /// head is even.
    pub rotary: Option<&'a [f32]>,
    /// Relative position bias: added to a score by the distance of the key from the query, `[heads, 2 * reach +
    /// 1]`, the query's own position in the middle; farther keys count as the last.
    pub bias: Option<&'a [f32]>,
    /// Disentangled attention, without a sliding window.
    pub disentangled: Option<Disentangled<'a>>,
    /// Sliding window: keys before and behind its own position that a query attends to.
    pub window: Option<usize>,
}

/// One call's operands.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// `[tokens or sequences, heads * size]`, already scaled by `1 / sqrt(size)`.
    pub query: Columns<'a>,
    /// Added to every query, `[heads * size]`, scaled likewise. A bias of the keys would add the
    /// same to all scores of a query, which softmax ignores; one of the values adds itself to the
    /// result and belongs to what comes next.
    pub query_bias: &'a [f32],
    /// `[tokens, heads * size]`.
    pub key: Columns<'a>,
    /// `[tokens, heads * size]`.
    pub value: Columns<'a>,
    /// Tokens of each sequence.
    pub lengths: &'a [i32],
    /// Whether every token asks, or only one for each sequence.
    pub queries: Queries,
    /// Number of heads.
    pub heads: usize,
    /// Numbers of one head.
    pub size: usize,
    /// Positions of tokens.
    pub positions: PositionalEncoding<'a>,
}

/// The queries of one sequence: see [`Attention::sequences`].
#[derive(Debug)]
pub(crate) struct SequenceQueries<'o> {
    /// The tokens of the sequence.
    pub tokens: Range<usize>,
    /// Those of them that are queries.
    pub queries: Range<usize>,
    /// For their context, `[queries, heads * size]`.
    pub output: &'o mut [f32],
}

impl<'a> Attention<'a> {
    /// Whether every token is a query, and positions change no score.
    pub(crate) fn is_plain(&self) -> bool {
        self.queries == Queries::EveryToken && self.positions == PositionalEncoding::default()
    }

    /// The sequences that have some of the queries, where every token is one: those from `first` on for which
    /// `output`, `[queries, heads * size]`, has room.
    pub(crate) fn sequences<'o>(
        &self,
        first: usize,
        mut output: &'o mut [f32],
    ) -> impl Iterator<Item = SequenceQueries<'o>> + use<'a, 'o> {
        let width = self.heads * self.size;
        let wanted = first..first + output.len() / width;
        let mut end = 0;
        self.lengths.iter().filter_map(move |&length| {
            let tokens = end..end + length as usize;
            end = tokens.end;
            let queries = wanted.start.max(tokens.start)..wanted.end.min(tokens.end);
            if queries.is_empty() {
                return None;
            }
            let (own, rest) = std::mem::take(&mut output).split_at_mut(queries.len() * width);
            output = rest;
            Some(SequenceQueries {
                tokens,
                queries,
                output: own,
            })
        })
    }
}

/// Memory that one call leaves to the next.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Keys of a head, a few at a time: `[tokens / STEP, size, STEP]`, zeros at the end.
    keys: Vec<f32>,
    /// Values of a head, a few dimensions at a time: `[size / STEP, tokens, STEP]`, likewise.
    values: Vec<f32>,
    /// Queries of one block: `[size, lanes]`.
    queries: Vec<f32>,
    /// One rotated query or key: `[size]`.
    rotated: Vec<f32>,
    /// Relative positions of a head, as [`Disentangled::lay_out`] makes them.
    positions: Vec<f32>,
    /// Their scores: `[tokens, lanes]`.
    scores: Vec<f32>,
}

/// Writes the context of the queries from `first` on to `output`, `[some queries, heads * size]`. It is
/// the same bits for a query whichever others are asked for beside it.
pub fn attend(
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
    fn run<I: Isa>(self, _: I) {
        match I::WIDE {
            true => attend_any::<I, WIDE_LANES, LANES>(self),
            false => attend_any::<I, LANES, FEW_LANES>(self),
        }
    }
}

/// `LANES` queries are worked on at once, or `FEW` where there are no more.
#[inline(always)]
fn attend_any<I: Isa, const LANES: usize, const FEW: usize>(step: Attend<'_>) {
    let Attend {
        attention,
        first,
        scratch,
        output,
    } = step;
    let wanted = first..first + output.len() / (attention.heads * attention.size);
    let mut block = Block {
        first_token: 0,
        tokens: 0,
        first_query: 0,
        place: 0,
        queries: 0,
        head: 0,
    };
    let mut next_query = 0;
    for &length in attention.lengths {
        block.tokens = length as usize;
        let end = next_query
            + match attention.queries {
                Queries::EveryToken => block.tokens,
                Queries::OnePerSequence => 1,
            };
        let asked = wanted.start.max(next_query)..wanted.end.min(end);
        let heads = if asked.is_empty() { 0 } else { attention.heads };
        for head in 0..heads {
            block.head = head;
            block.load_head(attention, scratch);
            block.first_query = asked.start;
            while block.first_query < asked.end {
                block.place = block.first_query - next_query;
                let left = asked.end - block.first_query;
                let width = attention.heads * attention.size;
                let output = &mut output[(block.first_query - wanted.start) * width..];
                if left > FEW {
                    block.queries = left.min(LANES);
                    block.attend::<I, LANES>(attention, scratch, output);
                } else {
                    block.queries = left;
                    block.attend::<I, FEW>(attention, scratch, output);
                }
                block.first_query += block.queries;
            }
        }
        next_query = end;
        block.first_token += block.tokens;
    }
}

/// Some queries of one sequence, in one head.
struct Block {
    first_token: usize,
    tokens: usize,
    first_query: usize,
    /// Of the first query, in its sequence.
    place: usize,
    queries: usize,
    head: usize,
}

impl Block {
    #[inline(always)]
    fn attend<I: Isa, const LANES: usize>(
        &self,
        attention: &Attention<'_>,
        scratch: &mut Scratch,
        output: &mut [f32],
    ) {
        self.load_queries::<LANES>(attention, scratch);
        let seen = self.seen(attention.positions.window);
        let panel = attention.size * STEP;
        let keys = seen.start / STEP * panel..seen.end.div_ceil(STEP) * panel;
        let (queries, keys) = (&scratch.queries[..], &scratch.keys[keys]);
        match attention.positions.disentangled {
            Some(_) => disentangled::score::<I, LANES>(
                queries,
                keys,
                &scratch.positions,
                (self.place, self.tokens),
                &mut scratch.scores,
            ),
            None => score::<I, LANES>(queries, keys, &mut scratch.scores),
        }
        scratch.scores.truncate(seen.len() * LANES);
        if let Some(table) = attention.positions.bias {
            let width = table.len() / attention.heads;
            let table = &table[self.head * width..(self.head + 1) * width];
            self.add_bias::<LANES>(table, &seen, &mut scratch.scores);
        }
        if let Some(window) = attention.positions.window {
            self.hide::<LANES>(window, &seen, &mut scratch.scores);
        }
        let scales = softmax::<I, LANES>(&mut scratch.scores);
        self.mix::<I, LANES>(attention, scratch, &seen, &scales, output);
    }

    /// The tokens that some query of the block sees, from the first of a step on.
    #[inline(always)]
    fn seen(&self, window: Option<usize>) -> Range<usize> {
        let Some(window) = window else {
            return 0..self.tokens;
        };
        let first = self.place.saturating_sub(window) / STEP * STEP;
        let end = (self.place + self.queries).saturating_add(window);
        first..end.min(self.tokens)
    }

    /// Adds what a key's distance is worth to scores `[seen, lanes]`.
    #[inline(always)]
    fn add_bias<const LANES: usize>(&self, table: &[f32], seen: &Range<usize>, scores: &mut [f32]) {
        let reach = table.len() / 2;
        for (token, scores) in seen.clone().zip(scores.chunks_exact_mut(LANES)) {
            for (lane, score) in scores.iter_mut().enumerate() {
                let ahead = token + reach;
                let at = ahead.saturating_sub(self.place + lane).min(2 * reach);
                *score += table[at];
            }
        }
    }

    /// Takes from scores `[seen, lanes]` what their queries do not see. Lanes without a query see all.
    #[inline(always)]
    fn hide<const LANES: usize>(&self, window: usize, seen: &Range<usize>, scores: &mut [f32]) {
        for (token, scores) in seen.clone().zip(scores.chunks_exact_mut(LANES)) {
            for (lane, score) in scores[..self.queries].iter_mut().enumerate() {
                if token.abs_diff(self.place + lane) > window {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }

    #[inline(always)]
    fn load_head(&self, attention: &Attention<'_>, scratch: &mut Scratch) {
        let &Attention {
            heads,
            size,
            key,
            value,
            positions,
            ..
        } = attention;
        let Scratch {
            keys,
            values,
            rotated,
            positions: laid_out,
            ..
        } = scratch;
        if let Some(disentangled) = positions.disentangled {
            disentangled.lay_out(self.head, (heads, size), self.tokens, laid_out);
        }
        keys.clear();
        keys.resize(self.tokens.next_multiple_of(STEP) * size, 0.0);
        values.clear();
        values.resize(size.next_multiple_of(STEP) * self.tokens, 0.0);
        for (step, panel) in keys.chunks_exact_mut(size * STEP).enumerate() {
            for place in 0..STEP.min(self.tokens - step * STEP) {
                let token = self.first_token + step * STEP + place;
                let mut row = key.row(token, self.head, size);
                if let Some(table) = positions.rotary {
                    rotated.clear();
                    rotated.extend_from_slice(row);
                    rotate(rotated, table, step * STEP + place);
                    row = rotated;
                }
                for (cell, &number) in panel.chunks_exact_mut(STEP).zip(row) {
                    cell[place] = number;
                }
            }
        }
        for token in 0..self.tokens {
            let row = value.row(self.first_token + token, self.head, size);
            let panels = values.chunks_exact_mut(self.tokens * STEP);
            for (panel, numbers) in panels.zip(row.chunks(STEP)) {
                panel[token * STEP..token * STEP + numbers.len()].copy_from_slice(numbers);
            }
        }
    }

    /// Transposes the queries; lanes without one are zero.
    #[inline(always)]
    fn load_queries<const LANES: usize>(&self, attention: &Attention<'_>, scratch: &mut Scratch) {
        let Scratch {
            queries, rotated, ..
        } = scratch;
        let size = attention.size;
        let bias = &attention.query_bias[self.head * size..(self.head + 1) * size];
        queries.clear();
        queries.resize(size * LANES, 0.0);
        for lane in 0..self.queries {
            let query = attention
                .query
                .row(self.first_query + lane, self.head, size);
            let columns = queries.chunks_exact_mut(LANES);
            if let Some(table) = attention.positions.rotary {
                rotated.clear();
                rotated.extend(query.iter().zip(bias).map(|(number, bias)| number + bias));
                rotate(rotated, table, self.place + lane);
                for (column, &number) in columns.zip(&*rotated) {
                    column[lane] = number;
                }
                continue;
            }
            for ((column, &number), &bias) in columns.zip(query).zip(bias) {
                column[lane] = number + bias;
            }
        }
    }

    /// Writes the context of all queries to `output`, which begins with that of the first.
    #[inline(always)]
    fn mix<I: Isa, const LANES: usize>(
        &self,
        attention: &Attention<'_>,
        scratch: &Scratch,
        seen: &Range<usize>,
        scales: &[f32; LANES],
        output: &mut [f32],
    ) {
        let size = attention.size;
        let width = attention.heads * size;
        let panels = scratch.values.chunks_exact(self.tokens * STEP);
        for (panel, dimension) in panels.zip((0..size).step_by(STEP)) {
            let panel = &panel[seen.start * STEP..seen.end * STEP];
            let mut sums = [[0.0_f32; LANES]; STEP];
            products::<I, LANES>(panel, &scratch.scores, &mut sums);
            let count = STEP.min(size - dimension);
            for lane in 0..self.queries {
                let at = lane * width + self.head * size + dimension;
                for (output, sums) in output[at..at + count].iter_mut().zip(&sums) {
                    *output = sums[lane] * scales[lane];
                }
            }
        }
    }
}

/// Rotates a query or key `[size]` by the angles of its position: element `i` of the first half and of the
/// second half span a plane.
#[inline(always)]
pub(super) fn rotate(numbers: &mut [f32], table: &[f32], place: usize) {
    let size = numbers.len();
    let (cosines, sines) = table[place * size..(place + 1) * size].split_at(size / 2);
    let (x, y) = numbers.split_at_mut(size / 2);
    for (((x, y), cosine), sine) in x.iter_mut().zip(y).zip(cosines).zip(sines) {
        (*x, *y) = (*x * cosine - *y * sine, *y * cosine + *x * sine);
    }
}

/// Scores `[tokens, lanes]` of queries `[size, lanes]` against the panels of keys.
#[inline(always)]
fn score<I: Isa, const LANES: usize>(queries: &[f32], keys: &[f32], scores: &mut Vec<f32>) {
    let size = queries.len() / LANES;
    scores.resize(keys.len() / size * LANES, 0.0);
    let panels = keys.chunks_exact(size * STEP);
    for (panel, scores) in panels.zip(scores.chunks_exact_mut(STEP * LANES)) {
        let mut sums = [[0.0_f32; LANES]; STEP];
        products::<I, LANES>(panel, queries, &mut sums);
        for (scores, sums) in scores.chunks_exact_mut(LANES).zip(&sums) {
            scores.copy_from_slice(sums);
        }
    }
}

/// Turns scores `[tokens, lanes]` into weights, and says by what to multiply each lane's so that
/// they sum to one.
#[inline(always)]
fn softmax<I: Isa, const LANES: usize>(scores: &mut [f32]) -> [f32; LANES] {
    let mut largest = [f32::NEG_INFINITY; LANES];
    for scores in scores.chunks_exact(LANES) {
        for (largest, &score) in largest.iter_mut().zip(scores) {
            *largest = if score > *largest { score } else { *largest };
        }
    }
    let mut sums = [0.0_f32; LANES];
    for scores in scores.chunks_exact_mut(LANES) {
        for ((score, &largest), sum) in scores.iter_mut().zip(&largest).zip(&mut sums) {
            *score = exp::<I>(*score - largest);
            *sum += *score;
        }
    }
    sums.map(|sum| 1.0 / sum)
}

/// Adds `panel^T x lanes` to `sums`, for a panel `[n, STEP]` and lanes `[n, LANES]`.
#[inline(always)]
pub(super) fn products<I: Isa, const LANES: usize>(
    panel: &[f32],
    lanes: &[f32],
    sums: &mut [[f32; LANES]; STEP],
) {
    I::add_products(
        panel.as_chunks::<STEP>().0,
        lanes.as_chunks::<LANES>().0,
        sums,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::numbers;
    use proptest::prelude::*;

    /// The definition, in `f64`.
    fn reference(attention: &Attention<'_>) -> Vec<f32> {
        let &Attention {
            heads,
            size,
            positions,
            ..
        } = attention;
        let rotated = |numbers: Vec<f64>, place: usize| -> Vec<f64> {
            let Some(table) = positions.rotary else {
                return numbers;
            };
            let half = size / 2;
            let angle = |i: usize| {
                let row = &table[place * size..];
                (f64::from(row[i % half]), f64::from(row[half + i % half]))
            };
            let other = |i: usize| match i < half {
                true => -numbers[i + half],
                false => numbers[i - half],
            };
            (0..size)
                .map(|i| numbers[i] * angle(i).0 + other(i) * angle(i).1)
                .collect()
        };
        let mut output = Vec::new();
        let (mut first, mut query) = (0, 0);
        for &length in attention.lengths {
            let length = length as usize;
            let queries = match attention.queries {
                Queries::EveryToken => length,
                Queries::OnePerSequence => 1,
            };
            for place in 0..queries {
                for head in 0..heads {
                    let q = attention.query.row(query + place, head, size);
                    let bias = &attention.query_bias[head * size..];
                    let q = q.iter().zip(bias).map(|(q, b)| f64::from(q + b));
                    let q = rotated(q.collect(), place);
                    let score = |token: usize| -> f64 {
                        if positions
                            .window
                            .is_some_and(|window| token.abs_diff(place) > window)
                        {
                            return f64::NEG_INFINITY;
                        }
                        let key = attention.key.row(first + token, head, size);
                        let key = rotated(key.iter().map(|&k| f64::from(k)).collect(), token);
                        let added = positions.bias.map_or(0.0, |table| {
                            let width = table.len() / heads;
                            let reach = (width / 2) as i64;
                            let distance = (token as i64 - place as i64).clamp(-reach, reach);
                            f64::from(table[head * width + (distance + reach) as usize])
                        });
                        let dot =
                            |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                        let added = added
                            + positions.disentangled.map_or(0.0, |relative| {
                                let middle = relative.buckets.len() / 2;
                                let bucket = relative.buckets[middle + place - token] as usize;
                                let count = relative.keys.len() / (heads * size);
                                let column = |table: &[f32]| -> Vec<f64> {
                                    let rows = table.chunks(count).skip(head * size).take(size);
                                    rows.map(|row| f64::from(row[bucket])).collect()
                                };
                                dot(&q, &column(relative.keys))
                                    + dot(&key, &column(relative.queries))
                            });
                        dot(&q, &key) + added
                    };
                    let scores: Vec<f64> = (0..length).map(score).collect();
                    let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    for dimension in 0..size {
                        let mixed: f64 = (0..length)
                            .map(|token| {
                                let value = attention.value.row(first + token, head, size);
                                weights[token] * f64::from(value[dimension])
                            })
                            .sum();
                        output.push((mixed / sum) as f32);
                    }
                }
            }
            first += length;
            query += queries;
        }
        output
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_is_softmax_attention(
            lengths in prop::collection::vec(1_i32..80, 1..6),
            heads in 1_usize..4,
            size in prop::sample::select(vec![1_usize, 8, 20, 32, 64]),
            every_token in any::<bool>(),
            spread in 0.1_f32..8.0,
            rotary in any::<bool>(),
            reach in prop::option::of(0_usize..40),
            window in prop::option::of(0_usize..50),
            // Distances from here on share a bucket.
            near in prop::option::of(0_i32..90),
            part in any::<(prop::sample::Index, prop::sample::Index)>(),
            seed in any::<u64>(),
        ) {
            let rotary = rotary && size % 2 == 0;
            let window = window.filter(|_| near.is_none());
            let table: Vec<f32> = (0..80 * size)
                .map(|at| {
                    let (place, i) = (at / size, at % size);
                    let angle = place as f32 / (1 + i % (size / 2).max(1)) as f32;
                    if i < size / 2 { angle.cos() } else { angle.sin() }
                })
                .collect();
            let (disentangled, near) = (near.is_some(), near.unwrap_or(0));
            let buckets: Vec<i32> = (-79..=79).map(|d: i32| d.clamp(-near, near) + near).collect();
            let bucket_count = 2 * near as usize + 1;
            let [bucket_keys, bucket_queries] =
                [0x11, 0x22].map(|other| numbers(seed ^ other, heads * size * bucket_count));
            let distances = reach.map(|reach| numbers(seed ^ 0x99, heads * (2 * reach + 1)));
            let tokens: i32 = lengths.iter().sum();
            let width = heads * size;
            let queries = if every_token { Queries::EveryToken } else { Queries::OnePerSequence };
            let rows = if every_token { tokens as usize } else { lengths.len() };
            let query: Vec<f32> = numbers(seed, rows * width).iter().map(|n| n * spread).collect();
            let kv = numbers(seed ^ 0x5555, tokens as usize * 2 * width);
            let attention = Attention {
                query: Columns { data: &query, stride: width, offset: 0 },
                query_bias: &numbers(seed ^ 0x77, width),
                key: Columns { data: &kv, stride: 2 * width, offset: 0 },
                value: Columns { data: &kv, stride: 2 * width, offset: width },
                lengths: &lengths,
                queries,
                heads,
                size,
                positions: PositionalEncoding {
                    rotary: rotary.then_some(&table),
                    bias: distances.as_deref(),
                    disentangled: disentangled.then_some(Disentangled {
                        keys: &bucket_keys,
                        queries: &bucket_queries,
                        buckets: &buckets,
                    }),
                    window,
                },
            };
            let expected = reference(&attention);
            // fp32 rounds large scores by more, and a weight is off by what its score is off.
            let tolerance = 2e-5 * (spread / 4.0).max(1.0);
            // Whatever a call before left in the memory must not show.
            let mut scratch = Scratch { scores: vec![f32::NAN; 7], ..Scratch::default() };
            for set in InstructionSet::available() {
                let mut ours = vec![f32::NAN; expected.len()];
                attend(set, &attention, 0, &mut scratch, &mut ours);
                for (ours, expected) in ours.iter().zip(&expected) {
                    let off = (ours - expected).abs();
                    prop_assert!(off < tolerance, "{}: {} for {}", set.name(), ours, expected);
                }
                let first = part.0.index(rows);
                let some = &ours[first * width..][..(1 + part.1.index(rows - first)) * width];
                let mut part = vec![f32::NAN; some.len()];
                attend(set, &attention, first, &mut scratch, &mut part);
                prop_assert_eq!(&part, some, "{}", set.name());
            }
        }
    }
}
