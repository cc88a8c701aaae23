//! A layer of the encoder: attention and feed-forward, with everything that lies between its matrix
//! products. It is the same in every arithmetic. [`GatedLayer`] is the other form.

mod gated;

pub use gated::{GatedLayer, forward as forward_gated};

use super::attention::{self, Attention, Columns, Places, Queries};
pub use super::elementary::Finish;
use super::isa::Path;
pub use super::norm::LayerNorm;
use super::norm::Normalize;

/// Rows that go through the products one after the other before the next are begun: enough to read
/// the weights seldom, few enough for what lies between two products to stay in the second-level
/// cache.
const CHUNK: usize = 48;

/// Rows that are multiplied.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a> {
    /// `[rows, inputs]`.
    pub rows: &'a [f32],
    /// Numbers of a row.
    pub inputs: usize,
}

/// The arithmetic of a layer's matrix products, and what memory it leaves from one call to the next.
pub trait Products: Default {
    /// Weights of a dense layer.
    type Matrix<'a>: Copy;

    /// How many outputs it has.
    fn outputs(matrix: Self::Matrix<'_>) -> usize;

    /// Prepares rows that [`Self::multiply`] is then called with, once or more.
    ///
    /// # Errors
    /// [`NotFinite`], where that would be lost.
    fn prepare(&mut self, path: Path, x: Operand<'_>) -> Result<(), NotFinite>;

    /// Writes the product of the rows that were prepared last with `matrix`, `[rows, outputs]`.
    fn multiply(
        &self,
        path: Path,
        x: Operand<'_>,
        matrix: Self::Matrix<'_>,
        finish: Finish,
        output: &mut [f32],
    );

    /// Writes the context of every query, as [`attention::attend`] does.
    fn attend(
        &mut self,
        path: Path,
        attention: &Attention<'_>,
        scratch: &mut attention::Scratch,
        output: &mut [f32],
    ) {
        attention::attend(path, attention, scratch, output);
    }
}

/// Weights of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a, Matrix> {
    /// Queries, divided by the root of the size of a head: `[width]` outputs.
    pub query: Matrix,
    /// Keys and values: `[2 * width]`.
    pub keys: Matrix,
    /// What attention gives, projected: `[width]`.
    pub projection: Matrix,
    /// After the projection and the residual.
    pub attention_norm: LayerNorm<'a>,
    /// `[inner]` outputs.
    pub up: Matrix,
    /// What comes after `up`.
    pub activation: Finish,
    /// `[width]` outputs.
    pub down: Matrix,
    /// After `down` and the residual.
    pub output_norm: LayerNorm<'a>,
    /// Number of heads.
    pub heads: usize,
    /// What attention makes of the places of tokens.
    pub places: Places<'a>,
}

/// Memory that one call leaves to the next.
#[derive(Debug, Default)]
pub struct Scratch<P> {
    products: P,
    asked: Asked,
    first: Vec<f32>,
    normed: Vec<f32>,
    normed_first: Vec<f32>,
    context: Vec<f32>,
    attended: Vec<f32>,
    inner: Vec<f32>,
    gate: Vec<f32>,
    zeros: Vec<f32>,
}

/// The part of it that attention needs.
#[derive(Debug, Default)]
struct Asked {
    attention: attention::Scratch,
    queries: Vec<f32>,
    keys: Vec<f32>,
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

impl<'a> Input<'a> {
    /// The rows that the output is wanted of, if need be in `first`.
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

/// What a layer asks of its tokens, and how.
struct Asking<'a, Matrix> {
    query: Matrix,
    keys: Matrix,
    heads: usize,
    places: Places<'a>,
}

/// Writes the context of every query to `context`. Queries are made of `wanted`, which is all of the
/// input's rows or the first of each sequence; keys and values of all rows.
fn attend<P: Products>(
    path: Path,
    asking: &Asking<'_, P::Matrix<'_>>,
    input: Input<'_>,
    wanted: &[f32],
    (products, asked): (&mut P, &mut Asked),
    context: &mut Vec<f32>,
) -> Result<(), NotFinite> {
    let width = P::outputs(asking.query);
    let Input {
        hidden,
        lengths,
        queries,
    } = input;
    let Asked {
        attention,
        queries: asked,
        keys,
        zeros,
    } = asked;
    let nothing = Finish::Nothing;
    asked.resize(wanted.len(), 0.0);
    keys.resize(2 * hidden.len(), 0.0);
    let chunks = hidden.chunks(CHUNK * width);
    for (chunk, (hidden, keys)) in chunks.zip(keys.chunks_mut(CHUNK * 2 * width)).enumerate() {
        let x = operand(hidden, width);
        products.prepare(path, x)?;
        products.multiply(path, x, asking.keys, nothing, keys);
        if queries == Queries::EveryToken {
            let asked = &mut asked[chunk * CHUNK * width..][..hidden.len()];
            products.multiply(path, x, asking.query, nothing, asked);
        }
    }
    if queries == Queries::OnePerSequence {
        let x = operand(wanted, width);
        products.prepare(path, x)?;
        products.multiply(path, x, asking.query, nothing, asked);
    }

    context.resize(wanted.len(), 0.0);
    zeros.resize(width, 0.0);
    let columns = |data, stride, offset| Columns {
        data,
        stride,
        offset,
    };
    let attend = Attention {
        query: columns(asked, width, 0),
        query_bias: zeros,
        key: columns(keys, 2 * width, 0),
        value: columns(keys, 2 * width, width),
        lengths,
        queries,
        heads: asking.heads,
        size: width / asking.heads,
        places: asking.places,
    };
    products.attend(path, &attend, attention, context);
    Ok(())
}

/// Runs a layer: `output` is `[tokens or sequences, width]`.
///
/// # Errors
/// [`NotFinite`], with whatever in `output`.
pub fn forward<P: Products>(
    path: Path,
    layer: &Layer<'_, P::Matrix<'_>>,
    input: Input<'_>,
    scratch: &mut Scratch<P>,
    output: &mut [f32],
) -> Result<(), NotFinite> {
    let width = P::outputs(layer.query);
    let Scratch {
        products,
        asked,
        first,
        context,
        attended,
        inner: expanded,
        ..
    } = scratch;
    let residual = input.wanted(width, first);
    let asking = Asking {
        query: layer.query,
        keys: layer.keys,
        heads: layer.heads,
        places: layer.places,
    };
    attend(path, &asking, input, residual, (products, asked), context)?;

    let nothing = Finish::Nothing;
    let inner = P::outputs(layer.up);
    let chunks = context.chunks(CHUNK * width);
    let outputs = output.chunks_mut(CHUNK * width);
    for ((context, residual), output) in chunks.zip(residual.chunks(CHUNK * width)).zip(outputs) {
        attended.resize(context.len(), 0.0);
        expanded.resize(context.len() / width * inner, 0.0);
        let x = operand(context, width);
        products.prepare(path, x)?;
        products.multiply(path, x, layer.projection, nothing, attended);
        path.perform(Normalize {
            x: attended,
            residual,
            norm: layer.attention_norm,
        });
        let x = operand(attended, width);
        products.prepare(path, x)?;
        products.multiply(path, x, layer.up, layer.activation, expanded);
        let x = operand(expanded, inner);
        products.prepare(path, x)?;
        products.multiply(path, x, layer.down, nothing, output);
        path.perform(Normalize {
            x: output,
            residual: attended,
            norm: layer.output_norm,
        });
    }
    Ok(())
}

fn operand(rows: &[f32], inputs: usize) -> Operand<'_> {
    Operand { rows, inputs }
}
