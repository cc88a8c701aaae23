//! Instruction sets: the matrix products that each kind of processor computes its own way.
//!
//! All of them take the same operands. Integer products give the same sums everywhere, so weights are
//! quantized once and machines differ in speed alone. In fp32 and bf16 every sum is made in a fixed order of the
//! inputs, so a row's result has the same bits whatever rows are multiplied beside it. In bf16 it is the same order
//! in all of them, except AMX.
//!
//! An instruction set is one file that implements `Isa`, and one line in `instruction_sets!`.
#![allow(
    unsafe_code,
    reason = "calls instructions that not every processor has, after detecting them"
)]

use crate::bf16::{self, Pair};
use crate::elementary::Lanes;
use crate::quantize::{COLUMNS, GROUP};
pub(super) use portable::Portable;

/// The instruction set that kernels run with. Holding one proves that the processor has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstructionSet(Detected);

/// Makes the modules, [`Detected`], the table of detectors and the dispatch from one list.
macro_rules! instruction_sets {
    ($($(#[$cfg:meta])? $module:ident::$set:ident,)+) => {
        $($(#[$cfg])? mod $module;)+

        /// An instruction set of this processor.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Detected {
            $($(#[$cfg])? $set($module::$set),)+
        }

        /// Every instruction set, the fastest first.
        const ALL: &[fn() -> Option<Detected>] = &[
            $($(#[$cfg])? || $module::$set::detect().map(Detected::$set),)+
        ];

        impl InstructionSet {
            /// The name in logs and answers, such as `avx2`.
            pub fn name(self) -> &'static str {
                match self.0 {
                    $($(#[$cfg])? Detected::$set(_) => $module::$set::NAME,)+
                }
            }

            /// Whether the processor has instructions for products of bf16. Without them, numbers are widened as
            /// they are multiplied.
            pub fn has_bf16(self) -> bool {
                match self.0 {
                    $($(#[$cfg])? Detected::$set(_) => $module::$set::NATIVE_BF16,)+
                }
            }

            /// Whether the fp32 kernels here are faster than those of ONNX Runtime.
            pub fn favors_own_fp32(self) -> bool {
                match self.0 {
                    $($(#[$cfg])? Detected::$set(_) => $module::$set::OPTIMIZED,)+
                }
            }

            /// Whether int8 is faster than fp32.
            pub fn favors_int8(self) -> bool {
                match self.0 {
                    $($(#[$cfg])? Detected::$set(_) => $module::$set::FAST_INT8,)+
                }
            }

            /// [`CHUNK`] for int8 and bf16.
            pub(super) fn chunk(self) -> usize {
                match self.0 {
                    $($(#[$cfg])? Detected::$set(_) => $module::$set::CHUNK,)+
                }
            }

            /// Runs `step` compiled for this instruction set.
            pub(super) fn perform<S: Step>(self, step: S) {
                match self.0 {
                    $($(#[$cfg])? Detected::$set(isa) => isa.perform(step),)+
                }
            }
        }
    };
}

instruction_sets! {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))] amx::Amx,
    #[cfg(target_arch = "x86_64")] avx512_bf16::Avx512Bf16,
    #[cfg(target_arch = "x86_64")] avx512_vnni::Avx512Vnni,
    #[cfg(target_arch = "x86_64")] avx512::Avx512,
    #[cfg(target_arch = "x86_64")] avx_vnni::AvxVnni,
    #[cfg(target_arch = "x86_64")] avx2::Avx2,
    #[cfg(target_arch = "aarch64")] neon_i8mm::NeonI8mm,
    #[cfg(target_arch = "aarch64")] neon_dotprod::NeonDotprod,
    #[cfg(target_arch = "aarch64")] neon::Neon,
    portable::Portable,
}

impl InstructionSet {
    /// Every instruction set of this processor, the fastest first.
    pub fn available() -> Vec<Self> {
        ALL.iter().filter_map(|detect| detect()).map(Self).collect()
    }

    /// The fastest.
    pub fn best() -> Self {
        Self::available()[0]
    }
}

/// Rows that go through all products of a layer before the next ones begin: enough to read the weights seldom, few
/// enough for the activations between two products to stay in the second-level cache.
pub(super) const CHUNK: usize = 48;

/// Largest number of strips in a tile.
pub(super) const MAX_STRIPS: usize = 3;
/// Largest number of sums in a tile.
pub(super) const MAX_SUMS: usize = 64 * COLUMNS;

/// Keys, or dimensions of the values, that attention works on at once: with two registers of queries, eight
/// independent sums, what it takes to keep two multipliers of latency four busy.
pub(super) const STEP: usize = 4;

/// Room for the sums of one tile.
pub(super) type Sums = [i32; MAX_SUMS];

/// A block of rows and some strips of weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile<'a> {
    /// `[groups / ROW_SPAN, ROWS, ROW_SPAN, WORDS]`: [`GROUP`] numbers of each row at a time.
    pub rows: &'a [u32],
    /// How many rows of the block are wanted, from 1 to `ROWS`.
    pub count: usize,
    /// `[strips, groups / COLUMN_SPAN, COLUMNS, COLUMN_SPAN, GROUP]`, zeros where there is no such input.
    pub strips: &'a [i8],
    /// Inputs, in groups of [`GROUP`]; a multiple of `ROW_SPAN`.
    pub groups: usize,
}

impl Tile<'_> {
    /// Number of strips, from 1 to `STRIPS`.
    pub(super) fn strip_count(&self) -> usize {
        self.strips.len() / (self.groups * COLUMNS * GROUP)
    }
}

/// Room for the sums of one tile of fp32.
pub(super) type FloatSums = [f32; MAX_SUMS];

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
    #[cfg(target_arch = "x86_64")]
    pub(super) fn strip_count(&self) -> usize {
        self.strips.len() / (self.inputs * COLUMNS)
    }
}

/// Rows of bf16 lie in memory up to a multiple of this, and so do the pairs of a row of weights.
pub(super) const PAIR_PADDING: usize = 16;

/// Some rows of bf16 and some strips of weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct PairTile<'a> {
    /// `[count or more, pairs]`. There are as many as make whole [`PAIR_PADDING`]s.
    pub rows: &'a [Pair],
    /// How many rows are wanted, from 1 to `PAIR_ROWS`.
    pub count: usize,
    /// `[strips, pairs, COLUMNS]`.
    pub strips: &'a [Pair],
    /// Pairs of a row; a multiple of `PAIR_SPAN`.
    pub pairs: usize,
}

impl PairTile<'_> {
    /// Number of strips, from 1 to `PAIR_STRIPS`.
    pub(super) fn strip_count(&self) -> usize {
        self.strips.len() / (self.pairs * COLUMNS)
    }
}

/// Evaluates an expression with the number of rows, or of rows and strips, of a tile as constants.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[cfg_attr(
    target_arch = "aarch64",
    expect(unused_macro_rules, reason = "its instruction sets have one strip")
)]
macro_rules! with_tile_shape {
    ($rows:ident = $count:expr, 1..=6; $result:expr) => {
        with_tile_shape!(@ $rows = $count, [1 2 3 4 5 6], $result)
    };
    ($rows:ident = $count:expr, 1..=8; $strips:ident = $strip_count:expr, 1..=3; $result:expr) => {
        with_tile_shape!(@ $rows = $count, [1 2 3 4 5 6 7 8], {
            with_tile_shape!(@ $strips = $strip_count, [1 2 3], $result)
        })
    };
    (@ $name:ident = $value:expr, [$($constant:literal)+], $result:expr) => {
        match $value {
            $($constant => {
                const $name: usize = $constant;
                $result
            })+
            other => unreachable!("a tile has at most the rows and strips of its instruction set, not {other}"),
        }
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use with_tile_shape;

/// [`Isa::perform`] with the target features that [`Isa::detect`] found.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! perform_with {
    ($features:literal) => {
        fn perform<S: crate::isa::Step>(self, step: S) {
            #[target_feature(enable = $features)]
            fn run<I: Isa, S: crate::isa::Step>(isa: I, step: S) {
                step.run(isa)
            }
            // SAFETY: `self` proves that the processor has these features.
            unsafe { run(self, step) }
        }
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use perform_with;

/// `a b + c`.
#[inline(always)]
pub(super) fn multiply_add<I: Isa>(a: f32, b: f32, c: f32) -> f32 {
    if I::FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// One instruction set. Holding a value proves that the processor has it.
pub(super) trait Isa: Copy {
    /// The name in logs and answers.
    const NAME: &'static str;
    /// Whether the products are written with instructions of this set.
    const OPTIMIZED: bool;
    /// Whether products of int8 are faster than those of fp32.
    const FAST_INT8: bool = Self::OPTIMIZED;
    /// Rows of a block.
    const ROWS: usize;
    /// Strips of a tile.
    const STRIPS: usize;
    /// 32-bit words that a group of a row takes in memory.
    const WORDS: usize;
    /// Groups of a row that lie side by side.
    const ROW_SPAN: usize = 1;
    /// Groups of a column that lie side by side.
    const COLUMN_SPAN: usize = Self::ROW_SPAN;
    /// What [`Self::pack`] takes from every number of a row, where bytes are multiplied as signed ones. It is missing
    /// in the sums: so many times the sum of the column's weights.
    const OFFSET: i32 = 0;
    /// Rows of a tile of fp32.
    const FLOAT_ROWS: usize;
    /// Strips of a tile of fp32.
    const FLOAT_STRIPS: usize;
    /// Rows of a tile of bf16.
    const PAIR_ROWS: usize = Self::FLOAT_ROWS;
    /// Strips of a tile of bf16.
    const PAIR_STRIPS: usize = Self::FLOAT_STRIPS;
    /// What the pairs of a row are a multiple of.
    const PAIR_SPAN: usize = 1;
    /// [`CHUNK`] for int8 and bf16.
    const CHUNK: usize = CHUNK;
    /// Whether there are thirty-two registers of sixteen floats.
    const WIDE: bool;
    /// Whether `mul_add` is one instruction, and not a call.
    const FUSED: bool;
    /// Whether [`Self::multiply_pairs`] is written with instructions for bf16.
    const NATIVE_BF16: bool = false;

    /// The set, where this processor has it.
    fn detect() -> Option<Self>;

    /// Runs `step` compiled for this set.
    fn perform<S: Step>(self, step: S);

    /// Lays out a group of a row: four bytes, the first in the lowest.
    #[inline(always)]
    fn pack(group: u32, words: &mut [u32]) {
        words[0] = group;
    }

    /// Groups of a row of `inputs` numbers.
    #[inline(always)]
    fn groups(inputs: usize) -> usize {
        inputs.div_ceil(GROUP).next_multiple_of(Self::ROW_SPAN)
    }

    /// Pairs of a row of `inputs` numbers.
    #[inline(always)]
    fn pairs(inputs: usize) -> usize {
        inputs.div_ceil(2).next_multiple_of(Self::PAIR_SPAN)
    }

    /// Where a group of a row begins in a block of rows. The same group of the next row is [`Self::ROW`] words behind.
    #[inline(always)]
    fn place(group: usize, row: usize) -> usize {
        let span = Self::ROW_SPAN;
        ((group / span * Self::ROWS + row) * span + group % span) * Self::WORDS
    }

    /// Words from a row of a block to the next.
    const ROW: usize = Self::ROW_SPAN * Self::WORDS;

    /// Where a group of a column begins in a strip.
    #[inline(always)]
    fn column_place(group: usize, column: usize) -> usize {
        let span = Self::COLUMN_SPAN;
        ((group / span * COLUMNS + column) * span + group % span) * GROUP
    }

    /// The strips of a product as it reads them, made of strips with one group after the other. `room` is for those
    /// that have to be written anew.
    #[inline(always)]
    fn arrange<'a>(strips: &'a [i8], inputs: usize, room: &'a mut Vec<i8>) -> &'a [i8] {
        let size = Self::groups(inputs) * COLUMNS * GROUP;
        let stored = inputs.div_ceil(GROUP) * COLUMNS * GROUP;
        if Self::COLUMN_SPAN == 1 && size == stored {
            return strips;
        }
        room.clear();
        room.resize(strips.len() / stored * size, 0);
        for (strip, stored) in room.chunks_exact_mut(size).zip(strips.chunks_exact(stored)) {
            for (group, columns) in stored.chunks_exact(COLUMNS * GROUP).enumerate() {
                for (column, weights) in columns.as_chunks::<GROUP>().0.iter().enumerate() {
                    let at = Self::column_place(group, column);
                    strip[at..at + GROUP].copy_from_slice(weights);
                }
            }
        }
        room
    }

    /// A Hadamard transform over the four quarters of each register.
    #[inline(always)]
    fn mix_quarters(self, registers: &mut [Lanes]) {
        for lanes in registers {
            let (first, second) = lanes.split_at_mut(8);
            let (a, b) = first.split_at_mut(4);
            let (c, d) = second.split_at_mut(4);
            for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
                let (sum, difference) = (*a + *b, *a - *b);
                let (other_sum, other_difference) = (*c + *d, *c - *d);
                (*a, *c) = (sum + other_sum, sum - other_sum);
                (*b, *d) = (difference + other_difference, difference - other_difference);
            }
        }
    }

    /// Multiplies a tile: `[count, strips, COLUMNS]`. Must be `#[inline(always)]`, as [`Step::run`].
    fn multiply(self, tile: &Tile<'_>, sums: &mut [i32]);

    /// Multiplies a tile of fp32, likewise: `[count, strips, COLUMNS]`, each sum in the order of the
    /// inputs.
    fn multiply_floats(self, tile: &FloatTile<'_>, sums: &mut [f32]);

    /// Adds `panel^T x lanes` to `sums`, in order.
    #[inline(always)]
    fn add_products<const LANES: usize>(
        panel: &[[f32; STEP]],
        lanes: &[[f32; LANES]],
        sums: &mut [[f32; LANES]; STEP],
    ) {
        let mut added = *sums;
        for (numbers, lanes) in panel.iter().zip(lanes) {
            for (sums, &number) in added.iter_mut().zip(numbers) {
                for (sum, &lane) in sums.iter_mut().zip(lanes) {
                    *sum = multiply_add::<Self>(number, lane, *sum);
                }
            }
        }
        *sums = added;
    }

    /// Multiplies a tile of bf16, likewise. Every sum is rounded to fp32 after each product, in the order of the
    /// pairs, and in a pair the second product first: what `VDPBF16PS` does. AMX has an order of its own.
    #[inline(always)]
    fn multiply_pairs(self, tile: &PairTile<'_>, sums: &mut [f32]) {
        bf16::multiply_widened::<Self>(tile, sums);
    }
}

/// Code that is compiled once for each instruction set. `run` must be `#[inline(always)]`: only then does the
/// compiler use the registers of the set in it.
pub(super) trait Step {
    /// Runs it.
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
            let inputs = self.groups * GROUP;
            let strip = inputs * COLUMNS;
            let groups = I::groups(inputs);
            let width = self.strips.len() / strip * COLUMNS;
            self.sums.resize(self.rows.len() * width, 0);
            let mut room = Vec::new();
            for (block, rows) in self.rows.chunks(I::ROWS).enumerate() {
                let mut words = vec![u32::MAX; groups * I::ROWS * I::WORDS];
                for (place, row) in rows.iter().enumerate() {
                    for (group, numbers) in row.as_chunks::<GROUP>().0.iter().enumerate() {
                        let at = I::place(group, place);
                        let numbers = u32::from_le_bytes(*numbers);
                        I::pack(numbers, &mut words[at..at + I::WORDS]);
                    }
                }
                for (part, strips) in self.strips.chunks(I::STRIPS * strip).enumerate() {
                    let offsets = strips.chunks_exact(strip).flat_map(|strip| {
                        (0..COLUMNS).map(|column| {
                            let groups = strip[column * GROUP..].chunks(COLUMNS * GROUP);
                            let weights = groups.flat_map(|group| &group[..GROUP]);
                            I::OFFSET * weights.map(|&weight| i32::from(weight)).sum::<i32>()
                        })
                    });
                    let offsets: Vec<i32> = offsets.collect();
                    let tile = Tile {
                        rows: &words,
                        count: rows.len(),
                        strips: I::arrange(strips, inputs, &mut room),
                        groups,
                    };
                    let mut sums: Sums = [i32::MIN; MAX_SUMS];
                    isa.multiply(&tile, &mut sums);
                    let columns = tile.strip_count() * COLUMNS;
                    for (row, sums) in sums.chunks_exact(columns).take(rows.len()).enumerate() {
                        let at = (block * I::ROWS + row) * width + part * I::STRIPS * COLUMNS;
                        let own = self.sums[at..at + columns].iter_mut();
                        for ((own, sum), offset) in own.zip(sums).zip(&offsets) {
                            *own = sum + offset;
                        }
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
        for set in InstructionSet::available() {
            let mut sums = Vec::new();
            set.perform(Products {
                rows,
                strips,
                groups,
                sums: &mut sums,
            });
            assert!(sums == expected, "{}", set.name());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_instruction_set_gives_the_same_sums(
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
    fn every_processor_has_the_portable_set_and_prefers_others() {
        let names: Vec<&str> = InstructionSet::available()
            .iter()
            .map(|set| set.name())
            .collect();
        assert_eq!(names.last(), Some(&"portable"), "{names:?}");
        assert_eq!(InstructionSet::best().favors_own_fp32(), names.len() > 1);
        // Without instructions for products of bytes, as many are multiplied at once as in fp32.
        let fast = InstructionSet::best().name() != "neon";
        assert_eq!(
            InstructionSet::best().favors_int8(),
            names.len() > 1 && fast
        );
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
