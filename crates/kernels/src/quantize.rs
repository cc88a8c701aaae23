//! Dense layers in eight bits: how they are made and how they lie in memory.

use crate::rotation::rotate_weights;

/// Outputs of one strip: what a register of AVX-512 holds sums for.
pub const COLUMNS: usize = 16;
/// Inputs whose products are summed by one instruction.
pub const GROUP: usize = 4;
/// Largest weight.
pub const WEIGHT_MAX: f32 = 127.0;

/// What happens to the inputs of a dense layer before they are quantized: channel-wise shifting and scaling, as in
/// Outlier Suppression+ ([Wei et al. 2023](https://arxiv.org/abs/2304.09145)). The weights undo it.
///
/// Few channels of what LayerNorm writes are far from zero in every row. Without a shift they take most of a row's
/// 256 steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Equalization {
    /// What is subtracted from an input, `[inputs]`.
    pub shifts: Vec<f32>,
    /// What it is then multiplied by, `[inputs]`.
    pub factors: Vec<f32>,
}

impl Equalization {
    /// For inputs that LayerNorm writes with `gamma` and `beta`, `[inputs]` each, and the dense layers `[outputs,
    /// inputs]` that read them. No text is needed to calibrate it: before gamma and beta, a row has mean 0 and
    /// variance 1.
    ///
    /// A factor is the root of the ratio of the channel's weights, as a norm, to gamma. The rounding error of a rotated
    /// row grows with the product of the norms of row and weights, which these factors make least.
    pub fn of_norm(gamma: &[f32], beta: &[f32], matrices: &[&[f32]]) -> Self {
        let mut squares = vec![0.0; gamma.len()];
        for row in matrices.iter().flat_map(|m| m.chunks_exact(gamma.len())) {
            for (square, weight) in squares.iter_mut().zip(row) {
                *square += weight * weight;
            }
        }
        let factor = |((square, gamma), beta): ((&f32, &f32), &f32)| {
            // What is left of an input after the shift is rounded to this.
            let spread = gamma.abs().max(f32::EPSILON * beta.abs());
            match square.sqrt() / spread {
                ratio if ratio > 0.0 && ratio.is_finite() => ratio.sqrt(),
                _ => 1.0,
            }
        };
        Self {
            shifts: beta.to_vec(),
            factors: squares.iter().zip(gamma).zip(beta).map(factor).collect(),
        }
    }

    /// Dense layers `[outputs, inputs]`, one after the other, for inputs that were shifted and scaled. What the
    /// shifts took away is added to `bias`, `[outputs]`.
    pub fn fold(&self, matrices: &[&[f32]], bias: &mut [f32]) -> Vec<f32> {
        let mut folded = matrices.concat();
        for (row, bias) in folded.chunks_exact_mut(self.shifts.len()).zip(bias) {
            let shifted = row.iter().zip(&self.shifts).map(|(w, shift)| w * shift);
            *bias += shifted.sum::<f32>();
            for (weight, factor) in row.iter_mut().zip(&self.factors) {
                *weight /= factor;
            }
        }
        folded
    }
}

/// A matrix `[inputs, outputs]` in eight bits, in the order in which products read it.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// `[strips, inputs / GROUP, COLUMNS, GROUP]`; zeros where there is no such input or output.
    pub strips: Vec<i8>,
    /// What each output's weights were divided by, `[outputs]`.
    pub scales: Vec<f32>,
    /// The sum of each output's weights, `[outputs]`: what a row adds that is moved up by one.
    pub sums: Vec<i32>,
}

impl Quantized {
    /// Quantizes dense layers as they are stored, `[outputs, inputs]`, one after the other, for inputs that are
    /// [rotated](crate::rotation).
    pub fn new(matrices: &[&[f32]], inputs: usize) -> Self {
        let rows: Vec<&[f32]> = matrices
            .iter()
            .flat_map(|m| m.chunks_exact(inputs))
            .collect();
        let mut strips = vec![0; rows.len().div_ceil(COLUMNS) * strip_size(inputs)];
        let mut scales = Vec::with_capacity(rows.len());
        let mut sums = Vec::with_capacity(rows.len());
        for (output, row) in rows.iter().enumerate() {
            let rotated = rotate_weights(row);
            let scale = scale(&rotated);
            let start = output / COLUMNS * strip_size(inputs) + output % COLUMNS * GROUP;
            let mut sum = 0;
            for (input, &weight) in rotated.iter().enumerate() {
                let weight = (weight / scale).round() as i8;
                strips[start + input / GROUP * COLUMNS * GROUP + input % GROUP] = weight;
                sum += i32::from(weight);
            }
            scales.push(scale);
            sums.push(sum);
        }
        Self {
            strips,
            scales,
            sums,
        }
    }
}

/// Quantizes each row of a table `[rows, width]` by its own largest number: the numbers, and what they
/// were divided by, `[rows]`.
pub fn by_row(table: &[f32], width: usize) -> (Vec<i8>, Vec<f32>) {
    let mut numbers = Vec::with_capacity(table.len());
    let mut scales = Vec::with_capacity(table.len() / width);
    for row in table.chunks_exact(width) {
        let scale = scale(row);
        numbers.extend(row.iter().map(|x| (x / scale).round() as i8));
        scales.push(scale);
    }
    (numbers, scales)
}

/// What makes the largest number of a row [`WEIGHT_MAX`]; one for a row of zeros.
fn scale(row: &[f32]) -> f32 {
    match row.iter().fold(0.0_f32, |m, w| m.max(w.abs())) {
        0.0 => 1.0,
        largest => largest / WEIGHT_MAX,
    }
}

/// Weights of one strip.
pub fn strip_size(inputs: usize) -> usize {
    inputs.div_ceil(GROUP) * GROUP * COLUMNS
}
