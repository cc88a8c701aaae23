//! The cache that Hugging Face libraries share: `models--owner--name/{blobs,refs,snapshots}`.
//!
//! A file lies once in `blobs`, under its checksum; `snapshots/<commit>/` links to it by a relative
//! path; `refs/<revision>` says which commit a branch or tag is. Locks are those of `huggingface_hub`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rerankd_model::ModelError;
use rerankd_model::names::{ModelId, is_commit};

const LOCKS: &str = ".locks";

/// A cache of any number of models.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// The part of a cache that one model has.
#[derive(Debug, Clone)]
pub struct Shelf {
    folder: PathBuf,
    locks: PathBuf,
}

/// A model that lies in a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// Its name, without a revision.
    pub id: ModelId,
    /// What it takes on disk, parts of downloads that did not end included.
    pub bytes: u64,
    /// Its snapshots, ordered by commit.
    pub snapshots: Vec<Snapshot>,
}

/// One commit of a model in a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its 40 digits.
    pub commit: String,
    /// The branches and tags that stand for it.
    pub revisions: Vec<String>,
    /// Sum of its files, whether others have them too or not.
    pub bytes: u64,
    /// Number of its files.
    pub files: usize,
}

impl Cache {
    /// The cache in the folder `root`, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn shelf(&self, id: &ModelId) -> Shelf {
        Shelf {
            folder: self.root.join(id.folder()),
            locks: self.root.join(LOCKS).join(id.folder()),
        }
    }

    /// Every model in it, ordered by name.
    ///
    /// # Errors
    /// When the folder cannot be read; one that does not exist holds nothing.
    pub fn models(&self) -> Result<Vec<Cached>, ModelError> {
        let mut found = BTreeMap::new();
        for name in names(&self.root).map_err(|error| broken(&self.root, &error))? {
            if let Some(id) = ModelId::of_folder(&name) {
                let shelf = self.shelf(&id);
                let cached = shelf
                    .describe(id)
                    .map_err(|error| broken(&shelf.folder, &error))?;
                found.insert(name, cached);
            }
        }
        Ok(found.into_values().collect())
    }

    /// Removes a model, or the one commit of it that `id` names, and says how many bytes that freed.
    ///
    /// # Errors
    /// When it is not there, or cannot be removed.
    pub fn remove(&self, id: &ModelId) -> Result<u64, ModelError> {
        let shelf = self.shelf(id);
        let before = match shelf.folder.is_dir() {
            true => size_below(&shelf.folder).map_err(|error| broken(&shelf.folder, &error))?,
            false => return Err(self.lacks(id)),
        };
        let removed = match id.names_revision() {
            true => match shelf.commit(id.revision()) {
                Some(commit) => shelf.remove(&commit),
                None => return Err(self.lacks(id)),
            },
            false => fs::remove_dir_all(&shelf.folder),
        };
        removed.map_err(|error| broken(&shelf.folder, &error))?;
        if !shelf.folder.exists() {
            let _ = fs::remove_dir_all(&shelf.locks);
            return Ok(before);
        }
        let after = size_below(&shelf.folder).map_err(|error| broken(&shelf.folder, &error))?;
        Ok(before.saturating_sub(after))
    }

    fn lacks(&self, id: &ModelId) -> ModelError {
        ModelError::new(
            format!("`{id}` is not in `{}`", self.root.display()),
            "`rerankd models` lists what is there",
        )
    }
}

impl Shelf {
    /// The commit that `revision` is here, if a snapshot of it is here.
    pub fn commit(&self, revision: &str) -> Option<String> {
        let commit = match is_commit(revision) {
            true => revision.to_owned(),
            false => {
                let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
                text.trim().to_owned()
            }
        };
        (is_commit(&commit) && self.snapshot(&commit).is_dir()).then_some(commit)
    }

    /// The folder of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The file of a checksum.
    pub fn blob(&self, digits: &str) -> PathBuf {
        self.folder.join("blobs").join(digits)
    }

    /// What there is of a file that did not come whole.
    pub fn incomplete(&self, digits: &str) -> PathBuf {
        self.folder
            .join("blobs")
            .join(format!("{digits}.incomplete"))
    }

