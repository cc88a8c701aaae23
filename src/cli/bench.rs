//! `rerankd bench`: how fast a server is, or the engine in this process.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Parser;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::settings::Flags;
use super::{Exit, hub, output, serve};
use crate::config::Config;
use rerankd_engine::load;
use rerankd_engine::metrics::Metrics;
use rerankd_tools::bench::drive::{Load, Progress};
use rerankd_tools::bench::report::{Budget, Findings, Report};
use rerankd_tools::bench::target::{Dialect, Engine, Server, Target};
use rerankd_tools::bench::text::{Kind, Source, Texts, read};
use rerankd_tools::bench::{self, Pace, Times, bare};

/// Longest part of a measurement.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

const EXAMPLES: &str = "\
Examples:
  rerankd bench --workload short
  rerankd bench --workload mixed -- --model DIR --precision int8
  rerankd bench --url http://127.0.0.1:8080 --workload passage --clients 8
  rerankd bench --url http://127.0.0.1:8080 --rate 5 --duration 60s
  rerankd bench --url http://127.0.0.1:8080 --fairness";

/// Flags of `bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Server to measure, such as `http://127.0.0.1:8080`. Without it the engine is loaded into this
    /// process and measured without HTTP; the flags of `serve` for it come after `--`.
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// Names that the server's `/rerank` reads: this server's, or those of Text Embeddings Inference.
    #[arg(
        long,
        value_name = "DIALECT",
        default_value = "native",
        requires = "url"
    )]
    #[arg(value_parser = PossibleValuesParser::new(Dialect::ALL.map(|(name, _)| name)).map(dialect))]
    dialect: Dialect,

    /// Texts to send: `short` (sentences, about 23 tokens a pair), `passage` (abstracts, 224 tokens
    /// on average with a long tail), `mixed` (half and half), `long` (8 documents of 512 tokens), all
    /// made up, or a file with a line `{"query": "...", "documents": ["..."]}` for each request.
    #[arg(long, value_name = "KIND|FILE", default_value = "mixed")]
    workload: String,

    /// Documents of each request. Default: 32; 8 of `long`; as it stands of a file.
    #[arg(long, value_name = "N")]
    documents: Option<NonZeroUsize>,

    /// Number that texts and arrivals are made from: the same number makes the same load.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Send only so many different requests, over and over, as a cache likes it. Default: no text is
    /// sent twice.
    #[arg(long, value_name = "N")]
    different: Option<NonZeroU64>,

    /// Clients that each wait for their answer before they send again. Latency then is what a
    /// client sees that never has more than one request under way.
    #[arg(long, value_name = "N", default_value = "4")]
    clients: NonZeroUsize,

    /// Requests a second, at random times, whether or not earlier ones were answered. Latency then
    /// counts from when a request should have been sent, so that a stall is seen by all whom it
    /// would have kept waiting.
    #[arg(long, value_name = "RATE", conflicts_with = "clients", value_parser = rate)]
    rate: Option<f64>,

    /// How long to measure.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = timeout)]
    duration: Duration,

    /// How long to send before anything counts.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    warm_up: Duration,

    /// Answer time, in milliseconds, for the sentence at the end: how many documents one request
    /// may have so that 95 % of the answers come in this time, one request at a time. 0 leaves the
    /// search out.
    #[arg(long, value_name = "MS", default_value_t = 200)]
    target_ms: u64,

    /// Measure the model alone in this process: its sessions, with batches that are ready, no queue
    /// and no HTTP. What a server gives away is told by comparing with this.
    #[arg(long, conflicts_with_all = ["url", "rate", "fairness", "overload"])]
    bare: bool,

    /// Measure a client that sends 8 sentences at a time, first by itself, then beside one that
    /// sends 256 abstracts at a time. Ends with exit code 1 when the small one waits too long.
    #[arg(long, conflicts_with_all = ["overload", "rate", "clients", "workload", "documents", "different"])]
    fairness: bool,

    /// Longest time a batch may take, for the judgement of `--fairness`: the median may be longer by
    /// one, the 99th percentile by two.
    #[arg(long, value_name = "MS", default_value_t = 100, requires = "fairness")]
    batch_ms: u64,

    /// Find out the capacity, then send ten times as much. Ends with exit code 1 when there is
    /// anything but answers and 429, a refusal takes over 20 ms (p99.9), or less than 95 % of the
    /// capacity remains.
    #[arg(long, conflicts_with_all = ["rate", "clients"])]
    overload: bool,

    /// Print the figures as JSON instead of a table.
    #[arg(long)]
    json: bool,

    /// Print so many requests, a line each, and measure nothing: for other programs to be measured
    /// with the same texts.
    #[arg(long, value_name = "N", conflicts_with_all = ["url", "bare", "fairness", "overload", "rate"])]
    print_requests: Option<u64>,

    /// Flags of `rerankd serve` for the engine in this process, such as `--precision int8`.
    #[arg(last = true, value_name = "SERVE FLAGS", conflicts_with = "url")]
    engine: Vec<OsString>,
}

