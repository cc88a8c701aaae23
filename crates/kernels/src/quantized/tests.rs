//! The steps of a layer against their definitions, on every set.

use std::ops::Range;

use proptest::prelude::*;

use super::attention::{self, Attend};
use super::dense::{Dense, Matrix};
use super::embeddings::{Embeddings, embed};
use super::rows::{Equalization, Quantize, Rows};
use crate::epilogue::Epilogue;
use crate::isa::InstructionSet;
use crate::norm::{LayerNorm, Normalize};
use crate::quantize::{self, GROUP, Quantized};
use crate::testing;

/// Numbers between `-spread` and `spread`.
fn numbers(seed: u64, count: usize, spread: f32) -> Vec<f32> {
    let numbers = testing::numbers(seed, count).into_iter();
    numbers.map(|number| number * spread).collect()
}

/// A dense layer `[outputs, inputs]` over rows of `inputs` numbers.
fn product(
    set: InstructionSet,
    weights: &[f32],
    inputs: usize,
    bias: &[f32],
    epilogue: Epilogue,
    x: &[f32],
    equalization: Option<&quantize::Equalization>,
) -> Vec<f32> {
    let mut bias = bias.to_vec();
    let folded = equalization.map(|equalization| equalization.fold(&[weights], &mut bias));
    let quantized = Quantized::new(&[folded.as_deref().unwrap_or(weights)], inputs);
    let equalization = equalization
        .map(|quantize::Equalization { shifts, factors }| Equalization { shifts, factors });
    let mut rows = Rows::default();
    let rows = &mut rows;
    set.perform(Quantize {
        x,
        inputs,
        equalization,
        rows,
    });
    let mut output = vec![f32::NAN; x.len() / inputs * bias.len()];
    set.perform(Dense {
        arranged: &mut Vec::new(),
        rows,
        inputs,
        matrix: Matrix {
            equalization,
            ..Matrix::new(&quantized, &bias)
        },
        epilogue,
        output: &mut output,
    });
    output
}

