//! `rerankd serve`: the life of the server.

mod announce;
mod models;
mod reload;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use self::models::{ConfiguredModels, ModelManager};
use self::reload::Reload;
use super::Exit;
use super::loader::cores;
use super::settings::{Effective, Flags};
use super::systemd::{self, Passed};
use crate::config::{Config, Listen, ModelEntry};
use crate::http::ListenerConfig;
use crate::http::socket::Socket;
use crate::http::state::AppState;
use crate::http::tls::{Tls, TlsError};
use crate::metrics::ServerMetrics;
use crate::shutdown::{Phase, Stopped};
use crate::telemetry::spans::Spans;
use crate::{http, shutdown, telemetry};
use rerankd_engine::load::LoadError;

/// How long a server that stops without answering every request waits for the running batch. One
/// takes a tenth of a second, unless a single pair takes longer.
const LAST_BATCH: Duration = Duration::from_secs(1);

/// Runs the server until a signal stops it.
pub fn run(flags: &Flags) -> Exit {
    let Effective { config, models, .. } = match flags.resolve() {
        Ok(effective) => effective,
        Err(exit) => return exit,
    };
    if let Err(error) = telemetry::init(&config.log) {
        eprintln!("error: {error}");
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
            tracing::error!(%error, "cannot start threads");
            return Exit::Failure;
        }
    };
    let exit = runtime.block_on(async {
        match live(config, models, flags).await {
            Ok(exit) => exit,
            Err(error) => error.log(),
        }
    });
    // Tasks that still run were abandoned by a second signal or by the drain timeout.
    runtime.shutdown_background();
    exit
}

