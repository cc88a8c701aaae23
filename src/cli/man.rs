//! `rerankd man`: writes the manual pages.

use std::path::PathBuf;

use clap::CommandFactory;

use super::{Cli, Exit};

/// Flags of `man`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory to write to; it is created if it does not exist.
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

/// Writes `rerankd.1`, and a page for each command.
pub fn run(args: &Args) -> Exit {
    let written = std::fs::create_dir_all(&args.directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), &args.directory));
    match written {
        Ok(()) => Exit::Success,
        Err(error) => Exit::Failure.with_error(format_args!(
            "cannot write manual pages to `{}`: {error}",
            args.directory.display()
        )),
    }
}
