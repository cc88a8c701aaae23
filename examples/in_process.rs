//! Ranks documents inside another program, without a server. Its argument is the full path of
//! `libonnxruntime.so`, which `make onnxruntime` puts into `target/onnxruntime/`.

use rerankd_engine::{Limits, LoadConfig, Metrics, RerankCommand, ScoreOptions, load};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime_library = std::env::args_os().nth(1);
    let config = LoadConfig {
        runtime_library,
        ..LoadConfig::default()
    };
    let reranker = load(&config, Metrics::new())?;
    let documents = ["Berlin is in Germany.", "Paris is the capital of France."].map(String::from);
    let (options, limits) = (ScoreOptions::default(), Limits::default());
    let query = "What is the capital of France?".to_owned();
    let command = RerankCommand::new(query, documents.to_vec(), None, options, &limits)?;
    for ranked in reranker.rerank(command).await?.results {
        println!("{:.4} {}", ranked.score, documents[ranked.index]);
    }
    Ok(())
}
