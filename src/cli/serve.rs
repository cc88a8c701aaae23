//! `rerankd serve`: the life of the server.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use super::Exit;
use super::healthcheck::reachable;
use super::settings::Flags;
use crate::config::Config;
use crate::http::app::AppState;
use crate::load::{LoadConfig, LoadError};
use crate::metrics::Metrics;
use crate::service::Reranker;
use crate::shutdown::{Phase, Stopped};
use crate::{http, load, shutdown, telemetry};

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
    let (mut signals, listener, address) = match open(config.http.listen).await {
        Ok(opened) => opened,
        Err(error) => {
            tracing::error!(
                listen = %config.http.listen,
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

    #[test]
    fn half_sent_requests_do_not_spoil_the_exit_code() {
        assert_eq!(leave(Stopped::TimedOut, 0), Exit::Success);
        assert_eq!(leave(Stopped::TimedOut, 1), Exit::DrainTimeout);
    }
}