/// The flags of `serve` that stand after `--`.
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

fn rate(text: &str) -> Result<f64, String> {
    let hint = "write it as a number above zero, such as `0.5` or `20`";
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 1e6 => Ok(rate),
        _ => Err(hint.to_owned()),
    }
}

/// Reads a time as settings are written.
fn duration(text: &str) -> Result<Duration, String> {
    match <Duration as crate::config::Value>::parse(text)? {
        time if time <= LONGEST => Ok(time),
        _ => Err(format!("has to be at most `{}s`", LONGEST.as_secs())),
    }
}

/// The same, but not zero.
fn timeout(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("has to be longer than zero".to_owned()),
        time => Ok(time),
    }
}

/// Measures, and prints the figures to the standard output.
pub fn run(args: &Args) -> Exit {
    let source = match args.workload.parse::<Kind>() {
        Ok(kind) => Source::BuiltIn(kind),
        Err(()) => match read(&PathBuf::from(&args.workload)) {
            Ok(requests) => Source::File(requests),
            Err(error) => return usage(&format!("`--workload {}`: {error}", args.workload)),
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
    if args.bare {
        return bare_sessions(args, &texts);
    }
    // As `serve` has it, so that the engine is measured as it runs there.
    let runtime = match serve::runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("rerankd: the runtime did not start: {error}");
            return Exit::Failure;
        }
    };
    let exit = match &args.url {
        Some(url) => {
            let server = match Server::new(url, args.dialect) {
                Ok(server) => server,
                Err(error) => return usage(&format!("`--url {url}`: {error}")),
            };
            runtime.block_on(async {
                match server.info().await {
                    Ok(info) => measure(args, texts, server, url.clone(), info).await,
                    Err(error) => {
                        eprintln!("rerankd: {url}: {error}");
                        Exit::Failure
                    }
                }
            })
        }
        None => {
            let engine = match engine(&args.engine) {
                Ok(config) => config,
                Err(exit) => return exit,
            };
            let engine = match hub::load_config(&engine) {
                Ok(engine) => engine,
                Err(error) => {
                    eprintln!("rerankd: {error}");
                    return Exit::Model;
                }
            };
            let reranker = match load::load(&engine, Metrics::new()) {
                Ok(reranker) => Arc::new(reranker),
                Err(error) => {
                    eprintln!("rerankd: {error}");
                    return Exit::Model;
                }
            };
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
            runtime.block_on(measure(args, texts, target, "in process".to_owned(), info))
        }
    };
    runtime.shutdown_background();
    exit
}

/// The settings of the engine; what is wrong with them is said on the standard error.
fn engine(flags: &[OsString]) -> Result<Config, Exit> {
    match EngineLine::try_parse_from(flags) {
        Ok(line) => Ok(line.settings.resolve()?.config),
        Err(error) => {
            let _ = error.print();
            Err(Exit::Usage)
        }
    }
}

fn usage(message: &str) -> Exit {
    eprintln!("rerankd: {message}");
    Exit::Usage
}

