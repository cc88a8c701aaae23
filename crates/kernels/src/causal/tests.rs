use super::*;
use crate::testing::numbers;
use proptest::prelude::*;

/// The definition, in `f64`.
fn reference(attention: &CausalAttention<'_>) -> Vec<f32> {
    let &CausalAttention {
        heads,
        kv_heads,
        size,
        ..
    } = attention;
    let width = kv_heads * size;
    let mut output = Vec::new();
    let mut query = 0;
    for segment in attention.segments {
        let first = segment.prefix_start.unwrap_or(0);
        let shared = first..first + segment.prefix_length;
        let own = segment.start..segment.start + segment.length;
        let rows: Vec<usize> = shared.chain(own).collect();
        let first = match (attention.asked, segment.scored) {
            (Asked::EveryRow, _) => segment.prefix_length,
            (Asked::LastRows, true) => rows.len() - 1,
            (Asked::LastRows, false) => continue,
        };
        for place in first..rows.len() {
            let from = attention
                .window
                .map_or(0, |w| (place + 1).saturating_sub(w));
            for head in 0..heads {
                let kv_head = head * kv_heads / heads;
                let number = |row: usize, offset: usize, i: usize| {
                    f64::from(attention.keys[row * 2 * width + offset + kv_head * size + i])
                };
                let q = &attention.queries[(query * heads + head) * size..][..size];
                let seen = &rows[from..=place];
                let score = |&row: &usize| -> f64 {
                    let products = q.iter().enumerate();
                    products
                        .map(|(i, &q)| f64::from(q) * number(row, 0, i))
                        .sum()
                };
                let scores: Vec<f64> = seen.iter().map(score).collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for i in 0..size {
                    let mixed = seen.iter().zip(&weights);
                    let mixed: f64 = mixed.map(|(&row, w)| w * number(row, width, i)).sum();
                    output.push((mixed / sum) as f32);
                }
            }
            query += 1;
        }
    }
    output
}

/// Sequences of a shared prefix and so many tokens of their own; the prefix comes first.
fn shared(prefix: usize, own: &[usize]) -> Vec<Segment> {
    let mut segments = Vec::new();
    if prefix > 0 {
        segments.push(Segment {
            start: 0,
            length: prefix,
            prefix_start: None,
            prefix_length: 0,
            scored: false,
        });
    }
    let mut start = prefix;
    for &length in own {
        segments.push(Segment {
            start,
            length,
            prefix_start: Some(0),
            prefix_length: prefix,
            scored: true,
        });
        start += length;
    }
    segments
}

/// One row that stands for each row of `segments`, where every sequence has a prefix of its own, and the segments
/// of those.
fn unshared(prefix: usize, own: &[usize]) -> (Vec<usize>, Vec<Segment>) {
    let (mut rows, mut segments) = (Vec::new(), Vec::new());
    let mut next = prefix;
    for &length in own {
        segments.push(Segment {
            start: rows.len(),
            length: prefix + length,
            prefix_start: None,
            prefix_length: 0,
            scored: true,
        });
        rows.extend((0..prefix).chain(next..next + length));
        next += length;
    }
    (rows, segments)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn it_is_causal_softmax_attention(
        prefix in 0_usize..40,
        own in prop::collection::vec(1_usize..40, 1..5),
        (heads, kv_heads) in prop::sample::select(vec![(1, 1), (3, 1), (3, 3), (6, 2), (14, 2), (8, 1), (40, 1)]),
        size in prop::sample::select(vec![2_usize, 6, 8, 32]),
        every_row in any::<bool>(),
        window in prop::option::of(1_usize..50),
        spread in 0.1_f32..8.0,
        part in any::<(prop::sample::Index, prop::sample::Index)>(),
        seed in any::<u64>(),
    ) {
        let segments = shared(prefix, &own);
        let rows: usize = segments.iter().map(|segment| segment.length).sum();
        let asked = if every_row { Asked::EveryRow } else { Asked::LastRows };
        let count = if every_row { rows } else { own.len() };
        let width = heads * size;
        let queries: Vec<f32> = numbers(seed, count * width).iter().map(|n| n * spread).collect();
        let keys = numbers(seed ^ 0x5555, rows * 2 * kv_heads * size);
        let attention = CausalAttention {
            queries: &queries,
            keys: &keys,
            kept: &[],
            segments: &segments,
            asked,
            heads,
            kv_heads,
            size,
            window,
        };
        let expected = reference(&attention);
        // Whatever a call before left in the memory must not show.
        let mut scratch = Scratch { scores: vec![f32::NAN; 7], ..Scratch::default() };
        // The same with a prefix for each sequence.
        let (stands_for, apart) = unshared(prefix, &own);
        let copied = |numbers: &[f32], width: usize| -> Vec<f32> {
            stands_for.iter().flat_map(|&row| numbers[row * width..][..width].to_vec()).collect()
        };
        let their_queries = if every_row { copied(&queries, width) } else { queries.clone() };
        let their_keys = copied(&keys, 2 * kv_heads * size);
        let alone = CausalAttention {
            queries: &their_queries,
            keys: &their_keys,
            segments: &apart,
            ..attention
        };
        for set in InstructionSet::available() {
            let mut ours = vec![f32::NAN; expected.len()];
            attend(set, &attention, 0, &mut scratch, &mut ours);
            for (ours, expected) in ours.iter().zip(&expected) {
                let off = (ours - expected).abs();
                prop_assert!(off < 2e-5, "{}: {} for {}", set.name(), ours, expected);
            }
            let first = part.0.index(count);
            let some = &ours[first * width..][..(1 + part.1.index(count - first)) * width];
            let mut part = vec![f32::NAN; some.len()];
            attend(set, &attention, first, &mut scratch, &mut part);
            prop_assert_eq!(&part, some, "{}", set.name());

            let mut theirs = vec![f32::NAN; their_queries.len()];
            attend(set, &alone, 0, &mut scratch, &mut theirs);
            let together = ours.clone();
            let ours = if every_row { copied(&ours, width) } else { ours };
            prop_assert_eq!(theirs, ours, "{}", set.name());

            // The same where the prefix is kept, and not among the rows.
            let kept_width = 2 * kv_heads * size;
            let (kept, keys) = keys.split_at(prefix * kept_width);
            let mut segments = shared(prefix, &own);
            if prefix > 0 {
                segments.remove(0);
            }
            for segment in &mut segments {
                segment.start -= prefix;
                segment.prefix_start = None;
            }
            let skipped = if every_row { prefix * width } else { 0 };
            let attention = CausalAttention {
                queries: &queries[skipped..],
                keys,
                kept,
                segments: &segments,
                ..attention
            };
            let mut later = vec![f32::NAN; expected.len() - skipped];
            attend(set, &attention, 0, &mut scratch, &mut later);
            prop_assert_eq!(&later[..], &together[skipped..], "{}", set.name());
        }
    }
}
