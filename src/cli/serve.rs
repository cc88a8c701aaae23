//! `rerankd serve`: flags to config, then the life of the server.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use super::Exit;
use super::healthcheck::reachable;
use crate::config::{
    BatchConfig, Config, DEFAULT_LISTEN, DEFAULT_LOG_FILTER, DEFAULT_MAX_BATCH_TOKENS,
    DEFAULT_MAX_BODY_BYTES, DEFAULT_MAX_DOCUMENTS, DEFAULT_MAX_QUEUE_TOKENS, DocumentForm,
    HttpConfig, LogConfig, LogFormat, ModelConfig, Precision, ShutdownConfig,
};
use crate::http::app::AppState;
use crate::load::{LoadConfig, LoadError};
use crate::metrics::Metrics;
use crate::rerank::Strategy;
use crate::service::Reranker;
use crate::shutdown::{Phase, Stopped};
use crate::{http, load, shutdown, telemetry};

/// Flags of `serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to listen. The default answers this machine only; `0.0.0.0:8080` answers the network,
    /// which has no password.
    #[arg(long, env = "RERANKD_LISTEN", value_name = "HOST:PORT", default_value_t = DEFAULT_LISTEN)]
    #[arg(value_parser = super::address)]
    listen: SocketAddr,

    /// Directory of a cross-encoder as sentence-transformers saves it. Without it the embedded
    /// model is served, which judges how similar two sentences are; for question-to-passage search,
    /// name a model trained for that.
    #[arg(long, env = "RERANKD_MODEL", value_name = "DIR")]
    model: Option<PathBuf>,

    /// Name of the model in answers and in `/info`, instead of its own.
    #[arg(long, env = "RERANKD_SERVED_MODEL_NAME", value_name = "NAME")]
    served_model_name: Option<String>,

    /// Refuse requests that ask for another model than the one that is served. Without it any name
    /// is taken, as most clients send the name that some other service wants.
    #[arg(long, env = "RERANKD_STRICT_MODEL_NAME")]
    strict_model_name: bool,

    /// How answers repeat a document, where the body of the request does not tell which form its
    /// client reads: `{"text": "…"}`, `"…"`, or not at all.
    #[arg(
        long,
        env = "RERANKD_RERANK_DOCUMENT",
        value_name = "FORM",
        default_value = "object"
    )]
    #[arg(value_parser = PossibleValuesParser::new(DocumentForm::NAMES).try_map(|name| name.parse::<DocumentForm>()))]
    rerank_document: DocumentForm,

    /// Which text gives way when a pair is longer than the model reads: the longer one first, as
    /// sentence-transformers does, or the document only. The latter keeps queries whole and refuses
    /// those that leave a document no room.
    #[arg(
        long,
        env = "RERANKD_TRUNCATION",
        value_name = "STRATEGY",
        default_value = "longest_first"
    )]
    #[arg(value_parser = PossibleValuesParser::new(Strategy::NAMES).try_map(|name| name.parse::<Strategy>()))]
    truncation: Strategy,

    /// Threads that run the model. More than there are cores makes every request slower; fewer
    /// leave room for what else runs here. Default: the cores that affinity mask and cgroup allow.
    #[arg(long, env = "RERANKD_THREADS", value_name = "N")]
    threads: Option<NonZeroUsize>,

    /// Arithmetic of the matrix products. `fp32` computes as the reference does; `int8` is faster and
    /// needs less memory, and moves scores a little.
    #[arg(
        long,
        env = "RERANKD_PRECISION",
        value_name = "PRECISION",
        default_value = "fp32"
    )]
    #[arg(value_parser = PossibleValuesParser::new(Precision::NAMES).try_map(|name| name.parse::<Precision>()))]
    precision: Precision,

    /// Most documents (or pairs) of one request. A client refused by this limit often falls back to
    /// its unranked order unseen: keep it above what your clients send.
    #[arg(long, env = "RERANKD_MAX_DOCUMENTS", value_name = "N")]
    #[arg(default_value_t = NonZeroUsize::new(DEFAULT_MAX_DOCUMENTS).unwrap())]
    max_documents: NonZeroUsize,

    /// Largest body of a request. It bounds the memory that a request costs before it is checked.
    #[arg(long, env = "RERANKD_MAX_BODY_BYTES", value_name = "BYTES")]
    #[arg(default_value_t = NonZeroUsize::new(DEFAULT_MAX_BODY_BYTES).unwrap())]
    max_body_bytes: NonZeroUsize,

    /// Most tokens of one batch. Larger batches use more memory and make short requests wait longer
    /// behind them; smaller ones give away throughput.
    #[arg(long, env = "RERANKD_MAX_BATCH_TOKENS", value_name = "TOKENS")]
    #[arg(default_value_t = NonZeroUsize::new(DEFAULT_MAX_BATCH_TOKENS).unwrap())]
    max_batch_tokens: NonZeroUsize,

    /// Most tokens that may wait; beyond it requests get 429. A longer queue refuses less and makes
    /// clients wait longer. A request is always taken when the queue is empty, however large.
    #[arg(long, env = "RERANKD_MAX_QUEUE_TOKENS", value_name = "TOKENS")]
    #[arg(default_value_t = NonZeroUsize::new(DEFAULT_MAX_QUEUE_TOKENS).unwrap())]
    max_queue_tokens: NonZeroUsize,

    /// How long requests are still served after a stop signal, while `/ready` already says 503.
    /// Behind a load balancer, give it the time to notice.
    #[arg(long, env = "RERANKD_GRACE", value_name = "TIME", default_value = "0s")]
    #[arg(value_parser = super::duration)]
    grace: Duration,

    /// How long accepted requests may take after the grace period, before the process ends with
    /// exit code 4. Grace and this together should stay below the time after which your platform
    /// kills it.
    #[arg(
        long,
        env = "RERANKD_DRAIN_TIMEOUT",
        value_name = "TIME",
        default_value = "30s"
    )]
    #[arg(value_parser = super::duration)]
    drain_timeout: Duration,

    /// Longest a connection may take to send a request's head, and longest it may be idle. Keep it
    /// above the idle timeout of your clients or load balancer, or they meet closed connections.
    #[arg(
        long,
        env = "RERANKD_HEADER_TIMEOUT",
        value_name = "TIME",
        default_value = "100s"
    )]
    #[arg(value_parser = super::timeout)]
    header_timeout: Duration,

    /// Longest a body may take to arrive. Slow senders hold memory meanwhile.
    #[arg(
        long,
        env = "RERANKD_BODY_TIMEOUT",
        value_name = "TIME",
        default_value = "60s"
    )]
    #[arg(value_parser = super::timeout)]
    body_timeout: Duration,

    /// How log lines are written, to the standard error. `auto` is `human` on a terminal and `json`
    /// elsewhere.
    #[arg(
        long,
        env = "RERANKD_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "auto"
    )]
    #[arg(value_parser = PossibleValuesParser::new(LogFormat::NAMES).try_map(|name| name.parse::<LogFormat>()))]
    log_format: LogFormat,

    /// What is logged: `error`, `warn`, `info`, `debug` (probes too), `trace`, or directives as
    /// `RUST_LOG` takes them, which counts where this is not given. Default: `info`. Texts of
    /// requests are never logged.
    #[arg(long, env = "RERANKD_LOG_LEVEL", value_name = "LEVEL")]
    log_level: Option<String>,
}

