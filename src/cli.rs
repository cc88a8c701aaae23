//! The command line. Only this module, its children and `main.rs` read flags and the environment.

pub mod bench;
pub mod completions;
pub mod config;
mod download;
pub mod eval;
pub mod export;
pub mod healthcheck;
mod hub;
mod loader;
pub mod man;
pub mod models;
mod output;
pub mod progress;
pub mod pull;
pub mod score;
pub mod serve;
pub mod settings;
mod systemd;
pub mod verify;

use std::fmt::Display;
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand};
use rerankd_engine::config::Precision;
use strum::VariantNames;

const EXIT_CODES: &str = "\
Exit codes:
  0    stopped cleanly, every accepted request was answered
  1    runtime failure, or `healthcheck` found the server not ready
  2    wrong usage or settings; nothing was started
  3    the model or ONNX Runtime cannot be loaded
  4    the drain timeout passed with requests unanswered
  130  stopped by a second signal";

/// Serves sentence-transformers cross-encoders over HTTP.
#[derive(Debug, Parser)]
#[command(name = "rerankd", version, about, after_help = EXIT_CODES)]
#[command(arg_required_else_help = true, subcommand_required = true)]
pub struct Cli {
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load a model and serve requests until a signal stops it.
    Serve(settings::Flags),
    /// Check whether a running server is ready: exit code 0 if it is, 1 otherwise.
    Healthcheck(settings::Flags),
    /// Print the settings that result from file, environment and flags, and the source of each.
    Config(settings::Flags),
    /// Measure latency and throughput of a server, or of the engine in this process.
    Bench(Box<bench::Args>),
    /// Evaluate the quality of a model on labeled data.
    Eval(Box<eval::Args>),
    /// Score the pairs in a file of any size.
    Score(Box<score::Args>),
    /// Download a model from the hub into the cache.
    Pull(pull::Args),
    /// List or remove models in the cache.
    Models(models::Args),
    /// Export a model to an ONNX file for other programs.
    Export(export::Args),
    /// Compare scores with reference scores: exit code 0 if all are within the tolerance, 1 otherwise.
    Verify(verify::Args),
    /// Print the completion script of a shell.
    Completions(completions::Args),
    /// Write the manual pages into a directory.
    Man(man::Args),
}

/// Parses the name of a precision.
fn precision() -> impl TypedValueParser<Value = Precision> {
    PossibleValuesParser::new(Precision::VARIANTS).try_map(|name| name.parse::<Precision>())
}

/// The exit code of the process. The help text documents each code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Success.
    Success,
    /// A runtime failure.
    Failure,
    /// Wrong usage or settings.
    Usage,
    /// The model or its runtime cannot be loaded.
    Model,
    /// The drain timeout passed with requests unanswered.
    DrainTimeout,
    /// Stopped by a second signal.
    Killed,
}

impl Exit {
    /// This exit code, after `error` is printed to the standard error.
    fn with_error(self, error: impl Display) -> Self {
        eprintln!("rerankd: {error}");
        self
    }
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
