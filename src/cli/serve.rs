//! `rerankd serve`: the life of the server.

mod reload;
mod systemd;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use self::reload::Reload;
use self::systemd::Passed;
use super::Exit;
use super::healthcheck::reachable;
use super::hub::{Told, placed};
use super::settings::Flags;
use crate::config::{Config, Device, Listen};
use crate::cores::Cores;
use crate::http::ListenerConfig;
use crate::http::socket::Socket;
use crate::http::state::AppState;
use crate::http::tls::Tls;
use crate::metrics::ServerMetrics;
use crate::shutdown::{Phase, Stopped};
use crate::telemetry::spans::Spans;
use crate::{http, shutdown, telemetry};
use rerankd_engine::load::{self, LoadConfig, LoadError};
use rerankd_engine::service::Reranker;

/// Runs the server until it is told to stop.
pub fn run(flags: &Flags) -> Exit {
    let config = match flags.resolve() {
        Ok(effective) => effective.config,
        Err(exit) => return exit,
    };
    if let Err(error) = telemetry::init(&config.log) {
        eprintln!("rerankd: {error}");
        return Exit::Usage;
    }
    // Dropped last, so that the spans of the last requests are sent.
    let _spans = match Spans::start(&config.traces) {
        Ok(spans) => spans,
        Err(error) => {
            eprintln!("error: {error}");
            return Exit::Usage;
        }
    };
    let runtime = match runtime() {
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

/// What sockets run on. They and JSON need little; the cores belong to the model.
pub(super) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores().count.clamp(2, 4))
        .thread_name("http")
        .enable_all()
        .build()
}

