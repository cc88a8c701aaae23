//! The progress of a download, for a terminal or for the log.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::systemd;
use rerankd_hub::DownloadEvent;

/// How often a line is written if there is no progress bar.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Where progress is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProgressSink {
    /// The standard error: a progress bar on a terminal, else lines of text.
    Stderr,
    /// The log.
    Log,
}

/// A download in progress. Reports nothing until there is something to download.
pub(super) struct Download {
    model: String,
    sink: ProgressSink,
    state: Mutex<State>,
}

struct State {
    bar: ProgressBar,
    done: u64,
    total: u64,
    started: Instant,
    next_line: Instant,
}

impl Download {
    pub(super) fn new(model: String, sink: ProgressSink) -> Self {
        let started = Instant::now();
        let state = State {
            bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()),
            done: 0,
            total: 0,
            started,
            next_line: started + LINE_INTERVAL,
        };
        Self {
            model,
            sink,
            state: Mutex::new(state),
        }
    }

    pub(super) fn report(&self, event: DownloadEvent<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            DownloadEvent::Planned { files, bytes } => self.planned(&mut state, files, bytes),
            DownloadEvent::Received(bytes) => {
                state.done += bytes;
                state.bar.set_position(state.done);
                self.line(&mut state);
            }
            DownloadEvent::Restarted(bytes) => {
                state.total += bytes;
                state.bar.set_length(state.total);
            }
            DownloadEvent::Retrying { what, wait } => {
                let seconds = wait.as_secs_f64();
                match self.sink {
                    ProgressSink::Stderr => state
                        .bar
                        .suspend(|| eprintln!("{what}; retrying in {seconds:.1} s")),
                    ProgressSink::Log => tracing::warn!(
                        model = self.model,
                        error = what,
                        wait_seconds = seconds,
                        "retrying the download"
                    ),
                }
            }
            DownloadEvent::Stale { what, commit } => match self.sink {
                ProgressSink::Stderr => {
                    eprintln!("{what}; using commit {commit} from the cache");
                }
                ProgressSink::Log => tracing::warn!(
                    model = self.model,
                    error = what,
                    commit,
                    "hub unreachable, using the cached model"
                ),
            },
        }
    }

    fn planned(&self, state: &mut State, files: usize, bytes: u64) {
        state.total += bytes;
        match self.sink {
            ProgressSink::Stderr if std::io::stderr().is_terminal() => {
                let style = ProgressStyle::with_template(
                    "{msg} {bar:30} {binary_bytes}/{binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
                );
                state.bar.set_style(style.expect("a valid template"));
                state.bar.set_message(self.model.clone());
                state.bar.set_draw_target(ProgressDrawTarget::stderr());
            }
            ProgressSink::Stderr => eprintln!(
                "{}: downloading {files} files ({})",
                self.model,
                BinaryBytes(bytes)
            ),
            ProgressSink::Log => {
                tracing::info!(model = self.model, files, bytes, "downloading the model");
            }
        }
        state.bar.set_length(state.total);
    }

    /// Writes a line now and then if there is no progress bar.
    fn line(&self, state: &mut State) {
        let now = Instant::now();
        if now < state.next_line {
            return;
        }
        state.next_line = now + LINE_INTERVAL;
        let rate = state.done as f64 / now.duration_since(state.started).as_secs_f64().max(1e-3);
        match self.sink {
            ProgressSink::Stderr if !state.bar.is_hidden() => {}
            ProgressSink::Stderr => eprintln!(
                "{}: {} of {}, {} per second",
                self.model,
                BinaryBytes(state.done),
                BinaryBytes(state.total),
                BinaryBytes(rate as u64)
            ),
            ProgressSink::Log => {
                tracing::info!(
                    model = self.model,
                    bytes = state.done,
                    total_bytes = state.total,
                    bytes_per_second = rate as u64,
                    "downloading the model"
                );
                systemd::extend_start(3 * LINE_INTERVAL);
            }
        }
    }

    pub(super) fn finish(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bar.finish_and_clear();
        if state.total > 0 && self.sink == ProgressSink::Log {
            tracing::info!(
                model = self.model,
                bytes = state.done,
                took_ms = state.started.elapsed().as_millis() as u64,
                "model downloaded"
            );
        }
    }
}
