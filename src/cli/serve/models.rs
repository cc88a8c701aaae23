//! The models of a server: which are wanted, how they are loaded, and how others take over while it serves.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rerankd_engine::load::{LoadConfig, LoadError, in_background, load_beside, load_on};
use rerankd_engine::{Host, Reranker};
use rerankd_model::{ModelError, ProfileChoice};

use crate::cli::download::ProgressSink;
use crate::cli::loader::load_config;
use crate::cli::settings::{Effective, Flags};
use crate::config::models::default_of;
use crate::config::{Config, ModelEntry};
use crate::http::models::{FailedModel, LoadedModel, Models};
use crate::http::state::{AppState, Reloaded};
use crate::metrics::ServerMetrics;
use crate::shutdown::Phase;

/// A model that should be served, on this machine's disk.
struct ConfiguredModel {
    /// Its entry, where several models are listed.
    entry: Option<ModelEntry>,
    /// How it is loaded, or why it cannot be.
    load: Result<LoadConfig, String>,
    /// What its files were when they were looked at.
    files: Vec<FileState>,
}

/// What tells that a file has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileState {
    path: PathBuf,
    /// Device and number of the file that the path leads to: a link may lead to another one of the same size and age.
    identity: (u64, u64),
    bytes: u64,
    modified: Option<SystemTime>,
}

impl FileState {
    fn new(path: PathBuf, about: &Metadata) -> Self {
        Self {
            path,
            identity: identity(about),
            bytes: about.len(),
            modified: about.modified().ok(),
        }
    }
}

fn identity(about: &Metadata) -> (u64, u64) {
    (about.dev(), about.ino())
}

/// All models that should be served.
pub(super) struct ConfiguredModels {
    models: Vec<ConfiguredModel>,
    default: usize,
    /// Most bytes that their weights may take together.
    max_bytes: Option<usize>,
}

impl ConfiguredModels {
    /// The models of the settings, downloaded if they are not on the disk. Blocks.
    ///
    /// # Errors
    /// If one that is not optional cannot be downloaded.
    pub fn fetch(config: &Config, entries: &[ModelEntry]) -> Result<Self, LoadError> {
        let one = |entry: Option<&ModelEntry>| {
            let config = match entry {
                Some(entry) => entry.config(config),
                None => config.clone(),
            };
            let load = match load_config(&config, ProgressSink::Log) {
                Err(error) if entry.is_some_and(|entry| entry.is_optional) => Err(error),
                load => Ok(load?),
            };
            let load = load.map(|load| LoadConfig {
                share: entry.map_or(1, |entry| entry.share),
                max_bytes: entry.map_or(load.max_bytes, |entry| entry.max_bytes),
                ..load
            });
            Ok::<_, LoadError>(ConfiguredModel {
                entry: entry.cloned(),
                files: load.as_ref().map(files_of).unwrap_or_default(),
                load: load.map_err(|error: ModelError| error.to_string()),
            })
        };
        let models = match entries {
            [] => vec![one(None)?],
            entries => {
                let models = entries.iter().map(|entry| one(Some(entry)));
                models.collect::<Result<_, _>>()?
            }
        };
        Ok(Self {
            models,
            default: default_of(entries),
            max_bytes: config.model.max_bytes,
        })
    }

    /// The same on the host of a running server, which was started as `running`: what all models share stays until
    /// a restart, so that a change of it does not replace them.
    fn on_host_of(mut self, running: &LoadConfig) -> Self {
        for load in self
            .models
            .iter_mut()
            .filter_map(|model| model.load.as_mut().ok())
        {
            load.batching = running.batching.clone();
            load.cache = running.cache.clone();
            load.threads = running.threads;
            load.runtime_library.clone_from(&running.runtime_library);
        }
        self
    }

    /// How one of them is loaded, for what is the same for all.
    pub fn sample(&self) -> LoadConfig {
        let loads = self
            .models
            .iter()
            .find_map(|model| model.load.as_ref().ok());
        loads.cloned().unwrap_or_default()
    }
}

