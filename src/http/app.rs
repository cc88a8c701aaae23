//! The routes, the layers around them, and what they share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, Response, Version, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::routing::{get, post};
use http_body::Body;
use tower_http::CompressionLevel;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::Predicate;
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::auth::Keys;
use super::budget::BodyBudget;
use super::dialect::Dialect;
use super::error::Failure;
use super::rerank::{detecting, only};
use super::{admin, auth, infer, observe, openapi, page, predict, score, tokenize};
use crate::config::Config;
use crate::metrics::ServerMetrics;
use crate::shutdown::{Lifecycle, Phase};
use rerankd_core::{Limits, RerankError};
use rerankd_engine::service::Reranker;

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

    /// Refuses the name of another model than `reranker`, where the server is strict about it.
    ///
    /// # Errors
    /// [`RerankError::unknown_model`].
    pub fn check_model(&self, reranker: &Reranker, asked: Option<&str>) -> Result<(), RerankError> {
        let served = &reranker.info().id;
        match asked {
            Some(asked) if self.0.config.http.strict_model_name && asked != served => {
                Err(RerankError::unknown_model(asked, served))
            }
            _ => Ok(()),
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

    /// What the server was told.
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

/// Every route, and around them the layers in their order.
pub fn build(state: AppState) -> Router {
    count_from_zero(state.metrics());
    let routes = requests().merge(probes()).merge(openapi::routes());
    let routes = match state.config().http.page {
        true => routes.merge(page::routes()),
        false => routes,
    };
    let routes = match state.config().http.admin_listen {
        None => routes.merge(measured()),
        Some(_) => routes,
    };
    layers(routes, &state).with_state(state)
}

/// What is answered at `admin_listen`: for machines that watch this one, apart from its clients.
pub fn build_admin(state: AppState) -> Router {
    let routes = probes().merge(measured());
    let routes = routes
        .method_not_allowed_fallback(async || Failure::MethodNotAllowed)
        .fallback(async || Failure::NotFound)
        .layer(CatchPanicLayer::custom(Failure::from_panic));
    observed(routes, &state).with_state(state)
}

fn measured() -> Router<AppState> {
    Router::new().route("/metrics", get(admin::metrics))
}

fn probes() -> Router<AppState> {
    Router::new()
        .route("/live", get(admin::live))
        .route("/ready", get(admin::ready))
        .route("/health", get(admin::ready))
        .route("/infinity/health", get(admin::ready))
        .route("/vllm/health", get(admin::ready))
        .route("/ping", get(admin::ready))
        .route("/.well-known/live", get(admin::silent_live))
        .route("/.well-known/ready", get(admin::silent_ready))
        .route("/v2/health/live", get(admin::live))
        .route("/v2/health/ready", get(admin::ready))
}

/// The routes that score texts. They are counted from the start, so that rates see the first failure.
const SCORING: [&str; 21] = [
    "/",
    "/infinity/rerank",
    "/invocations",
    "/predict",
    "/ranking",
    "/rerank",
    "/reranking",
    "/score",
    "/v1/ranking",
    "/v1/rerank",
    "/v1/reranking",
    "/v1/retrieval/nvidia/reranking",
    "/v1/score",
    "/v2/models/{model}/infer",
    "/v2/rerank",
    "/vllm/rerank",
    "/vllm/score",
    "/vllm/v1/rerank",
    "/vllm/v1/score",
    "/vllm/v2/rerank",
    "/voyage/v1/rerank",
];

/// What they can answer. 422 and 424 are for clients of Text Embeddings Inference.
const STATUSES: [&str; 16] = [
    "200", "400", "401", "403", "404", "405", "408", "413", "415", "422", "424", "429", "499",
    "500", "503", "504",
];

/// Shows what can be counted before it happens.
fn count_from_zero(metrics: &ServerMetrics) {
    for route in SCORING {
        for status in STATUSES {
            metrics.edge.requests.with_label_values(&[route, status]);
        }
    }
    for status in ["200", "503"] {
        metrics.edge.requests.with_label_values(&["/ready", status]);
    }
}

fn requests() -> Router<AppState> {
    Router::new()
        .route("/rerank", detecting(Dialect::Native))
        .route("/v1/rerank", detecting(Dialect::CohereV1))
        .route("/v2/rerank", detecting(Dialect::CohereV2))
        .route("/reranking", detecting(Dialect::LlamaCpp))
        .route("/v1/reranking", detecting(Dialect::LlamaCpp))
        .route("/infinity/rerank", only(Dialect::Infinity))
        .route("/vllm/rerank", only(Dialect::Vllm))
        .route("/vllm/v1/rerank", only(Dialect::Vllm))
        .route("/vllm/v2/rerank", only(Dialect::Vllm))
        .route("/voyage/v1/rerank", only(Dialect::Voyage))
        .route("/ranking", only(Dialect::Nvidia))
        .route("/v1/ranking", only(Dialect::Nvidia))
        .route("/v1/retrieval/nvidia/reranking", only(Dialect::Nvidia))
        .route("/predict", post(predict::predict))
        .route("/", get(page::root).post(predict::rerank_or_predict))
        .route("/invocations", post(predict::rerank_or_predict))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/decode", post(tokenize::decode))
        .route("/score", post(score::score))
        .route("/v1/score", post(score::score))
        .route("/vllm/score", post(score::score))
        .route("/vllm/v1/score", post(score::score))
        .route("/models", get(admin::models))
        .route("/v1/models", get(admin::models))
        .route("/infinity/models", get(admin::models))
        .route("/vllm/v1/models", get(admin::models))
        .route("/v2", get(infer::server))
        .route("/v2/models/{model}", get(infer::model))
        .route("/v2/models/{model}/ready", get(infer::model_ready))
        .route("/v2/models/{model}/infer", post(infer::infer))
        .route("/info", get(admin::info))
        .route("/meta", get(admin::info))
}

/// Innermost first: a panic becomes an answer, a large answer becomes a smaller one, who may not ask
/// comes no further, and pages that may ask are told so.
fn layers(routes: Router<AppState>, state: &AppState) -> Router<AppState> {
    let compression = CompressionLayer::new()
        .quality(CompressionLevel::Fastest)
        .compress_when(Above(state.config().http.compress_above));
    let routes = routes
        .method_not_allowed_fallback(async || Failure::MethodNotAllowed)
        .fallback(async || Failure::NotFound)
        .layer(CatchPanicLayer::custom(Failure::from_panic))
        .layer(compression)
        .layer(from_fn_with_state(state.clone(), auth::check));
    let routes = match &*state.config().http.cors_origin {
        [] => routes,
        origins => routes.layer(cors(origins)),
    };
    observed(routes, state)
}

/// A stopping server says so, and what is logged and counted is what the client reads.
fn observed(routes: Router<AppState>, state: &AppState) -> Router<AppState> {
    routes
        .layer(from_fn_with_state(state.clone(), close_when_stopping))
        .layer(from_fn_with_state(state.clone(), observe::observe))
}

/// Lets pages of `origins` read what they asked for.
fn cors(origins: &[String]) -> CorsLayer {
    let named = origins.iter().filter_map(|origin| origin.parse().ok());
    let origins = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(named),
    };
    let name = HeaderName::from_static;
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            name("x-api-key"),
            name("x-request-id"),
            name("x-request-timeout-ms"),
            name("traceparent"),
        ])
        .expose_headers([
            header::RETRY_AFTER,
            name("x-request-id"),
            name("server-timing"),
            name("traceparent"),
        ])
}

/// Compresses what has at least so many bytes.
#[derive(Clone, Copy)]
struct Above(usize);

impl Predicate for Above {
    fn should_compress<B: Body>(&self, response: &Response<B>) -> bool {
        let size = response.body().size_hint().exact();
        size.is_some_and(|size| size >= self.0 as u64)
    }
}

/// Asks clients of a stopping server to connect anew, which leads them to another instance.
async fn close_when_stopping(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> axum::response::Response {
    // HTTP/2 has a frame for this, which the connection sends, and forbids the header.
    let told_by_header = request.version() < Version::HTTP_2;
    let mut response = next.run(request).await;
    if told_by_header && state.lifecycle().phase() >= Phase::Grace {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
