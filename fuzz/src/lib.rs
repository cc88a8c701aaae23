//! What the fuzz targets share.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A directory that lives as long as the process, for code that reads files.
pub struct Folder(TempDir);

impl Folder {
    /// An empty directory, in memory where the system has such a place.
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        };
        Self(dir.unwrap())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, and the folder that its name puts it in.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Removes a file, where it exists.
    pub fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.0.path().join(name));
    }
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}
