//! The bf16 arithmetic: weights in bf16, and rows rounded to bf16 as they are multiplied. Sums are made in fp32, and
//! everything between two products is fp32.
//!
//! A product of two bf16 is exact in fp32, so what an instruction set without bf16 computes from widened numbers
//! has the same bits, as long as nothing is smaller than the smallest normal number. Sums have a fixed order: a score
//! has the same bits whatever shares its batch. AMX has another order than the other instruction sets.

mod attention;

use std::cell::RefCell;
use std::thread::LocalKey;

use super::attention::{self as exact, Attention};
use super::dense::{Dense, Tiles, part};
use super::epilogue::Epilogue;
use super::isa::{InstructionSet, Isa, PAIR_PADDING, PairTile, Step, multiply_add};
use super::layer::{Operand, Products, ThreadScratch};
use crate::quantize::COLUMNS;

/// Two bf16, the first in the low half.
pub type Pair = i32;

/// Weights of a dense layer.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// As [`strips`] makes them: `[strips, pairs, COLUMNS]`.
    pub strips: &'a [Pair],
    /// Added to every row, `[outputs]`.
    pub bias: &'a [f32],
}

/// Dense layers as they are stored, `[outputs, inputs]`, one after the other, in bf16: `[strips, pairs, COLUMNS]`;
/// zeros where there is no such input or output.
pub fn strips(matrices: &[&[f32]], inputs: usize) -> Vec<Pair> {
    let pairs = pairs(inputs);
    let rows = matrices.iter().flat_map(|m| m.chunks_exact(inputs));
    let outputs = rows.clone().count();
    let mut strips = vec![0; outputs.next_multiple_of(COLUMNS) * pairs];
    for (output, row) in rows.enumerate() {
        let start = output / COLUMNS * COLUMNS * pairs + output % COLUMNS;
        let cells = strips[start..].iter_mut().step_by(COLUMNS);
        for (cell, weights) in cells.zip(row.chunks(2)) {
            *cell = pair(weights[0], weights.get(1).copied().unwrap_or(0.0));
        }
    }
    strips
}

/// Pairs of a row of `inputs` numbers, with zeros behind the last number.
fn pairs(inputs: usize) -> usize {
    inputs.div_ceil(2).next_multiple_of(PAIR_PADDING)
}

/// The nearest bf16, ties to even, in the high half; what is not finite stays so.
#[inline(always)]
fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // Rounding could carry out of the bits of a NaN.
    let nan = bits | 0x0040_0000;
    (if x.is_nan() { nan } else { rounded }) & 0xffff_0000
}

#[inline(always)]
fn pair(first: f32, second: f32) -> Pair {
    (round(first) >> 16 | round(second)) as Pair
}

/// The numbers of a pair.
#[inline(always)]
fn widened(pair: Pair) -> [f32; 2] {
    let bits = pair as u32;
    [bits << 16, bits & 0xffff_0000].map(f32::from_bits)
}

/// Writes rows `[rows, inputs]` as pairs: `[rows, pairs]`, with rows of anything up to a multiple of [`PAIR_PADDING`].
#[inline(always)]
fn round_rows(x: &[f32], inputs: usize, rows: &mut Vec<Pair>) {
    let pairs = pairs(inputs);
    rows.resize((x.len() / inputs).next_multiple_of(PAIR_PADDING) * pairs, 0);
    for (row, x) in rows.chunks_exact_mut(pairs).zip(x.chunks_exact(inputs)) {
        let (numbers, rest) = x.as_chunks::<2>();
        for (cell, &[first, second]) in row.iter_mut().zip(numbers) {
            *cell = pair(first, second);
        }
        let padding = &mut row[numbers.len()..];
        padding.fill(0);
        if let (Some(cell), &[last]) = (padding.first_mut(), rest) {
            *cell = pair(last, 0.0);
        }
    }
}

/// Rows whose sums are made at once where there are no instructions for bf16.
const WIDENED_ROWS: usize = 4;

