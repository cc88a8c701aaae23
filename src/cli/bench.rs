//! `rerankd bench`: measures the performance of a server, or of the engine in this process.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Parser};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::download::ProgressSink;
use super::loader::load_config;
use super::settings::Flags;
use super::{Exit, output, serve};
use crate::config::{ApiKeys, Config, Value as _, ValueError};
use rerankd_core::Secret;
use rerankd_engine::load::{self, LoadError};
use rerankd_engine::metrics::Metrics;
use rerankd_tools::bench::bare::{self, BareError};
use rerankd_tools::bench::drive::{Load, Progress};
use rerankd_tools::bench::report::{Budget, Findings, Report};
use rerankd_tools::bench::target::{Dialect, Engine, Server, ServerError, Target};
use rerankd_tools::bench::text::{Kind, Source, Texts, read};
use rerankd_tools::bench::{self, BudgetError, Pace, Times};

/// Maximum duration of a phase.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

const EXAMPLES: &str = "\
Examples:
  rerankd bench --workload short
  rerankd bench --workload mixed -- --model DIR --precision int8
  rerankd bench --url http://127.0.0.1:8080 --workload passage --clients 8
  rerankd bench --url http://127.0.0.1:8080 --dialect grpc --workload short
  rerankd bench --url http://127.0.0.1:8080 --rate 5 --duration 60s
  rerankd bench --url http://127.0.0.1:8080 --fairness --bulk-clients 1,3,8
  rerankd bench --url http://127.0.0.1:8080 --fairness --bulk-clients 20 --key-file a --bulk-key-file b";

/// Flags of `bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(group = ArgGroup::new("bulk").args(["fairness", "stream"]))]
pub struct Args {
    /// URL of a server to measure, such as `http://127.0.0.1:8080`. By default, the engine runs in this
    /// process and is measured without HTTP; its `serve` flags come after `--`.
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// API to call: `/rerank` of this server, `/rerank` of Text Embeddings Inference, or that server's `Rerank` over
    /// gRPC.
    #[arg(
        long,
        value_name = "DIALECT",
        default_value = "native",
        requires = "url"
    )]
    #[arg(value_parser = PossibleValuesParser::new(Dialect::ALL.map(|(name, _)| name)).map(dialect))]
    dialect: Dialect,

    /// Name of one of the server's models, instead of the default one.
    #[arg(long, value_name = "NAME", requires = "url")]
    model: Option<String>,

    /// File with the API key to send. Of several keys, as in a file for `serve`, the first is used.
    #[arg(long, value_name = "FILE", requires = "url")]
    key_file: Option<PathBuf>,

    /// Synthetic texts to send: `short` (sentences, about 23 tokens per pair), `passage` (abstracts, 224
    /// tokens on average with a long tail), `mixed` (half of each), `long` (8 documents of 512 tokens),
    /// or a file with a line `{"query": "...", "documents": ["..."]}` for each request.
    #[arg(long, value_name = "KIND|FILE", default_value = "mixed")]
    workload: String,

    /// Number of documents per request. Default: 32; 8 for `long`; those in the file for a file.
    #[arg(long, value_name = "N")]
    documents: Option<NonZeroUsize>,

    /// Random seed of texts and arrival times.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Number of distinct requests, which are sent repeatedly, to measure caches. Default: no text is
    /// sent twice.
    #[arg(long, value_name = "N")]
    different: Option<NonZeroU64>,

    /// Number of clients, each of which waits for a response before it sends the next request (closed
    /// loop).
    #[arg(long, value_name = "N", default_value = "4")]
    clients: NonZeroUsize,

    /// Requests per second at random times, regardless of earlier responses (open loop). Latency counts
    /// from when a request was due, so that a stall affects all requests that were due during it.
    #[arg(long, value_name = "RATE", conflicts_with = "clients", value_parser = rate)]
    rate: Option<f64>,

    /// Duration of the measurement.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = timeout)]
    duration: Duration,

    /// Duration of the warm-up before it.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    warm_up: Duration,

    /// Target latency in milliseconds: search for the number of documents per request with which 95 % of
    /// sequential requests meet it. 0 disables the search.
    #[arg(long, value_name = "MS", default_value_t = 200)]
    target_ms: u64,

    /// Measure the model alone in this process: its sessions with prepared batches, without queue and
    /// HTTP, as a baseline for the overhead of the server.
    #[arg(long, conflicts_with_all = ["url", "rate", "bulk", "overload"])]
    bare: bool,

    /// Measure a small client that sends 8 sentences per request, first alone, then next to bulk
    /// clients. Exits with code 1 if any of its requests is refused or fails, if its median grows by
    /// over 40 ms with one bulk client (60 ms with 8 or more), or if its 99th percentile grows by over
    /// 100 ms.
    #[arg(long, conflicts_with_all = ["overload", "rate", "clients", "workload", "documents", "different"])]
    fairness: bool,

    /// Measure the requests of one bulk client, first alone, then next to a stream of small requests
    /// from this number of clients.
    #[arg(long, value_name = "CLIENTS", conflicts_with_all = ["overload", "rate", "clients", "workload", "documents", "different"])]
    stream: Option<NonZeroUsize>,

    /// Numbers of bulk clients for `--fairness`, each measured separately.
    #[arg(
        long,
        value_name = "NUMBERS",
        default_value = "1",
        value_delimiter = ',',
        requires = "fairness",
        conflicts_with = "stream"
    )]
    bulk_clients: Vec<NonZeroUsize>,

    /// Number of documents per request of a bulk client.
    #[arg(long, value_name = "N", default_value = "300", requires = "bulk")]
    bulk_documents: NonZeroUsize,

    /// Number of words per document of a bulk client.
    #[arg(long, value_name = "N", default_value = "400", requires = "bulk")]
    bulk_words: NonZeroUsize,

    /// File with the API key of the bulk clients, if it differs from `--key-file`.
    #[arg(long, value_name = "FILE", requires_all = ["bulk", "url"])]
    bulk_key_file: Option<PathBuf>,

    /// Measure the capacity, then send ten times as much. Exits with code 1 if there is any error except
    /// 429, if a refusal takes over 20 ms (p99.9), or if throughput falls below 95 % of the capacity.
    #[arg(long, conflicts_with_all = ["rate", "clients"])]
    overload: bool,

    /// Print the results as JSON instead of a table.
    #[arg(long)]
    json: bool,

    /// Print this many requests, one per line, and measure nothing. Other load generators can send them.
    #[arg(long, value_name = "N", conflicts_with_all = ["url", "bare", "bulk", "overload", "rate"])]
    print_requests: Option<u64>,

    /// Flags of `rerankd serve` for the engine in this process, such as `--precision int8`.
    #[arg(last = true, value_name = "SERVE FLAGS", conflicts_with = "url")]
    engine: Vec<OsString>,
}