/// Most files that are looked at to see whether a model has changed.
const MAX_FILES: usize = 10_000;

/// The files that a model is loaded from.
fn files_of(load: &LoadConfig) -> Vec<FileState> {
    let mut found = load.model.as_deref().map(files).unwrap_or_default();
    // A profile is a file anywhere, or a name.
    if let Some(ProfileChoice::File(path)) = load.profile.as_deref().map(ProfileChoice::parse)
        && let Ok(about) = std::fs::metadata(&path)
    {
        found.push(FileState::new(path, &about));
    }
    found
}

/// The files in `directory`, always in the same order: those nearest to it, where there are too many.
fn files(directory: &Path) -> Vec<FileState> {
    let mut found = Vec::new();
    let mut left = VecDeque::from([directory.to_owned()]);
    // Links are followed, since the cache of a hub is made of them, and may lead in circles.
    let mut seen: HashSet<_> = std::fs::metadata(directory).iter().map(identity).collect();
    while let Some(directory) = left.pop_front() {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path()).take(MAX_FILES);
        // Of several links to one directory, always the same one is followed.
        for path in paths.collect::<BTreeSet<_>>() {
            if found.len() + seen.len() > MAX_FILES {
                return found;
            }
            match std::fs::metadata(&path) {
                Ok(about) if !about.is_dir() => {
                    found.push(FileState::new(path, &about));
                }
                Ok(about) if seen.insert(identity(&about)) => left.push_back(path),
                _ => {}
            }
        }
    }
    found
}

impl ConfiguredModel {
    fn name(&self) -> Option<&str> {
        self.entry.as_ref().map(|entry| entry.name.as_str())
    }

    fn is_optional(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.is_optional)
    }

    /// Whether `running`, of which `weight_bytes` are in memory, is this model.
    fn is_loaded_as(&self, running: &Self, weight_bytes: usize) -> bool {
        let (Ok(own), Ok(others)) = (&self.load, &running.load) else {
            return false;
        };
        // A limit is no part of the model, as long as the model is within it.
        let same = LoadConfig {
            max_bytes: own.max_bytes,
            ..others.clone()
        };
        let fits = own.max_bytes.is_none_or(|most| weight_bytes <= most);
        *own == same && fits && self.files == running.files
    }
}

/// A model that runs.
struct Running {
    wanted: ConfiguredModel,
    /// Why it is not served, if it is optional and could not be loaded.
    reranker: Result<Arc<Reranker>, String>,
}

impl Running {
    fn served(&self) -> Option<&Arc<Reranker>> {
        self.reranker.as_ref().ok()
    }

    /// The name in metrics.
    fn name(&self) -> String {
        let served = self.served().map(|reranker| &*reranker.info().id);
        served.or(self.wanted.name()).unwrap_or_default().to_owned()
    }
}

/// Loads the models of a server, and replaces them.
pub(super) struct ModelManager {
    flags: Flags,
    state: AppState,
    metrics: Arc<ServerMetrics>,
    host: Arc<Host>,
    /// How a model was loaded when the server started.
    first: LoadConfig,
    running: Mutex<Vec<Running>>,
    /// Held by a reload from the list that it reads to the models that it installs.
    reloading: Mutex<()>,
}

impl ModelManager {
    /// A manager of a server that is starting, whose settings were read from `flags`.
    ///
    /// # Errors
    /// If the system refuses threads.
    pub fn new(
        flags: Flags,
        state: AppState,
        metrics: Arc<ServerMetrics>,
        wanted: &ConfiguredModels,
    ) -> Result<Self, LoadError> {
        let first = wanted.sample();
        Ok(Self {
            flags,
            state,
            host: Host::start(&first.host(), metrics.engine.clone())?,
            first,
            metrics,
            running: Mutex::default(),
            reloading: Mutex::default(),
        })
    }

