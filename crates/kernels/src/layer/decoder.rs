//! A decoder layer over packed rows: causal grouped-query attention (GQA) with rotary position embeddings, and a
//! gated feed-forward network (SwiGLU or GeGLU), each after an RMSNorm (pre-norm), with residual connections.

use std::iter;

use super::{ThreadScratch, add, operand};
use crate::attention::rotate;
use crate::causal::CausalAttention;
pub use crate::causal::{Asked, Segment};
use crate::compute_pool::{BorrowedCores, ComputePool};
use crate::epilogue::Epilogue;
use crate::isa::{InstructionSet, Isa, Step};
use crate::layer::Products;
use crate::norm::NormalizeRms;
pub use crate::norm::RmsNorm;

/// Most rows that go through all products before the next ones begin. Decoders are wide, and
/// their weights do not stay in a cache: large chunks read them from memory less often. The activations between two
/// products then spill to the last-level cache.
const CHUNK: usize = 256;
/// Rows of a chunk are a multiple of this, so that few blocks of rows are left half full.
const ROUND: usize = 8;

/// Rows of each chunk of so many `rows`: about equal, as each chunk reads all weights.
fn chunk_rows(rows: usize) -> usize {
    let chunks = rows.div_ceil(CHUNK).max(1);
    rows.div_ceil(chunks).next_multiple_of(ROUND)
}

/// The projections of queries, keys and values, and how attention uses them.
#[derive(Debug, Clone, Copy)]
pub struct QkvProjection<'a, Matrix> {
    /// Queries: `[heads * size]` outputs.
    pub query: Matrix,
    /// Keys, then values: `[2 * kv_heads * size]` outputs.
    pub key_value: Matrix,
    /// Norm of each head's queries, before they are rotated, `[size]`.
    pub query_norm: Option<RmsNorm<'a>>,
    /// The same of keys.
    pub key_norm: Option<RmsNorm<'a>>,
    /// Heads of queries; a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Numbers of one head; even.
    pub size: usize,
    /// Rotary position embeddings: cosines, then sines, of each position, `[positions, size]`.
    pub rotary: &'a [f32],
    /// Sliding window: most keys that a query attends to, its own position included.
    pub window: Option<usize>,
}

/// Weights of a layer.
#[derive(Debug, Clone, Copy)]
pub struct DecoderLayer<'a, Matrix> {
    /// Before attention.
    pub attention_norm: RmsNorm<'a>,
    /// Queries, keys and values.
    pub qkv: QkvProjection<'a, Matrix>,
    /// Output projection of attention: `[width]` outputs.
    pub projection: Matrix,
    /// Before the feed-forward network.
    pub feed_forward_norm: RmsNorm<'a>,
    /// Gate of the feed-forward network: `[inner]` outputs.
    pub gate: Matrix,
    /// Activation of the gate.
    pub activation: Epilogue,
    /// What is gated: `[inner]` outputs.
    pub up: Matrix,
    /// Last matrix of the feed-forward network: `[width]` outputs.
    pub down: Matrix,
}

/// The activations that a layer is applied to.
#[derive(Debug, Clone, Copy)]
pub struct DecoderInput<'a> {
    /// `[rows, width]`.
    pub hidden: &'a [f32],
    /// The segments, which cover all rows in order.
    pub segments: &'a [Segment],
    /// Keys and values that a call before left; see [`DecoderScratch::keys`].
    pub kept: &'a [f32],
    /// The rows that the output is computed for.
    pub asked: Asked,
}

/// Scratch memory of one call that all parts of a layer read.
#[derive(Debug, Default)]
pub struct DecoderScratch {
    /// Position of each row in its sequence.
    positions: Vec<u32>,
    /// The same of the rows that are asked for.
    asked_positions: Vec<u32>,
    /// `[rows or scored segments, heads * size]`
    queries: Vec<f32>,
    /// Keys and values: `[rows, 2 * kv_heads * size]`
    keys: Vec<f32>,
    /// Hidden states of the rows that are asked for, if those are not all.
    last: Vec<f32>,
}

