//! How close the matrix products of a decoder come to the processor's peak, and what a whole layer takes: shapes of
//! Qwen3-Reranker-0.6B, weights from a seed, one core.
//!
//! ```sh
//! cargo bench -p rerankd-kernels --bench decoder [-- ROUNDS [SET]]
//! ```
#![allow(
    unsafe_code,
    reason = "measures instructions that not every processor has, after detecting them"
)]

mod support;

use std::hint::black_box;

use rerankd_kernels::compute_pool::ComputePool;
use rerankd_kernels::fp32::{Fp32, Matrix, WidenedBf16, WidenedMatrix};
use rerankd_kernels::isa::InstructionSet;
use rerankd_kernels::layer::decoder::{
    Asked, DecoderInput, DecoderLayer, DecoderScratch, QkvProjection, RmsNorm, Segment, decode,
};
use rerankd_kernels::layer::{Epilogue, Operand, Products};
use rerankd_kernels::quantize::Quantized;
use rerankd_kernels::quantized::{self, Int8};
use rerankd_kernels::strips::strips;
use support::{numbers, seconds};

const WIDTH: usize = 1024;
const INNER: usize = 3072;
const HEADS: usize = 16;
const KV_HEADS: usize = 8;
const SIZE: usize = 128;
const POSITIONS: usize = 1024;
/// Tokens of the prefix that documents share: template, instruction, and a query of 20 tokens.
const PREFIX: usize = 82;
/// Tokens behind a document.
const SUFFIX: usize = 9;
/// Numbers that are multiplied into sums at once, to find the peak: more than the latency of an instruction hides.
const CHAINS: usize = 24;

/// Operations a second, a multiplication and an addition counted as two, of instructions on registers alone: fp32,
/// then int8. `None` where the products use no such instructions.
#[cfg(target_arch = "x86_64")]
fn peaks(rounds: usize, set: InstructionSet) -> [Option<f64>; 2] {
    use std::arch::x86_64::*;
    const STEPS: usize = 2_000_000;

    #[target_feature(enable = "avx512f")]
    fn fp32_512() {
        let x = _mm512_set1_ps(black_box(1e-3));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(x, x, *sum);
            }
        }
        black_box(sums);
    }
    #[target_feature(enable = "avx2,fma")]
    fn fp32_256() {
        const CHAINS: usize = 12;
        let x = _mm256_set1_ps(black_box(1e-3));
        let mut sums = [_mm256_setzero_ps(); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(x, x, *sum);
            }
        }
        black_box(sums);
    }
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn int8_512() {
        let x = _mm512_set1_epi32(black_box(0x0101_0101));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        black_box(sums);
    }
    #[target_feature(enable = "avx2")]
    fn int8_256() {
        const CHAINS: usize = 12;
        let x = _mm256_set1_epi16(black_box(1));
        let mut sums = [_mm256_setzero_si256(); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(x, black_box(x)));
            }
        }
        black_box(sums);
    }
    let rate = |operations: usize, run: &dyn Fn()| {
        Some((operations * STEPS) as f64 / seconds(rounds, run))
    };
    // SAFETY: the processor has the instructions of the set.
    let fp32 = match set.name() {
        "avx512" | "avx512-vnni" | "avx512-bf16" | "amx" => {
            rate(2 * 16 * CHAINS, &|| unsafe { fp32_512() })
        }
        "avx2" | "avx-vnni" => rate(2 * 8 * 12, &|| unsafe { fp32_256() }),
        _ => None,
    };
    // SAFETY: likewise.
    let int8 = match set.name() {
        "avx512-vnni" | "avx512-bf16" => rate(2 * 64 * CHAINS, &|| unsafe { int8_512() }),
        "avx2" | "avx512" => rate(2 * 16 * 12, &|| unsafe { int8_256() }),
        _ => None,
    };
    [fp32, int8]
}

#[cfg(not(target_arch = "x86_64"))]
fn peaks(_: usize, _: InstructionSet) -> [Option<f64>; 2] {
    [None; 2]
}

