//! An output that grows at its end, and can be cut to what is safe.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::JobError;

/// A file, or the standard output.
pub struct Appended {
    to: BufWriter<Target>,
    path: Option<PathBuf>,
    bytes: u64,
}

enum Target {
    Standard(io::Stdout),
    File(File),
}

impl Appended {
    /// Opens the file at `path`, made if need be, and cuts it to its first `bytes`.
    pub fn open(path: Option<&Path>, bytes: u64) -> Result<Self, JobError> {
        let target = match path {
            None => Target::Standard(io::stdout()),
            Some(path) => Target::File(cut(path, bytes).map_err(|e| JobError::at(path, e))?),
        };
        Ok(Self {
            to: BufWriter::with_capacity(1 << 16, target),
            path: path.map(Path::to_owned),
            bytes,
        })
    }

    /// Whether nothing has been written to it, now or before.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Writes all of `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), JobError> {
        self.bytes += bytes.len() as u64;
        let written = self.to.write_all(bytes);
        written.map_err(|error| self.error(&error))
    }

    /// Makes safe what was written; returns how many bytes there are.
    pub fn commit(&mut self) -> Result<u64, JobError> {
        let synced = self.to.flush().and_then(|()| match self.to.get_ref() {
            Target::Standard(_) => Ok(()),
            Target::File(file) => file.sync_data(),
        });
        synced.map_err(|error| self.error(&error))?;
        Ok(self.bytes)
    }

    fn error(&self, error: &io::Error) -> JobError {
        match &self.path {
            Some(path) => JobError::at(path, error),
            None => JobError::Unusable(format!("the standard output: {error}")),
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

fn cut(path: &Path, bytes: u64) -> io::Result<File> {
    let file = OpenOptions::new().append(true).create(true).open(path)?;
    let there = file.metadata()?.len();
    if there < bytes {
        return Err(io::Error::other(format!(
            "it has {there} bytes and the journal beside it counts {bytes}; hint: `--overwrite` starts \
             anew"
        )));
    }
    file.set_len(bytes)?;
    Ok(file)
}
