//! Reloads API keys, certificates and models while the server runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;

use super::models::ModelManager;
use crate::config::{ApiKeys, Value};
use crate::http::state::{AppState, Reloaded};
use crate::http::tls::Tls;
use crate::shutdown::Phase;

/// What is reloaded.
#[derive(Clone)]
pub struct Reload {
    /// Holds the valid API keys.
    pub state: AppState,
    /// The certificate, if there is one.
    pub tls: Option<Arc<Tls>>,
    /// The models.
    pub models: Arc<ModelManager>,
}

impl Reload {
    /// Reads the list of models again whenever that is asked for on the admin listener, and answers.
    pub async fn on_request(self) {
        let mut asked = self.state.reloads();
        while let Some(answer) = asked.recv().await {
            // Who asked may have left.
            let _ = answer.send(self.reload_models().await);
        }
    }

    async fn reload_models(&self) -> Result<Reloaded, String> {
        // The first models are still being loaded.
        if self.state.models().is_none() {
            return Err("the models are still loading; retry when the server is ready".to_owned());
        }
        let models = self.models.clone();
        let reloaded = tokio::task::spawn_blocking(move || models.reload()).await;
        let reloaded = reloaded.unwrap_or_else(|error| Err(error.to_string()));
        if let Err(error) = &reloaded {
            tracing::error!(error, "keeping the models that are served");
        }
        reloaded
    }

    /// Reads the files on every SIGHUP, which also reloads the models, and every `interval` unless that is zero.
    pub async fn run(self, mut hangup: Signal, interval: Duration) {
        let mut keys = self.state.config().http.api_keys.clone();
        loop {
            let signaled = tokio::select! {
                caught = hangup.recv() => match caught {
                    Some(()) => true,
                    None => return,
                },
                () = tokio::time::sleep(interval), if !interval.is_zero() => false,
            };
            let reload = self.clone();
            // Files may lie on a slow disk, or on one that is not there any more.
            let reading = tokio::task::spawn_blocking(move || {
                reload.certificate(signaled);
                reload.keys(keys, signaled)
            });
            keys = match reading.await {
                Ok(keys) => keys,
                Err(error) => {
                    tracing::error!(%error, "reloading has stopped");
                    return;
                }
            };
            if signaled {
                // In a task of its own: loading takes long, and keys may change meanwhile.
                let this = self.clone();
                tokio::spawn(async move {
                    // The list may have changed since a server that still loads its first models has read it.
                    this.state.lifecycle().reached(Phase::Ready).await;
                    this.reload_models().await
                });
            }
        }
    }

    /// The keys that are valid from now on: those of the file, or `current` if it cannot be read.
    fn keys(&self, current: ApiKeys, signaled: bool) -> ApiKeys {
        let Some(file) = current.file() else {
            return current;
        };
        match ApiKeys::read(file) {
            Ok(new) => {
                self.state.keys().replace(&new);
                if signaled || new != current {
                    tracing::info!(keys = new.keys().len(), "API keys reloaded");
                }
                new
            }
            Err(error) => {
                let error = format!("the file {error}");
                tracing::error!(file = %file.display(), error, "keeping the previous API keys");
                current
            }
        }
    }

    fn certificate(&self, signaled: bool) {
        let Some(tls) = &self.tls else {
            return;
        };
        match tls.reload() {
            Ok(changed) => {
                if signaled || changed {
                    tracing::info!(changed, "certificate reloaded");
                }
            }
            Err(error) => tracing::error!(%error, "keeping the previous certificate"),
        }
    }
}
