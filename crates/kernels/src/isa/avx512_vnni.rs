//! AVX-512 with VNNI: four products a lane and instruction, sixteen lanes, thirty-two registers.

use std::arch::x86_64::{
    __m512i, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_si512,
    _mm512_storeu_si512,
};

use super::{FloatTile, Isa, Tile, avx512, perform_with, with_tile_shape};
use crate::elementary::Lanes;
use crate::quantize::{COLUMNS, GROUP};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx512Vnni(());

impl Isa for Avx512Vnni {
    const NAME: &'static str = "avx512-vnni";
    const OPTIMIZED: bool = true;
    /// With three strips, twenty-four sums: more than enough for two multipliers of latency five.
    const ROWS: usize = 8;
    const STRIPS: usize = 3;
    const WORDS: usize = 1;
    const FLOAT_ROWS: usize = avx512::FLOAT_ROWS;
    const FLOAT_STRIPS: usize = avx512::FLOAT_STRIPS;
    const WIDE: bool = true;
    const FUSED: bool = true;

    fn detect() -> Option<Self> {
        avx512::Avx512::detect()?;
        is_x86_feature_detected!("avx512vnni").then_some(Self(()))
    }

    perform_with!("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma");

    #[inline(always)]
    fn mix_quarters(self, registers: &mut [Lanes]) {
        // SAFETY: `self` proves that the processor has these features.
        unsafe { avx512::mix_quarters(registers) }
    }

    #[inline(always)]
    fn multiply(self, tile: &Tile<'_>, sums: &mut [i32]) {
        // SAFETY: `self` proves that the processor has these features.
        unsafe { multiply_any(tile, sums) }
    }

    #[inline(always)]
    fn multiply_floats(self, tile: &FloatTile<'_>, sums: &mut [f32]) {
        // SAFETY: likewise.
        unsafe { avx512::multiply_floats(tile, sums) }
    }
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn multiply_any(tile: &Tile<'_>, sums: &mut [i32]) {
    with_tile_shape!(ROWS = tile.count, 1..=8; STRIPS = tile.strip_count(), 1..=3; multiply::<ROWS, STRIPS>(tile, sums));
}

#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
fn multiply<const ROWS: usize, const STRIPS: usize>(tile: &Tile<'_>, sums: &mut [i32]) {
    const BLOCK: usize = Avx512Vnni::ROWS;
    let groups = tile.groups;
    assert!(ROWS <= BLOCK && tile.rows.len() >= groups * BLOCK);
    assert!(tile.strips.len() >= STRIPS * groups * COLUMNS * GROUP);
    let mut block = [[_mm512_setzero_si512(); STRIPS]; ROWS];
    let rows = tile.rows.as_ptr();
    let strips = tile.strips.as_ptr().cast::<__m512i>();
    for group in 0..groups {
        // SAFETY: a strip has `groups` registers' worth, and the assertion holds `STRIPS` of them;
        // the loads need no alignment.
        let weights: [__m512i; STRIPS] = std::array::from_fn(|strip| unsafe {
            _mm512_loadu_si512(strips.add(strip * groups + group))
        });
        for (row, sums) in block.iter_mut().enumerate() {
            // SAFETY: `group * BLOCK + row < groups * BLOCK <= rows.len()` by the assertion.
            let numbers = _mm512_set1_epi32(unsafe { *rows.add(group * BLOCK + row) } as i32);
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = _mm512_dpbusd_epi32(*sum, numbers, weights);
            }
        }
    }
    for (sums, block) in sums.chunks_exact_mut(STRIPS * COLUMNS).zip(block) {
        for (sums, sum) in sums.chunks_exact_mut(COLUMNS).zip(block) {
            // SAFETY: the chunk holds sixteen numbers of 32 bits; the store needs no alignment.
            unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), sum) };
        }
    }
}
