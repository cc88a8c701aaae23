//! A file of pairs to a file of scores, of any size: in bounded memory, and able to go on after a
//! kill without losing or repeating a row.
//!
//! Rows are read in chunks, scored by a [`Line`](rerankd_engine::bulk::Line) and written in their order. Now
//! and then what is written is made safe and the [journal] says how far that is. Whoever
//! goes on cuts off what came after the last entry, and reads on behind the rows that it counts.

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

use self::appended::Appended;
use self::journal::{Journal, Mark};
use self::rejects::Rejects;
use rerankd_core::{Pair, Scale};
use rerankd_engine::bulk::{Engine, EngineError, Outcome, RowError};
use rerankd_engine::load::LoadError;

/// Rows of one chunk: enough to plan batches over, little enough to write often.
const CHUNK_ROWS: usize = 512;
/// Bytes of text of one chunk, where rows are long.
const CHUNK_BYTES: usize = 1 << 20;
/// Longest row. It bounds the memory of a job, and finds the quote that was never closed.
const MAX_ROW_BYTES: usize = 16 << 20;

/// How input and output are written. They are the same: to convert is another tool's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated, with a header.
    Csv,
    /// Tab-separated, with a header.
    Tsv,
    /// One JSON object a line.
    Jsonl,
    /// Apache Parquet.
    Parquet,
}

impl Format {
    /// Every name that [`Format::named`] reads.
    pub const NAMES: [&str; 4] = ["csv", "tsv", "jsonl", "parquet"];

    /// The format of this name.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "csv" => Self::Csv,
            "tsv" => Self::Tsv,
            "jsonl" | "ndjson" => Self::Jsonl,
            "parquet" => Self::Parquet,
            _ => return None,
        })
    }

    /// The format that the name of a file ends with.
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

/// Where rows come from, or scores go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The standard input or output.
    Standard,
    /// A file.
    File(PathBuf),
}

impl End {
    /// The file, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Standard => None,
            Self::File(path) => Some(path),
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Job {
    /// Where rows come from.
    pub input: End,
    /// Where scores go.
    pub output: End,
    /// Where rows without a score go; `None` for the standard error.
    pub rejects: Option<PathBuf>,
    /// How both are written.
    pub format: Format,
    /// Names of columns.
    pub fields: Fields,
    /// Which scores.
    pub scale: Scale,
    /// Throw away what an earlier job left.
    pub overwrite: bool,
    /// How often what is done is made safe.
    pub commit_every: Duration,
}

/// Names of the columns of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    /// The first text.
    pub query: String,
    /// The second text.
    pub document: String,
    /// The score, which is added.
    pub score: String,
}

/// What a job came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Rows with a score.
    pub scored: u64,
    /// Rows without one.
    pub rejected: u64,
    /// Rows that an earlier run had done, of both kinds.
    pub resumed: u64,
}

/// Why a job ended early. What it had made safe stays.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Input, output or settings cannot be used; the text says what to change.
    #[error("{0}")]
    Unusable(String),
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model fails whatever it is given.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl JobError {
    fn at(path: &Path, error: impl std::fmt::Display) -> Self {
        Self::Unusable(format!("`{}`: {error}", path.display()))
    }
}

/// Some rows of the input, in order.
struct Chunk {
    /// Number of the first of them, from 1.
    first: u64,
    /// Bytes of the input that have been read with these.
    input_bytes: u64,
    /// Texts of each row, or why it has none.
    pairs: Vec<Result<Pair, RowError>>,
    /// What else is needed to write them.
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
    /// What is kept of a row that has no score.
    fn shown(&self, index: usize) -> serde_json::Value {
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

    /// Passes over `rows` rows that were done before.
    fn skip(&mut self, rows: u64) -> Result<(), JobError>;
}

/// Writes rows with their scores.
trait Sink {
    /// Writes those rows of a chunk that have a score.
    fn write(&mut self, rows: &Rows, outcomes: &[Outcome]) -> Result<(), JobError>;

    /// Makes safe what was written. Returns how much that is, as [`Mark::output`] has it.
    fn commit(&mut self) -> Result<u64, JobError>;

    /// Puts the output where it belongs, after the last commit. May be done again.
    fn finish(&mut self) -> Result<(), JobError>;