/// The context of the tokens `asked`.
fn context(
    set: InstructionSet,
    queries: &[f32],
    keys: &[f32],
    heads: usize,
    size: usize,
    asked: Range<usize>,
) -> Vec<f32> {
    // What is not written shows. NaN would not do: a test expects it as a result.
    let mut output = vec![f32::MAX; asked.len() * heads * size];
    set.perform(Attend {
        queries,
        keys,
        heads,
        size,
        scratch: &mut attention::Scratch::default(),
        first: asked.start,
        output: &mut output,
    });
    output
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_dense_layer_is_the_matrix_product(
        rows in 1_usize..15,
        inputs in prop_oneof![1_usize..70, prop::sample::select(vec![128, 256, 384, 1024])],
        outputs in 1_usize..70,
        spread in prop::sample::select(vec![1e-3_f32, 1.0, 1e3]),
        seed in any::<u64>(),
    ) {
        let weights = numbers(seed, outputs * inputs, 0.5);
        let x = numbers(seed ^ 0x99, rows * inputs, spread);
        let bias = numbers(seed ^ 0x3, outputs, 1.0);
        for set in InstructionSet::available() {
            let product = product(set, &weights, inputs, &bias, Epilogue::Identity, &x, None);
            for (row, product) in x.chunks_exact(inputs).zip(product.chunks_exact(outputs)) {
                for ((weights, bias), product) in weights.chunks_exact(inputs).zip(&bias).zip(product) {
                    let exact: f32 = weights.iter().zip(row).map(|(w, x)| w * x).sum::<f32>() + bias;
                    // Half a step of a weight, and of a number of the row, for each product.
                    let bound = inputs as f32 * spread * (0.25 / 127.0 + 0.5 / 127.0) + 1e-5;
                    prop_assert!(
                        (product - exact).abs() <= bound,
                        "{}: {} for {}", set.name(), product, exact
                    );
                }
            }
        }
    }

    #[test]
    fn attention_is_close_to_the_exact_one(
        tokens in 1_usize..120,
        heads in 1_usize..4,
        size in prop::sample::select(vec![4_usize, 20, 32, 64]),
        spread in 0.1_f32..3.0,
        part in any::<(prop::sample::Index, prop::sample::Index)>(),
        seed in any::<u64>(),
    ) {
        let width = heads * size;
        let queries = numbers(seed, tokens * width, spread / (size as f32).sqrt());
        let keys = numbers(seed ^ 0x77, tokens * 2 * width, 2.0);
        let mut exact = vec![0.0; tokens * width];
        for query in 0..tokens {
            for head in 0..heads {
                let q = &queries[query * width + head * size..][..size];
                let row = |token: usize, part: usize| {
                    &keys[(token * 2 + part) * width + head * size..][..size]
                };
                let scores: Vec<f64> = (0..tokens)
                    .map(|token| q.iter().zip(row(token, 0)).map(|(q, k)| f64::from(q * k)).sum())
                    .collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for d in 0..size {
                    let mixed: f64 = (0..tokens).map(|t| weights[t] * f64::from(row(t, 1)[d])).sum();
                    exact[query * width + head * size + d] = (mixed / sum) as f32;
                }
            }
        }
        for set in InstructionSet::available() {
            let output = context(set, &queries, &keys, heads, size, 0..tokens);
            let first = part.0.index(tokens);
            let asked = first..first + 1 + part.1.index(tokens - first);
            let some = &output[asked.start * width..asked.end * width];
            let part = context(set, &queries, &keys, heads, size, asked);
            prop_assert_eq!(&part, some, "{}", set.name());
            let error = output.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // Values lie between -2 and 2.
            prop_assert!(error < 0.08, "{}: off by {}", set.name(), error);
        }
    }

    #[test]
    fn a_norm_has_no_mean_and_unit_variance(
        rows in 1_usize..5,
        width in 1_usize..80,
        seed in any::<u64>(),
    ) {
        let first = numbers(seed, rows * width, 3.0);
        let residual = numbers(seed ^ 5, rows * width, 2.0);
        let (gamma, beta) = (numbers(seed ^ 7, width, 1.0), numbers(seed ^ 9, width, 1.0));
        for set in InstructionSet::available() {
            let mut x = first.clone();
            set.perform(Normalize {
                x: &mut x,
                residual: &residual,
                norm: LayerNorm { gamma: &gamma, beta: &beta, epsilon: 1e-3 },
            });
            for (row, x) in x.chunks_exact(width).enumerate() {
                let place = row * width..(row + 1) * width;
                let sums: Vec<f64> = first[place.clone()]
                    .iter()
                    .zip(&residual[place])
                    .map(|(a, b)| f64::from(a + b))
                    .collect();
                let mean = sums.iter().sum::<f64>() / width as f64;
                let variance = sums.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / width as f64;
                for (i, x) in x.iter().enumerate() {
                    let normal = (sums[i] - mean) / (variance + 1e-3).sqrt();
                    let exact = normal * f64::from(gamma[i]) + f64::from(beta[i]);
                    prop_assert!((f64::from(*x) - exact).abs() < 1e-4, "{}: {} for {}", set.name(), x, exact);
                }
            }
        }
    }
}

#[test]
fn a_row_of_zeros_gives_the_bias() {
    for set in InstructionSet::available() {
        let weights = [1.0, -2.0, 3.0, 4.0];
        let product = product(
            set,
            &weights,
            2,
            &[0.5, -0.5],
            Epilogue::Identity,
            &[0.0; 2],
            None,
        );
        assert_eq!(product, [0.5, -0.5], "{}", set.name());
    }
}

