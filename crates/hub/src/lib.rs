//! Models from a hub: downloaded once into the cache that Hugging Face libraries share, checked, and
//! found there again.
//!
//! Nothing here reads the environment. A hub that is off opens no connection and looks up no name.

mod cache;
mod client;
mod digest;
mod download;
mod wanted;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub use cache::{Cache, Cached, Snapshot};
pub use rerankd_model::names::ModelId;
pub use ureq::Proxy;

use self::cache::{Shelf, broken};
use self::client::{Client, Failure, Listing};
use self::download::{Place, Wanted};
use self::wanted::Weights;
use rerankd_core::Secret;
use rerankd_model::onnx::OnnxModel;
use rerankd_model::weights::shard_names;
use rerankd_model::{Files, Manifest, ModelError, SINGLE, exported};

/// Files that are asked for or come at the same time.
const PARALLEL: usize = 8;

/// A hub, and how it is spoken to.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// Where it is, such as `https://huggingface.co`.
    pub endpoint: String,
    /// Who asks; sent to the origin of `endpoint` and to nobody else.
    pub token: Option<Secret>,
    /// Where models are kept.
    pub cache: PathBuf,
    /// Take what is in the cache, and open no connection.
    pub offline: bool,
    /// Certificates in PEM that are trusted beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// What every connection goes through.
    pub proxy: Option<Proxy>,
    /// What becomes of a request that fails.
    pub retries: Retries,
}

/// How often and how soon something that failed is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries {
    /// Tries that may fail in a row.
    pub attempts: u32,
    /// Wait after the first of them; doubled after each.
    pub delay: Duration,
    /// Longest wait; a hub that asks for more is given up.
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

/// What happens while a model comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// So many files are wanted next, of which so many bytes are not here.
    Planned {
        /// Files.
        files: usize,
        /// Bytes of them that are to come.
        bytes: u64,
    },
    /// So many more bytes are here.
    Received(u64),
    /// So many bytes that were here come again.
    Restarted(u64),
    /// Something failed and is tried again.
    Waiting {
        /// What failed.
        what: &'a str,
        /// How soon it is tried again.
        wait: Duration,
    },
    /// The hub cannot be asked; the copy in the cache is taken.
    Stale {
        /// Why it cannot.
        what: &'a str,
        /// The commit that is taken.
        commit: &'a str,
    },
}

