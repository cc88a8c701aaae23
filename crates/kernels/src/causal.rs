//! Causal grouped-query attention (GQA) over packed (varlen) rows, with prefix caching: sequences may share a
//! prefix, whose rows are in the batch once, or whose keys and values an earlier call has left in the KV cache.
//!
//! Several heads of queries read the same keys and values, so the lanes of a block are the queries of some tokens
//! in all of those heads. Each query's sums are made in the order of its keys, whether they are in a shared prefix
//! or not: its context has the same bits either way.

use super::attention::{FEW_LANES, LANES, STEP, WIDE_LANES, products};
use super::elementary::exp;
use super::isa::{InstructionSet, Isa, Step};

/// Consecutive rows: the tokens of a sequence, of a prefix that several sequences share, or of a sequence behind
/// its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First row.
    pub start: usize,
    /// Number of rows; positive.
    pub length: usize,
    /// Rows of the prefix; 0 if there is none.
    pub prefix_length: usize,
    /// First row of the prefix; `None` if its keys and values are kept ones, from the first on.
    pub prefix_start: Option<usize>,
    /// Whether the segment ends a sequence, whose score is read from its last row.
    pub scored: bool,
}

/// Which queries there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// One for each row.
    EveryRow,
    /// One for the last row of each scored segment.
    LastRows,
}

/// One call's operands.
#[derive(Debug, Clone, Copy)]
pub struct CausalAttention<'a> {
    /// Rotated, and divided by the root of `size`: `[rows or scored segments, heads * size]`.
    pub queries: &'a [f32],
    /// Rotated keys, then values: `[rows, 2 * kv_heads * size]`.
    pub keys: &'a [f32],
    /// The KV cache: keys and values of a sequence's first rows, from an earlier call.
    pub kept: &'a [f32],
    /// The segments, which cover all rows in order.
    pub segments: &'a [Segment],
    /// Which queries there are.
    pub asked: Asked,
    /// Heads of queries; a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Numbers of one head.
    pub size: usize,
    /// Sliding window: most keys that a query attends to, its own position included.
    pub window: Option<usize>,
}

impl CausalAttention<'_> {
    /// Heads of queries that share the keys and values of one head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Memory that one call leaves to the next.
#[derive(Debug, Default)]
pub struct Scratch {
    prefix: Panels,
    own: Panels,
    /// Queries of one block: `[size, lanes]`.
    queries: Vec<f32>,
    /// Their scores: `[tokens, lanes]`.
    scores: Vec<f32>,
}

/// Keys and values of one head, in the order in which blocks read them.
#[derive(Debug, Default)]
struct Panels {
    /// Rows that are loaded.
    count: usize,
    /// Some keys at a time: `[count / STEP, size, STEP]`, zeros at the end.
    keys: Vec<f32>,
    /// Some dimensions at a time: `[size / STEP, count, STEP]`, likewise.
    values: Vec<f32>,
}

impl Panels {
    /// Loads `count` rows from `start` on, or the first that are kept.
    #[inline(always)]
    fn load(
        &mut self,
        attention: &CausalAttention<'_>,
        kv_head: usize,
        start: Option<usize>,
        count: usize,
    ) {
        let (rows, start) = match start {
            Some(start) => (attention.keys, start),
            None => (attention.kept, 0),
        };
        let &CausalAttention { kv_heads, size, .. } = attention;
        let width = kv_heads * size;
        let row = |token: usize, offset: usize| {
            let at = (start + token) * 2 * width + offset + kv_head * size;
            &rows[at..at + size]
        };
        self.count = count;
        self.keys.clear();
        self.keys.resize(count.next_multiple_of(STEP) * size, 0.0);
        self.values.clear();
        self.values.resize(size.next_multiple_of(STEP) * count, 0.0);
        for token in 0..count {
            let panel = &mut self.keys[token / STEP * STEP * size..][..STEP * size];
            for (cell, &number) in panel.chunks_exact_mut(STEP).zip(row(token, 0)) {
                cell[token % STEP] = number;
            }
            let panels = self.values.chunks_exact_mut(count * STEP);
            for (panel, numbers) in panels.zip(row(token, width).chunks(STEP)) {
                panel[token * STEP..token * STEP + numbers.len()].copy_from_slice(numbers);
            }
        }
    }

    /// The first `count` keys.
    fn keys(&self, count: usize, size: usize) -> &[f32] {
        &self.keys[..count.next_multiple_of(STEP) * size]
    }

