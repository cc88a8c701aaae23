//! Rotation of a dense layer's inputs by a Hadamard transform, as in QuaRot
//! ([Ashkboos et al. 2024](https://arxiv.org/abs/2404.00456)): one large number of a row becomes many small ones, so
//! that 256 steps over the row are finer. The weights are rotated too, and the product stays what it was.

use crate::elementary::{LANES, Lanes};
use crate::isa::{Isa, Portable};

/// Registers that are mixed at once.
const MIXED: usize = 8;
/// Numbers of a block.
const BLOCK: usize = MIXED * LANES;
/// Registers of a row that mix well enough alone.
const WIDE: usize = 64;

/// What the square of a rotated row's norm grows by.
fn growth(inputs: usize) -> f32 {
    let quarters = if inputs < WIDE * LANES { 4 } else { 1 };
    (quarters * MIXED * MIXED) as f32
}

/// Whether rows of `inputs` are rotated: they are where they have whole blocks.
pub fn is_rotated(inputs: usize) -> bool {
    inputs.is_multiple_of(BLOCK)
}

/// Writes the rotation of a row to `rotated`, times the root of [`growth`]: mixes eighths of the row, then the registers
/// of each block. `row` gives the register at a place. The sums have the same order on every processor.
///
/// Lanes of a register are mixed only where a row has few registers, because that takes shuffles.
///
/// # Panics
/// If rows of this size are not rotated.
#[inline(always)]
pub(super) fn rotate<I: Isa>(isa: I, row: impl Fn(usize) -> Lanes, rotated: &mut [f32]) {
    assert!(is_rotated(rotated.len()));
    let (rotated, _) = rotated.as_chunks_mut::<LANES>();
    let quarters = rotated.len() < WIDE;
    let eighth = rotated.len() / MIXED;
    for first in 0..eighth {
        let mut registers = std::array::from_fn(|part| row(part * eighth + first));
        if quarters {
            isa.mix_quarters(&mut registers);
        }
        let mixed = mix(registers);
        for (part, mixed) in mixed.into_iter().enumerate() {
            rotated[part * eighth + first] = mixed;
        }
    }
    for block in rotated.as_chunks_mut().0 {
        *block = mix(*block);
    }
}

/// A Hadamard transform over registers.
#[inline(always)]
fn mix(mut registers: [Lanes; MIXED]) -> [Lanes; MIXED] {
    butterflies::<1>(&mut registers);
    butterflies::<2>(&mut registers);
    butterflies::<4>(&mut registers);
    registers
}

/// Sums and differences of registers that are `DISTANCE` apart.
#[inline(always)]
fn butterflies<const DISTANCE: usize>(registers: &mut [Lanes; MIXED]) {
    for pair in 0..MIXED / 2 {
        let at = pair / DISTANCE * 2 * DISTANCE + pair % DISTANCE;
        let (a, b) = (registers[at], registers[at + DISTANCE]);
        registers[at] = std::array::from_fn(|lane| a[lane] + b[lane]);
        registers[at + DISTANCE] = std::array::from_fn(|lane| a[lane] - b[lane]);
    }
}

/// The weights of an output, `[inputs]`, such that their product with a row, rotated where rows are, is what it was.
pub(super) fn rotate_weights(weights: &[f32]) -> Vec<f32> {
    let mut rotated = weights.to_vec();
    if is_rotated(weights.len()) {
        rotate(
            portable(),
            |register| weights.as_chunks().0[register],
            &mut rotated,
        );
        rotated
            .iter_mut()
            .for_each(|weight| *weight /= growth(weights.len()));
    }
    rotated
}

fn portable() -> Portable {
    Portable::detect().expect("every processor has the portable set")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::numbers;

    fn rotated(row: &[f32]) -> Vec<f32> {
        let mut rotated = vec![f32::NAN; row.len()];
        rotate(
            portable(),
            |register| row.as_chunks().0[register],
            &mut rotated,
        );
        rotated
    }

    #[test]
    fn a_rotation_keeps_products() {
        for inputs in [128, 384, 1024, 1536, 2304] {
            let (x, weights) = (numbers(1, inputs), numbers(2, inputs));
            let product = |x: &[f32], weights: &[f32]| -> f64 {
                let terms = x.iter().zip(weights);
                terms.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
            };
            let exact = product(&x, &weights);
            let product = product(&rotated(&x), &rotate_weights(&weights));
            assert!(
                (exact - product).abs() < 1e-4,
                "{inputs}: {product}, not {exact}"
            );
        }
    }

    #[test]
    fn weights_of_rows_without_whole_blocks_stay_as_they_are() {
        let weights = numbers(1, 320);
        assert_eq!(rotate_weights(&weights), weights);
    }

    #[test]
    fn a_rotation_spreads_one_number_over_many() {
        for inputs in [384, 768, 1024, 1536, 4096] {
            let mut row = vec![0.0; inputs];
            row[inputs / 3] = growth(inputs).sqrt();
            let rotated = rotated(&row);
            let largest = rotated.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            let norm = rotated.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!((norm - growth(inputs)).abs() < 1e-3, "{inputs}: {norm}");
            assert!(largest < 0.2 * norm, "{inputs}: {largest} of {norm}");
        }
    }
}
