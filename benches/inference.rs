//! Pairs a second of one session, on one thread if not told otherwise: models of two widths with weights
//! from a seed, mixes of lengths, each precision, packed against padded.
//!
//! All variants run in turns, so that a machine that slows down slows them alike; each figure is the
//! median of the rounds.
//!
//! ```sh
//! cargo bench --bench inference [-- ROUNDS [WIDTH [MIX [THREADS]]]]
//! ```

use std::time::Instant;

use rerankd_core::{Batch, Encoding};
use rerankd_kernels::compute_pool::ComputePool;
use rerankd_kernels::isa::InstructionSet;
use rerankd_model::Model;
use rerankd_model::graph::{Precision, Rows};
use rerankd_runtime::Scorer;
use rerankd_runtime::onnx::OnnxScorer;
use support::packed;
use support::saved::Bert;

#[allow(dead_code)]
#[path = "../tests/support"]
mod support {
    pub mod packed;
    pub mod reference;
    pub mod saved;
}

/// Tokens of a packed batch, as the server's default is.
const BATCH_TOKENS: usize = 512;
/// Sequences of a padded batch: of pairs sorted by length, small enough that neighbours are alike.
const PADDED_BATCH: usize = 8;
const WIDTHS: [usize; 2] = [384, 768];
const MIXES: [&str; 7] = [
    "short", "passage", "mixed", "long", "lone", "lone 224", "lone 96",
];

/// Lengths of pairs in tokens, drawn once: sentences as in STS-B, passages as abstracts are, and
/// what fills a model.
fn lengths(mix: &str) -> Vec<usize> {
    let mut state = 7_u64;
    let mut draw = |from: usize, to: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        from + (state >> 33) as usize % (to - from)
    };
    let short: Vec<usize> = (0..32).map(|_| draw(14, 33)).collect();
    // Two draws make the middle likelier than the ends.
    let passages: Vec<usize> = (0..16).map(|_| draw(60, 230) + draw(0, 230)).collect();
    match mix {
        "short" => short,
        "passage" => passages,
        "mixed" => short[..8].iter().chain(&passages[..8]).copied().collect(),
        "long" => vec![512; 4],
        "lone" => vec![512],
        "lone 224" => vec![224],
        "lone 96" => vec![96],
        _ => unreachable!("{mix}"),
    }
}

fn encodings(mix: &str) -> Vec<Encoding> {
    let mut lengths = lengths(mix);
    lengths.sort_unstable();
    let encoding = |length| Encoding {
        // Words that the model has, after the special ones.
        ids: (0..length).map(|i| 4 + i as u32 % 2).collect(),
        type_ids: vec![0; length],
    };
    lengths.into_iter().map(encoding).collect()
}

/// Neighbours in length, up to [`BATCH_TOKENS`] together.
fn packed(encodings: &[Encoding]) -> Vec<Batch> {
    let mut batches = vec![];
    let mut tokens = 0;
    let mut start = 0;
    for (end, encoding) in encodings.iter().enumerate() {
        if tokens + encoding.len() > BATCH_TOKENS && end > start {
            batches.push(Batch::pack(&encodings[start..end]));
            (start, tokens) = (end, 0);
        }
        tokens += encoding.len();
    }
    batches.push(Batch::pack(&encodings[start..]));
    batches
}

/// Sorted by length and filled up to the longest of each batch. The filling is computed like any
/// token, as a masked run does.
fn padded(encodings: &[Encoding]) -> Vec<Batch> {
    let pad = |encoding: &Encoding, longest: usize| {
        let mut encoding = encoding.clone();
        encoding.ids.resize(longest, 0);
        encoding.type_ids.resize(longest, 0);
        encoding
    };
    encodings
        .chunks(PADDED_BATCH)
        .map(|chunk| {
            let longest = chunk.iter().map(Encoding::len).max().unwrap();
            let padded: Vec<Encoding> = chunk.iter().map(|e| pad(e, longest)).collect();
            Batch::pack(&padded)
        })
        .collect()
}

fn model(width: usize, heads: usize, layers: usize) -> Model {
    let directory = Bert {
        layers,
        hidden: width,
        heads,
        intermediate: 4 * width,
        positions: 512,
        vocabulary: 30_522,
    }
    .write();
    Model::open(directory.path()).unwrap()
}

/// How pairs become batches.
type Batching = fn(&[Encoding]) -> Vec<Batch>;

/// One way to score the pairs of a mix.
struct Variant {
    name: String,
    scorer: OnnxScorer,
    batches: Batching,
}

