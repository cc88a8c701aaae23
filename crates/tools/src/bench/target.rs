//! Targets of a benchmark: a server over HTTP or gRPC, or the engine in this process.

use std::error::Error as _;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::http::uri::InvalidUri;
use hyper::{Method, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prost::Message;
use serde_json::{Value, json};

use super::record::Outcome;
use super::text::Request;
use rerankd_core::{Limits, RerankCommand, ScoreOptions, Secret};
use rerankd_engine::service::Reranker;
use rerankd_grpc::frame::{HEAD_BYTES, framed};
use rerankd_grpc::proto::tei::{RerankRequest, RerankResponse};

/// Longest response.
const MAX_RESPONSE_BYTES: usize = 64 * 1024 * 1024;
/// The token count of Text Embeddings Inference.
const TOKENS_HEADER: &str = "x-compute-tokens";
/// `Retry-After` in milliseconds, which this server sends as well.
const RETRY_AFTER_MS: &str = "retry-after-ms";
/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(600);

/// A server or engine to measure.
pub trait Target: Clone + Send + Sync + 'static {
    /// A request that is ready to be sent. It is prepared before its latency counts.
    type Ready: Send + 'static;

    /// Prepares a request.
    fn prepare(&self, request: Request) -> Self::Ready;

    /// Sends a prepared request and waits for the response.
    fn send(&self, ready: Self::Ready) -> impl Future<Output = Outcome> + Send;
}

/// API of `/rerank`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dialect {
    /// That of this server, with `documents`.
    #[default]
    Native,
    /// That of Text Embeddings Inference, with `texts`.
    Tei,
    /// The same over gRPC, on connections that all requests share.
    Grpc,
}

impl Dialect {
    /// Every dialect and its name.
    pub const ALL: [(&str, Self); 3] = [
        ("native", Self::Native),
        ("tei", Self::Tei),
        ("grpc", Self::Grpc),
    ];

    fn path(self) -> &'static str {
        match self {
            Self::Native | Self::Tei => "/rerank",
            Self::Grpc => "/tei.v1.Rerank/Rerank",
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Native | Self::Tei => "application/json",
            Self::Grpc => "application/grpc",
        }
    }

    /// The body of `request`, which asks for a model by name if there is one.
    fn body(self, request: Request, model: Option<&str>) -> Bytes {
        let mut body = match self {
            Self::Native => json!({ "query": request.query, "documents": request.documents }),
            Self::Tei => json!({ "query": request.query, "texts": request.documents }),
            Self::Grpc => {
                let message = RerankRequest {
                    query: request.query,
                    texts: request.documents,
                    truncate: true,
                    ..RerankRequest::default()
                };
                return framed(&message.encode_to_vec()).into();
            }
        };
        if let Some(model) = model {
            body["model"] = model.into();
        }
        body.to_string().into()
    }
}

