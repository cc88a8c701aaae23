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
    let filter = EnvFilter::try_new(&config.filter)
        .map_err(|error| format!("log level `{}`: {error}", config.filter))?;
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

#[cfg(test)]
mod tests {
    use super::*;

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
