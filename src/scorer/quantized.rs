//! Matrix products in whole numbers: weights of eight bits, rows quantised each on its own.
//!
//! A row's numbers are scaled to whole numbers of up to twelve bits by the largest of that row, so a
//! score never depends on what shares its batch. Products of sixteen-bit pairs are summed in 32 bits
//! and cannot saturate, on any processor; twice as many are done at a time as in `f32`.
#![allow(
    unsafe_code,
    reason = "calls functions compiled for wider registers, after asking the processor"
)]

use super::elementary::{gelu, round_to_i32};
use crate::quantize::{COLUMNS, WEIGHT_MAX, panel_size};

/// Rows of one block: with two registers a row, twelve sums stay in registers.
const ROWS: usize = 6;
/// Largest number of a quantised row, where the sum has room for it.
const ROW_MAX: i32 = 2047;

/// What is done to a product before it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// Nothing.
    Nothing,
    /// `x -> x (1 + erf(x / sqrt 2)) / 2`, after the bias.
    Gelu,
}

/// One layer.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Weights as [`crate::quantize::Quantized::panels`] has them.
    pub panels: &'a [i8],
    /// [`crate::quantize::Quantized::scales`].
    pub scales: &'a [f32],
    /// Added to every row, `[outputs]`, or empty.
    pub bias: &'a [f32],
    /// What comes after.
    pub finish: Finish,
}

/// Memory that one call leaves to the next.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Quantised rows, `[rows, pairs]`: two sixteen-bit numbers in each.
    rows: Vec<i32>,
    /// What each row was divided by.
    scales: Vec<f32>,
}

/// Writes the product of `x`, `[rows, inputs]`, with the layer to `output`, `[rows, outputs]`.
pub fn apply(
    layer: &Layer<'_>,
    x: &[f32],
    inputs: usize,
    scratch: &mut Scratch,
    output: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has just said that it has both features.
        unsafe { apply_avx2(layer, x, inputs, scratch, output) };
        return;
    }
    apply_any::<{ cfg!(target_arch = "aarch64") }>(
        layer,
        x,
        inputs,
        scratch,
        output,
        multiply_portable,
    );
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn apply_avx2(
    layer: &Layer<'_>,
    x: &[f32],
    inputs: usize,
    scratch: &mut Scratch,
    output: &mut [f32],
) {
    apply_any::<true>(layer, x, inputs, scratch, output, |rows, pairs, panel| {
        multiply_avx2(rows, pairs, panel)
    });
}

type Sums = [[i32; COLUMNS]; ROWS];

#[inline(always)]
fn apply_any<const FUSED: bool>(
    layer: &Layer<'_>,
    x: &[f32],
    inputs: usize,
    scratch: &mut Scratch,
    output: &mut [f32],
    multiply: impl Fn(&[i32], usize, &[i8]) -> Sums,
) {
    let outputs = layer.scales.len();
    let pairs = inputs.div_ceil(2);
    scratch.quantize(x, inputs);
    let panels = layer.panels.chunks_exact(panel_size(inputs));
    for (panel, first) in panels.zip((0..outputs).step_by(COLUMNS)) {
        let columns = first..(first + COLUMNS).min(outputs);
        let scales = &layer.scales[columns.clone()];
        let bias = layer.bias.get(columns.clone());
        for (block, rows) in scratch.rows.chunks_exact(ROWS * pairs).enumerate() {
            let sums = multiply(rows, pairs, panel);
            let written = output.chunks_exact_mut(outputs).skip(block * ROWS);
            let row_scales = &scratch.scales[block * ROWS..];
            for ((output, sums), &row_scale) in written.zip(&sums).zip(row_scales) {
                let output = &mut output[columns.clone()];
                for ((output, &sum), &scale) in output.iter_mut().zip(sums).zip(scales) {
                    *output = sum as f32 * (scale * row_scale);
                }
                if let Some(bias) = bias {
                    for (output, bias) in output.iter_mut().zip(bias) {
                        *output += bias;
                    }
                }
                if layer.finish == Finish::Gelu {
                    output.iter_mut().for_each(|x| *x = gelu::<FUSED>(*x));
                }
            }
        }
    }
}

