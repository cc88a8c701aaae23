//! The Hugging Face cache, shared with other libraries: `models--owner--name/{blobs,refs,snapshots}`.
//!
//! Each file is stored once in `blobs`, named by its checksum; `snapshots/<commit>/` has relative symlinks to
//! it; `refs/<revision>` holds the commit of a branch or tag. Lock files are those of `huggingface_hub`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rerankd_model::ModelError;
use rerankd_model::names::{ModelId, is_commit};

const LOCKS: &str = ".locks";

/// A cache of models.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// The cache of one model.
#[derive(Debug, Clone)]
pub struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

/// A cached model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedModel {
    /// Its id, without a revision.
    pub id: ModelId,
    /// Size on disk, partial downloads included.
    pub bytes: u64,
    /// Snapshots, ordered by commit.
    pub snapshots: Vec<Snapshot>,
}

/// A cached commit of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Commit hash, 40 digits.
    pub commit: String,
    /// Branches and tags that point to it.
    pub revisions: Vec<String>,
    /// Total size of its files, including those shared with other commits.
    pub bytes: u64,
    /// Number of its files.
    pub files: usize,
}

impl Cache {
    /// A cache in the folder `root`, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn repo(&self, id: &ModelId) -> RepoCache {
        RepoCache {
            folder: self.root.join(id.folder()),
            locks: self.root.join(LOCKS).join(id.folder()),
        }
    }

    /// All cached models, ordered by name.
    ///
    /// # Errors
    /// If the folder exists and cannot be read.
    pub fn models(&self) -> Result<Vec<CachedModel>, ModelError> {
        let mut found = BTreeMap::new();
        for name in names(&self.root).map_err(|error| cache_error(&self.root, error))? {
            if let Some(id) = ModelId::from_folder(&name) {
                let repo = self.repo(&id);
                let cached = repo
                    .describe(id)
                    .map_err(|error| cache_error(&repo.folder, error))?;
                found.insert(name, cached);
            }
        }
        Ok(found.into_values().collect())
    }

    /// Removes a model, or only the revision in `id`, and returns the number of bytes freed.
    ///
    /// # Errors
    /// If it is not cached or cannot be removed.
    pub fn remove(&self, id: &ModelId) -> Result<u64, ModelError> {
        let repo = self.repo(id);
        let io_error = |error| cache_error(&repo.folder, error);
        if !repo.folder.is_dir() {
            return Err(self.not_cached(id));
        }
        let before = folder_size(&repo.folder).map_err(io_error)?;
        let removed = if id.has_revision() {
            let commit = repo.resolve(id.revision());
            repo.remove(&commit.ok_or_else(|| self.not_cached(id))?)
        } else {
            fs::remove_dir_all(&repo.folder)
        };
        removed.map_err(io_error)?;
        if !repo.folder.exists() {
            let _ = fs::remove_dir_all(&repo.locks);
            return Ok(before);
        }
        let after = folder_size(&repo.folder).map_err(io_error)?;
        Ok(before.saturating_sub(after))
    }

    fn not_cached(&self, id: &ModelId) -> ModelError {
        ModelError::new(
            format!("`{id}` is not in `{}`", self.root.display()),
            "list the cached models with `rerankd models`",
        )
    }
}

impl RepoCache {
    /// The cached commit of a revision; `None` if there is no snapshot.
    pub fn resolve(&self, revision: &str) -> Option<String> {
        let commit = if is_commit(revision) {
            revision.to_owned()
        } else {
            let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
            text.trim().to_owned()
        };
        (is_commit(&commit) && self.snapshot(&commit).is_dir()).then_some(commit)
    }

    /// The folder of a snapshot.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The path of a blob.
    pub fn blob(&self, digits: &str) -> PathBuf {
        self.folder.join("blobs").join(digits)
    }

    /// The path of a partially downloaded blob.
    pub fn partial_blob(&self, digits: &str) -> PathBuf {
        self.folder
            .join("blobs")
            .join(format!("{digits}.incomplete"))
    }

