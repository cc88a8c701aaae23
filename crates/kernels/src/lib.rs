//! SIMD kernels for unpadded transformer encoders: matrix products in fp32 and int8, attention over
//! packed sequences, layers, norms and pooling.

pub mod attention;
mod elementary;
pub mod fp32;
pub mod hardware;
pub mod isa;
pub mod layer;
pub mod norm;
pub mod pooling;
pub mod quantize;
pub mod quantized;
pub mod strips;
#[cfg(test)]
mod testing;
