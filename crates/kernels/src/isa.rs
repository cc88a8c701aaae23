//! What each kind of processor does its own way: products of matrices.
//!
//! Every path takes the same operands. Whole numbers give the same sums on all of them, so a model is
//! quantised once and what differs between machines is speed. Of fp32, every sum is made in the order of
//! the inputs, so it is the same bits whatever rows are multiplied beside it.
#![allow(
    unsafe_code,
    reason = "calls instructions that not every processor has, after asking it"
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_vnni;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
mod portable;

use crate::quantize::{COLUMNS, GROUP};
#[cfg(test)]
pub(super) use portable::Portable;

/// The instructions that a scorer uses. Holding one proves that the processor has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// See [`avx512_vnni`].
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// See [`avx512`].
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// See [`avx_vnni`].
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// See [`avx2`].
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// See [`portable`].
    Portable,
}

impl Path {
    /// Every path that this processor can take, the fastest first.
    pub fn available() -> Vec<Self> {
        let mut paths = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 && is_x86_feature_detected!("avx512vnni") {
                paths.push(Kind::Avx512Vnni);
            }
            if avx2 && avx512 {
                paths.push(Kind::Avx512);
            }
            if avx2 && is_x86_feature_detected!("avxvnni") {
                paths.push(Kind::AvxVnni);
            }
            if avx2 {
                paths.push(Kind::Avx2);
            }
        }
        paths.push(Kind::Portable);
        paths.into_iter().map(Self).collect()
    }

    /// The fastest.
    pub fn best() -> Self {
        Self::available()[0]
    }

    /// As logs and answers name it.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            Kind::Portable => "portable",
        }
    }

    /// Whether eight bits are faster than fp32.
    pub fn favours_int8(self) -> bool {
        self.0 != Kind::Portable
    }

    /// Whether fp32 has products written for it here; elsewhere those of ONNX Runtime are faster.
    pub fn favours_own_fp32(self) -> bool {
        self.0 != Kind::Portable
    }

    /// Runs `step` with the instructions of this path.
    pub(super) fn perform<S: Step>(self, step: S) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: only `available` makes one, after it has asked the processor.
            Kind::Avx512Vnni => unsafe { avx512_vnni::perform(step) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: likewise.
            Kind::Avx512 => unsafe { avx512::perform(step) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: likewise.
            Kind::AvxVnni => unsafe { avx_vnni::perform(step) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: likewise.
            Kind::Avx2 => unsafe { avx2::perform(step) },
            Kind::Portable => portable::perform(step),
        }
    }
}

/// Most rows of a block on any path.
pub(super) const MAX_ROWS: usize = 8;
/// Most strips of a tile on any path.
pub(super) const MAX_STRIPS: usize = 3;

/// Room for the sums of one tile.
pub(super) type Sums = [i32; MAX_ROWS * MAX_STRIPS * COLUMNS];

/// A block of rows and some strips of weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile<'a> {
    /// `[groups, ROWS, WORDS]`: [`GROUP`] numbers of each row at a time.
    pub rows: &'a [u32],
    /// How many rows of the block are wanted, from 1 to `ROWS`.
    pub count: usize,
    /// `[strips, groups, COLUMNS, GROUP]`.
    pub strips: &'a [i8],
    /// Inputs, in groups of [`GROUP`].
    pub groups: usize,
}

impl Tile<'_> {
    /// Number of strips, from 1 to `STRIPS`.
    pub(super) fn strip_count(&self) -> usize {
        self.strips.len() / (self.groups * COLUMNS * GROUP)
    }
}

/// Room for the sums of one tile of fp32.
pub(super) type FloatSums = [f32; MAX_ROWS * MAX_STRIPS * COLUMNS];

/// Some rows of fp32 and some strips of weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct FloatTile<'a> {
    /// `[count, inputs]`, from 1 to `FLOAT_ROWS` of them.
    pub rows: &'a [f32],
    /// `[strips, inputs, COLUMNS]`.
    pub strips: &'a [f32],
    /// Numbers of a row.
    pub inputs: usize,
}

impl FloatTile<'_> {
    /// Number of rows.
    pub(super) fn count(&self) -> usize {
        self.rows.len() / self.inputs
    }

    /// Number of strips, from 1 to `FLOAT_STRIPS`.
    pub(super) fn strip_count(&self) -> usize {
        self.strips.len() / (self.inputs * COLUMNS)
    }
}

/// Evaluates an expression in which a number, one of a few, is a constant.
#[cfg(target_arch = "x86_64")]
macro_rules! with_constant {
    ($name:ident in [$($number:literal)+], $count:expr, $result:expr) => {
        match $count {
            $($number => {
                const $name: usize = $number;
                $result
            })+
            other => unreachable!("a tile is made with no more than a path takes, and has {other}"),
        }
    };
}
#[cfg(target_arch = "x86_64")]
use with_constant;