/// The flags of `serve` after `--`.
#[derive(Debug, Parser)]
#[command(name = "rerankd bench --", no_binary_name = true)]
struct EngineLine {
    #[command(flatten)]
    settings: Flags,
}

fn dialect(name: String) -> Dialect {
    let found = Dialect::ALL.iter().find(|(known, _)| *known == name);
    found.map(|(_, dialect)| *dialect).unwrap_or_default()
}

fn rate(text: &str) -> Result<f64, &'static str> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 1e6 => Ok(rate),
        _ => Err("must be a number above zero, such as `0.5` or `20`"),
    }
}

/// Why a text is not a time of a measurement.
#[derive(Debug, thiserror::Error)]
enum TimeError {
    #[error(transparent)]
    Value(#[from] ValueError),
    #[error("must be at most `{}s`", LONGEST.as_secs())]
    TooLong,
    #[error("must be longer than zero")]
    Zero,
}

/// Parses a duration as settings do.
fn duration(text: &str) -> Result<Duration, TimeError> {
    match <Duration as crate::config::Value>::parse(text)? {
        time if time <= LONGEST => Ok(time),
        _ => Err(TimeError::TooLong),
    }
}

/// The same, but not zero.
fn timeout(text: &str) -> Result<Duration, TimeError> {
    match duration(text)? {
        Duration::ZERO => Err(TimeError::Zero),
        time => Ok(time),
    }
}

/// Runs the measurement, and prints the results.
pub fn run(args: &Args) -> Exit {
    let source = match args.workload.parse::<Kind>() {
        Ok(kind) => Source::BuiltIn(kind),
        Err(()) => match read(&PathBuf::from(&args.workload)) {
            Ok(requests) => Source::File(requests),
            Err(error) => {
                let path = &args.workload;
                return Exit::Usage.with_error(format_args!("`--workload {path}`: {error}"));
            }
        },
    };
    let texts = Texts::new(source, args.seed)
        .with_documents(args.documents.map(NonZeroUsize::get))
        .with_different(args.different.map(NonZeroU64::get));
    if let Some(count) = args.print_requests {
        for number in 0..count {
            output::line(json!(texts.request(number)));
        }
        return Exit::Success;
    }
    let done = match &args.url {
        Some(url) => over_http(args, texts, url),
        None if args.bare => bare_sessions(args, &texts),
        None => in_process(args, texts),
    };
    done.unwrap_or_else(|exit| exit)
}

/// Measures a server.
fn over_http(args: &Args, texts: Texts, url: &str) -> Result<Exit, Exit> {
    let (server, bulk) = servers(args, url).map_err(|error| Exit::Usage.with_error(error))?;
    run_async(async {
        let info = server.info().await;
        let info =
            info.map_err(|error| Exit::Failure.with_error(format_args!("`--url {url}`: {error}")))?;
        measure(args, texts, server, bulk, url.to_owned(), info).await
    })
}

/// Measures the engine without HTTP.
fn in_process(args: &Args, texts: Texts) -> Result<Exit, Exit> {
    let loaded = load_config(&engine(&args.engine)?, ProgressSink::Stderr)
        .map_err(LoadError::from)
        .and_then(|config| load::load(&config, Metrics::new()));
    let reranker = Arc::new(loaded.map_err(|error| Exit::Model.with_error(error))?);
    let model = reranker.info();
    let info = json!({
        "model_id": model.id,
        "precision": model.precision,
        "device": model.device,
        "providers": model.providers,
        "threads": model.threads,
        "sessions": model.sessions,
        "runtime_version": model.runtime_version,
    });
    let target = Engine(reranker.clone());
    let name = "in process".to_owned();
    run_async(measure(args, texts, target.clone(), target, name, info))
}

/// Runs `measurement` on the same runtime as in `serve`, for the same performance.
fn run_async(measurement: impl Future<Output = Result<Exit, Exit>>) -> Result<Exit, Exit> {
    let runtime = serve::runtime()
        .map_err(|error| Exit::Failure.with_error(format_args!("cannot start threads: {error}")))?;
    let done = runtime.block_on(measurement);
    runtime.shutdown_background();
    done
}

/// Why a server cannot be asked.
#[derive(Debug, thiserror::Error)]
enum TargetError {
    #[error("`{flag} {}`: the file {source}", path.display())]
    KeyFile {
        flag: &'static str,
        path: PathBuf,
        source: ValueError,
    },
    #[error("`--url {url}`: {source}")]
    Url { url: String, source: ServerError },
}

/// The server as other clients and as bulk clients see it.
fn servers(args: &Args, url: &str) -> Result<(Server, Server), TargetError> {
    let key = |flag, file: &Option<PathBuf>| {
        let Some(path) = file.as_deref() else {
            return Ok(None);
        };
        let keys = ApiKeys::read(path).map_err(|source| TargetError::KeyFile {
            flag,
            path: path.to_owned(),
            source,
        })?;
        Ok(keys.keys().first().map(|key| Secret::new(&*key.key)))
    };
    let small = key("--key-file", &args.key_file)?;
    let bulk = key("--bulk-key-file", &args.bulk_key_file)?;
    let server = |key: Option<&Secret>| {
        let server = Server::new(url, args.dialect, key).and_then(|server| match &args.model {
            Some(name) => server.for_model(name),
            None => Ok(server),
        });
        server.map_err(|source| TargetError::Url {
            url: url.to_owned(),
            source,
        })
    };
    Ok((
        server(small.as_ref())?,
        server(bulk.as_ref().or(small.as_ref()))?,
    ))
}

/// The settings of the engine. Prints errors in them to the standard error.
fn engine(flags: &[OsString]) -> Result<Config, Exit> {
    match EngineLine::try_parse_from(flags) {
        Ok(line) => Ok(line.settings.resolve()?.one_model()),
        Err(error) => {
            let _ = error.print();
            Err(Exit::Usage)
        }
    }
}

/// Measures sessions without queue and HTTP.
fn bare_sessions(args: &Args, texts: &Texts) -> Result<Exit, Exit> {
    let config = load_config(&engine(&args.engine)?, ProgressSink::Stderr);
    let config = config.map_err(|error| Exit::Model.with_error(error))?;
    let engine = load::sessions(&config);
    let mut engine = engine.map_err(|error| Exit::Model.with_error(error))?;
    let (clients, max_tokens) = (args.clients.get(), engine.batch_tokens);
    let summary = bare::batches(&engine.encoder, texts, clients, max_tokens)
        .map_err(BareError::from)
        .and_then(|batches| bare::run(&mut engine.sessions, &batches, times(args)))
        .map_err(|error| Exit::Failure.with_error(error))?;
    let info = json!({
        "model_id": config.model,
        "precision": engine.precision,
        "device": engine.device,
        "threads": config.threads,
    });
    let name = "bare sessions".to_owned();
    print(args, name, info, Findings::Bare { summary });
    Ok(Exit::Success)
}

async fn measure<T: Target>(
    args: &Args,
    texts: Texts,
    target: T,
    bulk_target: T,
    name: String,
    info: Value,
) -> Result<Exit, Exit> {
    let progress = Arc::new(Progress::default());
    let bar = Bar::start(args, progress.clone());
    let load = Load {
        target,
        texts,
        progress,
    };
    let found = find(args, &load, bulk_target, &bar).await;
    bar.end();
    let (findings, exit) = found.map_err(|error| Exit::Failure.with_error(error))?;
    print(args, name, info, findings);
    Ok(exit)
}

fn print(args: &Args, target: String, info: Value, findings: Findings) {
    let documents = args.documents.map(NonZeroUsize::get);
    let (workload, documents) = if args.fairness || args.stream.is_some() {
        let (documents, words) = (args.bulk_documents, args.bulk_words);
        let workload = format!("8 sentences; bulk: {documents} documents of {words} words");
        (workload, None)
    } else if let Ok(kind) = args.workload.parse::<Kind>() {
        let documents = documents.unwrap_or(kind.documents());
        (args.workload.clone(), Some(documents))
    } else {
        (args.workload.clone(), documents)
    };
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        target,
        info,
        workload,
        documents,
        seed: args.seed,
        findings,
    };
    if args.json {
        output::line(json!(report));
    } else {
        output::text(report.table());
    }
}