/// See [`Isa::multiply_pairs`].
#[inline(always)]
pub(super) fn multiply_widened<I: Isa>(tile: &PairTile<'_>, sums: &mut [f32]) {
    let width = tile.strip_count() * COLUMNS;
    let blocks = tile.rows[..tile.count * tile.pairs].chunks(WIDENED_ROWS * tile.pairs);
    for (rows, sums) in blocks.zip(sums.chunks_mut(WIDENED_ROWS * width)) {
        let strips = tile.strips.chunks_exact(tile.pairs * COLUMNS);
        for (strip, weights) in strips.enumerate() {
            let sums = &mut sums[strip * COLUMNS..];
            match rows.len() / tile.pairs {
                WIDENED_ROWS => widened_block::<I, WIDENED_ROWS>(rows, weights, width, sums),
                _ => {
                    let rows = rows.chunks_exact(tile.pairs);
                    for (row, sums) in rows.zip(sums.chunks_mut(width)) {
                        widened_block::<I, 1>(row, weights, width, sums);
                    }
                }
            }
        }
    }
}

/// The sums of `ROWS` rows with a strip, each `width` behind the one before.
#[inline(always)]
fn widened_block<I: Isa, const ROWS: usize>(
    rows: &[Pair],
    strip: &[Pair],
    width: usize,
    sums: &mut [f32],
) {
    let pairs = rows.len() / ROWS;
    let mut block = [[0.0_f32; COLUMNS]; ROWS];
    for (index, weights) in strip.as_chunks::<COLUMNS>().0.iter().enumerate() {
        for (row, sums) in block.iter_mut().enumerate() {
            let [first, second] = widened(rows[row * pairs + index]);
            for (sum, &weights) in sums.iter_mut().zip(weights) {
                let weights = widened(weights);
                let half = multiply_add::<I>(second, weights[1], *sum);
                *sum = multiply_add::<I>(first, weights[0], half);
            }
        }
    }
    for (sums, block) in sums.chunks_mut(width).zip(block) {
        sums[..COLUMNS].copy_from_slice(&block);
    }
}

/// Products in bf16.
#[derive(Debug, Default)]
pub struct Bf16 {
    /// As [`round_rows`] makes them.
    rows: Vec<Pair>,
    attention: attention::Scratch,
}

impl Products for Bf16 {
    type Matrix<'a> = Matrix<'a>;

    fn thread_scratch() -> &'static LocalKey<RefCell<ThreadScratch<Self>>> {
        thread_local!(static SCRATCH: RefCell<ThreadScratch<Bf16>> = RefCell::default());
        &SCRATCH
    }

    fn outputs(matrix: Matrix<'_>) -> usize {
        matrix.bias.len()
    }

    fn chunk(set: InstructionSet) -> usize {
        set.chunk()
    }

    fn prepare(&mut self, set: InstructionSet, x: Operand<'_>, _: Self::Matrix<'_>) {
        set.perform(Round {
            x,
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
        let tiles = Pairs {
            rows: &self.rows,
            count: x.rows.len() / x.inputs,
            pairs: pairs(x.inputs),
            strips: matrix.strips,
            panel: &[],
        };
        set.perform(Dense {
            tiles,
            bias: matrix.bias,
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
        if attention::supports(attention) {
            attention::attend(set, attention, first, &mut self.attention, output);
        } else {
            exact::attend(set, attention, first, scratch, output);
        }
    }
}

struct Round<'a> {
    x: Operand<'a>,
    rows: &'a mut Vec<Pair>,
}

impl Step for Round<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        round_rows(self.x.rows, self.x.inputs, self.rows);
    }
}

/// Rows and weights in bf16.
struct Pairs<'a> {
    rows: &'a [Pair],
    count: usize,
    pairs: usize,
    strips: &'a [Pair],
    /// Of `strips`.
    panel: &'a [Pair],
}

impl Tiles for Pairs<'_> {
    fn tile_shape<I: Isa>() -> (usize, usize) {
        (I::PAIR_ROWS, I::PAIR_STRIPS)
    }

    fn rows(&self) -> usize {
        self.count
    }

    #[inline(always)]
    fn select<I: Isa>(&mut self, panel: usize) {
        self.panel = part(self.strips, panel, I::PAIR_STRIPS * COLUMNS * self.pairs);
    }

    #[inline(always)]
    fn multiply<I: Isa>(&self, isa: I, first: usize, count: usize, sums: &mut [f32]) {
        let tile = PairTile {
            rows: &self.rows[first * self.pairs..],
            count,
            strips: self.panel,
            pairs: self.pairs,
        };
        isa.multiply_pairs(&tile, sums);
    }
}

#[cfg(test)]
mod tests;
