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

use std::cell::RefCell;
use std::thread::LocalKey;

use super::attention::{self as exact, Attention, Places, Queries};
use super::elementary::Finish;
use super::isa::Path;
use super::layer::{Hand, NotFinite, Operand, Products};
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

    fn hand() -> &'static LocalKey<RefCell<Hand<Self>>> {
        thread_local!(static HAND: RefCell<Hand<Int8>> = RefCell::default());
        &HAND
    }

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
        first: usize,
        scratch: &mut exact::Scratch,
        output: &mut [f32],
    ) {
        let &Attention { heads, size, .. } = attention;
        let plain = attention.places == Places::default();
        if attention.queries == Queries::OnePerSequence || !size.is_multiple_of(GROUP) || !plain {
            return exact::attend(path, attention, first, scratch, output);
        }
        let width = heads * size;
        let wanted = first..first + output.len() / width;
        let mut start = 0;
        for &length in attention.lengths {
            let tokens = start..start + length as usize;
            start = tokens.end;
            let asked = wanted.start.max(tokens.start)..wanted.end.min(tokens.end);
            if asked.is_empty() {
                continue;
            }
            let rows = (asked.start - wanted.start) * width..(asked.end - wanted.start) * width;
            path.perform(attention::Attend {
                queries: &attention.query.data[tokens.start * width..tokens.end * width],
                keys: &attention.key.data[tokens.start * 2 * width..tokens.end * 2 * width],
                heads,
                size,
                scratch: &mut self.attention,
                first: asked.start - tokens.start,
                output: &mut output[rows],
            });
        }
    }
}

#[cfg(test)]
mod tests;
