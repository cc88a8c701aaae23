//! A layer of the encoder: attention and feed-forward, with everything that lies between its matrix
//! products. It is the same in every arithmetic. [`GatedLayer`] is the other form.

mod gated;

use std::cell::RefCell;
use std::iter;
use std::thread::LocalKey;

pub use gated::{GatedLayer, forward as forward_gated};

use super::attention::{self, Attention, Columns, Places, Queries};
pub use super::elementary::Finish;
use super::hardware::{Hardware, Held};
use super::isa::Path;
pub use super::norm::LayerNorm;
use super::norm::{Normalize, NormalizeAlone};

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
pub trait Products: Default + 'static {
    /// Weights of a dense layer.
    type Matrix<'a>: Copy + Sync;

    /// Memory of the calling thread, for the parts of layers that it runs one after the other.
    fn hand() -> &'static LocalKey<RefCell<Hand<Self>>>;

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

    /// Writes the context of some queries, as [`attention::attend`] does.
    fn attend(
        &mut self,
        path: Path,
        attention: &Attention<'_>,
        first: usize,
        scratch: &mut attention::Scratch,
        output: &mut [f32],
    ) {
        attention::attend(path, attention, first, scratch, output);
    }
}

/// What a layer asks of its tokens, and how.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a, Matrix> {
    /// Queries, divided by the root of the size of a head: `[width]` outputs.
    pub query: Matrix,
    /// Keys and values: `[2 * width]`.
    pub keys: Matrix,
    /// Number of heads.
    pub heads: usize,
    /// What attention makes of the places of tokens.
    pub places: Places<'a>,
}

/// Weights of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a, Matrix> {
    /// What attention is made of.
    pub asking: Asking<'a, Matrix>,
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
}

/// Memory that one call leaves to the next, for what all parts of a layer read.
#[derive(Debug, Default)]
pub struct Scratch {
    projected: Projected,
    first: Vec<f32>,
    normed: Vec<f32>,
    normed_first: Vec<f32>,
}

/// The part of it that attention needs.
#[derive(Debug, Default)]
struct Projected {
    /// `[tokens or sequences, width]`
    queries: Vec<f32>,
    /// Keys and values: `[tokens, 2 * width]`
    keys: Vec<f32>,
    /// `[width]`
    zeros: Vec<f32>,
}

/// Memory that one part of a layer leaves to the next on the same thread.
#[derive(Debug, Default)]
pub struct Hand<P> {
    products: P,
    attention: attention::Scratch,
    context: Vec<f32>,
    attended: Vec<f32>,
    inner: Vec<f32>,
    gate: Vec<f32>,
    normed: Vec<f32>,
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

/// Makes keys and values of all rows of `input`, and queries of `wanted`, which is all of them or the
/// first of each sequence.
fn project<'a, P: Products>(
    path: Path,
    cores: &Held<'_>,
    asking: &Asking<'a, P::Matrix<'_>>,
    input: Input<'a>,
    wanted: &[f32],
    projected: &'a mut Projected,
) -> Result<Attention<'a>, NotFinite> {
    let width = P::outputs(asking.query);
    let Input {
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
        P::hand().with_borrow_mut(|hand| hand.project(path, asking, hidden, keys, queries))
    })?;
    if which == Queries::OnePerSequence {
        P::hand().with_borrow_mut(|Hand { products, .. }| {
            let x = operand(wanted, width);
            products.prepare(path, x)?;
            products.multiply(path, x, asking.query, Finish::Nothing, queries);
            Ok(())
        })?;
    }

    let columns = |data, stride, offset| Columns {
        data,
        stride,
        offset,
    };
    Ok(Attention {
        query: columns(queries, width, 0),
        query_bias: zeros,
        key: columns(keys, 2 * width, 0),
        value: columns(keys, 2 * width, width),
        lengths,
        queries: which,
        heads: asking.heads,
        size: width / asking.heads,
        places: asking.places,
    })
}

