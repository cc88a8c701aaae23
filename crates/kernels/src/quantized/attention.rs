//! Attention in eight bits over the tokens of one sequence.
//!
//! Softmax ignores what is added to all scores of a query. So keys are moved, each dimension by its
//! least number, and need no zero to be taken off again; and what a dimension is divided by goes into
//! the queries, each of which has a scale of its own. Weights of softmax have sixteen bits, which are multiplied as two
//! times eight: in eight alone, the many small weights beside a large one cost more than all other rounding here.

use std::f32::consts::LOG2_E;

use crate::elementary::{fold, rough_exp2, round_to_i32};
use crate::isa::multiply_add;
use crate::isa::{Isa, MAX_STRIPS, MAX_SUMS, Step, Sums, Tile};
use crate::quantize::{COLUMNS, GROUP};

/// Largest quantized key.
const BYTE: f32 = 255.0;
/// Largest weight of softmax: what rounding carries over has to fit beside it.
const WEIGHT: f32 = 65_534.0;
/// What the upper byte of a weight counts.
const UPPER: f32 = 256.0;
/// Largest quantized query and value.
const SIGNED: f32 = 127.0;

/// Memory that one call leaves to the next.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    spans: Spans,
    /// `[heads, blocks]` of [`Tile::rows`]
    keys: Vec<u32>,
    /// `[heads]` of [`Tile::strips`], which are of queries
    queries: Vec<i8>,
    /// `[heads]` of [`Tile::strips`], which are of dimensions
    values: Vec<i8>,
    /// Of some queries: `[tokens, strips, COLUMNS]`
    scores: Vec<i32>,
    /// Of the same: blocks of [`Tile::rows`], of the upper bytes and then of the lower ones.
    weights: Vec<u32>,
    /// What turns a score of a query into an exponent of two, `[heads, tokens in whole strips]`.
    score_scales: Vec<f32>,
    /// One query in units of the keys' steps, `[size]`.
    query: Vec<f32>,
    /// `[heads * size]` of one token.
    row: Vec<u8>,
    /// `[heads * size]` of [`GROUP`] tokens.
    group: Vec<u32>,
    /// What sums of a dimension's values lack, `[heads * size]`: see [`Isa::OFFSET`]. Those of scores may lack
    /// it: it is the same for all scores of a query.
    offsets: Vec<i32>,
}

/// Where the numbers of each dimension lie, `[heads * size]` each, and what follows from it.
#[derive(Debug, Default)]
struct Spans {
    key_low: Vec<f32>,
    key_high: Vec<f32>,
    value_low: Vec<f32>,
    value_high: Vec<f32>,
    /// What a quantized key stands for.
    key_scale: Vec<f32>,
    key_factor: Vec<f32>,
    value_factor: Vec<f32>,
    /// What a quantized value stands for.
    value_scale: Vec<f32>,
    value_middle: Vec<f32>,
}

/// Attention of some tokens of a sequence to all of them. A token's context has the same bits whichever others
/// are asked for beside it. If a row of the sequence has NaN or an infinity, the context is NaN.
pub(super) struct Attend<'a> {
    /// `[tokens, heads * size]`, divided by the root of `size`.
    pub queries: &'a [f32],
    /// `[tokens, 2 * heads * size]`: keys and values.
    pub keys: &'a [f32],
    pub heads: usize,
    /// Numbers of one head, a multiple of [`GROUP`].
    pub size: usize,
    pub scratch: &'a mut Scratch,
    /// The first token that is asked for.
    pub first: usize,
    /// `[some tokens, heads * size]`.
    pub output: &'a mut [f32],
}

impl Step for Attend<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self {
            queries,
            keys,
            heads,
            size,
            scratch,
            first,
            output,
        } = self;
        let width = heads * size;
        let shape = Shape {
            tokens: queries.len() / width,
            heads,
            size,
        };
        scratch.spans.measure(keys, shape);
        if !scratch.spans.is_finite(keys, width) {
            output.fill(f32::NAN);
            return;
        }
        scratch.quantize::<I>(queries, keys, shape);
        if !is_finite(&scratch.score_scales) {
            output.fill(f32::NAN);
            return;
        }
        for head in 0..heads {
            scratch.attend(isa, shape, head, first, output);
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    tokens: usize,
    heads: usize,
    size: usize,
}

