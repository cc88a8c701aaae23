//! The command line. Only this module, its children and `main.rs` know flags and the environment.

pub mod healthcheck;
pub mod serve;

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

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
    Serve(Box<serve::Args>),
    /// Ask a running server whether it is ready: exit code 0 when it is, 1 when not.
    Healthcheck(healthcheck::Args),
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

/// Reads `500ms`, `10s`, `2m`, `1h`, or plain seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit.trim() {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("write it as `500ms`, `10s`, `2m`, `1h`, or plain seconds".to_owned()),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| "write it as a number and a unit, such as `500ms` or `10s`".to_owned())?;
    // Beyond a year, timers of the runtime stop being exact, and nobody means it.
    let seconds = number * seconds;
    if seconds > 31_536_000.0 {
        return Err("the longest is one year".to_owned());
    }
    // Through whole microseconds, so that `0.1s` is exactly 100 ms.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(Duration::from_micros((seconds * 1e6).round() as u64))
}

/// Like [`duration`], but not zero.
fn timeout(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it has to be longer than zero".to_owned()),
        time => Ok(time),
    }
}

/// Reads `HOST:PORT`. Of the addresses of a name, an IPv4 one is preferred.
fn address(text: &str) -> Result<SocketAddr, String> {
    let hint = "write it as `HOST:PORT`, such as `127.0.0.1:8080`, `0.0.0.0:8080` or `[::]:8080`";
    let addresses: Vec<SocketAddr> = text
        .to_socket_addrs()
        .map_err(|error| format!("{error}; {hint}"))?
        .collect();
    addresses
        .iter()
        .find(|address| address.is_ipv4())
        .or(addresses.first())
        .copied()
        .ok_or_else(|| format!("the name has no address; {hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_take_units_or_plain_seconds() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("10", 10_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("0", 0),
            ("0.1s", 100),
            (" 1.5 s ", 1500),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)));
        }
        for text in ["", "s", "10 days", "-1s", "1e9", "1.2.3", "99999h", "ms10"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(timeout("0").is_err());
    }

    #[test]
    fn addresses_need_a_port() {
        assert_eq!(
            address("[::]:1").unwrap(),
            "[::]:1".parse::<SocketAddr>().unwrap()
        );
        assert!(address("localhost:80").unwrap().is_ipv4());
        for text in ["127.0.0.1", "8080", ":", "127.0.0.1:99999"] {
            let message = address(text).unwrap_err();
            assert!(message.contains("HOST:PORT"), "{text}: {message}");
        }
    }
}
