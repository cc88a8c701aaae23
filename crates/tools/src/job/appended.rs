//! An output that is appended to, and can be truncated to its last commit.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::JobError;

/// A file, or the standard output.
pub struct AppendFile {
    to: BufWriter<Target>,
    path: Option<PathBuf>,
    bytes: u64,
}

enum Target {
    Standard(io::Stdout),
    File(File),
}

impl AppendFile {
    /// Opens or creates the file at `path`, and truncates it to `bytes`.
    pub fn open(path: Option<&Path>, bytes: u64) -> Result<Self, JobError> {
        let target = match path {
            None => Target::Standard(io::stdout()),
            Some(path) => Target::File(truncated(path, bytes).map_err(|e| JobError::at(path, e))?),
        };
        Ok(Self {
            to: BufWriter::with_capacity(1 << 16, target),
            path: path.map(Path::to_owned),
            bytes,
        })
    }

    /// Whether the file is empty.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Writes all of `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), JobError> {
        self.bytes += bytes.len() as u64;
        let written = self.to.write_all(bytes);
        written.map_err(|error| self.error(error))
    }

    /// Commits the file to disk. Returns its size in bytes.
    pub fn commit(&mut self) -> Result<u64, JobError> {
        let synced = self.to.flush().and_then(|()| match self.to.get_ref() {
            Target::Standard(_) => Ok(()),
            Target::File(file) => file.sync_data(),
        });
        synced.map_err(|error| self.error(error))?;
        Ok(self.bytes)
    }

    fn error(&self, error: io::Error) -> JobError {
        match &self.path {
            Some(path) => JobError::at(path, error),
            None => JobError::named("the standard output", error),
        }
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Standard(to) => to.write(bytes),
            Self::File(to) => to.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Standard(to) => to.flush(),
            Self::File(to) => to.flush(),
        }
    }
}

fn truncated(path: &Path, bytes: u64) -> io::Result<File> {
    let file = OpenOptions::new().append(true).create(true).open(path)?;
    let size = file.metadata()?.len();
    if size < bytes {
        return Err(io::Error::other(format!(
            "has {size} bytes, but its journal counts {bytes}; hint: `--overwrite` starts over"
        )));
    }
    file.set_len(bytes)?;
    Ok(file)
}
