//! SIMD kernels for unpadded transformer encoders and decoders: matrix products in fp32, bf16 and int8, attention over
//! packed sequences, layers, norms and pooling.

pub mod attention;
pub mod bf16;
pub mod causal;
pub mod compute_pool;
mod dense;
mod elementary;
mod epilogue;
pub mod fp32;
pub mod isa;
pub mod layer;
pub mod norm;
pub mod pooling;
pub mod quantize;
pub mod quantized;
pub mod rotation;
pub mod strips;
#[cfg(test)]
mod testing;
