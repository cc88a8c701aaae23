//! A layer of the encoder: attention and feed-forward, with everything that lies between its matrix
//! products.

use super::attention;
use super::dense::{Dense, Finish, Matrix};
use super::norm::{LayerNorm, Normalize};
use super::rows::{Quantize, Rows};
use crate::quantize::GROUP;
use crate::scorer::attention::{self as exact, Columns, Queries};
use crate::scorer::isa::Path;

/// Rows that go through the products one after the other before the next are begun: enough to read
/// the weights seldom, few enough for what lies between two products to stay in the second-level
/// cache.
const CHUNK: usize = 48;

/// Weights of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Queries, divided by the root of the size of a head: `[width]` outputs.
    pub query: Matrix<'a>,
    /// Keys and values: `[2 * width]`.
    pub keys: Matrix<'a>,
    /// What attention gives, projected: `[width]`.
    pub projection: Matrix<'a>,
    /// After the projection and the residual.
    pub attention_norm: LayerNorm<'a>,
    /// `[inner]` outputs.
    pub up: Matrix<'a>,
    /// What comes after `up`.
    pub activation: Finish,
    /// `[width]` outputs.
    pub down: Matrix<'a>,
    /// After `down` and the residual.
    pub output_norm: LayerNorm<'a>,
    /// Number of heads.
    pub heads: usize,
}

/// Memory that one call leaves to the next.
#[derive(Debug, Default)]
pub struct Scratch {
    rows: Rows,
    attention: attention::Scratch,
    exact: exact::Scratch,
    first: Vec<f32>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    context: Vec<f32>,
    attended: Vec<f32>,
    inner: Vec<f32>,
    zeros: Vec<f32>,
}

/// A hidden state is infinite or not a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a hidden state is not a finite number")]
pub struct NotFinite;

/// What a layer works on.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// `[tokens, width]`.
    pub hidden: &'a [f32],
    /// Tokens of each sequence.
    pub lengths: &'a [i32],
    /// Which tokens the output is wanted of.
    pub queries: Queries,
}

/// Runs a layer: `output` is `[tokens or sequences, width]`.
///
/// # Errors
/// [`NotFinite`], with whatever in `output`.
pub fn forward(
    path: Path,
    layer: &Layer<'_>,
    input: Input<'_>,
    scratch: &mut Scratch,
    output: &mut [f32],
) -> Result<(), NotFinite> {
    let width = layer.query.scales.len();
    let Input {
        hidden,
        lengths,
        queries,
    } = input;
    let residual = match queries {
        Queries::EveryToken => hidden,
        Queries::OnePerSequence => {
            scratch.first.clear();
            let mut first = 0;
            for &length in lengths {
                scratch
                    .first
                    .extend_from_slice(&hidden[first * width..][..width]);
                first += length as usize;
            }
            &scratch.first
        }
    };
    scratch.queries.resize(residual.len(), 0.0);
    scratch.keys.resize(2 * hidden.len(), 0.0);
    let chunks = hidden.chunks(CHUNK * width);
    for (chunk, (hidden, keys)) in chunks
        .zip(scratch.keys.chunks_mut(CHUNK * 2 * width))
        .enumerate()
    {
        quantize(path, hidden, width, &mut scratch.rows)?;
        dense(
            path,
            &scratch.rows,
            width,
            layer.keys,
            Finish::Nothing,
            keys,
        );
        if queries == Queries::EveryToken {
            let queries = &mut scratch.queries[chunk * CHUNK * width..][..hidden.len()];
            dense(
                path,
                &scratch.rows,
                width,
                layer.query,
                Finish::Nothing,
                queries,
            );
        }
    }
    if queries == Queries::OnePerSequence {
        quantize(path, residual, width, &mut scratch.rows)?;
        let queries = &mut scratch.queries;
        dense(
            path,
            &scratch.rows,
            width,
            layer.query,
            Finish::Nothing,
            queries,
        );
    }

    scratch.context.resize(residual.len(), 0.0);
    let size = width / layer.heads;
    if queries == Queries::EveryToken && size.is_multiple_of(GROUP) {
        let mut first = 0;
        for &length in lengths {
            let tokens = first..first + length as usize;
            path.perform(attention::Attend {
                queries: &scratch.queries[tokens.start * width..tokens.end * width],
                keys: &scratch.keys[tokens.start * 2 * width..tokens.end * 2 * width],
                heads: layer.heads,
                size,
                scratch: &mut scratch.attention,
                output: &mut scratch.context[tokens.start * width..tokens.end * width],
            });
            first = tokens.end;
        }
    } else {
        scratch.zeros.resize(width, 0.0);
        let keys = |offset| Columns {
            data: &scratch.keys,
            stride: 2 * width,
            offset,
        };
        let attention = exact::Attention {
            query: Columns {
                data: &scratch.queries,
                stride: width,
                offset: 0,
            },
            query_bias: &scratch.zeros,
            key: keys(0),
            value: keys(width),
            lengths,
            queries,
            heads: layer.heads,
            size,
        };
        exact::attend(path, &attention, &mut scratch.exact, &mut scratch.context);
    }

    let inner = layer.up.scales.len();
    let chunks = scratch.context.chunks(CHUNK * width);
    let outputs = output.chunks_mut(CHUNK * width);
    for ((context, residual), output) in chunks.zip(residual.chunks(CHUNK * width)).zip(outputs) {
        let rows = context.len() / width;
        let Scratch {
            rows: quantized,
            attended,
            inner: expanded,
            ..
        } = scratch;
        attended.resize(context.len(), 0.0);
        expanded.resize(rows * inner, 0.0);
        quantize(path, context, width, quantized)?;
        dense(
            path,
            quantized,
            width,
            layer.projection,
            Finish::Nothing,
            attended,
        );
        path.perform(Normalize {
            x: attended,
            residual,
            norm: layer.attention_norm,
        });
        quantize(path, attended, width, quantized)?;
        dense(path, quantized, width, layer.up, layer.activation, expanded);
        quantize(path, expanded, inner, quantized)?;
        dense(path, quantized, inner, layer.down, Finish::Nothing, output);
        path.perform(Normalize {
            x: output,
            residual: attended,
            norm: layer.output_norm,
        });
    }
    Ok(())
}

fn quantize(path: Path, x: &[f32], inputs: usize, rows: &mut Rows) -> Result<(), NotFinite> {
    path.perform(Quantize { x, inputs, rows });
    match rows.scales.iter().all(|scale| scale.is_finite()) {
        true => Ok(()),
        false => Err(NotFinite),
    }
}

fn dense(
    path: Path,
    rows: &Rows,
    inputs: usize,
    matrix: Matrix<'_>,
    finish: Finish,
    output: &mut [f32],
) {
    path.perform(Dense {
        rows,
        inputs,
        matrix,
        finish,
        output,
    });
}