fn times(args: &Args) -> Times {
    Times {
        warm_up: args.warm_up,
        duration: args.duration,
    }
}

async fn find<T: Target>(
    args: &Args,
    load: &Load<T>,
    bulk_target: T,
    bar: &Bar,
) -> Result<(Findings, Exit), BudgetError> {
    let times = times(args);
    if args.fairness || args.stream.is_some() {
        let small = bench::small(load.target.clone(), args.seed, load.progress.clone());
        let (documents, words) = (args.bulk_documents.get(), args.bulk_words.get());
        let progress = load.progress.clone();
        let bulk = bench::bulk(bulk_target, documents, words, args.seed, progress);
        if let Some(clients) = args.stream {
            let stream = bench::stream(&small, &bulk, clients.get(), times).await;
            let exit = exit(stream.slowdown.is_some());
            return Ok((Findings::Stream(Box::new(stream)), exit));
        }
        let counts: Vec<usize> = args.bulk_clients.iter().map(|n| n.get()).collect();
        let fairness = bench::fairness(&small, &bulk, &counts, times).await;
        let exit = exit(fairness.kept);
        return Ok((Findings::Fairness(Box::new(fairness)), exit));
    }
    if args.overload {
        let overload = bench::overload(load, times, args.seed).await;
        let exit = exit(overload.kept);
        return Ok((Findings::Overload(Box::new(overload)), exit));
    }
    let pace = match args.rate {
        Some(rate) => Pace::RatePerSecond(rate),
        None => Pace::Clients(args.clients.get()),
    };
    let summary = bench::steady(load, pace, times, args.seed).await;
    let answered = summary.answered() > 0;
    let budget = match (answered, args.target_ms) {
        (true, 1..) => {
            bar.say("searching for the number of documents");
            let target = Duration::from_millis(args.target_ms);
            let search = bench::budget(load, target, Config::default().http.max_documents).await?;
            Some(Budget::new(target, &search))
        }
        _ => None,
    };
    let findings = Findings::Steady {
        pace,
        summary,
        budget,
    };
    let exit = match answered {
        true => Exit::Success,
        false => Exit::Failure.with_error(
            "no request was answered: the statuses say why; without any, `--duration` is too short for one",
        ),
    };
    Ok((findings, exit))
}

