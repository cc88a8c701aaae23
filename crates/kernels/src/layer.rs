//! A transformer encoder layer over unpadded (varlen) sequences: self-attention and a feed-forward network, with
//! their residual connections and LayerNorms fused between the matrix products.
//!
//! One implementation serves every arithmetic ([`Products`]), LayerNorm placement ([`Norms`]) and feed-forward
//! network, with or without a gate (GLU).

pub mod decoder;

use std::cell::RefCell;
use std::iter;
use std::thread::LocalKey;

use super::attention::{self, Attention, Columns, PositionalEncoding, Queries};
use super::causal;
use super::compute_pool::{BorrowedCores, ComputePool};
pub use super::epilogue::Epilogue;
use super::isa::{CHUNK, InstructionSet};
pub use super::norm::LayerNorm;
use super::norm::{Normalize, NormalizeAlone};

/// Rows that are multiplied.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a> {
    /// `[rows, inputs]`.
    pub rows: &'a [f32],
    /// Width of a row.
    pub inputs: usize,
}

/// The arithmetic of a layer's matrix products, and the scratch memory it keeps between calls.
pub trait Products: Default + 'static {
    /// Weights of a dense layer.
    type Matrix<'a>: Copy + Sync;

    /// Scratch memory of the calling thread.
    fn thread_scratch() -> &'static LocalKey<RefCell<ThreadScratch<Self>>>;

    /// Outputs of a dense layer.
    fn outputs(matrix: Self::Matrix<'_>) -> usize;

    /// Rows that go through all products before the next ones begin.
    fn chunk(_: InstructionSet) -> usize {
        CHUNK
    }

    /// Prepares rows for any number of calls of [`Self::multiply`], with `matrix` and others of the same input. A row
    /// with NaN or an infinity makes every output of that row NaN or infinite, and changes no other row.
    fn prepare(&mut self, set: InstructionSet, x: Operand<'_>, matrix: Self::Matrix<'_>);

    /// Multiplies the rows that were prepared last by `matrix` into `output`, `[rows, outputs]`.
    fn multiply(
        &self,
        set: InstructionSet,
        x: Operand<'_>,
        matrix: Self::Matrix<'_>,
        epilogue: Epilogue,
        output: &mut [f32],
    );

    /// Writes the context of some queries, as [`attention::attend`] does.
    fn attend(
        &mut self,
        set: InstructionSet,
        attention: &Attention<'_>,
        first: usize,
        scratch: &mut attention::Scratch,
        output: &mut [f32],
    ) {
        attention::attend(set, attention, first, scratch, output);
    }

    /// Multiplies `x` by `matrix`: [`Self::prepare`] and [`Self::multiply`].
    fn dense(
        &mut self,
        set: InstructionSet,
        x: Operand<'_>,
        matrix: Self::Matrix<'_>,
        epilogue: Epilogue,
        output: &mut [f32],
    ) {
        self.prepare(set, x, matrix);
        self.multiply(set, x, matrix, epilogue, output);
    }
}

/// The projections of queries, keys and values, and how attention uses them.
#[derive(Debug, Clone, Copy)]
pub struct QkvProjection<'a, Matrix> {
    /// Queries, divided by the root of the size of a head: `[width]` outputs.
    pub query: Matrix,
    /// Keys, then values: `[2 * width]` outputs.
    pub key_value: Matrix,
    /// Number of heads.
    pub heads: usize,
    /// Positions of tokens in attention.
    pub positions: PositionalEncoding<'a>,
}

/// Where LayerNorm stands, and its weights.
#[derive(Debug, Clone, Copy)]
pub enum Norms<'a> {
    /// Post-norm, as in BERT: of each part's output plus its residual.
    Post {
        /// After attention.
        attention: LayerNorm<'a>,
        /// After the feed-forward network.
        feed_forward: LayerNorm<'a>,
    },
    /// Pre-norm, as in ModernBERT: of each part's input.
    Pre {
        /// Before attention; `None` where the hidden state is normalized already.
        attention: Option<LayerNorm<'a>>,
        /// Before the feed-forward network.
        feed_forward: LayerNorm<'a>,
    },
}

/// Weights of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a, Matrix> {
    /// Queries, keys and values.
    pub qkv: QkvProjection<'a, Matrix>,
    /// Output projection of attention: `[width]` outputs.
    pub projection: Matrix,
    /// LayerNorms.
    pub norms: Norms<'a>,
    /// First matrix of the feed-forward network: `[inner]` outputs.
    pub up: Matrix,
    /// Activation after `up`.
    pub activation: Epilogue,
    /// Gate of a gated linear unit (GeGLU, with GELU as activation): `activation(x up) * (x gate)`; `[inner]`
    /// outputs.
    pub gate: Option<Matrix>,
    /// Last matrix of the feed-forward network: `[width]` outputs.
    pub down: Matrix,
}

