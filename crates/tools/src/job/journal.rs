//! How far a job is, in a file beside its output.
//!
//! The first line says what the job is, every further one how much of it is safe. Lines are only
//! added; one that a kill cut short is not read. The file is locked as long as its job runs.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Job, JobError};
use rerankd_core::Scale;
use rerankd_engine::service::ModelInfo;

/// What is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Mark {
    /// Rows of the input that are done.
    pub rows: u64,
    /// Bytes of the output; for Parquet, its parts.
    pub output: u64,
    /// Bytes of the file of rejected rows.
    pub rejects: u64,
}

/// The file; none where the output is a stream, which nobody can go on with.
#[derive(Debug)]
pub struct Journal {
    file: Option<(PathBuf, File)>,
}

impl Journal {
    /// Opens the journal of `job`, and says what is safe of it.
    ///
    /// # Errors
    /// [`JobError::Unusable`] when the output is of another job, or another process writes it.
    pub fn open(job: &Job, model: &ModelInfo) -> Result<(Self, Mark), JobError> {
        let Some(output) = job.output.path() else {
            return Ok((Self { file: None }, Mark::default()));
        };
        let path = beside(output, ".journal");
        let setup = setup(job, model)?;
        // It is looked at before the journal is made, which would make any output look resumable.
        let known = path.exists();
        if output.exists() && !known && !job.overwrite {
            return Err(JobError::at(
                output,
                "it exists, and no journal says that it is unfinished; hint: `--overwrite` replaces it",
            ));
        }
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(|error| JobError::at(&path, error))?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => JobError::at(output, "another process is writing it"),
            TryLockError::Error(error) => JobError::at(&path, error),
        })?;
        let mut text = String::new();
        file.read_to_string(&mut text)
            .map_err(|error| JobError::at(&path, error))?;
        let mark = match read(&text) {
            // A job that did nothing, such as one with a wrong name, binds nobody.
            Some((before, mark)) if !job.overwrite && mark.rows > 0 => {
                same(&before, &setup).map_err(|error| JobError::at(output, error))?;
                // What a kill cut short goes, so that the next line is a line.
                let whole = text.rfind('\n').map_or(0, |end| end + 1) as u64;
                file.set_len(whole).map(|()| mark)
            }
            _ => start(&mut file, &setup).map(|()| Mark::default()),
        };
        let mark = mark.map_err(|error| JobError::at(&path, error))?;
        let file = Some((path, file));
        Ok((Self { file }, mark))
    }

    /// Notes that everything up to `mark` is safe.
    ///
    /// # Errors
    /// [`JobError::Unusable`] when it cannot be written.
    pub fn write(&mut self, mark: Mark) -> Result<(), JobError> {
        let Some((path, file)) = &mut self.file else {
            return Ok(());
        };
        let line = serde_json::to_string(&mark).expect("numbers are JSON") + "\n";
        file.write_all(line.as_bytes())
            .and_then(|()| file.sync_data())
            .map_err(|error| JobError::at(path, error))
    }

    /// Takes the file away: nothing is left to go on with.
    ///
    /// # Errors
    /// [`JobError::Unusable`] when it cannot be removed.
    pub fn finish(&mut self) -> Result<(), JobError> {
        match self.file.take() {
            Some((path, _)) => {
                std::fs::remove_file(&path).map_err(|error| JobError::at(&path, error))
            }
            None => Ok(()),
        }
    }
}

/// The path with `ending` behind it.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn start(file: &mut File, setup: &Map<String, Value>) -> std::io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    let line = serde_json::to_string(setup).expect("a map of text is JSON") + "\n";
    file.write_all(line.as_bytes())?;
    file.sync_data()
}

/// What a journal says: its job, and the last whole line. `None` when not even the job was written.
fn read(text: &str) -> Option<(Map<String, Value>, Mark)> {
    let whole = &text[..=text.rfind('\n')?];
    let mut lines = whole.lines();
    let setup = serde_json::from_str(lines.next()?).ok()?;
    let mut marks = lines.filter_map(|line| serde_json::from_str(line).ok());
    Some((setup, marks.next_back().unwrap_or_default()))
}

/// All that decides what is written.
fn setup(job: &Job, model: &ModelInfo) -> Result<Map<String, Value>, JobError> {
    let input = match job.input.path() {
        None => Value::Null,
        Some(path) => {
            let there = path.metadata().map_err(|error| JobError::at(path, error))?;
            let changed = there.modified().ok();
            let since = changed.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
            json!({
                "path": path.display().to_string(),
                "bytes": there.len(),
                // A whole number: a fraction can come back from JSON as its neighbour.
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
        _ => unreachable!("it was written as an object"),
    }
}

/// Refuses to go on with another job than was begun.
fn same(before: &Map<String, Value>, now: &Map<String, Value>) -> Result<(), String> {
    match now
        .iter()
        .find(|(key, value)| before.get(*key) != Some(*value))
    {
        None => Ok(()),
        Some((key, value)) => {
            let before = before.get(key).cloned().unwrap_or_default();
            Err(format!(
                "it is unfinished, and of another job: its `{key}` was {before} and is {value}; hint: \
                 `--overwrite` starts anew"
            ))
        }
    }
}
