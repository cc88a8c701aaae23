//! NEON with `USMMLA`: two rows by two columns, eight products for each, an instruction; fp32 as [`super::neon`].

use std::arch::aarch64::{int32x4_t, vdupq_n_s32, vget_high_s32, vget_low_s32, vst1_s32};
use std::arch::asm;

use super::neon::Neon;
use super::{FloatTile, Isa, STEP, Tile, perform_with};
use crate::quantize::{COLUMNS, GROUP};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NeonI8mm(Neon);

impl Isa for NeonI8mm {
    const NAME: &'static str = "neon-i8mm";
    const OPTIMIZED: bool = true;
    /// Three pairs; with eight pairs of columns, twenty-four registers of sums.
    const ROWS: usize = 6;
    const STRIPS: usize = 1;
    const WORDS: usize = 1;
    const ROW_SPAN: usize = 2;
    const FLOAT_ROWS: usize = Neon::FLOAT_ROWS;
    const FLOAT_STRIPS: usize = Neon::FLOAT_STRIPS;
    const WIDE: bool = Neon::WIDE;
    const FUSED: bool = Neon::FUSED;

    fn detect() -> Option<Self> {
        let neon = Neon::detect()?;
        std::arch::is_aarch64_feature_detected!("i8mm").then_some(Self(neon))
    }

    perform_with!("neon,i8mm");

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

/// Sums of two rows and two columns each, row by row: `[ROWS / 2, COLUMNS / 2]`.
type Block = [[int32x4_t; COLUMNS / 2]; NeonI8mm::ROWS / 2];

/// Multiplies all rows of a block, also those that are not wanted.
#[target_feature(enable = "neon,i8mm")]
fn multiply(tile: &Tile<'_>, sums: &mut [i32]) {
    /// Words of a block, and weights of a strip, in two spans.
    const ROWS: usize = 2 * NeonI8mm::ROW_SPAN * NeonI8mm::ROWS;
    const WEIGHTS: usize = 2 * NeonI8mm::ROW_SPAN * COLUMNS * GROUP;
    let groups = tile.groups;
    assert!(groups.is_multiple_of(NeonI8mm::ROW_SPAN));
    assert!(tile.rows.len() >= groups * NeonI8mm::ROWS);
    assert!(tile.strips.len() >= groups * COLUMNS * GROUP);
    let mut block: Block = [[vdupq_n_s32(0); COLUMNS / 2]; NeonI8mm::ROWS / 2];
    let rows = tile.rows.as_ptr();
    let strip = tile.strips.as_ptr();
    let pairs = groups / (2 * NeonI8mm::ROW_SPAN);
    let spans = |pair| {
        (
            rows.wrapping_add(pair * ROWS),
            strip.wrapping_add(pair * WEIGHTS),
        )
    };
    for pair in 0..pairs {
        let (rows, strip) = spans(pair);
        // SAFETY: the assertions hold `groups` groups of rows and columns, and so all pairs of spans.
        unsafe {
            add_span::<0>(&mut block, rows, strip);
            add_span::<1>(&mut block, rows, strip);
        }
    }
    if !groups.is_multiple_of(2 * NeonI8mm::ROW_SPAN) {
        let (rows, strip) = spans(pairs);
        // SAFETY: likewise, with one span more.
        unsafe { add_span::<0>(&mut block, rows, strip) };
    }
    let wanted = sums[..tile.count * COLUMNS].chunks_mut(2 * COLUMNS);
    for (sums, block) in wanted.zip(block) {
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

/// The products of two columns and the six rows, as text.
#[rustfmt::skip]
macro_rules! columns {
    ($pair:literal, $weights:literal) => {
        concat!(
            "ldr {", $weights, ":q}, [{strip}, #128 * {at} + 16 * ", $pair, "]\n",
            columns!(@ 0, $pair, $weights),
            columns!(@ 1, $pair, $weights),
            columns!(@ 2, $pair, $weights),
        )
    };
    (@ $rows:literal, $pair:literal, $weights:literal) => {
        concat!("usmmla {s", $rows, $pair, ":v}.4s, {n", $rows, ":v}.16b, {", $weights, ":v}.16b\n")
    };
}

/// Adds the products of the `AT`-th span of two groups.
///
/// As text: Rust has no stable intrinsic for `USMMLA`. Each register is loaded by itself, because two at once would
/// take an operation more.
///
/// # Safety
/// `rows` holds `ROWS` times `ROW_SPAN` groups behind `AT` times as many, and `strip` likewise for `COLUMNS`.
#[target_feature(enable = "neon,i8mm")]
#[inline]
#[rustfmt::skip]
unsafe fn add_span<const AT: usize>(block: &mut Block, rows: *const u32, strip: *const i8) {
    let [
        [s00, s01, s02, s03, s04, s05, s06, s07],
        [s10, s11, s12, s13, s14, s15, s16, s17],
        [s20, s21, s22, s23, s24, s25, s26, s27],
    ] = block;
    // SAFETY: it reads what the caller promises, and writes these registers only.
    unsafe {
        asm!(
            "ldr {n0:q}, [{rows}, #48 * {at}]",
            "ldr {n1:q}, [{rows}, #48 * {at} + 16]",
            "ldr {n2:q}, [{rows}, #48 * {at} + 32]",
            columns!(0, "even"),
            columns!(1, "odd"),
            columns!(2, "even"),
            columns!(3, "odd"),
            columns!(4, "even"),
            columns!(5, "odd"),
            columns!(6, "even"),
            columns!(7, "odd"),
            rows = in(reg) rows, strip = in(reg) strip, at = const AT,
            n0 = out(vreg) _, n1 = out(vreg) _, n2 = out(vreg) _, even = out(vreg) _, odd = out(vreg) _,
            s00 = inout(vreg) *s00, s01 = inout(vreg) *s01, s02 = inout(vreg) *s02, s03 = inout(vreg) *s03,
            s04 = inout(vreg) *s04, s05 = inout(vreg) *s05, s06 = inout(vreg) *s06, s07 = inout(vreg) *s07,
            s10 = inout(vreg) *s10, s11 = inout(vreg) *s11, s12 = inout(vreg) *s12, s13 = inout(vreg) *s13,
            s14 = inout(vreg) *s14, s15 = inout(vreg) *s15, s16 = inout(vreg) *s16, s17 = inout(vreg) *s17,
            s20 = inout(vreg) *s20, s21 = inout(vreg) *s21, s22 = inout(vreg) *s22, s23 = inout(vreg) *s23,
            s24 = inout(vreg) *s24, s25 = inout(vreg) *s25, s26 = inout(vreg) *s26, s27 = inout(vreg) *s27,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
}
