//! AVX-VNNI: four products a lane and instruction, eight lanes, sixteen registers.

use std::arch::x86_64::{
    __m256i, _mm256_dpbusd_avx_epi32, _mm256_loadu_si256, _mm256_set1_epi32, _mm256_setzero_si256,
    _mm256_storeu_si256,
};

use super::{FloatTile, Isa, Tile, avx2, perform_with, with_tile_shape};
use crate::quantize::{COLUMNS, GROUP};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AvxVnni(());

/// Registers of a strip.
const REGISTERS: usize = 2;

impl Isa for AvxVnni {
    const NAME: &'static str = "avx-vnni";
    const OPTIMIZED: bool = true;
    /// With two registers a strip, twelve sums.
    const ROWS: usize = 6;
    const STRIPS: usize = 1;
    const WORDS: usize = 1;
    const FLOAT_ROWS: usize = avx2::FLOAT_ROWS;
    const FLOAT_STRIPS: usize = 1;
    const WIDE: bool = false;
    const FUSED: bool = true;

    fn detect() -> Option<Self> {
        avx2::Avx2::detect()?;
        is_x86_feature_detected!("avxvnni").then_some(Self(()))
    }

    perform_with!("avx2,fma,avxvnni");

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
        unsafe { avx2::multiply_floats(tile, sums) }
    }
}

#[target_feature(enable = "avx2,avxvnni")]
fn multiply<const ROWS: usize>(tile: &Tile<'_>, sums: &mut [i32]) {
    const BLOCK: usize = AvxVnni::ROWS;
    let groups = tile.groups;
    assert!(ROWS <= BLOCK && tile.rows.len() >= groups * BLOCK);
    assert!(tile.strips.len() >= groups * COLUMNS * GROUP);
    let mut block = [[_mm256_setzero_si256(); REGISTERS]; ROWS];
    let rows = tile.rows.as_ptr();
    let strip = tile.strips.as_ptr().cast::<__m256i>();
    for group in 0..groups {
        // SAFETY: the assertion holds `groups` times `REGISTERS` registers; the loads need no
        // alignment.
        let weights: [__m256i; REGISTERS] = std::array::from_fn(|register| unsafe {
            _mm256_loadu_si256(strip.add(group * REGISTERS + register))
        });
        for (row, sums) in block.iter_mut().enumerate() {
            // SAFETY: `group * BLOCK + row < groups * BLOCK <= rows.len()` by the assertion.
            let numbers = _mm256_set1_epi32(unsafe { *rows.add(group * BLOCK + row) } as i32);
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = _mm256_dpbusd_avx_epi32(*sum, numbers, weights);
            }
        }
    }
    for (sums, block) in sums.chunks_exact_mut(COLUMNS).zip(block) {
        for (sums, sum) in sums.chunks_exact_mut(COLUMNS / REGISTERS).zip(block) {
            // SAFETY: the chunk holds eight numbers of 32 bits; the store needs no alignment.
            unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), sum) };
        }
    }
}
