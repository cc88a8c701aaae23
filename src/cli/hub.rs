//! Models that are no directory: the hub as the settings and the environment name it, and how far a
//! download has come.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::serve;
use crate::config::{Config, Secret, Value};
use rerankd_engine::load::{LoadConfig, LoadError};
use rerankd_hub::{Cache, Event, HubConfig, ModelId, Proxy, Retries, Source};
use rerankd_model::ModelError;

/// How often a line is written where there is no bar.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What the config asks the loader for, the model in place: a model of a hub is downloaded where it is
/// not there yet, which a bar on the standard error shows.
///
/// # Errors
/// [`LoadError`] when the model cannot be had.
pub(super) fn load_config(config: &Config) -> Result<LoadConfig, LoadError> {
    Ok(placed(config, Told::ToPeople)?)
}

/// As [`load_config`], with what happens told as `told` says.
///
/// # Errors
/// [`ModelError`] when the model cannot be had.
pub(super) fn placed(config: &Config, told: Told) -> Result<LoadConfig, ModelError> {
    let source = config.model.dir.as_deref().map(Source::of).transpose()?;
    let model = match source {
        Some(Source::Directory(directory)) => Some(directory),
        Some(Source::Hub(id)) => Some(fetched(&id, config, told)?),
        None => None,
    };
    Ok(LoadConfig {
        model,
        ..serve::load_config(config)
    })
}

/// The directory of a model of a hub, downloaded where it is not there yet.
///
/// # Errors
/// [`ModelError`] when it cannot be had.
pub(super) fn fetched(id: &ModelId, config: &Config, told: Told) -> Result<PathBuf, ModelError> {
    let download = Download::new(id.to_string(), told);
    let onnx_file = config.model.onnx_file.as_deref();
    let directory = rerankd_hub::fetch(id, onnx_file, &hub_config(config)?, &|event| {
        download.tell(event);
    })?;
    download.end();
    Ok(directory)
}

/// The cache that the settings and the environment name.
///
/// # Errors
/// When neither does.
pub(super) fn cache(config: &Config) -> Result<PathBuf, ModelError> {
    match (&config.hub.cache, home()) {
        (Some(cache), _) => Ok(cache.clone()),
        (None, Some(home)) => Ok(home.join("hub")),
        (None, None) => Err(ModelError::new(
            "there is no place to keep models in: neither `HF_HOME` nor `HOME` is set",
            "name a folder with `--hub-cache DIR`",
        )),
    }
}

fn hub_config(config: &Config) -> Result<HubConfig, ModelError> {
    let token = match config.hub.token.text() {
        "" => kept_token(),
        _ => Some(config.hub.token.clone()),
    };
    Ok(HubConfig {
        endpoint: config.hub.endpoint.clone(),
        token: token.filter(|token| !token.text().is_empty()),
        cache: cache(config)?,
        offline: config.hub.offline,
        ca_file: config.hub.ca_file.clone(),
        proxy: Proxy::try_from_env(),
        retries: Retries::default(),
    })
}

/// Where Hugging Face libraries keep what is theirs.
fn home() -> Option<PathBuf> {
    let variable = |name: &str| -> Option<OsString> {
        std::env::var_os(name).filter(|value| !value.is_empty())
    };
    let caches = || match variable("XDG_CACHE_HOME") {
        Some(caches) => Some(PathBuf::from(caches)),
        None => Some(PathBuf::from(variable("HOME")?).join(".cache")),
    };
    match variable("HF_HOME") {
        Some(home) => Some(home.into()),
        None => Some(caches()?.join("huggingface")),
    }
}

/// The token that was left for every program of this user, if there is one.
fn kept_token() -> Option<Secret> {
    let path = match std::env::var_os("HF_TOKEN_PATH").filter(|path| !path.is_empty()) {
        Some(path) => path.into(),
        None => home()?.join("token"),
    };
    Secret::read(&path).ok()
}