impl Args {
    /// The config these flags spell.
    fn resolve(self) -> Config {
        let filter = self
            .log_level
            .or_else(|| std::env::var("RUST_LOG").ok())
            .filter(|filter| !filter.trim().is_empty())
            .unwrap_or_else(|| DEFAULT_LOG_FILTER.to_owned());
        Config {
            listen: self.listen,
            http: HttpConfig {
                max_documents: self.max_documents.get(),
                max_body_bytes: self.max_body_bytes.get(),
                header_timeout: self.header_timeout,
                body_timeout: self.body_timeout,
                strict_model_name: self.strict_model_name,
                rerank_document: self.rerank_document,
            },
            model: ModelConfig {
                dir: self.model,
                served_name: self.served_model_name,
                truncation: self.truncation,
                threads: self.threads.map(NonZeroUsize::get),
                precision: self.precision,
            },
            batching: BatchConfig {
                max_batch_tokens: self.max_batch_tokens.get(),
                max_queue_tokens: self.max_queue_tokens.get(),
            },
            shutdown: ShutdownConfig {
                grace: self.grace,
                drain_timeout: self.drain_timeout,
            },
            log: LogConfig {
                format: self.log_format,
                filter,
            },
        }
    }
}

/// Runs the server until it is told to stop.
pub fn run(args: Args) -> Exit {
    let config = args.resolve();
    if let Err(error) = telemetry::init(&config.log) {
        eprintln!("rerankd: {error}");
        return Exit::Usage;
    }
    // Sockets and JSON need little; the cores belong to the model.
    let cores = std::thread::available_parallelism().map_or(2, NonZeroUsize::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.clamp(2, 4))
        .thread_name("http")
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the runtime did not start");
            return Exit::Failure;
        }
    };
    let exit = runtime.block_on(live(config));
    // What still runs was given up: a second signal or the drain timeout said so.
    runtime.shutdown_background();
    exit
}

