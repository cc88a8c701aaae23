//! A layer that normalises before each part, and multiplies the feed-forward part by a gate.

use super::{
    Asking, CHUNK, Finish, Hand, Hardware, Input, LayerNorm, NormalizeAlone, NotFinite, Path,
    Products, Scratch, attend, operand, project,
};

/// Weights of such a layer.
#[derive(Debug, Clone, Copy)]
pub struct GatedLayer<'a, Matrix> {
    /// Before attention; none where the hidden state is normalised already.
    pub attention_norm: Option<LayerNorm<'a>>,
    /// What attention is made of.
    pub asking: Asking<'a, Matrix>,
    /// What attention gives, projected: `[width]`.
    pub projection: Matrix,
    /// Before the feed-forward part.
    pub inner_norm: LayerNorm<'a>,
    /// `[inner]` outputs.
    pub up: Matrix,
    /// What comes after `up`.
    pub activation: Finish,
    /// What it is multiplied by: `[inner]` outputs.
    pub gate: Matrix,
    /// `[width]` outputs.
    pub down: Matrix,
}

/// Runs a layer: `output` is `[tokens or sequences, width]`.
///
/// # Errors
/// [`NotFinite`], with whatever in `output`.
pub fn forward<P: Products>(
    hardware: &Hardware,
    layer: &GatedLayer<'_, P::Matrix<'_>>,
    input: Input<'_>,
    scratch: &mut Scratch,
    output: &mut [f32],
) -> Result<(), NotFinite> {
    let path = hardware.path;
    let width = P::outputs(layer.asking.query);
    let cores = hardware.borrow(input.hidden.len() / width);
    let Scratch {
        projected,
        first,
        normed,
        normed_first,
    } = scratch;
    let hidden = match layer.attention_norm {
        None => input.hidden,
        Some(norm) => {
            normalize(path, input.hidden, norm, normed);
            &*normed
        }
    };
    let normal = Input { hidden, ..input };
    let wanted = normal.wanted(width, normed_first);
    let attention = project::<P>(path, &cores, &layer.asking, normal, wanted, projected)?;
    let residual = input.wanted(width, first);
    attend(
        path,
        &cores,
        &attention,
        residual,
        output,
        |hand, residual, output| Hand::<P>::finish_gated(hand, path, layer, residual, output),
    )
}

impl<P: Products> Hand<P> {
    /// Writes what becomes of the context of some rows.
    fn finish_gated(
        &mut self,
        path: Path,
        layer: &GatedLayer<'_, P::Matrix<'_>>,
        residual: &[f32],
        output: &mut [f32],
    ) -> Result<(), NotFinite> {
        let Self {
            products,
            context,
            attended,
            inner: expanded,
            gate,
            normed,
            ..
        } = self;
        let (width, inner) = (P::outputs(layer.asking.query), P::outputs(layer.up));
        let nothing = Finish::Nothing;
        let chunks = context.chunks(CHUNK * width);
        let outputs = output.chunks_mut(CHUNK * width);
        for ((context, residual), output) in chunks.zip(residual.chunks(CHUNK * width)).zip(outputs)
        {
            let rows = context.len() / width;
            attended.resize(context.len(), 0.0);
            expanded.resize(rows * inner, 0.0);
            gate.resize(rows * inner, 0.0);
            let x = operand(context, width);
            products.prepare(path, x)?;
            products.multiply(path, x, layer.projection, nothing, attended);
            add(attended, residual);
            normalize(path, attended, layer.inner_norm, normed);
            let x = operand(normed, width);
            products.prepare(path, x)?;
            products.multiply(path, x, layer.up, layer.activation, expanded);
            products.multiply(path, x, layer.gate, nothing, gate);
            for (x, gate) in expanded.iter_mut().zip(&*gate) {
                *x *= gate;
            }
            let x = operand(expanded, inner);
            products.prepare(path, x)?;
            products.multiply(path, x, layer.down, nothing, output);
            add(output, attended);
        }
        Ok(())
    }
}

/// Writes the LayerNorm of `x` to `output`.
fn normalize(path: Path, x: &[f32], norm: LayerNorm<'_>, output: &mut Vec<f32>) {
    output.clear();
    output.extend_from_slice(x);
    path.perform(NormalizeAlone { x: output, norm });
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}