    /// The files of a snapshot, without dangling links.
    ///
    /// # Errors
    /// If a folder cannot be read.
    pub fn files(&self, commit: &str) -> io::Result<Vec<String>> {
        let root = self.snapshot(commit);
        let mut found = Vec::new();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            for name in names(&root.join(&folder))? {
                let path = if folder.is_empty() {
                    name
                } else {
                    format!("{folder}/{name}")
                };
                // Follows links, so that dangling ones are skipped.
                match fs::metadata(root.join(&path)) {
                    Ok(metadata) if metadata.is_dir() => folders.push(path),
                    Ok(_) => found.push(path),
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Locks a blob against other processes until the result is dropped.
    ///
    /// # Errors
    /// If the cache cannot be written.
    pub fn lock(&self, digits: &str) -> io::Result<File> {
        fs::create_dir_all(&self.locks)?;
        fs::create_dir_all(self.folder.join("blobs"))?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.locks.join(format!("{digits}.lock")))?;
        file.lock()?;
        Ok(file)
    }

    /// Links a blob into a snapshot.
    ///
    /// # Errors
    /// If the cache cannot be written.
    pub fn link(&self, commit: &str, name: &str, digits: &str) -> io::Result<()> {
        let link = self.snapshot(commit).join(name);
        if let Some(folder) = link.parent() {
            fs::create_dir_all(folder)?;
        }
        // Relative, from `snapshots/<commit>/…`.
        let up = "../".repeat(2 + name.matches('/').count());
        let target = format!("{up}blobs/{digits}");
        match std::os::unix::fs::symlink(&target, &link) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                if fs::read_link(&link).is_ok_and(|to| to == Path::new(&target)) {
                    return Ok(());
                }
                fs::remove_file(&link)?;
                std::os::unix::fs::symlink(&target, &link)
            }
            other => other,
        }
    }

    /// Points a branch or tag to a commit.
    ///
    /// # Errors
    /// If the cache cannot be written.
    pub fn set_ref(&self, revision: &str, commit: &str) -> io::Result<()> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        if fs::read_to_string(&path).is_ok_and(|held| held == commit) {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        // Renamed into place, as others may read it.
        let draft = self.folder.join(format!("refs.{}", uuid::Uuid::new_v4()));
        fs::write(&draft, commit)?;
        fs::rename(&draft, &path)
    }

    fn describe(&self, id: ModelId) -> io::Result<CachedModel> {
        let mut revisions: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (revision, commit) in self.revisions()? {
            revisions.entry(commit).or_default().push(revision);
        }
        let mut snapshots = Vec::new();
        for commit in names(&self.folder.join("snapshots"))? {
            let files = self.files(&commit)?;
            let mut bytes = 0;
            for file in &files {
                bytes += fs::metadata(self.snapshot(&commit).join(file))?.len();
            }
            snapshots.push(Snapshot {
                revisions: revisions.remove(&commit).unwrap_or_default(),
                bytes,
                files: files.len(),
                commit,
            });
        }
        snapshots.sort_by(|a, b| a.commit.cmp(&b.commit));
        Ok(CachedModel {
            id,
            bytes: folder_size(&self.folder)?,
            snapshots,
        })
    }

