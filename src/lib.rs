//! `rerankd`: an HTTP reranking service for sentence-transformers cross-encoders.
//!
//! The modules form layers and import downward only; `ARCHITECTURE.md` holds the map.

pub mod admission;
pub mod batch;
pub mod batcher;
pub mod bench;
pub mod bulk;
pub mod cache;
pub mod cli;
pub mod config;
pub mod cores;
pub mod encoder;
pub mod eval;
pub mod export;
pub mod graph;
pub mod http;
pub mod job;
pub mod load;
pub mod metrics;
pub mod model;
pub mod quantize;
pub mod rerank;
pub mod scorer;
pub mod service;
pub mod shutdown;
pub mod telemetry;
pub mod trace;
pub mod verify;
pub mod wire;
