//! The table of routes. The router, access, metrics and the API's description follow from it.

use std::sync::LazyLock;

use axum::http::{HeaderMap, Method};

use rerankd_grpc::{METHODS, Method as GrpcMethod};
use rerankd_wire::Endpoint;
use rerankd_wire::detect::detect_by_headers;
use rerankd_wire::registry::{endpoints, sharing};
use rerankd_wire::{Dialect, INFINITY, NATIVE, OPEN_INFERENCE, VLLM};

/// What is answered at a path, to one method.
pub struct Route {
    /// `GET`, which `HEAD` goes with, or `POST`.
    pub method: Method,
    /// As the router matches it.
    pub path: &'static str,
    /// Whose clients ask here. Errors have its form until a body tells another.
    pub dialect: &'static Dialect,
    /// What answers.
    pub handler: Handler,
}

/// What answers at a route.
pub enum Handler {
    /// Liveness.
    Live,
    /// Readiness.
    Ready,
    /// Liveness without a body.
    SilentLive,
    /// Readiness without a body.
    SilentReady,
    /// The page for browsers, readiness for everybody else.
    Page,
    /// The model as OpenAI's clients ask for it.
    Models,
    /// The model that the path names, as Xinference's clients ask for it.
    Model,
    /// Whether requests need a key, as Xinference's clients ask before they have one.
    NeedsKey,
    /// The model, the settings and the limits.
    Info,
    /// Everything measured.
    Metrics,
    /// The list of models, read again; at `admin_listen` only.
    Reload,
    /// The server, for the Open Inference Protocol.
    InferenceServer,
    /// The model that the path names.
    InferenceModel,
    /// Whether the model that the path names is ready.
    InferenceReady,
    /// A method of gRPC.
    Grpc(&'static GrpcMethod),
    /// Operations of dialects; a body that no other matches is read as the first.
    Operations(Vec<Endpoint>),
}

/// All routes but those of the page's files and of the API's description.
static TABLE: LazyLock<Vec<Route>> = LazyLock::new(|| {
    let get = |(path, dialect, handler)| Route {
        method: Method::GET,
        path,
        dialect,
        handler,
    };
    let reload = Route {
        method: Method::POST,
        path: "/admin/reload",
        dialect: &NATIVE,
        handler: Handler::Reload,
    };
    let asked = [
        ("/", &NATIVE, Handler::Page),
        ("/live", &NATIVE, Handler::Live),
        ("/ready", &NATIVE, Handler::Ready),
        ("/health", &NATIVE, Handler::Ready),
        ("/ping", &NATIVE, Handler::Ready),
        ("/infinity/health", &INFINITY, Handler::Ready),
        ("/vllm/health", &VLLM, Handler::Ready),
        ("/.well-known/live", &NATIVE, Handler::SilentLive),
        ("/.well-known/ready", &NATIVE, Handler::SilentReady),
        ("/v2/health/live", &NATIVE, Handler::Live),
        ("/v2/health/ready", &NATIVE, Handler::Ready),
        ("/models", &NATIVE, Handler::Models),
        ("/v1/models", &NATIVE, Handler::Models),
        ("/v1/models/{model}", &NATIVE, Handler::Model),
        ("/v1/models/{publisher}/{model}", &NATIVE, Handler::Model),
        // `POST` is ZeroEntropy's, whose path would hide the one above.
        ("/v1/models/rerank", &NATIVE, Handler::Model),
        ("/v1/cluster/auth", &NATIVE, Handler::NeedsKey),
        ("/infinity/models", &INFINITY, Handler::Models),
        ("/vllm/v1/models", &VLLM, Handler::Models),
        ("/info", &NATIVE, Handler::Info),
        ("/meta", &NATIVE, Handler::Info),
        ("/metrics", &NATIVE, Handler::Metrics),
        ("/v2", &OPEN_INFERENCE, Handler::InferenceServer),
        (
            "/v2/models/{model}",
            &OPEN_INFERENCE,
            Handler::InferenceModel,
        ),
        (
            "/v2/models/{model}/ready",
            &OPEN_INFERENCE,
            Handler::InferenceReady,
        ),
        (
            "/v2/models/{model}/versions/{version}",
            &OPEN_INFERENCE,
            Handler::InferenceModel,
        ),
        (
            "/v2/models/{model}/versions/{version}/ready",
            &OPEN_INFERENCE,
            Handler::InferenceReady,
        ),
    ];
    let asked = asked.into_iter().map(get);
    let all = asked.chain([reload]).chain(methods());
    all.chain(endpoints().flat_map(operations)).collect()
});

/// The routes of gRPC.
fn methods() -> impl Iterator<Item = Route> {
    METHODS.iter().map(|method| Route {
        method: Method::POST,
        path: method.path,
        dialect: method.dialect,
        handler: Handler::Grpc(method),
    })
}

/// The routes of an operation. On a shared path, others come after it.
fn operations(own: Endpoint) -> impl Iterator<Item = Route> {
    own.operation.paths.iter().map(move |path| Route {
        method: Method::POST,
        path: path.path,
        dialect: own.dialect,
        handler: Handler::Operations(sharing(own, path)),
    })
}

/// What a path calls the name of a model.
const MODEL: &str = "model";

/// The routes at `listen`.
pub fn all() -> impl Iterator<Item = &'static Route> {
    TABLE
        .iter()
        .filter(|route| !matches!(route.handler, Handler::Reload))
}

