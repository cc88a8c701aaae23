//! NEON with `SDOT`: four products a lane and instruction; fp32 as [`super::neon`].

use std::arch::aarch64::{int32x4_t, vdupq_n_s32, vst1q_s32};
use std::arch::asm;

use super::neon::{LANES, Neon, REGISTERS};
use super::{FloatTile, Isa, STEP, Tile, perform_with};
use crate::quantize::{COLUMNS, GROUP};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NeonDotprod(Neon);

impl Isa for NeonDotprod {
    const NAME: &'static str = "neon-dotprod";
    const OPTIMIZED: bool = true;
    /// With four registers a strip, twenty-four sums; two registers of weights and two of numbers.
    const ROWS: usize = 6;
    const STRIPS: usize = 1;
    const WORDS: usize = 1;
    const OFFSET: i32 = Neon::OFFSET;
    const FLOAT_ROWS: usize = Neon::FLOAT_ROWS;
    const FLOAT_STRIPS: usize = Neon::FLOAT_STRIPS;
    const WIDE: bool = Neon::WIDE;
    const FUSED: bool = Neon::FUSED;

    fn detect() -> Option<Self> {
        let neon = Neon::detect()?;
        std::arch::is_aarch64_feature_detected!("dotprod").then_some(Self(neon))
    }

    perform_with!("neon,dotprod");

    #[inline(always)]
    fn pack(group: u32, words: &mut [u32]) {
        Neon::pack(group, words);
    }

    #[inline(always)]
    fn multiply(self, tile: &Tile<'_>, sums: &mut [i32]) {
        // SAFETY: `self` proves that the processor has these features.
        unsafe { multiply(tile, sums) }
    }

    #[inline(always)]
    fn multiply_floats(self, tile: &FloatTile<'_>, sums: &mut [f32]) {
        self.0.multiply_floats(tile, sums);
    }

    #[inline(always)]
    fn add_products<const N: usize>(
        panel: &[[f32; STEP]],
        lanes: &[[f32; N]],
        sums: &mut [[f32; N]; STEP],
    ) {
        Neon::add_products(panel, lanes, sums);
    }
}

/// Sums of a block: `[ROWS, REGISTERS]`.
type Block = [[int32x4_t; REGISTERS]; NeonDotprod::ROWS];

/// Multiplies all rows of a block, also those that are not wanted.
#[target_feature(enable = "neon,dotprod")]
fn multiply(tile: &Tile<'_>, sums: &mut [i32]) {
    let groups = tile.groups;
    assert!(tile.rows.len() >= groups * NeonDotprod::ROWS);
    assert!(tile.strips.len() >= groups * COLUMNS * GROUP);
    let mut block: Block = [[vdupq_n_s32(0); REGISTERS]; NeonDotprod::ROWS];
    let rows = tile.rows.as_ptr();
    let strip = tile.strips.as_ptr();
    for group in 0..groups {
        // SAFETY: the assertions hold `groups` groups of rows and columns.
        unsafe {
            let rows = rows.add(group * NeonDotprod::ROWS);
            add_group(&mut block, rows, strip.add(group * COLUMNS * GROUP));
        }
    }
    let wanted = sums.chunks_exact_mut(COLUMNS).take(tile.count);
    for (sums, block) in wanted.zip(block) {
        for (sums, sum) in sums.chunks_exact_mut(LANES).zip(block) {
            // SAFETY: the chunk holds four numbers of 32 bits.
            unsafe { vst1q_s32(sums.as_mut_ptr(), sum) };
        }
    }
}

/// The products of a register of weights and the six rows, as text.
#[rustfmt::skip]
macro_rules! register {
    ($register:literal, $weights:literal) => {
        concat!(
            "ldr {", $weights, ":q}, [{strip}, #16 * ", $register, "]\n",
            register!(@ 0, $register, $weights, "{low:v}.4b[0]"),
            register!(@ 1, $register, $weights, "{low:v}.4b[1]"),
            register!(@ 2, $register, $weights, "{low:v}.4b[2]"),
            register!(@ 3, $register, $weights, "{low:v}.4b[3]"),
            register!(@ 4, $register, $weights, "{high:v}.4b[0]"),
            register!(@ 5, $register, $weights, "{high:v}.4b[1]"),
        )
    };
    (@ $row:literal, $register:literal, $weights:literal, $numbers:literal) => {
        concat!("sdot {s", $row, $register, ":v}.4s, {", $weights, ":v}.16b, ", $numbers, "\n")
    };
}

/// Adds the products of one group.
///
/// As text: Rust has a stable intrinsic for `SDOT` since 1.98 only. Each register is loaded by itself, because two
/// at once would take an operation more.
///
/// # Safety
/// `rows` holds `ROWS` groups, and `strip` `COLUMNS`.
#[target_feature(enable = "neon,dotprod")]
#[inline]
#[rustfmt::skip]
unsafe fn add_group(block: &mut Block, rows: *const u32, strip: *const i8) {
    let [
        [s00, s01, s02, s03],
        [s10, s11, s12, s13],
        [s20, s21, s22, s23],
        [s30, s31, s32, s33],
        [s40, s41, s42, s43],
        [s50, s51, s52, s53],
    ] = block;
    // SAFETY: it reads what the caller promises, and writes these registers only.
    unsafe {
        asm!(
            "ldr {low:q}, [{rows}]",
            "ldr {high:d}, [{rows}, #16]",
            register!(0, "even"),
            register!(1, "odd"),
            register!(2, "even"),
            register!(3, "odd"),
            rows = in(reg) rows, strip = in(reg) strip,
            low = out(vreg) _, high = out(vreg) _, even = out(vreg) _, odd = out(vreg) _,
            s00 = inout(vreg) *s00, s01 = inout(vreg) *s01, s02 = inout(vreg) *s02, s03 = inout(vreg) *s03,
            s10 = inout(vreg) *s10, s11 = inout(vreg) *s11, s12 = inout(vreg) *s12, s13 = inout(vreg) *s13,
            s20 = inout(vreg) *s20, s21 = inout(vreg) *s21, s22 = inout(vreg) *s22, s23 = inout(vreg) *s23,
            s30 = inout(vreg) *s30, s31 = inout(vreg) *s31, s32 = inout(vreg) *s32, s33 = inout(vreg) *s33,
            s40 = inout(vreg) *s40, s41 = inout(vreg) *s41, s42 = inout(vreg) *s42, s43 = inout(vreg) *s43,
            s50 = inout(vreg) *s50, s51 = inout(vreg) *s51, s52 = inout(vreg) *s52, s53 = inout(vreg) *s53,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
}
