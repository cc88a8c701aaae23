//! NEON, which every aarch64 has: four lanes for fp32. Whole numbers are multiplied eight at a time into sixteen
//! bits, where nothing saturates, and added in pairs: as fast as fp32, not faster.

use std::arch::aarch64::{
    float32x4_t, int8x16_t, vdupq_n_f32, vdupq_n_s32, vfmaq_laneq_f32, vfmaq_n_f32, vget_low_s8,
    vld1q_dup_s32, vld1q_f32, vld1q_s8, vmull_high_s8, vmull_s8, vpadalq_s16, vpaddq_s32,
    vreinterpretq_s8_s32, vst1q_f32, vst1q_s32,
};
use std::arch::asm;

use super::{FloatTile, Isa, STEP, Tile, perform_with, with_tile_shape};
use crate::quantize::{COLUMNS, GROUP};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Neon(());

/// Numbers of 32 bits in a register.
pub(super) const LANES: usize = 4;
/// Registers of a strip.
pub(super) const REGISTERS: usize = COLUMNS / LANES;
/// Takes 128 from each byte of a group, so that they are signed.
const SIGNED: u32 = 0x8080_8080;

/// Repeats an expression with each of some constants. The compiler unrolls a loop of so many sums only after it has
/// given up on keeping them in registers.
macro_rules! repeat {
    ($index:ident in [$($value:literal)+]; $body:expr) => {
        { $({ const $index: usize = $value; $body })+ }
    };
}

impl Isa for Neon {
    const NAME: &'static str = "neon";
    const OPTIMIZED: bool = true;
    const FAST_INT8: bool = false;
    /// With half a strip at once, in two sums for each column, twenty-four registers.
    const ROWS: usize = 6;
    const STRIPS: usize = 1;
    const WORDS: usize = 1;
    const OFFSET: i32 = 128;
    const FLOAT_ROWS: usize = FLOAT_ROWS;
    const FLOAT_STRIPS: usize = 1;
    const WIDE: bool = false;
    const FUSED: bool = true;

    fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    perform_with!("neon");

    #[inline(always)]
    fn pack(group: u32, words: &mut [u32]) {
        words[0] = group ^ SIGNED;
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
        unsafe { multiply_floats(tile, sums) }
    }

    #[inline(always)]
    fn add_products<const N: usize>(
        panel: &[[f32; STEP]],
        lanes: &[[f32; N]],
        sums: &mut [[f32; N]; STEP],
    ) {
        // SAFETY: kernels are compiled for this set only to run where it was detected.
        unsafe { add_products(panel, lanes, sums) }
    }
}

#[target_feature(enable = "neon")]
fn multiply<const ROWS: usize>(tile: &Tile<'_>, sums: &mut [i32]) {
    const BLOCK: usize = Neon::ROWS;
    const HALF: usize = COLUMNS / 2;
    /// Registers of weights of half a strip.
    const WEIGHTS: usize = HALF * GROUP / 16;
    let groups = tile.groups;
    assert!(ROWS <= BLOCK && tile.rows.len() >= groups * BLOCK);
    assert!(tile.strips.len() >= groups * COLUMNS * GROUP);
    for half in 0..2 {
        // Two sums for each column, side by side.
        let mut block = [[[vdupq_n_s32(0); 2]; WEIGHTS]; ROWS];
        let rows = tile.rows.as_ptr().cast::<i32>();
        // SAFETY: half a group lies within the first of them.
        let strip = unsafe { tile.strips.as_ptr().add(half * HALF * GROUP) };
        for group in 0..groups {
            // SAFETY: a group of the strip has two halves of `WEIGHTS` registers, and the assertion holds `groups`
            // of them.
            let weights: [int8x16_t; WEIGHTS] = std::array::from_fn(|register| unsafe {
                vld1q_s8(strip.add(group * COLUMNS * GROUP + register * 16))
            });
            repeat!(ROW in [0 1 2 3 4 5]; if ROW < ROWS {
                // SAFETY: `group * BLOCK + ROW < groups * BLOCK <= rows.len()` by the assertion.
                let numbers = unsafe { vld1q_dup_s32(rows.add(group * BLOCK + ROW)) };
                let numbers = vreinterpretq_s8_s32(numbers);
                repeat!(REGISTER in [0 1]; {
                    let [low, high] = &mut block[ROW][REGISTER];
                    let weights = weights[REGISTER];
                    let products = vmull_s8(vget_low_s8(numbers), vget_low_s8(weights));
                    *low = vpadalq_s16(*low, products);
                    *high = vpadalq_s16(*high, vmull_high_s8(numbers, weights));
                });
            });
        }
        for (sums, block) in sums.chunks_exact_mut(COLUMNS).zip(block) {
            let sums = sums[half * HALF..(half + 1) * HALF].chunks_exact_mut(LANES);
            for (sums, [low, high]) in sums.zip(block) {
                // SAFETY: the chunk holds four numbers of 32 bits.
                unsafe { vst1q_s32(sums.as_mut_ptr(), vpaddq_s32(low, high)) };
            }
        }
    }
}

/// With four registers a strip, twenty-four sums; one register for each row, and two for weights.
const FLOAT_ROWS: usize = 6;