/// Why a server cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The URL has no scheme `http` or no host.
    #[error("must be `http://HOST:PORT`; TLS is not supported")]
    Url,
    /// The URL is malformed.
    #[error("{0}; must be `http://HOST:PORT`")]
    InvalidUrl(#[from] InvalidUri),
    /// The key cannot be sent in a header.
    #[error("the API key has characters that a header cannot hold")]
    Key,
    /// The name of the model cannot be sent in a header.
    #[error("the name of the model has characters that a header cannot hold")]
    Model,
    /// The connection failed.
    #[error("{0}")]
    Connection(String),
    /// The response ended early.
    #[error("the response is incomplete: {0}")]
    Incomplete(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The response took too long.
    #[error("no response within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The server requires another API key, or any.
    #[error("status {0}: the server requires an API key; hint: `--key-file FILE` sends one")]
    Unauthorized(u16),
    /// `/info` has an error status.
    #[error("`/info` returned status {0}")]
    InfoStatus(u16),
    /// `/info` is not JSON.
    #[error("`/info` did not return JSON")]
    InfoBody(#[source] serde_json::Error),
}

/// A server that is measured over HTTP, with one connection for each concurrent request.
#[derive(Debug, Clone)]
pub struct Server {
    client: Client<HttpConnector, Full<Bytes>>,
    info: Uri,
    rerank: Uri,
    headers: HeaderMap,
    dialect: Dialect,
    model: Option<String>,
}

impl Server {
    /// The server at `url`, such as `http://127.0.0.1:8080`. Requests carry the API key, if there is one.
    ///
    /// # Errors
    /// When the URL or the key is malformed.
    pub fn new(url: &str, dialect: Dialect, key: Option<&Secret>) -> Result<Self, ServerError> {
        let base = url.trim_end_matches('/');
        let parsed: Uri = base.parse()?;
        if parsed.scheme_str() != Some("http") || parsed.host().is_none() {
            return Err(ServerError::Url);
        }
        let mut headers = HeaderMap::new();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static(dialect.content_type()),
        );
        if let Some(key) = key {
            let value = HeaderValue::from_str(&format!("Bearer {}", key.text()));
            let mut value = value.map_err(|_| ServerError::Key)?;
            // Debug output hides it.
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Ok(Self {
            client: Client::builder(TokioExecutor::new())
                .http2_only(dialect == Dialect::Grpc)
                .build(connector),
            info: format!("{base}/info").parse()?,
            rerank: format!("{base}{}", dialect.path()).parse()?,
            headers,
            dialect,
            model: None,
        })
    }

    /// The same server, asked for one of its models by name.
    ///
    /// # Errors
    /// When the name cannot be part of a URL, or, over gRPC, of a header.
    pub fn for_model(self, name: &str) -> Result<Self, ServerError> {
        let encoded: String = name
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    char::from(byte).to_string()
                }
                other => format!("%{other:02X}"),
            })
            .collect();
        let mut headers = self.headers;
        if self.dialect == Dialect::Grpc {
            let value = HeaderValue::from_str(name).map_err(|_| ServerError::Model)?;
            headers.insert("model", value);
        }
        Ok(Self {
            info: format!("{}?model={encoded}", self.info).parse()?,
            model: Some(name.to_owned()),
            headers,
            ..self
        })
    }

    /// The response of `/info`.
    ///
    /// # Errors
    /// When the server cannot be reached, or returns an error or something other than JSON.
    pub async fn info(&self) -> Result<Value, ServerError> {
        let response = self.exchange(Method::GET, &self.info, Bytes::new()).await?;
        match response.status {
            200 => serde_json::from_slice(&response.body).map_err(ServerError::InfoBody),
            status @ (401 | 403) => Err(ServerError::Unauthorized(status)),
            status => Err(ServerError::InfoStatus(status)),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        uri: &Uri,
        body: Bytes,
    ) -> Result<Response, ServerError> {
        let mut request = hyper::Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = self.headers.clone();
        let response = async {
            let response = self.client.request(request).await.map_err(|error| {
                // The outer error only says that the client failed.
                let cause = error.source().map_or_else(|| error.to_string(), root_cause);
                ServerError::Connection(cause)
            })?;
            let number = |name: &str| response.headers().get(name)?.to_str().ok()?.parse().ok();
            let tokens = number(TOKENS_HEADER);
            let retry_after = number(RETRY_AFTER_MS)
                .map(Duration::from_millis)
                .or_else(|| number(RETRY_AFTER.as_str()).map(Duration::from_secs));
            let status = response.status().as_u16();
            let mut grpc_status = code(response.headers());
            let body = Limited::new(response.into_body(), MAX_RESPONSE_BYTES)
                .collect()
                .await
                .map_err(ServerError::Incomplete)?;
            grpc_status = grpc_status.or_else(|| code(body.trailers()?));
            let body = body.to_bytes();
            Ok(Response {
                status,
                grpc_status,
                tokens,
                retry_after,
                body,
            })
        };
        tokio::time::timeout(TIMEOUT, response)
            .await
            .unwrap_or(Err(ServerError::Timeout))
    }
}

/// The parts of a response that a benchmark needs.
struct Response {
    status: u16,
    grpc_status: Option<u16>,
    /// From a header.
    tokens: Option<u64>,
    retry_after: Option<Duration>,
    body: Bytes,
}

/// The status of a call, which ends its answer or is all of it.
fn code(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// The innermost error, which is the most specific.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    match error.source() {
        Some(source) => root_cause(source),
        None => error.to_string(),
    }
}

impl Target for Server {
    type Ready = Bytes;

    fn prepare(&self, request: Request) -> Bytes {
        self.dialect.body(request, self.model.as_deref())
    }

