//! Downloads models from a Hugging Face hub into the cache that other libraries share, and verifies them.
//!
//! Nothing here reads the environment. Offline, no connection is opened and no host name resolved.

mod cache;
mod client;
mod digest;
mod download;
mod selection;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub use cache::{Cache, CachedModel, Snapshot};
pub use rerankd_model::names::ModelId;
pub use ureq::Proxy;

use self::cache::{RepoCache, cache_error};
use self::client::{Client, Listing, RequestError};
use self::download::{Downloader, RemoteFile};
use self::selection::Weights;
use rerankd_core::Secret;
use rerankd_model::json::read_value;
use rerankd_model::modules::MODULES;
use rerankd_model::names::is_inner_path;
use rerankd_model::onnx::ModelProto;
use rerankd_model::weights::shard_names;
use rerankd_model::{Files, Manifest, Model, ModelError, ModelOptions, WEIGHTS_FILE, exported};

/// Maximum concurrent requests.
const MAX_CONCURRENT: usize = 8;
const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];

/// Hub, cache and connection settings.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// URL of the hub, such as `https://huggingface.co`.
    pub endpoint: String,
    /// Access token, sent to the origin of `endpoint` only.
    pub token: Option<Secret>,
    /// Folder of the cache.
    pub cache: PathBuf,
    /// Use the cache only, without any connection.
    pub offline: bool,
    /// PEM file with trusted certificates, in addition to those of the system.
    pub ca_file: Option<PathBuf>,
    /// Proxy for all connections.
    pub proxy: Option<Proxy>,
    /// Retry policy.
    pub retries: Retries,
    /// What the operator sets about the model, which decides whether it is supported.
    pub model: ModelOptions,
}

/// Retry policy, with exponential backoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries {
    /// Maximum consecutive failed attempts.
    pub attempts: u32,
    /// Delay after the first failure, doubled after each one.
    pub delay: Duration,
    /// Longest delay; if the hub asks for more, the request fails.
    pub longest_wait: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            attempts: 5,
            delay: Duration::from_millis(500),
            longest_wait: Duration::from_secs(60),
        }
    }
}

/// Progress of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownloadEvent<'a> {
    /// Files are about to be downloaded.
    Planned {
        /// Number of files.
        files: usize,
        /// Bytes to download.
        bytes: u64,
    },
    /// Bytes received.
    Received(u64),
    /// Bytes discarded, to be downloaded again.
    Restarted(u64),
    /// A request failed and will be retried.
    Retrying {
        /// What failed.
        what: &'a str,
        /// Delay before the retry.
        wait: Duration,
    },
    /// The hub is unavailable; the cached snapshot is used.
    Stale {
        /// Why it is unavailable.
        what: &'a str,
        /// Commit of the snapshot.
        commit: &'a str,
    },
}