    /// The machinery that all models share.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Returns when no model is being loaded: the process must not exit while the runtime library loads. Blocks.
    pub fn settle(&self) {
        drop(self.running.lock());
    }

    /// Loads the models for the first time, and returns the default one. Blocks.
    ///
    /// # Errors
    /// If one that is not optional cannot be loaded.
    pub fn start(&self, wanted: ConfiguredModels) -> Result<Arc<Reranker>, LoadError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        self.replace(&mut running, wanted)?;
        let default = self.state.reranker();
        Ok(default.expect("the models were just installed"))
    }

    /// Reads the list of models again, and lets those that are new or changed take over. Blocks.
    ///
    /// # Errors
    /// Why nothing has changed.
    pub fn reload(&self) -> Result<Reloaded, String> {
        let _one = self
            .reloading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Effective { config, models, .. } = self
            .flags
            .layered(std::env::vars_os())
            .map_err(|problems| problems.to_string())?;
        // Files that are downloaded are checked, which takes a processor.
        let wanted = in_background(|| ConfiguredModels::fetch(&config, &models));
        let wanted = wanted.map_err(|error| error.to_string())?;
        let wanted = wanted.on_host_of(&self.first);
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // Checked where `settle` waits: no model is loaded once it has returned.
        if self.state.lifecycle().phase() >= Phase::Grace {
            return Err(
                "the server is stopping; change its models before its next start".to_owned(),
            );
        }
        let replaced = self.replace(&mut running, wanted);
        let reloaded = replaced.map_err(|error| error.to_string())?;
        tracing::info!(loaded = ?reloaded.loaded, removed = ?reloaded.removed, "models reloaded");
        Ok(reloaded)
    }

    /// Lets `wanted` be what runs. If anything fails, everything stays as it is.
    fn replace(
        &self,
        running: &mut Vec<Running>,
        wanted: ConfiguredModels,
    ) -> Result<Reloaded, LoadError> {
        let ConfiguredModels {
            models,
            default,
            max_bytes,
        } = wanted;
        let weights = |reranker: &Arc<Reranker>| reranker.info().weight_bytes;
        let current = running.iter().filter_map(Running::served);
        let mut used: usize = current.map(weights).sum();
        let mut loaded = Vec::new();
        let mut next = Vec::with_capacity(models.len());
        for wanted in models {
            let before = running
                .iter()
                .find(|model| model.wanted.name() == wanted.name());
            let served = before.and_then(Running::served);
            if let (Some(before), Some(served)) = (before, served)
                && wanted.is_loaded_as(&before.wanted, weights(served))
            {
                let reranker = Ok(served.clone());
                next.push(Running { wanted, reranker });
                continue;
            }
            let left = max_bytes.map(|most| most.saturating_sub(used));
            let reranker = match &wanted.load {
                Ok(load) => {
                    let own = load.max_bytes;
                    let load = LoadConfig {
                        max_bytes: own.into_iter().chain(left).min(),
                        ..load.clone()
                    };
                    match running.is_empty() {
                        true => load_on(&self.host, &load),
                        false => load_beside(&self.host, &load, served.map(Arc::as_ref)),
                    }
                }
                Err(reason) => {
                    let reason = reason.clone();
                    let hint = "the next reload tries again";
                    Err(ModelError::new(reason, hint).into())
                }
            };
            let reranker = match reranker {
                Ok(reranker) => {
                    let reranker = Arc::new(reranker);
                    used += weights(&reranker);
                    loaded.push(reranker.info().id.clone());
                    if let Some(entry) = &wanted.entry {
                        tracing::info!(
                            model = entry.name,
                            aliases = ?entry.aliases,
                            share = entry.share,
                            weight_bytes = weights(&reranker),
                            precision = reranker.info().precision,
                            "one of several models is loaded"
                        );
                    }
                    Ok(reranker)
                }
                // A model that is served is not given up for one that cannot be loaded.
                Err(error) if wanted.is_optional() && served.is_none() => {
                    let model = wanted.name();
                    tracing::error!(model, %error, "an optional model is not served");
                    Err(error.to_string())
                }
                Err(error) => return Err(error),
            };
            next.push(Running { wanted, reranker });
        }
        let models = catalog(&next, default);
        let names = |running: &[Running]| -> Vec<String> {
            let names = running.iter().filter_map(Running::served);
            names.map(|reranker| reranker.info().id.clone()).collect()
        };
        let (before, after) = (names(running), names(&next));
        let removed: Vec<String> = before
            .into_iter()
            .filter(|name| !after.contains(name))
            .collect();
        let names: HashSet<String> = next.iter().map(Running::name).collect();
        let gone = running.iter().map(Running::name);
        self.count(&models, gone.filter(|name| !names.contains(name)));
        self.state.install_models(models);
        // Requests that were admitted still hold what they began with; the last of them frees it.
        *running = next;
        Ok(Reloaded { loaded, removed })
    }

    /// Shows which models are served, and nothing of those that are `gone` from the list.
    fn count(&self, models: &Models, gone: impl Iterator<Item = String>) {
        let up = &self.metrics.engine.model_up;
        for model in models.catalog() {
            up.with_label_values(&[&model.name]).set(1);
        }
        for failed in models.failed() {
            up.with_label_values(&[&failed.name]).set(0);
        }
        for name in gone {
            // An error means that it was never counted.
            let _ = up.remove_label_values(&[&name]);
        }
    }
}

