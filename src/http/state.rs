//! What every request can reach.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use rerankd_core::{Limits, RerankError};
use rerankd_engine::service::Reranker;
use rerankd_wire::Served;

use super::auth::Keys;
use super::budget::BodyBudget;
use crate::config::Config;
use crate::metrics::ServerMetrics;
use crate::shutdown::{Lifecycle, Phase};

/// What every request can reach. A cheap handle: clones share everything.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

struct Shared {
    config: Config,
    limits: Limits,
    metrics: Arc<ServerMetrics>,
    lifecycle: Lifecycle,
    started: SystemTime,
    /// Empty until the model has loaded: the listener answers `/live` before that.
    reranker: OnceLock<Arc<Reranker>>,
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
        Self(Arc::new(Shared {
            bodies: BodyBudget::new(config.http.max_bodies_bytes),
            keys,
            config,
            limits,
            metrics,
            lifecycle: Lifecycle::default(),
            started: SystemTime::now(),
            reranker: OnceLock::new(),
            in_flight: AtomicUsize::new(0),
        }))
    }

    /// Hands over the loaded model; from here on the server is ready, unless it was told to stop.
    ///
    /// # Panics
    /// When there is a model already.
    pub fn install(&self, reranker: Arc<Reranker>) {
        assert!(
            self.0.reranker.set(reranker).is_ok(),
            "the model is installed once"
        );
        self.0.lifecycle.advance(Phase::Ready);
    }

    /// The model, once it is loaded.
    pub fn reranker(&self) -> Option<&Arc<Reranker>> {
        self.0.reranker.get()
    }

    /// The model, if requests are being served now.
    ///
    /// # Errors
    /// [`RerankError::not_ready`] before, [`RerankError::draining`] after.
    pub fn serving(&self) -> Result<Arc<Reranker>, RerankError> {
        match (self.0.lifecycle.phase(), self.reranker()) {
            (Phase::Ready | Phase::Grace, Some(reranker)) => Ok(reranker.clone()),
            (Phase::Starting | Phase::Ready, _) => Err(RerankError::not_ready()),
            (Phase::Grace | Phase::Draining, _) => Err(RerankError::draining()),
        }
    }

    /// What requests are read against while `reranker` answers them.
    pub fn served<'a>(&self, reranker: &'a Reranker) -> Served<'a> {
        let info = reranker.info();
        Served {
            model: &info.id,
            labels: &info.labels,
            strict_model_name: self.0.config.http.strict_model_name,
            return_documents: self.0.config.http.return_documents,
            limits: self.0.limits,
        }
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