/// Measures sessions without a server around them.
fn bare_sessions(args: &Args, texts: &Texts) -> Exit {
    let config = match engine(&args.engine) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let opened = hub::load_config(&config).and_then(|load_config| {
        let engine = load::sessions(&load_config)?;
        Ok((load_config, engine))
    });
    let (load_config, mut engine) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            eprintln!("rerankd: {error}");
            return Exit::Model;
        }
    };
    let (clients, max_tokens) = (args.clients.get(), engine.batch_tokens);
    let found = bare::batches(&engine.encoder, texts, clients, max_tokens)
        .map_err(|error| error.to_string())
        .and_then(|batches| bare::run(&mut engine.sessions, &batches, times(args)));
    let summary = match found {
        Ok(summary) => summary,
        Err(error) => {
            eprintln!("rerankd: {error}");
            return Exit::Failure;
        }
    };
    let info = json!({
        "model_id": load_config.model,
        "precision": engine.precision,
        "device": engine.device,
        "threads": load_config.threads,
    });
    show(
        args,
        "bare sessions".to_owned(),
        info,
        Findings::Bare { summary },
    );
    Exit::Success
}

async fn measure<T: Target>(
    args: &Args,
    texts: Texts,
    target: T,
    name: String,
    info: Value,
) -> Exit {
    let progress = Arc::new(Progress::default());
    let bar = Bar::start(args, progress.clone());
    let load = Load {
        target,
        texts,
        progress: progress.clone(),
    };
    let found = find(args, &load, &bar).await;
    bar.end();
    let (findings, exit) = match found {
        Ok(found) => found,
        Err(error) => {
            eprintln!("rerankd: {error}");
            return Exit::Failure;
        }
    };
    show(args, name, info, findings);
    exit
}

fn show(args: &Args, target: String, info: Value, findings: Findings) {
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        target,
        info,
        documents: match args.workload.parse::<Kind>() {
            Ok(kind) => Some(args.documents.map_or(kind.documents(), NonZeroUsize::get)),
            Err(()) => args.documents.map(NonZeroUsize::get),
        },
        workload: args.workload.clone(),
        seed: args.seed,
        findings,
    };
    match args.json {
        true => output::line(json!(report)),
        false => output::text(report.table()),
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
    bar: &Bar,
) -> Result<(Findings, Exit), String> {
    let times = times(args);
    if args.fairness {
        let figures = bench::fairness(&load.target, times, args.seed, &load.progress).await;
        let verdict = figures.verdict(Duration::from_millis(args.batch_ms));
        let exit = exit(verdict.kept);
        let figures = Box::new(figures);
        return Ok((Findings::Fairness { figures, verdict }, exit));
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
            bar.say("looking for the number of documents");
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
    Ok((findings, exit(answered)))
}

fn exit(good: bool) -> Exit {
    match good {
        true => Exit::Success,
        false => Exit::Failure,
    }
}

/// What is shown meanwhile, on a terminal.
struct Bar {
    bar: ProgressBar,
    ticker: tokio::task::JoinHandle<()>,
}

impl Bar {
    fn start(args: &Args, progress: Arc<Progress>) -> Self {
        let bar = match std::io::stderr().is_terminal() {
            true => ProgressBar::new(expected(args).as_secs().max(1)),
            false => ProgressBar::hidden(),
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

    /// Shows `what` from now on.
    fn say(&self, what: &str) {
        self.bar.set_prefix(format!("; {what}"));
    }

    fn end(&self) {
        self.ticker.abort();
        self.bar.finish_and_clear();
    }
}

/// How long the measurement itself takes, without the search that may follow.
fn expected(args: &Args) -> Duration {
    let once = args.warm_up + args.duration;
    match (args.fairness, args.overload) {
        (true, _) => once * 2,
        (_, true) => args.warm_up + args.duration / 4 + args.duration,
        _ => once,
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
    fn what_does_not_go_together_is_refused() {
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
            "bench --batch-ms 3",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
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
