//! NEON with `USMMLA`: two rows by two columns, eight products for each, an instruction; fp32 as [`super::neon`].

use std::arch::aarch64::{
    int8x16_t, int32x4_t, uint8x16_t, vdupq_n_s32, vget_high_s32, vget_low_s32, vld1q_s8, vld1q_u8,
    vst1_s32,
};
use std::arch::asm;

use super::neon::{self, Neon};
use super::{FloatTile, Isa, Step, Tile, with_tile_shape};
use crate::quantize::{COLUMNS, GROUP};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NeonI8mm(());

/// Bytes of a register, which are two rows or two columns.
const BYTES: usize = 16;
/// Registers of two columns each in a strip.
const PAIRS: usize = COLUMNS / 2;

impl Isa for NeonI8mm {
    const NAME: &'static str = "neon-i8mm";
    const OPTIMIZED: bool = true;
    /// Three pairs; with eight pairs of columns, twenty-four registers of sums.
    const ROWS: usize = 6;
    const STRIPS: usize = 1;
    const WORDS: usize = 1;
    const SPAN: usize = 2;
    const FLOAT_ROWS: usize = Neon::FLOAT_ROWS;
    const FLOAT_STRIPS: usize = Neon::FLOAT_STRIPS;
    const WIDE: bool = Neon::WIDE;
    const FUSED: bool = Neon::FUSED;

    fn detect() -> Option<Self> {
        Neon::detect()?;
        std::arch::is_aarch64_feature_detected!("i8mm").then_some(Self(()))
    }

    fn perform<S: Step>(self, step: S) {
        #[target_feature(enable = "neon,i8mm")]
        fn run<S: Step>(isa: NeonI8mm, step: S) {
            step.run(isa)
        }
        // SAFETY: `self` proves that the processor has these features.
        unsafe { run(self, step) }
    }

    #[inline(always)]
    fn pack(group: u32, words: &mut [u32]) {
        words[0] = group;
    }

    #[inline(always)]
    fn multiply(self, tile: &Tile<'_>, sums: &mut [i32]) {
        // SAFETY: `self` proves that the processor has these features. A last row alone is multiplied beside what
        // its block has in the place of the next.
        unsafe {
            with_tile_shape!(HALVED = tile.count.div_ceil(2), 1..=3; multiply::<HALVED>(tile, sums));
        }
    }

    #[inline(always)]
    fn multiply_floats(self, tile: &FloatTile<'_>, sums: &mut [f32]) {
        // SAFETY: likewise.
        unsafe { neon::multiply_floats(tile, sums) }
    }
}

/// `HALVED` pairs of rows.
#[target_feature(enable = "neon,i8mm")]
fn multiply<const HALVED: usize>(tile: &Tile<'_>, sums: &mut [i32]) {
    const BLOCK: usize = NeonI8mm::ROWS;
    const SPAN: usize = NeonI8mm::SPAN;
    let groups = tile.groups;
    assert!(groups.is_multiple_of(SPAN));
    assert!(2 * HALVED <= BLOCK && tile.rows.len() >= groups * BLOCK);
    assert!(tile.strips.len() >= groups * COLUMNS * GROUP);
    let mut block = [[vdupq_n_s32(0); PAIRS]; HALVED];
    let rows = tile.rows.as_ptr().cast::<u8>();
    let strip = tile.strips.as_ptr();
    for group in (0..groups).step_by(SPAN) {
        // SAFETY: the assertions hold `groups` times `BLOCK` groups of numbers, of which two rows with `SPAN` groups
        // each are a register.
        let numbers: [uint8x16_t; HALVED] = std::array::from_fn(|pair| unsafe {
            vld1q_u8(rows.add(group * BLOCK * GROUP + pair * BYTES))
        });
        for pair in 0..PAIRS {
            // SAFETY: likewise, of two columns with `SPAN` groups each.
            let weights = unsafe { vld1q_s8(strip.add(group * COLUMNS * GROUP + pair * BYTES)) };
            for (sums, &numbers) in block.iter_mut().zip(&numbers) {
                sums[pair] = multiply_pairs(sums[pair], numbers, weights);
            }
        }
    }
    for (sums, block) in sums[..tile.count * COLUMNS].chunks_mut(2 * COLUMNS).zip(block) {
        let (first, second) = sums.split_at_mut(COLUMNS);
        for (sums, sum) in first.chunks_exact_mut(2).zip(block) {
            // SAFETY: the chunk holds two numbers of 32 bits.
            unsafe { vst1_s32(sums.as_mut_ptr(), vget_low_s32(sum)) };
        }
        for (sums, sum) in second.chunks_exact_mut(2).zip(block) {
            // SAFETY: likewise.
            unsafe { vst1_s32(sums.as_mut_ptr(), vget_high_s32(sum)) };
        }
    }
}

/// Adds to `[2, 2]` sums the products of two rows and two columns of eight numbers each.
///
/// The instruction as text: Rust has no stable intrinsic for it.
#[target_feature(enable = "neon,i8mm")]
#[inline]
fn multiply_pairs(sums: int32x4_t, rows: uint8x16_t, columns: int8x16_t) -> int32x4_t {
    let mut sums = sums;
    // SAFETY: it reads and writes these registers only.
    unsafe {
        asm!(
            "usmmla {sums:v}.4s, {rows:v}.16b, {columns:v}.16b",
            sums = inout(vreg) sums,
            rows = in(vreg) rows,
            columns = in(vreg) columns,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}