/// Who wants to know; called from several threads.
pub type Watch<'a> = &'a (dyn Fn(Event<'_>) + Sync);

/// What `--model` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory; no hub is asked about it.
    Directory(PathBuf),
    /// A model of a hub.
    Hub(ModelId),
}

impl Source {
    /// A directory where there is one, or where the text can only mean one; else a model of a hub.
    ///
    /// # Errors
    /// When it can be neither.
    pub fn of(text: &Path) -> Result<Self, ModelError> {
        let directory = || Ok(Self::Directory(text.to_owned()));
        let Some(name) = text.to_str() else {
            return directory();
        };
        // Separators as paths have them: what a hub has no name for is a path.
        let path = name.split('@').next().unwrap_or(name);
        let only_path = path.starts_with(['/', '.', '~']) || path.matches('/').count() != 1;
        if only_path || path.ends_with('/') || text.is_dir() {
            return directory();
        }
        name.parse().map(Self::Hub)
    }
}

/// The directory of a model of a hub, all of its files in place and whole: those that it is run from where
/// it is, or the ONNX file of it that is named.
///
/// # Errors
/// [`ModelError`] when the hub does not give it, it is of a kind that cannot be served, or the cache
/// lacks it and the hub is off. The first is told before anything large is downloaded.
pub fn fetch(
    id: &ModelId,
    onnx_file: Option<&Path>,
    config: &HubConfig,
    watch: Watch<'_>,
) -> Result<PathBuf, ModelError> {
    let graph = onnx_file.map(exported::place_of).transpose()?;
    let graph = graph.as_deref();
    let shelf = Cache::new(&config.cache).shelf(id);
    let here = shelf.commit(id.revision());
    let lacks = |commit: &str| lacking(&shelf, commit, graph);
    let whole = |commit: &String| lacks(commit).is_ok_and(|lacks| lacks.is_none());
    if config.offline {
        return offline(id, config, here, &shelf, lacks);
    }
    // A commit never changes: there is nothing to ask.
    if let Some(commit) = here.clone().filter(|commit| commit == id.revision())
        && whole(&commit)
    {
        return Ok(shelf.snapshot(&commit));
    }
    let client = Client::new(config, watch)?;
    let listing = match client.listing(id) {
        Ok(listing) => listing,
        Err(Failure::Unreachable(error)) => match here.filter(whole) {
            Some(commit) => {
                watch(Event::Stale {
                    what: error.message(),
                    commit: &commit,
                });
                return Ok(shelf.snapshot(&commit));
            }
            None => return Err(error),
        },
        Err(Failure::Refused(error)) => return Err(error),
    };
    let place = Place {
        client: &client,
        id,
        shelf: &shelf,
        commit: &listing.commit,
        watch,
    };
    download(place, &listing, graph)?;
    // Last, so that a name never stands for what is not whole.
    shelf
        .name(id.revision(), &listing.commit)
        .map_err(|error| broken(&config.cache, &error))?;
    Ok(shelf.snapshot(&listing.commit))
}

/// What the cache has.
fn offline(
    id: &ModelId,
    config: &HubConfig,
    here: Option<String>,
    shelf: &Shelf,
    lacks: impl Fn(&str) -> std::io::Result<Option<String>>,
) -> Result<PathBuf, ModelError> {
    let refuse = |what: String| {
        ModelError::new(
            what,
            format!(
                "run `rerankd pull {id}` where the hub can be reached, or leave `--offline` (`HF_HUB_OFFLINE`) out"
            ),
        )
    };
    let Some(commit) = here else {
        return Err(refuse(format!(
            "`{id}` is not in the cache `{}`, and nothing is downloaded",
            config.cache.display()
        )));
    };
    let without = |file: &str| {
        let cache = config.cache.display();
        format!("`{id}` is in the cache `{cache}` without `{file}`, and nothing is downloaded")
    };
    match lacks(&commit).map_err(|error| broken(&config.cache, &error))? {
        None => Ok(shelf.snapshot(&commit)),
        // Where a graph is missing because none can be built, the reason is the better answer.
        Some(file) if file == exported::PLACES[0] => {
            let files = Files::Directory(shelf.snapshot(&commit));
            Manifest::read(id.path(), &files).and(Err(refuse(without(&file))))
        }
        Some(file) => Err(refuse(without(&file))),
    }
}

/// A file that a commit in the cache should have and has not. Whether a model of pickles alone can be
/// served is not for the cache to say.
fn lacking(shelf: &Shelf, commit: &str, graph: Option<&str>) -> std::io::Result<Option<String>> {
    let files = shelf.files(commit)?;
    let has = |name: &str| files.iter().any(|file| file == name);
    for needed in ["config.json", "tokenizer.json"].into_iter().chain(graph) {
        if !has(needed) {
            return Ok(Some(needed.to_owned()));
        }
    }
    let directory = shelf.snapshot(commit);
    let source = Files::Directory(directory.clone());
    let manifest = Manifest::read(String::new(), &source);
    let weights = match graph {
        Some(graph) => Weights::Graph(graph.to_owned()),
        None => wanted::weights(&files, manifest.is_ok()),
    };
    // What cannot be read is said by whoever opens it.
    let named = match &weights {
        Weights::File(_) | Weights::Pickle(_) => Vec::new(),
        Weights::Index(index) => shard_names(&source, index).unwrap_or_default(),
        Weights::Graph(graph) => beside_graph(&directory, graph).unwrap_or_default(),
        // Nor can a graph be built of a model that is not known, whatever it has.
        Weights::None if manifest.is_err() => return Ok(Some(exported::PLACES[0].to_owned())),
        Weights::None => vec![SINGLE.to_owned()],
    };
    let built = matches!(weights, Weights::File(_) | Weights::Index(_));
    let folders = manifest.ok().filter(|_| built).map(|m| m.head.folders);
    let folders = folders.unwrap_or_default();
    let modules = folders
        .into_iter()
        .map(|folder| format!("{folder}/{SINGLE}"));
    Ok(named.into_iter().chain(modules).find(|file| !has(file)))
}

/// The files that a graph in `directory` keeps its numbers in.
fn beside_graph(directory: &Path, graph: &str) -> Result<Vec<String>, ModelError> {
    let path = directory.join(graph);
    let files = OnnxModel::read(&path)?.external_files(&path)?;
    let place = |file: String| exported::beside(graph, Path::new(&file));
    Ok(files.into_iter().map(place).collect())
}

/// Brings every file that is needed, the small ones first: they tell whether the rest is of any use.
fn download(place: Place<'_>, listing: &Listing, graph: Option<&str>) -> Result<(), ModelError> {
    for file in &listing.files {
        rerankd_model::names::check_inner_path(file, &format!("`{}`", place.id))?;
    }
    let has = |name: &str| listing.files.iter().any(|file| file == name);
    for needed in ["config.json", "tokenizer.json"].into_iter().chain(graph) {
        if !has(needed) {
            return Err(missing(place.id, needed));
        }
    }
    get(place, wanted::settings(&listing.files))?;
    let directory = place.shelf.snapshot(place.commit);
    let files = Files::Directory(directory.clone());
    let modules = rerankd_model::json::read_value(&files, rerankd_model::modules::MODULES)?;
    let folders = wanted::modules(&listing.files, &modules.unwrap_or_default());
    let (modules, settings): (Vec<_>, Vec<_>) = folders
        .into_iter()
        .partition(|file| file.ends_with(".safetensors"));
    get(place, settings)?;

    let built = Manifest::read(place.id.path(), &files);
    let weights = match graph {
        Some(graph) => Weights::Graph(graph.to_owned()),
        None => wanted::weights(&listing.files, built.is_ok()),
    };
    let mut rest = match weights {
        Weights::File(file) => vec![file],
        Weights::Index(index) => {
            get(place, vec![index.clone()])?;
            shard_names(&files, &index)?
        }
        Weights::Graph(graph) => {
            get(place, vec![graph.clone()])?;
            beside_graph(&directory, &graph)?
        }
        Weights::Pickle(pickle) => {
            built?;
            return Err(only_a_pickle(place.id, &pickle));
        }
        Weights::None => {
            built?;
            return Err(missing(place.id, SINGLE));
        }
    };
    match rest.iter().find(|file| !has(file)) {
        Some(file) => Err(missing(place.id, file)),
        None => {
            rest.extend(modules);
            get(place, rest)
        }
    }
}

/// Gets files, several at a time.
fn get(place: Place<'_>, names: Vec<String>) -> Result<(), ModelError> {
    let here = place.shelf.snapshot(place.commit);
    let names: Vec<String> = names
        .into_iter()
        .filter(|name| !here.join(name).exists())
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    let files: Vec<Wanted> = side_by_side(names, |name| place.ask(name))?;
    (place.watch)(Event::Planned {
        files: files.len(),
        bytes: files.iter().map(|file| place.missing(file)).sum(),
    });
    side_by_side(files, |file| place.get(&file)).map(drop)
}

/// Does `work` with each of `items`, several at a time, and gives the results in their order. After a
/// failure nothing new is begun.
fn side_by_side<T: Send, R: Send>(
    items: Vec<T>,
    work: impl Fn(T) -> Result<R, Failure> + Sync,
) -> Result<Vec<R>, ModelError> {
    let count = items.len();
    let items: Vec<Mutex<Option<T>>> = items
        .into_iter()
        .map(|item| Mutex::new(Some(item)))
        .collect();
    let results: Mutex<Vec<Option<R>>> = Mutex::new((0..count).map(|_| None).collect());
    let failure: Mutex<Option<Failure>> = Mutex::new(None);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL.min(count) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index).and_then(|item| locked(item).take()) else {
                        return;
                    };
                    match work(item) {
                        Ok(result) => locked(&results)[index] = Some(result),
                        Err(error) => {
                            next.store(count, Ordering::Relaxed);
                            locked(&failure).get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(failure) => Err(failure.into()),
        None => {
            let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
            Ok(results.into_iter().flatten().collect())
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn missing(id: &ModelId, file: &str) -> ModelError {
    let hint = match file {
        "tokenizer.json" => format!(
            "make it with `python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('{0}').save_pretrained('DIR')\"` and serve a directory that has it",
            id.path()
        ),
        _ => "check that this is a cross-encoder, saved by sentence-transformers or transformers"
            .to_owned(),
    };
    ModelError::new(format!("`{id}` has no `{file}`"), hint)
}

fn only_a_pickle(id: &ModelId, pickle: &str) -> ModelError {
    let path = id.path();
    ModelError::new(
        format!(
            "`{id}` has no `model.safetensors`; there is only `{pickle}`, a pickle, which can run code when it is read"
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
    fn a_directory_is_one_where_it_is_there_or_can_be_nothing_else() {
        let directory = |text: &str| Ok(Source::Directory(text.into()));
        for text in [
            "/a/b",
            "./a",
            "../a",
            ".",
            "a/b/c",
            "a",
            "a/",
            "/nowhere/at/all",
            "src/model",
        ] {
            assert_eq!(Source::of(Path::new(text)), directory(text), "{text}");
        }
        let hub = |text: &str| Ok(Source::Hub(text.parse().unwrap()));
        for text in ["a/b", "a/b@v1", "a/b@refs/pr/1"] {
            assert_eq!(Source::of(Path::new(text)), hub(text), "{text}");
        }
        for text in ["a b/c", "a/b@../c", "a/b@"] {
            assert!(Source::of(Path::new(text)).is_err(), "{text}");
        }
    }
}