fn exit(good: bool) -> Exit {
    if good { Exit::Success } else { Exit::Failure }
}

/// A progress bar, if the standard error is a terminal.
struct Bar {
    bar: ProgressBar,
    ticker: tokio::task::JoinHandle<()>,
}

impl Bar {
    fn start(args: &Args, progress: Arc<Progress>) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new(expected(args).as_secs().max(1))
        } else {
            ProgressBar::hidden()
        };
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} s  {msg}{prefix}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let ticker = tokio::spawn({
            let bar = bar.clone();
            async move {
                let mut ticks = tokio::time::interval(Duration::from_millis(250));
                loop {
                    ticks.tick().await;
                    let answered = progress.answered.load(Ordering::Relaxed);
                    let refused = progress.refused.load(Ordering::Relaxed);
                    bar.set_position(bar.elapsed().as_secs());
                    bar.set_message(format!("{answered} answered, {refused} refused or lost"));
                }
            }
        });
        Self { bar, ticker }
    }

    /// Shows `what` after the counts.
    fn say(&self, what: &str) {
        self.bar.set_prefix(format!("; {what}"));
    }

    fn end(&self) {
        self.ticker.abort();
        self.bar.finish_and_clear();
    }
}

/// Duration of the measurement, without the search that may follow.
fn expected(args: &Args) -> Duration {
    let once = args.warm_up + args.duration;
    if args.fairness {
        once * (1 + args.bulk_clients.len() as u32)
    } else if args.stream.is_some() {
        once * 2
    } else if args.overload {
        once + args.duration / 4
    } else {
        once
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Line::try_parse_from(line.split_whitespace()).map(|line| line.args)
    }

    #[test]
    fn flags_after_the_dashes_are_those_of_serve() {
        let args = parse("bench --workload short -- --precision int8 --threads 3").unwrap();
        let config = engine(&args.engine).unwrap();
        assert_eq!(config.model.threads, Some(3));
        assert_eq!(config.model.precision.name(), "int8");
    }

    #[test]
    fn conflicting_flags_are_refused() {
        for line in [
            "bench --rate 0",
            "bench --rate fast",
            "bench --rate 3 --clients 2",
            "bench --clients 0",
            "bench --duration 0s",
            "bench --dialect tei",
            "bench --url http://a --dialect cohere",
            "bench --url http://a -- --precision int8",
            "bench --fairness --overload",
            "bench --bare --url http://a",
            "bench --fairness --workload short",
            "bench --bulk-clients 3",
            "bench --fairness --bulk-clients 0",
            "bench --fairness --stream 4",
            "bench --stream 4 --bulk-clients 3",
            "bench --bulk-words 3",
            "bench --key-file keys",
            "bench --fairness --bulk-key-file keys",
            "bench --url http://a --bulk-key-file keys",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn fairness_takes_several_numbers_of_bulk_clients() {
        let args = parse("bench --fairness --bulk-clients 1,3,8 --bulk-documents 10").unwrap();
        let counts: Vec<usize> = args.bulk_clients.iter().map(|n| n.get()).collect();
        assert_eq!(counts, [1, 3, 8]);
        assert_eq!(args.bulk_documents.get(), 10);
        parse("bench --stream 4 --bulk-words 10").unwrap();
        parse("bench --url http://a --fairness --key-file a --bulk-key-file b").unwrap();
    }

    #[test]
    fn a_key_is_read_from_a_file_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        std::fs::write(&file, "bulk: bulk-secret-1\n").unwrap();
        let line = format!(
            "bench --url http://127.0.0.1:1 --fairness --bulk-key-file {}",
            file.display()
        );
        let args = parse(&line).unwrap();
        let (small, bulk) = servers(&args, "http://127.0.0.1:1").unwrap();
        let shown = |server: &Server| format!("{server:?}");
        assert!(!shown(&small).contains("authorization"));
        assert!(shown(&bulk).contains("authorization"), "{bulk:?}");
        assert!(!shown(&bulk).contains("bulk-secret"));
        std::fs::remove_file(&file).unwrap();
        let error = servers(&args, "http://127.0.0.1:1")
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("`--bulk-key-file "), "{error}");
    }

    #[test]
    fn a_workload_that_is_neither_kind_nor_file_is_wrong_usage() {
        assert_eq!(
            run(&parse("bench --workload no-such-file").unwrap()),
            Exit::Usage
        );
        assert_eq!(
            run(&parse("bench --url 127.0.0.1:8080").unwrap()),
            Exit::Usage
        );
    }
}
