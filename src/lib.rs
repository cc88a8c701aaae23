//! `rerankd`: an HTTP reranking service for sentence-transformers cross-encoders.
//!
//! The modules form layers and import downward only; `ARCHITECTURE.md` holds the map.

pub mod cli;
pub mod config;
pub mod http;
pub mod metrics;
pub mod rerank;
pub mod service;
pub mod shutdown;
pub mod telemetry;
