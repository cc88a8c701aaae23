//! AMX: a tile of sixteen rows and sixteen columns an instruction, with 64 bytes of each row; all else as
//! [`super::avx512_bf16`].
//!
//! Instructions are text: Rust has no stable intrinsics for them.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

use super::avx512_bf16::Avx512Bf16;
use super::{FloatTile, Isa, MAX_SUMS, PAIR_PADDING, PairTile, Step, Tile};
use crate::elementary::Lanes;
use crate::quantize::{COLUMNS, GROUP};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Amx(Avx512Bf16);

/// Rows of a tile register.
const TILE_ROWS: usize = 16;
/// Bytes of a row of a tile register.
const TILE_BYTES: usize = 64;
/// Bytes of a tile register.
const TILE_SIZE: usize = TILE_ROWS * TILE_BYTES;

impl Isa for Amx {
    const NAME: &'static str = "amx";
    const OPTIMIZED: bool = true;
    /// Two tile registers; with two strips, four of sums: each operand is loaded for two products.
    const ROWS: usize = 2 * TILE_ROWS;
    const STRIPS: usize = 2;
    const WORDS: usize = 1;
    const ROW_SPAN: usize = TILE_BYTES / GROUP;
    const COLUMN_SPAN: usize = 1;
    const FLOAT_ROWS: usize = Avx512Bf16::FLOAT_ROWS;
    const FLOAT_STRIPS: usize = Avx512Bf16::FLOAT_STRIPS;
    const PAIR_ROWS: usize = Self::ROWS;
    const PAIR_STRIPS: usize = Self::STRIPS;
    const PAIR_SPAN: usize = TILE_BYTES / 4;
    /// One tile of rows: measured to be 5 to 20 % faster than 48 and 64.
    const CHUNK: usize = Self::ROWS;
    const WIDE: bool = true;
    const FUSED: bool = true;
    const NATIVE_BF16: bool = true;

    fn detect() -> Option<Self> {
        let avx512 = Avx512Bf16::detect()?;
        let features = __cpuid_count(7, 0).edx;
        let found = [BF16_BIT, TILE_BIT, INT8_BIT]
            .iter()
            .all(|bit| features >> bit & 1 == 1);
        (found && permitted()).then_some(Self(avx512))
    }

    fn perform<S: Step>(self, step: S) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16,avx2,fma")]
        fn run<S: Step>(isa: Amx, step: S) {
            step.run(isa)
        }
        // SAFETY: `self` proves that the processor has these features, and tiles, which are released in the end: a
        // thread that holds some takes longer to switch to.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, preserves_flags, readonly));
            run(self, step);
            asm!("tilerelease", options(nostack, preserves_flags, nomem));
        }
    }

    #[inline(always)]
    fn mix_quarters(self, registers: &mut [Lanes]) {
        self.0.mix_quarters(registers);
    }

    #[inline(always)]
    fn multiply(self, tile: &Tile<'_>, sums: &mut [i32]) {
        let groups = tile.groups;
        assert!(groups.is_multiple_of(Self::ROW_SPAN));
        assert!(tile.rows.len() >= groups * Self::ROWS);
        assert!(tile.strips.len() >= tile.strip_count() * groups * COLUMNS * GROUP);
        let product = Product {
            rows: tile.rows.as_ptr().cast(),
            row_stride: TILE_BYTES,
            // A block holds the other tile of rows behind the first one.
            other_rows: TILE_SIZE,
            row_step: 2 * TILE_SIZE,
            strips: tile.strips.as_ptr().cast(),
            strip_size: groups * COLUMNS * GROUP,
            steps: groups / Self::ROW_SPAN,
        };
        product.write(tile.count, tile.strip_count(), sums, Kind::Int8);
    }

    #[inline(always)]
    fn multiply_floats(self, tile: &FloatTile<'_>, sums: &mut [f32]) {
        self.0.multiply_floats(tile, sums);
    }

    /// The sums of even and of odd inputs are made each by itself over the sixteen pairs of a tile, rounded after
    /// each product, then added to each other and to the sum so far.
    #[inline(always)]
    fn multiply_pairs(self, tile: &PairTile<'_>, sums: &mut [f32]) {
        let pairs = tile.pairs;
        assert!(pairs.is_multiple_of(Self::PAIR_SPAN));
        assert!(tile.rows.len() >= tile.count.next_multiple_of(PAIR_PADDING) * pairs);
        assert!(tile.strips.len() >= tile.strip_count() * pairs * COLUMNS);
        let product = Product {
            rows: tile.rows.as_ptr().cast(),
            row_stride: pairs * 4,
            other_rows: TILE_ROWS * pairs * 4,
            row_step: TILE_BYTES,
            strips: tile.strips.as_ptr().cast(),
            strip_size: pairs * COLUMNS * 4,
            steps: pairs / Self::PAIR_SPAN,
        };
        product.write(tile.count, tile.strip_count(), sums, Kind::Bf16);
    }
}

/// The operands of a tile, in bytes.
struct Product {
    rows: *const u8,
    /// From a row to the next.
    row_stride: usize,
    /// From a row to the one that is [`TILE_ROWS`] behind it.
    other_rows: usize,
    /// From what a tile register holds of the rows to what it holds next.
    row_step: usize,
    strips: *const u8,
    strip_size: usize,
    /// How many tile registers a row takes.
    steps: usize,
}

/// The numbers that are multiplied.
#[derive(Clone, Copy)]
enum Kind {
    Int8,
    Bf16,
}