/// What is served of `running` models, of which the default one is not optional.
fn catalog(running: &[Running], default: usize) -> Models {
    let mut loaded = Vec::new();
    let mut failed = Vec::new();
    let mut place = 0;
    for (index, Running { wanted, reranker }) in running.iter().enumerate() {
        let entry = wanted.entry.as_ref();
        let aliases = entry.map(|entry| entry.aliases.clone()).unwrap_or_default();
        match reranker {
            Ok(reranker) => {
                if index == default {
                    place = loaded.len();
                }
                loaded.push(LoadedModel {
                    reranker: reranker.clone(),
                    aliases,
                });
            }
            Err(reason) => failed.push(FailedModel {
                name: wanted.name().unwrap_or_default().to_owned(),
                aliases,
                reason: reason.clone(),
            }),
        }
    }
    Models::new(loaded, place, failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_outside_the_directory_is_a_file_of_the_model() {
        let dir = tempfile::tempdir().unwrap();
        let profile = dir.path().join("profile.json");
        let found = || {
            let load = LoadConfig {
                profile: Some(profile.display().to_string()),
                ..LoadConfig::default()
            };
            files_of(&load)
        };
        let write = || {
            let new = dir.path().join("new");
            std::fs::write(&new, "{}").unwrap();
            std::fs::rename(new, &profile).unwrap();
        };
        write();
        let before = found();
        assert_eq!((before.len(), &found()), (1, &before));
        let kept = std::fs::File::open(&profile).unwrap();
        write();
        assert_ne!(found(), before);
        drop(kept);
    }

    #[test]
    fn links_that_lead_in_circles_are_followed_once() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("deep");
        std::fs::create_dir(&deep).unwrap();
        std::fs::write(deep.join("weights"), "w").unwrap();
        for name in ["a", "b", "c"] {
            std::os::unix::fs::symlink(dir.path(), dir.path().join(name)).unwrap();
            std::os::unix::fs::symlink(dir.path(), deep.join(name)).unwrap();
        }
        std::os::unix::fs::symlink(deep.join("weights"), dir.path().join("link")).unwrap();
        let found = files(dir.path()).into_iter();
        let names: Vec<PathBuf> = found.map(|file| file.path).collect();
        assert_eq!(names, [dir.path().join("link"), deep.join("weights")]);
    }
}