    /// The first `count` values, of the `index`-th few dimensions.
    fn values(&self, count: usize, index: usize) -> &[f32] {
        &self.values[index * self.count * STEP..][..count * STEP]
    }
}

/// Writes the context of the queries from `first` on to `output`, `[some queries, heads * size]`. It is the same
/// bits for a query whichever others are asked for beside it, and however much of its sequence is a shared prefix.
pub fn attend(
    set: InstructionSet,
    attention: &CausalAttention<'_>,
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
    attention: &'a CausalAttention<'a>,
    first: usize,
    scratch: &'a mut Scratch,
    output: &'a mut [f32],
}

impl Step for Attend<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        match I::WIDE {
            true => self.attend::<I, WIDE_LANES, LANES>(),
            false => self.attend::<I, LANES, FEW_LANES>(),
        }
    }
}

impl Attend<'_> {
    /// `LANES` queries are worked on at once, or `FEW` where there are no more.
    #[inline(always)]
    fn attend<I: Isa, const LANES: usize, const FEW: usize>(self) {
        let Self {
            attention,
            first,
            scratch,
            output,
        } = self;
        let width = attention.heads * attention.size;
        let wanted = first..first + output.len() / width;
        let group = attention.group();
        for kv_head in 0..attention.kv_heads {
            // Consecutive segments mostly continue the same prefix.
            let mut loaded = (None, 0);
            let mut next_query = 0;
            for segment in attention.segments {
                let queries = match (attention.asked, segment.scored) {
                    (Asked::EveryRow, _) => segment.length,
                    (Asked::LastRows, true) => 1,
                    (Asked::LastRows, false) => 0,
                };
                let place = segment.prefix_length + segment.length - queries;
                let asked = wanted.start.max(next_query)..wanted.end.min(next_query + queries);
                if !asked.is_empty() {
                    let prefix = (segment.prefix_start, segment.prefix_length);
                    if prefix.1 > 0 && prefix != loaded {
                        scratch.prefix.load(attention, kv_head, prefix.0, prefix.1);
                        loaded = prefix;
                    }
                    let seen = place + asked.end - next_query - segment.prefix_length;
                    scratch
                        .own
                        .load(attention, kv_head, Some(segment.start), seen);
                    let mut block = Block {
                        first_query: asked.start,
                        place: place + asked.start - next_query,
                        prefix_length: segment.prefix_length,
                        first_lane: 0,
                        lanes: 0,
                        kv_head,
                    };
                    let all = asked.len() * group;
                    while block.first_lane < all {
                        let left = all - block.first_lane;
                        let output = &mut output[(asked.start - wanted.start) * width..];
                        if left > FEW {
                            block.lanes = left.min(LANES);
                            block.attend::<I, LANES>(attention, scratch, output);
                        } else {
                            block.lanes = left;
                            block.attend::<I, FEW>(attention, scratch, output);
                        }
                        block.first_lane += block.lanes;
                    }
                }
                next_query += queries;
            }
        }
    }
}

/// Some queries of one segment, in the heads that share one head of keys: lanes count the heads of a query, then
/// queries.
struct Block {
    /// The first query of the segment that is asked for.
    first_query: usize,
    /// Its position in the sequence.
    place: usize,
    prefix_length: usize,
    /// First lane of the block, from `first_query` on.
    first_lane: usize,
    lanes: usize,
    kv_head: usize,
}

impl Block {
    #[inline(always)]
    fn attend<I: Isa, const LANES: usize>(
        &self,
        attention: &CausalAttention<'_>,
        scratch: &mut Scratch,
        output: &mut [f32],
    ) {
        let Scratch {
            prefix,
            own,
            queries,
            scores,
        } = scratch;
        self.load_queries::<LANES>(attention, queries);
        let size = attention.size;
        let last = self.place + (self.first_lane + self.lanes - 1) / attention.group();
        let seen = last + 1 - self.prefix_length;
        scores.resize((last + 1) * LANES, 0.0);
        let (shared, others) = scores.split_at_mut(self.prefix_length * LANES);
        score::<I, LANES>(queries, prefix.keys(self.prefix_length, size), shared);
        score::<I, LANES>(queries, own.keys(seen, size), others);
        let visible = self.visible::<LANES>(attention);
        let scales = softmax::<I, LANES>(scores, &visible);

        let (shared, others) = scores.split_at(self.prefix_length * LANES);
        let width = attention.heads * size;
        for (index, dimension) in (0..size).step_by(STEP).enumerate() {
            let mut sums = [[0.0_f32; LANES]; STEP];
            if self.prefix_length > 0 {
                let values = prefix.values(self.prefix_length, index);
                products::<I, LANES>(values, shared, &mut sums);
            }
            products::<I, LANES>(own.values(seen, index), others, &mut sums);
            let count = STEP.min(size - dimension);
            for (lane, scale) in scales.iter().enumerate().take(self.lanes) {
                let (query, head) = self.query_and_head(attention, lane);
                let at = query * width + head * size + dimension;
                for (output, sums) in output[at..at + count].iter_mut().zip(&sums) {
                    *output = sums[lane] * scale;
                }
            }
        }
    }

