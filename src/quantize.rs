//! Dense layers in eight bits: how they are made and how they lie in memory.

/// Outputs of one panel: two registers of AVX2.
pub const COLUMNS: usize = 16;
/// Largest weight.
pub const WEIGHT_MAX: f32 = 127.0;

/// A matrix `[inputs, outputs]` in eight bits, in the order in which products read it.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// `[panels, inputs / 2, COLUMNS, 2]`: pairs of inputs of [`COLUMNS`] outputs at a time; zeros
    /// where there is no such input or output.
    pub panels: Vec<i8>,
    /// What each output's weights were divided by, `[outputs]`.
    pub scales: Vec<f32>,
}

impl Quantized {
    /// Quantises dense layers as they are stored, `[outputs, inputs]`, one after the other.
    pub fn new(matrices: &[&[f32]], inputs: usize) -> Self {
        let rows: Vec<&[f32]> = matrices
            .iter()
            .flat_map(|m| m.chunks_exact(inputs))
            .collect();
        let mut panels = vec![0; rows.len().div_ceil(COLUMNS) * panel_size(inputs)];
        let mut scales = Vec::with_capacity(rows.len());
        for (output, row) in rows.iter().enumerate() {
            let largest = row.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
            let scale = if largest > 0.0 {
                largest / WEIGHT_MAX
            } else {
                1.0
            };
            let start = output / COLUMNS * panel_size(inputs) + output % COLUMNS * 2;
            for (input, &weight) in row.iter().enumerate() {
                let at = start + input / 2 * COLUMNS * 2 + input % 2;
                panels[at] = (weight / scale).round() as i8;
            }
            scales.push(scale);
        }
        Self { panels, scales }
    }
}

/// Numbers of one panel.
pub fn panel_size(inputs: usize) -> usize {
    inputs.div_ceil(2) * COLUMNS * 2
}
