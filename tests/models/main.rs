//! Models: how they are read, what they score, and what they cost.
//!
//! One program holds these tests so that they are linked once. They run in parallel within one process:
//! a test that measures memory measures a child process.

#[path = "../support/mod.rs"]
mod support;

mod bf16;
mod causal;
mod classes;
mod cuda;
mod cuda_graph;
mod embedded;
mod encoder_reference;
mod eval;
mod export;
mod exported;
mod formats;
mod int8;
mod large_model;
mod layouts;
mod memory;
mod parity;
mod verify;