/// See [`Isa::multiply_floats`].
#[target_feature(enable = "neon")]
fn multiply_floats(tile: &FloatTile<'_>, sums: &mut [f32]) {
    with_tile_shape!(ROWS = tile.count(), 1..=6; floats::<ROWS>(tile, sums));
}

#[target_feature(enable = "neon")]
#[inline]
fn floats<const ROWS: usize>(tile: &FloatTile<'_>, sums: &mut [f32]) {
    let inputs = tile.inputs;
    assert!(tile.rows.len() >= ROWS * inputs && tile.strips.len() >= inputs * COLUMNS);
    let mut block = [[vdupq_n_f32(0.0); REGISTERS]; ROWS];
    let rows = tile.rows.as_ptr();
    let strip = tile.strips.as_ptr();
    let whole = inputs / LANES * LANES;
    for input in (0..whole).step_by(LANES) {
        let mut numbers = [vdupq_n_f32(0.0); ROWS];
        repeat!(ROW in [0 1 2 3 4 5]; if ROW < ROWS {
            // SAFETY: `ROW * inputs + input + LANES <= ROWS * inputs <= rows.len()` by the assertion.
            numbers[ROW] = unsafe { vld1q_f32(rows.add(ROW * inputs + input)) };
        });
        repeat!(LANE in [0 1 2 3]; repeat!(REGISTER in [0 1 2 3]; {
            let at = (input + LANE) * COLUMNS + REGISTER * LANES;
            // SAFETY: `LANES` inputs of the strip begin at `input`, by the assertion.
            let weights = unsafe { vld1q_f32(strip.add(at)) };
            repeat!(ROW in [0 1 2 3 4 5]; if ROW < ROWS {
                let sum = &mut block[ROW][REGISTER];
                *sum = vfmaq_laneq_f32::<{ LANE as i32 }>(*sum, weights, numbers[ROW]);
            });
        }));
    }
    for input in whole..inputs {
        for register in 0..REGISTERS {
            // SAFETY: the assertion holds `inputs` times `REGISTERS` registers, and every row's number.
            unsafe {
                let weights = vld1q_f32(strip.add(input * COLUMNS + register * LANES));
                for (row, sums) in block.iter_mut().enumerate() {
                    let number = *rows.add(row * inputs + input);
                    sums[register] = vfmaq_n_f32(sums[register], weights, number);
                }
            }
        }
    }
    for (sums, block) in sums.chunks_exact_mut(COLUMNS).zip(block) {
        for (sums, sum) in sums.chunks_exact_mut(LANES).zip(block) {
            // SAFETY: the chunk holds four numbers.
            unsafe { vst1q_f32(sums.as_mut_ptr(), sum) };
        }
    }
}

/// See [`Isa::add_products`].
#[target_feature(enable = "neon")]
#[inline]
fn add_products<const N: usize>(
    panel: &[[f32; STEP]],
    lanes: &[[f32; N]],
    sums: &mut [[f32; N]; STEP],
) {
    const { assert!(N.is_multiple_of(LANES) && N <= 2 * COLUMNS && STEP == LANES) };
    // Sixteen lanes at a time, in as many registers of sums.
    repeat!(FIRST in [0 16]; if FIRST < N {
        let mut block = [[vdupq_n_f32(0.0); REGISTERS]; STEP];
        repeat!(ROW in [0 1 2 3]; repeat!(REGISTER in [0 1 2 3]; if FIRST + REGISTER * LANES < N {
            // SAFETY: a row has `N` lanes, a multiple of `LANES`.
            block[ROW][REGISTER] = unsafe { vld1q_f32(sums[ROW].as_ptr().add(FIRST + REGISTER * LANES)) };
        }));
        for (numbers, lanes) in panel.iter().zip(lanes) {
            // SAFETY: there are `STEP` of them.
            let numbers = unsafe { load_alone::<0>(numbers.as_ptr()) };
            repeat!(REGISTER in [0 1 2 3]; if FIRST + REGISTER * LANES < N {
                // SAFETY: as above.
                let lanes = unsafe { load_alone::<{ 4 * (FIRST + REGISTER * LANES) }>(lanes.as_ptr()) };
                repeat!(ROW in [0 1 2 3]; {
                    let sum = &mut block[ROW][REGISTER];
                    *sum = vfmaq_laneq_f32::<{ ROW as i32 }>(*sum, lanes, numbers);
                });
            });
        }
        repeat!(ROW in [0 1 2 3]; repeat!(REGISTER in [0 1 2 3]; if FIRST + REGISTER * LANES < N {
            // SAFETY: as above.
            unsafe { vst1q_f32(sums[ROW].as_mut_ptr().add(FIRST + REGISTER * LANES), block[ROW][REGISTER]) };
        }));
    });
}

/// Loads a register so many bytes behind a place. In inline assembly, because the compiler would join loads in pairs,
/// or with the step to the next place, which takes more operations on Neoverse V2.
///
/// # Safety
/// Four numbers lie there.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn load_alone<const OFFSET: usize>(place: *const f32) -> float32x4_t {
    let register;
    // SAFETY: it reads what the caller promises.
    unsafe {
        asm!(
            "ldr {register:q}, [{place}, #{offset}]",
            register = out(vreg) register, place = in(reg) place, offset = const OFFSET,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    register
}
