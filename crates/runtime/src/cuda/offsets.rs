//! Where the sequences of a packed batch lie, in the form that packed attention reads. Pure arithmetic.

/// Tokens before each sequence, and of all: `[sequences + 1]`.
pub fn cumulative(lengths: &[usize]) -> Vec<i32> {
    let mut total = 0;
    let mut starts = Vec::with_capacity(lengths.len() + 1);
    starts.push(0);
    for &length in lengths {
        total += length as i32;
        starts.push(total);
    }
    starts
}

/// Cells of a padded batch `[sequences, longest]`, row by row: first the cell of every token in the
/// order they are packed in, then the cells without one.
pub fn token_offset(lengths: &[usize], longest: usize) -> Vec<i32> {
    let cells = |range: fn(usize, usize) -> std::ops::Range<usize>| {
        lengths.iter().enumerate().flat_map(move |(row, &length)| {
            range(length, longest).map(move |column| (row * longest + column) as i32)
        })
    };
    let mut offsets = Vec::with_capacity(lengths.len() * longest);
    offsets.extend(cells(|length, _| 0..length));
    offsets.extend(cells(|length, longest| length..longest));
    offsets
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_sequences_as_the_operator_reads_them() {
        assert_eq!(cumulative(&[2, 3]), [0, 2, 5]);
        assert_eq!(token_offset(&[2, 3], 3), [0, 1, 3, 4, 5, 2]);
        assert_eq!(cumulative(&[]), [0]);
        assert_eq!(token_offset(&[], 0), [0; 0]);
    }

    proptest! {
        /// Padding a batch and looking up what the offsets name gives the packed batch back, and every
        /// cell is named once.
        #[test]
        fn offsets_undo_padding(lengths in prop::collection::vec(1_usize..40, 1..12)) {
            let longest = *lengths.iter().max().unwrap();
            let tokens: usize = lengths.iter().sum();
            // The reference: each sequence in a row of its own.
            let mut padded = vec![None; lengths.len() * longest];
            let mut packed = Vec::new();
            for (row, &length) in lengths.iter().enumerate() {
                for column in 0..length {
                    padded[row * longest + column] = Some(packed.len());
                    packed.push(packed.len());
                }
            }
            let offsets = token_offset(&lengths, longest);
            let read: Vec<_> = offsets.iter().map(|&cell| padded[cell as usize]).collect();
            let expected: Vec<_> = packed.into_iter().map(Some).collect();
            prop_assert_eq!(&read[..tokens], &expected[..]);
            prop_assert!(read[tokens..].iter().all(Option::is_none));
            let mut sorted = offsets.clone();
            sorted.sort_unstable();
            let all: Vec<i32> = (0..padded.len() as i32).collect();
            prop_assert_eq!(sorted, all);
            // A sequence is what lies between two neighbours.
            let starts = cumulative(&lengths);
            prop_assert_eq!(starts.len(), lengths.len() + 1);
            for (i, &length) in lengths.iter().enumerate() {
                prop_assert_eq!((starts[i + 1] - starts[i]) as usize, length);
                prop_assert_eq!(offsets[starts[i] as usize] as usize, i * longest);
            }
        }
    }
}
