use super::*;
use crate::attention::{Columns, PositionalEncoding, Queries};
use crate::testing::numbers;
use proptest::prelude::*;

/// The bf16 nearest to a number.
fn rounded(x: f32) -> f32 {
    f32::from_bits(round(x))
}

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
    Bf16::default().dense(set, x, matrix, epilogue, &mut output);
    output
}

/// The definition of a product, as [`Isa::multiply_pairs`] gives it for the instruction set.
fn defined(set: InstructionSet, weights: &[f32], row: &[f32]) -> f32 {
    if set.name() == "amx" {
        return defined_in_tiles(weights, row);
    }
    let pairs = weights.chunks(2).zip(row.chunks(2));
    pairs.fold(0.0, |sum, (weights, row)| {
        let mut sum = sum;
        for (&weight, &x) in weights.iter().zip(row).rev() {
            sum = rounded(x).mul_add(rounded(weight), sum);
        }
        sum
    })
}

/// The definition of `TDPBF16PS`: even and odd inputs are summed by themselves over 64 bytes, then added to each other
/// and to the sum so far (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2).
fn defined_in_tiles(weights: &[f32], row: &[f32]) -> f32 {
    const INPUTS: usize = 32;
    let tiles = weights.chunks(INPUTS).zip(row.chunks(INPUTS));
    tiles.fold(0.0, |sum, (weights, row)| {
        let mut halves = [0.0_f32; 2];
        for (input, (&weight, &x)) in weights.iter().zip(row).enumerate() {
            let half = &mut halves[input % 2];
            *half = rounded(x).mul_add(rounded(weight), *half);
        }
        sum + (halves[0] + halves[1])
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_instruction_set_gives_the_bits_of_the_definition(
        rows in 1_usize..20,
        inputs in 1_usize..70,
        outputs in 1_usize..120,
        seed in any::<u64>(),
    ) {
        let weights = numbers(seed, outputs * inputs);
        let x = numbers(seed ^ 0x99, rows * inputs);
        let bias = numbers(seed ^ 0x3, outputs);
        for set in InstructionSet::available() {
            let mut expected = Vec::new();
            for row in x.chunks_exact(inputs) {
                for (weights, bias) in weights.chunks_exact(inputs).zip(&bias) {
                    expected.push(defined(set, weights, row) + bias);
                }
            }
            let product = product(set, &weights, &bias, Epilogue::Identity, &x);
            prop_assert_eq!(&product, &expected, "{}", set.name());
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

    #[test]
    fn rounding_is_to_the_nearest(x in any::<f32>().prop_filter("finite", |x| x.is_finite())) {
        prop_assert_eq!(rounded(x), half::bf16::from_f32(x).to_f32());
    }

    #[test]
    fn attention_is_close_to_fp32_and_the_same_for_every_part(
        lengths in proptest::collection::vec(1_i32..70, 1..4),
        heads in 1_usize..3,
        half in 1_usize..20,
        seed in any::<u64>(),
    ) {
        let size = 2 * half;
        let (width, tokens) = (heads * size, lengths.iter().sum::<i32>() as usize);
        let query = numbers(seed, tokens * width);
        let keys = numbers(seed ^ 7, tokens * 2 * width);
        let columns = |data, stride, offset| Columns { data, stride, offset };
        let bias = numbers(seed ^ 5, width);
        let attention = Attention {
            query: columns(&query, width, 0),
            query_bias: &bias,
            key: columns(&keys, 2 * width, 0),
            value: columns(&keys, 2 * width, width),
            lengths: &lengths,
            queries: Queries::EveryToken,
            heads,
            size,
            positions: PositionalEncoding::default(),
        };
        for set in InstructionSet::available() {
            let mut scratch = exact::Scratch::default();
            let mut expected = vec![f32::NAN; tokens * width];
            exact::attend(set, &attention, 0, &mut scratch, &mut expected);
            let mut products = Bf16::default();
            let mut output = vec![f32::NAN; tokens * width];
            products.attend(set, &attention, 0, &mut scratch, &mut output);
            for (ours, exact) in output.iter().zip(&expected) {
                prop_assert!((ours - exact).abs() < 0.02, "{}: {ours} for {exact}", set.name());
            }
            let middle = tokens / 2;
            let mut part = vec![f32::NAN; (tokens - middle) * width];
            products.attend(set, &attention, middle, &mut scratch, &mut part);
            prop_assert_eq!(&part[..], &output[middle * width..], "{}", set.name());
        }
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    for set in InstructionSet::available() {
        for epilogue in [Epilogue::Identity, Epilogue::Gelu, Epilogue::GeluTanh] {
            for bad in [f32::NAN, f32::from_bits(0x7fff_ffff), f32::INFINITY] {
                let product = product(set, &[1.0, 1.0], &[0.0], epilogue, &[1.0, bad, 1.0, 1.0]);
                let finite = product.iter().map(|x| x.is_finite());
                assert!(finite.eq([false, true]), "{}, {epilogue:?}", set.name());
            }
        }
    }
}
