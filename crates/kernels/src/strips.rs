//! Dense layers of floats in the order in which products read them.

use crate::quantize::COLUMNS;

/// Dense layers as they are stored, `[outputs, inputs]`, one after the other, as `[strips, inputs,
/// COLUMNS]`; zeros where there is no such output.
pub fn strips<T: Copy + Default>(matrices: &[&[T]], inputs: usize) -> Vec<T> {
    let rows = matrices.iter().flat_map(|m| m.chunks_exact(inputs));
    let outputs = rows.clone().count();
    let mut strips = vec![T::default(); outputs.next_multiple_of(COLUMNS) * inputs];
    for (output, row) in rows.enumerate() {
        let start = output / COLUMNS * COLUMNS * inputs + output % COLUMNS;
        let cells = strips[start..].iter_mut().step_by(COLUMNS);
        for (cell, &weight) in cells.zip(row) {
            *cell = weight;
        }
    }
    strips
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_weight_has_its_place() {
        let (inputs, outputs) = (5, 37);
        let weights: Vec<f32> = (0..inputs * outputs).map(|i| i as f32 + 1.0).collect();
        let strips = strips(&[&weights[..30], &weights[30..]], inputs);
        assert_eq!(strips.len(), 3 * inputs * COLUMNS);
        for output in 0..48 {
            for input in 0..inputs {
                let place = (output / COLUMNS * inputs + input) * COLUMNS + output % COLUMNS;
                let weight = weights.get(output * inputs + input).copied();
                assert_eq!(strips[place], weight.unwrap_or(0.0));
            }
        }
    }
}
