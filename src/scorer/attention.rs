//! Self-attention over sequences laid end to end: no padding, no mask, no gather.
//!
//! For each sequence and head, keys are transposed once so that a vector register holds one
//! dimension of many keys; blocks of queries then stream over them with all sums in registers.
#![allow(
    unsafe_code,
    reason = "calls functions compiled for wider registers, after asking the processor"
)]

/// Queries of one block, and keys or value dimensions of one step: twelve sums of eight fill the
/// sixteen registers of AVX2 with what they are computed from.
const QUERIES: usize = 6;
const LANES: usize = 16;

/// A column of heads in a matrix whose rows are tokens.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    /// The matrix, row by row.
    pub data: &'a [f32],
    /// Numbers of one row.
    pub stride: usize,
    /// Where in a row the first head begins.
    pub offset: usize,
}

impl<'a> Columns<'a> {
    fn row(&self, token: usize, head: usize, size: usize) -> &'a [f32] {
        let start = token * self.stride + self.offset + head * size;
        &self.data[start..start + size]
    }
}

/// Which queries there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queries {
    /// One for each token.
    EveryToken,
    /// One for each sequence.
    OnePerSequence,
}

/// One call's operands.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// `[tokens or sequences, heads * size]`, already scaled by `1 / sqrt(size)`.
    pub query: Columns<'a>,
    /// Added to every query, `[heads * size]`, scaled likewise. A bias of the keys would add the
    /// same to all scores of a query, which softmax ignores; one of the values adds itself to the
    /// result and belongs to what comes next.
    pub query_bias: &'a [f32],
    /// `[tokens, heads * size]`.
    pub key: Columns<'a>,
    /// `[tokens, heads * size]`.
    pub value: Columns<'a>,
    /// Tokens of each sequence.
    pub lengths: &'a [i32],
    /// Whether every token asks, or only one for each sequence.
    pub queries: Queries,
    /// Number of heads.
    pub heads: usize,
    /// Numbers of one head.
    pub size: usize,
}

/// Memory that one call leaves to the next.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Keys of one head, transposed: `[size, padded tokens]`.
    keys: Vec<f32>,
    /// Values of one head: `[tokens, padded size]`.
    values: Vec<f32>,
    /// Queries of one block: `[size, QUERIES]`.
    queries: Vec<f32>,
    /// Scores of one block: `[QUERIES, padded tokens]`.
    scores: Vec<f32>,
}

/// Writes the context of every query to `output`, `[queries, heads * size]`.
pub fn attend(attention: &Attention<'_>, scratch: &mut Scratch, output: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has just said that it has both features.
        unsafe { attend_avx2(attention, scratch, output) };
        return;
    }
    attend_any::<{ cfg!(target_arch = "aarch64") }>(attention, scratch, output);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn attend_avx2(attention: &Attention<'_>, scratch: &mut Scratch, output: &mut [f32]) {
    attend_any::<true>(attention, scratch, output);
}

/// `FUSED` says that `mul_add` is one instruction here, and not a call.
#[inline(always)]
fn attend_any<const FUSED: bool>(
    attention: &Attention<'_>,
    scratch: &mut Scratch,
    output: &mut [f32],
) {
    let &Attention { heads, size, .. } = attention;
    let width = heads * size;
    let (mut first_token, mut first_query) = (0, 0);
    for &length in attention.lengths {
        let length = length as usize;
        let queries = match attention.queries {
            Queries::EveryToken => length,
            Queries::OnePerSequence => 1,
        };
        let rows = &mut output[first_query * width..(first_query + queries) * width];
        for head in 0..heads {
            scratch.load_head(attention, head, first_token, length);
            for block in (0..queries).step_by(QUERIES) {
                let count = QUERIES.min(queries - block);
                scratch.load_queries(attention, head, first_query + block, count);
                scratch.score::<FUSED>(size, length);
                for row in 0..count {
                    scratch.softmax::<FUSED>(row, length);
                }
                let place = |row| (block + row) * width + head * size;
                scratch.mix::<FUSED>(size, length, count, place, rows);
            }
        }
        first_token += length;
        first_query += queries;
    }
}

fn padded(n: usize) -> usize {
    n.next_multiple_of(LANES)
}