impl<P: Products> Hand<P> {
    /// Writes keys and values of some rows, and their queries where those are wanted.
    fn project(
        &mut self,
        path: Path,
        asking: &Asking<'_, P::Matrix<'_>>,
        hidden: &[f32],
        keys: &mut [f32],
        mut queries: Option<&mut [f32]>,
    ) -> Result<(), NotFinite> {
        let products = &mut self.products;
        let width = P::outputs(asking.query);
        let chunks = hidden.chunks(CHUNK * width);
        for (chunk, (hidden, keys)) in chunks.zip(keys.chunks_mut(2 * CHUNK * width)).enumerate() {
            let x = operand(hidden, width);
            products.prepare(path, x)?;
            products.multiply(path, x, asking.keys, Finish::Nothing, keys);
            if let Some(queries) = &mut queries {
                let queries = &mut queries[chunk * CHUNK * width..][..hidden.len()];
                products.multiply(path, x, asking.query, Finish::Nothing, queries);
            }
        }
        Ok(())
    }

    /// Sets the context of so many `queries` from `first` on.
    fn attend(&mut self, path: Path, attention: &Attention<'_>, first: usize, queries: usize) {
        let numbers = queries * attention.heads * attention.size;
        self.context.resize(numbers, 0.0);
        let (scratch, context) = (&mut self.attention, &mut self.context);
        self.products
            .attend(path, attention, first, scratch, context);
    }
}

/// Runs a layer: `output` is `[tokens or sequences, width]`.
///
/// # Errors
/// [`NotFinite`], with whatever in `output`.
pub fn forward<P: Products>(
    hardware: &Hardware,
    layer: &Layer<'_, P::Matrix<'_>>,
    input: Input<'_>,
    scratch: &mut Scratch,
    output: &mut [f32],
) -> Result<(), NotFinite> {
    let path = hardware.path;
    let width = P::outputs(layer.asking.query);
    let cores = hardware.borrow(input.hidden.len() / width);
    let residual = input.wanted(width, &mut scratch.first);
    let projected = &mut scratch.projected;
    let attention = project::<P>(path, &cores, &layer.asking, input, residual, projected)?;
    attend(
        path,
        &cores,
        &attention,
        residual,
        output,
        |hand, residual, output| Hand::<P>::finish(hand, path, layer, residual, output),
    )
}

/// Has each part of the rows attend, and then `finish`, which is given the part's `residual` and `output`.
fn attend<P: Products>(
    path: Path,
    cores: &Held<'_>,
    attention: &Attention<'_>,
    residual: &[f32],
    output: &mut [f32],
    finish: impl Fn(&mut Hand<P>, &[f32], &mut [f32]) -> Result<(), NotFinite> + Sync,
) -> Result<(), NotFinite> {
    let width = attention.heads * attention.size;
    let share = cores.share(residual.len() / width);
    let parts = residual.chunks(share * width);
    let parts = parts.zip(output.chunks_mut(share * width));
    cores.each(parts.enumerate(), |(part, (residual, output))| {
        P::hand().with_borrow_mut(|hand| {
            hand.attend(path, attention, part * share, residual.len() / width);
            finish(hand, residual, output)
        })
    })
}

impl<P: Products> Hand<P> {
    /// Writes what becomes of the context of some rows.
    fn finish(
        &mut self,
        path: Path,
        layer: &Layer<'_, P::Matrix<'_>>,
        residual: &[f32],
        output: &mut [f32],
    ) -> Result<(), NotFinite> {
        let Self {
            products,
            context,
            attended,
            inner: expanded,
            ..
        } = self;
        let (width, inner) = (P::outputs(layer.asking.query), P::outputs(layer.up));
        let nothing = Finish::Nothing;
        let chunks = context.chunks(CHUNK * width);
        let outputs = output.chunks_mut(CHUNK * width);
        for ((context, residual), output) in chunks.zip(residual.chunks(CHUNK * width)).zip(outputs)
        {
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
}

fn operand(rows: &[f32], inputs: usize) -> Operand<'_> {
    Operand { rows, inputs }
}
