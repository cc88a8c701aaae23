//! The journal of a job: a file next to its output, which makes it possible to resume.
//!
//! The first line has the settings of the job, and each further line a checkpoint. Lines are only
//! appended, and an incomplete last line is ignored. The file is locked while its job runs.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Job, JobError};
use rerankd_core::Scale;
use rerankd_engine::service::ModelInfo;

/// Sizes at a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Completed rows of the input.
    pub rows: u64,
    /// Size of the output in bytes; for Parquet, the number of parts.
    pub output: u64,
    /// Size of the file of rejected rows in bytes.
    pub rejects: u64,
}

/// The journal; without a file if the output is a stream, which cannot be resumed.
#[derive(Debug)]
pub struct Journal {
    file: Option<(PathBuf, File)>,
}

impl Journal {
    /// Opens the journal of `job`. Returns the last checkpoint.
    ///
    /// # Errors
    /// [`JobError::File`] when the output is from another job, or another process writes to it.
    pub fn open(job: &Job, model: &ModelInfo) -> Result<(Self, Checkpoint), JobError> {
        let Some(output) = job.output.path() else {
            return Ok((Self { file: None }, Checkpoint::default()));
        };
        let path = beside(output, ".journal");
        let setup = setup(job, model)?;
        // Checked before the journal is created, with which any output would look resumable.
        let known = path.exists();
        if output.exists() && !known && !job.overwrite {
            return Err(JobError::at(
                output,
                "already exists, and has no journal to resume from; hint: `--overwrite` replaces it",
            ));
        }
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(|error| JobError::at(&path, error))?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => JobError::at(output, "another process is writing to it"),
            TryLockError::Error(error) => JobError::at(&path, error),
        })?;
        let mut text = String::new();
        file.read_to_string(&mut text)
            .map_err(|error| JobError::at(&path, error))?;
        let checkpoint = match read(&text) {
            // A job that completed no row, such as one with a wrong column name, need not be the same.
            Some((before, last)) if !job.overwrite && last.rows > 0 => {
                same(&before, &setup).map_err(|error| JobError::at(output, error))?;
                // An incomplete line is removed before the next one is appended.
                let whole = text.rfind('\n').map_or(0, |end| end + 1) as u64;
                file.set_len(whole).map(|()| last)
            }
            _ => start(&mut file, &setup).map(|()| Checkpoint::default()),
        };
        let checkpoint = checkpoint.map_err(|error| JobError::at(&path, error))?;
        let file = Some((path, file));
        Ok((Self { file }, checkpoint))
    }

    /// Appends a checkpoint.
    ///
    /// # Errors
    /// [`JobError::File`] when it cannot be written.
    pub fn write(&mut self, checkpoint: Checkpoint) -> Result<(), JobError> {
        let Some((path, file)) = &mut self.file else {
            return Ok(());
        };
        let line = serde_json::to_string(&checkpoint).expect("numbers are JSON") + "\n";
        file.write_all(line.as_bytes())
            .and_then(|()| file.sync_data())
            .map_err(|error| JobError::at(path, error))
    }

    /// Removes the journal of a finished job.
    ///
    /// # Errors
    /// [`JobError::File`] when it cannot be removed.
    pub fn finish(&mut self) -> Result<(), JobError> {
        match self.file.take() {
            Some((path, _)) => {
                std::fs::remove_file(&path).map_err(|error| JobError::at(&path, error))
            }
            None => Ok(()),
        }
    }
}

/// `path` with `suffix` appended to the file name.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn start(file: &mut File, setup: &Map<String, Value>) -> std::io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    let line = serde_json::to_string(setup).expect("a map of text is JSON") + "\n";
    file.write_all(line.as_bytes())?;
    file.sync_data()
}

/// The settings and the last complete checkpoint of a journal. `None` if it has no complete settings.
fn read(text: &str) -> Option<(Map<String, Value>, Checkpoint)> {
    let whole = &text[..=text.rfind('\n')?];
    let mut lines = whole.lines();
    let setup = serde_json::from_str(lines.next()?).ok()?;
    let mut checkpoints = lines.filter_map(|line| serde_json::from_str(line).ok());
    Some((setup, checkpoints.next_back().unwrap_or_default()))
}

/// The settings that determine the output.
fn setup(job: &Job, model: &ModelInfo) -> Result<Map<String, Value>, JobError> {
    let input = match job.input.path() {
        None => Value::Null,
        Some(path) => {
            let metadata = path.metadata().map_err(|error| JobError::at(path, error))?;
            let changed = metadata.modified().ok();
            let since = changed.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
            json!({
                "path": path.display().to_string(),
                "bytes": metadata.len(),
                // An integer: a fraction may not survive JSON unchanged.
                "modified_nanoseconds": since.map(|since| since.as_nanos() as u64),
            })
        }
    };
    let setup = json!({
        "input": input,
        "format": job.format.name(),
        "fields": [job.fields.query, job.fields.document, job.fields.score],
        "raw": job.scale == Scale::Raw,
        "model": model.id,
        "parameters": model.parameters,
        "precision": model.precision,
    });
    match setup {
        Value::Object(setup) => Ok(setup),
        _ => unreachable!("the literal is an object"),
    }
}

/// A job cannot be resumed with other settings.
#[derive(Debug, thiserror::Error)]
#[error(
    "is unfinished, from a job with other settings: `{key}` was {before} and is {now}; hint: \
     `--overwrite` starts over"
)]
struct OtherSettings {
    key: String,
    before: Value,
    now: Value,
}

/// Refuses to resume a job with other settings.
fn same(before: &Map<String, Value>, now: &Map<String, Value>) -> Result<(), OtherSettings> {
    let changed = now
        .iter()
        .find(|(key, value)| before.get(*key) != Some(*value));
    let Some((key, value)) = changed else {
        return Ok(());
    };
    Err(OtherSettings {
        key: key.clone(),
        before: before.get(key).cloned().unwrap_or_default(),
        now: value.clone(),
    })
}
