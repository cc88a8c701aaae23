use super::*;
use crate::layer::tests::{Byte, Float, Half, Owned};
use crate::testing::numbers;

const WIDTH: usize = 12;
const INNER: usize = 20;
const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const SIZE: usize = 8;
const POSITIONS: usize = 64;
const EPSILON: f32 = 1e-3;

/// A mistake that the definition makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    RotaryOffByOne,
    RotaryInterleaved,
    WrongKvHead,
    NoQueryNorm,
    NoKeyNorm,
    Epsilon,
    NotCausal,
    NoScale,
}

struct Weights {
    query: Vec<f32>,
    key_value: Vec<f32>,
    projection: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    down: Vec<f32>,
    query_bias: Vec<f32>,
    key_value_bias: Vec<f32>,
    norms: [Vec<f32>; 2],
    head_norms: [Vec<f32>; 2],
    rotary: Vec<f32>,
}

impl Weights {
    fn new() -> Self {
        let positive = |seed, count| numbers(seed, count).iter().map(|x| 1.5 + x).collect();
        let angle = |place: usize, i: usize| place as f32 / 2_f32.powi(i as i32);
        let rotary = (0..POSITIONS).flat_map(|place| {
            let cosines = (0..SIZE / 2).map(move |i| angle(place, i).cos());
            cosines.chain((0..SIZE / 2).map(move |i| angle(place, i).sin()))
        });
        Self {
            query: numbers(1, HEADS * SIZE * WIDTH),
            key_value: numbers(3, 2 * KV_HEADS * SIZE * WIDTH),
            projection: numbers(5, WIDTH * HEADS * SIZE),
            gate: numbers(7, INNER * WIDTH),
            up: numbers(9, INNER * WIDTH),
            down: numbers(11, WIDTH * INNER),
            query_bias: numbers(13, HEADS * SIZE),
            key_value_bias: numbers(15, 2 * KV_HEADS * SIZE),
            norms: [positive(17, WIDTH), positive(19, WIDTH)],
            head_norms: [positive(21, SIZE), positive(23, SIZE)],
            rotary: rotary.collect(),
        }
    }

    fn run<W: Owned>(
        &self,
        pool: &ComputePool,
        segments: &[Segment],
        asked: Asked,
        hidden: &[f32],
    ) -> Vec<f32> {
        let dense =
            |weights: &[f32], inputs: usize, bias: &[f32]| W::new(weights, inputs, bias.to_vec());
        let no_bias = |outputs| vec![0.0; outputs];
        let query = dense(&self.query, WIDTH, &self.query_bias);
        let key_value = dense(&self.key_value, WIDTH, &self.key_value_bias);
        let projection = dense(&self.projection, HEADS * SIZE, &no_bias(WIDTH));
        let gate = dense(&self.gate, WIDTH, &no_bias(INNER));
        let up = dense(&self.up, WIDTH, &no_bias(INNER));
        let down = dense(&self.down, INNER, &no_bias(WIDTH));
        let norm = |weight| RmsNorm {
            weight,
            epsilon: EPSILON,
        };
        let layer = DecoderLayer {
            attention_norm: norm(&self.norms[0]),
            qkv: QkvProjection {
                query: query.matrix(),
                key_value: key_value.matrix(),
                query_norm: Some(norm(&self.head_norms[0])),
                key_norm: Some(norm(&self.head_norms[1])),
                heads: HEADS,
                kv_heads: KV_HEADS,
                size: SIZE,
                rotary: &self.rotary,
                window: None,
            },
            projection: projection.matrix(),
            feed_forward_norm: norm(&self.norms[1]),
            gate: gate.matrix(),
            activation: Epilogue::Silu,
            up: up.matrix(),
            down: down.matrix(),
        };
        let rows = match asked {
            Asked::EveryRow => hidden.len() / WIDTH,
            Asked::LastRows => segments.iter().filter(|s| s.scored).count(),
        };
        let mut output = vec![f32::NAN; rows * WIDTH];
        decode::<W::Products>(
            pool,
            &layer,
            DecoderInput {
                hidden,
                segments,
                kept: &[],
                asked,
            },
            &mut DecoderScratch::default(),
            &mut output,
        );
        output
    }

