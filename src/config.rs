//! Every setting of the server, declared once.
//!
//! A declaration has a setting's meaning, type, default and range. Its command line flag, environment
//! variable, key in a configuration file and help text, and its entries in `docs/configuration.md` and
//! `config/rerankd.toml`, are generated from it. Nothing here reads flags, files or the environment.

mod choice;
mod device;
pub mod document;
mod keys;
pub mod models;
mod secret;
mod setting;
mod value;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

pub use choice::{DocumentForm, LogFormat, Precision, TruncationStrategy};
pub use device::Device;
pub use keys::{ApiKey, ApiKeys, KeysError, MAX_KEY_BYTES};
pub use models::ModelEntry;
pub use secret::Secret;
pub use setting::PREFIX;
pub use value::{Kind, Listen, Origins, PathPrefix, Value, ValueError};

use rerankd_engine::config::{BatchConfig, CacheConfig};

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

// field [as name] "VALUE": type = default [, in range] [, or "what the default means"];
//
// Without a name, the field's name counts: `max_documents` is `max_documents` in a file,
// `--max-documents` and `RERANKD_MAX_DOCUMENTS`. The doc comment is the help text: its first sentence
// says what the setting is, the rest what it costs. A comment above says why the default is what it
// is.
setting::settings! {
    /// HTTP server.
    http: HttpConfig {
        /// Address to listen on: `HOST:PORT`, or `unix:/path` for a Unix socket. The default accepts
        /// connections from this machine only; with `0.0.0.0:8080`, which accepts connections from
        /// the network, set `api_keys`. A socket passed by systemd takes precedence.
        listen "ADDRESS": Listen = Listen::Tcp((Ipv4Addr::LOCALHOST, 8080).into());

        /// Path below which everything on `listen` is served, such as `/rerankd`: for a proxy that passes
        /// paths on unchanged. `admin_listen` has no prefix. The header `X-Forwarded-Prefix` is not read,
        /// as any client could set it.
        path_prefix "PATH": PathPrefix = PathPrefix::default(), or "none";

        /// Separate address for probes and `/metrics`, without TLS and API keys. It has 32 connections
        /// of its own, which clients cannot use up. With it, `/metrics` is not served on `listen`.
        admin_listen "ADDRESS": Option<Listen> = None, or "served on `listen`";

        /// API keys that clients may send, as `Authorization: Bearer KEY` or `x-api-key: KEY`: entries
        /// `KEY` or `NAME: KEY`, separated by commas or line breaks. With keys set, requests without a
        /// valid one get 401; probes and `/metrics` stay open. Each key has an equal share of the
        /// server under load. Logs show the name of a key, or `key-` and a fingerprint. A file of keys
        /// is reloaded on SIGHUP and when it changes.
        api_keys "KEYS": ApiKeys = ApiKeys::default(), or "no authentication";

        /// Web page origins that may send requests from browsers, separated by commas, such as
        /// `https://search.example`; `*` allows all. Without API keys, browser requests from other
        /// origins are refused.
        cors_origin "ORIGINS": Origins = Origins::default(), or "only the server's own pages";

        /// TLS certificate chain in PEM, leaf first. With it and `tls_key`, the server speaks TLS only.
        /// Both files are reloaded on SIGHUP and when they change.
        tls_cert "FILE": Option<PathBuf> = None, or "no TLS";

        /// Private key of `tls_cert` in PEM.
        tls_key "FILE": Option<PathBuf> = None, or "no TLS";

        // The files are small, and certificates are renewed days before they expire.
        /// How often the files of API keys and certificates are checked for changes; `0s` reloads them
        /// on SIGHUP only.
        reload_interval "TIME": Duration = Duration::from_secs(60), in Duration::ZERO..=YEAR;

        // With those for probes and those being refused, below the usual limit of 1024 open files.
        /// Maximum number of client connections; further ones get 503 and are closed. Each may hold one
        /// request body, or several with HTTP/2. Allow the process about 100 more open files than
        /// this, for `admin_listen` and for connections being refused.
        max_connections "N": usize = 900, in 1..=1_000_000;

        // Well above the 100 candidates that search pipelines send.
        /// Maximum number of documents or pairs in a request. Clients often respond to this error by
        /// silently keeping their original order: set it above what they send.
        max_documents "N": usize = 1000, in 1..=1_000_000;

        // A thousand documents of 4 kB each.
        /// Maximum size of a request body, both compressed and decompressed. It bounds the memory that
        /// a request takes before it is validated.
        max_body_bytes "BYTES": usize = 4 * 1024 * 1024, in 1..=1 << 30;

        // Sixty-four bodies of the maximum size: what a machine with 1 GiB can spare.
        /// Maximum total size of all request bodies in memory; requests beyond it get 429. It bounds
        /// memory across all connections. A body is always accepted when there is no other.
        max_bodies_bytes "BYTES": usize = 256 * 1024 * 1024, in 1..=1 << 40;

        // On a local network, sending smaller responses costs less than compressing them.
        /// Minimum size of a response that is compressed for clients that accept `gzip`.
        compress_above "BYTES": usize = 32 * 1024, in 0..=1 << 30;

        // Longer than the 90 s after which common HTTP clients close an idle connection, so that it is
        // the client that closes it, and no request is sent into a closed connection.
        /// Maximum time for receiving the head of a request, and maximum idle time of a connection. Set
        /// it above the idle timeout of clients and load balancers, or they will send requests into
        /// closed connections.
        header_timeout "TIME": Duration = Duration::from_secs(100), in MILLISECOND..=YEAR;

        // 4 MiB in this time is 70 kB/s.
        /// Maximum time for receiving a request body. Slow senders hold memory meanwhile.
        body_timeout "TIME": Duration = Duration::from_secs(60), in MILLISECOND..=YEAR;

        /// Refuse requests that name another model than the one served. By default, any model name is
        /// accepted, since many clients send that of another service.
        strict_model_name "BOOL": bool = false;

        /// How responses return a document, unless the request determines it: as `{"text": "…"}`, as
        /// `"…"`, or not at all.
        rerank_document "FORM": DocumentForm = DocumentForm::Object;

        /// Return documents where a request does not say whether it wants them. Some clients read them
        /// without asking; for others, they only make responses larger.
        return_documents "BOOL": bool = false;

        /// Serve a web page at `/` for trying out queries, with live statistics. Without it, `/` is the
        /// same as `/health`.
        page "BOOL": bool = true;
    }

    /// Model.
    model: ModelConfig {
        /// Model to serve: a directory in sentence-transformers format, or `owner/name` or
        /// `owner/name@revision` on the hub, which is downloaded once. The built-in model is small and
        /// English only. The flag of `rerankd serve` may be repeated as `NAME=MODEL` to serve several;
        /// a file lists them as `[[models]]`.
        dir as model "MODEL": Option<PathBuf> = None, or "the built-in model";

        /// ONNX file to run unchanged, as a path in the model directory, such as
        /// `onnx/model_quantized.onnx`. By default, a graph is built from the weights if the
        /// architecture is supported, which runs unpadded batches and is faster; otherwise
        /// `onnx/model.onnx` or `model.onnx` is run.
        onnx_file "FILE": Option<PathBuf> = None, or "built from the weights, or the model's own file";

        /// Model name in responses and in `/info`.
        served_name as served_model_name "NAME": Option<String> = None, or "the model's own name";

        /// What is truncated when a pair is longer than the model's maximum length. `longest_first`
        /// truncates the longer text, as sentence-transformers does. `document_only` never truncates
        /// queries, and refuses those that leave no room for a document.
        truncation "STRATEGY": TruncationStrategy = TruncationStrategy::LongestFirst;

        /// How a causal model reads pairs and which tokens answer, if its files do not say: one of
        /// `bge-reranker-v2-gemma`, `mxbai-rerank-v2` and `qwen3-reranker`, or a JSON file. It takes
        /// precedence over the model's own files, also over its `rerankd_profile.json`.
        profile "PROFILE": Option<String> = None, or "as the model's files say";

        /// Instruction of requests without one, for causal models; empty for none.
        instruction "TEXT": Option<String> = None, or "the model's own";

        // Memory of a run grows with it, and few documents are longer.
        /// Maximum number of tokens of a pair of a causal model, up to what the model allows. Longer
        /// pairs cost more memory and time.
        max_length "N": Option<usize> = None, in 1..=1_048_576,
            or "8192, or the profile's";

        /// Maximum size of the weights of all models in memory. A model that does not fit is not loaded;
        /// while one is replaced, the old and the new one both count.
        max_bytes as max_model_bytes "BYTES": Option<usize> = None, in 1..=1 << 50, or "no limit";

        /// Number of threads that run the model. More threads than cores slow down every request; fewer
        /// leave cores to other processes.
        threads "N": Option<usize> = None, in 1..=1024,
            or "the cores available by affinity mask and cgroup quota";

        // A server should not change the hardware that it runs on, and with it the last digits of its
        // scores, by itself.
        /// Device that runs the model: `cpu`, `cuda` or `cuda:N` for an NVIDIA GPU, or `auto` for a GPU
        /// if one is usable. If a requested GPU is not usable, the server does not start and says what
        /// is missing; `auto` logs its choice and the reason, and shows them in `/info`.
        device "DEVICE": Device = Device::Cpu;

        /// Precision of matrix products. `fp32` matches the reference implementation. `bf16` keeps
        /// weights and factors of products in 16 bits and sums in 32: it needs half the memory, is faster
        /// on CPUs with instructions for it (AVX-512 BF16), and nearly keeps the order of scores; other
        /// CPUs compute the same products in fp32, which may be slower than `fp32`. `int8` is the
        /// fastest, needs a quarter of the memory, and changes scores slightly: evaluate your model before
        /// you use it. `auto` uses `int8` for the built-in model, for which the effect was measured, on
        /// CPUs with AVX2, or on ARM with `SDOT`, or better; otherwise `bf16` where the CPU has
        /// instructions for it, and `fp32` elsewhere. It logs its choice and the reason, and shows them in
        /// `/info`. `fp16` is for GPUs only, where `auto` uses it, or `bf16` for causal models, and `int8` is
        /// not available.
        precision "PRECISION": Precision = Precision::Fp32;
    }

    /// Model downloads.
    hub: HubSettings {
        /// Use models in the cache and make no network requests; `HF_HUB_OFFLINE=1` does the same.
        offline "BOOL": bool = false;

        /// URL of the hub, or of a mirror; also read from `HF_ENDPOINT`. The token is sent to this
        /// address only.
        endpoint as hub_endpoint "URL": String = "https://huggingface.co".to_owned();

        /// Access token for private and gated models; also read from `HF_TOKEN`, from the file named by
        /// `HF_TOKEN_PATH`, or from where `hf auth login` saves it.
        token as hub_token "TOKEN": Secret = Secret::default(), or "the token saved by `hf auth login`, if any";

        /// Directory for downloaded models, shared with all Hugging Face libraries.
        cache as hub_cache "DIR": Option<PathBuf> = None,
            or "`$HF_HUB_CACHE`, `$HF_HOME/hub` or `~/.cache/huggingface/hub`";

        /// CA certificates in PEM to trust for downloads in addition to those of the system, such as
        /// that of a proxy which inspects TLS.
        ca_file as hub_ca_file "FILE": Option<PathBuf> = None, or "only those of the system";
    }

    /// Batching and queueing.
    batching: BatchSettings {
        // Matrix products of a small model run at full speed from 64 rows on; the smaller a batch, the
        // sooner a new request gets its turn.
        /// Maximum number of tokens in a batch. It bounds the memory for inference; smaller batches
        /// reduce throughput.
        max_batch_tokens "TOKENS": usize = BatchConfig::default().max_batch_tokens, in 1..=1 << 24;

        // Enough rows to keep a large GPU busy with a small model.
        /// Maximum number of tokens in a batch on a GPU, instead of `max_batch_tokens`. It is lowered
        /// automatically to what fits the GPU's memory.
        cuda_batch_tokens "TOKENS": usize = BatchConfig::default().cuda_batch_tokens, in 1..=1 << 24;

        // Not noticeable to a person.
        /// Maximum estimated time of a batch in milliseconds, unless a single pair takes longer, or the
        /// batch of a large model would spend more than a twentieth of its time on reading the weights.
        /// Small requests interrupt a longer batch between two of its layers. On a GPU and with ONNX
        /// files, where they cannot, batches are shorter while several requests wait. Very small values
        /// reduce throughput.
        max_batch_ms "MS": usize = BatchConfig::default().max_batch_ms, in 1..=600_000;

        // Most clients have given up by then.
        /// Maximum time that a request may be expected to wait for others; a request that would wait
        /// longer gets 429 at once. Its own inference does not count, so a request of any size is
        /// accepted when nothing is ahead of it. A longer time refuses fewer requests and lets them
        /// wait longer.
        max_queue_delay "TIME": Duration = BatchConfig::default().max_queue_delay, in MILLISECOND..=YEAR;

        // A few megabytes: half a minute of work for a small machine.
        /// Maximum number of tokens in the queue, which bounds its memory; requests beyond it get 429.
        /// The long requests of one API key take at most 9/16, and all of its requests three quarters.
        /// A request of any size is accepted when the queue is empty.
        max_queue_tokens "TOKENS": usize = BatchConfig::default().max_queue_tokens, in 1..=1 << 40;

        // Sixteen request bodies of the maximum size.
        /// Maximum size of the texts in the queue, shared in the same way as `max_queue_tokens`.
        max_queue_bytes "BYTES": usize = BatchConfig::default().max_queue_bytes, in 1..=1 << 40;

        /// Deadline of requests without an `x-request-timeout-ms` header; `0s` sets none. A request that
        /// cannot meet its deadline gets 429 at once, before any work is done on it.
        request_timeout "TIME": Duration = Duration::ZERO, in Duration::ZERO..=YEAR;
    }

    /// Score cache.
    cache: CacheSettings {
        // About 250,000 scores.
        /// Memory for cached scores; `0` disables the cache. A repeated pair gets bit-identical scores
        /// without inference.
        size as cache_size "BYTES": usize = CacheConfig::default().size, in 0..=1 << 40;

        /// Maximum age of a cached score; `0s` sets no limit. Scores never become stale: a model that
        /// is replaced has scores of its own.
        ttl as cache_ttl "TIME": Duration = Duration::ZERO, in Duration::ZERO..=YEAR;

        /// Cache scores separately for each API key. A shared cache lets clients find out by timing
        /// whether others have sent the same texts.
        per_key as cache_per_key "BOOL": bool = false;
    }

    /// Shutdown.
    shutdown: ShutdownConfig {
        // There is nothing to wait for unless a load balancer polls `/ready`.
        /// How long requests are still accepted after a stop signal, while `/ready` returns 503.
        /// Behind a load balancer, set it to the time that the balancer takes to notice.
        grace "TIME": Duration = Duration::ZERO, in Duration::ZERO..=YEAR;

        // The termination grace period of Kubernetes.
        /// Maximum time to finish accepted requests after the grace period; beyond it the process exits
        /// with code 4. Keep the sum of both below the time after which your platform kills the
        /// process.
        drain_timeout "TIME": Duration = Duration::from_secs(30), in Duration::ZERO..=YEAR;
    }

    /// Logging.
    log: LogConfig {
        /// Format of log lines, which go to the standard error. `auto` is `human` on a terminal and
        /// `json` elsewhere.
        format as log_format "FORMAT": LogFormat = LogFormat::Auto;

        // One line for each request and for each event that operators should know of.
        /// Log level: `error`, `warn`, `info`, `debug` (includes probes), `trace`, or directives in the
        /// format of `RUST_LOG`, which is used if `RERANKD_LOG_LEVEL` is not set. Queries and documents
        /// are never logged.
        filter as log_level "LEVEL": String = "info".to_owned();
    }

    /// Tracing.
    traces: TraceConfig {
        /// URL of an OpenTelemetry collector that receives traces by OTLP over HTTP or HTTPS, such as
        /// `http://127.0.0.1:4318`. It is connected to directly, not through a proxy. A request with a
        /// `traceparent` header becomes part of its caller's trace.
        endpoint as otlp_endpoint "URL": Option<String> = None, or "no tracing";

        /// Headers sent to the collector, as `NAME=VALUE`, separated by commas.
        headers as otlp_headers "HEADERS": Secret = Secret::default(), or "none";

        /// Percentage of requests that are traced. The sampling decision of a caller takes precedence.
        sample_percent as trace_sample_percent "PERCENT": usize = 100, in 0..=100;
    }

    /// `rerankd healthcheck`.
    healthcheck: HealthcheckConfig {
        /// Maximum time for `rerankd healthcheck` to get a response. Keep it below the timeout of
        /// whatever runs the check.
        timeout as healthcheck_timeout "TIME": Duration = 2 * SECOND, in MILLISECOND..=YEAR;
    }
}