/// The routes at `admin_listen`.
pub fn for_operators() -> impl Iterator<Item = &'static Route> {
    TABLE.iter().filter(|route| route.is_for_operators())
}

/// The routes at `path`, as the router matched it.
fn at(path: &str) -> impl Iterator<Item = &'static Route> {
    all().filter(move |route| route.path == path)
}

/// The dialect of clients that ask at `path`, as the router matched it.
pub fn dialect(method: &Method, path: &str) -> &'static Dialect {
    let method = if *method == Method::HEAD {
        &Method::GET
    } else {
        method
    };
    let same = at(path).find(|route| route.method == *method);
    same.or_else(|| at(path).next())
        .map_or(&NATIVE, |route| route.dialect)
}

/// The dialect of a request before its body is read: that of its headers, or else of its path.
pub fn dialect_of_head(method: &Method, path: &str, headers: &HeaderMap) -> &'static Dialect {
    let told = at(path).find_map(|route| match &route.handler {
        Handler::Operations(operations) if route.method == *method => {
            detect_by_headers(operations, headers)
        }
        _ => None,
    });
    told.map_or_else(|| dialect(method, path), |told| told.dialect)
}

/// Whether `path` is that of a method of gRPC.
pub fn is_method(path: &str) -> bool {
    at(path).any(Route::is_method)
}

/// Whether `path` is polled by machines.
pub fn is_probe(path: &str) -> bool {
    at(path).any(Route::is_probe)
}

/// Whether `path` is answered without a key: probes, what monitoring reads, whether a key is needed,
/// and the page, which asks for a key itself.
pub fn is_open(method: &Method, path: &str) -> bool {
    let reads = *method == Method::GET || *method == Method::HEAD;
    let open = |route: &Route| matches!(route.handler, Handler::Page | Handler::NeedsKey);
    is_probe(path) || reads && (path.starts_with("/page/") || at(path).any(open))
}

impl Route {
    /// Whether machines poll it.
    fn is_probe(&self) -> bool {
        match self.handler {
            Handler::InferenceReady => true,
            Handler::Grpc(method) => method.is_probe(),
            _ => self.is_for_operators(),
        }
    }

    /// Whether it is a method of gRPC.
    pub fn is_method(&self) -> bool {
        matches!(self.handler, Handler::Grpc(_))
    }

    /// Whether it is answered at `admin_listen`.
    fn is_for_operators(&self) -> bool {
        match self.handler {
            Handler::Live
            | Handler::Ready
            | Handler::SilentLive
            | Handler::SilentReady
            | Handler::Metrics
            | Handler::Reload => true,
            Handler::Page
            | Handler::Models
            | Handler::Model
            | Handler::NeedsKey
            | Handler::Info
            | Handler::InferenceServer
            | Handler::InferenceModel
            | Handler::InferenceReady
            | Handler::Grpc(_)
            | Handler::Operations(_) => false,
        }
    }

