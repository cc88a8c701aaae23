//! AVX-512 without VNNI: sixteen lanes for fp32; whole numbers as [`super::avx2`] multiplies them.

use std::arch::x86_64::{
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_sub_ps, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_shuffle_f32x4, _mm512_storeu_ps,
};

use super::avx2::Avx2;
use super::{FloatTile, Isa, Tile, perform_with, with_tile_shape};
use crate::elementary::Lanes;
use crate::quantize::COLUMNS;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx512(Avx2);

impl Isa for Avx512 {
    const NAME: &'static str = "avx512";
    const OPTIMIZED: bool = true;
    const ROWS: usize = Avx2::ROWS;
    const STRIPS: usize = Avx2::STRIPS;
    const WORDS: usize = Avx2::WORDS;
    const FLOAT_ROWS: usize = FLOAT_ROWS;
    const FLOAT_STRIPS: usize = FLOAT_STRIPS;
    const WIDE: bool = true;
    const FUSED: bool = true;

    fn detect() -> Option<Self> {
        let avx2 = Avx2::detect()?;
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl"))
        .then_some(Self(avx2))
    }

    perform_with!("avx512f,avx512bw,avx512vl,avx2,fma");

    #[inline(always)]
    fn pack(group: u32, words: &mut [u32]) {
        Avx2::pack(group, words);
    }

    #[inline(always)]
    fn mix_quarters(self, registers: &mut [Lanes]) {
        // SAFETY: `self` proves that the processor has these features.
        unsafe { mix_quarters(registers) }
    }

    #[inline(always)]
    fn multiply(self, tile: &Tile<'_>, sums: &mut [i32]) {
        self.0.multiply(tile, sums);
    }

    #[inline(always)]
    fn multiply_floats(self, tile: &FloatTile<'_>, sums: &mut [f32]) {
        // SAFETY: `self` proves that the processor has these features.
        unsafe { multiply_floats(tile, sums) }
    }
}

/// See [`Isa::mix_quarters`]. A multiplication by one or minus one loses nothing.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn mix_quarters(registers: &mut [Lanes]) {
    let one = _mm512_set1_ps(1.0);
    let signs = |negative| _mm512_mask_sub_ps(one, negative, _mm512_setzero_ps(), one);
    for lanes in registers {
        // SAFETY: there are sixteen numbers; neither loads nor stores need alignment.
        let register = unsafe { _mm512_loadu_ps(lanes.as_ptr()) };
        let neighbors = _mm512_shuffle_f32x4::<0b10_11_00_01>(register, register);
        let pairs = _mm512_fmadd_ps(register, signs(0xf0f0), neighbors);
        let halves = _mm512_shuffle_f32x4::<0b01_00_11_10>(pairs, pairs);
        let mixed = _mm512_fmadd_ps(pairs, signs(0xff00), halves);
        // SAFETY: likewise.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), mixed) };
    }
}

/// With three strips, twenty-four sums, three registers of weights, and one number of a row at a time.
pub(super) const FLOAT_ROWS: usize = 8;
pub(super) const FLOAT_STRIPS: usize = 3;

/// See [`Isa::multiply_floats`].
#[target_feature(enable = "avx512f")]
pub(super) fn multiply_floats(tile: &FloatTile<'_>, sums: &mut [f32]) {
    with_tile_shape!(ROWS = tile.count(), 1..=8; STRIPS = tile.strip_count(), 1..=3; floats::<ROWS, STRIPS>(tile, sums));
}

#[target_feature(enable = "avx512f")]
#[inline]
fn floats<const ROWS: usize, const STRIPS: usize>(tile: &FloatTile<'_>, sums: &mut [f32]) {
    let inputs = tile.inputs;
    assert!(tile.rows.len() >= ROWS * inputs);
    assert!(tile.strips.len() >= STRIPS * inputs * COLUMNS);
    let mut block = [[_mm512_setzero_ps(); STRIPS]; ROWS];
    let rows = tile.rows.as_ptr();
    let strips = tile.strips.as_ptr();
    for input in 0..inputs {
        // SAFETY: a strip has `inputs` registers' worth, and the assertion holds `STRIPS` of them;
        // the loads need no alignment.
        let weights: [_; STRIPS] = std::array::from_fn(|strip| unsafe {
            _mm512_loadu_ps(strips.add((strip * inputs + input) * COLUMNS))
        });
        for (row, sums) in block.iter_mut().enumerate() {
            // SAFETY: `row * inputs + input < ROWS * inputs <= rows.len()` by the assertion.
            let number = _mm512_set1_ps(unsafe { *rows.add(row * inputs + input) });
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = _mm512_fmadd_ps(number, weights, *sum);
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
