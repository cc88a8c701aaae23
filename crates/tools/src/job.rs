//! Scores the pairs in a file of any size, in bounded memory. An interrupted job can be resumed, and no
//! row is lost or repeated.
//!
//! Rows are read in chunks, scored by a [`Line`](rerankd_engine::bulk::Line) and written in order. At
//! intervals, the output is committed to disk, and a checkpoint is appended to the [journal]. A resumed
//! job truncates the output to the last checkpoint, and skips the rows that it counts.

mod appended;
mod delimited;
pub mod journal;
mod lines;
#[cfg(feature = "parquet")]
mod parquet;
mod rejects;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::appended::AppendFile;
use self::journal::{Checkpoint, Journal};
use self::rejects::Rejects;
use rerankd_core::{Pair, Scale};
use rerankd_engine::bulk::{Engine, EngineError, Outcome, RowError};
use rerankd_engine::load::LoadError;

/// Maximum number of rows in a chunk: enough to plan batches, and few enough to write often.
const CHUNK_ROWS: usize = 512;
/// Text in bytes after which a chunk of long rows ends.
const CHUNK_BYTES: usize = 1 << 20;
/// Longest row. It bounds the memory of a job, and detects a missing closing quote.
const MAX_ROW_BYTES: usize = 16 << 20;

/// Format of both input and output. Conversion is left to other tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated, with a header.
    Csv,
    /// Tab-separated, with a header.
    Tsv,
    /// One JSON object per line.
    Jsonl,
    /// Apache Parquet.
    Parquet,
}

impl Format {
    /// Names of the formats.
    pub const NAMES: [&str; 4] = ["csv", "tsv", "jsonl", "parquet"];

    /// The format with this name.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "csv" => Self::Csv,
            "tsv" => Self::Tsv,
            "jsonl" | "ndjson" => Self::Jsonl,
            "parquet" => Self::Parquet,
            _ => return None,
        })
    }

    /// The format of a file by its extension.
    pub fn of(path: &Path) -> Option<Self> {
        Self::named(&path.extension()?.to_str()?.to_lowercase())
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Tsv => "tsv",
            Self::Jsonl => "jsonl",
            Self::Parquet => "parquet",
        }
    }
}

/// The input or output of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The standard input or output.
    Standard,
    /// A file.
    File(PathBuf),
}

impl End {
    /// The path, if this is a file.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Standard => None,
            Self::File(path) => Some(path),
        }
    }
}

/// A scoring job.
#[derive(Debug, Clone)]
pub struct Job {
    /// Rows to score.
    pub input: End,
    /// Rows with their scores.
    pub output: End,
    /// File for rows that could not be scored; `None` for the standard error.
    pub rejects: Option<PathBuf>,
    /// Format of input and output.
    pub format: Format,
    /// Names of the columns.
    pub fields: Fields,
    /// Logits or scores.
    pub scale: Scale,
    /// Whether to overwrite an existing output.
    pub overwrite: bool,
    /// Interval between commits.
    pub commit_every: Duration,
}

/// Names of the columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    /// Column of the query.
    pub query: String,
    /// Column of the document.
    pub document: String,
    /// Column to add for the score.
    pub score: String,
}

/// Row counts of a finished job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Scored rows.
    pub scored: u64,
    /// Rows that could not be scored.
    pub rejected: u64,
    /// Rows of either kind from an earlier run.
    pub resumed: u64,
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A job failed. The output up to the last commit is kept.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The job cannot be run as it is set up; the message says what to change.
    #[error("{0}")]
    Setup(String),
    /// A file or a standard stream cannot be used.
    #[error("{name}: {source}")]
    File {
        /// What it is, or its path.
        name: String,
        /// What is wrong with it.
        source: Cause,
    },
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model fails.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl JobError {
    fn at(path: &Path, source: impl Into<Cause>) -> Self {
        Self::named(format!("`{}`", path.display()), source)
    }

    fn named(name: impl Into<String>, source: impl Into<Cause>) -> Self {
        Self::File {
            name: name.into(),
            source: source.into(),
        }
    }
}

/// Consecutive rows of the input.
struct Chunk {
    /// Number of the first row, from 1.
    first: u64,
    /// Bytes of the input up to the last row.
    input_bytes: u64,
    /// The pair of each row, or why it has none.
    pairs: Vec<Result<Pair, RowError>>,
    /// The rows as they were read.
    rows: Rows,
}

