//! Matrix products in fp32, of weights in fp32 or in bf16, which are widened as they are multiplied.
//!
//! Every sum is made in the order of the inputs, whatever rows are multiplied beside it, so a score has the same
//! bits whatever shares its batch.

use std::cell::RefCell;
use std::thread::LocalKey;

use super::dense::{Dense, Tiles, part};
use super::epilogue::Epilogue;
use super::isa::{FloatTile, InstructionSet, Isa};
use super::layer::{Operand, Products, ThreadScratch};
use crate::quantize::COLUMNS;

/// Weights of a dense layer.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// As [`crate::strips::strips`] makes them: `[strips, inputs, COLUMNS]`.
    pub strips: &'a [f32],
    /// Added to every row, `[outputs]`.
    pub bias: &'a [f32],
}

/// The fp32 arithmetic.
#[derive(Debug, Default)]
pub struct Fp32;

impl Products for Fp32 {
    type Matrix<'a> = Matrix<'a>;

    fn thread_scratch() -> &'static LocalKey<RefCell<ThreadScratch<Self>>> {
        thread_local!(static SCRATCH: RefCell<ThreadScratch<Fp32>> = RefCell::default());
        &SCRATCH
    }

    fn outputs(matrix: Matrix<'_>) -> usize {
        matrix.bias.len()
    }

    fn prepare(&mut self, _: InstructionSet, _: Operand<'_>, _: Self::Matrix<'_>) {}

    fn multiply(
        &self,
        set: InstructionSet,
        x: Operand<'_>,
        matrix: Matrix<'_>,
        epilogue: Epilogue,
        output: &mut [f32],
    ) {
        let tiles = Floats {
            x,
            strips: matrix.strips,
            panel: &[],
        };
        set.perform(Dense {
            tiles,
            bias: matrix.bias,
            epilogue,
            output,
        });
    }
}

/// Weights of a dense layer in bf16.
#[derive(Debug, Clone, Copy)]
pub struct WidenedMatrix<'a> {
    /// Bits of the weights, as [`crate::strips::strips`] makes them: `[strips, inputs, COLUMNS]`.
    pub strips: &'a [u16],
    /// Added to every row, `[outputs]`.
    pub bias: &'a [f32],
}

/// The fp32 arithmetic with weights in bf16: the same bits as with these weights in fp32.
#[derive(Debug, Default)]
pub struct WidenedBf16 {
    /// Some strips in fp32.
    widened: RefCell<Vec<f32>>,
}

impl Products for WidenedBf16 {
    type Matrix<'a> = WidenedMatrix<'a>;

    fn thread_scratch() -> &'static LocalKey<RefCell<ThreadScratch<Self>>> {
        thread_local!(static SCRATCH: RefCell<ThreadScratch<WidenedBf16>> = RefCell::default());
        &SCRATCH
    }

    fn outputs(matrix: WidenedMatrix<'_>) -> usize {
        matrix.bias.len()
    }

    fn prepare(&mut self, _: InstructionSet, _: Operand<'_>, _: Self::Matrix<'_>) {}

    fn multiply(
        &self,
        set: InstructionSet,
        x: Operand<'_>,
        matrix: WidenedMatrix<'_>,
        epilogue: Epilogue,
        output: &mut [f32],
    ) {
        let tiles = Widened {
            x,
            strips: matrix.strips,
            widened: &mut self.widened.borrow_mut(),
        };
        set.perform(Dense {
            tiles,
            bias: matrix.bias,
            epilogue,
            output,
        });
    }
}

/// Rows and weights in fp32.
struct Floats<'a> {
    x: Operand<'a>,
    strips: &'a [f32],
    /// Of `strips`.
    panel: &'a [f32],
}

impl Tiles for Floats<'_> {
    fn rows(&self) -> usize {
        self.x.rows.len() / self.x.inputs
    }

    #[inline(always)]
    fn select<I: Isa>(&mut self, panel: usize) {
        self.panel = part(self.strips, panel, panel_size::<I>(self.x.inputs));
    }

    #[inline(always)]
    fn multiply<I: Isa>(&self, isa: I, first: usize, count: usize, sums: &mut [f32]) {
        multiply(isa, self.x, self.panel, (first, count), sums);
    }
}

/// Weights in bf16, widened panel by panel.
struct Widened<'a> {
    x: Operand<'a>,
    strips: &'a [u16],
    widened: &'a mut Vec<f32>,
}

impl Tiles for Widened<'_> {
    fn rows(&self) -> usize {
        self.x.rows.len() / self.x.inputs
    }

    #[inline(always)]
    fn select<I: Isa>(&mut self, panel: usize) {
        let strips = part(self.strips, panel, panel_size::<I>(self.x.inputs));
        self.widened.resize(strips.len(), 0.0);
        for (wide, &bits) in self.widened.iter_mut().zip(strips) {
            *wide = f32::from_bits(u32::from(bits) << 16);
        }
    }

    #[inline(always)]
    fn multiply<I: Isa>(&self, isa: I, first: usize, count: usize, sums: &mut [f32]) {
        multiply(isa, self.x, self.widened, (first, count), sums);
    }
}