impl Scratch {
    /// Quantises every row of `x` by its own largest number; blocks are filled up with zero rows.
    #[inline(always)]
    fn quantize(&mut self, x: &[f32], inputs: usize) {
        let pairs = inputs.div_ceil(2);
        // A sum of `inputs` products must fit 32 bits.
        let room = i32::MAX / (WEIGHT_MAX as i32 * inputs.max(1) as i32);
        let row_max = ROW_MAX.min(room) as f32;
        let rows = x.len() / inputs;
        self.rows.clear();
        self.rows.resize(rows.next_multiple_of(ROWS) * pairs, 0);
        self.scales.clear();
        for (row, quantized) in x
            .chunks_exact(inputs)
            .zip(self.rows.chunks_exact_mut(pairs))
        {
            let mut largest = [0.0_f32; 8];
            // Zero, unless a number of the row is not finite: then the scale, and so every product of
            // the row, is not a number either.
            let mut poison = [0.0_f32; 8];
            for chunk in row.chunks(8) {
                for ((largest, poison), x) in largest.iter_mut().zip(&mut poison).zip(chunk) {
                    *largest = if x.abs() > *largest {
                        x.abs()
                    } else {
                        *largest
                    };
                    *poison += x * 0.0;
                }
            }
            let largest = largest.iter().copied().fold(0.0, f32::max);
            let poison: f32 = poison.iter().sum();
            // A row of zeros stays zero.
            let (scale, factor) = match largest > 0.0 {
                true => (largest / row_max, row_max / largest),
                false => (0.0, 0.0),
            };
            for (pair, quantized) in row.chunks(2).zip(quantized) {
                let low = round_to_i32(pair[0] * factor) & 0xffff;
                let high = pair.get(1).map_or(0, |x| round_to_i32(x * factor));
                *quantized = low | high << 16;
            }
            self.scales.push(scale + poison);
        }
    }
}

