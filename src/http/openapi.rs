//! The description of all this in OpenAPI 3.1, made of the types that read and write the bodies.

mod paths;

use std::collections::BTreeMap;
use std::future::{Ready, ready};
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::middleware::map_response;
use axum::response::Response;
use axum::routing::get;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::state::AppState;
use crate::config::PathPrefix;

/// What the page of the description may load: it styles itself in the text of its markup.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'",
);

/// The routes that show the description: as it is, and as a page to try things on.
pub fn routes(prefix: &PathPrefix) -> Router<AppState> {
    // Without the `none` it would show the description's address to a validator on the internet.
    let config = Config::from("../openapi.json").validator_url("none");
    let ui = SwaggerUi::new("/docs").config(config);
    Router::from(ui)
        .route_layer(map_response(async |mut response: Response| {
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
            if headers.contains_key(header::LOCATION) {
                // Relative, so that it holds below any path.
                headers.insert(header::LOCATION, HeaderValue::from_static("docs/"));
            }
            response
        }))
        .route("/openapi.json", get(serve(prefix)))
}

fn serve(prefix: &PathPrefix) -> impl Fn() -> Ready<Response> + Clone + Send + Sync + 'static {
    let prefix = prefix.clone();
    let text = Arc::new(LazyLock::new(move || {
        Bytes::from(below(&prefix).to_string())
    }));
    move || ready(respond(Bytes::clone(&text)))
}

/// The description of a server below `prefix`, in JSON.
fn below(prefix: &PathPrefix) -> Value {
    let mut value = value();
    if !prefix.as_str().is_empty() {
        value["servers"] = json!([{ "url": prefix.as_str() }]);
    }
    value
}

fn respond(text: Bytes) -> Response {
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

/// The description, its parts in the order in which they are read.
#[derive(Serialize)]
struct Document {
    openapi: &'static str,
    info: Value,
    security: Value,
    paths: Value,
    components: Value,
}

impl Document {
    fn new() -> Self {
        let mut schemas = BTreeMap::new();
        let license = env!("CARGO_PKG_LICENSE");
        Self {
            openapi: "3.1.0",
            info: json!({
                "title": "rerankd",
                "version": env!("CARGO_PKG_VERSION"),
                "description": "Reranks search results with a cross-encoder, behind the APIs of many \
                                rerankers. On a shared path the keys of a body tell which API \
                                is meant.",
                "license": { "name": license, "identifier": license },
            }),
            // Nothing, or either one: keys are a setting.
            security: json!([{}, { "bearer": [] }, { "key": [] }]),
            paths: paths::all(&mut schemas),
            components: json!({
                "securitySchemes": {
                    "bearer": { "type": "http", "scheme": "bearer" },
                    "key": { "type": "apiKey", "in": "header", "name": "x-api-key" },
                },
                "schemas": schemas,
            }),
        }
    }
}

/// The description in YAML.
///
/// # Panics
/// When it cannot be written as YAML, which a test rules out.
pub fn yaml() -> String {
    yaml_serde::to_string(&Document::new()).expect("the description is plain data")
}

/// The description in JSON.
///
/// # Panics
/// When it cannot be written as JSON, which a test rules out.
pub fn value() -> Value {
    serde_json::to_value(Document::new()).expect("the description is plain data")
}