/// The life of the server, from an open port to its exit code.
async fn live(config: Config) -> Exit {
    let (mut signals, listener, address) = match open(config.listen).await {
        Ok(opened) => opened,
        Err(error) => {
            tracing::error!(
                listen = %config.listen,
                %error,
                "cannot listen; hint: `--listen HOST:PORT` moves the server"
            );
            return Exit::Failure;
        }
    };
    tracing::info!(listen = %address, version = env!("CARGO_PKG_VERSION"), "starting");

    let metrics = Metrics::new();
    let state = AppState::new(config.clone(), metrics.clone());
    let server = tokio::spawn(http::serve(
        listener,
        http::app::build(state.clone()),
        config.http.header_timeout,
        state.lifecycle().reached(Phase::Draining),
    ));

    // Dropped when loading has ended: the process must not exit under a loading runtime library.
    let (loading, loaded) = oneshot::channel::<()>();
    let mut load = tokio::task::spawn_blocking({
        let (config, state) = (config.clone(), state.clone());
        move || {
            let _loading = loading;
            let reranker = Arc::new(load::load(&load_config(&config), metrics)?);
            state.install(reranker.clone());
            announce(&config, &reranker, address);
            Ok::<(), LoadError>(())
        }
    });

    let finished = async {
        let _ = server.await;
        let _ = loaded.await;
        if let Some(reranker) = state.reranker() {
            reranker.drain().await;
        }
    };
    let supervised =
        shutdown::supervise(state.lifecycle(), &config.shutdown, &mut signals, finished);
    tokio::pin!(supervised);
    let stopped = tokio::select! {
        stopped = &mut supervised => stopped,
        loaded = &mut load => {
            let error = match loaded {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(panic) => Some(panic.to_string()),
            };
            if let Some(error) = error {
                tracing::error!(error, "the model cannot be served");
                return Exit::Model;
            }
            supervised.await
        }
    };
    leave(stopped, state.in_flight())
}

async fn open(
    listen: SocketAddr,
) -> std::io::Result<(mpsc::Receiver<()>, TcpListener, SocketAddr)> {
    // Before the port: a signal that comes early must not kill a server somebody already talks to.
    let signals = shutdown::signals()?;
    let listener = TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    Ok((signals, listener, address))
}

fn leave(stopped: Stopped, in_flight: usize) -> Exit {
    match stopped {
        Stopped::Clean => {
            tracing::info!("stopped");
            Exit::Success
        }
        // What held the drain were half-sent requests: nobody was promised an answer.
        Stopped::TimedOut if in_flight == 0 => {
            tracing::info!("stopped; some connections were still open");
            Exit::Success
        }
        Stopped::TimedOut => {
            tracing::warn!(
                requests = in_flight,
                "the drain timeout passed with requests unanswered; hint: `--drain-timeout`"
            );
            Exit::DrainTimeout
        }
        Stopped::Killed => {
            tracing::warn!(requests = in_flight, "stopped at once by a second signal");
            Exit::Killed
        }
    }
}