/// Scratch memory of one call that all parts of a layer read.
#[derive(Debug, Default)]
pub struct Scratch {
    projected: Projected,
    first: Vec<f32>,
    normalized: Vec<f32>,
    normalized_first: Vec<f32>,
}

/// Queries, keys and values.
#[derive(Debug, Default)]
struct Projected {
    /// `[tokens or sequences, width]`
    queries: Vec<f32>,
    /// Keys and values: `[tokens, 2 * width]`
    keys: Vec<f32>,
    /// `[width]`
    zeros: Vec<f32>,
}

/// Scratch memory of a thread, for the parts of layers that it runs one after the other.
#[derive(Debug, Default)]
pub struct ThreadScratch<P> {
    products: P,
    attention: attention::Scratch,
    causal: causal::Scratch,
    context: Vec<f32>,
    attended: Vec<f32>,
    inner: Vec<f32>,
    gate: Vec<f32>,
    normalized: Vec<f32>,
}

/// The activations that a layer is applied to.
#[derive(Debug, Clone, Copy)]
pub struct LayerInput<'a> {
    /// `[tokens, width]`.
    pub hidden: &'a [f32],
    /// Tokens of each sequence.
    pub lengths: &'a [i32],
    /// The tokens that the output is computed for.
    pub queries: Queries,
}

impl<'a> LayerInput<'a> {
    /// The rows that the output is computed for, gathered into `first` if need be.
    fn wanted(self, width: usize, first: &'a mut Vec<f32>) -> &'a [f32] {
        if self.queries == Queries::EveryToken {
            return self.hidden;
        }
        first.clear();
        let mut start = 0;
        for &length in self.lengths {
            first.extend_from_slice(&self.hidden[start * width..][..width]);
            start += length as usize;
        }
        first
    }
}

/// Runs a layer: `output` is `[tokens or sequences, width]`. NaN or an infinity in a sequence's hidden states
/// makes that sequence's outputs NaN and changes no bit of the others.
pub fn forward<P: Products>(
    pool: &ComputePool,
    layer: &Layer<'_, P::Matrix<'_>>,
    input: LayerInput<'_>,
    scratch: &mut Scratch,
    output: &mut [f32],
) {
    let set = pool.instruction_set;
    let width = P::outputs(layer.qkv.query);
    let cores = pool.borrow(input.hidden.len() / width);
    let Scratch {
        projected,
        first,
        normalized,
        normalized_first,
    } = scratch;
    let residual = input.wanted(width, first);
    let attention = if let Norms::Pre {
        attention: Some(norm),
        ..
    } = layer.norms
    {
        normalize(set, input.hidden, norm, normalized);
        let input = LayerInput {
            hidden: normalized,
            ..input
        };
        let queries = input.wanted(width, normalized_first);
        project::<P>(set, &cores, &layer.qkv, input, queries, projected)
    } else {
        project::<P>(set, &cores, &layer.qkv, input, residual, projected)
    };

    let share = cores.share(residual.len() / width);
    let parts = residual.chunks(share * width);
    let parts = parts.zip(output.chunks_mut(share * width));
    cores.each(parts.enumerate(), |(part, (residual, output))| {
        P::thread_scratch().with_borrow_mut(|scratch| {
            scratch.attend(set, &attention, part * share, residual.len() / width);
            scratch.finish(set, layer, residual, output);
        });
    });
}

/// Makes keys and values of all rows of `input`, and queries of `wanted`, which is all of them or the first of
/// each sequence.
fn project<'a, P: Products>(
    set: InstructionSet,
    cores: &BorrowedCores<'_>,
    qkv: &QkvProjection<'a, P::Matrix<'_>>,
    input: LayerInput<'a>,
    wanted: &[f32],
    projected: &'a mut Projected,
) -> Attention<'a> {
    let width = P::outputs(qkv.query);
    let LayerInput {
        hidden,
        lengths,
        queries: which,
    } = input;
    let Projected {
        queries,
        keys,
        zeros,
    } = projected;
    queries.resize(wanted.len(), 0.0);
    keys.resize(2 * hidden.len(), 0.0);
    zeros.resize(width, 0.0);
    let share = cores.share(hidden.len() / width) * width;
    let asked = match which {
        Queries::EveryToken => &mut queries[..],
        Queries::OnePerSequence => &mut [],
    };
    let asked = asked.chunks_mut(share).map(Some);
    let parts = hidden.chunks(share).zip(keys.chunks_mut(2 * share));
    let parts = parts.zip(asked.chain(iter::repeat_with(|| None)));
    cores.each(parts, |((hidden, keys), queries)| {
        P::thread_scratch()
            .with_borrow_mut(|scratch| scratch.project(set, qkv, hidden, keys, queries));
    });
    if which == Queries::OnePerSequence {
        P::thread_scratch().with_borrow_mut(|ThreadScratch { products, .. }| {
            let x = operand(wanted, width);
            products.dense(set, x, qkv.query, Epilogue::Identity, queries);
        });
    }

    let columns = |data, stride, offset| Columns {
        data,
        stride,
        offset,
    };
    Attention {
        query: columns(queries, width, 0),
        query_bias: zeros,
        key: columns(keys, 2 * width, 0),
        value: columns(keys, 2 * width, width),
        lengths,
        queries: which,
        heads: qkv.heads,
        size: width / qkv.heads,
        positions: qkv.positions,
    }
}

