//! Who is measured: a server over HTTP, or the engine in this process.

use std::error::Error as _;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use super::record::Outcome;
use super::text::Request;
use rerankd_core::{Limits, RerankCommand, ScoreOptions};
use rerankd_engine::service::Reranker;

/// Longest answer that is read.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Where Text Embeddings Inference says how many tokens it read.
const TOKENS_HEADER: &str = "x-compute-tokens";
/// Longest an answer may take.
const TIMEOUT: Duration = Duration::from_secs(600);

/// A form of a request, ready to be sent.
pub trait Target: Clone + Send + Sync + 'static {
    /// A request in the form that the target takes, so that making it costs nothing while time counts.
    type Ready: Send + 'static;

    /// Brings a request into that form.
    fn prepare(&self, request: Request) -> Self::Ready;

    /// Sends it and waits for its end.
    fn send(&self, ready: Self::Ready) -> impl Future<Output = Outcome> + Send;
}

/// Names of fields in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dialect {
    /// `documents`, as this server names them.
    #[default]
    Native,
    /// `texts`, as Text Embeddings Inference names them.
    Tei,
}

impl Dialect {
    /// Every dialect with its name.
    pub const ALL: [(&str, Self); 2] = [("native", Self::Native), ("tei", Self::Tei)];

    fn body(self, request: &Request) -> Value {
        match self {
            Self::Native => json!({ "query": request.query, "documents": request.documents }),
            Self::Tei => json!({ "query": request.query, "texts": request.documents }),
        }
    }
}

/// A server that is asked over HTTP, by as many connections as there are requests at a time.
#[derive(Debug, Clone)]
pub struct Server {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
    rerank: Uri,
    dialect: Dialect,
}

impl Server {
    /// The server at `url`, such as `http://127.0.0.1:8080`.
    ///
    /// # Errors
    /// When this is no such address, in words.
    pub fn new(url: &str, dialect: Dialect) -> Result<Self, String> {
        let hint = "write it as `http://HOST:PORT`; a proxy's encryption cannot be measured";
        let base = url.trim_end_matches('/').to_owned();
        let parsed: Uri = base.parse().map_err(|error| format!("{error}; {hint}"))?;
        if parsed.scheme_str() != Some("http") || parsed.host().is_none() {
            return Err(hint.to_owned());
        }
        let rerank = format!("{base}/rerank").parse();
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            rerank: rerank.map_err(|error| format!("{error}; {hint}"))?,
            base,
            dialect,
        })
    }

    /// What the server says about itself.
    ///
    /// # Errors
    /// When it cannot be reached or answers nothing of the kind, in words.
    pub async fn info(&self) -> Result<Value, String> {
        let uri = format!("{}/info", self.base)
            .parse()
            .map_err(|_| "no such path")?;
        let answer = self.exchange(Method::GET, uri, Bytes::new()).await?;
        match answer.status {
            200 => {
                serde_json::from_slice(&answer.body).map_err(|_| "`/info` is no JSON".to_owned())
            }
            status => Err(format!("`/info` answers {status}")),
        }
    }

    async fn exchange(&self, method: Method, uri: Uri, body: Bytes) -> Result<Answer, String> {
        let request = hyper::Request::builder()
            .method(method)
            .uri(uri)
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        let answer = async {
            let response = self.client.request(request).await.map_err(|error| {
                // The outer error only says that the client failed.
                error.source().map_or_else(|| error.to_string(), deepest)
            })?;
            let tokens = response.headers().get(TOKENS_HEADER);
            let tokens = tokens.and_then(|tokens| tokens.to_str().ok()?.parse().ok());
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
                .collect()
                .await
                .map_err(|error| format!("the answer broke off: {error}"))?
                .to_bytes();
            Ok(Answer {
                status,
                tokens,
                body,
            })
        };
        match tokio::time::timeout(TIMEOUT, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
        }
    }
}

/// What of an answer is of use.
struct Answer {
    status: u16,
    /// From its head.
    tokens: Option<u64>,
    body: Bytes,
}

/// The first cause of an error, which says most.
fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    match error.source() {
        Some(source) => deepest(source),
        None => error.to_string(),
    }
}

impl Target for Server {
    type Ready = Bytes;

    fn prepare(&self, request: Request) -> Bytes {
        self.dialect.body(&request).to_string().into()
    }

    async fn send(&self, body: Bytes) -> Outcome {
        match self.exchange(Method::POST, self.rerank.clone(), body).await {
            Ok(answer) => outcome(&answer),
            Err(reason) => Outcome::Lost(reason),
        }
    }
}

/// Reads what the figures need off an answer.
fn outcome(answer: &Answer) -> Outcome {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    match answer.status {
        200 => Outcome::Answered {
            tokens: body["usage"]["total_tokens"].as_u64().or(answer.tokens),
        },
        status => Outcome::Status {
            status,
            reason: body["error_type"].as_str().unwrap_or_default().to_owned(),
        },
    }
}

/// The engine that the server runs, without the server.
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
            .expect("a request has documents, and there is no limit")
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
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dialects_differ_in_names() {
        let request = Request {
            query: "q".to_owned(),
            documents: vec!["d".to_owned()],
            tokens: 5,
        };
        let body = |dialect: Dialect| dialect.body(&request).to_string();
        assert_eq!(body(Dialect::Native), r#"{"documents":["d"],"query":"q"}"#);
        assert_eq!(body(Dialect::Tei), r#"{"query":"q","texts":["d"]}"#);
    }

    #[test]
    fn outcomes_are_read_off_answers() {
        let of = |status, tokens, body: &'static str| {
            outcome(&Answer {
                status,
                tokens,
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
        };
        let overloaded = r#"{"error":"e","error_type":"overloaded"}"#;
        assert_eq!(of(429, None, overloaded), refused(429, "overloaded"));
        assert_eq!(of(502, None, "<html>"), refused(502, ""));
    }

    #[test]
    fn addresses_of_other_kinds_are_refused() {
        assert!(Server::new("http://127.0.0.1:1/", Dialect::Native).is_ok());
        for url in ["127.0.0.1:8080", "https://127.0.0.1", "/rerank", "http://"] {
            let message = Server::new(url, Dialect::Native).unwrap_err();
            assert!(message.contains("http://HOST:PORT"), "{url}: {message}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_a_lost_request() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let server = Server::new(&format!("http://{address}"), Dialect::Native).unwrap();
        let outcome = server.send(Bytes::from_static(b"{}")).await;
        let Outcome::Lost(reason) = outcome else {
            panic!("{outcome:?}");
        };
        assert!(reason.to_lowercase().contains("refused"), "{reason}");
        assert!(server.info().await.is_err());
    }
}