/// Dense layers of `[outputs, inputs]`, in every arithmetic.
struct Weights {
    floats: Vec<f32>,
    halves: Vec<u16>,
    quantized: Quantized,
    bias: Vec<f32>,
}

impl Weights {
    fn new(inputs: usize, outputs: usize) -> Self {
        let weights: Vec<f32> = numbers((inputs + outputs) as u64, inputs * outputs)
            .iter()
            .map(|x| f32::from_bits((x * 0.03).to_bits() & 0xffff_0000))
            .collect();
        let floats = strips(&[&weights], inputs);
        Self {
            halves: floats.iter().map(|x| (x.to_bits() >> 16) as u16).collect(),
            floats,
            quantized: Quantized::new(&[&weights], inputs),
            bias: vec![0.0; outputs],
        }
    }

    fn fp32(&self) -> Matrix<'_> {
        Matrix {
            strips: &self.floats,
            bias: &self.bias,
        }
    }

    fn bf16(&self) -> WidenedMatrix<'_> {
        WidenedMatrix {
            strips: &self.halves,
            bias: &self.bias,
        }
    }

    fn int8(&self) -> quantized::Matrix<'_> {
        quantized::Matrix::new(&self.quantized, &self.bias)
    }
}

/// Operations a second of a product, its operand's preparation included.
fn product<P: Products>(
    set: InstructionSet,
    rounds: usize,
    shape: [usize; 3],
    matrix: P::Matrix<'_>,
) -> f64 {
    let [rows, inputs, outputs] = shape;
    let x = numbers(7, rows * inputs);
    let x = Operand { rows: &x, inputs };
    let mut output = vec![0.0; rows * outputs];
    let mut products = P::default();
    let seconds = seconds(rounds, || {
        products.dense(set, x, matrix, Epilogue::Identity, black_box(&mut output));
    });
    (2 * rows * inputs * outputs) as f64 / seconds
}

/// One layer's weights.
struct LayerWeights {
    query: Weights,
    key_value: Weights,
    projection: Weights,
    gate: Weights,
    up: Weights,
    down: Weights,
}

/// Seconds of a layer over so many documents of `length` tokens behind a shared prefix.
fn layer<'a, P: Products>(
    pool: &ComputePool,
    rounds: usize,
    weights: &'a LayerWeights,
    [documents, length]: [usize; 2],
    matrix: impl Fn(&'a Weights) -> P::Matrix<'a>,
) -> f64 {
    let ones = vec![1.0; WIDTH];
    let norm = |width: usize| RmsNorm {
        weight: &ones[..width],
        epsilon: 1e-6,
    };
    let rotary: Vec<f32> = (0..POSITIONS * SIZE)
        .map(|at| {
            let angle = (at / SIZE) as f32 * 1e6_f32.powf(-((at % (SIZE / 2)) as f32) / 64.0);
            if at % SIZE < SIZE / 2 {
                angle.cos()
            } else {
                angle.sin()
            }
        })
        .collect();
    let layer = DecoderLayer {
        attention_norm: norm(WIDTH),
        qkv: QkvProjection {
            query: matrix(&weights.query),
            key_value: matrix(&weights.key_value),
            query_norm: Some(norm(SIZE)),
            key_norm: Some(norm(SIZE)),
            heads: HEADS,
            kv_heads: KV_HEADS,
            size: SIZE,
            rotary: &rotary,
            window: None,
        },
        projection: matrix(&weights.projection),
        feed_forward_norm: norm(WIDTH),
        gate: matrix(&weights.gate),
        activation: Epilogue::Silu,
        up: matrix(&weights.up),
        down: matrix(&weights.down),
    };
    let segment = |start, length, prefix_length, scored| Segment {
        start,
        length,
        prefix_length,
        prefix_start: Some(0),
        scored,
    };
    let mut segments = vec![segment(0, PREFIX, 0, false)];
    let documents = 0..documents;
    segments.extend(documents.map(|at| segment(PREFIX + at * length, length, PREFIX, true)));
    let rows: usize = segments.iter().map(|segment| segment.length).sum();
    let hidden = numbers(3, rows * WIDTH);
    let mut output = vec![0.0; rows * WIDTH];
    let mut scratch = DecoderScratch::default();
    let input = DecoderInput {
        hidden: &hidden,
        segments: &segments,
        kept: &[],
        asked: Asked::EveryRow,
    };
    seconds(rounds, || {
        decode::<P>(pool, &layer, input, &mut scratch, black_box(&mut output));
    })
}

