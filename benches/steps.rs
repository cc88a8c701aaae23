//! What single steps cost with the embedded model: tokenising, planning, matrix products, and running
//! batches of various shapes.
//!
//! ```sh
//! make bench
//! ```

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rerankd_core::Pair;
use rerankd_core::{Batch, Encoding};
use rerankd_engine::cost::{Cost, Work};
use rerankd_engine::plan::{BatchLimits, Draft, Plan, SHARE_ABOVE};
use rerankd_kernels::compute_pool::ComputePool;
use rerankd_kernels::fp32::{Fp32, Matrix};
use rerankd_kernels::isa::InstructionSet;
use rerankd_kernels::layer::{Epilogue, Operand, Products};
use rerankd_kernels::strips::strips;
use rerankd_model::Model;
use rerankd_model::encoder::PairEncoder;
use rerankd_model::graph::{Precision, Rows};
use rerankd_runtime::Scorer;
use rerankd_runtime::onnx::OnnxScorer;
use support::packed;

#[allow(dead_code)]
#[path = "../tests/support"]
mod support {
    pub mod packed;
}

/// Tokens of a packed batch, as the server's default is.
const BATCH_TOKENS: usize = 512;

/// Lengths of pairs in tokens, drawn once: half of them sentences, half passages.
fn lengths(count: usize) -> Vec<usize> {
    let mut state = 7_u64;
    let mut draw = |from: usize, to: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        from + (state >> 33) as usize % (to - from)
    };
    (0..count)
        .map(|i| match i % 2 {
            0 => draw(14, 40),
            _ => draw(60, 460),
        })
        .collect()
}

fn scorer(model: &Model, threads: usize) -> OnnxScorer {
    let onnx = packed::open(
        model,
        Rows::FirstOfEach,
        Precision::Fp32,
        ComputePool::default(),
    );
    onnx.session(threads).unwrap()
}

/// Whether a session of two threads is worth having for a lone pair, and what a batch gains by being
/// larger.
fn shapes(criterion: &mut Criterion) {
    let model = Model::embedded().unwrap();
    let batch = |lengths: &[usize]| {
        let encoding = |&length: &usize| Encoding {
            ids: vec![2000; length],
            type_ids: vec![0; length],
        };
        Batch::pack(&lengths.iter().map(encoding).collect::<Vec<_>>())
    };
    let mut group = criterion.benchmark_group("shapes");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    for threads in [1, 2] {
        let mut session = scorer(&model, threads);
        for length in [32, 128, 512] {
            let batch = batch(&[length]);
            group.bench_function(
                format!("a pair of {length}, {threads} threads"),
                |bencher| {
                    bencher.iter(|| session.score(&batch).unwrap());
                },
            );
        }
    }
    let mut session = scorer(&model, 1);
    for sequences in [1, 2, 4, 8, 16, 32, 64] {
        let batch = batch(&vec![64; sequences]);
        group.throughput(Throughput::Elements(batch.tokens() as u64));
        group.bench_function(format!("{sequences} pairs of 64"), |bencher| {
            bencher.iter(|| session.score(&batch).unwrap());
        });
    }
    group.finish();
}

/// Products of fp32 on each kind of processor, with what is done to them as they are written. An element
/// is a floating-point operation.
fn products(criterion: &mut Criterion) {
    /// Rows that a layer works on at once.
    const ROWS: usize = 48;
    let mut group = criterion.benchmark_group("products");
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    for (inputs, outputs, finish) in [
        (384, 768, Epilogue::Identity),
        (384, 1536, Epilogue::Identity),
        (384, 1536, Epilogue::Gelu),
        (1536, 384, Epilogue::Identity),
        (3072, 768, Epilogue::Identity),
    ] {
        let weights: Vec<f32> = (0..inputs * outputs)
            .map(|i| (i % 101) as f32 * 1e-3 - 0.05)
            .collect();
        let matrix = Matrix {
            strips: &strips(&[&weights], inputs),
            bias: &vec![0.1; outputs],
        };
        let rows: Vec<f32> = (0..ROWS * inputs).map(|i| (i % 89) as f32 * 0.02).collect();
        let x = Operand {
            rows: &rows,
            inputs,
        };
        let mut output = vec![0.0; ROWS * outputs];
        group.throughput(Throughput::Elements((2 * ROWS * inputs * outputs) as u64));
        for set in InstructionSet::available() {
            let name = format!("{inputs} x {outputs}, {finish:?}, {}", set.name());
            group.bench_function(name, |bencher| {
                bencher.iter(|| Fp32.multiply(set, x, matrix, finish, black_box(&mut output)));
            });
        }
    }
    group.finish();
}

fn tokenising(criterion: &mut Criterion) {
    let encoder = PairEncoder::for_model(&Model::embedded().unwrap()).unwrap();
    let query: Arc<str> = "what makes an aircraft stall at low speed".into();
    let sentence =
        "the flow separates from the upper surface when the angle of attack is too large ";
    let pairs: Vec<Pair> = (0..32)
        .map(|i| Pair {
            query: query.clone(),
            document: sentence.repeat(1 + i % 16).into(),
        })
        .collect();
    let bytes: usize = pairs.iter().map(|pair| pair.document.len()).sum();
    let mut group = criterion.benchmark_group("tokenising");
    group.throughput(Throughput::Bytes(bytes as u64));
    let go_on = AtomicBool::new(false);
    group.bench_function("32 documents", |bencher| {
        bencher.iter(|| encoder.encode(black_box(&pairs), &go_on).unwrap());
    });
    group.finish();

    // What is kept of them is 512 tokens.
    let chinese = "今天天气很好，我们去公园散步。".repeat(90_000);
    let word = "a".repeat(4 << 20);
    let query = encoder.query("what makes an aircraft stall").unwrap();
    let mut group = criterion.benchmark_group("long texts");
    for (name, text) in [("Chinese", &chinese), ("one word", &word)] {
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| encoder.pair(&query, black_box(text)).unwrap());
        });
    }
    group.finish();
}

fn planning(criterion: &mut Criterion) {
    let lengths = lengths(1024);
    let limits = BatchLimits {
        max_tokens: BATCH_TOKENS,
        max_seconds: 0.1,
        share_above: SHARE_ABOVE,
    };
    let waiting = Work::all(lengths.iter().copied());
    let plan = Plan::new(limits, Cost::GUESS, waiting, &[0.0]);
    let mut group = criterion.benchmark_group("planning");
    group.throughput(Throughput::Elements(lengths.len() as u64));
    group.bench_function("1024 sequences", |bencher| {
        bencher.iter(|| {
            let mut draft = Draft::default();
            for &length in black_box(&lengths) {
                if !plan.accepts(&draft, length) {
                    draft = Draft::default();
                }
                draft.add(length, false, 1.0);
            }
            draft.work()
        });
    });
    group.finish();
}

criterion_group!(benches, planning, tokenising, products, shapes);
criterion_main!(benches);
