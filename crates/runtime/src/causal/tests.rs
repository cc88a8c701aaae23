use super::*;
use proptest::prelude::*;
use rerankd_core::Encoding;

const SHARED: Causal = Causal {
    padding: None,
    shares: true,
    keeps: 0,
};

fn batch(sequences: &[&[u32]]) -> Batch {
    let encodings: Vec<Encoding> = sequences
        .iter()
        .map(|ids| Encoding {
            ids: ids.to_vec(),
            type_ids: vec![0; ids.len()],
        })
        .collect();
    Batch::pack(&encodings)
}

#[test]
fn a_shared_prefix_is_there_once() {
    let batch = batch(&[&[1, 2, 3, 9], &[5, 6], &[1, 2, 3, 7, 8]]);
    let inputs = CausalInputs::new(&batch, SHARED, &[]);
    assert_eq!(inputs.input_ids, [1, 2, 3, 7, 8, 9, 5, 6]);
    let segments = [[3, 0, 0, 0], [2, 3, 0, 1], [1, 3, 0, 1], [2, 0, 6, 1]];
    assert_eq!(inputs.segments, segments.concat());
    assert_eq!(inputs.order, [2, 0, 1]);
    assert_eq!(inputs.restore(&[0.2, 0.0, 0.1]), [0.0, 0.1, 0.2]);
}

#[test]
fn equal_sequences_keep_a_token_each() {
    let inputs = CausalInputs::new(&batch(&[&[4, 5], &[4, 5], &[4]]), SHARED, &[]);
    assert_eq!(inputs.input_ids, [4, 4, 5, 5]);
    let segments = [[1, 0, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]];
    assert_eq!(inputs.segments, segments.concat());
}

#[test]
fn trailing_padding_is_left_out() {
    let batch = batch(&[&[0, 7, 0, 0], &[0, 0]]);
    let causal = Causal {
        padding: Some(0),
        shares: false,
        keeps: 0,
    };
    let inputs = CausalInputs::new(&batch, causal, &[]);
    assert_eq!(inputs.input_ids, [0, 7, 0]);
    assert_eq!(inputs.segments, [2, 0, 0, 1, 1, 0, 2, 1]);
    let causal = Causal {
        padding: None,
        ..causal
    };
    assert_eq!(CausalInputs::new(&batch, causal, &[]).input_ids.len(), 6);
}

#[test]
fn requests_share_their_own_prefix_and_not_only_the_template() {
    let request = |query: u32| -> Vec<Vec<u32>> {
        let document = |d: u32| [vec![1; 40], vec![query; 20], vec![100 + d; 30]].concat();
        (0..5).map(document).collect()
    };
    let both = [request(2), request(3)].concat();
    let sequences: Vec<&[u32]> = both.iter().map(Vec::as_slice).collect();
    let inputs = CausalInputs::new(&batch(&sequences), SHARED, &[]);
    assert_eq!(inputs.input_ids.len(), 2 * (60 + 5 * 30));
}

#[test]
fn a_prefix_is_kept_from_batch_to_batch() {
    let causal = Causal { keeps: 5, ..SHARED };
    // Alone, a sequence cannot know what it shares: as much as there is room for is kept.
    let first = CausalInputs::new(&batch(&[&[1, 2, 3, 4, 5, 6, 7]]), causal, &[]);
    assert_eq!(first.segments, [7, 0, 0, 1]);
    assert_eq!(
        (first.keep, &first.kept[..]),
        ([0, 0, 5], &[1, 2, 3, 4, 5][..])
    );
    let second = CausalInputs::new(&batch(&[&[1, 2, 3, 8]]), causal, &first.kept);
    assert_eq!(second.input_ids, [8]);
    assert_eq!(second.segments, [1, 3, -1, 1]);
    assert_eq!(
        (second.keep, &second.kept[..]),
        ([3, 0, 1], &[1, 2, 3, 8][..])
    );
    // Several share more than what was kept.
    let third = batch(&[&[1, 2, 5, 5, 6], &[1, 2, 5, 5, 7], &[1, 2, 5, 5, 8, 8]]);
    let third = CausalInputs::new(&third, causal, &second.kept);
    assert_eq!(third.input_ids, [1, 2, 5, 5, 6, 7, 8, 8]);
    assert_eq!(
        (third.keep, &third.kept[..]),
        ([0, 0, 4], &[1, 2, 5, 5][..])
    );
    // A last token of its own is left to a sequence that was kept whole.
    let same = CausalInputs::new(&batch(&[&[1, 2, 5]]), causal, &third.kept);
    assert_eq!(same.segments, [1, 2, -1, 1]);
}

proptest! {
    /// Whatever is shared and kept, every sequence can be put together again.
    #[test]
    fn every_sequence_is_there(
        batches in prop::collection::vec(
            prop::collection::vec(prop::collection::vec(0_u32..3, 1..12), 1..8), 1..5),
        padding in prop::option::of(0_u32..3),
        shares in any::<bool>(),
        keeps in 0_usize..10,
    ) {
        let causal = Causal { padding, shares, keeps };
        let (mut kept, mut in_layers): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
        for sequences in batches {
            let slices: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
            let inputs = CausalInputs::new(&batch(&slices), causal, &kept);
            let rows: Vec<u32> = inputs.input_ids.iter().map(|&id| id as u32).collect();
            let mut found = vec![Vec::new(); sequences.len()];
            let (mut start, mut scored) = (0, 0);
            for segment in inputs.segments.chunks_exact(SEGMENT) {
                let [length, prefix, first, ends] = [0, 1, 2, 3].map(|i| segment[i]);
                let (length, prefix) = (length as usize, prefix as usize);
                let shared = match usize::try_from(first) {
                    Ok(first) => &rows[first..first + prefix],
                    Err(_) => &in_layers[..prefix],
                };
                prop_assert!(length > 0 && first as i64 + prefix as i64 <= start as i64 || first < 0);
                if ends == 1 {
                    found[inputs.order[scored]] = [shared, &rows[start..start + length]].concat();
                    scored += 1;
                }
                start += length;
            }
            prop_assert_eq!(start, rows.len());
            let expected = slices.iter().map(|ids| without_trailing(ids, padding).to_vec());
            prop_assert_eq!(found, expected.collect::<Vec<_>>());
            let tokens: usize = slices.iter().map(|ids| ids.len()).sum();
            prop_assert!(rows.len() <= tokens);
            let [before, first, count] = inputs.keep.map(|number| number as usize);
            in_layers.truncate(before);
            in_layers.extend(&rows[first..first + count]);
            prop_assert_eq!(&in_layers, &inputs.kept);
            prop_assert!(in_layers.len() <= keeps);
            kept = inputs.kept;
        }
    }
}