    async fn send(&self, body: Bytes) -> Outcome {
        match self.exchange(Method::POST, &self.rerank, body).await {
            Ok(response) if self.dialect == Dialect::Grpc => outcome_of_call(&response),
            Ok(response) => outcome(&response),
            Err(error) => Outcome::Lost(error.to_string()),
        }
    }
}

fn outcome(response: &Response) -> Outcome {
    let body: Value = serde_json::from_slice(&response.body).unwrap_or_default();
    match response.status {
        200 => Outcome::Answered {
            tokens: body["usage"]["total_tokens"].as_u64().or(response.tokens),
        },
        status => Outcome::Status {
            status,
            reason: body["error_type"].as_str().unwrap_or_default().to_owned(),
            retry_after: response.retry_after,
        },
    }
}

/// The outcome of a call of gRPC, with the status that HTTP has for its own.
fn outcome_of_call(response: &Response) -> Outcome {
    let status = match response.grpc_status {
        Some(0) => {
            let message = response.body.get(HEAD_BYTES..).unwrap_or_default();
            let message = RerankResponse::decode(message).unwrap_or_default();
            let tokens = message.metadata.map(|cost| cost.compute_tokens.into());
            return Outcome::Answered { tokens };
        }
        None if response.status != 200 => response.status,
        // INVALID_ARGUMENT
        Some(3) => 400,
        // DEADLINE_EXCEEDED
        Some(4) => 504,
        // NOT_FOUND, UNIMPLEMENTED
        Some(5 | 12) => 404,
        // PERMISSION_DENIED
        Some(7) => 403,
        // RESOURCE_EXHAUSTED
        Some(8) => 429,
        // UNAVAILABLE
        Some(14) => 503,
        // UNAUTHENTICATED
        Some(16) => 401,
        Some(_) | None => 500,
    };
    Outcome::Status {
        status,
        reason: String::new(),
        retry_after: response.retry_after,
    }
}

/// The engine of the server, without HTTP.
#[derive(Clone)]
pub struct Engine(pub Arc<Reranker>);

impl Target for Engine {
    type Ready = RerankCommand;

    fn prepare(&self, request: Request) -> RerankCommand {
        let limits = Limits {
            max_documents: usize::MAX,
        };
        let options = ScoreOptions::default();
        RerankCommand::new(request.query, request.documents, None, options, &limits)
            .expect("requests have documents, and there is no limit")
    }