/// The life of the server, from an open port to its exit code.
async fn live(mut config: Config) -> Exit {
    let tls = match tls(&config) {
        Ok(tls) => tls,
        Err(error) => {
            tracing::error!(error, "the settings of TLS are wrong");
            return Exit::Usage;
        }
    };
    // Before the port: a signal that comes early must not kill a server somebody already talks to.
    let mut signals = match shutdown::signals() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "signals cannot be received");
            return Exit::Failure;
        }
    };
    let hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => {
            tracing::error!(%error, "signals cannot be received");
            return Exit::Failure;
        }
    };
    let load_config = match place(&config, &mut signals).await {
        Ok(load_config) => load_config,
        Err(exit) => return exit,
    };
    let opened = match open(&config).await {
        Ok(opened) => opened,
        Err(error) => {
            tracing::error!(
                listen = %config.http.listen,
                admin_listen = config.http.admin_listen.as_ref().map(tracing::field::display),
                %error,
                "cannot listen; hint: `--listen ADDRESS` moves the server"
            );
            return Exit::Failure;
        }
    };
    let Opened {
        socket,
        address,
        admin,
    } = opened;
    if let Some((_, address)) = &admin {
        // ServerMetrics are answered there and nowhere else, whoever opened it.
        config.http.admin_listen = Some(address.clone());
    }
    tracing::info!(listen = %address, version = env!("CARGO_PKG_VERSION"), "starting");
    warn_if_open(&config, &address);
    tell_threads(&config);

    let metrics = ServerMetrics::new();
    let state = AppState::new(config.clone(), metrics.clone());
    let listener = ListenerConfig {
        tls: tls.clone(),
        ..ListenerConfig::new(socket, &config.http, metrics.clone())
    };
    let server = tokio::spawn(http::serve(
        listener,
        http::router::build(state.clone()),
        state.lifecycle().reached(Phase::Draining),
    ));
    if let Some((socket, address)) = admin {
        tracing::info!(admin_listen = %address, "probes and metrics");
        // It answers to the end: whoever watches the server wants to see it drain.
        tokio::spawn(http::serve(
            ListenerConfig::admin(socket, &config.http, metrics.clone()),
            http::router::build_admin(state.clone()),
            std::future::pending(),
        ));
    }
    let reload = Reload {
        state: state.clone(),
        tls: tls.clone(),
    };
    tokio::spawn(reload.run(hangup, config.http.reload_interval));
    tokio::spawn(systemd::watchdog());

    // Dropped when loading has ended: the process must not exit under a loading runtime library.
    let (loading, loaded) = oneshot::channel::<()>();
    let mut load = tokio::task::spawn_blocking({
        let (config, state, metrics) = (config.clone(), state.clone(), metrics.clone());
        move || {
            let _loading = loading;
            let reranker = Arc::new(load::load(&load_config, metrics.engine.clone())?);
            state.install(reranker.clone());
            announce(&config, &reranker, &address);
            systemd::tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
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
    let stopping = state.lifecycle().reached(Phase::Grace);
    tokio::spawn(async move {
        stopping.await;
        systemd::tell(&[NotifyState::Stopping]);
    });
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
    let in_flight = state.in_flight();
    if stopped != Stopped::Clean
        && let Some(reranker) = state.reranker()
    {
        reranker.stop(LAST_BATCH);
    }
    leave(stopped, in_flight)
}

/// How long a process that stops without its answers waits for the batch that runs, which takes a tenth
/// of a second unless a single pair takes longer.
const LAST_BATCH: Duration = Duration::from_secs(1);

/// What to load, the model in place: one of a hub is downloaded before the port is open.
async fn place(config: &Config, signals: &mut mpsc::Receiver<()>) -> Result<LoadConfig, Exit> {
    let config = config.clone();
    let placing = tokio::task::spawn_blocking(move || placed(&config, Told::ToLog));
    let placed = tokio::select! {
        placed = placing => placed,
        _ = signals.recv() => {
            tracing::info!("stopped while the model was downloaded; the next start goes on with it");
            return Err(Exit::Success);
        }
    };
    let error = match placed {
        Ok(Ok(load_config)) => return Ok(load_config),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic.to_string(),
    };
    tracing::error!(error, "the model cannot be served");
    Err(Exit::Model)
}

/// Asks systemd, where it waits, to wait so much longer.
pub(super) fn still_starting(longer: Duration) {
    let longer = u32::try_from(longer.as_micros()).unwrap_or(u32::MAX);
    systemd::tell(&[
        NotifyState::ExtendTimeoutUsec(longer),
        NotifyState::Status("downloading the model"),
    ]);
}

/// What a server has before it has a model.
struct Opened {
    socket: Socket,
    address: Listen,
    admin: Option<(Socket, Listen)>,
}

async fn open(config: &Config) -> std::io::Result<Opened> {
    let passed = Passed::take()?;
    let socket = match passed.requests {
        Some(socket) => socket,
        None => Socket::bind(&config.http.listen).await?,
    };
    let admin = match (passed.admin, &config.http.admin_listen) {
        (Some(socket), _) => Some(socket),
        (None, Some(listen)) => Some(Socket::bind(listen).await?),
        (None, None) => None,
    };
    Ok(Opened {
        address: socket.address()?,
        socket,
        admin: match admin {
            Some(socket) => {
                let address = socket.address()?;
                Some((socket, address))
            }
            None => None,
        },
    })
}

/// TLS as the settings want it.
///
/// # Errors
/// When they contradict themselves, or their files are no certificate and key.
fn tls(config: &Config) -> Result<Option<Arc<Tls>>, String> {
    match (&config.http.tls_cert, &config.http.tls_key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Tls::load(certificate, key)
            .map(|tls| Some(Arc::new(tls)))
            .map_err(|error| error.to_string()),
        _ => Err("only one of `tls_cert` and `tls_key` is set; hint: set both".to_owned()),
    }
}

/// Says it where everybody can ask.
fn warn_if_open(config: &Config, address: &Listen) {
    if let Listen::Tcp(address) = address
        && !address.ip().is_loopback()
        && config.http.api_keys.keys().is_empty()
    {
        tracing::warn!(
            "everybody who reaches this address is served; hint: `--api-keys-file FILE` asks for a key"
        );
    }
}

fn leave(stopped: Stopped, in_flight: usize) -> Exit {
    match stopped {
        Stopped::Clean => {
            tracing::info!("stopped");
            Exit::Success
        }
        // What held the drain were requests that were not sent to their end: nothing was accepted.
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
fn announce(config: &Config, reranker: &Reranker, address: &Listen) {
    let model = reranker.info();
    tracing::info!(
        model = model.id,
        architecture = model.architecture,
        parameters = model.parameters,
        precision = model.precision,
        device = model.device,
        device_because = model.device_because,
        providers = ?model.providers,
        instructions = model.instructions,
        max_length_tokens = model.max_length,
        threads = model.threads,
        sessions = model.sessions,
        runtime_version = model.runtime_version,
        "ready"
    );
    if config.model.dir.is_none() {
        tracing::info!(
            "the embedded model is small and reads English; a larger one, by `--model`, ranks better"
        );
    }
    let to_try = to_try(config, model.labels.len(), address);
    tracing::info!("try: {to_try}");
}

/// A command that the server answers, whatever kind of model it has.
fn to_try(config: &Config, labels: usize, address: &Listen) -> String {
    let tls = config.http.tls_cert.is_some();
    let (options, scheme) = (
        if tls { "-k " } else { "" },
        if tls { "https" } else { "http" },
    );
    let place = match reachable(address) {
        Listen::Tcp(address) => format!("{scheme}://{address}"),
        Listen::Unix(path) => format!("--unix-socket {} {scheme}://localhost", path.display()),
    };
    let key = match config.http.api_keys.keys() {
        [] => "",
        _ => "-H 'authorization: Bearer KEY' ",
    };
    let (path, body) = match labels {
        0 | 1 => (
            "rerank",
            r#"{"query":"A man is eating food.","documents":["A monkey plays the drums.","Somebody eats a meal."]}"#,
        ),
        // There is no order by several numbers.
        _ => (
            "predict",
            r#"{"pairs":[["A man is eating food.","Somebody eats a meal."]]}"#,
        ),
    };
    format!("curl -s {options}{key}{place}/{path} -d '{body}'")
}

/// The cores that this process may use.
fn cores() -> Cores {
    Cores::read(Path::new("/"))
}

/// Says how many threads run the model, and why so many.
fn tell_threads(config: &Config) {
    let cores = cores();
    let threads = config.model.threads.unwrap_or(cores.count);
    if config.model.device != Device::Cpu {
        tracing::info!(
            threads,
            cores = cores.count,
            "one thread a core tokenises, and runs the model where no GPU does"
        );
        return;
    }
    tracing::info!(
        threads,
        cores = cores.count,
        asked_for = config.model.threads,
        because = cores.reason(),
        "one thread a core runs the model, each with a session of its own, and none spins"
    );
    if threads > cores.count {
        tracing::warn!(
            threads,
            cores = cores.count,
            "more threads than cores make every request slower; hint: leave `--threads` out, or give \
             this process more cores"
        );
    }
}

/// What the config asks the loader for, with the model as it is named. Threads not given are the cores
/// that the process may use.
pub(super) fn load_config(config: &Config) -> LoadConfig {
    LoadConfig {
        model: config.model.dir.clone(),
        onnx_file: config.model.onnx_file.clone(),
        served_model_name: config.model.served_name.clone(),
        truncation: config.model.truncation,
        runtime_library: std::env::var_os("ORT_DYLIB_PATH"),
        threads: config.model.threads.unwrap_or_else(|| cores().count),
        precision: config.model.precision,
        device: config.model.device,
        library_path: std::env::var_os("LD_LIBRARY_PATH"),
        batching: (&config.batching).into(),
        cache: (&config.cache).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_to_try_is_one_that_the_model_answers() {
        let address = Listen::Tcp(([0, 0, 0, 0], 80).into());
        let of = |labels| to_try(&Config::default(), labels, &address);
        let start = "curl -s http://127.0.0.1:80/";
        assert!(of(1).starts_with(&format!(r#"{start}rerank -d '{{"query""#)));
        assert!(of(3).starts_with(&format!(r#"{start}predict -d '{{"pairs""#)));
    }

    #[test]
    fn half_sent_requests_do_not_spoil_the_exit_code() {
        assert_eq!(leave(Stopped::TimedOut, 0), Exit::Success);
        assert_eq!(leave(Stopped::TimedOut, 1), Exit::DrainTimeout);
    }
}