/// Progress callback, called from several threads.
pub type ProgressFn<'a> = &'a (dyn Fn(DownloadEvent<'_>) + Sync);

/// The source of a model, as given by `--model`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A local directory.
    Directory(PathBuf),
    /// A model on the hub.
    Hub(ModelId),
}

impl Source {
    /// Parses `--model`: an existing directory or a text that can only be a path is a directory, else it is
    /// a hub model.
    ///
    /// # Errors
    /// If it is neither.
    pub fn parse(text: &Path) -> Result<Self, ModelError> {
        let directory = || Ok(Self::Directory(text.to_owned()));
        let Some(name) = text.to_str() else {
            return directory();
        };
        // Hub models have exactly one slash.
        let path = name.split('@').next().unwrap_or(name);
        let only_path = path.starts_with(['/', '.', '~']) || path.matches('/').count() != 1;
        if only_path || path.ends_with('/') || text.is_dir() {
            return directory();
        }
        name.parse().map(Self::Hub)
    }
}

/// Returns the directory of a hub model with all files that are needed to serve it, or to serve `onnx_file`.
/// Downloads missing files; small ones first, so that unsupported models fail before their weights are
/// downloaded.
///
/// # Errors
/// [`ModelError`] if the model does not exist, is not supported, cannot be downloaded, or is not cached
/// while offline.
pub fn fetch(
    id: &ModelId,
    onnx_file: Option<&Path>,
    config: &HubConfig,
    progress: ProgressFn<'_>,
) -> Result<PathBuf, ModelError> {
    let onnx_file = onnx_file.map(exported::relative_path).transpose()?;
    let onnx_file = onnx_file.as_deref();
    let repo = Cache::new(&config.cache).repo(id);
    let cached = repo.resolve(id.revision());
    let missing = |commit: &str| missing_file(&repo, commit, onnx_file, id, &config.model);
    let complete = |commit: &String| missing(commit).is_ok_and(|file| file.is_none());
    if config.offline {
        return offline(id, config, cached, &repo, missing);
    }
    // A commit never changes, so the hub need not be asked.
    if let Some(commit) = cached.clone().filter(|commit| commit == id.revision())
        && complete(&commit)
    {
        return Ok(repo.snapshot(&commit));
    }
    let client = Client::new(config, progress)?;
    let listing = match client.listing(id) {
        Ok(listing) => listing,
        Err(RequestError::Unavailable(error)) => match cached.filter(complete) {
            Some(commit) => {
                progress(DownloadEvent::Stale {
                    what: error.message(),
                    commit: &commit,
                });
                return Ok(repo.snapshot(&commit));
            }
            None => return Err(error),
        },
        Err(RequestError::Rejected(error)) => return Err(error),
    };
    let downloader = Downloader {
        client: &client,
        id,
        repo: &repo,
        commit: &listing.commit,
        progress,
    };
    download(downloader, &listing, onnx_file, &config.model)?;
    // Last, so that a ref never points to an incomplete snapshot.
    repo.set_ref(id.revision(), &listing.commit)
        .map_err(|error| cache_error(&config.cache, error))?;
    Ok(repo.snapshot(&listing.commit))
}

/// The snapshot in the cache.
fn offline(
    id: &ModelId,
    config: &HubConfig,
    cached: Option<String>,
    repo: &RepoCache,
    missing: impl Fn(&str) -> std::io::Result<Option<String>>,
) -> Result<PathBuf, ModelError> {
    let not_cached = |what: String| {
        ModelError::new(
            format!(
                "{what} is not in the cache `{}`, and cannot be downloaded offline",
                config.cache.display()
            ),
            format!("run `rerankd pull {id}` online, or remove `--offline` (`HF_HUB_OFFLINE`)"),
        )
    };
    let commit = cached.ok_or_else(|| not_cached(format!("`{id}`")))?;
    let Some(file) = missing(&commit).map_err(|error| cache_error(&config.cache, error))? else {
        return Ok(repo.snapshot(&commit));
    };
    if file == exported::DEFAULT_PATHS[0] {
        // If the ONNX file is needed because no graph can be built, that is the better message.
        let directory = repo.snapshot(&commit);
        Manifest::read(
            id.path(),
            &Files::Directory(directory.clone()),
            &config.model,
        )?;
        if let Err(error) = Model::open_with(&directory, &config.model)
            && error.is_unsupported()
        {
            return Err(error);
        }
    }
    Err(not_cached(format!("`{file}` of `{id}`")))
}

/// A file that a snapshot should have and does not. A model with only a pickle counts as complete.
fn missing_file(
    repo: &RepoCache,
    commit: &str,
    onnx_file: Option<&str>,
    id: &ModelId,
    options: &ModelOptions,
) -> std::io::Result<Option<String>> {
    let files = repo.files(commit)?;
    let has = |name: &str| files.iter().any(|file| file == name);
    if let Some(file) = REQUIRED
        .into_iter()
        .chain(onnx_file)
        .find(|file| !has(file))
    {
        return Ok(Some(file.to_owned()));
    }
    let directory = repo.snapshot(commit);
    let source = Files::Directory(directory.clone());
    let manifest = Manifest::read(id.path(), &source, options);
    let weights = match onnx_file {
        Some(file) => Weights::Onnx(file.to_owned()),
        None => selection::weights(&files, manifest.is_ok()),
    };
    // Errors are reported when the files are loaded.
    let needed = match &weights {
        Weights::File(_) | Weights::Pickle(_) => Vec::new(),
        Weights::Index(index) => shard_names(&source, index).unwrap_or_default(),
        Weights::Onnx(file) => external_data(&directory, file).unwrap_or_default(),
        // An unsupported architecture needs an ONNX file.
        Weights::None if manifest.is_err() => vec![exported::DEFAULT_PATHS[0].to_owned()],
        Weights::None => vec![WEIGHTS_FILE.to_owned()],
    };
    let built = matches!(weights, Weights::File(_) | Weights::Index(_));
    let folders = manifest.ok().filter(|_| built).map(|m| m.head.folders);
    let modules = folders.into_iter().flatten();
    let modules = modules.map(|folder| format!("{folder}/{WEIGHTS_FILE}"));
    let missing = needed.into_iter().chain(modules).find(|file| !has(file));
    if missing.is_some() || !built || !needs_onnx(&directory, options) {
        return Ok(missing);
    }
    let Some(onnx) = exported::DEFAULT_PATHS.into_iter().find(|path| has(path)) else {
        return Ok(Some(exported::DEFAULT_PATHS[0].to_owned()));
    };
    let data = external_data(&directory, onnx).unwrap_or_default();
    Ok(data.into_iter().find(|file| !has(file)))
}

/// The external data files of an ONNX file, as paths in `directory`.
fn external_data(directory: &Path, onnx_file: &str) -> Result<Vec<String>, ModelError> {
    let path = directory.join(onnx_file);
    let files = ModelProto::read(&path)?.external_files(&path)?;
    let sibling = |file: String| exported::sibling(onnx_file, Path::new(&file));
    Ok(files.into_iter().map(sibling).collect())
}

/// Downloads all files that are needed, small ones first.
fn download(
    downloader: Downloader<'_>,
    listing: &Listing,
    onnx_file: Option<&str>,
    options: &ModelOptions,
) -> Result<(), ModelError> {
    let id = downloader.id;
    if let Some(file) = listing.files.iter().find(|file| !is_inner_path(file)) {
        return Err(ModelError::new(
            format!(
                "`{id}` has a file with an unsafe path: `{}`",
                file.escape_debug()
            ),
            "do not use this model; such a path could read or write files elsewhere",
        ));
    }
    let has = |name: &str| listing.files.iter().any(|file| file == name);
    if let Some(file) = REQUIRED
        .into_iter()
        .chain(onnx_file)
        .find(|file| !has(file))
    {
        return Err(not_on_hub(id, file));
    }
    download_files(downloader, selection::config_files(&listing.files))?;
    let directory = downloader.repo.snapshot(downloader.commit);
    let files = Files::Directory(directory.clone());
    let modules = read_value(&files, MODULES)?.unwrap_or_default();
    let (module_weights, module_configs): (Vec<_>, Vec<_>) =
        selection::module_files(&listing.files, &modules)
            .into_iter()
            .partition(|file| file.ends_with(".safetensors"));
    download_files(downloader, module_configs)?;

    let manifest = Manifest::read(id.path(), &files, options);
    let weights = match onnx_file {
        Some(file) => Weights::Onnx(file.to_owned()),
        None => selection::weights(&listing.files, manifest.is_ok()),
    };
    let mut rest = match weights {
        Weights::File(file) => vec![file],
        Weights::Index(index) => {
            download_files(downloader, vec![index.clone()])?;
            shard_names(&files, &index)?
        }
        Weights::Onnx(file) => {
            download_files(downloader, vec![file.clone()])?;
            external_data(&directory, &file)?
        }
        Weights::Pickle(pickle) => {
            manifest?;
            return Err(pickle_only(id, &pickle));
        }
        Weights::None => {
            manifest?;
            return Err(not_on_hub(id, WEIGHTS_FILE));
        }
    };
    if let Some(file) = rest.iter().find(|file| !has(file)) {
        return Err(not_on_hub(id, file));
    }
    rest.extend(module_weights);
    download_files(downloader, rest)?;
    // Whether a graph can be built is known only with the names of the tensors.
    let replacement = match onnx_file.is_none() && needs_onnx(&directory, options) {
        true => exported::DEFAULT_PATHS.into_iter().find(|path| has(path)),
        false => None,
    };
    let Some(file) = replacement else {
        return Ok(());
    };
    download_files(downloader, vec![file.to_owned()])?;
    download_files(downloader, external_data(&directory, file)?)
}

/// Whether the files in `directory` are those of a model that no graph can be built of.
fn needs_onnx(directory: &Path, options: &ModelOptions) -> bool {
    let model = Model::open_with(directory, options);
    model.is_err_and(|error| error.is_unsupported())
}

/// Downloads files that the snapshot does not have yet, several at a time.
fn download_files(downloader: Downloader<'_>, mut names: Vec<String>) -> Result<(), ModelError> {
    let snapshot = downloader.repo.snapshot(downloader.commit);
    names.retain(|name| !snapshot.join(name).exists());
    if names.is_empty() {
        return Ok(());
    }
    let files: Vec<RemoteFile> = try_parallel_map(names, |name| downloader.metadata(name))?;
    (downloader.progress)(DownloadEvent::Planned {
        files: files.len(),
        bytes: files
            .iter()
            .map(|file| downloader.remaining_bytes(file))
            .sum(),
    });
    try_parallel_map(files, |file| downloader.fetch(&file)).map(drop)
}

/// Maps `items` on several threads and returns the results in order. Stops at the first error.
fn try_parallel_map<T: Send, R: Send>(
    items: Vec<T>,
    work: impl Fn(T) -> Result<R, RequestError> + Sync,
) -> Result<Vec<R>, ModelError> {
    let count = items.len();
    let queue = Mutex::new(items.into_iter().enumerate());
    let results: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::with_capacity(count));
    let failure: Mutex<Option<RequestError>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..MAX_CONCURRENT.min(count) {
            scope.spawn(|| {
                loop {
                    // A guard in a `while let` would be held during the work.
                    let next = lock(&queue).next();
                    let Some((index, item)) = next else { return };
                    match work(item) {
                        Ok(result) => lock(&results).push((index, result)),
                        Err(error) => {
                            lock(&failure).get_or_insert(error);
                            lock(&queue).by_ref().for_each(drop);
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = lock(&failure).take() {
        return Err(error.into());
    }
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_on_hub(id: &ModelId, file: &str) -> ModelError {
    let hint = match file {
        "tokenizer.json" => format!(
            "create it with `python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('{0}').save_pretrained('DIR')\"` and serve a directory that contains it",
            id.path()
        ),
        _ => "check that this is a cross-encoder saved by sentence-transformers or transformers"
            .to_owned(),
    };
    ModelError::new(format!("`{id}` has no `{file}`"), hint)
}

fn pickle_only(id: &ModelId, pickle: &str) -> ModelError {
    let path = id.path();
    ModelError::new(
        format!(
            "`{id}` has no `model.safetensors`; there is only `{pickle}`, a pickle, which can run code when it is loaded"
        ),
        format!(
            "convert it with `python -c \"from sentence_transformers import CrossEncoder as M; M('{path}').save_pretrained('DIR')\"` and serve `DIR`"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_directories_or_hub_models() {
        let parse = |text: &str| Source::parse(Path::new(text)).ok();
        let directory = |text: &str| Some(Source::Directory(text.into()));
        for text in [
            "/a/b",
            "./a",
            "../a",
            ".",
            "a/b/c",
            "a",
            "a/",
            "/nowhere/at/all",
            "src/.",
        ] {
            assert_eq!(parse(text), directory(text), "{text}");
        }
        let hub = |text: &str| Some(Source::Hub(text.parse().unwrap()));
        for text in ["a/b", "a/b@v1", "a/b@refs/pr/1"] {
            assert_eq!(parse(text), hub(text), "{text}");
        }
        for text in ["a b/c", "a/b@../c", "a/b@"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
