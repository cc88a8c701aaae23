//! One vector for each of the sequences that lie end to end.

/// How the tokens of a sequence become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The largest number of each dimension.
    Max,
    /// The mean.
    Mean,
    /// The sum over the root of the number of tokens.
    MeanSqrt,
    /// The mean, where the n-th token counts n times.
    WeightedMean,
    /// The last token.
    Last,
}

/// Pools `hidden`, `[tokens, width]`, to `output`, `[sequences, width]`. No sequence is empty, and all
/// of them are as long as `hidden`.
pub fn pool(mode: Mode, hidden: &[f32], lengths: &[i32], output: &mut [f32]) {
    if lengths.is_empty() {
        return;
    }
    let width = output.len() / lengths.len();
    let mut rest = hidden;
    for (&length, output) in lengths.iter().zip(output.chunks_exact_mut(width)) {
        let (tokens, after) = rest.split_at(length as usize * width);
        one(mode, tokens, output);
        rest = after;
    }
}

fn one(mode: Mode, tokens: &[f32], output: &mut [f32]) {
    let width = output.len();
    let count = (tokens.len() / width) as f32;
    let rows = tokens.chunks_exact(width);
    let add = |output: &mut [f32], row: &[f32], factor: f32| {
        for (output, &x) in output.iter_mut().zip(row) {
            *output += x * factor;
        }
    };
    match mode {
        Mode::Last => output.copy_from_slice(&tokens[tokens.len() - width..]),
        Mode::Max => {
            output.fill(f32::NEG_INFINITY);
            for row in rows {
                for (output, &x) in output.iter_mut().zip(row) {
                    // What is not a number stays so.
                    if x > *output || x.is_nan() {
                        *output = x;
                    }
                }
            }
        }
        Mode::Mean | Mode::MeanSqrt => {
            output.fill(0.0);
            rows.for_each(|row| add(output, row, 1.0));
            let divisor = match mode {
                Mode::MeanSqrt => count.sqrt(),
                _ => count,
            };
            output.iter_mut().for_each(|x| *x /= divisor);
        }
        Mode::WeightedMean => {
            output.fill(0.0);
            for (index, row) in rows.enumerate() {
                add(output, row, (index + 1) as f32);
            }
            let divisor = count * (count + 1.0) / 2.0;
            output.iter_mut().for_each(|x| *x /= divisor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sequence_is_pooled_by_itself() {
        let hidden = [1.0, -4.0, 3.0, -2.0, 5.0, 9.0, 7.0, 8.0];
        let pooled = |mode| {
            let mut output = [f32::NAN; 4];
            pool(mode, &hidden, &[3, 1], &mut output);
            output
        };
        assert_eq!(pooled(Mode::Max), [5.0, 9.0, 7.0, 8.0]);
        assert_eq!(pooled(Mode::Mean), [3.0, 1.0, 7.0, 8.0]);
        let root = 3_f32.sqrt();
        assert_eq!(pooled(Mode::MeanSqrt), [9.0 / root, 3.0 / root, 7.0, 8.0]);
        assert_eq!(
            pooled(Mode::WeightedMean),
            [22.0 / 6.0, 19.0 / 6.0, 7.0, 8.0]
        );
        assert_eq!(pooled(Mode::Last), [5.0, 9.0, 7.0, 8.0]);
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        let mut output = [0.0];
        pool(Mode::Max, &[1.0, f32::NAN, 2.0], &[3], &mut output);
        assert!(output[0].is_nan());
    }
}
