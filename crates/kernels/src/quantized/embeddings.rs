//! Hidden states before the first layer, from word embeddings in eight bits.

use crate::isa::{InstructionSet, Isa, Step};
use crate::norm::LayerNorm;

/// What tokens are looked up in.
#[derive(Debug, Clone, Copy)]
pub struct Embeddings<'a> {
    /// `[vocabulary, width]`.
    pub words: &'a [i8],
    /// What a word's numbers were divided by, `[vocabulary]`.
    pub scales: &'a [f32],
    /// `[rows, width]`.
    pub positions: &'a [f32],
    /// After the sum of both.
    pub norm: LayerNorm<'a>,
}

/// A token's word or position is in no table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("token {0} has no place in the tables of embeddings")]
pub struct OutOfRange(usize);

/// Writes the hidden states of tokens, `[tokens, width]`.
///
/// # Errors
/// `OutOfRange` names the first token that cannot be looked up.
pub fn embed(
    set: InstructionSet,
    embeddings: &Embeddings<'_>,
    ids: &[i64],
    positions: &[i64],
    output: &mut [f32],
) -> Result<(), OutOfRange> {
    let rows = embeddings.positions.len() / embeddings.norm.gamma.len();
    let inside = |number: i64, count: usize| usize::try_from(number).is_ok_and(|n| n < count);
    let outside = ids.iter().zip(positions).position(|(&id, &position)| {
        !inside(id, embeddings.scales.len()) || !inside(position, rows)
    });
    if let Some(token) = outside {
        return Err(OutOfRange(token));
    }
    set.perform(Embed {
        embeddings,
        ids,
        positions,
        output,
    });
    Ok(())
}

struct Embed<'a> {
    embeddings: &'a Embeddings<'a>,
    ids: &'a [i64],
    positions: &'a [i64],
    output: &'a mut [f32],
}

impl Step for Embed<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let Embeddings {
            words,
            scales,
            positions,
            norm,
        } = self.embeddings;
        let width = norm.gamma.len();
        let tokens = self.ids.iter().zip(self.positions);
        for ((&id, &position), output) in tokens.zip(self.output.chunks_exact_mut(width)) {
            let scale = scales[id as usize];
            let word = &words[id as usize * width..][..width];
            for (output, &number) in output.iter_mut().zip(word) {
                *output = f32::from(number) * scale;
            }
            norm.apply_to_sum::<I>(output, &positions[position as usize * width..][..width]);
        }
    }
}
