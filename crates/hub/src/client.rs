//! HTTP requests to a hub: token scope, redirects, retries and error messages.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{HeaderMap, Response, StatusCode, Uri, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::{DownloadEvent, HubConfig, ProgressFn, Retries};
use rerankd_model::ModelError;
use rerankd_model::names::{ModelId, is_commit};

/// Timeout for connecting, TLS handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Timeout for a single read or write.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// More than hubs and their mirrors use.
const MAX_REDIRECTS: usize = 8;
const MAX_LISTING_BYTES: u64 = 32 * 1024 * 1024;

pub(super) struct Client<'a> {
    agent: Agent,
    /// Without a trailing slash.
    endpoint: String,
    origin: Origin,
    token: Option<String>,
    retries: Retries,
    progress: ProgressFn<'a>,
}

/// Why one attempt of a request failed.
#[derive(Debug)]
pub(super) enum AttemptError {
    /// Another attempt may succeed.
    Transient {
        what: String,
        /// Delay that the hub asked for.
        retry_after: Option<Duration>,
        /// Whether this attempt received more than those before it.
        progress: bool,
    },
    /// No attempt will succeed.
    Permanent(ModelError),
}

impl AttemptError {
    pub(super) fn transient(what: impl Into<String>) -> Self {
        Self::Transient {
            what: what.into(),
            retry_after: None,
            progress: false,
        }
    }
}

impl From<ModelError> for AttemptError {
    fn from(error: ModelError) -> Self {
        Self::Permanent(error)
    }
}

/// Why a request failed, after all attempts.
#[derive(Debug)]
pub(super) enum RequestError {
    /// The hub is unreachable or overloaded.
    Unavailable(ModelError),
    /// The hub refused the request, or its response is invalid.
    Rejected(ModelError),
}

impl From<RequestError> for ModelError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Unavailable(error) | RequestError::Rejected(error) => error,
        }
    }
}

/// The files of a model at one commit.
#[derive(Debug)]
pub(super) struct Listing {
    pub commit: String,
    pub files: Vec<String>,
}

/// Metadata of a file from the hub's own headers; those of its storage are ignored.
#[derive(Debug, Default, Clone)]
pub(super) struct FileMetadata {
    etag: Option<String>,
    linked_etag: Option<String>,
    pub size: Option<u64>,
    pub commit: Option<String>,
}

impl FileMetadata {
    /// The ETag of the content.
    pub(super) fn etag(&self) -> Option<&str> {
        self.linked_etag.as_deref().or(self.etag.as_deref())
    }

    fn add(&mut self, headers: &HeaderMap, redirect: bool) {
        let text = |name: &str| Some(headers.get(name)?.to_str().ok()?.to_owned());
        let number = |name: &str| text(name)?.parse().ok();
        self.etag = text("etag").or(self.etag.take());
        self.linked_etag = text("x-linked-etag").or(self.linked_etag.take());
        self.commit = text("x-repo-commit").or(self.commit.take());
        // The content length of a redirect is not that of the file.
        let length = number("content-length").filter(|_| !redirect);
        self.size = number("x-linked-size").or(self.size).or(length);
    }
}

/// The origin of a URL; the token is sent to that of the hub only.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    https: bool,
    host: String,
    port: u16,
}

impl Origin {
    fn parse(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        Some(Self {
            https,
            host: uri.host()?.to_ascii_lowercase(),
            port: uri.port_u16().unwrap_or(if https { 443 } else { 80 }),
        })
    }
}

