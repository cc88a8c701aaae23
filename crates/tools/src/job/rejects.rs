//! Rows that have no score, and why.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::appended::Appended;
use super::{Chunk, JobError};
use rerankd_engine::bulk::Outcome;

/// A file of JSON lines, or the standard error.
pub struct Rejects {
    file: Option<(PathBuf, Appended)>,
}

impl Rejects {
    /// Cuts the file to its first `bytes`.
    pub fn open(path: Option<&Path>, bytes: u64) -> Result<Self, JobError> {
        let file = match path {
            Some(path) => Some((path.to_owned(), Appended::open(Some(path), bytes)?)),
            None => None,
        };
        Ok(Self { file })
    }

    /// Writes the rows of a chunk that have no score; returns how many.
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
                        json!({"row": row, "reason": reason, "input": chunk.rows.shown(index)});
                    file.write(format!("{line}\n").as_bytes())?;
                }
                None => eprintln!("rerankd: row {row} has no score: {reason}"),
            }
        }
        Ok(count)
    }

    /// Makes safe what was written; returns how many bytes there are.
    pub fn commit(&mut self) -> Result<u64, JobError> {
        match &mut self.file {
            Some((_, file)) => file.commit(),
            None => Ok(0),
        }
    }

    /// Takes the file away where it is empty.
    pub fn finish(&mut self) -> Result<(), JobError> {
        match &self.file {
            Some((path, file)) if file.is_empty() => {
                std::fs::remove_file(path).map_err(|error| JobError::at(path, error))
            }
            _ => Ok(()),
        }
    }
}
