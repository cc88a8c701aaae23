//! What is lost between the model and a client: pairs a second of bare sessions, of the service in
//! the same process, and of the service over HTTP, in turns, on the same requests.
//!
//! ```sh
//! cargo bench --bench throughput [-- ROUNDS]
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use rerankd::config::Config;
use rerankd::http::socket::Socket;
use rerankd::http::state::AppState;
use rerankd::http::{self, ListenerConfig};
use rerankd::metrics::ServerMetrics;
use rerankd_core::{Batch, Encoding};
use rerankd_core::{Limits, RerankCommand, ScoreOptions};
use rerankd_engine::config::{BatchConfig, CacheConfig};
use rerankd_engine::load::{LoadConfig, load};
use rerankd_engine::service::Reranker;
use rerankd_kernels::compute_pool::ComputePool;
use rerankd_model::Model;
use rerankd_model::encoder::PairEncoder;
use rerankd_model::graph::{Precision, Rows};
use rerankd_runtime::Scorer;
use rerankd_runtime::onnx::OnnxScorer;
use support::packed;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[allow(dead_code)]
#[path = "../tests/support"]
mod support {
    pub mod packed;
}

const DOCUMENTS: usize = 32;
const REQUESTS: usize = 12;
const CLIENTS: usize = 4;
const QUERY: &str = "what makes an aircraft stall at low speed";
const SENTENCE: &str = "the flow separates from the upper surface when the angle is too large ";

/// Documents of one request: every second one a sentence, the others up to four hundred tokens. No two
/// are alike, as those would be scored once.
fn documents(request: usize) -> Vec<String> {
    (0..DOCUMENTS)
        .map(|i| {
            let times = match i % 2 {
                0 => 1,
                _ => 6 + (i * 7 + request * 5) % 20,
            };
            format!("{} {request} {i}", SENTENCE.repeat(times))
        })
        .collect()
}

fn runtime_library() -> Option<std::ffi::OsString> {
    std::env::var_os("ORT_DYLIB_PATH")
}

/// The same pairs as `CLIENTS` requests at a time make them, in batches as the queue would form
/// them: neighbours in length, up to the token budget.
fn batches(max_tokens: usize) -> Vec<Batch> {
    let encoder = PairEncoder::for_model(&Model::embedded().unwrap()).unwrap();
    let go_on = AtomicBool::new(false);
    let mut batches = Vec::new();
    for wave in 0..REQUESTS / CLIENTS {
        let mut encodings: Vec<Encoding> = (0..CLIENTS)
            .map(|client| command(wave * CLIENTS + client))
            .flat_map(|command| encoder.encode(command.scoring().pairs(), &go_on).unwrap())
            .map(|pair| pair.encoding)
            .collect();
        encodings.sort_by_key(Encoding::len);
        while !encodings.is_empty() {
            let mut tokens = 0;
            let mut start = encodings.len();
            while start > 0 && (tokens == 0 || tokens + encodings[start - 1].len() <= max_tokens) {
                start -= 1;
                tokens += encodings[start].len();
            }
            batches.push(Batch::pack(&encodings.split_off(start)));
        }
    }
    batches
}

fn command(request: usize) -> RerankCommand {
    let limits = Limits {
        max_documents: DOCUMENTS,
    };
    let options = ScoreOptions::default();
    RerankCommand::new(QUERY.into(), documents(request), None, options, &limits).unwrap()
}

fn seconds(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}

fn bare(sessions: &mut [OnnxScorer], batches: &[Batch]) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for session in sessions {
            scope.spawn(|| {
                while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                    session.score(batch).unwrap();
                }
            });
        }
    });
}

async fn in_process(reranker: Arc<Reranker>) {
    let next = Arc::new(AtomicUsize::new(0));
    let client = |_| {
        let (reranker, next) = (reranker.clone(), next.clone());
        tokio::spawn(async move {
            loop {
                let request = next.fetch_add(1, Ordering::Relaxed);
                if request >= REQUESTS {
                    return;
                }
                reranker.rerank(command(request)).await.unwrap();
            }
        })
    };
    let clients: Vec<_> = (0..CLIENTS).map(client).collect();
    for client in clients {
        client.await.unwrap();
    }
}

async fn over_http(address: std::net::SocketAddr) {
    let next = Arc::new(AtomicUsize::new(0));
    let client = |_| {
        let next = next.clone();
        tokio::spawn(async move {
            let mut connection = TcpStream::connect(address).await.unwrap();
            loop {
                let request = next.fetch_add(1, Ordering::Relaxed);
                if request >= REQUESTS {
                    return;
                }
                let body = serde_json::json!({ "query": QUERY, "documents": documents(request) });
                exchange(&mut connection, &body.to_string()).await;
            }
        })
    };
    let clients: Vec<_> = (0..CLIENTS).map(client).collect();
    for client in clients {
        client.await.unwrap();
    }
}

async fn exchange(connection: &mut TcpStream, body: &str) {
    let head = format!(
        "POST /rerank HTTP/1.1\r\nhost: bench\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(body.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The usage object ends the answer.
    while !answer.ends_with(b"}}") {
        assert!(
            connection.read_buf(&mut answer).await.unwrap() > 0,
            "closed early"
        );
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn main() {
    let rounds = std::env::args()
        .filter_map(|a| a.parse().ok())
        .next()
        .unwrap_or(5);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let batching = BatchConfig::default();
    let model = Model::embedded().unwrap();
    let onnx = packed::open(
        &model,
        Rows::FirstOfEach,
        Precision::Fp32,
        ComputePool::default(),
    );
    let mut sessions: Vec<_> = (0..threads).map(|_| onnx.session(1).unwrap()).collect();
    let batches = batches(batching.max_batch_tokens);

    let config = LoadConfig {
        model: None,
        onnx_file: None,
        served_model_name: None,
        truncation: rerankd_core::TruncationStrategy::default(),
        profile: None,
        max_length: None,
        instruction: None,
        runtime_library: runtime_library(),
        threads,
        precision: rerankd::config::Precision::Fp32,
        device: rerankd::config::Device::Cpu,
        library_path: None,
        batching: batching.clone(),
        // The rounds are the same.
        cache: CacheConfig {
            size: 0,
            ..CacheConfig::default()
        },
        ..LoadConfig::default()
    };
    let metrics = ServerMetrics::new();
    let reranker = Arc::new(load(&config, metrics.engine.clone()).unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let state = AppState::new(Config::default(), metrics);
    state.install(reranker.clone());
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let (socket, metrics) = (Socket::Tcp(listener), state.metrics().clone());
    let listener = ListenerConfig::new(socket, &state.config().http, metrics);
    runtime.spawn(http::serve(
        listener,
        http::router::build(state),
        std::future::pending(),
    ));

    let (mut service, mut http) = (Vec::new(), Vec::new());
    let pairs = (REQUESTS * DOCUMENTS) as f64;
    for round in 0..=rounds {
        let a = seconds(|| bare(&mut sessions, &batches));
        let b = seconds(|| runtime.block_on(in_process(reranker.clone())));
        let c = seconds(|| runtime.block_on(over_http(address)));
        // The first round only warms up.
        if round > 0 {
            println!(
                "bare {:.1} pairs/s, in process {:.1}, over HTTP {:.1}",
                pairs / a,
                pairs / b,
                pairs / c
            );
            service.push(a / b);
            http.push(a / c);
        }
    }
    println!(
        "in process / bare: {:.3} (median of {rounds})",
        median(service)
    );
    println!("over HTTP / bare: {:.3} (median of {rounds})", median(http));
}