impl<'a> Client<'a> {
    /// Opens no connection yet.
    ///
    /// # Errors
    /// If the endpoint is not a URL, or the certificates cannot be read.
    pub(super) fn new(config: &HubConfig, progress: ProgressFn<'a>) -> Result<Self, ModelError> {
        let endpoint = config.endpoint.trim_end_matches('/');
        let origin = Origin::parse(endpoint).filter(|_| !endpoint.contains(['?', '#', '@']));
        let origin = origin.ok_or_else(|| {
            ModelError::new(
                format!("invalid hub endpoint `{endpoint}`"),
                "set `--hub-endpoint` (or `HF_ENDPOINT`) to `https://HOST`, without credentials or a query",
            )
        })?;
        let crypto = Arc::new(rustls::crypto::ring::default_provider());
        let roots = root_certificates(config.ca_file.as_deref())?;
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(crypto)
            .root_certs(RootCerts::new_with_certs(&roots))
            .build();
        let agent = Agent::config_builder()
            .user_agent(concat!("rerankd/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(config.proxy.clone())
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(IDLE_TIMEOUT))
            .timeout_per_read(Some(IDLE_TIMEOUT))
            .timeout_per_write(Some(IDLE_TIMEOUT))
            .tls_config(tls);
        Ok(Self {
            agent: agent.build().new_agent(),
            endpoint: endpoint.to_owned(),
            origin,
            token: config.token.as_ref().map(|token| token.text().to_owned()),
            retries: config.retries,
            progress,
        })
    }

    /// Lists the files of a model at a revision.
    pub(super) fn listing(&self, id: &ModelId) -> Result<Listing, RequestError> {
        let url = format!(
            "{}/api/models/{}/revision/{}",
            self.endpoint,
            id.path(),
            percent_encode(id.revision(), "")
        );
        let json = self.with_retries(|| {
            let mut exchange = self.send(&url, Method::Get { from: 0 })?;
            self.check_status(id, &exchange)?;
            let body = exchange.response.body_mut().with_config();
            let text = body
                .limit(MAX_LISTING_BYTES)
                .read_to_vec()
                .map_err(|error| self.transport_error(&url, error))?;
            serde_json::from_slice::<Value>(&text)
                .map_err(|error| self.invalid_response("is not JSON").caused_by(error).into())
        })?;
        let invalid = |what: &str| RequestError::Rejected(self.invalid_response(what));
        let commit = json["sha"].as_str().unwrap_or("");
        if !is_commit(commit) {
            return Err(invalid("has no commit"));
        }
        let files = json["siblings"].as_array().into_iter().flatten();
        let files: Option<Vec<String>> = files
            .map(|file| file["rfilename"].as_str().map(str::to_owned))
            .collect();
        Ok(Listing {
            commit: commit.to_owned(),
            files: files.ok_or_else(|| invalid("has a file without a name"))?,
        })
    }

    pub(super) fn file_metadata(
        &self,
        id: &ModelId,
        commit: &str,
        file: &str,
    ) -> Result<FileMetadata, RequestError> {
        let url = self.file_url(id, commit, file);
        self.with_retries(|| {
            let exchange = self.send(&url, Method::Head)?;
            if !exchange.response.status().is_redirection() {
                self.check_status(id, &exchange)?;
            }
            Ok(exchange.metadata)
        })
    }

    /// Requests the content of a file from byte `from` on. The server may send the whole file instead.
    pub(super) fn content(
        &self,
        id: &ModelId,
        commit: &str,
        file: &str,
        from: u64,
    ) -> Result<Response<Body>, AttemptError> {
        let exchange = self.send(&self.file_url(id, commit, file), Method::Get { from })?;
        self.check_status(id, &exchange)?;
        Ok(exchange.response)
    }

    /// Retries transient failures, up to the limit of consecutive attempts without progress.
    pub(super) fn with_retries<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, AttemptError>,
    ) -> Result<T, RequestError> {
        let mut failed = 0;
        loop {
            let (what, retry_after) = match attempt() {
                Ok(value) => return Ok(value),
                Err(AttemptError::Permanent(error)) => return Err(RequestError::Rejected(error)),
                Err(AttemptError::Transient {
                    what,
                    retry_after,
                    progress,
                }) => {
                    failed = if progress { 1 } else { failed + 1 };
                    (what, retry_after)
                }
            };
            let wait = retry_after.unwrap_or(self.retries.delay * 2_u32.pow(failed.min(10) - 1));
            if failed >= self.retries.attempts || wait > self.retries.longest_wait {
                let delay = match retry_after {
                    Some(delay) => format!(" (retry after {} s)", delay.as_secs()),
                    None => String::new(),
                };
                return Err(RequestError::Unavailable(ModelError::new(
                    format!("{what}{delay}"),
                    "try again later, use a mirror with `HF_ENDPOINT`, or use a cached copy with `--offline`",
                )));
            }
            (self.progress)(DownloadEvent::Retrying { what: &what, wait });
            std::thread::sleep(wait);
        }
    }