/// One kind of processor. Holding a value proves that this is one.
pub(super) trait Isa: Copy {
    /// Rows of a block.
    const ROWS: usize;
    /// Strips of a tile.
    const STRIPS: usize;
    /// 32-bit words that a group of a row takes in memory.
    const WORDS: usize;
    /// Rows of a tile of fp32.
    const FLOAT_ROWS: usize;
    /// Strips of a tile of fp32.
    const FLOAT_STRIPS: usize;
    /// Whether a register holds sixteen numbers, and there are thirty-two of them.
    const WIDE: bool;
    /// Whether `mul_add` is one instruction, and not a call.
    const FUSED: bool;

    /// Lays out a group of a row: four numbers of eight bits, the first in the lowest.
    fn pack(group: u32, words: &mut [u32]);

    /// Multiplies a tile: `[count, strips, COLUMNS]`. Has to be inlined always, as [`Step::run`].
    fn multiply(self, tile: &Tile<'_>, sums: &mut [i32]);

    /// Multiplies a tile of fp32, likewise: `[count, strips, COLUMNS]`, each sum in the order of the
    /// inputs.
    fn multiply_floats(self, tile: &FloatTile<'_>, sums: &mut [f32]);
}

/// Something that is compiled once for each kind of processor. `run` has to be inlined always: that
/// is what makes the compiler use the processor's registers in it.
pub(super) trait Step {
    /// Does it.
    fn run<I: Isa>(self, isa: I);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use proptest::prelude::*;

    /// All sums of `rows`, `[count, groups * GROUP]`, with `strips`: `[count, strips * COLUMNS]`.
    struct Products<'a> {
        rows: &'a [Vec<u8>],
        strips: &'a [i8],
        groups: usize,
        sums: &'a mut Vec<i32>,
    }

    impl Step for Products<'_> {
        #[inline(always)]
        fn run<I: Isa>(self, isa: I) {
            let strip = self.groups * COLUMNS * GROUP;
            let width = self.strips.len() / strip * COLUMNS;
            self.sums.resize(self.rows.len() * width, 0);
            for (block, rows) in self.rows.chunks(I::ROWS).enumerate() {
                let mut words = vec![u32::MAX; self.groups * I::ROWS * I::WORDS];
                for (place, row) in rows.iter().enumerate() {
                    for (group, numbers) in row.as_chunks::<GROUP>().0.iter().enumerate() {
                        let at = (group * I::ROWS + place) * I::WORDS;
                        let numbers = u32::from_le_bytes(*numbers);
                        I::pack(numbers, &mut words[at..at + I::WORDS]);
                    }
                }
                for (part, strips) in self.strips.chunks(I::STRIPS * strip).enumerate() {
                    let tile = Tile {
                        rows: &words,
                        count: rows.len(),
                        strips,
                        groups: self.groups,
                    };
                    let mut sums: Sums = [i32::MIN; MAX_ROWS * MAX_STRIPS * COLUMNS];
                    isa.multiply(&tile, &mut sums);
                    let columns = tile.strip_count() * COLUMNS;
                    for (row, sums) in sums.chunks_exact(columns).take(rows.len()).enumerate() {
                        let at = (block * I::ROWS + row) * width + part * I::STRIPS * COLUMNS;
                        self.sums[at..at + columns].copy_from_slice(sums);
                    }
                }
            }
        }
    }

    /// The definition.
    fn expected(rows: &[Vec<u8>], strips: &[i8], groups: usize) -> Vec<i32> {
        let strip = groups * COLUMNS * GROUP;
        let mut sums = Vec::new();
        for row in rows {
            for strip in strips.chunks_exact(strip) {
                for column in 0..COLUMNS {
                    let products = row.iter().enumerate().map(|(input, &number)| {
                        let at = (input / GROUP * COLUMNS + column) * GROUP + input % GROUP;
                        i32::from(number) * i32::from(strip[at])
                    });
                    sums.push(products.sum());
                }
            }
        }
        sums
    }

    fn check(rows: &[Vec<u8>], strips: &[i8], groups: usize) {
        let expected = expected(rows, strips, groups);
        for path in Path::available() {
            let mut sums = Vec::new();
            path.perform(Products {
                rows,
                strips,
                groups,
                sums: &mut sums,
            });
            assert!(sums == expected, "{}", path.name());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_path_gives_the_same_sums(
            count in 1_usize..20,
            groups in 1_usize..30,
            strips in 1_usize..8,
            seed in any::<u64>(),
        ) {
            let mut bits = testing::bits(seed);
            let mut next = || bits.next().unwrap() as u8;
            let rows: Vec<Vec<u8>> = (0..count)
                .map(|_| (0..groups * GROUP).map(|_| next()).collect())
                .collect();
            let strips: Vec<i8> = (0..strips * groups * COLUMNS * GROUP)
                .map(|_| next() as i8)
                .collect();
            check(&rows, &strips, groups);
        }
    }

    #[test]
    fn the_largest_numbers_saturate_nothing() {
        let groups = 768;
        for weight in [i8::MIN, i8::MAX] {
            let rows = vec![vec![u8::MAX; groups * GROUP]; 9];
            check(&rows, &vec![weight; groups * COLUMNS * GROUP], groups);
        }
    }
}
