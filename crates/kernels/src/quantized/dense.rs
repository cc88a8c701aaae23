//! A dense layer over quantized rows.

use super::rows::{Equalization, Rows};
use crate::elementary::rough_gelu;
use crate::epilogue::{Epilogue, with_epilogue};
use crate::isa::multiply_add;
use crate::isa::{Isa, MAX_SUMS, Step, Sums, Tile};
use crate::quantize::{COLUMNS, Quantized, strip_size};

/// Weights of a dense layer, as [`crate::quantize::Quantized`] has them.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// `[strips, groups, COLUMNS, GROUP]`.
    pub strips: &'a [i8],
    /// `[outputs]`.
    pub scales: &'a [f32],
    /// `[outputs]`.
    pub sums: &'a [i32],
    /// Added to every row, `[outputs]`, with what the equalization took away.
    pub bias: &'a [f32],
    /// What happens to the inputs before they are quantized.
    pub equalization: Option<Equalization<'a>>,
}

impl<'a> Matrix<'a> {
    /// Weights whose inputs are neither shifted nor scaled.
    pub fn new(quantized: &'a Quantized, bias: &'a [f32]) -> Self {
        Self {
            strips: &quantized.strips,
            scales: &quantized.scales,
            sums: &quantized.sums,
            bias,
            equalization: None,
        }
    }
}

/// Writes the product of `rows` with `matrix` to `output`, `[rows, outputs]`.
pub(super) struct Dense<'a> {
    pub rows: &'a Rows,
    pub inputs: usize,
    /// See [`Isa::arrange`].
    pub arranged: &'a mut Vec<i8>,
    pub matrix: Matrix<'a>,
    pub epilogue: Epilogue,
    pub output: &'a mut [f32],
}

impl Step for Dense<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        with_epilogue!(self.epilogue, I, rough_gelu::<I>, |epilogue| self
            .multiply(isa, epilogue));
    }
}

impl Dense<'_> {
    #[inline(always)]
    fn multiply<I: Isa>(self, isa: I, epilogue: impl Fn(f32) -> f32) {
        let Self {
            rows,
            inputs,
            arranged,
            matrix,
            output,
            ..
        } = self;
        let outputs = matrix.scales.len();
        let groups = I::groups(inputs);
        let block_size = groups * I::ROWS * I::WORDS;
        let mut sums: Sums = [0; MAX_SUMS];
        let width = I::STRIPS * COLUMNS;
        let panels = matrix.strips.chunks(I::STRIPS * strip_size(inputs));
        for (strips, first) in panels.zip((0..outputs).step_by(width)) {
            let columns = first..(first + width).min(outputs);
            let scales = &matrix.scales[columns.clone()];
            let offsets = &matrix.sums[columns.clone()];
            let bias = &matrix.bias[columns.clone()];
            let strips = I::arrange(strips, inputs, arranged);
            for (block, output) in output.chunks_mut(I::ROWS * outputs).enumerate() {
                let tile = Tile {
                    rows: &rows.words[block * block_size..][..block_size],
                    count: output.len() / outputs,
                    strips,
                    groups,
                };
                isa.multiply(&tile, &mut sums);
                let row_scales = &rows.scales[block * I::ROWS..];
                let row_zeros = &rows.zeros[block * I::ROWS..];
                let sums = sums.chunks_exact(tile.strip_count() * COLUMNS);
                let written = output.chunks_exact_mut(outputs).zip(sums);
                for (((output, sums), &row_scale), &zero) in written.zip(row_scales).zip(row_zeros)
                {
                    let operands = sums.iter().zip(scales).zip(offsets).zip(bias);
                    for ((((&sum, &scale), &offset), &bias), output) in
                        operands.zip(&mut output[columns.clone()])
                    {
                        let sum = (sum - zero * offset) as f32;
                        *output = epilogue(multiply_add::<I>(sum, scale * row_scale, bias));
                    }
                }
            }
        }
    }
}
