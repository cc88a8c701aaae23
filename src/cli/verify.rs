//! `rerankd verify`: compares scores with reference scores.

use std::path::PathBuf;

use super::loader::load_engine;
use super::settings::EngineFlags;
use super::{Exit, output};
use crate::config::{Config, Precision};
use rerankd_tools::verify::{Compared, DEFAULT_TOLERANCE, Golden, VerifyError};

/// Maximum number of deviating pairs that are listed.
const SHOWN: usize = 10;

/// Flags of `verify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Reference scores in JSON: `{"pairs": [[query, document], …], "logits": […]}`, with `scores`
    /// instead of or in addition to `logits`.
    #[arg(long, value_name = "FILE")]
    reference: PathBuf,

    /// Maximum absolute difference. Default: `tolerance` in the file, else 0.0001.
    #[arg(long, value_name = "NUMBER", value_parser = tolerance)]
    tolerance: Option<f64>,

    /// Precision of matrix products. Default: the setting `precision`.
    #[arg(id = "arithmetic", long = "precision", value_name = "PRECISION")]
    #[arg(value_parser = super::precision())]
    precision: Option<Precision>,

    #[command(flatten)]
    engine: EngineFlags,
}

fn tolerance(text: &str) -> Result<f64, &'static str> {
    let number = text
        .parse()
        .ok()
        .filter(|n: &f64| n.is_finite() && *n >= 0.0);
    number.ok_or("must be a number that is not negative, such as `0.0001`")
}

/// Compares scores, and prints the differences.
pub fn run(args: &Args) -> Exit {
    let config = match args.engine.resolve() {
        Ok(effective) => effective.one_model(),
        Err(exit) => return exit,
    };
    match verify(args, &config) {
        Ok(true) => Exit::Success,
        Ok(false) => Exit::Failure,
        Err(error) => {
            eprintln!("rerankd: {error}");
            match error {
                VerifyError::Load(_) => Exit::Model,
                VerifyError::Golden { .. } | VerifyError::Engine(_) => Exit::Failure,
            }
        }
    }
}

/// Whether every number is within the tolerance.
fn verify(args: &Args, config: &Config) -> Result<bool, VerifyError> {
    let golden = Golden::read(&args.reference)?;
    let engine = load_engine(config, args.precision)?;
    let tolerance = args.tolerance.or(golden.tolerance);
    let tolerance = tolerance.unwrap_or(DEFAULT_TOLERANCE);
    let mut good = true;
    for compared in golden.compare(&args.reference, &engine)? {
        good &= print(&compared, golden.pairs(), tolerance);
    }
    let info = engine.info();
    let verdict = if good { "verified" } else { "NOT verified" };
    output::line(format_args!(
        "{verdict}: `{}` in {}",
        info.id, info.precision
    ));
    Ok(good)
}

/// Prints the differences. Returns whether all are within the tolerance.
fn print(compared: &Compared, pairs: usize, tolerance: f64) -> bool {
    let mut beyond = 0;
    for off in compared.beyond(tolerance) {
        beyond += 1;
        if beyond <= SHOWN {
            output::line(format_args!(
                "  pair {}: {:.6}, expected {:.6}",
                off.pair, off.ours, off.golden
            ));
        }
    }
    if beyond > SHOWN {
        output::line(format_args!("  and {} more", beyond - SHOWN));
    }
    if let Some(worst) = compared.worst() {
        output::line(format_args!(
            "{} of {pairs} pairs: maximum difference {:.2e} (pair {}), tolerance {tolerance:.0e}",
            compared.what,
            worst.size(),
            worst.pair
        ));
    }
    beyond == 0
}
