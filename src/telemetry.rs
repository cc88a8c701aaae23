//! Logs, as text on a terminal and as JSON elsewhere, and traces.
//!
//! Log lines go to the standard error: the standard output is for the results of commands.

pub mod spans;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{LogConfig, LogFormat};

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one.
    #[error(
        "log level `{filter}`: {source}\n  hint: write a level, such as `info`, or directives, such as \
         `info,rerankd=debug`"
    )]
    Filter {
        /// The setting.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// The process has a subscriber already.
    #[error("logging: {0}")]
    Installed(#[from] TryInitError),
}

/// Installs the process-wide log subscriber.
///
/// # Errors
/// When the filter cannot be parsed, or a subscriber is installed already.
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    let filter = filter(&config.filter).map_err(|source| LogError::Filter {
        filter: config.filter.clone(),
        source,
    })?;
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal);
    let json = match config.format {
        LogFormat::Auto => !terminal,
        LogFormat::Human => false,
        LogFormat::Json => true,
    };
    if json {
        let builder = builder.json().flatten_event(true).with_span_list(false);
        builder.finish().try_init()?;
    } else {
        builder.with_target(false).finish().try_init()?;
    }
    Ok(())
}

/// The filter of the setting. It leaves out warnings of the `h2` crate unless a directive names that
/// target: they are about single clients, any of which could fill a disk with them.
fn filter(directives: &str) -> Result<EnvFilter, ParseError> {
    let own = EnvFilter::try_new(directives)?;
    let names_h2 = directives.split(',').any(|directive| {
        let target = directive
            .trim()
            .split(['=', '['])
            .next()
            .unwrap_or_default();
        target == "h2" || target.starts_with("h2::")
    });
    if names_h2 {
        return Ok(own);
    }
    EnvFilter::try_new(format!("h2=error,{directives}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_about_single_connections_are_logged_only_on_request() {
        for (directives, expected) in [
            ("info", "h2=error,info"),
            ("rerankd=debug", "rerankd=debug,h2=error"),
            ("info,h2=debug", "h2=debug,info"),
            ("warn,h2::proto=info", "h2::proto=info,warn"),
            // Other targets only have these letters in their names.
            ("info,auth2=warn", "auth2=warn,h2=error,info"),
        ] {
            assert_eq!(filter(directives).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn a_wrong_filter_is_named() {
        let config = LogConfig {
            filter: "loud=very".to_owned(),
            ..LogConfig::default()
        };
        let message = init(&config).unwrap_err().to_string();
        assert!(message.starts_with("log level `loud=very`"), "{message}");
    }
}