    /// The files of a commit that are here whole.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn files(&self, commit: &str) -> io::Result<Vec<String>> {
        let root = self.snapshot(commit);
        let mut found = Vec::new();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            for name in names(&root.join(&folder))? {
                let path = match folder.is_empty() {
                    true => name,
                    false => format!("{folder}/{name}"),
                };
                // Follows the link, so that one into nothing does not count.
                match fs::metadata(root.join(&path)) {
                    Ok(there) if there.is_dir() => folders.push(path),
                    Ok(_) => found.push(path),
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Waits until no other process writes the file of a checksum; held as long as the result is.
    ///
    /// # Errors
    /// When the cache cannot be written.
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

    /// Makes the file of a checksum a file of a commit.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub fn link(&self, commit: &str, name: &str, digits: &str) -> io::Result<()> {
        let link = self.snapshot(commit).join(name);
        if let Some(folder) = link.parent() {
            fs::create_dir_all(folder)?;
        }
        // From `snapshots/<commit>/…` back to the model's folder, then into `blobs`.
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

    /// Notes which commit a branch or tag is.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub fn name(&self, revision: &str, commit: &str) -> io::Result<()> {
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
        // Whole or not at all: others read it meanwhile.
        let draft = self.folder.join(format!("refs.{}", uuid::Uuid::new_v4()));
        fs::write(&draft, commit)?;
        fs::rename(&draft, &path)
    }

    fn describe(&self, id: ModelId) -> io::Result<Cached> {
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
        Ok(Cached {
            id,
            bytes: size_below(&self.folder)?,
            snapshots,
        })
    }

    /// Branches and tags, each with its commit.
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

    /// Removes a commit, the names of it, and the files that no other commit has.
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

/// The names in a folder that are UTF-8; none where there is no folder.
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

/// Bytes of all files below a folder; links count nothing.
fn size_below(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for name in names(folder)? {
        let path = folder.join(name);
        let there = fs::symlink_metadata(&path)?;
        bytes += match there.is_dir() {
            true => size_below(&path)?,
            false if there.is_file() => there.len(),
            false => 0,
        };
    }
    Ok(bytes)
}

/// Why the cache cannot be used.
pub(super) fn broken(path: &Path, error: &io::Error) -> ModelError {
    let hint = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "make room, or name another place with `--hub-cache DIR`"
        }
        _ => {
            "check that this user may read and write it, or name another place with `--hub-cache DIR`"
        }
    };
    ModelError::new(format!("the cache `{}`: {error}", path.display()), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "1111111111111111111111111111111111111111";
    const SECOND: &str = "2222222222222222222222222222222222222222";

    /// A model of two commits that share one file.
    fn cache() -> (tempfile::TempDir, Cache, ModelId) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let id: ModelId = "a/b".parse().unwrap();
        let shelf = cache.shelf(&id);
        for (digits, text) in [("aa", "one"), ("bb", "three"), ("cc", "fifteen")] {
            let _lock = shelf.lock(digits).unwrap();
            fs::write(shelf.blob(digits), text).unwrap();
        }
        shelf.link(FIRST, "config.json", "aa").unwrap();
        shelf.link(FIRST, "onnx/model.onnx", "bb").unwrap();
        shelf.link(SECOND, "config.json", "aa").unwrap();
        shelf.link(SECOND, "model.safetensors", "cc").unwrap();
        shelf.name("main", SECOND).unwrap();
        shelf.name("refs/pr/1", FIRST).unwrap();
        (dir, cache, id)
    }

    #[test]
    fn files_are_links_within_the_model() {
        let (_dir, cache, id) = cache();
        let shelf = cache.shelf(&id);
        let link = shelf.snapshot(FIRST).join("onnx/model.onnx");
        assert_eq!(
            fs::read_link(&link).unwrap(),
            Path::new("../../../blobs/bb")
        );
        assert_eq!(fs::read_to_string(link).unwrap(), "three");
        assert_eq!(
            shelf.files(FIRST).unwrap(),
            ["config.json", "onnx/model.onnx"]
        );
        // A link that points elsewhere is set right.
        shelf.link(FIRST, "config.json", "cc").unwrap();
        let text = fs::read_to_string(shelf.snapshot(FIRST).join("config.json"));
        assert_eq!(text.unwrap(), "fifteen");
    }

    #[test]
    fn a_revision_is_a_commit_that_is_there() {
        let (_dir, cache, id) = cache();
        let shelf = cache.shelf(&id);
        assert_eq!(shelf.commit("main").as_deref(), Some(SECOND));
        assert_eq!(shelf.commit("refs/pr/1").as_deref(), Some(FIRST));
        assert_eq!(shelf.commit(FIRST).as_deref(), Some(FIRST));
        assert_eq!(shelf.commit(&"3".repeat(40)), None);
        assert_eq!(shelf.commit("v1"), None);
        shelf.name("v1", "../../elsewhere").unwrap();
        assert_eq!(shelf.commit("v1"), None);
    }

    #[test]
    fn what_is_there_is_listed_with_its_size() {
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
        // Three files, and two names of forty digits.
        assert_eq!(models[0].bytes, 15 + 80);
        assert_eq!(Cache::new(dir.path().join("none")).models().unwrap(), []);
    }

    #[test]
    fn a_commit_goes_without_what_others_need() {
        let (_dir, cache, id) = cache();
        let shelf = cache.shelf(&id);
        let first = "a/b@refs/pr/1".parse().unwrap();
        assert_eq!(cache.remove(&first).unwrap(), 5 + 40);
        assert!(shelf.blob("aa").exists() && !shelf.blob("bb").exists());
        assert_eq!(shelf.commit("main").as_deref(), Some(SECOND));
        assert!(cache.remove(&first).is_err());
        assert_eq!(cache.remove(&id).unwrap(), 10 + 40);
        assert_eq!(cache.models().unwrap(), []);
        assert!(cache.remove(&id).is_err());
    }
}
