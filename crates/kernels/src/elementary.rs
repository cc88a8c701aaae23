//! Elementary functions without a branch, so that a register of numbers is computed at once.
//!
//! They are inlined into kernels, and so compiled for each instruction set. All of them keep NaN.

use super::isa::{Isa, multiply_add};

/// Numbers that are worked on at once where a sum or the like runs over a row: a register of
/// AVX-512, two of AVX2.
pub(super) const LANES: usize = 16;
/// As many numbers.
pub(super) type Lanes = [f32; LANES];

/// All lanes, a power of two, in one, in an order that is the same for every row.
#[inline(always)]
pub(super) fn fold<const N: usize>(lanes: [f32; N], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = lanes;
    let mut count = N;
    while count > 1 {
        count /= 2;
        for lane in 0..count {
            lanes[lane] = join(lanes[lane], lanes[lane + count]);
        }
    }
    lanes[0]
}

/// Adding it to a number of at most 22 bits leaves the nearest whole number, ties to even, in the low
/// bits.
const ROUND: f32 = 12_582_912.0;

/// The nearest whole number; ties to even.
#[inline(always)]
pub(super) fn round_to_i32(x: f32) -> i32 {
    ((x + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32)
}

/// `e^x` for `x <= 0`, to about one unit in the last place; 0 or nearly so below the smallest normal number.
#[inline(always)]
pub(super) fn exp<I: Isa>(x: f32) -> f32 {
    /// `ln 2` as a short number, of which multiples are exact, and the rest.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // In this order of operands NaN is kept, in the one instruction too.
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = multiply_add::<I>(x, std::f32::consts::LOG2_E, ROUND);
    let whole = shifted - ROUND;
    let rest = multiply_add::<I>(whole, -LN2_HIGH, x);
    let rest = multiply_add::<I>(whole, -LN2_LOW, rest);
    // Taylor's series; |rest| <= ln 2 / 2 makes the next term smaller than 2^-24.
    let mut sum = 1.0 / 720.0;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = multiply_add::<I>(sum, rest, coefficient);
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    sum * f32::from_bits(exponent.wrapping_add(127) << 23)
}

/// `2^x` for `x <= 0`, to 1e-4 of it: enough for a weight of softmax beside values in eight bits.
#[inline(always)]
pub(super) fn rough_exp2<I: Isa>(x: f32) -> f32 {
    let x = if x < -126.0 { -126.0 } else { x };
    let shifted = x + ROUND;
    let rest = x - (shifted - ROUND);
    // The polynomial of least error between -1/2 and 1/2.
    let mut sum = 5.517_167e-2;
    for coefficient in [2.426_111_3e-1, 6.932_61e-1, 9.999_281e-1] {
        sum = multiply_add::<I>(sum, rest, coefficient);
    }
    // The whole part, which `shifted` has in its low bits, is added to the exponent.
    f32::from_bits(sum.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// `x (1 + erf(x / sqrt 2)) / 2`, to 2e-4, which is far below a step of eight bits, and takes a
/// dozen instructions.
#[inline(always)]
pub(super) fn rough_gelu<I: Isa>(x: f32) -> f32 {
    /// From here on the distribution function is one, and below the opposite zero.
    const END: f32 = 4.0;
    // The odd polynomial of least error of `x f(x)` between zero and the end, where it is one half.
    let near = x.clamp(-END, END);
    let square = near * near;
    let mut sum = 2.258_814_6e-8;
    for coefficient in [
        -1.588_823_7e-6,
        4.776_381_3e-5,
        -8.121_867e-4,
        8.763_688e-3,
        -6.455_44e-2,
        3.978_702_7e-1,
    ] {
        sum = multiply_add::<I>(sum, square, coefficient);
    }
    x * multiply_add::<I>(near, sum, 0.5)
}

/// `x (1 + erf(x / sqrt 2)) / 2`, to 1e-6.
#[inline(always)]
pub(super) fn gelu<I: Isa>(x: f32) -> f32 {
    /// From here on the distribution function is one, and below the opposite zero.
    const END: f32 = 5.2;
    let near = x.clamp(-END, END);
    // The odd polynomial of least error of `x f(x)` between zero and the end, as [`rough_gelu`] has
    // one. In a variable between -1 and 1 its coefficients are small, and so is what rounding does.
    let place = multiply_add::<I>(near * near, 2.0 / (END * END), -1.0);
    let mut sum = -3.458_239_4e-4;
    for coefficient in [
        1.169_069_3e-3,
        -1.589_1e-3,
        2.055_165_6e-3,
        -4.412_348e-3,
        8.318_053e-3,
        -1.268_624e-2,
        1.805_881e-2,
        -2.468_249_2e-2,
        3.197_014_3e-2,
        -3.993_367_8e-2,
        5.002_587e-2,
        -6.774_357e-2,
        1.359_499_8e-1,
    ] {
        sum = multiply_add::<I>(sum, place, coefficient);
    }
    x * multiply_add::<I>(near, sum, 0.5)
}

/// `max(x, 0)`, but NaN is kept.
#[inline(always)]
pub(super) fn relu(x: f32) -> f32 {
    if x > 0.0 { x } else { x * 0.0 }
}

/// GELU by way of a hyperbolic tangent, as some models are trained with it.
#[inline(always)]
pub(super) fn gelu_tanh<I: Isa>(x: f32) -> f32 {
    const ROOT: f32 = 0.797_884_6;
    // `x / (1 + exp(-2 u))` is `x (1 + tanh u) / 2`.
    let u = ROOT * x * multiply_add::<I>(0.044_715 * x, x, 1.0);
    let small = exp::<I>(-2.0 * u.abs());
    let numerator = if u < 0.0 { small } else { 1.0 };
    x * numerator / (1.0 + small)
}

/// SiLU (swish): `x / (1 + e^-x)`.
#[inline(always)]
pub(super) fn silu<I: Isa>(x: f32) -> f32 {
    let small = exp::<I>(-x.abs());
    let numerator = if x < 0.0 { small } else { 1.0 };
    x * numerator / (1.0 + small)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{InstructionSet, Portable, Step};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn exp_is_close(x in -100.0_f32..0.0) {
            let exact = f64::from(x).exp();
            let ours = f64::from(exp::<Portable>(x));
            prop_assert!((ours - exact).abs() <= 3e-7 * exact + 1e-37);
        }

        #[test]
        fn rough_exp2_is_close(x in -126.0_f32..=0.0) {
            let exact = x.exp2();
            prop_assert!((rough_exp2::<Portable>(x) - exact).abs() <= 1e-4 * exact);
        }

        #[test]
        fn gelu_is_close(x in -12.0_f32..12.0) {
            // Against the defining integral, by Simpson's rule.
            let z = f64::from(x) / std::f64::consts::SQRT_2;
            let steps = 2000;
            let h = z / f64::from(steps);
            let f = |i: i32| (-(h * f64::from(i)).powi(2)).exp();
            let inner: f64 = (1..steps).map(|i| f(i) * if i % 2 == 0 { 2.0 } else { 4.0 }).sum();
            let erf = (f(0) + f(steps) + inner) * h / 3.0 * 2.0 / std::f64::consts::PI.sqrt();
            let exact = 0.5 * f64::from(x) * (1.0 + erf);
            let off = |ours: f32| (f64::from(ours) - exact).abs();
            prop_assert!(off(gelu::<Portable>(x)) < 1.5e-6);
            prop_assert!(off(rough_gelu::<Portable>(x)) < 2e-4);
        }

        #[test]
        fn gelu_tanh_is_close(x in -12.0_f32..12.0) {
            let wide = f64::from(x);
            let u = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
            let exact = 0.5 * wide * (1.0 + u.tanh());
            prop_assert!((f64::from(gelu_tanh::<Portable>(x)) - exact).abs() < 5e-7 * (1.0 + exact.abs()));
        }

        #[test]
        fn silu_is_close(x in -80.0_f32..80.0) {
            let wide = f64::from(x);
            let exact = wide / (1.0 + (-wide).exp());
            prop_assert!((f64::from(silu::<Portable>(x)) - exact).abs() < 5e-7 * (1.0 + exact.abs()));
        }

        #[test]
        fn rounding_is_to_the_nearest(x in -2047.0_f32..2047.0) {
            prop_assert_eq!(round_to_i32(x), x.round_ties_even() as i32);
        }
    }

    /// All functions of a register of numbers.
    struct Everything<'a> {
        x: Lanes,
        results: &'a mut Vec<Lanes>,
    }

    impl Step for Everything<'_> {
        #[inline(always)]
        fn run<I: Isa>(self, _: I) {
            let mut apply = |function: fn(f32) -> f32| {
                let mut x = self.x;
                x.iter_mut().for_each(|x| *x = function(*x));
                self.results.push(x);
            };
            apply(exp::<I>);
            apply(rough_exp2::<I>);
            apply(rough_gelu::<I>);
            apply(gelu::<I>);
            apply(gelu_tanh::<I>);
            apply(silu::<I>);
            apply(relu);
            // Inlined, as kernels have it.
            let mut x = self.x;
            x.iter_mut().for_each(|x| *x = exp::<I>(*x));
            self.results.push(x);
        }
    }

    #[test]
    fn nan_stays_nan_with_every_instruction_set() {
        for set in InstructionSet::available() {
            for negative in [false, true] {
                let mut x: Lanes = [-1.0; LANES];
                x[5] = if negative { -f32::NAN } else { f32::NAN };
                let mut results = Vec::new();
                set.perform(Everything {
                    x,
                    results: &mut results,
                });
                for (function, result) in results.iter().enumerate() {
                    for (lane, result) in result.iter().enumerate() {
                        assert_eq!(
                            result.is_nan(),
                            lane == 5,
                            "{}, function {function}, lane {lane}",
                            set.name()
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn exp_of_zero_is_one() {
        assert_eq!(exp::<Portable>(0.0), 1.0);
        assert!(exp::<Portable>(f32::NEG_INFINITY) < 1e-37);
    }
}
