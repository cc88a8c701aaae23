//! A reranking engine: loads a model, batches the pairs of many requests and scores them fairly.
//!
//! No HTTP, no settings, no environment: the caller brings all of it.

pub mod admission;
pub mod batcher;
pub mod bulk;
pub mod cache;
pub mod config;
pub mod cost;
pub mod load;
pub mod metrics;
pub mod plan;
pub mod service;
pub mod trace;
