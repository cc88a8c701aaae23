//! AVX-512 with VNNI and BF16: two products of bf16 a lane and instruction; all else as [`super::avx512_vnni`].

use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps,
    _mm512_storeu_ps,
};
use std::mem::transmute;

use super::avx512_vnni::Avx512Vnni;
use super::{FloatTile, Isa, PairTile, Tile, perform_with, with_tile_shape};
use crate::elementary::Lanes;
use crate::quantize::COLUMNS;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx512Bf16(Avx512Vnni);

impl Isa for Avx512Bf16 {
    const NAME: &'static str = "avx512-bf16";
    const OPTIMIZED: bool = true;
    const ROWS: usize = Avx512Vnni::ROWS;
    const STRIPS: usize = Avx512Vnni::STRIPS;
    const WORDS: usize = Avx512Vnni::WORDS;
    const FLOAT_ROWS: usize = Avx512Vnni::FLOAT_ROWS;
    const FLOAT_STRIPS: usize = Avx512Vnni::FLOAT_STRIPS;
    const WIDE: bool = true;
    const FUSED: bool = true;
    const NATIVE_BF16: bool = true;

    fn detect() -> Option<Self> {
        let vnni = Avx512Vnni::detect()?;
        is_x86_feature_detected!("avx512bf16").then_some(Self(vnni))
    }

    perform_with!("avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16,avx2,fma");

    #[inline(always)]
    fn pack(group: u32, words: &mut [u32]) {
        Avx512Vnni::pack(group, words);
    }

    #[inline(always)]
    fn mix_quarters(self, registers: &mut [Lanes]) {
        self.0.mix_quarters(registers);
    }

    #[inline(always)]
    fn multiply(self, tile: &Tile<'_>, sums: &mut [i32]) {
        self.0.multiply(tile, sums);
    }

    #[inline(always)]
    fn multiply_floats(self, tile: &FloatTile<'_>, sums: &mut [f32]) {
        self.0.multiply_floats(tile, sums);
    }

    #[inline(always)]
    fn multiply_pairs(self, tile: &PairTile<'_>, sums: &mut [f32]) {
        // SAFETY: `self` proves that the processor has these features.
        unsafe { multiply_any(tile, sums) }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply_any(tile: &PairTile<'_>, sums: &mut [f32]) {
    with_tile_shape!(ROWS = tile.count, 1..=8; STRIPS = tile.strip_count(), 1..=3; multiply::<ROWS, STRIPS>(tile, sums));
}

#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn multiply<const ROWS: usize, const STRIPS: usize>(tile: &PairTile<'_>, sums: &mut [f32]) {
    let pairs = tile.pairs;
    assert!(tile.rows.len() >= ROWS * pairs);
    assert!(tile.strips.len() >= STRIPS * pairs * COLUMNS);
    let mut block = [[_mm512_setzero_ps(); STRIPS]; ROWS];
    let rows = tile.rows.as_ptr();
    let strips = tile.strips.as_ptr().cast::<__m512i>();
    for pair in 0..pairs {
        // SAFETY: a strip has `pairs` registers' worth, and the assertion holds `STRIPS` of them; the loads need
        // no alignment.
        let weights: [__m512i; STRIPS] = std::array::from_fn(|strip| unsafe {
            _mm512_loadu_si512(strips.add(strip * pairs + pair))
        });
        for (row, sums) in block.iter_mut().enumerate() {
            // SAFETY: `row * pairs + pair < ROWS * pairs <= rows.len()` by the assertion.
            let numbers = bf16(_mm512_set1_epi32(unsafe { *rows.add(row * pairs + pair) }));
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = _mm512_dpbf16_ps(*sum, numbers, bf16(weights));
            }
        }
    }
    for (sums, block) in sums.chunks_exact_mut(STRIPS * COLUMNS).zip(block) {
        for (sums, sum) in sums.chunks_exact_mut(COLUMNS).zip(block) {
            // SAFETY: the chunk holds sixteen numbers; the store needs no alignment.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), sum) };
        }
    }
}

/// The same register.
#[target_feature(enable = "avx512f")]
#[inline]
fn bf16(pairs: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes, and every pattern of bits is valid in both.
    unsafe { transmute(pairs) }
}