impl Scratch {
    /// Transposes the keys of a head and gathers its values.
    #[inline(always)]
    fn load_head(&mut self, attention: &Attention<'_>, head: usize, first: usize, length: usize) {
        let size = attention.size;
        let (tokens, width) = (padded(length), padded(size));
        self.keys.clear();
        self.keys.resize(size * tokens, 0.0);
        self.values.clear();
        self.values.resize(length * width, 0.0);
        self.scores.resize(QUERIES * tokens, 0.0);
        for token in 0..length {
            let key = attention.key.row(first + token, head, size);
            for (dimension, &number) in key.iter().enumerate() {
                self.keys[dimension * tokens + token] = number;
            }
            let value = attention.value.row(first + token, head, size);
            self.values[token * width..token * width + size].copy_from_slice(value);
        }
    }

    /// Lays the queries of a block side by side, dimension by dimension; absent ones are zero.
    #[inline(always)]
    fn load_queries(&mut self, attention: &Attention<'_>, head: usize, first: usize, count: usize) {
        let size = attention.size;
        let bias = &attention.query_bias[head * size..(head + 1) * size];
        self.queries.clear();
        self.queries.resize(size * QUERIES, 0.0);
        for row in 0..count {
            let query = attention.query.row(first + row, head, size);
            for (dimension, (&number, &bias)) in query.iter().zip(bias).enumerate() {
                self.queries[dimension * QUERIES + row] = number + bias;
            }
        }
    }

    /// Scores of the block against all keys.
    #[inline(always)]
    fn score<const FUSED: bool>(&mut self, size: usize, length: usize) {
        let tokens = padded(length);
        for start in (0..tokens).step_by(LANES) {
            let mut sums = [[0.0_f32; LANES]; QUERIES];
            for dimension in 0..size {
                let keys = lanes(&self.keys, dimension * tokens + start);
                let queries: &[f32; QUERIES] = self.queries
                    [dimension * QUERIES..(dimension + 1) * QUERIES]
                    .try_into()
                    .expect("a block of queries");
                accumulate::<FUSED>(&mut sums, queries, keys);
            }
            for (row, sum) in sums.iter().enumerate() {
                let at = row * tokens + start;
                self.scores[at..at + LANES].copy_from_slice(sum);
            }
        }
    }

    /// Turns the scores of a row into weights that sum to one over the first `length`, zero beyond.
    #[inline(always)]
    fn softmax<const FUSED: bool>(&mut self, row: usize, length: usize) {
        let tokens = padded(length);
        let scores = &mut self.scores[row * tokens..(row + 1) * tokens];
        scores[length..].fill(f32::NEG_INFINITY);
        let mut largest = [f32::NEG_INFINITY; LANES];
        for chunk in scores.chunks_exact(LANES) {
            for (largest, &score) in largest.iter_mut().zip(chunk) {
                *largest = if score > *largest { score } else { *largest };
            }
        }
        let largest = largest.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sums = [0.0_f32; LANES];
        for chunk in scores.chunks_exact_mut(LANES) {
            for (score, sum) in chunk.iter_mut().zip(&mut sums) {
                *score = exp::<FUSED>(*score - largest);
                *sum += *score;
            }
        }
        let scale = 1.0 / sums.iter().sum::<f32>();
        scores[length..].fill(0.0);
        for score in scores.iter_mut() {
            *score *= scale;
        }
    }

    /// Writes the values of the block, mixed by its weights, to `output`.
    #[inline(always)]
    fn mix<const FUSED: bool>(
        &self,
        size: usize,
        length: usize,
        count: usize,
        place: impl Fn(usize) -> usize,
        output: &mut [f32],
    ) {
        let (tokens, width) = (padded(length), padded(size));
        for start in (0..size).step_by(LANES) {
            let mut sums = [[0.0_f32; LANES]; QUERIES];
            for token in 0..length {
                let weights: [f32; QUERIES] =
                    std::array::from_fn(|row| self.scores[row * tokens + token]);
                let values = lanes(&self.values, token * width + start);
                accumulate::<FUSED>(&mut sums, &weights, values);
            }
            let end = LANES.min(size - start);
            for (row, sum) in sums.iter().enumerate().take(count) {
                let at = place(row) + start;
                output[at..at + end].copy_from_slice(&sum[..end]);
            }
        }
    }
}

#[inline(always)]
fn lanes(data: &[f32], start: usize) -> &[f32; LANES] {
    data[start..start + LANES]
        .try_into()
        .expect("a slice of that many")
}

#[inline(always)]
fn accumulate<const FUSED: bool>(
    sums: &mut [[f32; LANES]; QUERIES],
    left: &[f32; QUERIES],
    right: &[f32; LANES],
) {
    for (sums, &left) in sums.iter_mut().zip(left) {
        for (sum, &right) in sums.iter_mut().zip(right) {
            *sum = multiply_add::<FUSED>(left, right, *sum);
        }
    }
}

