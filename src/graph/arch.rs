//! One file an architecture: what its tensors are called and how its head reads the encoder.

pub mod bert;
pub mod roberta;