    /// Sends a request and follows redirects, with the token only for the hub's own origin.
    fn send(&self, url: &str, method: Method) -> Result<Exchange, AttemptError> {
        let mut url = url.to_owned();
        let mut metadata = FileMetadata::default();
        for _ in 0..=MAX_REDIRECTS {
            let from_hub = Origin::parse(&url).as_ref() == Some(&self.origin);
            let mut request = match method {
                Method::Head => self.agent.head(&url),
                Method::Get { .. } => self.agent.get(&url),
            };
            if let Some(token) = self.token.as_ref().filter(|_| from_hub) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if let Method::Get { from: from @ 1.. } = method {
                request = request.header("range", format!("bytes={from}-"));
            }
            let response = request
                .call()
                .map_err(|error| self.transport_error(&url, error))?;
            let redirect = is_redirect(response.status());
            if from_hub {
                metadata.add(response.headers(), redirect);
            }
            let next = redirect.then(|| location(&url, response.headers()));
            let exchange = Exchange {
                response,
                metadata: metadata.clone(),
                from_hub,
            };
            let Some(next) = next.flatten() else {
                return Ok(exchange);
            };
            let target = Origin::parse(&next);
            if matches!(method, Method::Head) && target.as_ref() != Some(&self.origin) {
                return Ok(exchange);
            }
            if target.is_none_or(|target| self.origin.https && !target.https) {
                let what = format!("redirects from `https` to `{}`", without_query(&next));
                return Err(self.invalid_response(&what).into());
            }
            url = next;
        }
        let what = format!(
            "has more than {MAX_REDIRECTS} redirects, the last to `{}`",
            without_query(&url)
        );
        Err(self.invalid_response(&what).into())
    }

    /// Maps an error status to a message about the model.
    fn check_status(&self, id: &ModelId, exchange: &Exchange) -> Result<(), AttemptError> {
        let status = exchange.response.status();
        let headers = exchange.response.headers();
        let code = headers.get("x-error-code");
        let code = code.and_then(|code| code.to_str().ok()).unwrap_or("");
        let path = id.path();
        let reject = |what: String, hint: &str| Err(ModelError::new(what, hint).into());
        match status.as_u16() {
            200 | 206 | 416 => Ok(()),
            408 | 425 | 429 | 500..=599 => Err(AttemptError::Transient {
                what: format!("{} returned {status}", self.responder(exchange.from_hub)),
                retry_after: retry_after(headers),
                progress: false,
            }),
            // A storage URL expires; the hub issues a new one.
            400..=499 if !exchange.from_hub => Err(AttemptError::transient(format!(
                "{} returned {status}",
                self.responder(false)
            ))),
            _ if code == "GatedRepo" => reject(
                format!("`{path}` is gated and requires accepting its license ({status})"),
                &format!(
                    "accept the license at `{}/{path}`, then pass a token of that account with `HF_TOKEN` or `--hub-token-file FILE`",
                    self.endpoint
                ),
            ),
            401 if self.token.is_none() => reject(
                format!("`{path}` not found, or private ({status})"),
                "check the name; for a private model pass a token with `HF_TOKEN` or `--hub-token-file FILE`",
            ),
            401 => reject(
                format!("`{path}` not found, or the token is invalid ({status})"),
                "check the name, and the token in `HF_TOKEN` or `--hub-token-file`",
            ),
            403 => reject(
                format!("access to `{path}` denied ({status})"),
                match self.token {
                    Some(_) => "ask its owner for access, or pass the token of another account",
                    None => "pass a token with `HF_TOKEN` or `--hub-token-file FILE`",
                },
            ),
            404 if code == "RevisionNotFound" => reject(
                format!("`{path}` has no revision `{}` ({status})", id.revision()),
                "check the branch, tag or commit after `@`",
            ),
            404 => reject(
                format!("`{id}` not found on the hub `{}` ({status})", self.endpoint),
                "check the name; if it is meant to be a directory, it does not exist",
            ),
            _ => Err(self
                .invalid_response(&format!("has the status {status}"))
                .into()),
        }
    }

    fn responder(&self, from_hub: bool) -> String {
        let storage = if from_hub { "" } else { "the storage of " };
        format!("{storage}the hub `{}`", self.endpoint)
    }

    /// The error for a response that violates the protocol.
    pub(super) fn invalid_response(&self, what: &str) -> ModelError {
        ModelError::new(
            format!("the response of the hub `{}` {what}", self.endpoint),
            "check `--hub-endpoint` (or `HF_ENDPOINT`) and any proxy in between",
        )
    }