/// Rows as they were read, one for each pair of their chunk.
enum Rows {
    /// Cells of each row.
    Cells(Vec<csv::ByteRecord>),
    /// Each row's JSON.
    Lines(Vec<String>),
    /// A batch of columns.
    #[cfg(feature = "parquet")]
    Columns(arrow_array::RecordBatch),
}

impl Rows {
    /// A row as JSON, for the file of rejected rows.
    fn to_json(&self, index: usize) -> serde_json::Value {
        match self {
            Self::Cells(rows) => rows[index]
                .iter()
                .map(|cell| String::from_utf8_lossy(cell).into_owned())
                .collect(),
            Self::Lines(lines) => {
                let line = &lines[index];
                serde_json::from_str(line).unwrap_or_else(|_| line.as_str().into())
            }
            #[cfg(feature = "parquet")]
            Self::Columns(_) => serde_json::Value::Null,
        }
    }
}

/// Reads rows.
trait Source {
    /// The next rows; `None` at the end.
    fn read(&mut self) -> Result<Option<Chunk>, JobError>;

    /// Skips `rows` rows of an earlier run.
    fn skip(&mut self, rows: u64) -> Result<(), JobError>;
}

/// Writes rows with their scores.
trait Sink {
    /// Writes the scored rows of a chunk.
    fn write(&mut self, rows: &Rows, outcomes: &[Outcome]) -> Result<(), JobError>;

    /// Commits the output to disk. Returns its size, as in [`Checkpoint::output`].
    fn commit(&mut self) -> Result<u64, JobError>;

    /// Moves the output into place after the last commit. Can be repeated.
    fn finish(&mut self) -> Result<(), JobError> {
        Ok(())
    }

    /// Removes temporary files that only a resumed job would need.
    fn clean(&mut self) -> Result<(), JobError> {
        Ok(())
    }
}

/// The progress of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Completed rows.
    pub rows: u64,
    /// Bytes of the input up to the last of them.
    pub input_bytes: u64,
}

/// Runs a job, or resumes it if an earlier run was interrupted, and reports to `progress`.
///
/// # Errors
/// [`JobError`]. The output up to the last commit is kept, and the job can be resumed from there.
pub fn run(
    job: &Job,
    engine: &Engine,
    mut progress: impl FnMut(Done),
) -> Result<Summary, JobError> {
    let (mut journal, checkpoint) = Journal::open(job, engine.info())?;
    let (mut source, mut sink) = open(job, &engine.info().labels, checkpoint)?;
    let mut rejects = Rejects::open(job.rejects.as_deref(), checkpoint.rejects)?;
    source.skip(checkpoint.rows)?;
    let mut rows = checkpoint.rows;
    progress(Done {
        rows,
        input_bytes: 0,
    });
    let mut summary = Summary {
        resumed: checkpoint.rows,
        ..Summary::default()
    };
    let mut line = engine.line(job.scale);
    let mut ended = false;
    let mut last_commit = Instant::now();
    loop {
        let done = if ended {
            if line.is_empty() {
                break;
            }
            line.pop()?
        } else if let Some(chunk) = source.read()? {
            let pairs = chunk.pairs.iter().filter_map(|pair| pair.as_ref().ok());
            let pairs = pairs.cloned().collect();
            line.push(chunk, pairs)?
        } else {
            ended = true;
            continue;
        };
        let Some((chunk, scored)) = done else {
            continue;
        };
        let outcomes = merged(&chunk, scored);
        sink.write(&chunk.rows, &outcomes)?;
        let rejected = rejects.write(&chunk, &outcomes)?;
        summary.rejected += rejected;
        summary.scored += outcomes.len() as u64 - rejected;
        rows += outcomes.len() as u64;
        progress(Done {
            rows,
            input_bytes: chunk.input_bytes,
        });
        if last_commit.elapsed() >= job.commit_every {
            commit(rows, &mut *sink, &mut rejects, &mut journal)?;
            last_commit = Instant::now();
        }
    }
    commit(rows, &mut *sink, &mut rejects, &mut journal)?;
    sink.finish()?;
    rejects.finish()?;
    journal.finish()?;
    sink.clean()?;
    Ok(summary)
}

/// Commits the output to disk, then appends a checkpoint to the journal.
fn commit(
    rows: u64,
    sink: &mut dyn Sink,
    rejects: &mut Rejects,
    journal: &mut Journal,
) -> Result<(), JobError> {
    let checkpoint = Checkpoint {
        rows,
        output: sink.commit()?,
        rejects: rejects.commit()?,
    };
    journal.write(checkpoint)
}