fn main() {
    // Cargo adds `--bench` to what follows its own `--`.
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    let rounds: usize = arguments.next().map_or(9, |n| n.parse().unwrap());
    let named = arguments.next();
    let mut sets = InstructionSet::available().into_iter();
    let set = sets.find(|set| named.as_ref().is_none_or(|name| set.name() == name));
    let set = set.expect("the processor has this instruction set");
    let pool = ComputePool::one_core(set);
    let [fp32, int8] = peaks(rounds, set).map(|peak| peak.unwrap_or(f64::NAN));
    println!(
        "{}, one core, fastest of {rounds} runs; peak {:.1} GFLOPS in fp32, {:.1} GOPS in int8\n",
        set.name(),
        fp32 * 1e-9,
        int8 * 1e-9
    );
    println!("| product | rows | fp32 | of peak | bf16 weights | of peak | int8 | of peak |");
    println!("|---|---|---|---|---|---|---|---|");
    for (inputs, outputs) in [
        (WIDTH, HEADS * SIZE),
        (HEADS * SIZE, WIDTH),
        (WIDTH, INNER),
        (INNER, WIDTH),
    ] {
        let weights = Weights::new(inputs, outputs);
        for rows in [59, 256, 512] {
            let shape = [rows, inputs, outputs];
            let rates = [
                (product::<Fp32>(set, rounds, shape, weights.fp32()), fp32),
                (
                    product::<WidenedBf16>(set, rounds, shape, weights.bf16()),
                    fp32,
                ),
                (product::<Int8>(set, rounds, shape, weights.int8()), int8),
            ];
            let cells =
                rates.map(|(rate, peak)| format!("{:.1} | {:.3}", rate * 1e-9, rate / peak));
            println!("| {inputs} x {outputs} | {rows} | {} |", cells.join(" | "));
        }
    }

    let weights = LayerWeights {
        query: Weights::new(WIDTH, HEADS * SIZE),
        key_value: Weights::new(WIDTH, 2 * KV_HEADS * SIZE),
        projection: Weights::new(HEADS * SIZE, WIDTH),
        gate: Weights::new(WIDTH, INNER),
        up: Weights::new(WIDTH, INNER),
        down: Weights::new(INNER, WIDTH),
    };
    let multiplied = WIDTH * SIZE * (2 * HEADS + 2 * KV_HEADS) + 3 * WIDTH * INNER;
    println!("\nA layer over a shared prefix of {PREFIX} tokens and documents behind it, ms:\n");
    println!("| documents | fp32 | of peak | bf16 weights | of peak | int8 | of peak |");
    println!("|---|---|---|---|---|---|---|");
    for shape in [[7, 50], [2, 200], [1, 500]] {
        let shape = [shape[0], shape[1] + SUFFIX];
        let rows = PREFIX + shape[0] * shape[1];
        let operations = (2 * multiplied * rows) as f64;
        let times = [
            (
                layer::<Fp32>(&pool, rounds, &weights, shape, Weights::fp32),
                fp32,
            ),
            (
                layer::<WidenedBf16>(&pool, rounds, &weights, shape, Weights::bf16),
                fp32,
            ),
            (
                layer::<Int8>(&pool, rounds, &weights, shape, Weights::int8),
                int8,
            ),
        ];
        let cells = times
            .map(|(time, peak)| format!("{:.1} | {:.3}", time * 1e3, operations / time / peak));
        println!("| {} of {} | {} |", shape[0], shape[1], cells.join(" | "));
    }
}
