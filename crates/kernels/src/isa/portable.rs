//! Any processor, without SIMD intrinsics: the definition that the other instruction sets agree with.

use super::{FloatTile, Isa, Step, Tile, multiply_add};
use crate::quantize::{COLUMNS, GROUP};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Portable(());

impl Isa for Portable {
    const NAME: &'static str = "portable";
    const OPTIMIZED: bool = false;
    const ROWS: usize = 4;
    const STRIPS: usize = 1;
    const WORDS: usize = 1;
    const FLOAT_ROWS: usize = 4;
    const FLOAT_STRIPS: usize = 1;
    const WIDE: bool = false;
    const FUSED: bool = cfg!(target_arch = "aarch64");

    fn detect() -> Option<Self> {
        Some(Self(()))
    }

    fn perform<S: Step>(self, step: S) {
        step.run(self)
    }

    #[inline(always)]
    fn multiply(self, tile: &Tile<'_>, sums: &mut [i32]) {
        let strip = tile.strips.chunks_exact(COLUMNS * GROUP);
        let mut block = [[0_i32; COLUMNS]; Self::ROWS];
        for (rows, weights) in tile.rows.chunks_exact(Self::ROWS).zip(strip) {
            for (sums, group) in block.iter_mut().zip(rows) {
                let numbers = group.to_le_bytes().map(i32::from);
                for (sum, weights) in sums.iter_mut().zip(weights.chunks_exact(GROUP)) {
                    for (number, &weight) in numbers.iter().zip(weights) {
                        *sum += number * i32::from(weight);
                    }
                }
            }
        }
        for (sums, block) in sums.chunks_exact_mut(COLUMNS).zip(block).take(tile.count) {
            sums.copy_from_slice(&block);
        }
    }

    #[inline(always)]
    fn multiply_floats(self, tile: &FloatTile<'_>, sums: &mut [f32]) {
        let rows = tile.rows.chunks_exact(tile.inputs);
        for (sums, row) in sums.chunks_exact_mut(COLUMNS).zip(rows) {
            let mut block = [0.0_f32; COLUMNS];
            for (&number, weights) in row.iter().zip(tile.strips.chunks_exact(COLUMNS)) {
                for (sum, &weight) in block.iter_mut().zip(weights) {
                    *sum = multiply_add::<Self>(number, weight, *sum);
                }
            }
            sums.copy_from_slice(&block);
        }
    }
}
