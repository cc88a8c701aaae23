//! Every setting of the server, declared once.
//!
//! A declaration carries a setting's meaning, type, default and range. Its flag, its environment
//! variable, its key in a configuration file, its help text, its line in `docs/configuration.md` and
//! in `config/rerankd.toml` are all made of it. Nothing here reads flags, files or the environment.

mod choice;
mod device;
pub mod document;
mod keys;
mod secret;
mod setting;
mod value;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

pub use choice::{DocumentForm, LogFormat, Precision, Strategy};
pub use device::Device;
pub use keys::{ApiKey, ApiKeys, MAX_KEY_BYTES};
pub use secret::Secret;
pub use setting::{Kind, PREFIX, Setting};
pub use value::{Listen, Origins, Value};

use rerankd_engine::config::{BatchConfig, CacheConfig};

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

// field [as name] "VALUE": type = default [, in range] [, or "what the default means"];
//
// The name is that of the field where no other is given: `max_documents` is `max_documents` in a
// file, `--max-documents` and `RERANKD_MAX_DOCUMENTS`. The doc comment is the help text; its first
// sentence has to say what the setting is, the rest what it costs. A comment above says why the
// default is what it is.
setting::settings! {
    /// What is read from a client, and for how long.
    http: HttpConfig {
        /// Where to listen: an address, or `unix:/path` for a Unix socket. The default answers this
        /// machine only; `0.0.0.0:8080` answers the network: set `api_keys` there. A socket that
        /// systemd passes comes before this.
        listen "ADDRESS": Listen = Listen::Tcp((Ipv4Addr::LOCALHOST, 8080).into());

        /// Where probes and `/metrics` are answered apart from requests, without TLS and keys, on 32
        /// connections that clients cannot take. `/metrics` is then answered nowhere else.
        admin_listen "ADDRESS": Option<Listen> = None, or "with the requests";

        /// Keys that clients may show, as `Authorization: Bearer KEY` or `x-api-key: KEY`: entries
        /// `KEY` or `NAME: KEY`, divided by commas or line ends. With keys, requests without one of
        /// them get 401; probes, and `/metrics`, stay open. A file of keys is read again on SIGHUP
        /// and when it changes.
        api_keys "KEYS": ApiKeys = ApiKeys::default(), or "everybody is served";

        /// Origins of web pages that may send requests from browsers, divided by commas, such as
        /// `https://search.example`; `*` stands for all. Without keys, browser requests of other
        /// pages are refused.
        cors_origin "ORIGINS": Origins = Origins::default(), or "none but the server's own pages";

        /// Certificate chain in PEM, leaf first; with it and `tls_key` the server speaks TLS only.
        /// Both are read again on SIGHUP and when they change.
        tls_cert "FILE": Option<PathBuf> = None, or "no TLS";

        /// Private key of `tls_cert` in PEM.
        tls_key "FILE": Option<PathBuf> = None, or "no TLS";

        // Each file is small and read in no time; certificates are renewed days before they expire.
        /// How often the files of keys and certificates are looked at; `0s` looks on SIGHUP only.
        reload_interval "TIME": Duration = Duration::from_secs(60), in Duration::ZERO..=YEAR;

        // With those of probes and those that are refused, below the 1024 files that a process may
        // have open where nobody raised it.
        /// Most connections of clients at the same time; further ones get 503 and are closed. Each may
        /// hold one body, or several with HTTP/2. `admin_listen` has 32 more of its own, and up to 32
        /// that are refused are open for a moment: allow the process about a hundred files more than
        /// this.
        max_connections "N": usize = 900, in 1..=1_000_000;

        // Well above the 100 candidates that search pipelines send.
        /// Most documents (or pairs) of one request. A client refused by this limit often falls back
        /// to its unranked order unseen: keep it above what your clients send.
        max_documents "N": usize = 1000, in 1..=1_000_000;

        // A thousand documents of 4 kB each.
        /// Largest body of a request, before and after it is expanded where it came compressed. It
        /// bounds the memory that a request costs before it is checked.
        max_body_bytes "BYTES": usize = 4 * 1024 * 1024, in 1..=1 << 30;

        // Sixty-four bodies of the largest size: what a machine of 1 GiB can spare.
        /// Most bytes that the bodies of all requests may take together; one that would go beyond is
        /// refused with 429. It bounds what clients make the server hold, over however many
        /// connections; a body that is alone always fits.
        max_bodies_bytes "BYTES": usize = 256 * 1024 * 1024, in 1..=1 << 40;

        // On a local network, sending what is smaller costs less than compressing it.
        /// Smallest answer that is compressed for a client that takes `gzip`.
        compress_above "BYTES": usize = 32 * 1024, in 0..=1 << 30;

        // Longer than the 90 s after which common HTTP clients drop an idle connection, so that the
        // client closes it and never sends a request into a connection that was just closed.
        /// Longest a connection may take to send a request's head, and longest it may be idle. Keep
        /// it above the idle timeout of your clients or load balancer, or they meet closed
        /// connections.
        header_timeout "TIME": Duration = Duration::from_secs(100), in MILLISECOND..=YEAR;

        // 4 MiB in this time is 70 kB/s.
        /// Longest a body may take to arrive. Slow senders hold memory meanwhile.
        body_timeout "TIME": Duration = Duration::from_secs(60), in MILLISECOND..=YEAR;

        /// Refuse requests that ask for another model than the one that is served. Without it any
        /// name is taken, as most clients send the name that some other service wants.
        strict_model_name "BOOL": bool = false;

        /// How answers repeat a document, where the body of the request does not tell which form its
        /// client reads: `{"text": "…"}`, `"…"`, or not at all.
        rerank_document "FORM": DocumentForm = DocumentForm::Object;

        /// Show browsers a page at `/` to try rankings on, with a live view of the server. Off, `/`
        /// answers everybody as `/health` does.
        page "BOOL": bool = true;
    }

    /// Which model is served, and how it runs.
    model: ModelConfig {
        /// Directory of a cross-encoder as sentence-transformers saves it, or `owner/name` or
        /// `owner/name@revision` of a hub, which is downloaded once. Without it the embedded model is
        /// served, which is small and reads English.
        dir as model "MODEL": Option<PathBuf> = None, or "the embedded model";

        /// ONNX file to run as it is, by its path in the model's directory, such as
        /// `onnx/model_quantized.onnx`. Without it, a graph is built from the weights where the
        /// architecture is known, which packs batches without padding and is faster; else
        /// `onnx/model.onnx` or `model.onnx` is run.
        onnx_file "FILE": Option<PathBuf> = None, or "what the model's directory holds";

        /// Name of the model in answers and in `/info`, instead of its own.
        served_name as served_model_name "NAME": Option<String> = None, or "the model's own";

        /// Which text gives way when a pair is longer than the model reads. `longest_first` cuts the
        /// longer one, as sentence-transformers does. `document_only` keeps queries whole and
        /// refuses those that leave a document no room.
        truncation "STRATEGY": Strategy = Strategy::LongestFirst;

        /// Threads that run the model. More than there are cores makes every request slower; fewer
        /// leave room for what else runs here.
        threads "N": Option<usize> = None, in 1..=1024,
            or "the cores that affinity mask and cgroup allow";

        // What a server runs on, and with it the digits of its scores, should not change by itself.
        /// What runs the model: `cpu`, `cuda` or `cuda:N` for an NVIDIA GPU, or `auto` for a GPU where
        /// one can be used. A GPU that was asked for and cannot be used is an error at start, with
        /// what is missing; `auto` says in the log and in `/info` what it took, and why.
        device "DEVICE": Device = Device::Cpu;

        /// Arithmetic of the matrix products. `fp32` computes as the reference does; `int8` is
        /// faster and needs less memory, and moves scores a little. `auto` takes `int8` for the
        /// embedded model, where its effect was measured, if the processor has AVX2 or better, and
        /// `fp32` for every other: measure your model before you choose `int8` for it. On a GPU it
        /// is `fp16`, which no processor is run with, and there is no `int8`.
        precision "PRECISION": Precision = Precision::Fp32;
    }

    /// Where models come from that are no directory.
    hub: HubSettings {
        /// Take models from the cache and open no connection for them; `HF_HUB_OFFLINE=1` says so too.
        offline "BOOL": bool = false;

        /// Hub that models are downloaded from, or a mirror of it; `HF_ENDPOINT` names it too. The
        /// token goes to this address only.
        endpoint as hub_endpoint "URL": String = "https://huggingface.co".to_owned();

        /// Token of an account of the hub, for private and gated models. `HF_TOKEN` holds it too; else
        /// it is in the file that `HF_TOKEN_PATH` names, or where `hf auth login` leaves it.
        token as hub_token "TOKEN": Secret = Secret::default(), or "that of `hf auth login`, if there is one";

        /// Folder that downloaded models are kept in, shared with every Hugging Face library.
        cache as hub_cache "DIR": Option<PathBuf> = None,
            or "`$HF_HUB_CACHE`, `$HF_HOME/hub` or `~/.cache/huggingface/hub`";

        /// Certificates in PEM that are trusted beside those of the system when models are downloaded,
        /// such as that of a proxy which opens TLS.
        ca_file as hub_ca_file "FILE": Option<PathBuf> = None, or "those of the system";
    }

    /// How pairs become batches, and how many may wait.
    batching: BatchSettings {
        // Matrix products of a small model run at full speed from 64 rows on; the less one batch
        // takes, the sooner a newcomer gets its turn.
        /// Most tokens of one batch. It bounds the memory of a run; smaller batches give away
        /// throughput.
        max_batch_tokens "TOKENS": usize = BatchConfig::default().max_batch_tokens, in 1..=1 << 24;

        // Enough rows to keep a large GPU busy with a small model.
        /// Most tokens of one batch on a GPU, in place of `max_batch_tokens`. What the GPU's memory
        /// does not hold is less by itself.
        cuda_batch_tokens "TOKENS": usize = BatchConfig::default().cuda_batch_tokens, in 1..=1 << 24;

        // What people do not notice.
        /// Longest that one batch may take by the server's own estimate, unless a single pair takes
        /// longer, in milliseconds. A newcomer waits that long before its turn; very small values give
        /// away throughput.
        max_batch_ms "MS": usize = BatchConfig::default().max_batch_ms, in 1..=600_000;

        // A minute or more of work for a small machine; what waits longer has mostly been given up.
        /// Most tokens that may wait; beyond it requests get 429. A longer queue refuses less and
        /// makes clients wait longer. A request is always taken when the queue is empty, however
        /// large.
        max_queue_tokens "TOKENS": usize = BatchConfig::default().max_queue_tokens, in 1..=1 << 40;

        /// Time of a request that does not set `x-request-timeout-ms` itself; `0s` is any time. What
        /// would not be answered within it gets 429 at once, and costs nothing.
        request_timeout "TIME": Duration = Duration::ZERO, in Duration::ZERO..=YEAR;
    }

    /// Which scores are kept, so that a pair that is asked for again costs nothing.
    cache: CacheSettings {
        // Some 250,000 scores.
        /// Memory for known scores; `0` keeps none. A pair that is asked for again is answered from
        /// there, with the same bits.
        size as cache_size "BYTES": usize = CacheConfig::default().size, in 0..=1 << 40;

        /// Longest a score is kept; `0s` is for ever. A score never becomes wrong, as the model of a
        /// process does not change.
        ttl as cache_ttl "TIME": Duration = Duration::ZERO, in Duration::ZERO..=YEAR;

        /// Answer from known scores only what the same API key has asked before. Without it, how fast
        /// an answer comes tells whether somebody has asked for the same texts.
        per_key as cache_per_key "BOOL": bool = false;
    }

    /// How the server stops.
    shutdown: ShutdownConfig {
        // Nothing to wait for unless a load balancer polls `/ready`.
        /// How long requests are still served after a stop signal, while `/ready` already says 503.
        /// Behind a load balancer, give it the time to notice.
        grace "TIME": Duration = Duration::ZERO, in Duration::ZERO..=YEAR;

        // What Kubernetes gives a pod between its first and its last signal.
        /// How long accepted requests may take after the grace period, before the process ends with
        /// exit code 4. Grace and this together should stay below the time after which your platform
        /// kills it.
        drain_timeout "TIME": Duration = Duration::from_secs(30), in Duration::ZERO..=YEAR;
    }

    /// What is logged.
    log: LogConfig {
        /// How log lines are written, to the standard error. `auto` is `human` on a terminal and
        /// `json` elsewhere.
        format as log_format "FORMAT": LogFormat = LogFormat::Auto;

        // One line a request and one for each event an operator should know.
        /// What is logged: `error`, `warn`, `info`, `debug` (probes too), `trace`, or directives as
        /// `RUST_LOG` takes them. `RUST_LOG` counts where `RERANKD_LOG_LEVEL` is not set. Texts of
        /// requests are never logged.
        filter as log_level "LEVEL": String = "info".to_owned();
    }

    /// Where traces are sent.
    traces: TraceConfig {
        /// Collector of OpenTelemetry that traces are sent to, by OTLP over HTTP, such as
        /// `http://127.0.0.1:4318`. A request that carries a `traceparent` is a part of its caller's
        /// trace.
        endpoint as otlp_endpoint "URL": Option<String> = None, or "no traces are sent";

        /// Headers for the collector, as `NAME=VALUE`, divided by commas.
        headers as otlp_headers "HEADERS": Secret = Secret::default(), or "none";

        /// How many of a hundred requests are traced. Where a caller has decided, that counts.
        sample_percent as trace_sample_percent "PERCENT": usize = 100, in 0..=100;
    }

    /// What `rerankd healthcheck` does.
    healthcheck: HealthcheckConfig {
        /// Longest that `rerankd healthcheck` waits for its answer. Keep it below the timeout of
        /// whatever runs it.
        timeout as healthcheck_timeout "TIME": Duration = 2 * SECOND, in MILLISECOND..=YEAR;
    }
}

impl From<&BatchSettings> for BatchConfig {
    fn from(settings: &BatchSettings) -> Self {
        Self {
            max_batch_tokens: settings.max_batch_tokens,
            cuda_batch_tokens: settings.cuda_batch_tokens,
            max_batch_ms: settings.max_batch_ms,
            max_queue_tokens: settings.max_queue_tokens,
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