    /// Whether the model is asked, so that its answers are counted from the start.
    pub fn scores(&self) -> bool {
        match &self.handler {
            Handler::Operations(operations) => operations[0].operation.kind.scores(),
            Handler::Grpc(method) => method.scores(),
            _ => false,
        }
    }

    /// Whether its path holds the name of a model.
    pub fn names_model(&self) -> bool {
        self.parameters().any(|name| name == MODEL)
    }

    /// The names of what its path leaves open.
    pub fn parameters(&self) -> impl Iterator<Item = &'static str> {
        let open = self.path.split('/');
        open.filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }
}

/// What a request that reaches the model can meet besides an answer. TEI's clients know 422 and 424.
pub const REFUSALS: [(&str, &str); 13] = [
    (
        "400",
        "Something in the request is wrong; the text says what to change",
    ),
    ("401", "API key required, or invalid API key"),
    (
        "403",
        "The origin of the page is not allowed, and the server has no keys",
    ),
    (
        "404",
        "The requested model is not served (`--strict-model-name`)",
    ),
    ("408", "The body did not arrive in time"),
    ("413", "The body is larger than `--max-body-bytes`"),
    ("415", "Unsupported `Content-Encoding`"),
    ("422", "TEI's status for an invalid request"),
    ("424", "TEI's status for a failure of the model"),
    (
        "429",
        "The queue is full, or the answer would come after the deadline; `Retry-After` says when a \
         retry can succeed",
    ),
    ("500", "The server failed; the request was not at fault"),
    ("503", "The model is loading, or the server is stopping"),
    (
        "504",
        "The time in `x-request-timeout-ms` passed while the request waited",
    ),
];

/// The status in logs and metrics of a request whose client left before the answer. It is never sent.
pub const CLIENT_LEFT: u16 = 499;

/// Every status that a route which scores is counted under.
pub fn statuses() -> impl Iterator<Item = &'static str> {
    let refusals = REFUSALS.iter().map(|(status, _)| *status);
    ["200", "405", "499"].into_iter().chain(refusals)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_method_of_a_path_has_one_route() {
        let mut seen = BTreeSet::new();
        for route in all() {
            let key = (route.method.as_str(), route.path);
            assert!(seen.insert(key), "{key:?}");
        }
    }

    #[test]
    fn what_takes_a_body_is_never_open() {
        for route in all() {
            let open = is_open(&route.method, route.path);
            match route.handler {
                Handler::Operations(_) | Handler::Models | Handler::Model | Handler::Info => {
                    assert!(!open);
                }
                _ => {}
            }
            assert!(open || !route.is_probe(), "{}", route.path);
        }
        assert!(is_open(&Method::HEAD, "/"));
        assert!(!is_open(&Method::POST, "/"));
        assert!(!is_open(&Method::GET, ""));
    }

    #[test]
    fn a_path_has_the_dialect_of_its_clients() {
        for (method, path, expected) in [
            (Method::POST, "/rerank", "native"),
            (Method::POST, "/v1/rerank", "cohere_v1"),
            (Method::POST, "/", "tei"),
            (Method::HEAD, "/", "native"),
            (Method::PUT, "/tokenize", "tei"),
            (Method::GET, "/vllm/v1/models", "vllm"),
            (Method::GET, "/v2/models/{model}", "open_inference"),
            (Method::GET, "", "native"),
        ] {
            assert_eq!(dialect(&method, path).name, expected, "{method} {path}");
        }
    }

    #[test]
    fn shared_paths_take_every_dialect_that_a_body_can_tell() {
        let names = |path: &str| -> Vec<&str> {
            let route = at(path).find(|route| route.method == Method::POST);
            match &route.unwrap().handler {
                Handler::Operations(operations) => {
                    let operations = operations.iter();
                    operations.map(|endpoint| endpoint.operation.name).collect()
                }
                _ => unreachable!("a body is read by a dialect"),
            }
        };
        let told = [
            "tei",
            "mixedbread",
            "weaviate",
            "voyage",
            "xinference",
            "vllm",
            "infinity",
            "cohere_v1",
            "cohere_v2",
            "pinecone",
        ];
        assert_eq!(names("/rerank"), [&["native"], &told[..]].concat());
        assert_eq!(names("/predict"), ["native_predict", "tei_predict"]);
        assert_eq!(names("/infinity/rerank"), ["infinity"]);
    }
}
