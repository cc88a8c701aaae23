//! The server under test: the real router and accept loop with a fake model.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::BodyExt;
use rerankd::config::Config;
use rerankd::http::socket::Socket;
use rerankd::http::state::AppState;
use rerankd::http::tls::Tls;
use rerankd::http::{self, ListenerConfig};
use rerankd::metrics::ServerMetrics;
use rerankd::shutdown::{Phase, Stopped, supervise};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tower::ServiceExt;

use super::fake::{self, Model};
use super::real;

/// A timeout that a test waits for: short, but long enough for all that must precede it.
pub const SHORT: Duration = Duration::from_millis(100);

/// Much longer than any response takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The router without a socket.
pub struct TestApp {
    pub router: Router,
    pub state: AppState,
}

impl TestApp {
    /// A server whose model is still loading.
    pub fn starting(config: Config) -> Self {
        let state = AppState::new(config, ServerMetrics::new());
        let router = http::router::build(state.clone());
        Self { router, state }
    }

    pub fn new(model: Model, config: Config) -> Self {
        let app = Self::starting(config);
        app.load(model);
        app
    }

    /// A server for a model directory, or for the embedded model.
    pub fn real(model: Option<&Path>) -> Self {
        let app = Self::starting(Config::default());
        let metrics = app.state.metrics().engine.clone();
        app.state.install(real::reranker(model, 2, metrics));
        app
    }

    pub fn load(&self, model: Model) {
        self.state.install(fake::reranker(model, &self.state));
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: String::from_utf8(bytes.to_vec()).unwrap(),
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap())
            .await
    }

    pub async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.send(Request::post(path).body(body.into()).unwrap())
            .await
    }
}

impl Default for TestApp {
    fn default() -> Self {
        Self::new(Model::default(), Config::default())
    }
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("no {name} in {:?}", self.headers))
            .to_str()
            .unwrap()
    }

    /// Checks the format of an error and returns its message.
    #[track_caller]
    pub fn error(&self, status: u16, error_type: &str) -> String {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        assert_eq!(self.header("content-type"), "application/json");
        let body = self.json();
        let message = body["message"].as_str().unwrap();
        let expected = serde_json::json!({
            "error": message, "error_type": error_type, "message": message, "detail": message,
        });
        assert_eq!(body, expected);
        message.to_owned()
    }
}

/// The accept loop on a free port, with simulated signals.
pub struct Server {
    pub address: SocketAddr,
    pub state: AppState,
    pub signals: mpsc::Sender<()>,
    pub stopped: JoinHandle<Stopped>,
}

impl Server {
    pub async fn start(model: Model, config: Config) -> Self {
        Self::of(TestApp::new(model, config)).await
    }

    pub async fn of(app: TestApp) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self::on(app, Socket::Tcp(listener), address, None)
    }

    /// A server on `socket`, optionally with TLS. For a Unix socket, `address` is arbitrary.
    pub fn on(app: TestApp, socket: Socket, address: SocketAddr, tls: Option<Arc<Tls>>) -> Self {
        let state = app.state.clone();
        let config = state.config().clone();
        let metrics = state.metrics().clone();
        let listener = ListenerConfig {
            tls,
            ..ListenerConfig::new(socket, &config.http, metrics)
        };
        let closing = state.lifecycle().reached(Phase::Draining);
        let serving = tokio::spawn(http::serve(listener, app.router, closing));
        let (signals, mut received) = mpsc::channel(2);
        let supervised = state.clone();
        let stopped = tokio::spawn(async move {
            let finished = async { serving.await.unwrap() };
            let lifecycle = supervised.lifecycle();
            supervise(lifecycle, &config.shutdown, &mut received, finished).await
        });
        Self {
            address,
            state,
            signals,
            stopped,
        }
    }

    pub async fn connect(&self) -> Connection {
        Connection(TcpStream::connect(self.address).await.unwrap())
    }

    /// Sends `request` on a new connection and reads until the server closes it.
    pub async fn exchange(&self, request: &str) -> String {
        let mut connection = self.connect().await;
        connection.send(request).await;
        connection.rest().await
    }

    /// Sends a request on a new connection.
    pub async fn request(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut connection = self.connect().await;
        connection.send(&wire(method, path, body)).await;
        connection.answer().await
    }

    /// A value of `/metrics`, by its name with labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.request("GET", "/metrics", "").await.body;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("no {name} in\n{text}"));
        value.parse().unwrap()
    }

    /// Resolves when `condition` holds; fails after a timeout.
    pub async fn until(&self, condition: impl Fn(&AppState) -> bool) {
        let turns = async {
            while !condition(&self.state) {
                tokio::task::yield_now().await;
            }
        };
        let held = tokio::time::timeout(PATIENCE, turns).await;
        held.expect("the server comes to that state");
    }

    /// Resolves when no request is in flight.
    pub async fn idle(&self) {
        self.until(|state| state.in_flight() == 0).await;
    }

    /// Resolves when the server no longer listens.
    pub async fn closed(&self) {
        while TcpStream::connect(self.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}

/// A raw client.
pub struct Connection(TcpStream);

impl Connection {
    pub async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads until the server closes the connection.
    pub async fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes).await.unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// Reads one response; fails after a timeout.
    pub async fn answer(&mut self) -> Answer {
        let answer = tokio::time::timeout(PATIENCE, self.read_answer());
        answer.await.expect("an answer")
    }

    async fn read_answer(&mut self) -> Answer {
        let head = self.until("\r\n\r\n").await;
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let headers: HeaderMap = lines
            .map(|line| {
                let (name, value) = line.split_once(": ").unwrap();
                (name.parse().unwrap(), value.parse().unwrap())
            })
            .collect::<Vec<(HeaderName, HeaderValue)>>()
            .into_iter()
            .collect();
        let length = headers[header::CONTENT_LENGTH].to_str().unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        self.0.read_exact(&mut body).await.unwrap();
        Answer {
            status: status.parse().unwrap(),
            headers,
            body: String::from_utf8(body).unwrap(),
        }
    }

    /// Reads up to `end`.
    pub async fn until(&mut self, end: &str) -> String {
        let mut bytes = Vec::new();
        while !bytes.ends_with(end.as_bytes()) {
            bytes.push(self.0.read_u8().await.unwrap());
        }
        String::from_utf8(bytes).unwrap()
    }
}

/// A request as raw HTTP.
pub fn wire(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n{body}")
}
