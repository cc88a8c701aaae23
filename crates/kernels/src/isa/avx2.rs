//! AVX2 with FMA: int8 products as pairs of sixteen bits, which cannot saturate whatever the weights; eight
//! lanes for fp32.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm256_add_epi32, _mm256_cvtepi8_epi16, _mm256_fmadd_ps,
    _mm256_hadd_epi32, _mm256_loadu_ps, _mm256_madd_epi16, _mm256_permute4x64_epi64,
    _mm256_set1_epi64x, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_storeu_ps,
    _mm256_storeu_si256,
};

use super::{FloatTile, Isa, Tile, perform_with, with_tile_shape};
use crate::quantize::{COLUMNS, GROUP};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx2(());

/// Registers that are worked on at once: half a strip, two sums for each of four columns.
const REGISTERS: usize = 2;

impl Isa for Avx2 {
    const NAME: &'static str = "avx2";
    const OPTIMIZED: bool = true;
    /// With two registers at once, twelve sums.
    const ROWS: usize = 6;
    const STRIPS: usize = 1;
    /// Numbers are kept in sixteen bits.
    const WORDS: usize = 2;
    const FLOAT_ROWS: usize = FLOAT_ROWS;
    const FLOAT_STRIPS: usize = 1;
    const WIDE: bool = false;
    const FUSED: bool = true;

    fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }

    perform_with!("avx2,fma");

    #[inline(always)]
    fn pack(group: u32, words: &mut [u32]) {
        words[0] = group & 0xff | (group & 0xff00) << 8;
        words[1] = group >> 16 & 0xff | (group >> 24) << 16;
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
}

#[target_feature(enable = "avx2")]
fn multiply<const ROWS: usize>(tile: &Tile<'_>, sums: &mut [i32]) {
    const BLOCK: usize = Avx2::ROWS;
    const HALF: usize = COLUMNS / 2;
    let groups = tile.groups;
    assert!(ROWS <= BLOCK && tile.rows.len() >= groups * BLOCK * Avx2::WORDS);
    assert!(tile.strips.len() >= groups * COLUMNS * GROUP);
    for half in 0..2 {
        let mut block = [[_mm256_setzero_si256(); REGISTERS]; ROWS];
        let rows = tile.rows.as_ptr().cast::<i64>();
        // SAFETY: half a group lies within the first of them.
        let strip = unsafe { tile.strips.as_ptr().add(half * HALF * GROUP) };
        for group in 0..groups {
            // SAFETY: a group of the strip has two halves of `REGISTERS` times sixteen weights, and
            // the assertion holds `groups` of them; the loads need no alignment.
            let weights: [__m256i; REGISTERS] = std::array::from_fn(|register| unsafe {
                let weights = strip.add(group * COLUMNS * GROUP).cast::<__m128i>();
                _mm256_cvtepi8_epi16(_mm_loadu_si128(weights.add(register)))
            });
            for (row, sums) in block.iter_mut().enumerate() {
                // SAFETY: `group * BLOCK + row < groups * BLOCK`, and the assertion holds that many
                // pairs of words; the read needs no alignment.
                let numbers = unsafe { rows.add(group * BLOCK + row).read_unaligned() };
                let numbers = _mm256_set1_epi64x(numbers);
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(numbers, weights));
                }
            }
        }
        for (sums, [low, high]) in sums.chunks_exact_mut(COLUMNS).zip(block) {
            // Adds the two sums of each column; columns 0 1 4 5 2 3 6 7 come of it.
            let sum = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(low, high));
            let sums = &mut sums[half * HALF..(half + 1) * HALF];
            // SAFETY: the slice holds eight numbers of 32 bits; the store needs no alignment.
            unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), sum) };
        }
    }
}

/// With two registers a strip, twelve sums.
pub(super) const FLOAT_ROWS: usize = 6;
/// Numbers of a register.
const FLOATS: usize = COLUMNS / REGISTERS;

/// See [`Isa::multiply_floats`].
#[target_feature(enable = "avx2,fma")]
pub(super) fn multiply_floats(tile: &FloatTile<'_>, sums: &mut [f32]) {
    with_tile_shape!(ROWS = tile.count(), 1..=6; floats::<ROWS>(tile, sums));
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn floats<const ROWS: usize>(tile: &FloatTile<'_>, sums: &mut [f32]) {
    let inputs = tile.inputs;
    assert!(tile.rows.len() >= ROWS * inputs && tile.strips.len() >= inputs * COLUMNS);
    let mut block = [[_mm256_setzero_ps(); REGISTERS]; ROWS];
    let rows = tile.rows.as_ptr();
    let strip = tile.strips.as_ptr();
    for input in 0..inputs {
        // SAFETY: the assertion holds `inputs` times `REGISTERS` registers; the loads need no
        // alignment.
        let weights: [_; REGISTERS] = std::array::from_fn(|register| unsafe {
            _mm256_loadu_ps(strip.add(input * COLUMNS + register * FLOATS))
        });
        for (row, sums) in block.iter_mut().enumerate() {
            // SAFETY: `row * inputs + input < ROWS * inputs <= rows.len()` by the assertion.
            let number = _mm256_set1_ps(unsafe { *rows.add(row * inputs + input) });
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = _mm256_fmadd_ps(number, weights, *sum);
            }
        }
    }
    for (sums, block) in sums.chunks_exact_mut(COLUMNS).zip(block) {
        for (sums, sum) in sums.chunks_exact_mut(FLOATS).zip(block) {
            // SAFETY: the chunk holds eight numbers; the store needs no alignment.
            unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), sum) };
        }
    }
}