impl Shape {
    fn width(self) -> usize {
        self.heads * self.size
    }
    /// Tokens in whole strips.
    fn padded_tokens(self) -> usize {
        self.tokens.next_multiple_of(COLUMNS)
    }
    /// Words of a head's keys.
    fn keys<I: Isa>(self) -> usize {
        self.tokens.div_ceil(I::ROWS) * self.block::<I>()
    }
    /// Words of a block of keys.
    fn block<I: Isa>(self) -> usize {
        I::groups(self.size) * I::ROWS * I::WORDS
    }
    /// Bytes of a strip of queries.
    fn query_strip<I: Isa>(self) -> usize {
        I::groups(self.size) * COLUMNS * GROUP
    }
    /// Bytes of a head's queries.
    fn queries<I: Isa>(self) -> usize {
        self.tokens.div_ceil(COLUMNS) * self.query_strip::<I>()
    }
    /// Groups of tokens.
    fn groups<I: Isa>(self) -> usize {
        I::groups(self.tokens)
    }
    /// Bytes of a strip of values.
    fn value_strip<I: Isa>(self) -> usize {
        self.groups::<I>() * COLUMNS * GROUP
    }
    /// Bytes of a head's values.
    fn values<I: Isa>(self) -> usize {
        self.size.div_ceil(COLUMNS) * self.value_strip::<I>()
    }
}

impl Spans {
    #[inline(always)]
    fn measure(&mut self, keys: &[f32], shape: Shape) {
        let width = shape.width();
        let start = |span: &mut Vec<f32>, first: &[f32]| {
            span.clear();
            span.extend_from_slice(first);
        };
        let (key, value) = keys[..2 * width].split_at(width);
        start(&mut self.key_low, key);
        start(&mut self.key_high, key);
        start(&mut self.value_low, value);
        start(&mut self.value_high, value);
        for keys in keys.chunks_exact(2 * width) {
            let (key, value) = keys.split_at(width);
            span(&mut self.key_low, &mut self.key_high, key);
            span(&mut self.value_low, &mut self.value_high, value);
        }
        for out in [
            &mut self.key_scale,
            &mut self.key_factor,
            &mut self.value_factor,
            &mut self.value_scale,
            &mut self.value_middle,
        ] {
            out.resize(width, 0.0);
        }
        for i in 0..width {
            let range = self.key_high[i] - self.key_low[i];
            self.key_scale[i] = range / BYTE;
            self.key_factor[i] = factor(range, BYTE);
            let (low, high) = (self.value_low[i], self.value_high[i]);
            let half = 0.5 * (high - low);
            self.value_middle[i] = 0.5 * (high + low);
            self.value_factor[i] = factor(half, SIGNED);
            self.value_scale[i] = half / SIGNED;
        }
    }
}

/// What makes `max` of a range; nothing of an empty one.
#[inline(always)]
fn factor(range: f32, max: f32) -> f32 {
    if range > 0.0 { max / range } else { 0.0 }
}

#[inline(always)]
fn is_finite(numbers: &[f32]) -> bool {
    numbers.iter().fold(true, |all, x| all & x.is_finite())
}

impl Spans {
    /// Whether keys and values can be quantized. Spans show infinities but not NaN; a row with NaN is NaN in all of
    /// its columns, because quantizing its input gave NaN as scale, so the first column is enough.
    #[inline(always)]
    fn is_finite(&self, keys: &[f32], width: usize) -> bool {
        keys.iter().step_by(2 * width).all(|x| x.is_finite())
            && is_finite(&self.key_low)
            && is_finite(&self.key_high)
            && is_finite(&self.value_low)
            && is_finite(&self.value_high)
    }
}

#[inline(always)]
fn span(low: &mut [f32], high: &mut [f32], x: &[f32]) {
    for ((low, high), &x) in low.iter_mut().zip(high).zip(x) {
        *low = if x < *low { x } else { *low };
        *high = if x > *high { x } else { *high };
    }
}

