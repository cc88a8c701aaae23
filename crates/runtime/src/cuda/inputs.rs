//! The inputs of the CUDA graph for a batch. Pure arithmetic.

use rerankd_core::Batch;
use rerankd_model::graph::cuda::{
    ALIGNMENT, CELLS, COLUMNS, CUMULATIVE, LAST_INDEX, MEAN_SQRT_WEIGHTS, MEAN_WEIGHTS, PLACES,
    TOKEN_OFFSET, WEIGHTED_MEAN_WEIGHTS,
};
use rerankd_model::graph::io;

use crate::onnx::PackedInputs;

/// Elements of an input.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Numbers {
    I32(Vec<i32>),
    I64(Vec<i64>),
    F32(Vec<f32>),
}

/// An input of the graph, for one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub numbers: Numbers,
}

impl Input {
    fn row(numbers: Numbers) -> Self {
        let len = match &numbers {
            Numbers::I32(numbers) => numbers.len(),
            Numbers::I64(numbers) => numbers.len(),
            Numbers::F32(numbers) => numbers.len(),
        };
        Self {
            shape: vec![len],
            numbers,
        }
    }
}

/// The input called `name` of a batch that is packed as `packed`; `None` if no graph has it. See
/// [`graph::cuda`](rerankd_model::graph::cuda) for what each holds.
pub fn input(name: &str, batch: &Batch, packed: &PackedInputs) -> Option<Input> {
    let lengths = batch.lengths();
    let sequences = lengths.len();
    let longest = batch.longest().next_multiple_of(ALIGNMENT);
    let shaped = |shape: &[usize], numbers| Input {
        shape: shape.to_vec(),
        numbers,
    };
    let mean = |of: fn(usize, usize) -> f64| {
        let numbers = weights(lengths, longest, of);
        shaped(&[sequences, 1, longest], Numbers::F32(numbers))
    };
    Some(match name {
        io::INPUT_IDS => Input::row(Numbers::I64(packed.input_ids.clone())),
        io::POSITION_IDS => Input::row(Numbers::I64(packed.position_ids.clone())),
        io::CLS_INDEX => Input::row(Numbers::I64(packed.cls_index.clone())),
        CUMULATIVE => Input::row(Numbers::I32(cumulative(lengths))),
        TOKEN_OFFSET => {
            let cells = token_offset(lengths, longest);
            shaped(&[sequences, longest], Numbers::I32(cells))
        }
        PLACES => {
            let places = lengths.iter().flat_map(|&length| 0..length as i64);
            shaped(&[batch.tokens(), 1], Numbers::I64(places.collect()))
        }
        COLUMNS => Input::row(Numbers::I32((0..longest as i32).collect())),
        CELLS => {
            let rows = packed.cls_index.iter().zip(lengths);
            let cells = rows.flat_map(|(&first, &length)| {
                let padding = (length..longest).map(move |_| first);
                (first..first + length as i64).chain(padding)
            });
            shaped(&[sequences, longest], Numbers::I64(cells.collect()))
        }
        LAST_INDEX => Input::row(Numbers::I64(packed.last_index(batch))),
        MEAN_WEIGHTS => mean(|_, length| 1.0 / length as f64),
        MEAN_SQRT_WEIGHTS => mean(|_, length| 1.0 / (length as f64).sqrt()),
        WEIGHTED_MEAN_WEIGHTS => mean(|place, length| {
            let all = length * (length + 1) / 2;
            (place + 1) as f64 / all as f64
        }),
        _ => return None,
    })
}

/// `of` place and length for every token of a padded batch, and 0 for padding.
fn weights(lengths: &[usize], longest: usize, of: fn(usize, usize) -> f64) -> Vec<f32> {
    let row = |&length: &usize| {
        (0..longest).map(move |place| match place < length {
            true => of(place, length) as f32,
            false => 0.0,
        })
    };
    lengths.iter().flat_map(row).collect()
}

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
    use crate::onnx::Layout;
    use proptest::prelude::*;
    use rerankd_core::Encoding;

    fn of(name: &str) -> Input {
        let encodings = [2, 1].map(|length| Encoding {
            ids: vec![7; length],
            type_ids: vec![0; length],
        });
        let layout = Layout {
            first_position: 0,
            positions: 1,
            skipped_token: None,
            causal: None,
        };
        let batch = Batch::pack(&encodings);
        input(name, &batch, &PackedInputs::new(&batch, layout)).unwrap()
    }

    #[test]
    fn rows_are_padded_to_what_attention_reads() {
        assert_eq!(of(TOKEN_OFFSET).shape, [2, ALIGNMENT]);
        assert_eq!(of(COLUMNS).shape, [ALIGNMENT]);
        assert_eq!(of(PLACES).numbers, Numbers::I64(vec![0, 1, 0]));
        assert_eq!(of(LAST_INDEX).numbers, Numbers::I64(vec![1, 2]));
        let Numbers::I64(cells) = of(CELLS).numbers else {
            panic!()
        };
        let rows: Vec<&[i64]> = cells.chunks_exact(ALIGNMENT).map(|row| &row[..3]).collect();
        assert_eq!(rows, [[0, 1, 0], [2, 2, 2]]);
    }

    #[test]
    fn weights_of_padding_are_0() {
        for (name, first) in [
            (MEAN_WEIGHTS, [0.5, 0.5]),
            (MEAN_SQRT_WEIGHTS, [0.5_f32.sqrt(); 2]),
            (WEIGHTED_MEAN_WEIGHTS, [1.0 / 3.0, 2.0 / 3.0]),
        ] {
            let Input { shape, numbers } = of(name);
            assert_eq!(shape, [2, 1, ALIGNMENT]);
            let Numbers::F32(numbers) = numbers else {
                panic!()
            };
            assert_eq!(numbers[..2], first, "{name}");
            assert_eq!(numbers[ALIGNMENT], 1.0, "{name}");
            assert_eq!(numbers.iter().filter(|&&weight| weight != 0.0).count(), 3);
        }
    }

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
            // A sequence is what lies between two neighbors.
            let starts = cumulative(&lengths);
            prop_assert_eq!(starts.len(), lengths.len() + 1);
            for (i, &length) in lengths.iter().enumerate() {
                prop_assert_eq!((starts[i + 1] - starts[i]) as usize, length);
                prop_assert_eq!(offsets[starts[i] as usize] as usize, i * longest);
            }
        }
    }
}