/// Runs a layer: `output` is `[rows or scored segments, width]`. A row's output has the same bits whatever other
/// sequences there are, and however much of its own is a shared prefix.
pub fn decode<P: Products>(
    pool: &ComputePool,
    layer: &DecoderLayer<'_, P::Matrix<'_>>,
    input: DecoderInput<'_>,
    scratch: &mut DecoderScratch,
    output: &mut [f32],
) {
    let set = pool.instruction_set;
    let width = P::outputs(layer.projection);
    let rows = input.hidden.len() / width;
    if rows == 0 {
        return;
    }
    let cores = pool.borrow(rows);
    scratch.lay_out(&input, width);
    scratch.project::<P>(set, &cores, layer, input);

    let DecoderScratch {
        queries,
        keys,
        last,
        ..
    } = scratch;
    let qkv = &layer.qkv;
    let attention = CausalAttention {
        queries,
        keys,
        kept: input.kept,
        segments: input.segments,
        asked: input.asked,
        heads: qkv.heads,
        kv_heads: qkv.kv_heads,
        size: qkv.size,
        window: qkv.window,
    };
    let residual = match input.asked {
        Asked::EveryRow => input.hidden,
        Asked::LastRows => last,
    };
    let share = cores.share(residual.len() / width);
    let parts = residual.chunks(share * width);
    let parts = parts.zip(output.chunks_mut(share * width));
    cores.each(parts.enumerate(), |(part, (residual, output))| {
        let rows = chunk_rows(residual.len() / width);
        P::thread_scratch().with_borrow_mut(|scratch| {
            for (chunk, (residual, output)) in residual
                .chunks(rows * width)
                .zip(output.chunks_mut(rows * width))
                .enumerate()
            {
                let first = part * share + chunk * rows;
                scratch.attend_causally(set, &attention, first, residual.len() / width);
                scratch.feed_forward(set, layer, residual, output);
            }
        });
    });
}

impl DecoderScratch {
    /// Keys and values of all rows of the last call: `[rows, 2 * kv_heads * size]`.
    pub fn keys(&self) -> &[f32] {
        &self.keys
    }

    /// Notes the positions of all rows, and gathers the rows that are asked for.
    fn lay_out(&mut self, input: &DecoderInput<'_>, width: usize) {
        self.positions.clear();
        self.asked_positions.clear();
        self.last.clear();
        for segment in input.segments {
            let first = segment.prefix_length as u32;
            let end = first + segment.length as u32;
            self.positions.extend(first..end);
            if input.asked == Asked::LastRows && segment.scored {
                self.asked_positions.push(end - 1);
                let last = (segment.start + segment.length - 1) * width;
                self.last
                    .extend_from_slice(&input.hidden[last..last + width]);
            }
        }
    }

    /// Makes keys and values of all rows, and queries of those that are asked for.
    fn project<P: Products>(
        &mut self,
        set: InstructionSet,
        cores: &BorrowedCores<'_>,
        layer: &DecoderLayer<'_, P::Matrix<'_>>,
        input: DecoderInput<'_>,
    ) {
        let Self {
            positions,
            asked_positions,
            queries,
            keys,
            last,
        } = self;
        let width = P::outputs(layer.projection);
        let key_width = P::outputs(layer.qkv.key_value);
        let query_width = P::outputs(layer.qkv.query);
        let every = input.asked == Asked::EveryRow;
        let rows = positions.len();
        keys.resize(rows * key_width, 0.0);
        let asked = if every { rows } else { asked_positions.len() };
        queries.resize(asked * query_width, 0.0);

        let share = cores.share(rows);
        let of_all = if every { &mut queries[..] } else { &mut [] };
        let of_all = of_all.chunks_mut(share * query_width).map(Some);
        let parts = input.hidden.chunks(share * width);
        let parts = parts.zip(positions.chunks(share));
        let parts = parts.zip(keys.chunks_mut(share * key_width));
        let parts = parts.zip(of_all.chain(iter::repeat_with(|| None)));
        cores.each(parts, |(((hidden, positions), keys), mut queries)| {
            let rows = chunk_rows(positions.len());
            P::thread_scratch().with_borrow_mut(|scratch| {
                let chunks = hidden.chunks(rows * width);
                let chunks = chunks.zip(positions.chunks(rows));
                let chunks = chunks.zip(keys.chunks_mut(rows * key_width));
                for (chunk, ((hidden, positions), keys)) in chunks.enumerate() {
                    let queries = queries.as_deref_mut().map(|queries| {
                        let numbers = positions.len() * query_width;
                        &mut queries[chunk * rows * query_width..][..numbers]
                    });
                    scratch.project_causally(set, layer, hidden, positions, Some(keys), queries);
                }
            });
        });
        if !every {
            P::thread_scratch().with_borrow_mut(|scratch| {
                let chunks = last.chunks(CHUNK * width);
                let chunks = chunks.zip(asked_positions.chunks(CHUNK));
                let chunks = chunks.zip(queries.chunks_mut(CHUNK * query_width));
                for ((hidden, positions), queries) in chunks {
                    scratch.project_causally(set, layer, hidden, positions, None, Some(queries));
                }
            });
        }
    }
}

