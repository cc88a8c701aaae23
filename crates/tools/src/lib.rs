//! Benchmarks, evaluation, offline scoring, verification and export.

pub mod bench;
pub mod eval;
pub mod export;
pub mod job;
pub mod verify;
