//! Keys and certificates that change while the server runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;

use crate::config::{ApiKeys, Value};
use crate::http::state::AppState;
use crate::http::tls::Tls;

/// What can be read again.
pub struct Reload {
    /// Holds the keys that are taken now.
    pub state: AppState,
    /// The certificate, where there is one.
    pub tls: Option<Arc<Tls>>,
}

impl Reload {
    /// Reads the files on every SIGHUP, and every `interval` unless that is zero.
    pub async fn run(self, mut hangup: Signal, interval: Duration) {
        let mut keys = self.state.config().http.api_keys.clone();
        loop {
            let asked = tokio::select! {
                caught = hangup.recv() => match caught {
                    Some(()) => true,
                    None => return,
                },
                () = tokio::time::sleep(interval), if !interval.is_zero() => false,
            };
            self.keys(&mut keys, asked);
            self.certificate(asked);
        }
    }

    fn keys(&self, current: &mut ApiKeys, asked: bool) {
        let Some(file) = current.file() else {
            return;
        };
        match ApiKeys::read(file) {
            Ok(new) => {
                if asked || new != *current {
                    tracing::info!(keys = new.keys().len(), "the keys were read again");
                }
                self.state.keys().replace(&new);
                *current = new;
            }
            Err(error) => tracing::error!(
                file = %file.display(),
                "the file of keys {error}; those of before are kept"
            ),
        }
    }

    fn certificate(&self, asked: bool) {
        let Some(tls) = &self.tls else {
            return;
        };
        match tls.reload() {
            Ok(changed) => {
                if asked || changed {
                    tracing::info!(changed, "the certificate was read again");
                }
            }
            Err(error) => {
                tracing::error!(%error, "the certificate stays as it was");
            }
        }
    }
}
