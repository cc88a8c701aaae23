//! `rerankd score`: scores the pairs in a file.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::Exit;
use super::loader::load_engine;
use super::progress::Progress;
use super::settings::EngineFlags;
use crate::config::{Config, Precision, Value};
use rerankd_core::Scale;
use rerankd_tools::job::{self, End, Fields, Format, Job, JobError, Summary};

/// Default intervals between commits. A row group of a Parquet file costs more than a few lines.
const COMMIT_LINES: Duration = Duration::from_secs(1);
const COMMIT_PARTS: Duration = Duration::from_secs(15);

/// Flags of `score`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Input with a query and a document in each row; `-` is the standard input.
    #[arg(long, value_name = "FILE", value_parser = end)]
    input: End,

    /// Output of the rows with their scores; `-` is the standard output. If an earlier run of the same
    /// command was interrupted, it is resumed.
    #[arg(long, value_name = "FILE", value_parser = end)]
    output: End,

    /// Format of input and output. Default: by file extension. Parquet needs a build with the feature
    /// `parquet`.
    #[arg(long, value_name = "FORMAT")]
    #[arg(value_parser = PossibleValuesParser::new(Format::NAMES).try_map(|name| Format::named(&name).ok_or("no format")))]
    format: Option<Format>,

    /// Output of rows that could not be scored, with the reason, as JSON lines. Default: the name of the
    /// output followed by `.rejected.jsonl`, or the standard error if the output is a stream.
    #[arg(long, value_name = "FILE")]
    rejects: Option<PathBuf>,

    /// Column of the query.
    #[arg(long, value_name = "NAME", default_value = "query")]
    query_field: String,

    /// Column of the document.
    #[arg(long, value_name = "NAME", default_value = "document")]
    document_field: String,

    /// Column to add for the score. A model with several labels adds one column per label in CSV and
    /// Parquet, and a list in JSON.
    #[arg(long, value_name = "NAME", default_value = "score")]
    score_field: String,

    /// Write logits instead of scores.
    #[arg(long)]
    raw_scores: bool,

    /// Overwrite an existing output.
    #[arg(long)]
    overwrite: bool,

    /// How often results are committed to disk. An interrupted run repeats what came after the last
    /// commit. Default: 1s; 15s for Parquet.
    #[arg(long, value_name = "TIME", value_parser = <Duration as Value>::parse)]
    commit_every: Option<Duration>,

    /// Precision of matrix products. Default: the setting `precision`.
    #[arg(id = "arithmetic", long = "precision", value_name = "PRECISION")]
    #[arg(value_parser = super::precision())]
    precision: Option<Precision>,

    #[command(flatten)]
    engine: EngineFlags,
}

fn end(text: &str) -> Result<End, &'static str> {
    match text {
        "" => Err("must be a file name, or `-`"),
        "-" => Ok(End::Standard),
        path => Ok(End::File(path.into())),
    }
}

/// Neither input nor output has a known extension.
#[derive(Debug, thiserror::Error)]
#[error("unknown format of input and output; hint: `--format FORMAT` sets it")]
struct UnknownFormat;

/// Scores every row.
pub fn run(args: &Args) -> Exit {
    let config = match args.engine.resolve() {
        Ok(effective) => effective.one_model(),
        Err(exit) => return exit,
    };
    let job = match args.job() {
        Ok(job) => job,
        Err(error) => return Exit::Usage.with_error(error),
    };
    match score(&job, args.precision, &config) {
        Ok(summary) => report(&job, summary),
        Err(error) => {
            eprintln!("rerankd: {error}");
            if let Some(path) = job.output.path().filter(|path| path.exists()) {
                eprintln!(
                    "hint: run the same command again to resume `{}`",
                    path.display()
                );
            }
            match error {
                JobError::Load(_) => Exit::Model,
                JobError::Setup(_) | JobError::File { .. } | JobError::Engine(_) => Exit::Failure,
            }
        }
    }
}

impl Args {
    fn job(&self) -> Result<Job, UnknownFormat> {
        let by_name = |end: &End| end.path().and_then(Format::of);
        let format = self.format.or_else(|| by_name(&self.input));
        let format = format.or_else(|| by_name(&self.output));
        let format = format.ok_or(UnknownFormat)?;
        let mut beside = self.output.path().map(|path| path.as_os_str().to_owned());
        if let Some(name) = &mut beside {
            name.push(".rejected.jsonl");
        }
        Ok(Job {
            input: self.input.clone(),
            output: self.output.clone(),
            rejects: self.rejects.clone().or(beside.map(PathBuf::from)),
            format,
            fields: Fields {
                query: self.query_field.clone(),
                document: self.document_field.clone(),
                score: self.score_field.clone(),
            },
            scale: if self.raw_scores {
                Scale::Raw
            } else {
                Scale::Activated
            },
            overwrite: self.overwrite,
            commit_every: self.commit_every.unwrap_or(match format {
                Format::Parquet => COMMIT_PARTS,
                _ => COMMIT_LINES,
            }),
        })
    }
}

fn score(job: &Job, precision: Option<Precision>, config: &Config) -> Result<Summary, JobError> {
    let engine = load_engine(config, precision)?;
    let bytes = job.input.path().and_then(|path| path.metadata().ok());
    let mut progress = Progress::of_rows(bytes.map(|there| there.len()));
    let summary = job::run(job, &engine, |done| {
        progress.at(done.rows, done.input_bytes)
    })?;
    progress.end();
    Ok(summary)
}

fn report(job: &Job, summary: Summary) -> Exit {
    let mut text = format!("{} rows scored", summary.scored);
    if summary.resumed > 0 {
        text = format!(
            "{text}, in addition to {} by an earlier run",
            summary.resumed
        );
    }
    if summary.rejected > 0 {
        text = format!("{text}, {} rejected", summary.rejected);
        if let Some(path) = &job.rejects {
            text = format!("{text}: see `{}`", path.display());
        }
    }
    eprintln!("{text}");
    // Most likely a wrong column name, which a calling program should notice.
    if summary.scored == 0 && summary.rejected > 0 {
        Exit::Failure
    } else {
        Exit::Success
    }
}
