//! Standard output, which somebody may have stopped reading.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

/// Writes `said` and the end of a line. That nobody reads on, as behind `head`, is no failure; a disk that is
/// full is, and ends the process with exit code 1.
pub fn line(said: impl Display) {
    text(format_args!("{said}\n"));
}

/// Writes `said` as it is; otherwise as [`line`].
pub fn text(said: impl Display) {
    let mut out = std::io::stdout().lock();
    match write!(out, "{said}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("error: standard output cannot be written: {error}");
            std::process::exit(1);
        }
        _ => (),
    }
}