/// Says what is served, and a command to try.
fn announce(config: &Config, reranker: &Reranker, address: SocketAddr) {
    let model = reranker.info();
    tracing::info!(
        model = model.id,
        architecture = model.architecture,
        parameters = model.parameters,
        precision = model.precision,
        max_length_tokens = model.max_length,
        threads = model.threads,
        sessions = model.sessions,
        runtime_version = model.runtime_version,
        "ready"
    );
    if config.model.dir.is_none() {
        tracing::info!(
            "the embedded model judges sentence similarity; for question-to-passage search point \
             `--model` at a model trained for that"
        );
    }
    let address = reachable(address);
    tracing::info!(
        r#"try: curl -s http://{address}/rerank -d '{{"query":"A man is eating food.","documents":["A monkey plays the drums.","Somebody eats a meal."]}}'"#
    );
}

/// What the config asks the loader for. Threads not given are the cores that the process may use:
/// the smaller of its affinity mask and its cgroup's quota.
fn load_config(config: &Config) -> LoadConfig {
    let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    LoadConfig {
        model: config.model.dir.clone(),
        served_model_name: config.model.served_name.clone(),
        truncation: config.model.truncation,
        runtime_library: std::env::var_os("ORT_DYLIB_PATH"),
        threads: config.model.threads.unwrap_or_else(cores),
        precision: config.model.precision,
        max_batch_tokens: config.batching.max_batch_tokens,
        max_queue_tokens: config.batching.max_queue_tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Line::try_parse_from(line.split_whitespace()).map(|line| line.args)
    }

    #[test]
    fn no_flag_is_the_default_config() {
        let mut config = parse("serve").unwrap().resolve();
        config.log.filter = DEFAULT_LOG_FILTER.to_owned();
        assert_eq!(config, Config::default());
    }

    #[test]
    fn flags_reach_the_config() {
        let config = parse(
            "serve --listen [::1]:9 --model m --threads 3 --max-documents 4 --max-body-bytes 5 \
             --max-batch-tokens 6 --max-queue-tokens 7 --grace 9 \
             --drain-timeout 10ms --log-format json --header-timeout 11s --body-timeout 12s \
             --served-model-name n --log-level debug --strict-model-name \
             --rerank-document omit --truncation document_only --precision int8",
        )
        .unwrap()
        .resolve();
        let expected = Config {
            listen: "[::1]:9".parse().unwrap(),
            http: HttpConfig {
                max_documents: 4,
                max_body_bytes: 5,
                header_timeout: Duration::from_secs(11),
                body_timeout: Duration::from_secs(12),
                strict_model_name: true,
                rerank_document: DocumentForm::Omit,
            },
            model: ModelConfig {
                dir: Some("m".into()),
                served_name: Some("n".to_owned()),
                truncation: Strategy::DocumentOnly,
                threads: Some(3),
                precision: Precision::Int8,
            },
            batching: BatchConfig {
                max_batch_tokens: 6,
                max_queue_tokens: 7,
            },
            shutdown: ShutdownConfig {
                grace: Duration::from_secs(9),
                drain_timeout: Duration::from_millis(10),
            },
            log: LogConfig {
                format: LogFormat::Json,
                filter: "debug".to_owned(),
            },
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "serve --max-documents 0",
            "serve --max-body-bytes -1",
            "serve --threads 0",
            "serve --grace soon",
            "serve --header-timeout 0",
            "serve --log-format xml",
            "serve --rerank-document list",
            "serve --truncation middle",
            "serve --listen 8080",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn half_sent_requests_do_not_spoil_the_exit_code() {
        assert_eq!(leave(Stopped::TimedOut, 0), Exit::Success);
        assert_eq!(leave(Stopped::TimedOut, 1), Exit::DrainTimeout);
    }
}
