//! What every request can reach.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use rerankd_core::{Limits, RerankError};
use rerankd_engine::service::Reranker;
use rerankd_wire::Served;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use utoipa::ToSchema;

use super::auth::Keys;
use super::budget::BodyBudget;
use super::models::Models;
use crate::config::Config;
use crate::metrics::ServerMetrics;
use crate::shutdown::{Lifecycle, Phase};

/// Where the outcome of a reload goes.
pub type ReloadAnswer = oneshot::Sender<Result<Reloaded, String>>;

/// What a reload of the models has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Reloaded {
    /// Names of the models that were loaded.
    pub loaded: Vec<String>,
    /// Names of those that are no longer served.
    pub removed: Vec<String>,
}

/// Reloads that may wait for each other.
const MAX_RELOADS: usize = 4;

/// What every request can reach. A cheap handle: clones share everything.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

struct Shared {
    config: Config,
    limits: Limits,
    metrics: Arc<ServerMetrics>,
    lifecycle: Lifecycle,
    started: SystemTime,
    /// Empty until the models have loaded: the listener answers `/live` before that.
    models: RwLock<Option<Arc<Models>>>,
    /// Asks for the list of models to be read again.
    reload: mpsc::Sender<ReloadAnswer>,
    reloads: Mutex<Option<mpsc::Receiver<ReloadAnswer>>>,
    /// Requests that were accepted and are not with their client yet.
    in_flight: AtomicUsize,
    keys: Keys,
    bodies: Arc<BodyBudget>,
}

impl AppState {
    /// The state of a server that is starting.
    pub fn new(config: Config, metrics: Arc<ServerMetrics>) -> Self {
        let limits = Limits {
            max_documents: config.http.max_documents,
        };
        let keys = Keys::default();
        keys.replace(&config.http.api_keys);
        let (reload, reloads) = mpsc::channel(MAX_RELOADS);
        Self(Arc::new(Shared {
            bodies: BodyBudget::new(config.http.max_bodies_bytes),
            keys,
            config,
            limits,
            metrics,
            lifecycle: Lifecycle::default(),
            started: SystemTime::now(),
            models: RwLock::default(),
            reload,
            reloads: Mutex::new(Some(reloads)),
            in_flight: AtomicUsize::new(0),
        }))
    }

    /// Hands over the only model, as [`AppState::install_models`].
    pub fn install(&self, reranker: Arc<Reranker>) {
        self.install_models(Models::one(reranker));
    }

    /// Replaces the models that are served. With the first ones, the server is ready, unless it was told to stop.
    pub fn install_models(&self, models: Models) {
        let slot = &self.0.models;
        let mut current = slot.write().unwrap_or_else(PoisonError::into_inner);
        let before = current.replace(Arc::new(models));
        drop(current);
        // Freeing them may take long, so not under the lock.
        drop(before);
        self.0.lifecycle.advance(Phase::Ready);
    }

    /// The models, once they are loaded.
    pub fn models(&self) -> Option<Arc<Models>> {
        let slot = &self.0.models;
        slot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The default model, once it is loaded.
    pub fn reranker(&self) -> Option<Arc<Reranker>> {
        let models = self.models()?;
        Some(models.at(models.default()).clone())
    }

    /// The models, if requests are being served now.
    ///
    /// # Errors
    /// [`RerankError::not_ready`] before, [`RerankError::draining`] after.
    pub fn serving(&self) -> Result<Arc<Models>, RerankError> {
        match (self.0.lifecycle.phase(), self.models()) {
            (Phase::Ready | Phase::Grace, Some(models)) => Ok(models),
            (Phase::Starting | Phase::Ready, _) => Err(RerankError::not_ready()),
            (Phase::Grace | Phase::Draining, _) => Err(RerankError::draining()),
        }
    }

    /// What requests are read against while `models` answer them.
    pub fn served<'a>(&self, models: &'a Models) -> Served<'a> {
        Served {
            models: models.catalog(),
            failed: models.failed_names(),
            chosen: models.default(),
            strict_model_name: self.0.config.http.strict_model_name,
            return_documents: self.0.config.http.return_documents,
            limits: self.0.limits,
        }
    }

    /// The model that a client calls `asked`, or the default one.
    ///
    /// # Errors
    /// While the models load, if this one failed to, and where names are strict and this one is not known.
    pub fn model(&self, asked: Option<&str>) -> Result<Arc<Reranker>, RerankError> {
        let models = self.models().ok_or_else(RerankError::not_ready)?;
        let chosen = self.served(&models).select(asked)?.chosen;
        Ok(models.at(chosen).clone())
    }

    /// Reads the list of models again.
    ///
    /// # Errors
    /// Why nothing has changed.
    pub async fn reload(&self) -> Result<Reloaded, String> {
        let (answer, answered) = oneshot::channel();
        let busy = "other reloads are under way; retry when they have ended";
        let asked = self.0.reload.try_send(answer);
        asked.map_err(|_| busy.to_owned())?;
        let stopped = || "the server is stopping".to_owned();
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// The reloads that are asked for, for the one who does them.
    ///
    /// # Panics
    /// When somebody does them already.
    pub fn reloads(&self) -> mpsc::Receiver<ReloadAnswer> {
        let mut reloads = self
            .0
            .reloads
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        reloads.take().expect("reloads are done in one place")
    }

    /// When the server started.
    pub fn started(&self) -> SystemTime {
        self.0.started
    }

    /// The keys that clients may show.
    pub fn keys(&self) -> &Keys {
        &self.0.keys
    }

    /// Where in its life the server is.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.0.lifecycle
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// The most a single request may ask for.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// What the server measures.
    pub fn metrics(&self) -> &Arc<ServerMetrics> {
        &self.0.metrics
    }

    /// What the bodies of all requests may take together.
    pub fn bodies(&self) -> &Arc<BodyBudget> {
        &self.0.bodies
    }

    /// Requests that were accepted, which is once their body is there, and whose answer has not left
    /// to its last byte.
    pub fn in_flight(&self) -> usize {
        self.0.in_flight.load(Ordering::Relaxed)
    }

    /// A request of which the head has arrived.
    pub(super) fn enter(&self) -> InFlight {
        InFlight {
            state: self.clone(),
            accepted: AtomicBool::new(false),
        }
    }
}

/// A request, travelling with it and then with its answer. It is in flight from when it was accepted
/// until this is dropped.
pub(super) struct InFlight {
    state: AppState,
    accepted: AtomicBool,
}

impl InFlight {
    /// All of the request is there: stopping now would lose it.
    pub(super) fn accept(&self) {
        if !self.accepted.swap(true, Ordering::Relaxed) {
            self.state.0.in_flight.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if *self.accepted.get_mut() {
            self.state.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