/// The instructions that multiply tiles of rows and strips, and store the sums. `1` and `2` are how many there are.
#[rustfmt::skip]
macro_rules! product {
    ($multiply:literal, $rows:tt, $strips:tt) => {
        concat!(
            "tilezero tmm0\n tilezero tmm1\n tilezero tmm2\n tilezero tmm3\n",
            "2:\n",
            "tileloadd tmm4, [{rows} + {row_stride}]\n",
            "tileloadd tmm6, [{strip} + {strip_stride}]\n",
            $multiply, " tmm0, tmm4, tmm6\n",
            product!(@ $rows, "tileloadd tmm5, [{other_rows} + {row_stride}]\n"),
            product!(@ $rows, $multiply, " tmm1, tmm5, tmm6\n"),
            product!(@ $strips, "tileloadd tmm7, [{other_strip} + {strip_stride}]\n"),
            product!(@ $strips, $multiply, " tmm2, tmm4, tmm7\n"),
            product!(@ $strips, product!(@ $rows, $multiply, " tmm3, tmm5, tmm7\n")),
            "add {rows}, {row_step}\n",
            "add {other_rows}, {row_step}\n",
            "add {strip}, {strip_step}\n",
            "add {other_strip}, {strip_step}\n",
            "dec {steps}\n",
            "jnz 2b\n",
            "tilestored [{sums} + {sum_stride}], tmm0\n",
            product!(@ $rows, "tilestored [{other_sums} + {sum_stride}], tmm1\n"),
            product!(@ $strips, "tilestored [{sums} + {sum_stride} + {columns}], tmm2\n"),
            product!(@ $strips, product!(@ $rows, "tilestored [{other_sums} + {sum_stride} + {columns}], tmm3\n")),
        )
    };
    // As a comment: every operand has to be mentioned.
    (@ 1, $($text:expr),+) => { concat!("# ", $($text),+) };
    (@ 2, $($text:expr),+) => { concat!($($text),+) };
}

impl Product {
    /// Writes `count` rows of the sums with so many strips.
    #[inline(always)]
    fn write<T: Copy + Default>(&self, count: usize, strips: usize, sums: &mut [T], kind: Kind) {
        const { assert!(size_of::<T>() == 4) };
        let tiles = count.div_ceil(TILE_ROWS);
        assert!((1..=2).contains(&tiles) && (1..=2).contains(&strips) && self.steps > 0);
        let width = strips * COLUMNS;
        if sums.len() >= tiles * TILE_ROWS * width {
            // SAFETY: this holds what is written, and the callers' assertions what is read.
            unsafe { self.store(tiles, strips, sums.as_mut_ptr(), kind) };
        } else {
            let mut block = [T::default(); MAX_SUMS];
            // SAFETY: likewise; a block has room for four tile registers.
            unsafe { self.store(tiles, strips, block.as_mut_ptr(), kind) };
            sums[..count * width].copy_from_slice(&block[..count * width]);
        }
    }

    /// Writes all rows of some tiles of rows.
    ///
    /// # Safety
    /// `sums` has room for them, and the operands are as long as the fields say.
    #[inline(always)]
    unsafe fn store<T>(&self, tiles: usize, strips: usize, sums: *mut T, kind: Kind) {
        macro_rules! run {
            ($multiply:literal, $rows:tt, $strips:tt) => {
                // SAFETY: it reads and writes what the caller promises, and tile registers only. They are configured
                // by `Amx::perform`, which whoever holds an `Amx` is inside of.
                unsafe {
                    asm!(
                        product!($multiply, $rows, $strips),
                        rows = inout(reg) self.rows => _,
                        other_rows = inout(reg) self.rows.wrapping_add(self.other_rows) => _,
                        row_stride = in(reg) self.row_stride,
                        row_step = in(reg) self.row_step,
                        strip = inout(reg) self.strips => _,
                        other_strip = inout(reg) self.strips.wrapping_add(self.strip_size) => _,
                        strip_stride = in(reg) TILE_BYTES,
                        strip_step = const TILE_SIZE,
                        steps = inout(reg) self.steps => _,
                        sums = in(reg) sums,
                        other_sums = in(reg) sums.wrapping_add($strips * TILE_ROWS * COLUMNS),
                        sum_stride = in(reg) $strips * COLUMNS * 4,
                        columns = const COLUMNS * 4,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    )
                }
            };
        }
        match (kind, tiles, strips) {
            (Kind::Int8, 1, 1) => run!("tdpbusd", 1, 1),
            (Kind::Int8, 1, _) => run!("tdpbusd", 1, 2),
            (Kind::Int8, _, 1) => run!("tdpbusd", 2, 1),
            (Kind::Int8, ..) => run!("tdpbusd", 2, 2),
            (Kind::Bf16, 1, 1) => run!("tdpbf16ps", 1, 1),
            (Kind::Bf16, 1, _) => run!("tdpbf16ps", 1, 2),
            (Kind::Bf16, _, 1) => run!("tdpbf16ps", 2, 1),
            (Kind::Bf16, ..) => run!("tdpbf16ps", 2, 2),
        }
    }
}

/// What `LDTILECFG` reads: eight registers of the largest size.
static CONFIGURATION: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [TILE_BYTES as u16; 8],
    reserved_row_bytes: [0; 8],
    rows: [TILE_ROWS as u8; 8],
    reserved_rows: [0; 8],
};

#[repr(C)]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 8],
    reserved_row_bytes: [u16; 8],
    rows: [u8; 8],
    reserved_rows: [u8; 8],
}

/// Bits of `EDX` for leaf 7 of `CPUID`.
const BF16_BIT: u32 = 22;
const TILE_BIT: u32 = 24;
const INT8_BIT: u32 = 25;

/// Asks Linux to let this process use tile registers: it keeps no room for them otherwise.
fn permitted() -> bool {
    /// Of `arch_prctl`, from `asm/prctl.h`.
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: it changes nothing but the permission, and takes no pointer.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        ) == 0
    }
}