/// The async runtime. Sockets and JSON need few threads; the cores are for the model.
pub(super) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores().clamp(2, 4))
        .thread_name("http")
        .enable_all()
        .build()
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("only one of `tls_cert` and `tls_key` is set; hint: set both")]
    HalfTls,
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Signals(io::Error),
    #[error(transparent)]
    Listen(io::Error),
    #[error(transparent)]
    Model(#[from] LoadError),
    #[error(transparent)]
    Panic(#[from] tokio::task::JoinError),
    #[error("stopped while downloading the model")]
    Stopped,
}

impl StartError {
    /// Logs it, and gives the exit code.
    fn log(&self) -> Exit {
        match self {
            Self::HalfTls | Self::Tls(_) => {
                tracing::error!(error = %self, "wrong TLS settings");
                Exit::Usage
            }
            Self::Signals(error) => {
                tracing::error!(%error, "cannot receive signals");
                Exit::Failure
            }
            Self::Listen(error) => {
                tracing::error!(%error, hint = "`--listen ADDRESS` sets the address", "cannot listen");
                Exit::Failure
            }
            Self::Model(_) | Self::Panic(_) => {
                tracing::error!(error = %self, "cannot load the model");
                Exit::Model
            }
            Self::Stopped => {
                tracing::info!(
                    hint = "the next start resumes the download",
                    "stopped while downloading the model"
                );
                Exit::Success
            }
        }
    }
}

/// The life of the server, from its settings to its exit code.
async fn live(
    mut config: Config,
    entries: Vec<ModelEntry>,
    flags: &Flags,
) -> Result<Exit, StartError> {
    let tls = tls(&config)?;
    // Before the port opens: an early signal must not kill a server that already has clients.
    let mut signals = shutdown::signals().map_err(StartError::Signals)?;
    let hangup = signal(SignalKind::hangup()).map_err(StartError::Signals)?;
    let are_listed = !entries.is_empty();
    // Also before the port opens: without its models on disk, the server cannot become ready.
    let wanted = download(&config, entries, &mut signals).await?;
    let Opened { socket, admin } = Opened::open(&config).await?;
    let address = socket.address().map_err(StartError::Listen)?;
    tracing::info!(listen = %address, version = env!("CARGO_PKG_VERSION"), "starting");
    if let Some(socket) = &admin {
        let address = socket.address().map_err(StartError::Listen)?;
        tracing::info!(admin_listen = %address, "listening for probes and metrics");
        // If systemd passed the socket, no setting says that metrics are answered there only.
        config.http.admin_listen = Some(address);
    }
    announce::warn_if_open(&config, &address);
    announce::threads(&config, &wanted.sample());

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
    if let Some(socket) = admin {
        // Never closed: probes and metrics are answered while the server drains.
        tokio::spawn(http::serve(
            ListenerConfig::admin(socket, &config.http, metrics.clone()),
            http::router::build_admin(state.clone()),
            std::future::pending(),
        ));
    }
    let models = Arc::new(ModelManager::new(
        flags.clone(),
        state.clone(),
        metrics.clone(),
        &wanted,
    )?);
    let reload = Reload {
        state: state.clone(),
        tls,
        models: models.clone(),
    };
    tokio::spawn(reload.clone().on_request());
    tokio::spawn(reload.run(hangup, config.http.reload_interval));
    tokio::spawn(systemd::watchdog());

    // Dropped when loading has ended: the process must not exit while the runtime library loads.
    let (loading, loaded) = oneshot::channel::<()>();
    let mut load = tokio::task::spawn_blocking({
        let (config, models) = (config.clone(), models.clone());
        move || {
            let _loading = loading;
            let reranker = models.start(wanted)?;
            announce::ready(&config, are_listed, &reranker, &address);
            systemd::notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
            Ok::<(), LoadError>(())
        }
    });

    let finished = async {
        let _ = server.await;
        let _ = loaded.await;
        let served = state.models();
        for reranker in served.iter().flat_map(|models| models.all()) {
            reranker.drain().await;
        }
        let models = models.clone();
        // Fails only if it panicked.
        let _ = tokio::task::spawn_blocking(move || models.settle()).await;
    };
    let supervised =
        shutdown::supervise(state.lifecycle(), &config.shutdown, &mut signals, finished);
    let stopping = state.lifecycle().reached(Phase::Grace);
    tokio::spawn(async move {
        stopping.await;
        systemd::notify(&[NotifyState::Stopping]);
    });
    tokio::pin!(supervised);
    let stopped = tokio::select! {
        stopped = &mut supervised => stopped,
        loaded = &mut load => {
            loaded??;
            supervised.await
        }
    };
    let in_flight = state.in_flight();
    if stopped != Stopped::Clean {
        models.host().stop(LAST_BATCH);
    }
    Ok(exit(stopped, in_flight))
}

/// The models, once they are on the disk.
async fn download(
    config: &Config,
    entries: Vec<ModelEntry>,
    signals: &mut mpsc::Receiver<()>,
) -> Result<ConfiguredModels, StartError> {
    let config = config.clone();
    let loading = tokio::task::spawn_blocking(move || ConfiguredModels::fetch(&config, &entries));
    tokio::select! {
        loaded = loading => Ok(loaded??),
        _ = signals.recv() => Err(StartError::Stopped),
    }
}

/// The sockets of a server.
struct Opened {
    socket: Socket,
    admin: Option<Socket>,
}

impl Opened {
    /// Takes the sockets that systemd passed, and opens the others.
    async fn open(config: &Config) -> Result<Self, StartError> {
        let passed = Passed::take().map_err(StartError::Listen)?;
        let socket = match passed.requests {
            Some(socket) => socket,
            None => bind(&config.http.listen).await?,
        };
        let admin = match (passed.admin, &config.http.admin_listen) {
            (Some(socket), _) => Some(socket),
            (None, Some(listen)) => Some(bind(listen).await?),
            (None, None) => None,
        };
        Ok(Self { socket, admin })
    }
}

async fn bind(listen: &Listen) -> Result<Socket, StartError> {
    let bound = Socket::bind(listen).await;
    bound.map_err(|error| StartError::Listen(io::Error::other(format!("`{listen}`: {error}"))))
}

/// TLS as configured.
fn tls(config: &Config) -> Result<Option<Arc<Tls>>, StartError> {
    match (&config.http.tls_cert, &config.http.tls_key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some(Arc::new(Tls::load(certificate, key)?))),
        _ => Err(StartError::HalfTls),
    }
}

/// The exit code of a server that stopped with so many accepted requests unanswered.
fn exit(stopped: Stopped, in_flight: usize) -> Exit {
    match stopped {
        Stopped::Clean => {
            tracing::info!("stopped");
            Exit::Success
        }
        // Only requests that never arrived whole were left; none of them was accepted.
        Stopped::TimedOut if in_flight == 0 => {
            tracing::info!("stopped with connections still open");
            Exit::Success
        }
        Stopped::TimedOut => {
            tracing::warn!(
                requests = in_flight,
                hint = "`--drain-timeout TIME` waits longer",
                "stopped with requests unanswered"
            );
            Exit::DrainTimeout
        }
        Stopped::Killed => {
            tracing::warn!(requests = in_flight, "stopped by a second signal");
            Exit::Killed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_never_arrived_whole_do_not_change_the_exit_code() {
        assert_eq!(exit(Stopped::TimedOut, 0), Exit::Success);
        assert_eq!(exit(Stopped::TimedOut, 1), Exit::DrainTimeout);
    }
}
