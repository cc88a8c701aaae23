//! Rows in eight bits, each quantized by a scale and a zero point of its own.

use crate::elementary::{LANES, fold, round_to_i32};
use crate::isa::{Isa, Step};
use crate::quantize::GROUP;
use crate::rotation::{is_rotated, rotate};

/// Largest number of a quantized row.
const MAX: f32 = 255.0;
/// Numbers that are looked at at once: two registers, so that one need not wait for the other.
const WIDTH: usize = 2 * LANES;

/// Quantized rows: `(number - zero) * scale` is what a number of the shifted, scaled and rotated row was.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Blocks of [`crate::isa::Tile::rows`], and more: it never shrinks. What a last block has
    /// no rows for is left as it was, and never read.
    pub words: Vec<u32>,
    /// What each row was divided by, `[rows]`; not a number where the row holds what is not finite.
    pub scales: Vec<f32>,
    /// What each row was then moved up by, less [`Isa::OFFSET`], `[rows]`.
    pub zeros: Vec<i32>,
    /// One row's numbers.
    row: Vec<u8>,
    /// One row, shifted, scaled and rotated.
    transformed: Vec<f32>,
}

/// Shifts and factors of a dense layer's inputs, as [`crate::quantize::Equalization`] has them.
#[derive(Debug, Clone, Copy)]
pub struct Equalization<'a> {
    /// `[inputs]`.
    pub shifts: &'a [f32],
    /// `[inputs]`.
    pub factors: &'a [f32],
}

/// Fills `rows` with `x`, `[rows, inputs]`.
pub(super) struct Quantize<'a> {
    pub x: &'a [f32],
    pub inputs: usize,
    pub equalization: Option<Equalization<'a>>,
    pub rows: &'a mut Rows,
}

impl Step for Quantize<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self {
            x,
            inputs,
            equalization,
            rows,
        } = self;
        let groups = I::groups(inputs);
        let block_size = groups * I::ROWS * I::WORDS;
        let count = x.len() / inputs;
        let size = count.div_ceil(I::ROWS) * block_size;
        if rows.words.len() < size {
            rows.words.resize(size, 0);
        }
        rows.scales.clear();
        rows.zeros.clear();
        rows.transformed.resize(inputs, 0.0);
        rows.row.clear();
        rows.row.resize(groups * GROUP, 0);
        for (index, x) in x.chunks_exact(inputs).enumerate() {
            transform(isa, x, equalization, &mut rows.transformed);
            let x = &rows.transformed[..];
            let mut low = [0.0_f32; WIDTH];
            let mut high = [0.0_f32; WIDTH];
            // Zero, unless a number of the row is not finite: then the scale, and so every product
            // of the row, is not a number either.
            let mut poison = [0.0_f32; WIDTH];
            let (chunks, rest) = x.as_chunks::<WIDTH>();
            let mut look = |x: &[f32; WIDTH]| {
                for lane in 0..WIDTH {
                    low[lane] = if x[lane] < low[lane] {
                        x[lane]
                    } else {
                        low[lane]
                    };
                    high[lane] = if x[lane] > high[lane] {
                        x[lane]
                    } else {
                        high[lane]
                    };
                    poison[lane] += x[lane] * 0.0;
                }
            };
            chunks.iter().for_each(&mut look);
            let mut last = [0.0; WIDTH];
            last[..rest.len()].copy_from_slice(rest);
            look(&last);
            let (low, high) = (fold(low, f32::min), fold(high, f32::max));
            let poison = fold(poison, |a, b| a + b);
            // A row of zeros stays zero.
            let (scale, factor) = match high > low {
                true => ((high - low) / MAX, MAX / (high - low)),
                false => (0.0, 0.0),
            };
            let zero = (-low * factor).round_ties_even();
            for (number, &x) in rows.row.iter_mut().zip(x) {
                let x = x * factor + zero;
                *number = round_to_i32(x).clamp(0, 255) as u8;
            }
            let block = &mut rows.words[index / I::ROWS * block_size..][..block_size];
            let (words, _) = rows.row.as_chunks::<GROUP>();
            // What lies side by side is one copy.
            for (span, words) in words.chunks_exact(I::ROW_SPAN).enumerate() {
                let place = I::place(span * I::ROW_SPAN, index % I::ROWS);
                let cells = block[place..][..I::ROW].chunks_exact_mut(I::WORDS);
                for (cell, word) in cells.zip(words) {
                    I::pack(u32::from_le_bytes(*word), cell);
                }
            }
            rows.scales.push(scale + poison);
            rows.zeros.push(zero as i32 - I::OFFSET);
        }
    }
}

/// Shifts, scales and rotates a row.
#[inline(always)]
fn transform<I: Isa>(
    isa: I,
    x: &[f32],
    equalization: Option<Equalization<'_>>,
    transformed: &mut [f32],
) {
    let (registers, _) = x.as_chunks::<LANES>();
    match equalization {
        None if is_rotated(x.len()) => rotate(isa, |register| registers[register], transformed),
        None => transformed.copy_from_slice(x),
        Some(Equalization { shifts, factors }) if is_rotated(x.len()) => {
            let (shifts, _) = shifts.as_chunks::<LANES>();
            let (factors, _) = factors.as_chunks::<LANES>();
            let equalized = |register: usize| {
                let (x, shift, factor) = (registers[register], shifts[register], factors[register]);
                std::array::from_fn(|lane| (x[lane] - shift[lane]) * factor[lane])
            };
            rotate(isa, equalized, transformed);
        }
        Some(Equalization { shifts, factors }) => {
            let operands = x.iter().zip(shifts).zip(factors);
            for (transformed, ((x, shift), factor)) in transformed.iter_mut().zip(operands) {
                *transformed = (x - shift) * factor;
            }
        }
    }
}
