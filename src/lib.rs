//! `rerankd`: an HTTP reranking service for sentence-transformers cross-encoders.
//!
//! This package is the edge: settings, commands, HTTP and telemetry. `ARCHITECTURE.md` says what each
//! crate below it holds.

pub mod cli;
pub mod config;
pub mod cores;
pub mod http;
pub mod metrics;
pub mod shutdown;
pub mod telemetry;