    /// Takes away what only a resumed job would need.
    fn clean(&mut self) -> Result<(), JobError>;
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Rows that have been read and written.
    pub rows: u64,
    /// Bytes of the input up to there.
    pub input_bytes: u64,
}

/// Does a job with `engine`, and tells `progress` how far it is. Goes on where an earlier one with
/// the same output was stopped.
///
/// # Errors
/// [`JobError`]; what was made safe stays, and the same command goes on from there.
pub fn run(
    job: &Job,
    engine: &Engine,
    mut progress: impl FnMut(Done),
) -> Result<Summary, JobError> {
    let (mut journal, mark) = Journal::open(job, engine.info())?;
    let (mut source, mut sink) = ends(job, &engine.info().labels, mark)?;
    let mut rejects = Rejects::open(job.rejects.as_deref(), mark.rejects)?;
    source.skip(mark.rows)?;
    let mut rows = mark.rows;
    progress(Done {
        rows,
        input_bytes: 0,
    });
    let mut summary = Summary {
        resumed: mark.rows,
        ..Summary::default()
    };
    let mut line = engine.line(job.scale);
    let mut ended = false;
    let mut last_commit = Instant::now();
    loop {
        let done = match ended {
            true if line.is_empty() => break,
            true => line.pop()?,
            false => match source.read()? {
                Some(chunk) => {
                    let pairs = chunk.pairs.iter().filter_map(|pair| pair.as_ref().ok());
                    let pairs = pairs.cloned().collect();
                    line.push(chunk, pairs)?
                }
                None => {
                    ended = true;
                    continue;
                }
            },
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

/// Makes the output safe, and only then says so in the journal.
fn commit(
    rows: u64,
    sink: &mut dyn Sink,
    rejects: &mut Rejects,
    journal: &mut Journal,
) -> Result<(), JobError> {
    let mark = Mark {
        rows,
        output: sink.commit()?,
        rejects: rejects.commit()?,
    };
    journal.write(mark)
}

/// One outcome for each row of a chunk: those that were scored, between those that were not sent.
fn merged(chunk: &Chunk, scored: Vec<Outcome>) -> Vec<Outcome> {
    let mut scored = scored.into_iter();
    let missing = || Err(RowError("the model gave no score".into()));
    chunk
        .pairs
        .iter()
        .map(|pair| match pair {
            Ok(_) => scored.next().unwrap_or_else(missing),
            Err(reason) => Err(reason.clone()),
        })
        .collect()
}

/// Names of the columns that are added: one, or one a label.
fn score_columns(fields: &Fields, labels: &[String]) -> Vec<String> {
    match labels {
        [_] => vec![fields.score.clone()],
        labels => labels
            .iter()
            .map(|label| format!("{}_{label}", fields.score))
            .collect(),
    }
}

/// Where rows come from and where they go.
type Ends = (Box<dyn Source>, Box<dyn Sink>);

/// Both ends of a job, the output cut to what `mark` says is safe.
fn ends(job: &Job, labels: &[String], mark: Mark) -> Result<Ends, JobError> {
    let columns = score_columns(&job.fields, labels);
    if job.format == Format::Parquet {
        return columnar(job, &columns, mark);
    }
    let input: Box<dyn Read> = match &job.input {
        End::Standard => Box::new(io::stdin().lock()),
        End::File(path) => Box::new(File::open(path).map_err(|e| JobError::at(path, e))?),
    };
    let delimiter = match job.format {
        Format::Csv => b',',
        Format::Tsv => b'\t',
        _ => {
            let output = Appended::open(job.output.path(), mark.output)?;
            let score = job.fields.score.clone();
            return Ok((
                Box::new(lines::Lines::new(input, &job.fields)),
                Box::new(lines::Scored::new(output, score)),
            ));
        }
    };
    // The header is read first: a wrong name must not leave an output behind.
    let source = delimited::Cells::new(input, delimiter, &job.fields)?;
    let output = Appended::open(job.output.path(), mark.output)?;
    let sink = delimited::Scored::new(output, delimiter, source.header(), &columns)?;
    Ok((Box::new(source), Box::new(sink)))
}

#[cfg(feature = "parquet")]
fn columnar(job: &Job, columns: &[String], mark: Mark) -> Result<Ends, JobError> {
    let (Some(input), Some(output)) = (job.input.path(), job.output.path()) else {
        return Err(JobError::Unusable(
            "Parquet cannot be streamed; hint: name files for `--input` and `--output`".into(),
        ));
    };
    let source = parquet::Columns::open(input, &job.fields)?;
    let sink = parquet::Parts::open(output, source.schema(), columns, mark)?;
    Ok((Box::new(source), Box::new(sink)))
}

#[cfg(not(feature = "parquet"))]
fn columnar(_: &Job, _: &[String], _: Mark) -> Result<Ends, JobError> {
    Err(JobError::Unusable(
        "this build does not read Parquet; hint: build it with `--features parquet`".into(),
    ))
}

/// Makes pairs of texts. Rows that follow one another often have the same query; it is kept once,
/// and the encoder reads it once.
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

/// A score as text: the shortest that reads back as the same number.
fn number(score: f32) -> String {
    // Through a `Value` it would be an `f64`, and get digits that it does not have.
    serde_json::to_string(&score).unwrap_or_default()
}

fn too_short(rows: u64) -> JobError {
    JobError::Unusable(format!(
        "the input ends before the {rows} rows that were done; hint: `--overwrite` starts anew"
    ))
}

fn name_taken(name: &str) -> JobError {
    JobError::Unusable(format!(
        "the input has a column `{name}` already; hint: `--score-field` gives the new one another name"
    ))
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn a_score_has_the_digits_of_an_f32_and_no_more() {
        for (score, text) in [(0.1, "0.1"), (1.0, "1.0"), (-3.25, "-3.25"), (1e-9, "1e-9")] {
            assert_eq!(number(score), text);
            assert_eq!(number(score).parse::<f32>().unwrap(), score);
        }
        assert_eq!(number(0.831_831), "0.831831");
    }
}