    async fn send(&self, command: RerankCommand) -> Outcome {
        match self.0.rerank(command).await {
            Ok(ranking) => Outcome::Answered {
                tokens: Some(ranking.tokens as u64),
            },
            Err(error) => {
                let (status, reason) = error.code().http();
                Outcome::Status {
                    status,
                    reason: reason.to_owned(),
                    retry_after: error.retry_after(),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dialects_differ_in_field_names() {
        let request = Request {
            query: "q".to_owned(),
            documents: vec!["d".to_owned()],
            tokens: 5,
        };
        let body = |dialect: Dialect| dialect.body(request.clone(), None);
        assert_eq!(body(Dialect::Native), r#"{"documents":["d"],"query":"q"}"#);
        assert_eq!(body(Dialect::Tei), r#"{"query":"q","texts":["d"]}"#);
    }

    #[test]
    fn outcomes_come_from_the_response() {
        let of = |status, tokens, body: &'static str| {
            outcome(&Response {
                status,
                grpc_status: None,
                tokens,
                retry_after: Some(Duration::from_secs(2)),
                body: Bytes::from_static(body.as_bytes()),
            })
        };
        let answered = |tokens| Outcome::Answered { tokens };
        let usage = r#"{"usage":{"total_tokens":7}}"#;
        assert_eq!(of(200, None, usage), answered(Some(7)));
        assert_eq!(of(200, Some(9), "[]"), answered(Some(9)));
        assert_eq!(of(200, None, "[]"), answered(None));
        let refused = |status, reason: &str| Outcome::Status {
            status,
            reason: reason.to_owned(),
            retry_after: Some(Duration::from_secs(2)),
        };
        let overloaded = r#"{"error":"e","error_type":"overloaded"}"#;
        assert_eq!(of(429, None, overloaded), refused(429, "overloaded"));
        assert_eq!(of(502, None, "<html>"), refused(502, ""));
    }

    #[test]
    fn a_model_that_no_header_can_name_is_an_error() {
        let named = |dialect, name: &str| {
            let server = Server::new("http://localhost:8080", dialect, None).unwrap();
            server.for_model(name)
        };
        assert_eq!(named(Dialect::Grpc, "a").unwrap().headers["model"], "a");
        let error = named(Dialect::Grpc, "a\nb").unwrap_err();
        assert!(matches!(error, ServerError::Model), "{error}");
        assert!(named(Dialect::Tei, "a\nb").is_ok());
    }

    #[test]
    fn the_outcome_of_a_call_comes_from_its_status() {
        let of = |grpc_status, body: Vec<u8>| {
            outcome_of_call(&Response {
                status: 200,
                grpc_status,
                tokens: None,
                retry_after: None,
                body: body.into(),
            })
        };
        let mut message = RerankResponse::default();
        message.metadata.get_or_insert_default().compute_tokens = 7;
        let answered = of(Some(0), framed(&message.encode_to_vec()));
        assert_eq!(answered, Outcome::Answered { tokens: Some(7) });
        for (code, expected) in [(Some(8), 429), (Some(14), 503), (None, 500)] {
            let Outcome::Status { status, .. } = of(code, Vec::new()) else {
                panic!("refused");
            };
            assert_eq!(status, expected);
        }
    }

    #[test]
    fn other_urls_are_refused() {
        assert!(Server::new("http://127.0.0.1:1/", Dialect::Native, None).is_ok());
        for url in ["127.0.0.1:8080", "https://127.0.0.1", "/rerank", "http://"] {
            let error = Server::new(url, Dialect::Native, None).unwrap_err();
            let message = error.to_string();
            assert!(message.contains("http://HOST:PORT"), "{url}: {message}");
        }
    }

    #[tokio::test]
    async fn a_refused_connection_is_a_lost_request() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let server = Server::new(&format!("http://{address}"), Dialect::Native, None).unwrap();
        let outcome = server.send(Bytes::from_static(b"{}")).await;
        let Outcome::Lost(reason) = outcome else {
            panic!("{outcome:?}");
        };
        assert!(reason.to_lowercase().contains("refused"), "{reason}");
        assert!(server.info().await.is_err());
    }

    /// Answers one connection with `response`; returns the head of the request.
    async fn answer_once(response: &'static str) -> (String, tokio::task::JoinHandle<String>) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![];
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(response.as_bytes()).await.unwrap();
            String::from_utf8(head).unwrap()
        });
        (url, served)
    }

    #[tokio::test]
    async fn a_request_carries_the_key_and_a_refusal_says_when_to_retry() {
        let (url, served) = answer_once(
            "HTTP/1.1 429 Too Many Requests\r\nretry-after: 3\r\ncontent-length: 0\r\n\r\n",
        )
        .await;
        let key = Secret::new("a-secret-key");
        let server = Server::new(&url, Dialect::Native, Some(&key)).unwrap();
        let outcome = server.send(Bytes::new()).await;
        let Outcome::Status { retry_after, .. } = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(retry_after, Some(Duration::from_secs(3)));
        let head = served.await.unwrap();
        assert!(
            head.contains("authorization: Bearer a-secret-key"),
            "{head}"
        );
        assert!(!format!("{server:?}").contains("a-secret-key"));
    }

    #[test]
    fn a_model_is_asked_for_by_name() {
        let server = Server::new("http://127.0.0.1:1/", Dialect::Native, None).unwrap();
        let server = server.for_model("org/small one").unwrap();
        assert_eq!(
            server.info,
            "http://127.0.0.1:1/info?model=org%2Fsmall%20one"
        );
        let request = Request {
            query: "q".to_owned(),
            documents: vec!["d".to_owned()],
            tokens: 0,
        };
        let body: Value = serde_json::from_slice(&server.prepare(request)).unwrap();
        assert_eq!(body["model"], "org/small one");
    }

    #[tokio::test]
    async fn milliseconds_take_precedence_over_seconds() {
        let (url, _served) = answer_once(
            "HTTP/1.1 429 Too Many Requests\r\nretry-after: 3\r\nretry-after-ms: 2400\r\n\
             content-length: 0\r\n\r\n",
        )
        .await;
        let server = Server::new(&url, Dialect::Native, None).unwrap();
        let outcome = server.send(Bytes::new()).await;
        let Outcome::Status { retry_after, .. } = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(retry_after, Some(Duration::from_millis(2400)));
    }
}
