//! The encoder in eight bits.
//!
//! Weights have eight bits and a scale for each output; rows have eight bits, a scale and a zero each
//! of its own, and attention quantises a sequence by itself. So a score never depends on what shares
//! its batch, and is the same bits whatever does. Sums of products are whole numbers of 32 bits, the
//! same on every processor; [`super::isa`] has what makes them.

mod attention;
mod dense;
mod embeddings;
mod rows;

pub use dense::Matrix;
pub use embeddings::{Embeddings, embed};

use super::attention::{self as exact, Attention, Places, Queries};
use super::elementary::Finish;
use super::isa::Path;
use super::layer::{NotFinite, Operand, Products};
use crate::quantize::GROUP;
use dense::Dense;
use rows::{Quantize, Rows};

/// Products of quantised rows with quantised weights.
#[derive(Debug, Default)]
pub struct Int8 {
    rows: Rows,
    attention: attention::Scratch,
}

impl Products for Int8 {
    type Matrix<'a> = Matrix<'a>;

    fn outputs(matrix: Matrix<'_>) -> usize {
        matrix.scales.len()
    }

    fn prepare(&mut self, path: Path, x: Operand<'_>) -> Result<(), NotFinite> {
        path.perform(Quantize {
            x: x.rows,
            inputs: x.inputs,
            rows: &mut self.rows,
        });
        match self.rows.scales.iter().all(|scale| scale.is_finite()) {
            true => Ok(()),
            false => Err(NotFinite),
        }
    }

    fn multiply(
        &self,
        path: Path,
        x: Operand<'_>,
        matrix: Matrix<'_>,
        finish: Finish,
        output: &mut [f32],
    ) {
        path.perform(Dense {
            rows: &self.rows,
            inputs: x.inputs,
            matrix,
            finish,
            output,
        });
    }

    fn attend(
        &mut self,
        path: Path,
        attention: &Attention<'_>,
        scratch: &mut exact::Scratch,
        output: &mut [f32],
    ) {
        let &Attention { heads, size, .. } = attention;
        let plain = attention.places == Places::default();
        if attention.queries == Queries::OnePerSequence || !size.is_multiple_of(GROUP) || !plain {
            return exact::attend(path, attention, scratch, output);
        }
        let width = heads * size;
        let mut first = 0;
        for &length in attention.lengths {
            let tokens = first..first + length as usize;
            path.perform(attention::Attend {
                queries: &attention.query.data[tokens.start * width..tokens.end * width],
                keys: &attention.key.data[tokens.start * 2 * width..tokens.end * 2 * width],
                heads,
                size,
                scratch: &mut self.attention,
                output: &mut output[tokens.start * width..tokens.end * width],
            });
            first = tokens.end;
        }
    }
}

#[cfg(test)]
mod tests;
