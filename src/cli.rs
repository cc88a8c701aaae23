//! The command line. Only this module, its children and `main.rs` know flags and the environment.

pub mod bench;
pub mod config;
pub mod eval;
pub mod export;
pub mod healthcheck;
mod hub;
pub mod models;
mod output;
pub mod progress;
pub mod pull;
pub mod score;
pub mod serve;
pub mod settings;
pub mod verify;

use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand};
use rerankd_engine::config::Precision;
use strum::VariantNames;

const EXIT_CODES: &str = "\
Exit codes:
  0    stopped cleanly, every accepted request was answered
  1    failed while running, or an unhealthy `healthcheck`
  2    wrong usage or settings; nothing was started
  3    the model or ONNX Runtime cannot be loaded
  4    the drain timeout passed before every request was answered
  130  stopped at once by a second signal";

/// Serves sentence-transformers cross-encoders over HTTP.
#[derive(Debug, Parser)]
#[command(name = "rerankd", version, about, after_help = EXIT_CODES)]
#[command(arg_required_else_help = true, subcommand_required = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the binary can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load a model and answer requests until told to stop.
    Serve(settings::Flags),
    /// Ask a running server whether it is ready: exit code 0 when it is, 1 when not.
    Healthcheck(settings::Flags),
    /// Print what file, environment and flags come to, and where each value is from.
    Config(settings::Flags),
    /// Measure a server, or the engine in this process: latency, throughput, documents in time.
    Bench(Box<bench::Args>),
    /// Say how good a model is, on data with known answers.
    Eval(Box<eval::Args>),
    /// Score a file of pairs, of any size.
    Score(Box<score::Args>),
    /// Download a model of a hub into the cache.
    Pull(pull::Args),
    /// List the models in the cache, or remove some.
    Models(models::Args),
    /// Write a model as an ONNX file that any program with ONNX Runtime can load.
    Export(export::Args),
    /// Compare scores with golden ones: exit code 0 when all are within the tolerance, 1 when not.
    Verify(verify::Args),
}

/// Reads the name of a precision.
fn precision() -> impl TypedValueParser<Value = Precision> {
    PossibleValuesParser::new(Precision::VARIANTS).try_map(|name| name.parse::<Precision>())
}

/// How the process ends. The help text documents each code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything went well.
    Success,
    /// Something failed at run time.
    Failure,
    /// The settings are wrong.
    Usage,
    /// The model or its runtime cannot be loaded.
    Model,
    /// Requests were left unanswered.
    DrainTimeout,
    /// A second signal.
    Killed,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Success => 0,
            Exit::Failure => 1,
            Exit::Usage => 2,
            Exit::Model => 3,
            Exit::DrainTimeout => 4,
            Exit::Killed => 130,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
