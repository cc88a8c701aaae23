use super::*;
use crate::bf16::{self, Bf16};
use crate::fp32::{self, Fp32};
use crate::quantize::Quantized;
use crate::quantized::{self, Int8};
use crate::strips::strips;
use crate::testing::numbers;

const WIDTH: usize = 16;
const INNER: usize = 24;
const HEADS: usize = 2;
const LENGTHS: [i32; 4] = [5, 21, 1, 9];
/// The sequence that is damaged.
const DAMAGED: usize = 1;

/// Weights of a dense layer in some arithmetic.
pub(super) trait Owned {
    type Products: Products;
    fn new(weights: &[f32], inputs: usize, bias: Vec<f32>) -> Self;
    fn matrix(&self) -> <Self::Products as Products>::Matrix<'_>;
}

pub(super) struct Float {
    strips: Vec<f32>,
    bias: Vec<f32>,
}

impl Owned for Float {
    type Products = Fp32;

    fn new(weights: &[f32], inputs: usize, bias: Vec<f32>) -> Self {
        let strips = strips(&[weights], inputs);
        Self { strips, bias }
    }

    fn matrix(&self) -> fp32::Matrix<'_> {
        fp32::Matrix {
            strips: &self.strips,
            bias: &self.bias,
        }
    }
}

pub(super) struct Half {
    strips: Vec<bf16::Pair>,
    bias: Vec<f32>,
}

impl Owned for Half {
    type Products = Bf16;

    fn new(weights: &[f32], inputs: usize, bias: Vec<f32>) -> Self {
        let strips = bf16::strips(&[weights], inputs);
        Self { strips, bias }
    }

    fn matrix(&self) -> bf16::Matrix<'_> {
        bf16::Matrix {
            strips: &self.strips,
            bias: &self.bias,
        }
    }
}

pub(super) struct Byte {
    quantized: Quantized,
    bias: Vec<f32>,
}

impl Owned for Byte {
    type Products = Int8;

    fn new(weights: &[f32], inputs: usize, bias: Vec<f32>) -> Self {
        let quantized = Quantized::new(&[weights], inputs);
        Self { quantized, bias }
    }

    fn matrix(&self) -> quantized::Matrix<'_> {
        quantized::Matrix::new(&self.quantized, &self.bias)
    }
}

fn dense<W: Owned>(seed: u64, inputs: usize, outputs: usize) -> W {
    W::new(
        &numbers(seed, inputs * outputs),
        inputs,
        numbers(seed + 1, outputs),
    )
}

/// Runs a layer of random weights.
fn run<W: Owned>(set: InstructionSet, gated: bool, queries: Queries, hidden: &[f32]) -> Vec<f32> {
    let query: W = dense(1, WIDTH, WIDTH);
    let key_value: W = dense(3, WIDTH, 2 * WIDTH);
    let projection: W = dense(5, WIDTH, WIDTH);
    let up: W = dense(7, WIDTH, INNER);
    let gate: W = dense(9, WIDTH, INNER);
    let down: W = dense(11, INNER, WIDTH);
    let (gamma, beta) = (numbers(13, WIDTH), numbers(15, WIDTH));
    let norm = LayerNorm {
        gamma: &gamma,
        beta: &beta,
        epsilon: 1e-5,
    };
    let layer = Layer {
        qkv: QkvProjection {
            query: query.matrix(),
            key_value: key_value.matrix(),
            heads: HEADS,
            positions: PositionalEncoding::default(),
        },
        projection: projection.matrix(),
        norms: if gated {
            Norms::Pre {
                attention: Some(norm),
                feed_forward: norm,
            }
        } else {
            Norms::Post {
                attention: norm,
                feed_forward: norm,
            }
        },
        up: up.matrix(),
        activation: Epilogue::Gelu,
        gate: gated.then(|| gate.matrix()),
        down: down.matrix(),
    };
    let rows = match queries {
        Queries::EveryToken => hidden.len() / WIDTH,
        Queries::OnePerSequence => LENGTHS.len(),
    };
    let mut output = vec![7.0; rows * WIDTH];
    forward::<W::Products>(
        &ComputePool::one_core(set),
        &layer,
        LayerInput {
            hidden,
            lengths: &LENGTHS,
            queries,
        },
        &mut Scratch::default(),
        &mut output,
    );
    output
}

/// Output rows of a sequence.
fn rows(queries: Queries, sequence: usize) -> std::ops::Range<usize> {
    match queries {
        Queries::OnePerSequence => sequence * WIDTH..(sequence + 1) * WIDTH,
        Queries::EveryToken => {
            let first = LENGTHS[..sequence].iter().sum::<i32>() as usize;
            first * WIDTH..(first + LENGTHS[sequence] as usize) * WIDTH
        }
    }
}

fn check<W: Owned>() {
    let tokens = LENGTHS.iter().sum::<i32>() as usize;
    let clean = numbers(21, tokens * WIDTH);
    for set in InstructionSet::available() {
        for gated in [false, true] {
            for queries in [Queries::EveryToken, Queries::OnePerSequence] {
                let expected = run::<W>(set, gated, queries, &clean);
                assert!(expected.iter().all(|x| x.is_finite()));
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    // In the first token, in the last, and in one between.
                    for token in [0, 20, 13] {
                        let mut hidden = clean.clone();
                        hidden[(LENGTHS[0] as usize + token) * WIDTH + 3] = bad;
                        let output = run::<W>(set, gated, queries, &hidden);
                        for sequence in 0..LENGTHS.len() {
                            let rows = rows(queries, sequence);
                            let case = format!(
                                "{}, gated {gated}, {queries:?}, {bad} at {token}, sequence {sequence}",
                                set.name()
                            );
                            if sequence == DAMAGED {
                                assert!(output[rows].iter().all(|x| x.is_nan()), "{case}");
                            } else {
                                assert_eq!(output[rows.clone()], expected[rows], "{case}");
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_damaged_sequence_is_nan_and_leaves_the_others_as_they_are_in_fp32() {
    check::<Float>();
}

#[test]
fn a_damaged_sequence_is_nan_and_leaves_the_others_as_they_are_in_bf16() {
    check::<Half>();
}

#[test]
fn a_damaged_sequence_is_nan_and_leaves_the_others_as_they_are_in_int8() {
    check::<Byte>();
}