#[test]
fn what_is_not_a_number_stays_so() {
    for set in InstructionSet::available() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            // Rows of 128 are rotated.
            for inputs in [2, 128] {
                let mut x = vec![1.0; 2 * inputs];
                x[1] = bad;
                let ones = vec![1.0; inputs];
                let product = product(set, &ones, inputs, &[0.0], Epilogue::Identity, &x, None);
                assert!(
                    product[0].is_nan() && (product[1] - inputs as f32).abs() < 1e-3,
                    "{}: {product:?}",
                    set.name()
                );
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
            let product = product(set, &[1.0, -2.0], 1, &[0.0; 2], epilogue, &[-1.0], None);
            for (product, expected) in product.iter().zip(expected) {
                assert!(
                    (product - expected).abs() < 5e-4,
                    "{}, {epilogue:?}: {product} for {expected}",
                    set.name()
                );
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let weights = numbers(3, 24 * 50, 0.5);
    let x = numbers(4, 13 * 50, 2.0);
    for set in InstructionSet::available() {
        let bias = numbers(5, 24, 1.0);
        let run = |x: &[f32]| product(set, &weights, 50, &bias, Epilogue::Gelu, x, None);
        let together = run(&x);
        for (row, together) in x.chunks_exact(50).zip(together.chunks_exact(24)) {
            assert_eq!(run(row), together, "{}", set.name());
        }
    }
}

/// The error of the product of weights `[outputs, inputs]`: the norm over all rows and outputs.
fn error(
    set: InstructionSet,
    weights: &[f32],
    bias: &[f32],
    x: &[f32],
    equalization: Option<&quantize::Equalization>,
) -> f64 {
    let inputs = weights.len() / bias.len();
    let identity = Epilogue::Identity;
    let product = product(set, weights, inputs, bias, identity, x, equalization);
    let rows = x.chunks_exact(inputs).zip(product.chunks_exact(bias.len()));
    let errors = rows.flat_map(|(x, product)| {
        let outputs = weights.chunks_exact(inputs).zip(bias).zip(product);
        outputs.map(move |((weights, bias), product)| {
            let exact: f64 = weights.iter().zip(x).map(|(w, x)| f64::from(w * x)).sum();
            (f64::from(product - bias) - exact).powi(2)
        })
    });
    errors.sum::<f64>().sqrt()
}

/// The error for inputs that a norm writes, with and without equalization.
fn errors(set: InstructionSet, gamma: &[f32], beta: &[f32]) -> (f64, f64) {
    let (rows, inputs, outputs) = (8, gamma.len(), 32);
    let normalized = numbers(1, rows * inputs, 1.7);
    let affine = gamma.iter().zip(beta).cycle();
    let x: Vec<f32> = normalized
        .iter()
        .zip(affine)
        .map(|(x, (gamma, beta))| x * gamma + beta)
        .collect();
    let weights = numbers(2, outputs * inputs, 0.5);
    let bias = numbers(3, outputs, 1.0);
    let error = |equalization| error(set, &weights, &bias, &x, equalization);
    let equalization = quantize::Equalization::of_norm(gamma, beta, &[&weights]);
    (error(None), error(Some(&equalization)))
}

#[test]
fn a_channel_far_from_zero_costs_the_others_no_precision() {
    for inputs in [96, 384, 1024] {
        let (mut gamma, mut beta) = (vec![0.2; inputs], numbers(5, inputs, 0.1));
        (gamma[7], beta[7]) = (4.0, 20.0);
        for set in InstructionSet::available() {
            let (plain, equalized) = errors(set, &gamma, &beta);
            let name = set.name();
            assert!(
                equalized < 0.5 * plain,
                "{name}, {inputs}: {equalized} of {plain}"
            );
        }
    }
}

#[test]
fn a_channel_that_hardly_varies_costs_the_others_no_precision() {
    for inputs in [96, 384] {
        let (mut gamma, beta) = (vec![0.2; inputs], vec![0.1; inputs]);
        for set in InstructionSet::available() {
            let (_, before) = errors(set, &gamma, &beta);
            gamma[7] = 1e-20;
            let (_, equalized) = errors(set, &gamma, &beta);
            let name = set.name();
            assert!(
                equalized < 1.2 * before,
                "{name}, {inputs}: {equalized}, not {before}"
            );
            gamma[7] = 0.2;
        }
    }
}

#[test]
fn a_large_number_costs_the_others_little_precision() {
    let (inputs, outputs) = (384, 16);
    let weights = numbers(2, outputs * inputs, 0.5);
    let mut x = numbers(1, inputs, 1.0);
    x[100] = 40.0;
    for set in InstructionSet::available() {
        let error = error(set, &weights, &[0.0; 16], &x, None);
        // A step of 40 / 255, rounded, would be an error of .045 in each number, and .26 in each sum.
        let error = error / (outputs as f64).sqrt();
        assert!(error < 0.13, "{}: off by {error}", set.name());
    }
}

#[test]
fn small_weights_beside_a_large_one_keep_their_precision() {
    let size = 4;
    // The first token has most of the weight, and the others share the rest, of which each has 18 steps, or half of one.
    // Queries, keys and values are whole numbers of steps, so only the weights are rounded.
    for (tokens, most) in [(400, 0.9), (8192, 0.95)] {
        let score = (most / (1.0 - most) * (tokens - 1) as f64).ln();
        let mut keys = numbers(1, tokens * 2 * size, 1.0);
        for (token, row) in keys.chunks_exact_mut(2 * size).enumerate() {
            let (key, value) = row.split_at_mut(size);
            key.fill(0.0);
            key[0] = if token == 0 { 1.0 } else { 0.0 };
            // Three of four are one.
            value.iter_mut().for_each(|x| *x = (*x + 0.5).signum());
        }
        let mut queries = vec![0.0; tokens * size];
        queries[7 * size] = score as f32;
        let value = |token: usize, column: usize| f64::from(keys[(2 * token + 1) * size + column]);
        for set in InstructionSet::available() {
            let output = context(set, &queries, &keys, 1, size, 7..8);
            for (column, output) in output.into_iter().enumerate() {
                let rest: f64 = (1..tokens).map(|token| value(token, column)).sum();
                let exact = most * value(0, column) + (1.0 - most) * rest / (tokens - 1) as f64;
                let error = (f64::from(output) - exact).abs();
                assert!(
                    error < 3e-3,
                    "{}, {tokens} tokens: off by {error}",
                    set.name()
                );
            }
        }
    }
}

#[test]
fn attention_to_a_query_that_is_not_finite_is_not_a_number() {
    let size = 8;
    for tokens in [1, 3] {
        let mut queries = vec![1.0; tokens * size];
        queries[size - 1] = f32::INFINITY;
        let keys = vec![0.5; tokens * 2 * size];
        for set in InstructionSet::available() {
            let output = context(set, &queries, &keys, 1, size, 0..tokens);
            assert!(
                output.iter().all(|x| x.is_nan()),
                "{}: {output:?}",
                set.name()
            );
        }
    }
}

#[test]
fn sums_have_room_for_wide_layers() {
    let inputs = 20_000;
    for set in InstructionSet::available() {
        let ones = vec![1.0; inputs];
        let product = product(set, &ones, inputs, &[0.0], Epilogue::Identity, &ones, None);
        assert!((product[0] - inputs as f32).abs() < 10.0, "{product:?}");
    }
}

#[test]
fn weights_lie_where_products_read_them() {
    let weights: Vec<f32> = (0..17 * 5).map(|i| i as f32).collect();
    let quantized = Quantized::new(&[&weights], 5);
    // Two strips of two groups; the second strip has one output.
    assert_eq!(quantized.strips.len(), 2 * 2 * 16 * GROUP);
    for output in 0..17 {
        let row = &weights[output * 5..][..5];
        for (input, weight) in row.iter().enumerate() {
            let at = ((output / 16 * 2 + input / GROUP) * 16 + output % 16) * GROUP + input % GROUP;
            let stands_for = f32::from(quantized.strips[at]) * quantized.scales[output];
            assert!((stands_for - weight).abs() <= 0.5 * quantized.scales[output]);
        }
    }
}

#[test]
fn embeddings_are_words_and_positions() {
    let width = 20;
    let words = numbers(1, 3 * width, 0.1);
    let (quantized, scales) = quantize::by_row(&words, width);
    let positions = numbers(2, 2 * width, 0.1);
    let (gamma, beta) = (numbers(3, width, 1.0), numbers(4, width, 1.0));
    let norm = LayerNorm {
        gamma: &gamma,
        beta: &beta,
        epsilon: 1e-5,
    };
    let embeddings = Embeddings {
        words: &quantized,
        scales: &scales,
        positions: &positions,
        norm,
    };
    let mut expected = [&words[2 * width..], &words[..width]].concat();
    InstructionSet::best().perform(Normalize {
        x: &mut expected,
        residual: &[&positions[width..], &positions[width..]].concat(),
        norm,
    });
    for set in InstructionSet::available() {
        let mut output = vec![f32::NAN; 2 * width];
        embed(set, &embeddings, &[2, 0], &[1, 1], &mut output).unwrap();
        for (ours, exact) in output.iter().zip(&expected) {
            assert!(
                (ours - exact).abs() < 0.02,
                "{}: {ours} for {exact}",
                set.name()
            );
        }
        for (id, position) in [(3, 0), (-1, 0), (0, 2), (0, -1)] {
            let outside = embed(set, &embeddings, &[0, id], &[0, position], &mut output);
            assert!(outside.is_err(), "{id} {position}");
        }
    }
}
