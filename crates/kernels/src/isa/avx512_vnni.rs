//! AVX-512 with VNNI: four products a lane and instruction, sixteen lanes, thirty-two registers.

use std::arch::x86_64::{
    __m512i, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_si512,
    _mm512_storeu_si512,
};

use super::{FloatTile, Isa, Step, Tile, avx512, with_constant};
use crate::quantize::{COLUMNS, GROUP};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512Vnni(());

impl Isa for Avx512Vnni {
    /// With three strips, twenty-four sums: more than enough for two multipliers of latency five.
    const ROWS: usize = 8;
    const STRIPS: usize = 3;
    const WORDS: usize = 1;
    const FLOAT_ROWS: usize = avx512::FLOAT_ROWS;
    const FLOAT_STRIPS: usize = avx512::FLOAT_STRIPS;
    const WIDE: bool = true;
    const FUSED: bool = true;

    #[inline(always)]
    fn pack(group: u32, words: &mut [u32]) {
        words[0] = group;
    }

    #[inline(always)]
    fn multiply(self, tile: &Tile<'_>, sums: &mut [i32]) {
        // SAFETY: only `perform` makes one, and its caller promises what is needed.
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
    with_constant!(ROWS in [1 2 3 4 5 6 7 8], tile.count, {
        with_constant!(STRIPS in [1 2 3], tile.strip_count(), multiply::<ROWS, STRIPS>(tile, sums))
    });
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

/// Runs `step`.
///
/// # Safety
/// The processor has AVX-512 F, BW, VL and VNNI, AVX2 and FMA.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(super) unsafe fn perform<S: Step>(step: S) {
    step.run(Avx512Vnni(()))
}
