//! A reranking engine that other programs can embed: it loads a cross-encoder, batches the pairs of many
//! callers and scores them fairly. No HTTP, no settings, no environment: the caller brings all of it.
//!
//! # Loading
//! ```
//! use rerankd_engine::{LoadConfig, Metrics, load};
//!
//! let config = LoadConfig {
//!     model: Some("../../tests/reference/models/tiny-bert".into()), // the built-in one without
//!     runtime_library: std::env::var_os("ORT_DYLIB_PATH"), // or wherever ONNX Runtime is
//!     ..LoadConfig::default()
//! };
//! let reranker = load(&config, Metrics::new())?;
//! assert_eq!(reranker.info().architecture, "bert");
//! # Ok::<(), rerankd_engine::LoadError>(())
//! ```
//!
//! # Ranking
//! ```
//! # use rerankd_engine::{LoadConfig, Metrics, load};
//! use rerankd_engine::{Limits, RerankCommand, ScoreOptions};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let config = LoadConfig {
//! #     model: Some("../../tests/reference/models/tiny-bert".into()),
//! #     runtime_library: std::env::var_os("ORT_DYLIB_PATH"),
//! #     ..LoadConfig::default()
//! # };
//! # let reranker = load(&config, Metrics::new())?;
//! let documents = vec!["a cat".to_owned(), "a dog".to_owned(), "a fish".to_owned()];
//! let command = RerankCommand::new(
//!     "pets that bark".to_owned(),
//!     documents,
//!     std::num::NonZeroUsize::new(2), // the best two; all without
//!     ScoreOptions::default(),
//!     &Limits::default(),
//! )?;
//! let ranking = reranker.rerank(command).await?;
//! assert_eq!(ranking.results.len(), 2);
//! assert!(ranking.results[0].score >= ranking.results[1].score);
//! # Ok(())
//! # }
//! ```
//!
//! # Scoring
//! ```
//! # use rerankd_engine::{LoadConfig, Metrics, load};
//! use rerankd_engine::{Limits, Pair, PredictCommand, ScoreOptions};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let config = LoadConfig {
//! #     model: Some("../../tests/reference/models/tiny-bert".into()),
//! #     runtime_library: std::env::var_os("ORT_DYLIB_PATH"),
//! #     ..LoadConfig::default()
//! # };
//! # let reranker = load(&config, Metrics::new())?;
//! let pair = |query: &str, document: &str| Pair {
//!     query: query.into(),
//!     document: document.into(),
//! };
//! let pairs = vec![pair("a cat", "a kitten"), pair("a cat", "a truck")];
//! let command = PredictCommand::new(pairs, ScoreOptions::default(), &Limits::default())?;
//! let prediction = reranker.predict(command).await?;
//! assert_eq!(prediction.scores.len(), 2 * prediction.labels);
//! # Ok(())
//! # }
//! ```
//!
//! # Metrics
//! ```
//! use rerankd_engine::Metrics;
//!
//! let registry = prometheus::Registry::new(); // that of the embedding program
//! let metrics = Metrics::new(); // given to `load`
//! metrics.register(&registry)?;
//! assert!(registry.gather().iter().any(|family| family.name() == "rerankd_pairs_total"));
//! # Ok::<(), prometheus::Error>(())
//! ```

mod admission;
mod backlog;
mod batcher;
pub mod bulk;
pub mod cache;
pub mod config;
pub mod cost;
mod estimate;
mod fair;
mod host;
pub mod load;
pub mod metrics;
pub mod plan;
mod queue_delay;
pub mod service;
mod tokenizing;
pub mod trace;

#[doc(hidden)]
pub use batcher::lock_time;

pub use config::{BatchConfig, CacheConfig, Precision};
pub use host::{Host, HostConfig};
pub use load::{LoadConfig, LoadError, load, load_beside, load_on};
pub use metrics::Metrics;
pub use rerankd_core::{
    ErrorCode, Limits, Pair, PredictCommand, Prediction, Ranked, Ranking, RerankCommand,
    RerankError, ScoreOptions,
};
pub use rerankd_runtime::Device;
pub use service::{ModelInfo, Reranker};