fn multiply_portable(rows: &[i32], pairs: usize, panel: &[i8]) -> Sums {
    let mut sums = [[0_i32; COLUMNS]; ROWS];
    for (pair, weights) in panel.chunks_exact(COLUMNS * 2).enumerate() {
        for (row, sums) in sums.iter_mut().enumerate() {
            let numbers = rows[row * pairs + pair];
            let (low, high) = (i32::from(numbers as i16), numbers >> 16);
            for (sum, weights) in sums.iter_mut().zip(weights.chunks_exact(2)) {
                *sum += low * i32::from(weights[0]) + high * i32::from(weights[1]);
            }
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn multiply_avx2(rows: &[i32], pairs: usize, panel: &[i8]) -> Sums {
    use std::arch::x86_64::{
        __m128i, __m256i, _mm_loadu_si128, _mm256_add_epi32, _mm256_cvtepi8_epi16,
        _mm256_madd_epi16, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_storeu_si256,
    };
    assert!(rows.len() >= ROWS * pairs && panel.len() >= pairs * COLUMNS * 2);
    let mut sums = [[_mm256_setzero_si256(); 2]; ROWS];
    for pair in 0..pairs {
        let at = pair * COLUMNS * 2;
        // SAFETY: `at + 32 <= panel.len()` by the assertion; the loads need no alignment.
        let (low, high) = unsafe {
            let weights = panel.as_ptr().add(at).cast::<__m128i>();
            (_mm_loadu_si128(weights), _mm_loadu_si128(weights.add(1)))
        };
        let weights = [_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high)];
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `row * pairs + pair < ROWS * pairs <= rows.len()` by the assertion.
            let numbers = _mm256_set1_epi32(unsafe { *rows.get_unchecked(row * pairs + pair) });
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(numbers, weights));
            }
        }
    }
    let mut result = [[0; COLUMNS]; ROWS];
    for (result, sums) in result.iter_mut().zip(sums) {
        for (result, sum) in result.chunks_exact_mut(8).zip(sums) {
            // SAFETY: the chunk holds eight numbers of 32 bits; the store needs no alignment.
            unsafe { _mm256_storeu_si256(result.as_mut_ptr().cast::<__m256i>(), sum) };
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::Quantized;
    use proptest::prelude::*;

    fn numbers(seed: u64, count: usize, spread: f32) -> Vec<f32> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * spread
        };
        (0..count).map(|_| next()).collect()
    }

    fn run(weights: &[f32], inputs: usize, bias: &[f32], finish: Finish, x: &[f32]) -> Vec<f32> {
        let quantized = Quantized::new(&[weights], inputs);
        let layer = Layer {
            panels: &quantized.panels,
            scales: &quantized.scales,
            bias,
            finish,
        };
        let rows = x.len() / inputs;
        let mut output = vec![f32::NAN; rows * quantized.scales.len()];
        apply(&layer, x, inputs, &mut Scratch::default(), &mut output);
        let mut portable = vec![f32::NAN; output.len()];
        let scratch = &mut Scratch::default();
        apply_any::<false>(&layer, x, inputs, scratch, &mut portable, multiply_portable);
        for (a, b) in output.iter().zip(&portable) {
            // Compiled twice, the same arithmetic but for fused multiplications after the sum.
            assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "{a} for {b}");
        }
        output
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_is_the_matrix_product(
            rows in 1_usize..15,
            inputs in 1_usize..70,
            outputs in 1_usize..40,
            spread in prop::sample::select(vec![1e-3_f32, 1.0, 1e3]),
            seed in any::<u64>(),
        ) {
            let weights = numbers(seed, outputs * inputs, 0.5);
            let x = numbers(seed ^ 0x99, rows * inputs, spread);
            let bias = numbers(seed ^ 0x3, outputs, 1.0);
            let product = run(&weights, inputs, &bias, Finish::Nothing, &x);
            for (row, product) in x.chunks_exact(inputs).zip(product.chunks_exact(outputs)) {
                for ((weights, bias), product) in weights.chunks_exact(inputs).zip(&bias).zip(product) {
                    let exact: f32 = weights.iter().zip(row).map(|(w, x)| w * x).sum::<f32>() + bias;
                    // Half a step of a weight, and of a number of the row, for each product.
                    let bound = inputs as f32 * spread * (0.25 / 127.0 + 0.5 / 2047.0) + 1e-5;
                    prop_assert!((product - exact).abs() <= bound, "{} for {}", product, exact);
                }
            }
        }
    }

    #[test]
    fn a_row_of_zeros_gives_the_bias() {
        let product = run(
            &[1.0, -2.0, 3.0, 4.0],
            2,
            &[0.5, -0.5],
            Finish::Nothing,
            &[0.0, 0.0],
        );
        assert_eq!(product, [0.5, -0.5]);
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        for bad in [f32::NAN, f32::INFINITY] {
            let x = [1.0, bad, 1.0, 1.0];
            let product = run_once(&[1.0, 1.0], 2, &x);
            assert!(
                product[0].is_nan() && (product[1] - 2.0).abs() < 1e-5,
                "{product:?}"
            );
        }
    }

    fn run_once(weights: &[f32], inputs: usize, x: &[f32]) -> Vec<f32> {
        let quantized = Quantized::new(&[weights], inputs);
        let layer = Layer {
            panels: &quantized.panels,
            scales: &quantized.scales,
            bias: &[],
            finish: Finish::Nothing,
        };
        let mut output = vec![0.0; x.len() / inputs * quantized.scales.len()];
        apply(&layer, x, inputs, &mut Scratch::default(), &mut output);
        output
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        let weights = numbers(3, 24 * 50, 0.5);
        let x = numbers(4, 13 * 50, 2.0);
        let together = run(&weights, 50, &[], Finish::Gelu, &x);
        for (row, together) in x.chunks_exact(50).zip(together.chunks_exact(24)) {
            assert_eq!(run(&weights, 50, &[], Finish::Gelu, row), together);
        }
    }

    #[test]
    fn sums_have_room_for_wide_layers() {
        let inputs = 20_000;
        let product = run(
            &vec![1.0; inputs],
            inputs,
            &[],
            Finish::Nothing,
            &vec![1.0; inputs],
        );
        assert!((product[0] - inputs as f32).abs() < 10.0, "{product:?}");
    }
}
