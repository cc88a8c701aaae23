//! LayerNorm and RMSNorm, row by row.

use super::elementary::{LANES, Lanes, fold};
use super::isa::multiply_add;
use super::isa::{Isa, Step};

/// Weights of a LayerNorm.
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm<'a> {
    /// Multiplied in last but one, `[width]`.
    pub gamma: &'a [f32],
    /// Added last, `[width]`.
    pub beta: &'a [f32],
    /// Added to the variance.
    pub epsilon: f32,
}

/// Replaces `x`, `[rows, width]`, by the LayerNorm of `x + residual`.
pub(super) struct Normalize<'a> {
    pub x: &'a mut [f32],
    pub residual: &'a [f32],
    pub norm: LayerNorm<'a>,
}

impl Step for Normalize<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let width = self.norm.gamma.len();
        let rows = self.x.chunks_exact_mut(width);
        for (x, residual) in rows.zip(self.residual.chunks_exact(width)) {
            self.norm.apply_to_sum::<I>(x, residual);
        }
    }
}

/// Replaces `x`, `[rows, width]`, by its LayerNorm.
pub(super) struct NormalizeAlone<'a> {
    pub x: &'a mut [f32],
    pub norm: LayerNorm<'a>,
}

impl Step for NormalizeAlone<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        for x in self.x.chunks_exact_mut(self.norm.gamma.len()) {
            self.norm.apply::<I>(x);
        }
    }
}

impl LayerNorm<'_> {
    /// Replaces a row by the LayerNorm of `x + residual`.
    #[inline(always)]
    pub(super) fn apply_to_sum<I: Isa>(&self, x: &mut [f32], residual: &[f32]) {
        for (x, residual) in x.iter_mut().zip(residual) {
            *x += residual;
        }
        self.apply::<I>(x);
    }

    /// Replaces a row by its LayerNorm.
    #[inline(always)]
    pub(super) fn apply<I: Isa>(&self, x: &mut [f32]) {
        let width = self.gamma.len();
        let mean = sum(x, |x| x) / width as f32;
        let variance = sum(x, |x| (x - mean) * (x - mean)) / width as f32;
        let factor = 1.0 / (variance + self.epsilon).sqrt();
        for ((x, gamma), beta) in x.iter_mut().zip(self.gamma).zip(self.beta) {
            *x = multiply_add::<I>((*x - mean) * factor, *gamma, *beta);
        }
    }
}

/// Weights of an RMSNorm.
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm<'a> {
    /// Multiplied in last, `[width]`.
    pub weight: &'a [f32],
    /// Added to the mean of the squares.
    pub epsilon: f32,
}

/// Replaces `x`, `[rows, width]`, by its RMSNorm.
pub(super) struct NormalizeRms<'a> {
    pub x: &'a mut [f32],
    pub norm: RmsNorm<'a>,
}

impl Step for NormalizeRms<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        for x in self.x.chunks_exact_mut(self.norm.weight.len()) {
            self.norm.apply(x);
        }
    }
}

impl RmsNorm<'_> {
    /// Replaces a row by its RMSNorm.
    #[inline(always)]
    pub(super) fn apply(&self, x: &mut [f32]) {
        let mean = sum(x, |x| x * x) / self.weight.len() as f32;
        let factor = 1.0 / (mean + self.epsilon).sqrt();
        for (x, weight) in x.iter_mut().zip(self.weight) {
            *x = *x * factor * weight;
        }
    }
}

/// The sum of `term` over a row.
#[inline(always)]
fn sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sums: Lanes = [0.0; LANES];
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += term(x);
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += term(x);
    }
    fold(sums, |a, b| a + b)
}