    fn transport_error(&self, url: &str, error: ureq::Error) -> AttemptError {
        let host = without_query(url);
        let host = Origin::parse(host).map_or_else(|| host.to_owned(), |origin| origin.host);
        let untrusted = match &error {
            ureq::Error::Rustls(_) => true,
            ureq::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
            _ => false,
        };
        if untrusted {
            let error = ModelError::new(
                format!("TLS connection to `{host}` failed"),
                "behind a proxy that intercepts TLS, pass its certificate with `--hub-ca-file FILE`",
            )
            .caused_by(error);
            return error.into();
        }
        match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => ModelError::new(
                format!("invalid request to `{host}`"),
                "check `--hub-endpoint` (or `HF_ENDPOINT`)",
            )
            .caused_by(error)
            .into(),
            ureq::Error::BodyExceedsLimit(limit) => self
                .invalid_response(&format!("is longer than {limit} bytes"))
                .into(),
            error => AttemptError::transient(format!("`{host}` is unreachable: {error}")),
        }
    }

    fn file_url(&self, id: &ModelId, commit: &str, file: &str) -> String {
        format!(
            "{}/{}/resolve/{commit}/{}",
            self.endpoint,
            id.path(),
            percent_encode(file, "/")
        )
    }
}

#[derive(Clone, Copy)]
enum Method {
    /// Metadata only; redirects to other origins are not followed.
    Head,
    /// Content from this byte on.
    Get { from: u64 },
}

/// The final response of a request, after redirects.
struct Exchange {
    response: Response<Body>,
    metadata: FileMetadata,
    /// Whether the hub itself responded, not its storage.
    from_hub: bool,
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// The absolute target of a redirect.
fn location(url: &str, headers: &HeaderMap) -> Option<String> {
    let to = headers.get(header::LOCATION)?.to_str().ok()?;
    let uri: Uri = url.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    if to.starts_with("//") {
        Some(format!("{scheme}:{to}"))
    } else if to.starts_with('/') {
        Some(format!("{scheme}://{authority}{to}"))
    } else {
        Some(to.to_owned())
    }
}

/// A URL without its query, which may be a signature.
fn without_query(url: &str) -> &str {
    url.split('?').next().unwrap_or(url)
}

/// `Retry-After` in seconds; a date is ignored.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

/// Encodes a URL component, except unreserved characters and those in `kept`.
fn percent_encode(text: &str, kept: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        let unreserved = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if unreserved || kept.as_bytes().contains(&byte) {
            encoded.push(byte as char);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The system's root certificates and those in `ca_file`.
fn root_certificates(ca_file: Option<&Path>) -> Result<Vec<Certificate<'static>>, ModelError> {
    let system = rustls_native_certs::load_native_certs();
    let mut roots: Vec<Certificate<'static>> = system
        .certs
        .iter()
        .map(|certificate| Certificate::from_der(certificate.as_ref()).to_owned())
        .collect();
    let Some(path) = ca_file else {
        return Ok(roots);
    };
    let invalid = |what: &str| {
        ModelError::new(
            format!("`--hub-ca-file`: `{}` {what}", path.display()),
            "pass a file of certificates in PEM format",
        )
    };
    let text = std::fs::read(path).map_err(|e| invalid("cannot be read").caused_by(e))?;
    let system = roots.len();
    for item in parse_pem(&text) {
        let item = item.map_err(|e| invalid("is not valid PEM").caused_by(e))?;
        if let PemItem::Certificate(certificate) = item {
            roots.push(certificate);
        }
    }
    if roots.len() == system {
        return Err(invalid("has no certificate"));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| Origin::parse(a).unwrap() == Origin::parse(b).unwrap();
        assert!(same("https://hub.example/a", "https://HUB.example:443/b?c"));
        for other in [
            "http://hub.example/a",
            "https://hub.example:444/a",
            "https://cdn.hub.example/a",
            "https://hub.example.evil/a",
            "https://hub.example@evil/a",
        ] {
            assert!(!same("https://hub.example/a", other), "{other}");
        }
        for none in [
            "hub.example",
            "ftp://hub.example",
            "file:///etc/passwd",
            "/a",
        ] {
            assert_eq!(Origin::parse(none), None, "{none}");
        }
    }

    #[test]
    fn redirects_are_resolved_against_the_request_url() {
        let to = |location_header: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::LOCATION, location_header.parse().unwrap());
            location("https://hub.example/a/b?c", &headers).unwrap()
        };
        assert_eq!(to("/x?y"), "https://hub.example/x?y");
        assert_eq!(to("//cdn.example/x"), "https://cdn.example/x");
        assert_eq!(to("https://cdn.example/x"), "https://cdn.example/x");
    }

    #[test]
    fn url_components_are_percent_encoded() {
        assert_eq!(percent_encode("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(percent_encode("onnx/a b?.onnx", "/"), "onnx/a%20b%3F.onnx");
    }
}
