//! Log lines: text for people on a terminal, JSON for machines. Spans for a collector.
//!
//! Lines go to the standard error, so that commands keep the standard output for their results.

pub mod spans;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogConfig, LogFormat};

/// Installs the process-wide subscriber.
///
/// # Errors
/// A message for the operator when the filter cannot be read, or a subscriber is installed already.
pub fn init(config: &LogConfig) -> Result<(), String> {
    let filter = filter(&config.filter)?;
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal);
    let installed = match (config.format, terminal) {
        (LogFormat::Human, _) | (LogFormat::Auto, true) => {
            builder.with_target(false).finish().try_init()
        }
        (LogFormat::Json, _) | (LogFormat::Auto, false) => builder
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .finish()
            .try_init(),
    };
    installed.map_err(|error| format!("logging: {error}"))
}

/// What of the log is written. Warnings of the HTTP/2 library tell of single clients, which could fill a
/// disk with them; who wants them names `h2` himself.
fn filter(text: &str) -> Result<EnvFilter, String> {
    let own = EnvFilter::try_new(text);
    let all = match text.contains("h2") {
        true => own,
        false => own.and_then(|_| EnvFilter::try_new(format!("h2=error,{text}"))),
    };
    all.map_err(|error| format!("log level `{text}`: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_of_single_connections_are_left_out_unless_they_are_asked_for() {
        for (text, expected) in [
            ("info", "h2=error,info"),
            ("rerankd=debug", "rerankd=debug,h2=error"),
            ("info,h2=debug", "h2=debug,info"),
        ] {
            assert_eq!(filter(text).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn a_bad_filter_is_named() {
        let config = LogConfig {
            filter: "loud=very".to_owned(),
            ..LogConfig::default()
        };
        let message = init(&config).unwrap_err();
        assert!(message.starts_with("log level `loud=very`"), "{message}");
    }
}
