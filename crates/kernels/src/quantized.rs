//! The int8 arithmetic.
//!
//! Weights are quantized per output channel, symmetrically; activations per row, with a scale and a zero point, after
//! a rotation; attention quantizes each sequence by itself, and each query with a scale of its own. So a score has the same bits whatever shares its batch. Sums of
//! products are 32-bit integers, the same on every processor; [`super::isa`] computes them.

mod attention;
mod dense;
mod embeddings;
mod rows;

pub use dense::Matrix;
pub use embeddings::{Embeddings, embed};

use std::cell::RefCell;
use std::thread::LocalKey;

use super::attention::{self as exact, Attention, SequenceQueries};
use super::epilogue::Epilogue;
use super::isa::InstructionSet;
use super::layer::{Operand, Products, ThreadScratch};
use crate::quantize::GROUP;
use dense::Dense;
pub use rows::Equalization;
use rows::{Quantize, Rows};

/// Products of quantized rows and quantized weights.
#[derive(Debug, Default)]
pub struct Int8 {
    rows: Rows,
    /// Some strips, where they have to be arranged anew.
    arranged: RefCell<Vec<i8>>,
    attention: attention::Scratch,
}

impl Products for Int8 {
    type Matrix<'a> = Matrix<'a>;

    fn thread_scratch() -> &'static LocalKey<RefCell<ThreadScratch<Self>>> {
        thread_local!(static SCRATCH: RefCell<ThreadScratch<Int8>> = RefCell::default());
        &SCRATCH
    }

    fn outputs(matrix: Matrix<'_>) -> usize {
        matrix.scales.len()
    }

    fn chunk(set: InstructionSet) -> usize {
        set.chunk()
    }

    fn prepare(&mut self, set: InstructionSet, x: Operand<'_>, matrix: Matrix<'_>) {
        set.perform(Quantize {
            x: x.rows,
            inputs: x.inputs,
            equalization: matrix.equalization,
            rows: &mut self.rows,
        });
    }

    fn multiply(
        &self,
        set: InstructionSet,
        x: Operand<'_>,
        matrix: Matrix<'_>,
        epilogue: Epilogue,
        output: &mut [f32],
    ) {
        set.perform(Dense {
            rows: &self.rows,
            inputs: x.inputs,
            arranged: &mut self.arranged.borrow_mut(),
            matrix,
            epilogue,
            output,
        });
    }

    fn attend(
        &mut self,
        set: InstructionSet,
        attention: &Attention<'_>,
        first: usize,
        scratch: &mut exact::Scratch,
        output: &mut [f32],
    ) {
        let &Attention { heads, size, .. } = attention;
        if !attention.is_plain() || !size.is_multiple_of(GROUP) {
            return exact::attend(set, attention, first, scratch, output);
        }
        let width = heads * size;
        for SequenceQueries {
            tokens,
            queries,
            output,
        } in attention.sequences(first, output)
        {
            set.perform(attention::Attend {
                queries: &attention.query.data[tokens.start * width..tokens.end * width],
                keys: &attention.key.data[tokens.start * 2 * width..tokens.end * 2 * width],
                heads,
                size,
                scratch: &mut self.attention,
                first: queries.start - tokens.start,
                output,
            });
        }
    }
}

#[cfg(test)]
mod tests;