    /// Branches and tags with their commits.
    fn revisions(&self) -> io::Result<Vec<(String, String)>> {
        let root = self.folder.join("refs");
        let mut found = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for name in names(&folder)? {
                let path = folder.join(name);
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let commit = fs::read_to_string(&path)?.trim().to_owned();
                let revision = path.strip_prefix(&root).unwrap_or(&path);
                found.push((revision.display().to_string(), commit));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Removes a commit, its refs, and blobs that no other commit uses.
    fn remove(&self, commit: &str) -> io::Result<()> {
        for (revision, of) in self.revisions()? {
            if of == commit {
                fs::remove_file(self.folder.join("refs").join(revision))?;
            }
        }
        fs::remove_dir_all(self.snapshot(commit))?;
        let rest = names(&self.folder.join("snapshots"))?;
        if rest.is_empty() {
            return fs::remove_dir_all(&self.folder);
        }
        let mut kept = BTreeSet::new();
        for commit in rest {
            for file in self.files(&commit)? {
                if let Ok(target) = fs::read_link(self.snapshot(&commit).join(file)) {
                    kept.extend(target.file_name().map(|name| name.to_owned()));
                }
            }
        }
        for blob in names(&self.folder.join("blobs"))? {
            if !kept.contains(Path::new(&blob).as_os_str()) {
                fs::remove_file(self.folder.join("blobs").join(blob))?;
            }
        }
        Ok(())
    }
}

/// The UTF-8 names in a folder; empty if it does not exist.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

/// Total size of the files in a folder, without links.
fn folder_size(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for name in names(folder)? {
        let path = folder.join(name);
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            bytes += folder_size(&path)?;
        } else if metadata.is_file() {
            bytes += metadata.len();
        }
    }
    Ok(bytes)
}

/// The error for a cache that cannot be read or written.
pub(super) fn cache_error(path: &Path, error: io::Error) -> ModelError {
    let hint = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "free some space, or use another folder with `--hub-cache DIR`"
        }
        _ => {
            "check that this user may read and write it, or use another folder with `--hub-cache DIR`"
        }
    };
    ModelError::new(
        format!("cannot access the cache `{}`", path.display()),
        hint,
    )
    .caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "1111111111111111111111111111111111111111";
    const SECOND: &str = "2222222222222222222222222222222222222222";

    /// A model with two commits that share a file.
    fn cache() -> (tempfile::TempDir, Cache, ModelId) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let id: ModelId = "a/b".parse().unwrap();
        let repo = cache.repo(&id);
        for (digits, text) in [("aa", "one"), ("bb", "three"), ("cc", "fifteen")] {
            let _lock = repo.lock(digits).unwrap();
            fs::write(repo.blob(digits), text).unwrap();
        }
        repo.link(FIRST, "config.json", "aa").unwrap();
        repo.link(FIRST, "onnx/model.onnx", "bb").unwrap();
        repo.link(SECOND, "config.json", "aa").unwrap();
        repo.link(SECOND, "model.safetensors", "cc").unwrap();
        repo.set_ref("main", SECOND).unwrap();
        repo.set_ref("refs/pr/1", FIRST).unwrap();
        (dir, cache, id)
    }

    #[test]
    fn snapshots_have_relative_links_to_blobs() {
        let (_dir, cache, id) = cache();
        let repo = cache.repo(&id);
        let link = repo.snapshot(FIRST).join("onnx/model.onnx");
        assert_eq!(
            fs::read_link(&link).unwrap(),
            Path::new("../../../blobs/bb")
        );
        assert_eq!(fs::read_to_string(link).unwrap(), "three");
        assert_eq!(
            repo.files(FIRST).unwrap(),
            ["config.json", "onnx/model.onnx"]
        );
        // A wrong link is replaced.
        repo.link(FIRST, "config.json", "cc").unwrap();
        let text = fs::read_to_string(repo.snapshot(FIRST).join("config.json"));
        assert_eq!(text.unwrap(), "fifteen");
    }

    #[test]
    fn revisions_resolve_to_cached_commits() {
        let (_dir, cache, id) = cache();
        let repo = cache.repo(&id);
        assert_eq!(repo.resolve("main").as_deref(), Some(SECOND));
        assert_eq!(repo.resolve("refs/pr/1").as_deref(), Some(FIRST));
        assert_eq!(repo.resolve(FIRST).as_deref(), Some(FIRST));
        assert_eq!(repo.resolve(&"3".repeat(40)), None);
        assert_eq!(repo.resolve("v1"), None);
        repo.set_ref("v1", "../../elsewhere").unwrap();
        assert_eq!(repo.resolve("v1"), None);
    }

    #[test]
    fn models_are_listed_with_their_sizes() {
        let (dir, cache, id) = cache();
        fs::create_dir(dir.path().join("datasets--a--b")).unwrap();
        let models = cache.models().unwrap();
        let snapshot = |commit: &str, revision: &str, bytes| Snapshot {
            commit: commit.to_owned(),
            revisions: vec![revision.to_owned()],
            bytes,
            files: 2,
        };
        assert_eq!(models.len(), 1);
        assert_eq!(models[0].id, id);
        assert_eq!(
            models[0].snapshots,
            [
                snapshot(FIRST, "refs/pr/1", 8),
                snapshot(SECOND, "main", 10)
            ]
        );
        // Three blobs, and two refs of 40 digits.
        assert_eq!(models[0].bytes, 15 + 80);
        assert_eq!(Cache::new(dir.path().join("none")).models().unwrap(), []);
    }

    #[test]
    fn removing_a_commit_keeps_the_blobs_of_others() {
        let (_dir, cache, id) = cache();
        let repo = cache.repo(&id);
        let first = "a/b@refs/pr/1".parse().unwrap();
        assert_eq!(cache.remove(&first).unwrap(), 5 + 40);
        assert!(repo.blob("aa").exists() && !repo.blob("bb").exists());
        assert_eq!(repo.resolve("main").as_deref(), Some(SECOND));
        assert!(cache.remove(&first).is_err());
        assert_eq!(cache.remove(&id).unwrap(), 10 + 40);
        assert_eq!(cache.models().unwrap(), []);
        assert!(cache.remove(&id).is_err());
    }
}