/// Weights of a panel.
fn panel_size<I: Isa>(inputs: usize) -> usize {
    I::FLOAT_STRIPS * COLUMNS * inputs
}

/// Multiplies `count` rows from `first` on by some strips.
#[inline(always)]
fn multiply<I: Isa>(
    isa: I,
    Operand { rows, inputs }: Operand<'_>,
    strips: &[f32],
    (first, count): (usize, usize),
    sums: &mut [f32],
) {
    let tile = FloatTile {
        rows: &rows[first * inputs..(first + count) * inputs],
        strips,
        inputs,
    };
    isa.multiply_floats(&tile, sums);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strips::strips;
    use crate::testing::numbers;
    use proptest::prelude::*;

    /// Weights `[outputs, inputs]` over rows of `inputs` numbers.
    fn product(
        set: InstructionSet,
        weights: &[f32],
        bias: &[f32],
        epilogue: Epilogue,
        x: &[f32],
    ) -> Vec<f32> {
        let inputs = weights.len() / bias.len();
        let mut output = vec![f32::NAN; x.len() / inputs * bias.len()];
        let x = Operand { rows: x, inputs };
        let matrix = Matrix {
            strips: &strips(&[weights], inputs),
            bias,
        };
        Fp32.multiply(set, x, matrix, epilogue, &mut output);
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
            for set in InstructionSet::available() {
                let product = product(set, &weights, &bias, Epilogue::Identity, &x);
                for (row, product) in x.chunks_exact(inputs).zip(product.chunks_exact(outputs)) {
                    let dense = weights.chunks_exact(inputs).zip(&bias);
                    for ((weights, &bias), &product) in dense.zip(product) {
                        let products = weights.iter().zip(row);
                        let sum: f64 = products.map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                        let off = (f64::from(product) - sum - f64::from(bias)).abs();
                        prop_assert!(off < 1e-5, "{}: {} off by {}", set.name(), product, off);
                    }
                }
            }
        }

        #[test]
        fn weights_in_bf16_give_the_bits_of_the_same_weights_in_fp32(
            rows in 1_usize..20,
            inputs in 1_usize..70,
            outputs in 1_usize..120,
            seed in any::<u64>(),
        ) {
            let weights = numbers(seed, outputs * inputs);
            let bits: Vec<u16> = weights.iter().map(|x| (x.to_bits() >> 16) as u16).collect();
            let wide: Vec<f32> = bits.iter().map(|&x| f32::from_bits(u32::from(x) << 16)).collect();
            let x = numbers(seed ^ 0x99, rows * inputs);
            let bias = numbers(seed ^ 0x3, outputs);
            let strips = strips(&[&bits], inputs);
            let matrix = WidenedMatrix { strips: &strips, bias: &bias };
            for set in InstructionSet::available() {
                let expected = product(set, &wide, &bias, Epilogue::Silu, &x);
                let mut output = vec![f32::NAN; expected.len()];
                let operand = Operand { rows: &x, inputs };
                WidenedBf16::default().multiply(set, operand, matrix, Epilogue::Silu, &mut output);
                prop_assert_eq!(output, expected, "{}", set.name());
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
            for set in InstructionSet::available() {
                let run = |x: &[f32]| product(set, &weights, &bias, Epilogue::Gelu, x);
                let together = run(&x);
                for (row, together) in x.chunks_exact(inputs).zip(together.chunks_exact(outputs)) {
                    prop_assert_eq!(run(row), together, "{}", set.name());
                }
            }
        }
    }

    #[test]
    fn what_comes_after_a_layer_is_applied() {
        for set in InstructionSet::available() {
            for (epilogue, expected) in [
                (Epilogue::Gelu, [-0.158_655_3, 1.954_499_8]),
                (Epilogue::GeluTanh, [-0.158_808, 1.954_597_7]),
                (Epilogue::Relu, [0.0, 2.0]),
            ] {
                let product = product(set, &[1.0, -2.0], &[0.0; 2], epilogue, &[-1.0]);
                for (product, expected) in product.iter().zip(expected) {
                    assert!(
                        (product - expected).abs() < 2e-6,
                        "{}, {epilogue:?}: {product} for {expected}",
                        set.name()
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for set in InstructionSet::available() {
            for epilogue in [
                Epilogue::Identity,
                Epilogue::Gelu,
                Epilogue::GeluTanh,
                Epilogue::Relu,
            ] {
                for bad in [f32::NAN, f32::INFINITY] {
                    let product =
                        product(set, &[1.0, 1.0], &[0.0], epilogue, &[1.0, bad, 1.0, 1.0]);
                    let finite = product.iter().map(|x| x.is_finite());
                    assert!(finite.eq([false, true]), "{}, {epilogue:?}", set.name());
                }
            }
        }
    }
}
