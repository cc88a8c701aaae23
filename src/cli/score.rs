//! `rerankd score`: a file of pairs to a file of scores.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::Exit;
use super::hub::load_config;
use super::progress::Progress;
use super::settings::EngineFlags;
use crate::config::{Config, Precision, Value};
use rerankd_core::Scale;
use rerankd_engine::bulk::Engine;
use rerankd_engine::load::LoadConfig;
use rerankd_tools::job::{self, End, Fields, Format, Job, JobError, Summary};

/// A part of a Parquet file costs more to make safe than a few lines.
const COMMIT_LINES: Duration = Duration::from_secs(1);
const COMMIT_PARTS: Duration = Duration::from_secs(15);

/// Flags of `score`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Rows with a query and a document each; `-` is the standard input.
    #[arg(long, value_name = "FILE", value_parser = end)]
    input: End,

    /// Where the rows go with their scores; `-` is the standard output. A file that an earlier run
    /// of the same command left unfinished is gone on with.
    #[arg(long, value_name = "FILE", value_parser = end)]
    output: End,

    /// How both are written. Default: what the name of a file ends with. Parquet is there in builds
    /// with the feature `parquet`.
    #[arg(long, value_name = "FORMAT")]
    #[arg(value_parser = PossibleValuesParser::new(Format::NAMES).try_map(|name| Format::named(&name).ok_or("no format")))]
    format: Option<Format>,

    /// Where rows without a score go, with the reason, as JSON lines. Default: the output's name
    /// with `.rejected.jsonl` behind it, or the standard error where the output is a stream.
    #[arg(long, value_name = "FILE")]
    rejects: Option<PathBuf>,

    /// Column of the first text.
    #[arg(long, value_name = "NAME", default_value = "query")]
    query_field: String,

    /// Column of the second text.
    #[arg(long, value_name = "NAME", default_value = "document")]
    document_field: String,

    /// Column of the score, which is added. A model of several labels adds one a label in CSV and
    /// Parquet, and a list in JSON.
    #[arg(long, value_name = "NAME", default_value = "score")]
    score_field: String,

    /// Write logits instead of scores.
    #[arg(long)]
    raw_scores: bool,

    /// Throw away an output that is there already.
    #[arg(long)]
    overwrite: bool,

    /// How often what is done is made safe: a killed run does again what came later. Default: 1s, for
    /// Parquet 15s.
    #[arg(long, value_name = "TIME", value_parser = time)]
    commit_every: Option<Duration>,

    /// Arithmetic of the matrix products. Default: the setting `precision`.
    #[arg(id = "arithmetic", long = "precision", value_name = "PRECISION")]
    #[arg(value_parser = super::precision())]
    precision: Option<Precision>,

    #[command(flatten)]
    engine: EngineFlags,
}

fn end(text: &str) -> Result<End, String> {
    match text {
        "" => Err("write the name of a file, or `-`".to_owned()),
        "-" => Ok(End::Standard),
        path => Ok(End::File(path.into())),
    }
}

fn time(text: &str) -> Result<Duration, String> {
    <Duration as Value>::parse(text)
}

/// Scores every row.
pub fn run(args: &Args) -> Exit {
    let config = match args.engine.resolve() {
        Ok(effective) => effective.config,
        Err(exit) => return exit,
    };
    let job = match args.job() {
        Ok(job) => job,
        Err(message) => {
            eprintln!("rerankd: {message}");
            return Exit::Usage;
        }
    };
    match score(&job, args.precision, &config) {
        Ok(summary) => report(&job, summary),
        Err(error) => {
            eprintln!("rerankd: {error}");
            if let Some(path) = job.output.path().filter(|path| path.exists()) {
                eprintln!("hint: the same command goes on with `{}`", path.display());
            }
            match error {
                JobError::Load(_) => Exit::Model,
                JobError::Unusable(_) | JobError::Engine(_) => Exit::Failure,
            }
        }
    }
}

impl Args {
    fn job(&self) -> Result<Job, String> {
        let by_name = |end: &End| end.path().and_then(Format::of);
        let format = self.format.or_else(|| by_name(&self.input));
        let format = format.or_else(|| by_name(&self.output)).ok_or(
            "neither the name of the input nor that of the output ends with a format; hint: `--format`",
        )?;
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
            scale: match self.raw_scores {
                true => Scale::Raw,
                false => Scale::Activated,
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
    let load = load_config(config)?;
    let engine = Engine::load(&LoadConfig {
        precision: precision.unwrap_or(load.precision),
        ..load
    })?;
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
        text = format!("{text}, after {} of an earlier run", summary.resumed);
    }
    if summary.rejected > 0 {
        text = format!("{text}, {} without a score", summary.rejected);
        if let Some(path) = &job.rejects {
            text = format!("{text}: see `{}`", path.display());
        }
    }
    eprintln!("{text}");
    // A wrong name, most likely; a program that started us should notice.
    match summary.scored == 0 && summary.rejected > 0 {
        true => Exit::Failure,
        false => Exit::Success,
    }
}
