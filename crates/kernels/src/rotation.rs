//! Rotation of a dense layer's inputs by a Hadamard transform, as in QuaRot
//! ([Ashkboos et al. 2024](https://arxiv.org/abs/2404.00456)): one large number of a row becomes many small ones, so
//! that 256 steps over the row are finer. The weights are rotated too, and the product stays what it was.

use crate::elementary::{LANES, Lanes};
use crate::isa::{Isa, Portable};

/// Registers that are mixed at once.
const MIXED: usize = 8;
/// Numbers of a block.
const BLOCK: usize = MIXED * LANES;
/// From so many registers on, a row mixes well enough without its quarters.
const MANY_REGISTERS: usize = 64;

/// Whether rows of `inputs` are rotated: they are where they have whole blocks.
pub(super) fn is_rotated(inputs: usize) -> bool {
    inputs.is_multiple_of(BLOCK)
}

/// The Hadamard transforms that come before that of blocks.
#[derive(Debug, Clone, Copy)]
struct Stages {
    /// Over the quarters of each register: where a row has few registers, because that takes shuffles.
    quarters: bool,
    /// Over the eighths of a row: a row of one block has its registers mixed anyway.
    eighths: bool,
}

impl Stages {
    fn of(inputs: usize) -> Self {
        Self {
            quarters: inputs < MANY_REGISTERS * LANES,
            eighths: inputs > BLOCK,
        }
    }

    /// What the square of a rotated row's norm grows by.
    fn growth(self) -> f32 {
        let quarters = if self.quarters { 4 } else { 1 };
        let eighths = if self.eighths { MIXED } else { 1 };
        (quarters * eighths * MIXED) as f32
    }
}

/// Writes the rotation of a row to `rotated`, times the root of [`Stages::growth`]. `row` gives the register at a place.
/// The sums have the same order on every processor.
///
/// # Panics
/// If rows of this size are not rotated.
#[inline(always)]
pub(super) fn rotate<I: Isa>(isa: I, row: impl Fn(usize) -> Lanes, rotated: &mut [f32]) {
    assert!(is_rotated(rotated.len()));
    let stages = Stages::of(rotated.len());
    let (rotated, _) = rotated.as_chunks_mut::<LANES>();
    let eighth = rotated.len() / MIXED;
    for first in 0..eighth {
        let mut registers = std::array::from_fn(|part| row(part * eighth + first));
        if stages.quarters {
            isa.mix_quarters(&mut registers);
        }
        if stages.eighths {
            registers = mix(registers);
        }
        for (part, mixed) in registers.into_iter().enumerate() {
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
        let growth = Stages::of(weights.len()).growth();
        rotated.iter_mut().for_each(|weight| *weight /= growth);
    }
    rotated
}

fn portable() -> Portable {
    Portable::detect().expect("every processor has the portable set")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{InstructionSet, Step};
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
    fn a_rotation_spreads_every_number_over_many() {
        for (inputs, share) in [
            (128, 0.2),
            (256, 0.26),
            (384, 0.2),
            (768, 0.2),
            (1024, 0.2),
            (1536, 0.2),
        ] {
            let growth = Stages::of(inputs).growth();
            for place in 0..inputs {
                let mut row = vec![0.0; inputs];
                row[place] = 1.0;
                let rotated = rotated(&row);
                let square = rotated.iter().map(|x| x * x).sum::<f32>();
                assert!((square / growth - 1.0).abs() < 1e-5, "{inputs}: {square}");
                let largest = rotated.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                let largest = largest / growth.sqrt();
                assert!(largest <= share, "{place} of {inputs}: {largest}");
            }
        }
    }

    #[test]
    fn a_rotation_has_the_same_bits_with_every_instruction_set() {
        struct Rotate<'a>(&'a [f32], &'a mut [f32]);
        impl Step for Rotate<'_> {
            #[inline(always)]
            fn run<I: Isa>(self, isa: I) {
                rotate(isa, |register| self.0.as_chunks().0[register], self.1);
            }
        }
        for inputs in [128, 384, 1024] {
            let row = numbers(3, inputs);
            for set in InstructionSet::available() {
                let mut output = vec![f32::NAN; inputs];
                set.perform(Rotate(&row, &mut output));
                assert_eq!(output, rotated(&row), "{}", set.name());
            }
        }
    }
}
