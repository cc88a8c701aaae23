//! Elementary functions without a branch, so that a register of numbers is computed at once.
//!
//! `FUSED` says that `mul_add` is one instruction where the function is compiled, and not a call.

/// `a b + c`.
#[inline(always)]
pub(super) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Adding it to a number of at most 22 bits leaves the nearest whole number, ties to even, in the low
/// bits.
const ROUND: f32 = 12_582_912.0;

/// The nearest whole number; ties to even.
#[inline(always)]
pub(super) fn round_to_i32(x: f32) -> i32 {
    ((x + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32)
}

/// `e^x` for `x <= 0`, to about one unit in the last place; below the smallest normal number, 0 or
/// nearly so.
#[inline(always)]
pub(super) fn exp<const FUSED: bool>(x: f32) -> f32 {
    /// `ln 2` as a short number, of which multiples are exact, and the rest.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -87.0 { x } else { -87.0 };
    let shifted = multiply_add::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
    let whole = shifted - ROUND;
    let rest = multiply_add::<FUSED>(whole, -LN2_HIGH, x);
    let rest = multiply_add::<FUSED>(whole, -LN2_LOW, rest);
    // Taylor's series; |rest| <= ln 2 / 2 makes the next term smaller than 2^-24.
    let mut sum = 1.0 / 720.0;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = multiply_add::<FUSED>(sum, rest, coefficient);
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    sum * f32::from_bits(exponent.wrapping_add(127) << 23)
}

/// `x (1 + erf(x / sqrt 2)) / 2`, to about 2e-7.
///
/// The error function is formula 7.1.26 of Abramowitz and Stegun, Handbook of Mathematical
/// Functions.
#[inline(always)]
pub(super) fn gelu<const FUSED: bool>(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / multiply_add::<FUSED>(0.327_591_1, z, 1.0);
    let mut sum = 1.061_405_4;
    for coefficient in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
        sum = multiply_add::<FUSED>(sum, t, coefficient);
    }
    // 1 - erf(z), which is what a negative `x` keeps of itself and a positive one loses.
    let rest = sum * t * exp::<FUSED>(-z * z);
    let kept = if x < 0.0 { rest } else { 2.0 - rest };
    0.5 * x * kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn exp_is_close(x in -100.0_f32..0.0) {
            let exact = f64::from(x).exp();
            let ours = f64::from(exp::<true>(x));
            prop_assert!((ours - exact).abs() <= 3e-7 * exact + 1e-37);
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
            prop_assert!((f64::from(gelu::<true>(x)) - exact).abs() < 3e-7 * (1.0 + exact.abs()));
        }

        #[test]
        fn rounding_is_to_the_nearest(x in -2047.0_f32..2047.0) {
            prop_assert_eq!(round_to_i32(x), x.round_ties_even() as i32);
        }
    }

    #[test]
    fn exp_of_zero_is_one() {
        assert_eq!(exp::<true>(0.0), 1.0);
        assert!(exp::<true>(f32::NEG_INFINITY) < 1e-37);
    }
}
