//! Rows that could not be scored, with the reason.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::appended::AppendFile;
use super::{Chunk, JobError};
use rerankd_engine::bulk::Outcome;

/// A file of JSON lines, or the standard error.
pub struct Rejects {
    file: Option<(PathBuf, AppendFile)>,
}

impl Rejects {
    /// Opens the file, and truncates it to `bytes`.
    pub fn open(path: Option<&Path>, bytes: u64) -> Result<Self, JobError> {
        let file = match path {
            Some(path) => Some((path.to_owned(), AppendFile::open(Some(path), bytes)?)),
            None => None,
        };
        Ok(Self { file })
    }

    /// Writes the rows of a chunk that could not be scored. Returns their number.
    pub fn write(&mut self, chunk: &Chunk, outcomes: &[Outcome]) -> Result<u64, JobError> {
        let mut count = 0;
        for (index, outcome) in outcomes.iter().enumerate() {
            let Err(reason) = outcome else { continue };
            count += 1;
            let row = chunk.first + index as u64;
            match &mut self.file {
                Some((_, file)) => {
                    let reason = reason.to_string();
                    let line =
                        json!({"row": row, "reason": reason, "input": chunk.rows.to_json(index)});
                    file.write(format!("{line}\n").as_bytes())?;
                }
                None => eprintln!("rerankd: row {row} rejected: {reason}"),
            }
        }
        Ok(count)
    }

    /// Commits the file to disk. Returns its size in bytes.
    pub fn commit(&mut self) -> Result<u64, JobError> {
        match &mut self.file {
            Some((_, file)) => file.commit(),
            None => Ok(0),
        }
    }

    /// Removes the file if it is empty.
    pub fn finish(&mut self) -> Result<(), JobError> {
        match &self.file {
            Some((path, file)) if file.is_empty() => {
                std::fs::remove_file(path).map_err(|error| JobError::at(path, error))
            }
            _ => Ok(()),
        }
    }
}