#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x` for `x <= 0`, to about one unit in the last place; below the smallest normal number, 0 or
/// nearly so. Branch-free, so that it is computed for a register of numbers at once.
#[inline(always)]
fn exp<const FUSED: bool>(x: f32) -> f32 {
    /// Adding it leaves a whole number in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// `ln 2` as a short number, of which multiples are exact, and the rest.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -87.0 { x } else { -87.0 };
    let shifted = multiply_add::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
    let whole = shifted - ROUND;
    let rest = multiply_add::<FUSED>(whole, -LN2_HIGH, x);
    let rest = multiply_add::<FUSED>(whole, -LN2_LOW, rest);
    // Taylor's series; |rest| <= ln 2 / 2 makes the next term smaller than 2^-24.
    let mut sum = 1.0 / 720.0;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = multiply_add::<FUSED>(sum, rest, coefficient);
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    sum * f32::from_bits(exponent.wrapping_add(127) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbers(seed: u64, count: usize) -> Vec<f32> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// The definition, in `f64`.
    fn reference(attention: &Attention<'_>) -> Vec<f32> {
        let &Attention { heads, size, .. } = attention;
        let mut output = Vec::new();
        let (mut first, mut query) = (0, 0);
        for &length in attention.lengths {
            let length = length as usize;
            let queries = match attention.queries {
                Queries::EveryToken => length,
                Queries::OnePerSequence => 1,
            };
            for row in query..query + queries {
                for head in 0..heads {
                    let q = attention.query.row(row, head, size);
                    let bias = &attention.query_bias[head * size..];
                    let scores: Vec<f64> = (first..first + length)
                        .map(|token| {
                            let key = attention.key.row(token, head, size);
                            let pairs = q.iter().zip(bias).zip(key);
                            pairs
                                .map(|((q, b), k)| f64::from(q + b) * f64::from(*k))
                                .sum()
                        })
                        .collect();
                    let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    for dimension in 0..size {
                        let mixed: f64 = (0..length)
                            .map(|token| {
                                let value = attention.value.row(first + token, head, size);
                                weights[token] * f64::from(value[dimension])
                            })
                            .sum();
                        output.push((mixed / sum) as f32);
                    }
                }
            }
            first += length;
            query += queries;
        }
        output
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_is_softmax_attention(
            lengths in prop::collection::vec(1_i32..80, 1..6),
            heads in 1_usize..4,
            size in prop::sample::select(vec![1_usize, 8, 20, 32, 64]),
            every_token in any::<bool>(),
            spread in 0.1_f32..8.0,
            seed in any::<u64>(),
        ) {
            let tokens: i32 = lengths.iter().sum();
            let width = heads * size;
            let queries = if every_token { Queries::EveryToken } else { Queries::OnePerSequence };
            let rows = if every_token { tokens as usize } else { lengths.len() };
            let query: Vec<f32> = numbers(seed, rows * width).iter().map(|n| n * spread).collect();
            let kv = numbers(seed ^ 0x5555, tokens as usize * 2 * width);
            let attention = Attention {
                query: Columns { data: &query, stride: width, offset: 0 },
                query_bias: &numbers(seed ^ 0x77, width),
                key: Columns { data: &kv, stride: 2 * width, offset: 0 },
                value: Columns { data: &kv, stride: 2 * width, offset: width },
                lengths: &lengths,
                queries,
                heads,
                size,
            };
            let expected = reference(&attention);
            // Whatever a call before left in the memory must not show.
            let mut scratch = Scratch { scores: vec![f32::NAN; 7], ..Scratch::default() };
            let mut fused = vec![f32::NAN; expected.len()];
            attend(&attention, &mut scratch, &mut fused);
            let mut plain = vec![f32::NAN; expected.len()];
            attend_any::<false>(&attention, &mut scratch, &mut plain);
            for ((fused, plain), expected) in fused.iter().zip(&plain).zip(&expected) {
                prop_assert!((fused - expected).abs() < 2e-5, "{} for {}", fused, expected);
                prop_assert!((plain - expected).abs() < 2e-5, "{} for {}", plain, expected);
            }
        }

        #[test]
        fn exp_is_close(x in -100.0_f32..0.0) {
            let exact = f64::from(x).exp();
            let ours = f64::from(exp::<true>(x));
            prop_assert!((ours - exact).abs() <= 3e-7 * exact + 1e-37);
        }
    }

    #[test]
    fn exp_of_zero_is_one() {
        assert_eq!(exp::<true>(0.0), 1.0);
        assert!(exp::<true>(f32::NEG_INFINITY) < 1e-37);
    }
}
