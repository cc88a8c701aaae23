//! NEON with `SDOT`: four products a lane and instruction; fp32 as [`super::neon`].

use std::arch::aarch64::{
    int8x16_t, int32x4_t, vcombine_s32, vdup_n_s32, vdupq_n_s32, vld1_s32, vld1q_s8, vld1q_s32,
    vst1q_s32,
};
use std::arch::asm;

use super::neon::{self, LANES, Neon, REGISTERS};
use super::{FloatTile, Isa, Step, Tile, with_tile_shape};
use crate::quantize::{COLUMNS, GROUP};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NeonDotprod(());

impl Isa for NeonDotprod {
    const NAME: &'static str = "neon-dotprod";
    const OPTIMIZED: bool = true;
    /// With four registers a strip, twenty-four sums, four registers of weights, and two of numbers.
    const ROWS: usize = 6;
    const STRIPS: usize = 1;
    const WORDS: usize = 1;
    const OFFSET: i32 = Neon::OFFSET;
    const FLOAT_ROWS: usize = Neon::FLOAT_ROWS;
    const FLOAT_STRIPS: usize = Neon::FLOAT_STRIPS;
    const WIDE: bool = Neon::WIDE;
    const FUSED: bool = Neon::FUSED;

    fn detect() -> Option<Self> {
        Neon::detect()?;
        std::arch::is_aarch64_feature_detected!("dotprod").then_some(Self(()))
    }

    fn perform<S: Step>(self, step: S) {
        #[target_feature(enable = "neon,dotprod")]
        fn run<S: Step>(isa: NeonDotprod, step: S) {
            step.run(isa)
        }
        // SAFETY: `self` proves that the processor has these features.
        unsafe { run(self, step) }
    }

    #[inline(always)]
    fn pack(group: u32, words: &mut [u32]) {
        Neon::pack(group, words);
    }

    #[inline(always)]
    fn multiply(self, tile: &Tile<'_>, sums: &mut [i32]) {
        // SAFETY: `self` proves that the processor has these features.
        unsafe {
            with_tile_shape!(ROWS = tile.count, 1..=6; multiply::<ROWS>(tile, sums));
        }
    }

    #[inline(always)]
    fn multiply_floats(self, tile: &FloatTile<'_>, sums: &mut [f32]) {
        // SAFETY: likewise.
        unsafe { neon::multiply_floats(tile, sums) }
    }
}

#[target_feature(enable = "neon,dotprod")]
fn multiply<const ROWS: usize>(tile: &Tile<'_>, sums: &mut [i32]) {
    const BLOCK: usize = NeonDotprod::ROWS;
    let groups = tile.groups;
    assert!(ROWS <= BLOCK && tile.rows.len() >= groups * BLOCK);
    assert!(tile.strips.len() >= groups * COLUMNS * GROUP);
    let mut block = [[vdupq_n_s32(0); REGISTERS]; ROWS];
    let rows = tile.rows.as_ptr().cast::<i32>();
    let strip = tile.strips.as_ptr();
    for group in 0..groups {
        // SAFETY: the assertion holds `groups` times `BLOCK` numbers and `REGISTERS` registers of weights.
        let (low, high, weights): (_, _, [int8x16_t; REGISTERS]) = unsafe {
            let rows = rows.add(group * BLOCK);
            let strip = strip.add(group * COLUMNS * GROUP);
            (
                vld1q_s32(rows),
                vcombine_s32(vld1_s32(rows.add(LANES)), vdup_n_s32(0)),
                std::array::from_fn(|register| vld1q_s8(strip.add(register * 16))),
            )
        };
        for (row, sums) in block.iter_mut().enumerate() {
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = match row {
                    0 => dot::<0>(*sum, weights, low),
                    1 => dot::<1>(*sum, weights, low),
                    2 => dot::<2>(*sum, weights, low),
                    3 => dot::<3>(*sum, weights, low),
                    4 => dot::<0>(*sum, weights, high),
                    _ => dot::<1>(*sum, weights, high),
                };
            }
        }
    }
    for (sums, block) in sums.chunks_exact_mut(COLUMNS).zip(block) {
        for (sums, sum) in sums.chunks_exact_mut(LANES).zip(block) {
            // SAFETY: the chunk holds four numbers of 32 bits.
            unsafe { vst1q_s32(sums.as_mut_ptr(), sum) };
        }
    }
}

/// Adds the products of four weights a lane and the four numbers in lane `LANE` of `numbers`.
///
/// The instruction as text: the oldest Rust that builds this has no stable intrinsic for it.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn dot<const LANE: i32>(sum: int32x4_t, weights: int8x16_t, numbers: int32x4_t) -> int32x4_t {
    let mut sum = sum;
    // SAFETY: it reads and writes these registers only.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {weights:v}.16b, {numbers:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            weights = in(vreg) weights,
            numbers = in(vreg) numbers,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