/// An outcome for each row of a chunk: the scores of its pairs, and the errors of the other rows.
fn merged(chunk: &Chunk, scored: Vec<Outcome>) -> Vec<Outcome> {
    let mut scored = scored.into_iter();
    let missing = || Err(RowError("the model returned no score".into()));
    chunk
        .pairs
        .iter()
        .map(|pair| match pair {
            Ok(_) => scored.next().unwrap_or_else(missing),
            Err(reason) => Err(reason.clone()),
        })
        .collect()
}

/// Names of the score columns: one, or one per label.
fn score_columns(fields: &Fields, labels: &[String]) -> Vec<String> {
    match labels {
        [_] => vec![fields.score.clone()],
        labels => labels
            .iter()
            .map(|label| format!("{}_{label}", fields.score))
            .collect(),
    }
}

type Opened = (Box<dyn Source>, Box<dyn Sink>);

/// Opens input and output, and truncates the output to the checkpoint.
fn open(job: &Job, labels: &[String], checkpoint: Checkpoint) -> Result<Opened, JobError> {
    let columns = score_columns(&job.fields, labels);
    if job.format == Format::Parquet {
        return columnar(job, &columns, checkpoint);
    }
    let input: Box<dyn Read> = match &job.input {
        End::Standard => Box::new(io::stdin().lock()),
        End::File(path) => Box::new(File::open(path).map_err(|e| JobError::at(path, e))?),
    };
    let delimiter = match job.format {
        Format::Csv => b',',
        Format::Tsv => b'\t',
        _ => {
            let output = AppendFile::open(job.output.path(), checkpoint.output)?;
            let score = job.fields.score.clone();
            return Ok((
                Box::new(lines::Reader::new(input, &job.fields)),
                Box::new(lines::Writer::new(output, score)),
            ));
        }
    };
    // The header is read first, so that a wrong column name leaves no output behind.
    let source = delimited::Reader::new(input, delimiter, &job.fields)?;
    let output = AppendFile::open(job.output.path(), checkpoint.output)?;
    let sink = delimited::Writer::new(output, delimiter, source.header(), &columns)?;
    Ok((Box::new(source), Box::new(sink)))
}

#[cfg(feature = "parquet")]
fn columnar(job: &Job, columns: &[String], checkpoint: Checkpoint) -> Result<Opened, JobError> {
    let (Some(input), Some(output)) = (job.input.path(), job.output.path()) else {
        return Err(JobError::Setup(
            "Parquet cannot be streamed; hint: use files for `--input` and `--output`".into(),
        ));
    };
    let source = parquet::Reader::open(input, &job.fields)?;
    let sink = parquet::Writer::open(output, source.schema(), columns, checkpoint)?;
    Ok((Box::new(source), Box::new(sink)))
}

#[cfg(not(feature = "parquet"))]
fn columnar(_: &Job, _: &[String], _: Checkpoint) -> Result<Opened, JobError> {
    Err(JobError::Setup(
        "this build does not support Parquet; hint: build it with `--features parquet`".into(),
    ))
}

/// Makes pairs of texts. Consecutive rows often have the same query, which is stored and tokenized once.
#[derive(Default)]
struct Pairing {
    last: Option<Arc<str>>,
}

impl Pairing {
    fn pair(&mut self, query: &str, document: &str) -> Pair {
        let query = match &self.last {
            Some(last) if **last == *query => last.clone(),
            _ => Arc::from(query),
        };
        self.last = Some(query.clone());
        Pair {
            query,
            document: document.into(),
        }
    }
}

/// The shortest text that parses to the same score.
fn number(score: f32) -> String {
    // As a `Value` it would be an `f64` with digits that the score does not have.
    serde_json::to_string(&score).unwrap_or_default()
}

fn too_short(rows: u64) -> JobError {
    JobError::Setup(format!(
        "the input has fewer than the {rows} rows of an earlier run; hint: `--overwrite` starts over"
    ))
}

fn name_taken(name: &str) -> JobError {
    JobError::Setup(format!(
        "the input already has a column `{name}`; hint: `--score-field` sets another name"
    ))
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn a_score_has_no_more_digits_than_an_f32() {
        for (score, text) in [(0.1, "0.1"), (1.0, "1.0"), (-3.25, "-3.25"), (1e-9, "1e-9")] {
            assert_eq!(number(score), text);
            assert_eq!(number(score).parse::<f32>().unwrap(), score);
        }
        assert_eq!(number(0.831_831), "0.831831");
    }
}
