//! What a layer of a BERT encoder takes, in each arithmetic and with each instruction set: 384 wide, twelve heads,
//! weights from a seed, one core. int8 is measured with and without what is done to inputs before they are quantized.
//!
//! ```sh
//! cargo bench -p rerankd-kernels --bench encoder [-- ROUNDS [SET]]
//! ```

mod support;

use std::hint::black_box;

use rerankd_kernels::attention::{PositionalEncoding, Queries};
use rerankd_kernels::bf16::{self, Bf16};
use rerankd_kernels::compute_pool::ComputePool;
use rerankd_kernels::fp32::{self, Fp32};
use rerankd_kernels::isa::InstructionSet;
use rerankd_kernels::layer::{
    Epilogue, Layer, LayerInput, LayerNorm, Norms, Products, QkvProjection, Scratch, forward,
};
use rerankd_kernels::quantize::{Equalization, Quantized};
use rerankd_kernels::quantized::{self, Int8};
use rerankd_kernels::strips::strips;
use support::{numbers, seconds};

const WIDTH: usize = 384;
const INNER: usize = 1536;
const HEADS: usize = 12;
/// Tokens of a sequence: a pair of sentences, a query and a passage.
const LENGTHS: [usize; 2] = [23, 224];
/// Tokens of a batch, about.
const TOKENS: usize = 1400;

/// A dense layer in every arithmetic.
struct Dense {
    floats: Vec<f32>,
    pairs: Vec<bf16::Pair>,
    quantized: Quantized,
    bias: Vec<f32>,
    equalization: Equalization,
}

impl Dense {
    fn new(inputs: usize, outputs: usize) -> Self {
        let weights = numbers((inputs + outputs) as u64, inputs * outputs);
        let weights: Vec<f32> = weights.iter().map(|x| x * 0.1).collect();
        Self {
            floats: strips(&[&weights], inputs),
            pairs: bf16::strips(&[&weights], inputs),
            quantized: Quantized::new(&[&weights], inputs),
            bias: vec![0.0; outputs],
            equalization: Equalization::of_norm(
                &vec![1.0; inputs],
                &vec![0.0; inputs],
                &[&weights],
            ),
        }
    }

    fn fp32(&self) -> fp32::Matrix<'_> {
        fp32::Matrix {
            strips: &self.floats,
            bias: &self.bias,
        }
    }

    fn bf16(&self) -> bf16::Matrix<'_> {
        bf16::Matrix {
            strips: &self.pairs,
            bias: &self.bias,
        }
    }

    fn plain_int8(&self) -> quantized::Matrix<'_> {
        quantized::Matrix::new(&self.quantized, &self.bias)
    }

    fn equalized_int8(&self) -> quantized::Matrix<'_> {
        quantized::Matrix {
            equalization: Some(quantized::Equalization {
                shifts: &self.equalization.shifts,
                factors: &self.equalization.factors,
            }),
            ..self.plain_int8()
        }
    }
}

struct Weights {
    query: Dense,
    key_value: Dense,
    projection: Dense,
    up: Dense,
    down: Dense,
}

/// Tokens a second of a layer. `normalized` gives the matrices whose inputs LayerNorm writes.
fn tokens_per_second<'a, P: Products>(
    set: InstructionSet,
    rounds: usize,
    weights: &'a Weights,
    length: usize,
    normalized: impl Fn(&'a Dense) -> P::Matrix<'a>,
    other: impl Fn(&'a Dense) -> P::Matrix<'a>,
) -> f64 {
    let norm = LayerNorm {
        gamma: &[1.0; WIDTH],
        beta: &[0.0; WIDTH],
        epsilon: 1e-12,
    };
    let layer = Layer {
        qkv: QkvProjection {
            query: normalized(&weights.query),
            key_value: normalized(&weights.key_value),
            heads: HEADS,
            positions: PositionalEncoding::default(),
        },
        projection: other(&weights.projection),
        norms: Norms::Post {
            attention: norm,
            feed_forward: norm,
        },
        up: normalized(&weights.up),
        activation: Epilogue::Gelu,
        gate: None,
        down: other(&weights.down),
    };
    let lengths = vec![length as i32; TOKENS / length];
    let tokens = lengths.len() * length;
    let hidden = numbers(3, tokens * WIDTH);
    let pool = ComputePool::one_core(set);
    let mut output = vec![0.0; tokens * WIDTH];
    let mut scratch = Scratch::default();
    let input = LayerInput {
        hidden: &hidden,
        lengths: &lengths,
        queries: Queries::EveryToken,
    };
    let fastest = seconds(rounds, || {
        forward::<P>(&pool, &layer, input, &mut scratch, black_box(&mut output));
    });
    tokens as f64 / fastest
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench");
    let rounds = arguments.next().map_or(20, |rounds| {
        rounds.parse().expect("ROUNDS is a whole number")
    });
    let only = arguments.next();
    let weights = Weights {
        query: Dense::new(WIDTH, WIDTH),
        key_value: Dense::new(WIDTH, 2 * WIDTH),
        projection: Dense::new(WIDTH, WIDTH),
        up: Dense::new(WIDTH, INNER),
        down: Dense::new(INNER, WIDTH),
    };
    println!("thousand tokens a second of one layer");
    println!(
        "{:<14}{:>8}{:>10}{:>10}{:>10}{:>12}",
        "set", "tokens", "fp32", "bf16", "int8", "plain int8"
    );
    for set in InstructionSet::available() {
        if only.as_deref().is_some_and(|only| only != set.name()) {
            continue;
        }
        for length in LENGTHS {
            let figures = [
                tokens_per_second::<Fp32>(set, rounds, &weights, length, Dense::fp32, Dense::fp32),
                tokens_per_second::<Bf16>(set, rounds, &weights, length, Dense::bf16, Dense::bf16),
                tokens_per_second::<Int8>(
                    set,
                    rounds,
                    &weights,
                    length,
                    Dense::equalized_int8,
                    Dense::plain_int8,
                ),
                tokens_per_second::<Int8>(
                    set,
                    rounds,
                    &weights,
                    length,
                    Dense::plain_int8,
                    Dense::plain_int8,
                ),
            ];
            print!("{:<14}{length:>8}", set.name());
            for (figure, width) in figures.iter().zip([10, 10, 10, 12]) {
                print!("{:>width$.1}", figure / 1e3);
            }
            println!();
        }
    }
}
