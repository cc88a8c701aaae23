//! Dense layers in eight bits: how they are made and how they lie in memory.

/// Outputs of one strip: what a register of AVX-512 holds sums for.
pub const COLUMNS: usize = 16;
/// Inputs whose products are summed by one instruction.
pub const GROUP: usize = 4;
/// Largest weight.
pub const WEIGHT_MAX: f32 = 127.0;

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
    /// Quantises dense layers as they are stored, `[outputs, inputs]`, one after the other.
    pub fn new(matrices: &[&[f32]], inputs: usize) -> Self {
        let rows: Vec<&[f32]> = matrices
            .iter()
            .flat_map(|m| m.chunks_exact(inputs))
            .collect();
        let mut strips = vec![0; rows.len().div_ceil(COLUMNS) * strip_size(inputs)];
        let mut scales = Vec::with_capacity(rows.len());
        let mut sums = Vec::with_capacity(rows.len());
        for (output, row) in rows.iter().enumerate() {
            let scale = scale(row);
            let start = output / COLUMNS * strip_size(inputs) + output % COLUMNS * GROUP;
            let mut sum = 0;
            for (input, &weight) in row.iter().enumerate() {
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

/// Quantises each row of a table `[rows, width]` by its own largest number: the numbers, and what they
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
