//! `rerankd`: an HTTP reranking service for sentence-transformers cross-encoders.
//!
//! The modules form layers and import downward only; `ARCHITECTURE.md` holds the map.

pub mod batch;
pub mod encoder;
pub mod metrics;
pub mod model;
pub mod rerank;
