//! The `rerankd` binary: parse, then dispatch.

use std::process::ExitCode;

use clap::Parser;
use rerankd::cli::{Cli, Command, healthcheck, serve};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(*args).into(),
        Command::Healthcheck(args) => healthcheck::run(&args).into(),
    }
}