    /// The definition for one sequence, in `f64`, with a `mistake`: `[rows, WIDTH]`.
    fn reference(&self, hidden: &[f32], mistake: Mistake) -> Vec<f64> {
        let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| f64::from(x)).collect() };
        let norm = |x: &[f64], weight: &[f32]| -> Vec<f64> {
            let epsilon = match mistake {
                Mistake::Epsilon => 0.0,
                _ => f64::from(EPSILON),
            };
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let scaled = x.iter().map(|x| x / (mean + epsilon).sqrt());
            scaled.zip(weight).map(|(x, &w)| x * f64::from(w)).collect()
        };
        let dense = |x: &[f64], weights: &[f32], bias: Option<&[f32]>| -> Vec<f64> {
            let rows = weights.chunks_exact(x.len()).enumerate();
            rows.map(|(i, row)| {
                let sum: f64 = row.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum();
                sum + bias.map_or(0.0, |bias| f64::from(bias[i]))
            })
            .collect()
        };
        let rotated = |x: &[f64], place: usize| -> Vec<f64> {
            let place = place + usize::from(mistake == Mistake::RotaryOffByOne && place > 2);
            let row = wide(&self.rotary[place * SIZE..][..SIZE]);
            let half = SIZE / 2;
            (0..SIZE)
                .map(|i| match mistake {
                    Mistake::RotaryInterleaved if i % 2 == 0 => {
                        x[i] * row[i / 2] - x[i + 1] * row[half + i / 2]
                    }
                    Mistake::RotaryInterleaved => x[i] * row[i / 2] + x[i - 1] * row[half + i / 2],
                    _ if i < half => x[i] * row[i] - x[i + half] * row[i + half],
                    _ => x[i] * row[i - half] + x[i - half] * row[i],
                })
                .collect()
        };
        let (mut keys, mut values, mut output) = (Vec::new(), Vec::new(), Vec::new());
        let rows: Vec<Vec<f64>> = hidden.chunks_exact(WIDTH).map(wide).collect();
        for (place, row) in rows.iter().enumerate() {
            let x = norm(row, &self.norms[0]);
            let kv = dense(&x, &self.key_value, Some(&self.key_value_bias));
            let (key, value) = kv.split_at(KV_HEADS * SIZE);
            let heads = key.chunks_exact(SIZE).map(|head| match mistake {
                Mistake::NoKeyNorm => rotated(head, place),
                _ => rotated(&norm(head, &self.head_norms[1]), place),
            });
            keys.push(heads.collect::<Vec<_>>());
            let heads = value.chunks_exact(SIZE).map(<[f64]>::to_vec);
            values.push(heads.collect::<Vec<_>>());
        }
        for (place, row) in rows.iter().enumerate() {
            let x = norm(row, &self.norms[0]);
            let queries = dense(&x, &self.query, Some(&self.query_bias));
            let mut context = Vec::new();
            for (head, query) in queries.chunks_exact(SIZE).enumerate() {
                let query = match mistake {
                    Mistake::NoQueryNorm => rotated(query, place),
                    _ => rotated(&norm(query, &self.head_norms[0]), place),
                };
                let kv_head = match mistake {
                    Mistake::WrongKvHead => head % KV_HEADS,
                    _ => head * KV_HEADS / HEADS,
                };
                let seen = match mistake {
                    Mistake::NotCausal => rows.len(),
                    _ => place + 1,
                };
                let scale = match mistake {
                    Mistake::NoScale => 1.0,
                    _ => (SIZE as f64).sqrt(),
                };
                let score = |at: usize| {
                    let products = query.iter().zip(&keys[at][kv_head]);
                    (products.map(|(q, k)| q * k).sum::<f64>() / scale).exp()
                };
                let weights: Vec<f64> = (0..seen).map(score).collect();
                let sum: f64 = weights.iter().sum();
                context.extend((0..SIZE).map(|i| {
                    let mixed = weights.iter().zip(&values);
                    mixed.map(|(w, values)| w * values[kv_head][i]).sum::<f64>() / sum
                }));
            }
            let attended = dense(&context, &self.projection, None);
            let attended: Vec<f64> = attended.iter().zip(row).map(|(x, y)| x + y).collect();
            let x = norm(&attended, &self.norms[1]);
            let gate = dense(&x, &self.gate, None);
            let up = dense(&x, &self.up, None);
            let gated = gate
                .iter()
                .zip(up)
                .map(|(g, up)| g / (1.0 + (-g).exp()) * up);
            let down = dense(&gated.collect::<Vec<_>>(), &self.down, None);
            output.extend(down.iter().zip(attended).map(|(x, y)| x + y));
        }
        output
    }
}

/// Sequences one after the other, without a prefix.
fn apart(lengths: &[usize]) -> Vec<Segment> {
    let mut start = 0;
    let segment = |&length: &usize| {
        start += length;
        Segment {
            start: start - length,
            length,
            prefix_start: None,
            prefix_length: 0,
            scored: true,
        }
    };
    lengths.iter().map(segment).collect()
}

/// The largest difference of a layer from the definition with a mistake.
fn off(mistake: Mistake) -> f64 {
    let weights = Weights::new();
    let lengths = [1, 23, 7];
    let hidden: Vec<f32> = numbers(31, 31 * WIDTH).iter().map(|x| 0.2 * x).collect();
    let segments = apart(&lengths);
    let mut worst: f64 = 0.0;
    for set in InstructionSet::available() {
        let ours = weights.run::<Float>(
            &ComputePool::one_core(set),
            &segments,
            Asked::EveryRow,
            &hidden,
        );
        for segment in &segments {
            let rows = segment.start * WIDTH..(segment.start + segment.length) * WIDTH;
            let expected = weights.reference(&hidden[rows.clone()], mistake);
            for (ours, expected) in ours[rows].iter().zip(expected) {
                worst = worst.max((f64::from(*ours) - expected).abs());
            }
        }
    }
    worst
}

