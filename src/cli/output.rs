//! Writes to the standard output.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

/// Writes `content` and a line break. A closed pipe, as by `head`, is not a failure. Any other error, such as
/// a full disk, ends the process with exit code 1.
pub fn line(content: impl Display) {
    text(format_args!("{content}\n"));
}

/// Writes `content`; otherwise as [`line`].
pub fn text(content: impl Display) {
    let mut out = std::io::stdout().lock();
    match write!(out, "{content}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("error: cannot write to the standard output: {error}");
            std::process::exit(1);
        }
        _ => (),
    }
}
