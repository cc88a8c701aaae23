//! A fake hub and its storage, on separate origins, with planted faults.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::TcpListener;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, Response};
use http_body::Frame;
use rerankd::config::{Config, Listen};
use rerankd::http::socket::Socket;
use rerankd::http::tls::Tls;
use rerankd::http::{ListenerConfig, serve};
use rerankd::metrics::ServerMetrics;
use ring::digest::{Context as Digest, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use tokio::sync::{Barrier, oneshot};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A model on the hub.
#[derive(Clone)]
pub struct Model {
    pub id: String,
    pub commit: String,
    /// Branches and tags that point to the commit.
    pub revisions: Vec<String>,
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Model {
    /// A model with all files of a directory.
    pub fn of(id: &str, dir: &Path) -> Self {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                files.insert(name, std::fs::read(path).unwrap());
            }
        }
        Self {
            id: id.to_owned(),
            commit: COMMIT.to_owned(),
            revisions: vec!["main".to_owned()],
            files,
        }
    }

    pub fn with(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.insert(name.to_owned(), content.into());
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.files.remove(name).unwrap();
        self
    }
}

/// A fault of one response.
#[derive(Clone)]
pub enum Fault {
    /// A status with headers.
    Status(u16, &'static [(&'static str, &'static str)]),
    /// The connection breaks after this many bytes of the body.
    Cut(usize),
    /// The first byte is wrong.
    Corrupt,
    /// The body has an extra byte.
    Longer,
    /// The whole file, regardless of the requested range.
    Whole,
    /// A fixed body.
    Body(&'static str),
    /// A wrong header.
    Header(&'static str, &'static str),
    /// The response waits at a barrier.
    Meet(Arc<Barrier>),
}

/// A received request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `listing`, `head FILE` or `get FILE` on the hub, `storage FILE` on the storage.
    pub what: String,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
}

struct Shared {
    models: Vec<Model>,
    /// The required token, if any.
    token: Option<String>,
    storage: String,
    faults: Mutex<HashMap<String, VecDeque<Fault>>>,
    seen: Mutex<Vec<Seen>>,
}

/// A fake hub that runs until it is dropped.
pub struct Hub {
    pub endpoint: String,
    shared: Arc<Shared>,
    _stop: oneshot::Sender<()>,
}

impl Hub {
    pub fn new(models: Vec<Model>) -> Self {
        Self::start(models, None, None)
    }

    /// A hub that requires a token.
    pub fn private(models: Vec<Model>, token: &str) -> Self {
        Self::start(models, Some(token.to_owned()), None)
    }

    /// A hub with TLS, as `localhost`.
    pub fn tls(models: Vec<Model>, tls: Arc<Tls>) -> Self {
        Self::start(models, None, Some(tls))
    }

    fn start(models: Vec<Model>, token: Option<String>, tls: Option<Arc<Tls>>) -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (hub, storage) = (listen(), listen());
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let endpoint = match tls {
            Some(_) => format!("https://localhost:{}", port(&hub)),
            None => format!("http://127.0.0.1:{}", port(&hub)),
        };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared {
            models,
            token,
            storage: format!("{scheme}://localhost:{}", port(&storage)),
            faults: Mutex::default(),
            seen: Mutex::default(),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let state = shared.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listen = |listener: TcpListener| {
                    let config = Config::default().http;
                    let socket = Socket::from_tcp(listener).unwrap();
                    assert!(matches!(socket.address().unwrap(), Listen::Tcp(_)));
                    ListenerConfig {
                        tls: tls.clone(),
                        ..ListenerConfig::new(socket, &config, ServerMetrics::new())
                    }
                };
                let at_hub = Router::new().fallback(hub_answer).with_state(state.clone());
                let at_storage = Router::new().fallback(storage_answer).with_state(state);
                tokio::select! {
                    () = serve(listen(hub), at_hub, std::future::pending()) => (),
                    () = serve(listen(storage), at_storage, std::future::pending()) => (),
                    _ = stopped => (),
                }
            });
        });
        Self {
            endpoint,
            shared,
            _stop: stop,
        }
    }

    /// Plants faults for the next responses to `what`.
    pub fn fail(&self, what: &str, faults: impl IntoIterator<Item = Fault>) {
        let mut all = self.shared.faults.lock().unwrap();
        all.entry(what.to_owned()).or_default().extend(faults);
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Number of requests for `what`.
    pub fn count(&self, what: &str) -> usize {
        self.seen().iter().filter(|seen| seen.what == what).count()
    }
}

