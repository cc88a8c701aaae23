//! The `rerankd` binary: parse, then dispatch.

use std::process::ExitCode;

use clap::Parser;
use rerankd::cli::{
    Cli, Command, bench, completions, config, eval, export, healthcheck, man, models, pull, score,
    serve, verify,
};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(flags) => serve::run(&flags).into(),
        Command::Healthcheck(flags) => healthcheck::run(&flags).into(),
        Command::Config(flags) => config::run(&flags).into(),
        Command::Bench(args) => bench::run(&args).into(),
        Command::Eval(args) => eval::run(&args).into(),
        Command::Score(args) => score::run(&args).into(),
        Command::Pull(args) => pull::run(&args).into(),
        Command::Models(args) => models::run(&args).into(),
        Command::Export(args) => export::run(&args).into(),
        Command::Verify(args) => verify::run(&args).into(),
        Command::Completions(args) => completions::run(&args).into(),
        Command::Man(args) => man::run(&args).into(),
    }
}