/// Who reads how far a download has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// Somebody at a terminal, or a file of the standard error.
    ToPeople,
    /// The log.
    ToLog,
}

/// A download under way. There is nothing to see of it until something is to come.
struct Download {
    model: String,
    told: Told,
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
    fn new(model: String, told: Told) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let now = Instant::now();
        let state = State {
            bar,
            done: 0,
            total: 0,
            started: now,
            next_line: now + LINE_EVERY,
        };
        Self {
            model,
            told,
            state: Mutex::new(state),
        }
    }

    fn tell(&self, event: Event<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Planned { files, bytes } => {
                self.planned(&mut state, files, bytes);
            }
            Event::Received(bytes) => {
                state.done += bytes;
                state.bar.set_position(state.done);
                self.line(&mut state);
            }
            Event::Restarted(bytes) => {
                state.total += bytes;
                state.bar.set_length(state.total);
            }
            Event::Waiting { what, wait } => {
                let seconds = wait.as_secs_f64();
                match self.told {
                    Told::ToPeople => state
                        .bar
                        .suspend(|| eprintln!("{what}; trying again in {seconds:.1} s")),
                    Told::ToLog => {
                        tracing::warn!(
                            model = self.model,
                            what,
                            wait_seconds = seconds,
                            "the hub is asked again"
                        );
                    }
                }
            }
            Event::Stale { what, commit } => match self.told {
                Told::ToPeople => eprintln!("{what}; going on with commit {commit} of the cache"),
                Told::ToLog => tracing::warn!(
                    model = self.model,
                    what,
                    commit,
                    "the hub cannot be asked; the copy in the cache is served"
                ),
            },
        }
    }

    fn planned(&self, state: &mut State, files: usize, bytes: u64) {
        state.total += bytes;
        match self.told {
            Told::ToPeople if std::io::stderr().is_terminal() => {
                let style = ProgressStyle::with_template(
                    "{msg} {bar:30} {binary_bytes}/{binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
                );
                state.bar.set_style(style.expect("the template is right"));
                state.bar.set_message(self.model.clone());
                state.bar.set_draw_target(ProgressDrawTarget::stderr());
            }
            Told::ToPeople => eprintln!(
                "{}: downloading {files} files, {} to come",
                self.model,
                BinaryBytes(bytes)
            ),
            Told::ToLog => {
                tracing::info!(model = self.model, files, bytes, "downloading the model");
            }
        }
        state.bar.set_length(state.total);
    }

    /// Says how far it is, where no bar does, now and then.
    fn line(&self, state: &mut State) {
        let now = Instant::now();
        if now < state.next_line {
            return;
        }
        state.next_line = now + LINE_EVERY;
        let rate = state.done as f64 / now.duration_since(state.started).as_secs_f64().max(1e-3);
        match self.told {
            Told::ToPeople if !state.bar.is_hidden() => {}
            Told::ToPeople => eprintln!(
                "{}: {} of {}, {} a second",
                self.model,
                BinaryBytes(state.done),
                BinaryBytes(state.total),
                BinaryBytes(rate as u64)
            ),
            Told::ToLog => {
                tracing::info!(
                    model = self.model,
                    bytes = state.done,
                    total_bytes = state.total,
                    bytes_per_second = rate as u64,
                    "downloading the model"
                );
                serve::still_starting(3 * LINE_EVERY);
            }
        }
    }

    fn end(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bar.finish_and_clear();
        if state.total > 0 && self.told == Told::ToLog {
            tracing::info!(
                model = self.model,
                bytes = state.done,
                took_ms = state.started.elapsed().as_millis() as u64,
                "the model is downloaded"
            );
        }
    }
}

/// The models that are kept.
///
/// # Errors
/// As [`cache`].
pub(super) fn kept(config: &Config) -> Result<Cache, ModelError> {
    Ok(Cache::new(cache(config)?))
}
