//! Settings once they are resolved: plain values, no flags and no environment.
//!
//! Every default is a constant here, so that help texts, tests and `/info` name the same number.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Loopback: what answers the network is the operator's decision.
pub const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// Well above the 100 candidates that search pipelines send: a client that meets this limit often
/// falls back to its unranked order, and nobody notices.
pub const DEFAULT_MAX_DOCUMENTS: usize = 1000;
/// A thousand documents of 4 kB each.
pub const DEFAULT_MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
/// Longer than the 90 s after which common HTTP clients drop an idle connection, so that the
/// client closes it and never sends a request into a connection that the server just closed.
pub const DEFAULT_HEADER_TIMEOUT: Duration = Duration::from_secs(100);
/// 4 MiB in this time is 70 kB/s.
pub const DEFAULT_BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Matrix products of a small model run at full speed from 64 rows on; the less one batch takes, the
/// sooner a newcomer gets its turn.
pub const DEFAULT_MAX_BATCH_TOKENS: usize = 512;
/// A minute or more of work for a small machine; what waits longer has mostly been given up.
pub const DEFAULT_MAX_QUEUE_TOKENS: usize = 262_144;
/// Nothing to wait for unless a load balancer polls `/ready`.
pub const DEFAULT_GRACE: Duration = Duration::ZERO;
/// What Kubernetes gives a pod between its first and its last signal.
pub const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// One line a request and one for each event an operator should know.
pub const DEFAULT_LOG_FILTER: &str = "info";

/// Everything the server can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the server listens.
    pub listen: SocketAddr,
    /// What is read from a client, and for how long.
    pub http: HttpConfig,
    /// Which model is served, and on how many threads.
    pub model: ModelConfig,
    /// How pairs become batches.
    pub batching: BatchConfig,
    /// How the server stops.
    pub shutdown: ShutdownConfig,
    /// What is logged.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: DEFAULT_LISTEN,
            http: HttpConfig::default(),
            model: ModelConfig::default(),
            batching: BatchConfig::default(),
            shutdown: ShutdownConfig::default(),
            log: LogConfig::default(),
        }
    }
}

/// Arithmetic of the model's matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// As the reference computes.
    #[default]
    Fp32,
    /// Weights in eight bits: faster, and very nearly the same scores.
    Int8,
}

impl Precision {
    /// Every name that [`FromStr`] reads.
    pub const NAMES: [&str; 2] = ["fp32", "int8"];

    /// The name shown to operators and clients.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Int8 => "int8",
        }
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fp32" => Ok(Self::Fp32),
            "int8" => Ok(Self::Int8),
            _ => Err(format!("`{text}` is none of {}", Self::NAMES.join(", "))),
        }
    }
}

/// What is read from a client, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Documents (or pairs) of one request: bounds how long a single caller can hold the model.
    pub max_documents: usize,
    /// Bytes of one body: bounds the memory a request costs before it is understood.
    pub max_body_bytes: usize,
    /// Longest a connection may take to send a request's head. It also closes idle connections.
    pub header_timeout: Duration,
    /// Longest a body may take to arrive once its head has: a slow sender holds memory.
    pub body_timeout: Duration,
    /// Whether a request that names another model is refused. Clients of self-hosted servers send
    /// any name.
    pub strict_model_name: bool,
    /// How an answer repeats a document where the request's dialect leaves it open.
    pub rerank_document: DocumentForm,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            max_documents: DEFAULT_MAX_DOCUMENTS,
            max_body_bytes: DEFAULT_MAX_BODY_BYTES,
            header_timeout: DEFAULT_HEADER_TIMEOUT,
            body_timeout: DEFAULT_BODY_TIMEOUT,
            strict_model_name: false,
            rerank_document: DocumentForm::default(),
        }
    }
}

/// Which model is served, and on how many threads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelConfig {
    /// Directory of the model; the embedded one without.
    pub dir: Option<PathBuf>,
    /// Name shown to clients; the model's own without.
    pub served_name: Option<String>,
    /// Which text gives way when a pair is too long and its request does not say.
    pub truncation: Strategy,
    /// Inference threads; the cores this process may use without.
    pub threads: Option<usize>,
    /// Arithmetic of the matrix products.
    pub precision: Precision,
}

/// How pairs become batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchConfig {
    /// Tokens of one batch: bounds its memory and how long a newcomer waits behind it.
    pub max_batch_tokens: usize,
    /// Tokens admitted and not yet scored, beyond which requests are refused rather than queued.
    pub max_queue_tokens: usize,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            max_batch_tokens: DEFAULT_MAX_BATCH_TOKENS,
            max_queue_tokens: DEFAULT_MAX_QUEUE_TOKENS,
        }
    }
}

/// How the server stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShutdownConfig {
    /// How long new requests are still served after `/ready` has turned 503: the time a load
    /// balancer needs to notice.
    pub grace: Duration,
    /// Longest the server then waits for answers that are under way.
    pub drain_timeout: Duration,
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self {
            grace: DEFAULT_GRACE,
            drain_timeout: DEFAULT_DRAIN_TIMEOUT,
        }
    }
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// How a line is written.
    pub format: LogFormat,
    /// Level, or directives as `RUST_LOG` takes them.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::default(),
            filter: DEFAULT_LOG_FILTER.to_owned(),
        }
    }
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// Text for people.
    Human,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// Every name that [`FromStr`] reads.
    pub const NAMES: [&str; 3] = ["auto", "human", "json"];
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err(format!("`{text}` is none of {}", Self::NAMES.join(", "))),
        }
    }
}

/// How a document is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DocumentForm {
    /// `{"text": "…"}`.
    #[default]
    Object,
    /// `"…"`.
    String,
    /// Not at all.
    Omit,
}

impl DocumentForm {
    /// Every name that [`FromStr`] reads.
    pub const NAMES: [&str; 3] = ["object", "string", "omit"];
}

impl FromStr for DocumentForm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "object" => Ok(Self::Object),
            "string" => Ok(Self::String),
            "omit" => Ok(Self::Omit),
            _ => Err(format!("`{text}` is none of {}", Self::NAMES.join(", "))),
        }
    }
}

/// Which text gives way when a pair is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// The longer one first, as sentence-transformers does.
    #[default]
    LongestFirst,
    /// The document alone; a query that leaves it no room is refused.
    DocumentOnly,
}

impl Strategy {
    /// Every name that [`FromStr`] reads.
    pub const NAMES: [&str; 2] = ["longest_first", "document_only"];
}

impl FromStr for Strategy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "longest_first" => Ok(Self::LongestFirst),
            "document_only" => Ok(Self::DocumentOnly),
            _ => Err(format!("`{text}` is none of {}", Self::NAMES.join(", "))),
        }
    }
}
