//! A dense layer in floats, tile by tile.

use super::elementary::gelu;
use super::epilogue::{Epilogue, with_epilogue};
use super::isa::{FloatSums, Isa, MAX_SUMS, Step};
use crate::quantize::COLUMNS;

/// The operands of a matrix product.
pub(super) trait Tiles {
    /// Rows of a tile, and strips of a panel.
    fn tile_shape<I: Isa>() -> (usize, usize) {
        (I::FLOAT_ROWS, I::FLOAT_STRIPS)
    }

    /// Rows that are multiplied.
    fn rows(&self) -> usize;

    /// Makes the strips of a panel ready, or as many as are left.
    fn select<I: Isa>(&mut self, panel: usize);

    /// Multiplies `count` rows from `first` on by the panel: `[count, strips, COLUMNS]`.
    fn multiply<I: Isa>(&self, isa: I, first: usize, count: usize, sums: &mut [f32]);
}

/// Writes the product of some rows and a matrix to `output`, `[rows, outputs]`.
pub(super) struct Dense<'a, T> {
    pub tiles: T,
    /// Added to every row, `[outputs]`.
    pub bias: &'a [f32],
    pub epilogue: Epilogue,
    pub output: &'a mut [f32],
}

impl<T: Tiles> Step for Dense<'_, T> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        with_epilogue!(self.epilogue, I, gelu::<I>, |epilogue| self
            .multiply(isa, epilogue));
    }
}

impl<T: Tiles> Dense<'_, T> {
    #[inline(always)]
    fn multiply<I: Isa>(self, isa: I, epilogue: impl Fn(f32) -> f32) {
        let Self {
            mut tiles,
            bias,
            output,
            ..
        } = self;
        let outputs = bias.len();
        let rows = tiles.rows();
        let (block, strips) = T::tile_shape::<I>();
        let width = strips * COLUMNS;
        let mut sums: FloatSums = [0.0; MAX_SUMS];
        for (panel, first) in (0..outputs).step_by(width).enumerate() {
            tiles.select::<I>(panel);
            let columns = first..(first + width).min(outputs);
            let bias = &bias[columns.clone()];
            let stride = columns.len().next_multiple_of(COLUMNS);
            let blocks = output.chunks_mut(block * outputs);
            for (row, output) in (0..rows).step_by(block).zip(blocks) {
                let count = block.min(rows - row);
                tiles.multiply(isa, row, count, &mut sums);
                let sums = sums.chunks_exact(stride);
                for (output, sums) in output.chunks_exact_mut(outputs).zip(sums) {
                    let output = &mut output[columns.clone()];
                    for ((output, &sum), &bias) in output.iter_mut().zip(sums).zip(bias) {
                        *output = epilogue(sum + bias);
                    }
                }
            }
        }
    }
}

/// The `index`-th `size` elements, or as many as are left.
pub(super) fn part<T>(elements: &[T], index: usize, size: usize) -> &[T] {
    &elements[index * size..elements.len().min((index + 1) * size)]
}
