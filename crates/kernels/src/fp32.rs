//! Matrix products in fp32.
//!
//! Every sum is made in the order of the inputs, whatever rows are multiplied beside it; so a score is
//! the same bits whatever shares its batch.

use std::cell::RefCell;
use std::thread::LocalKey;

use super::elementary::{Finish, gelu, gelu_tanh, relu};
use super::isa::{FloatSums, FloatTile, Isa, MAX_ROWS, MAX_STRIPS, Path, Step};
use super::layer::{Hand, NotFinite, Operand, Products};
use crate::quantize::COLUMNS;

/// Weights of a dense layer.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// As [`crate::strips::strips`] makes them: `[strips, inputs, COLUMNS]`.
    pub strips: &'a [f32],
    /// Added to every row, `[outputs]`.
    pub bias: &'a [f32],
}

/// Products of rows as they are.
#[derive(Debug, Default)]
pub struct Fp32;

impl Products for Fp32 {
    type Matrix<'a> = Matrix<'a>;

    fn hand() -> &'static LocalKey<RefCell<Hand<Self>>> {
        thread_local!(static HAND: RefCell<Hand<Fp32>> = RefCell::default());
        &HAND
    }

    fn outputs(matrix: Matrix<'_>) -> usize {
        matrix.bias.len()
    }

    /// What is not finite is not lost: it makes the logit so.
    fn prepare(&mut self, _: Path, _: Operand<'_>) -> Result<(), NotFinite> {
        Ok(())
    }

    fn multiply(
        &self,
        path: Path,
        x: Operand<'_>,
        matrix: Matrix<'_>,
        finish: Finish,
        output: &mut [f32],
    ) {
        path.perform(Dense {
            x,
            matrix,
            finish,
            output,
        });
    }
}

/// Writes the product of `x` with `matrix` to `output`, `[rows, outputs]`.
struct Dense<'a> {
    x: Operand<'a>,
    matrix: Matrix<'a>,
    finish: Finish,
    output: &'a mut [f32],
}

impl Step for Dense<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match self.finish {
            Finish::Nothing => self.finished(isa, |x| x),
            Finish::Gelu => self.finished(isa, gelu::<I>),
            Finish::GeluTanh => self.finished(isa, gelu_tanh::<I>),
            Finish::Relu => self.finished(isa, relu),
        }
    }
}

impl Dense<'_> {
    #[inline(always)]
    fn finished<I: Isa>(self, isa: I, finish: impl Fn(f32) -> f32) {
        let Self {
            x: Operand { rows, inputs },
            matrix,
            output,
            ..
        } = self;
        let outputs = matrix.bias.len();
        let width = I::FLOAT_STRIPS * COLUMNS;
        let mut sums: FloatSums = [0.0; MAX_ROWS * MAX_STRIPS * COLUMNS];
        let tiles = matrix.strips.chunks(width * inputs);
        for (strips, first) in tiles.zip((0..outputs).step_by(width)) {
            let columns = first..(first + width).min(outputs);
            let bias = &matrix.bias[columns.clone()];
            let blocks = rows.chunks(I::FLOAT_ROWS * inputs);
            for (rows, output) in blocks.zip(output.chunks_mut(I::FLOAT_ROWS * outputs)) {
                let tile = FloatTile {
                    rows,
                    strips,
                    inputs,
                };
                isa.multiply_floats(&tile, &mut sums);
                let sums = sums.chunks_exact(tile.strip_count() * COLUMNS);
                for (output, sums) in output.chunks_exact_mut(outputs).zip(sums) {
                    let output = &mut output[columns.clone()];
                    for ((output, &sum), &bias) in output.iter_mut().zip(sums).zip(bias) {
                        *output = finish(sum + bias);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strips::strips;
    use crate::testing::numbers;
    use proptest::prelude::*;

    /// Weights `[outputs, inputs]` over rows of `inputs` numbers.
    fn product(path: Path, weights: &[f32], bias: &[f32], finish: Finish, x: &[f32]) -> Vec<f32> {
        let inputs = weights.len() / bias.len();
        let mut output = vec![f32::NAN; x.len() / inputs * bias.len()];
        let x = Operand { rows: x, inputs };
        let matrix = Matrix {
            strips: &strips(&[weights], inputs),
            bias,
        };
        Fp32.multiply(path, x, matrix, finish, &mut output);
        output
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_is_the_matrix_product(
            rows in 1_usize..20,
            inputs in 1_usize..70,
            outputs in 1_usize..120,
            seed in any::<u64>(),
        ) {
            let weights = numbers(seed, outputs * inputs);
            let x = numbers(seed ^ 0x99, rows * inputs);
            let bias = numbers(seed ^ 0x3, outputs);
            for path in Path::available() {
                let product = product(path, &weights, &bias, Finish::Nothing, &x);
                for (row, product) in x.chunks_exact(inputs).zip(product.chunks_exact(outputs)) {
                    let dense = weights.chunks_exact(inputs).zip(&bias);
                    for ((weights, &bias), &product) in dense.zip(product) {
                        let products = weights.iter().zip(row);
                        let sum: f64 = products.map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                        let off = (f64::from(product) - sum - f64::from(bias)).abs();
                        prop_assert!(off < 1e-5, "{}: {} off by {}", path.name(), product, off);
                    }
                }
            }
        }

        #[test]
        fn a_row_is_the_same_bits_whatever_its_neighbours(
            rows in 1_usize..20,
            inputs in 1_usize..70,
            outputs in 1_usize..120,
            seed in any::<u64>(),
        ) {
            let weights = numbers(seed, outputs * inputs);
            let x = numbers(seed ^ 0x99, rows * inputs);
            let bias = numbers(seed ^ 0x3, outputs);
            for path in Path::available() {
                let run = |x: &[f32]| product(path, &weights, &bias, Finish::Gelu, x);
                let together = run(&x);
                for (row, together) in x.chunks_exact(inputs).zip(together.chunks_exact(outputs)) {
                    prop_assert_eq!(run(row), together, "{}", path.name());
                }
            }
        }
    }

    #[test]
    fn what_comes_after_a_layer_is_applied() {
        for path in Path::available() {
            for (finish, expected) in [
                (Finish::Gelu, [-0.158_655_3, 1.954_499_8]),
                (Finish::GeluTanh, [-0.158_808, 1.954_597_7]),
                (Finish::Relu, [0.0, 2.0]),
            ] {
                let product = product(path, &[1.0, -2.0], &[0.0; 2], finish, &[-1.0]);
                for (product, expected) in product.iter().zip(expected) {
                    assert!(
                        (product - expected).abs() < 2e-6,
                        "{}, {finish:?}: {product} for {expected}",
                        path.name()
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for path in Path::available() {
            for finish in [
                Finish::Nothing,
                Finish::Gelu,
                Finish::GeluTanh,
                Finish::Relu,
            ] {
                for bad in [f32::NAN, f32::INFINITY] {
                    let product = product(path, &[1.0, 1.0], &[0.0], finish, &[1.0, bad, 1.0, 1.0]);
                    let finite = product.iter().map(|x| x.is_finite());
                    assert!(finite.eq([false, true]), "{}, {finish:?}", path.name());
                }
            }
        }
    }
}