impl<P: Products> ThreadScratch<P> {
    /// Writes keys and values of some rows, and their queries where those are wanted.
    fn project(
        &mut self,
        set: InstructionSet,
        qkv: &QkvProjection<'_, P::Matrix<'_>>,
        hidden: &[f32],
        keys: &mut [f32],
        mut queries: Option<&mut [f32]>,
    ) {
        let products = &mut self.products;
        let width = P::outputs(qkv.query);
        let chunk = P::chunk(set) * width;
        let chunks = hidden.chunks(chunk).zip(keys.chunks_mut(2 * chunk));
        for (index, (hidden, keys)) in chunks.enumerate() {
            let x = operand(hidden, width);
            products.dense(set, x, qkv.key_value, Epilogue::Identity, keys);
            if let Some(queries) = &mut queries {
                let queries = &mut queries[index * chunk..][..hidden.len()];
                products.multiply(set, x, qkv.query, Epilogue::Identity, queries);
            }
        }
    }

    /// Sets the context of so many `queries` from `first` on.
    fn attend(
        &mut self,
        set: InstructionSet,
        attention: &Attention<'_>,
        first: usize,
        queries: usize,
    ) {
        let numbers = queries * attention.heads * attention.size;
        self.context.resize(numbers, 0.0);
        let (scratch, context) = (&mut self.attention, &mut self.context);
        self.products
            .attend(set, attention, first, scratch, context);
    }

    /// Projects the context of some rows, and runs the feed-forward network on it.
    fn finish(
        &mut self,
        set: InstructionSet,
        layer: &Layer<'_, P::Matrix<'_>>,
        residual: &[f32],
        output: &mut [f32],
    ) {
        let Self {
            products,
            context,
            attended,
            inner: expanded,
            gate: gates,
            normalized,
            ..
        } = self;
        let (width, inner) = (P::outputs(layer.qkv.query), P::outputs(layer.up));
        let identity = Epilogue::Identity;
        let chunk = P::chunk(set) * width;
        let chunks = context.chunks(chunk).zip(residual.chunks(chunk));
        for ((context, residual), output) in chunks.zip(output.chunks_mut(chunk)) {
            let rows = context.len() / width;
            attended.resize(context.len(), 0.0);
            expanded.resize(rows * inner, 0.0);
            let x = operand(context, width);
            products.dense(set, x, layer.projection, identity, attended);
            let x = match layer.norms {
                Norms::Post {
                    attention: norm, ..
                } => {
                    normalize_sum(set, attended, residual, norm);
                    &*attended
                }
                Norms::Pre {
                    feed_forward: norm, ..
                } => {
                    add(attended, residual);
                    normalize(set, attended, norm, normalized);
                    &*normalized
                }
            };
            let x = operand(x, width);
            products.dense(set, x, layer.up, layer.activation, expanded);
            if let Some(gate) = layer.gate {
                gates.resize(rows * inner, 0.0);
                products.multiply(set, x, gate, identity, gates);
                for (x, gate) in expanded.iter_mut().zip(&*gates) {
                    *x *= gate;
                }
            }
            let x = operand(expanded, inner);
            products.dense(set, x, layer.down, identity, output);
            match layer.norms {
                Norms::Post {
                    feed_forward: norm, ..
                } => normalize_sum(set, output, attended, norm),
                Norms::Pre { .. } => add(output, attended),
            }
        }
    }
}

fn operand(rows: &[f32], inputs: usize) -> Operand<'_> {
    Operand { rows, inputs }
}

/// Replaces `x` by the LayerNorm of `x + residual`.
fn normalize_sum(set: InstructionSet, x: &mut [f32], residual: &[f32], norm: LayerNorm<'_>) {
    set.perform(Normalize { x, residual, norm });
}

/// Writes the LayerNorm of `x` to `output`.
fn normalize(set: InstructionSet, x: &[f32], norm: LayerNorm<'_>, output: &mut Vec<f32>) {
    output.clear();
    output.extend_from_slice(x);
    set.perform(NormalizeAlone { x: output, norm });
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[cfg(test)]
mod tests;
