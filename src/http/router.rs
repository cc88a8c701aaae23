//! The router: what answers at each route, and the layers around all of them.

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, Response, Version, header};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_request, map_response};
use axum::routing::{MethodRouter, get, post};
use axum::{Extension, Router};
use http_body::Body;
use tower_http::CompressionLevel;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::admin::ForOperators;
use super::error::Failure;
use super::open_inference::ModelName;
use super::route::{self, Handler, Route};
use super::state::AppState;
use super::{access, admin, exchange, grpc, observe, open_inference, openapi, page, path};
use crate::config::PathPrefix;
use crate::metrics::ServerMetrics;
use crate::shutdown::Phase;

/// Every route, and around them the layers in their order.
pub fn build(state: AppState) -> Router {
    count_from_zero(state.metrics());
    let config = &state.config().http;
    let (page, metrics) = (config.page, config.admin_listen.is_none());
    let table = route::all().filter(|route| metrics || !matches!(route.handler, Handler::Metrics));
    let mut routes = table
        .fold(Router::new(), add)
        .merge(openapi::routes(&config.path_prefix));
    if page {
        routes = routes.merge(page::routes());
    }
    let prefix = config.path_prefix.clone();
    below(prefix, layers(routes, &state).with_state(state))
}

/// `routes` at the paths that clients mean, below `prefix`.
fn below(prefix: PathPrefix, routes: Router) -> Router {
    // Around the routes: a path has to be what it should before it is matched.
    Router::new()
        .fallback_service(routes)
        .layer(map_request(move |request| {
            std::future::ready(path::canonical(request, &prefix))
        }))
}

/// What is answered at `admin_listen`: for machines that watch this one, apart from its clients.
pub fn build_admin(state: AppState) -> Router {
    let routes = route::for_operators()
        .fold(Router::new(), add)
        .method_not_allowed_fallback(async || Failure::MethodNotAllowed)
        .fallback(async || Failure::NotFound)
        .layer(Extension(ForOperators))
        .layer(CatchPanicLayer::custom(Failure::from_panic));
    below(
        PathPrefix::default(),
        observed(routes, &state).with_state(state),
    )
}

fn add(routes: Router<AppState>, route: &'static Route) -> Router<AppState> {
    routes.route(route.path, handler(route))
}

/// What answers at `route`.
fn handler(route: &'static Route) -> MethodRouter<AppState> {
    match &route.handler {
        Handler::Live => get(admin::live),
        Handler::Ready => get(admin::ready),
        Handler::SilentLive => get(admin::silent_live),
        Handler::SilentReady => get(admin::silent_ready),
        Handler::Page => get(page::root),
        Handler::Models => get(admin::models),
        Handler::Model if !route.names_model() => {
            let name = route.path.rsplit('/').next().unwrap_or_default();
            get(move |state| admin::model(state, ModelName(name.to_owned())))
        }
        Handler::Model => get(admin::model),
        Handler::NeedsKey => get(admin::needs_key),
        Handler::Info => get(admin::info),
        Handler::Metrics => get(admin::metrics),
        Handler::Reload => post(admin::reload),
        Handler::InferenceServer => get(open_inference::server),
        Handler::InferenceModel => get(open_inference::model),
        Handler::InferenceReady => get(open_inference::model_ready),
        Handler::Grpc(method) => grpc::handler(method),
        Handler::Operations(operations) if route.names_model() => {
            post(async move |State(state), ModelName(model), id, request| {
                exchange::answer(state, id, Some(model), request, operations).await
            })
        }
        Handler::Operations(operations) => post(async move |State(state), id, request| {
            exchange::answer(state, id, None, request, operations).await
        }),
    }
}

/// Shows what can be counted before it happens, so that rates see the first failure.
fn count_from_zero(metrics: &ServerMetrics) {
    for route in route::all().filter(|route| route.scores()) {
        for status in route::statuses() {
            metrics
                .edge
                .requests
                .with_label_values(&[route.path, status]);
        }
    }
    for status in ["200", "503"] {
        metrics.edge.requests.with_label_values(&["/ready", status]);
    }
}

/// Innermost first: panics become answers, large answers are compressed, access is checked, and
/// allowed origins get their headers.
fn layers(routes: Router<AppState>, state: &AppState) -> Router<AppState> {
    let compression = CompressionLayer::new()
        .quality(CompressionLevel::Fastest)
        .compress_when(Above(state.config().http.compress_above).and(NotForContentType::GRPC));
    let routes = routes
        .method_not_allowed_fallback(async || Failure::MethodNotAllowed)
        .fallback(async || Failure::NotFound)
        .layer(CatchPanicLayer::custom(Failure::from_panic))
        .layer(compression)
        .layer(from_fn_with_state(state.clone(), access::check));
    let origins = &*state.config().http.cors_origin;
    let routes = if origins.is_empty() {
        routes
    } else {
        routes
            .layer(cors(origins))
            .layer(map_response(hide_from_others))
    };
    observed(routes.layer(from_fn(grpc::answer_in_statuses)), state)
}

/// A stopping server asks for a new connection, and what is logged and counted is what the client
/// reads.
fn observed(routes: Router<AppState>, state: &AppState) -> Router<AppState> {
    routes
        .layer(from_fn_with_state(state.clone(), close_when_stopping))
        .layer(from_fn_with_state(state.clone(), observe::observe))
}

/// The CORS headers for pages of `origins`.
fn cors(origins: &[String]) -> CorsLayer {
    let named = origins.iter().filter_map(|origin| origin.parse().ok());
    let origins = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(named)
    };
    let name = HeaderName::from_static;
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        // Whichever a client's SDK sends: they say nothing that its page could not put into the body.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([
            header::RETRY_AFTER,
            name("x-request-id"),
            name("server-timing"),
            name("traceparent"),
        ])
}

/// Pages of other origins are not told which headers are allowed.
async fn hide_from_others<B>(mut response: Response<B>) -> Response<B> {
    let headers = response.headers_mut();
    if !headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        headers.remove(header::ACCESS_CONTROL_ALLOW_HEADERS);
    }
    response
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