    /// The query of a lane, from `first_query` on, and its head.
    #[inline(always)]
    fn query_and_head(&self, attention: &CausalAttention<'_>, lane: usize) -> (usize, usize) {
        let group = attention.group();
        let at = self.first_lane + lane;
        (at / group, self.kv_head * group + at % group)
    }

    /// Transposes the queries; lanes without one are zero.
    #[inline(always)]
    fn load_queries<const LANES: usize>(
        &self,
        attention: &CausalAttention<'_>,
        queries: &mut Vec<f32>,
    ) {
        let size = attention.size;
        queries.clear();
        queries.resize(size * LANES, 0.0);
        for lane in 0..self.lanes {
            let (query, head) = self.query_and_head(attention, lane);
            let at = ((self.first_query + query) * attention.heads + head) * size;
            let numbers = &attention.queries[at..at + size];
            for (column, &number) in queries.chunks_exact_mut(LANES).zip(numbers) {
                column[lane] = number;
            }
        }
    }

    /// First and last position that each lane sees. Lanes without a query see all.
    #[inline(always)]
    fn visible<const LANES: usize>(&self, attention: &CausalAttention<'_>) -> Visible<LANES> {
        let mut visible = Visible {
            first: [0; LANES],
            last: [u32::MAX; LANES],
        };
        for lane in 0..self.lanes {
            let last = self.place + self.query_and_head(attention, lane).0;
            visible.last[lane] = last as u32;
            if let Some(window) = attention.window {
                visible.first[lane] = (last + 1).saturating_sub(window) as u32;
            }
        }
        visible
    }
}

/// The positions that each lane sees.
struct Visible<const LANES: usize> {
    first: [u32; LANES],
    last: [u32; LANES],
}

/// Scores `[tokens, lanes]` of queries `[size, lanes]` against panels of as many keys.
#[inline(always)]
fn score<I: Isa, const LANES: usize>(queries: &[f32], keys: &[f32], scores: &mut [f32]) {
    let size = queries.len() / LANES;
    let panels = keys.chunks_exact(size * STEP);
    for (panel, scores) in panels.zip(scores.chunks_mut(STEP * LANES)) {
        let mut sums = [[0.0_f32; LANES]; STEP];
        products::<I, LANES>(panel, queries, &mut sums);
        for (scores, sums) in scores.chunks_exact_mut(LANES).zip(&sums) {
            scores.copy_from_slice(sums);
        }
    }
}

/// Turns scores `[tokens, lanes]` into weights, zero where a lane does not see the token, and says by what to
/// multiply each lane's so that they sum to one.
#[inline(always)]
fn softmax<I: Isa, const LANES: usize>(
    scores: &mut [f32],
    visible: &Visible<LANES>,
) -> [f32; LANES] {
    let Visible { first, last } = visible;
    let mut largest = [f32::NEG_INFINITY; LANES];
    for (token, scores) in scores.chunks_exact(LANES).enumerate() {
        for lane in 0..LANES {
            let seen = first[lane] <= token as u32 && token as u32 <= last[lane];
            let larger = seen & (scores[lane] > largest[lane]);
            largest[lane] = if larger { scores[lane] } else { largest[lane] };
        }
    }
    let mut sums = [0.0_f32; LANES];
    for (token, scores) in scores.chunks_exact_mut(LANES).enumerate() {
        for lane in 0..LANES {
            let seen = first[lane] <= token as u32 && token as u32 <= last[lane];
            let weight = exp::<I>(scores[lane] - largest[lane]);
            scores[lane] = if seen { weight } else { 0.0 };
            sums[lane] += scores[lane];
        }
    }
    sums.map(|sum| 1.0 / sum)
}

#[cfg(test)]
mod tests;
