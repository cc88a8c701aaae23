//! The encoder in eight bits.
//!
//! Weights have eight bits and a scale for each output; rows have eight bits, a scale and a zero each
//! of its own, and attention quantises a sequence by itself. So a score never depends on what shares
//! its batch, and is the same bits whatever does. Sums of products are whole numbers of 32 bits, the
//! same on every processor; [`super::isa`] has what makes them.

mod attention;
mod dense;
mod embeddings;
mod layer;
mod norm;
mod rows;

pub use dense::{Finish, Matrix};
pub use embeddings::{Embeddings, OutOfRange, embed};
pub use layer::{Input, Layer, NotFinite, Scratch, forward};
pub use norm::LayerNorm;

#[cfg(test)]
mod tests;