impl Shared {
    /// Records a request and returns its fault.
    fn note(&self, what: String, request: &Request) -> Option<Fault> {
        let header = |name: &str| {
            let value = request.headers().get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        self.seen.lock().unwrap().push(Seen {
            path: request.uri().to_string(),
            authorization: header("authorization"),
            range: header("range"),
            what: what.clone(),
        });
        self.faults.lock().unwrap().get_mut(&what)?.pop_front()
    }

    fn model(&self, id: &str, revision: &str) -> Option<&Model> {
        self.models.iter().find(|model| {
            model.id == id
                && (model.commit == revision || model.revisions.iter().any(|r| r == revision))
        })
    }
}

async fn hub_answer(State(hub): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (what, id, revision, file) = match parts[..] {
        ["api", "models", owner, name, "revision", revision] => (
            "listing".to_owned(),
            format!("{owner}/{name}"),
            revision.replace("%2F", "/"),
            None,
        ),
        [
            "api",
            "resolve-cache",
            "models",
            owner,
            name,
            revision,
            ref file @ ..,
        ]
        | [owner, name, "resolve", revision, ref file @ ..] => {
            let file = file.join("/");
            let moved = parts[0] == "api";
            let verb = match (moved, request.method()) {
                (true, _) => "moved",
                (false, &Method::HEAD) => "head",
                (false, _) => "get",
            };
            (
                format!("{verb} {file}"),
                format!("{owner}/{name}"),
                revision.to_owned(),
                Some(file),
            )
        }
        _ => panic!("a request for {path}"),
    };
    let fault = hub.note(what.clone(), &request);
    if let Some(Fault::Status(status, headers)) = &fault {
        return plain(*status, headers, "");
    }
    if let Some(Fault::Body(text)) = fault {
        return plain(200, &[], text);
    }
    let shown = request.headers().get("authorization");
    let wanted = hub.token.as_ref().map(|token| format!("Bearer {token}"));
    if wanted.is_some() && shown.and_then(|v| v.to_str().ok()) != wanted.as_deref() {
        return plain(401, &[("x-error-code", "RepoNotFound")], "");
    }
    let Some(model) = hub.model(&id, &revision) else {
        let code = if hub.models.iter().any(|model| model.id == id) {
            "RevisionNotFound"
        } else {
            "RepoNotFound"
        };
        return plain(404, &[("x-error-code", code)], "");
    };
    let Some(file) = file else {
        let siblings: Vec<_> = model
            .files
            .keys()
            .map(|name| serde_json::json!({ "rfilename": name }))
            .collect();
        let body = serde_json::json!({ "id": id, "sha": model.commit, "siblings": siblings });
        return plain(200, &[], &body.to_string());
    };
    let Some(content) = model.files.get(&file) else {
        return plain(404, &[("x-error-code", "EntryNotFound")], "");
    };
    let mut response = Response::builder();
    if large(&file) {
        response = response
            .status(302)
            .header(
                "location",
                format!("{}/{}?signature=s", hub.storage, sha256(content)),
            )
            .header("etag", "\"of-the-pointer\"")
            .header("x-linked-etag", format!("\"{}\"", sha256(content)))
            .header("x-linked-size", content.len())
            .header("content-length", 0);
    } else if what.starts_with("moved") {
        response = response
            .status(200)
            .header("etag", format!("\"{}\"", git_blob(content)));
    } else {
        response = response.status(307).header(
            "location",
            format!("/api/resolve-cache/models/{id}/{revision}/{file}"),
        );
    }
    let mut headers = response
        .header("x-repo-commit", &model.commit)
        .body(())
        .unwrap();
    if let Some(Fault::Header(name, value)) = fault {
        headers.headers_mut().insert(name, value.parse().unwrap());
    }
    let (mut parts, ()) = headers.into_parts();
    if parts.status != 200 {
        return Response::from_parts(parts, Body::empty());
    }
    let answer = content_answer(request.headers(), content, fault).await;
    let (own, body) = answer.into_parts();
    parts.status = own.status;
    parts.headers.extend(own.headers);
    Response::from_parts(parts, body)
}

async fn storage_answer(State(hub): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let digits = request.uri().path().trim_start_matches('/').to_owned();
    let files = hub.models.iter().flat_map(|model| &model.files);
    let (file, content) = files
        .filter(|(name, content)| large(name) && sha256(content) == digits)
        .map(|(name, content)| (name.clone(), content.clone()))
        .next()
        .expect("the hub sends to what is there");
    let fault = hub.note(format!("storage {file}"), &request);
    if let Some(Fault::Status(status, headers)) = &fault {
        return plain(*status, headers, "");
    }
    let mut answer = content_answer(request.headers(), &content, fault).await;
    // A hash of another kind, to be ignored.
    let etag = "\"d41d8cd98f00b204e9800998ecf8427e\"";
    answer.headers_mut().insert("etag", etag.parse().unwrap());
    answer
}

/// A file, or the requested range of it.
async fn content_answer(
    headers: &HeaderMap,
    content: &[u8],
    fault: Option<Fault>,
) -> Response<Body> {
    let from = headers.get("range").map(|range| {
        let range = range.to_str().unwrap();
        let from = range
            .strip_prefix("bytes=")
            .unwrap()
            .strip_suffix('-')
            .unwrap();
        from.parse::<usize>().unwrap()
    });
    let from = from.filter(|_| !matches!(fault, Some(Fault::Whole)));
    let mut sent = content[from.unwrap_or(0)..].to_vec();
    let mut length = sent.len();
    let mut breaks = None;
    match fault {
        Some(Fault::Cut(bytes)) => {
            sent.truncate(bytes);
            breaks = Some(3);
        }
        Some(Fault::Corrupt) => sent[0] ^= 1,
        Some(Fault::Longer) => {
            sent.push(0);
            length += 1;
        }
        Some(Fault::Meet(barrier)) => {
            barrier.wait().await;
        }
        _ => {}
    }
    let response = Response::builder().header("content-length", length);
    let response = match from {
        Some(from) => {
            let last = content.len() - 1;
            let range = format!("bytes {from}-{last}/{}", content.len());
            response.status(206).header("content-range", range)
        }
        None => response.status(200),
    };
    response
        .body(Body::new(Parts {
            sent: Some(sent.into()),
            breaks,
        }))
        .unwrap()
}

/// A body that may be cut off.
struct Parts {
    sent: Option<Bytes>,
    /// Polls before the connection breaks, so that sent data is flushed.
    breaks: Option<u8>,
}

impl http_body::Body for Parts {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if let Some(bytes) = self.sent.take() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        match &mut self.breaks {
            None => Poll::Ready(None),
            Some(0) => Poll::Ready(Some(Err(std::io::Error::other("cut")))),
            Some(left) => {
                *left -= 1;
                context.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

fn plain(status: u16, headers: &[(&str, &str)], body: &str) -> Response<Body> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Body::from(body.to_owned())).unwrap()
}

/// Whether a hub stores such a file in its storage.
fn large(name: &str) -> bool {
    [".safetensors", ".onnx", ".bin", ".onnx_data"]
        .iter()
        .any(|end| name.ends_with(end))
}

pub fn sha256(content: &[u8]) -> String {
    let mut digest = Digest::new(&SHA256);
    digest.update(content);
    hex(digest)
}

pub fn git_blob(content: &[u8]) -> String {
    let mut digest = Digest::new(&SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(format!("blob {}\0", content.len()).as_bytes());
    digest.update(content);
    hex(digest)
}

fn hex(digest: Digest) -> String {
    let digest = digest.finish();
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