#[test]
fn it_is_a_decoder_layer() {
    let off = off(Mistake::None);
    assert!(off < 1e-4, "{off}");
}

#[test]
fn mistakes_are_noticed() {
    for mistake in [
        Mistake::RotaryOffByOne,
        Mistake::RotaryInterleaved,
        Mistake::WrongKvHead,
        Mistake::NoQueryNorm,
        Mistake::NoKeyNorm,
        Mistake::Epsilon,
        Mistake::NotCausal,
        Mistake::NoScale,
    ] {
        let off = off(mistake);
        assert!(off > 1e-3, "{mistake:?}: {off}");
    }
}

fn check_company<W: Owned>() {
    const PREFIX: usize = 13;
    const OWN: [usize; 4] = [5, 21, 1, 9];
    let weights = Weights::new();
    let prefix = numbers(41, PREFIX * WIDTH);
    let own: Vec<Vec<f32>> = OWN
        .iter()
        .map(|&n| numbers(43 + n as u64, n * WIDTH))
        .collect();
    let mut segments = vec![Segment {
        start: 0,
        length: PREFIX,
        prefix_start: None,
        prefix_length: 0,
        scored: false,
    }];
    let mut start = PREFIX;
    for length in OWN {
        segments.push(Segment {
            start,
            length,
            prefix_start: Some(0),
            prefix_length: PREFIX,
            scored: true,
        });
        start += length;
    }
    let hidden = [&prefix[..], &own.concat()].concat();
    for set in InstructionSet::available() {
        let pool = ComputePool::one_core(set);
        let together = weights.run::<W>(&pool, &segments, Asked::LastRows, &hidden);
        let every = weights.run::<W>(&pool, &segments, Asked::EveryRow, &hidden);
        for (sequence, own) in own.iter().enumerate() {
            let alone = [&prefix[..], own].concat();
            let segment = apart(&[PREFIX + OWN[sequence]]);
            let last = weights.run::<W>(&pool, &segment, Asked::LastRows, &alone);
            assert_eq!(
                together[sequence * WIDTH..][..WIDTH],
                last,
                "{}",
                set.name()
            );
            let rows = weights.run::<W>(&pool, &segment, Asked::EveryRow, &alone);
            let at = segments[sequence + 1].start * WIDTH;
            assert_eq!(
                every[at..][..own.len()],
                rows[PREFIX * WIDTH..],
                "{}",
                set.name()
            );
            assert_eq!(rows[rows.len() - WIDTH..], last, "{}", set.name());
        }
        // A damaged sequence is not a number, and leaves the others as they are.
        for bad in [f32::NAN, f32::INFINITY] {
            let mut damaged = hidden.clone();
            damaged[(PREFIX + OWN[0] + 3) * WIDTH + 1] = bad;
            let output = weights.run::<W>(&pool, &segments, Asked::LastRows, &damaged);
            for (sequence, (output, clean)) in output
                .chunks_exact(WIDTH)
                .zip(together.chunks_exact(WIDTH))
                .enumerate()
            {
                match sequence {
                    1 => assert!(output.iter().all(|x| x.is_nan())),
                    _ => assert_eq!(output, clean),
                }
            }
        }
    }
}

#[test]
fn company_and_a_shared_prefix_change_no_bit_in_fp32() {
    check_company::<Float>();
}

#[test]
fn company_and_a_shared_prefix_change_no_bit_in_bf16() {
    check_company::<Half>();
}

#[test]
fn company_and_a_shared_prefix_change_no_bit_in_int8() {
    check_company::<Byte>();
}

#[test]
fn chunks_are_about_equal() {
    for rows in 1..2000 {
        let chunk = chunk_rows(rows);
        assert!(chunk <= CHUNK && chunk.is_multiple_of(ROUND), "{rows}");
        let chunks = rows.div_ceil(chunk);
        assert!(chunks <= rows.div_ceil(CHUNK), "{rows}");
    }
}

#[test]
fn cores_change_no_bit() {
    let weights = Weights::new();
    let hidden = numbers(51, 40 * 50 * WIDTH);
    let segments = apart(&[50; 40]);
    let set = InstructionSet::best();
    let expected = weights.run::<Float>(
        &ComputePool::one_core(set),
        &segments,
        Asked::EveryRow,
        &hidden,
    );
    let pool = ComputePool::new(3).unwrap().with_instruction_set(set);
    let ours = pool.run_alone(2000, || {
        weights.run::<Float>(&pool, &segments, Asked::EveryRow, &hidden)
    });
    assert_eq!(ours, expected);
}