impl<P: Products> ThreadScratch<P> {
    /// Writes keys and values, and queries, of some rows, as far as they are wanted.
    fn project_causally(
        &mut self,
        set: InstructionSet,
        layer: &DecoderLayer<'_, P::Matrix<'_>>,
        hidden: &[f32],
        positions: &[u32],
        keys: Option<&mut [f32]>,
        queries: Option<&mut [f32]>,
    ) {
        let qkv = &layer.qkv;
        let width = P::outputs(layer.projection);
        let x = normalized(set, hidden, layer.attention_norm, &mut self.normalized);
        let x = operand(x, width);
        self.products.prepare(set, x, qkv.key_value);
        if let Some(keys) = keys {
            self.products
                .multiply(set, x, qkv.key_value, Epilogue::Identity, keys);
            set.perform(Rotate {
                rows: keys,
                row: 2 * qkv.kv_heads * qkv.size,
                rotated: qkv.kv_heads * qkv.size,
                norm: qkv.key_norm,
                factor: 1.0,
                table: qkv.rotary,
                positions,
                size: qkv.size,
            });
        }
        if let Some(queries) = queries {
            self.products
                .multiply(set, x, qkv.query, Epilogue::Identity, queries);
            set.perform(Rotate {
                rows: queries,
                row: qkv.heads * qkv.size,
                rotated: qkv.heads * qkv.size,
                norm: qkv.query_norm,
                factor: 1.0 / (qkv.size as f32).sqrt(),
                table: qkv.rotary,
                positions,
                size: qkv.size,
            });
        }
    }

    /// Sets the context of so many `queries` from `first` on.
    fn attend_causally(
        &mut self,
        set: InstructionSet,
        attention: &CausalAttention<'_>,
        first: usize,
        queries: usize,
    ) {
        let numbers = queries * attention.heads * attention.size;
        self.context.resize(numbers, 0.0);
        let (scratch, context) = (&mut self.causal, &mut self.context);
        crate::causal::attend(set, attention, first, scratch, context);
    }

    /// Projects the context of some rows, and runs the feed-forward network on it.
    fn feed_forward(
        &mut self,
        set: InstructionSet,
        layer: &DecoderLayer<'_, P::Matrix<'_>>,
        residual: &[f32],
        output: &mut [f32],
    ) {
        let Self {
            products,
            context,
            attended,
            inner: up,
            gate,
            normalized: scratch,
            ..
        } = self;
        let (width, inner) = (P::outputs(layer.projection), P::outputs(layer.up));
        let rows = residual.len() / width;
        attended.resize(residual.len(), 0.0);
        up.resize(rows * inner, 0.0);
        gate.resize(rows * inner, 0.0);
        let identity = Epilogue::Identity;
        let x = operand(context, context.len() / rows);
        products.dense(set, x, layer.projection, identity, attended);
        add(attended, residual);
        let x = normalized(set, attended, layer.feed_forward_norm, scratch);
        let x = operand(x, width);
        products.dense(set, x, layer.gate, layer.activation, gate);
        products.multiply(set, x, layer.up, identity, up);
        for (x, gate) in up.iter_mut().zip(&*gate) {
            *x *= gate;
        }
        products.dense(set, operand(up, inner), layer.down, identity, output);
        add(output, attended);
    }
}

/// The RMSNorm of `x`, written to `output`.
fn normalized<'a>(
    set: InstructionSet,
    x: &[f32],
    norm: RmsNorm<'_>,
    output: &'a mut Vec<f32>,
) -> &'a [f32] {
    output.clear();
    output.extend_from_slice(x);
    set.perform(NormalizeRms { x: output, norm });
    output
}

/// Normalizes the heads at the beginning of each row, multiplies them and rotates them by the angles of their
/// positions.
struct Rotate<'a> {
    rows: &'a mut [f32],
    /// Numbers of a row.
    row: usize,
    /// Numbers at its beginning that are rotated.
    rotated: usize,
    norm: Option<RmsNorm<'a>>,
    factor: f32,
    table: &'a [f32],
    positions: &'a [u32],
    size: usize,
}

impl Step for Rotate<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        for (row, &position) in self.rows.chunks_exact_mut(self.row).zip(self.positions) {
            for head in row[..self.rotated].chunks_exact_mut(self.size) {
                if let Some(norm) = self.norm {
                    norm.apply(head);
                }
                head.iter_mut().for_each(|number| *number *= self.factor);
                rotate(head, self.table, position as usize);
            }
        }
    }
}

#[cfg(test)]
mod tests;