impl Scratch {
    /// Lays out queries, keys and values of all heads.
    #[inline(always)]
    fn quantize<I: Isa>(&mut self, queries: &[f32], keys: &[f32], shape: Shape) {
        let width = shape.width();
        let Shape {
            tokens,
            heads,
            size,
        } = shape;
        self.keys.resize(heads * shape.keys::<I>(), 0);
        self.queries.resize(heads * shape.queries::<I>(), 0);
        self.values.resize(heads * shape.values::<I>(), 0);
        self.score_scales.clear();
        self.score_scales.resize(heads * shape.padded_tokens(), 0.0);
        self.query.resize(size, 0.0);
        self.row.resize(width, 0);
        self.group.resize(width, 0);
        let spans = &self.spans;
        let row = &mut self.row[..];
        let rows = queries.chunks_exact(width);
        for (token, (query, key)) in rows.zip(keys.chunks_exact(2 * width)).enumerate() {
            for head in 0..heads {
                let dimensions = head * size..(head + 1) * size;
                let scales = &spans.key_scale[dimensions.clone()];
                let query = &query[dimensions.clone()];
                let largest = scale_query(query, scales, &mut self.query);
                let factor = factor(largest, SIGNED);
                for (number, x) in row[dimensions].iter_mut().zip(&self.query) {
                    *number = round_to_i32(x * factor) as u8;
                }
                self.score_scales[head * shape.padded_tokens() + token] = largest / SIGNED * LOG2_E;
            }
            let place = token % COLUMNS;
            let strip = token / COLUMNS * shape.query_strip::<I>();
            for (head, row) in row.chunks_exact(size).enumerate() {
                let strip = &mut self.queries[head * shape.queries::<I>() + strip..];
                let strip = &mut strip[..shape.query_strip::<I>()];
                for (group, numbers) in row.as_chunks::<GROUP>().0.iter().enumerate() {
                    let at = I::column_place(group, place);
                    strip[at..at + GROUP].copy_from_slice(&numbers.map(|x| x as i8));
                }
                for group in size / GROUP..I::groups(size) {
                    let at = I::column_place(group, place);
                    strip[at..at + GROUP].fill(0);
                }
            }
            let operands = key[..width]
                .iter()
                .zip(&spans.key_low)
                .zip(&spans.key_factor);
            for (((x, low), factor), number) in operands.zip(row.iter_mut()) {
                *number = round_to_i32((x - low) * factor) as u8;
            }
            let block = token / I::ROWS * shape.block::<I>();
            for (head, row) in row.chunks_exact(size).enumerate() {
                let block = &mut self.keys[head * shape.keys::<I>() + block..];
                let block = &mut block[..shape.block::<I>()];
                for (group, numbers) in row.as_chunks::<GROUP>().0.iter().enumerate() {
                    let at = I::place(group, token % I::ROWS);
                    I::pack(u32::from_le_bytes(*numbers), &mut block[at..at + I::WORDS]);
                }
            }
        }
        let row = &mut self.group[..];
        self.offsets.clear();
        self.offsets.resize(width, 0);
        for group in 0..shape.groups::<I>() {
            row.fill(0);
            for place in 0..GROUP.min(tokens.saturating_sub(group * GROUP)) {
                let token = group * GROUP + place;
                let value = &keys[(token * 2 + 1) * width..][..width];
                let middle = spans.value_middle.iter().zip(&spans.value_factor);
                let written = row.iter_mut().zip(&mut self.offsets);
                for ((x, (middle, factor)), (word, offset)) in value.iter().zip(middle).zip(written)
                {
                    let number = round_to_i32((x - middle) * factor);
                    *word |= (number as u32 & 0xff) << (8 * place);
                    *offset += I::OFFSET * number;
                }
            }
            for (head, row) in row.chunks_exact(size).enumerate() {
                for (strip, row) in row.chunks(COLUMNS).enumerate() {
                    let at = head * shape.values::<I>()
                        + strip * shape.value_strip::<I>()
                        + I::column_place(group, 0);
                    let cells = self.values[at..].chunks_mut(I::COLUMN_SPAN * GROUP);
                    for (cell, word) in cells.zip(row) {
                        cell[..GROUP].copy_from_slice(&word.to_le_bytes().map(|byte| byte as i8));
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn attend<I: Isa>(
        &mut self,
        isa: I,
        shape: Shape,
        head: usize,
        asked: usize,
        output: &mut [f32],
    ) {
        let Shape { tokens, size, .. } = shape;
        let width = shape.width();
        let asked = asked..asked + output.len() / width;
        let keys = &self.keys[head * shape.keys::<I>()..][..shape.keys::<I>()];
        let values = &self.values[head * shape.values::<I>()..][..shape.values::<I>()];
        let queries = &self.queries[head * shape.queries::<I>()..][..shape.queries::<I>()];
        let score_scales = &self.score_scales[head * shape.padded_tokens()..];
        let dimensions = head * size..(head + 1) * size;
        let value_scale = &self.spans.value_scale[dimensions.clone()];
        let value_middle = &self.spans.value_middle[dimensions.clone()];
        let offsets = &self.offsets[dimensions.clone()];
        let weight_block = shape.groups::<I>() * I::ROWS * I::WORDS;
        let query_strip = shape.query_strip::<I>();
        for (part, strips) in queries.chunks(I::STRIPS * query_strip).enumerate() {
            let first = part * I::STRIPS * COLUMNS;
            let lanes = strips.len() / query_strip * COLUMNS;
            let count = lanes.min(tokens - first);
            if first >= asked.end || first + count <= asked.start {
                continue;
            }
            let scores = room(&mut self.scores, tokens * lanes);
            for (block, rows) in keys.chunks_exact(shape.block::<I>()).enumerate() {
                let scores = &mut scores[block * I::ROWS * lanes..];
                let tile = Tile {
                    rows,
                    count: I::ROWS.min(scores.len() / lanes),
                    strips,
                    groups: I::groups(size),
                };
                isa.multiply(&tile, scores);
            }
            let plane = lanes.div_ceil(I::ROWS) * weight_block;
            let weights = room(&mut self.weights, 2 * plane);
            let (upper, lower) = weights.split_at_mut(plane);
            let mut totals = [0.0; MAX_STRIPS * COLUMNS];
            for (strip, totals) in totals.chunks_exact_mut(COLUMNS).enumerate() {
                if strip * COLUMNS < lanes {
                    let strip = Strip {
                        first: strip * COLUMNS,
                        lanes,
                        block: weight_block,
                        scales: &score_scales[first + strip * COLUMNS..][..COLUMNS],
                    };
                    strip.softmax::<I>(scores, upper, lower, totals);
                }
            }
            let mut upper_sums: Sums = [0; MAX_SUMS];
            let mut lower_sums: Sums = [0; MAX_SUMS];
            let blocks = upper
                .chunks_exact(weight_block)
                .zip(lower.chunks_exact(weight_block));
            for (block, (upper, lower)) in blocks.enumerate().take(count.div_ceil(I::ROWS)) {
                let start = block * I::ROWS;
                let count = I::ROWS.min(count - start);
                let panels = values.chunks(I::STRIPS * shape.value_strip::<I>());
                for (panel, strips) in panels.enumerate() {
                    let tile = |rows| Tile {
                        rows,
                        count,
                        strips,
                        groups: shape.groups::<I>(),
                    };
                    isa.multiply(&tile(upper), &mut upper_sums);
                    isa.multiply(&tile(lower), &mut lower_sums);
                    let offset = panel * I::STRIPS * COLUMNS;
                    let stride = strips.len() / shape.value_strip::<I>() * COLUMNS;
                    let scales = &value_scale[offset..];
                    let middles = &value_middle[offset..];
                    let offsets = &offsets[offset..];
                    let sums = upper_sums
                        .chunks_exact(stride)
                        .zip(lower_sums.chunks_exact(stride));
                    for (row, (upper, lower)) in sums.enumerate().take(count) {
                        let query = first + start + row;
                        if !asked.contains(&query) {
                            continue;
                        }
                        let query = query - asked.start;
                        let output = &mut output[query * width + dimensions.start + offset..]
                            [..scales.len().min(stride)];
                        let reciprocal = 1.0 / totals[start + row];
                        let operands = upper.iter().zip(lower).zip(offsets);
                        let operands = operands.zip(scales).zip(middles);
                        for (((((upper, lower), offset), scale), &middle), output) in
                            operands.zip(output)
                        {
                            let (upper, lower) = ((upper + offset) as f32, (lower + offset) as f32);
                            let sum = multiply_add::<I>(upper, UPPER, lower);
                            *output = multiply_add::<I>(sum, scale * reciprocal, middle);
                        }
                    }
                }
            }
        }
    }
}

/// The first `count` numbers; there is more where more was needed before.
fn room<T: Copy + Default>(numbers: &mut Vec<T>, count: usize) -> &mut [T] {
    if numbers.len() < count {
        numbers.resize(count, T::default());
    }
    &mut numbers[..count]
}

/// Writes a query in units of the keys' steps, and says what its largest number is, whatever its sign: NaN where the
/// query is not finite.
#[inline(always)]
fn scale_query(query: &[f32], scales: &[f32], scaled: &mut [f32]) -> f32 {
    let mut largest = [0.0_f32; GROUP];
    let mut poison = [0.0_f32; GROUP];
    let operands = query.as_chunks().0.iter().zip(scales.as_chunks().0);
    for ((x, scale), scaled) in operands.zip(scaled.as_chunks_mut::<GROUP>().0) {
        let (x, scale): (&[f32; GROUP], &[f32; GROUP]) = (x, scale);
        for lane in 0..GROUP {
            scaled[lane] = x[lane] * scale[lane];
            let size = scaled[lane].abs();
            largest[lane] = if size > largest[lane] {
                size
            } else {
                largest[lane]
            };
            poison[lane] += x[lane] * 0.0;
        }
    }
    fold(largest, f32::max) + fold(poison, |a, b| a + b)
}

/// Sixteen of the queries that are worked on.
struct Strip<'a> {
    /// The first of them.
    first: usize,
    /// All queries that are worked on.
    lanes: usize,
    /// Words of a block of weights.
    block: usize,
    /// What turns a score of each query into an exponent of two.
    scales: &'a [f32],
}

impl Strip<'_> {
    /// Turns scores into weights, of which it writes the upper and the lower bytes, and says what they sum to.
    #[inline(always)]
    fn softmax<I: Isa>(
        &self,
        scores: &[i32],
        upper: &mut [u32],
        lower: &mut [u32],
        totals: &mut [f32],
    ) {
        let mut largest = [i32::MIN; COLUMNS];
        for scores in scores.chunks_exact(self.lanes) {
            let scores = &scores[self.first..self.first + COLUMNS];
            for (largest, &score) in largest.iter_mut().zip(scores) {
                *largest = score.max(*largest);
            }
        }
        // What rounding takes from a token goes to the next, so that many small weights do not vanish together.
        let mut carried = [0.0_f32; COLUMNS];
        let mut sums = [0_u32; COLUMNS];
        for (group, scores) in scores.chunks(self.lanes * GROUP).enumerate() {
            let mut upper_words = [0_u32; COLUMNS];
            let mut lower_words = [0_u32; COLUMNS];
            for (place, scores) in scores.chunks_exact(self.lanes).enumerate() {
                let scores = &scores[self.first..self.first + COLUMNS];
                for lane in 0..COLUMNS {
                    let exponent = (scores[lane] - largest[lane]) as f32 * self.scales[lane];
                    let exact = multiply_add::<I>(rough_exp2::<I>(exponent), WEIGHT, carried[lane]);
                    let weight = round_to_i32(exact);
                    carried[lane] = exact - weight as f32;
                    let weight = weight as u32;
                    sums[lane] += weight;
                    upper_words[lane] |= (weight >> 8) << (8 * place);
                    lower_words[lane] |= (weight & 0xff) << (8 * place);
                }
            }
            // A strip is in one block, or begins where a block does: there is one strip, or one divides the other.
            let (first, row) = (self.first / I::ROWS, self.first % I::ROWS);
            for (weights, words) in [(&mut *upper, upper_words), (&mut *lower, lower_words)] {
                for (block, words) in words.chunks(I::ROWS).enumerate() {
                    let at = (first + block) * self.block + I::place(group, row);
                    let cells = weights[at..].chunks_mut(I::ROW);
                    for (cell, &word) in cells.zip(words) {
                        I::pack(word, &mut cell[..I::WORDS]);
                    }
                }
            }
        }
        totals.copy_from_slice(&sums.map(|sum| sum as f32));
    }
}