impl Variant {
    fn open(
        model: &Model,
        name: String,
        (rows, precision, set): (Rows, Precision, InstructionSet),
        batches: Batching,
        threads: usize,
    ) -> Self {
        // Our layers borrow cores as they do in the server, which gives ONNX Runtime one thread.
        let session_threads = match precision {
            Precision::Fp32Nodes => threads,
            Precision::Fp32 | Precision::Bf16 | Precision::Int8 => 1,
        };
        let pool = ComputePool::new(threads).unwrap().with_instruction_set(set);
        let onnx = packed::open(model, rows, precision, pool);
        Self {
            name,
            scorer: onnx.session(session_threads).unwrap(),
            batches,
        }
    }

    /// Seconds that all batches take.
    fn time(&mut self, batches: &[Batch]) -> f64 {
        let start = Instant::now();
        for batch in batches {
            drop(self.scorer.score_alone(batch).unwrap());
        }
        start.elapsed().as_secs_f64()
    }
}

/// Microseconds that a layer costs when it has next to nothing to compute: what its nodes cost.
fn overhead(precision: Precision) -> f64 {
    const RUNS: u32 = 2000;
    const LAYERS: [usize; 2] = [2, 26];
    let token = Encoding {
        ids: vec![4],
        type_ids: vec![0],
    };
    let batch = [Batch::pack([&token])];
    let [few, many] = LAYERS.map(|layers| {
        let how = (Rows::FirstOfEach, precision, InstructionSet::best());
        let mut variant = Variant::open(&model(16, 1, layers), String::new(), how, packed, 1);
        let mut times: Vec<f64> = (0..RUNS).map(|_| variant.time(&batch)).collect();
        times.sort_unstable_by(f64::total_cmp);
        times[times.len() / 2]
    });
    (many - few) / (LAYERS[1] - LAYERS[0]) as f64 * 1e6
}

fn main() {
    // Cargo adds `--bench` to what follows its own `--`.
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    let rounds: usize = arguments.next().map_or(7, |n| n.parse().unwrap());
    let width: Option<usize> = arguments.next().map(|n| n.parse().unwrap());
    let mix = arguments.next();
    let threads: usize = arguments.next().map_or(1, |n| n.parse().unwrap());

    println!(
        "one session, threads: {threads}, median of {rounds} rounds in turns \
         (smallest to largest)\n"
    );
    println!("| width | mix | tokens | variant | pairs/s | of packed fp32 |");
    println!("|---|---|---|---|---|---|");
    for width in WIDTHS.into_iter().filter(|&w| width.is_none_or(|x| x == w)) {
        let model = model(width, 12, 6);
        let open = |name: &str, how, batches: Batching| {
            Variant::open(&model, name.to_owned(), how, batches, threads)
        };
        let best = InstructionSet::best();
        let first = Rows::FirstOfEach;
        let mut variants = vec![
            open("padded fp32", (Rows::All, Precision::Fp32, best), padded),
            open("packed fp32", (first, Precision::Fp32, best), packed),
            open(
                "packed fp32 by ONNX Runtime's products",
                (first, Precision::Fp32Nodes, best),
                packed,
            ),
        ];
        for set in InstructionSet::available() {
            if set != best && set.favors_own_fp32() {
                let name = format!("packed fp32 ({})", set.name());
                variants.push(open(&name, (first, Precision::Fp32, set), packed));
            }
            if set.favors_int8() {
                let name = format!("packed int8 ({})", set.name());
                variants.push(open(&name, (first, Precision::Int8, set), packed));
            }
        }
        let mixes = MIXES.into_iter();
        for mix in mixes.filter(|m| mix.as_deref().is_none_or(|x| x == *m)) {
            let encodings = encodings(mix);
            let tokens: usize = encodings.iter().map(Encoding::len).sum();
            let mut seconds = vec![Vec::new(); variants.len()];
            for round in 0..=rounds {
                for (variant, seconds) in variants.iter_mut().zip(&mut seconds) {
                    let time = variant.time(&(variant.batches)(&encodings));
                    // The first round touches the memory.
                    if round > 0 {
                        seconds.push(time);
                    }
                }
            }
            let rate = |seconds: f64| encodings.len() as f64 / seconds;
            for seconds in &mut seconds {
                seconds.sort_unstable_by(f64::total_cmp);
            }
            let fp32 = seconds[1][rounds / 2];
            for (variant, seconds) in variants.iter().zip(&seconds) {
                let median = seconds[rounds / 2];
                println!(
                    "| {width} | {mix} | {tokens} | {} | {:.1} ({:.1} to {:.1}) | {:.2} |",
                    variant.name,
                    rate(median),
                    rate(seconds[rounds - 1]),
                    rate(seconds[0]),
                    fp32 / median,
                );
            }
        }
    }
    println!(
        "\nmicroseconds that the nodes of a layer cost: fp32 {:.1}, int8 {:.1}",
        overhead(Precision::Fp32),
        overhead(Precision::Int8)
    );
}