/// A setting of the server.
pub type Setting = setting::Setting<Config>;

impl Setting {
    /// All settings, in the order of their declaration.
    pub fn all() -> &'static [Self] {
        static ALL: LazyLock<Vec<Setting>> = LazyLock::new(declared);
        &ALL
    }

    /// The setting with this key in a configuration file, and whether the key names a file with the
    /// value.
    pub fn find(name: &str) -> Option<(&'static Self, bool)> {
        Self::find_in(Self::all(), name)
    }

    /// The setting with this environment variable, as [`Setting::find`].
    pub fn of_variable(variable: &str) -> Option<(&'static Self, bool)> {
        let name = variable.strip_prefix(PREFIX)?;
        if name.bytes().any(|byte| byte.is_ascii_lowercase()) {
            return None;
        }
        Self::find(&name.to_ascii_lowercase())
    }
}

impl From<&BatchSettings> for BatchConfig {
    fn from(settings: &BatchSettings) -> Self {
        Self {
            max_batch_tokens: settings.max_batch_tokens,
            cuda_batch_tokens: settings.cuda_batch_tokens,
            max_batch_ms: settings.max_batch_ms,
            max_queue_delay: settings.max_queue_delay,
            max_queue_tokens: settings.max_queue_tokens,
            max_queue_bytes: settings.max_queue_bytes,
        }
    }
}

impl From<&CacheSettings> for CacheConfig {
    fn from(settings: &CacheSettings) -> Self {
        Self {
            size: settings.size,
            ttl: settings.ttl,
            per_key: settings.per_key,
        }
    }
}

#[cfg(test)]
mod tests;
