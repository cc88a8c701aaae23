//! Requests to a hub: where a token may go, which failures are worth another try.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{HeaderMap, Response, StatusCode, Uri, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::{Event, HubConfig, Retries, Watch};
use rerankd_model::ModelError;
use rerankd_model::names::{ModelId, is_commit};

/// Longest that a connection takes to be made, its TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest that a connection says nothing.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// As many as hubs and their mirrors take, and a few.
const MAX_REDIRECTS: usize = 8;
/// Longest list of files that is read.
const MAX_LISTING_BYTES: u64 = 32 * 1024 * 1024;

/// A hub to be asked.
pub(super) struct Client<'a> {
    agent: Agent,
    /// Without a slash at its end.
    endpoint: String,
    origin: Origin,
    token: Option<String>,
    retries: Retries,
    watch: Watch<'a>,
}

/// Why a request did not do what it should.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Another try may go well.
    Passing {
        what: String,
        /// When to try, if the hub said so.
        after: Option<Duration>,
        /// Whether this try came further than those before it.
        progress: bool,
    },
    /// It never will.
    Final(ModelError),
}

impl Trouble {
    pub(super) fn passing(what: impl Into<String>) -> Self {
        Self::Passing {
            what: what.into(),
            after: None,
            progress: false,
        }
    }

    /// The same, where it is known whether the try came further.
    pub(super) fn after_progress(self, progress: bool) -> Self {
        match self {
            Self::Passing { what, after, .. } => Self::Passing {
                what,
                after,
                progress,
            },
            other => other,
        }
    }
}

/// Why a hub was of no use.
#[derive(Debug)]
pub(super) enum Failure {
    /// It cannot be reached, or is too busy, however often it is asked.
    Unreachable(ModelError),
    /// It says no, or what it says cannot be used.
    Refused(ModelError),
}

impl From<Failure> for ModelError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unreachable(error) | Failure::Refused(error) => error,
        }
    }
}

/// The files of a model at one commit.
#[derive(Debug)]
pub(super) struct Listing {
    pub commit: String,
    pub files: Vec<String>,
}

/// What the hub itself says of a file; a storage it sends to has no say in it.
#[derive(Debug, Default, Clone)]
pub(super) struct Facts {
    etag: Option<String>,
    linked_etag: Option<String>,
    pub size: Option<u64>,
    pub commit: Option<String>,
}

impl Facts {
    /// What names the content.
    pub(super) fn etag(&self) -> Option<&str> {
        self.linked_etag.as_deref().or(self.etag.as_deref())
    }

    fn add(&mut self, headers: &HeaderMap, redirect: bool) {
        let text = |name: &str| Some(headers.get(name)?.to_str().ok()?.to_owned());
        let number = |name: &str| text(name)?.parse().ok();
        self.etag = text("etag").or(self.etag.take());
        self.linked_etag = text("x-linked-etag").or(self.linked_etag.take());
        self.commit = text("x-repo-commit").or(self.commit.take());
        // The length of a redirect is that of its own words.
        let own = if redirect {
            None
        } else {
            number("content-length")
        };
        self.size = number("x-linked-size").or(self.size).or(own);
    }
}

/// What an address is reached by; tokens go to one of them only.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    https: bool,
    host: String,
    port: u16,
}

impl Origin {
    fn of(address: &str) -> Option<Self> {
        let uri: Uri = address.parse().ok()?;
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
    /// When the endpoint is no address, or the certificates cannot be read.
    pub(super) fn new(config: &HubConfig, watch: Watch<'a>) -> Result<Self, ModelError> {
        let endpoint = config.endpoint.trim_end_matches('/');
        let origin = Origin::of(endpoint).filter(|_| !endpoint.contains(['?', '#', '@']));
        let origin = origin.ok_or_else(|| {
            ModelError::new(
                format!("the hub `{endpoint}` is no address"),
                "write `--hub-endpoint` (or `HF_ENDPOINT`) as `https://HOST`, without a user or a query",
            )
        })?;
        let mut settings = Agent::config_builder()
            .user_agent(concat!("rerankd/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(config.proxy.clone())
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(SILENCE_TIMEOUT))
            .timeout_per_read(Some(SILENCE_TIMEOUT))
            .timeout_per_write(Some(SILENCE_TIMEOUT));
        // What is not encrypted needs no certificates; storages may be, whatever the hub is.
        settings = settings.tls_config(
            TlsConfig::builder()
                .unversioned_rustls_crypto_provider(Arc::new(
                    rustls::crypto::ring::default_provider(),
                ))
                .root_certs(RootCerts::new_with_certs(&roots(
                    config.ca_file.as_deref(),
                )?))
                .build(),
        );
        Ok(Self {
            agent: settings.build().new_agent(),
            endpoint: endpoint.to_owned(),
            origin,
            token: config.token.as_ref().map(|token| token.text().to_owned()),
            retries: config.retries,
            watch,
        })
    }

    /// What a model holds at a revision.
    pub(super) fn listing(&self, id: &ModelId) -> Result<Listing, Failure> {
        let address = format!(
            "{}/api/models/{}/revision/{}",
            self.endpoint,
            id.path(),
            encoded(id.revision(), "")
        );
        let json = self.patiently(|| {
            let mut answer = self.send(&Question::get(&address, None))?;
            self.check(id, &answer)?;
            let body = answer
                .response
                .body_mut()
                .with_config()
                .limit(MAX_LISTING_BYTES);
            let text = body
                .read_to_vec()
                .map_err(|error| self.broken(&address, &error))?;
            serde_json::from_slice::<Value>(&text)
                .map_err(|error| Trouble::Final(self.nonsense(&format!("is not JSON: {error}"))))
        })?;
        let refuse = |what: &str| Failure::Refused(self.nonsense(what));
        let commit = json["sha"].as_str().unwrap_or("");
        if !is_commit(commit) {
            return Err(refuse("names no commit"));
        }
        let files = json["siblings"].as_array().into_iter().flatten();
        let files: Option<Vec<String>> = files
            .map(|file| file["rfilename"].as_str().map(str::to_owned))
            .collect();
        Ok(Listing {
            commit: commit.to_owned(),
            files: files.ok_or_else(|| refuse("has a file without a name"))?,
        })
    }

    /// What the hub says of a file.
    pub(super) fn facts(&self, id: &ModelId, commit: &str, file: &str) -> Result<Facts, Failure> {
        let address = self.resolve(id, commit, file);
        self.patiently(|| {
            let answer = self.send(&Question::head(&address))?;
            if !answer.response.status().is_redirection() {
                self.check(id, &answer)?;
            }
            Ok(answer.facts)
        })
    }

    /// The content of a file from the byte `from` on, or from its start where the answer says so.
    pub(super) fn content(
        &self,
        id: &ModelId,
        commit: &str,
        file: &str,
        from: u64,
    ) -> Result<Response<Body>, Trouble> {
        let address = self.resolve(id, commit, file);
        let answer = self.send(&Question::get(&address, (from > 0).then_some(from)))?;
        self.check(id, &answer)?;
        Ok(answer.response)
    }

    /// Tries until it goes well, ends for good, or has failed too often in a row.
    pub(super) fn patiently<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, Trouble>,
    ) -> Result<T, Failure> {
        let mut failed = 0;
        loop {
            let (what, after) = match attempt() {
                Ok(done) => return Ok(done),
                Err(Trouble::Final(error)) => return Err(Failure::Refused(error)),
                Err(Trouble::Passing {
                    what,
                    after,
                    progress,
                }) => {
                    failed = if progress { 1 } else { failed + 1 };
                    (what, after)
                }
            };
            let wait = after.unwrap_or(self.retries.delay * 2_u32.pow(failed.min(10) - 1));
            if failed >= self.retries.attempts || wait > self.retries.longest_wait {
                let asked = match after {
                    Some(after) => format!(", and asks to come back in {} s", after.as_secs()),
                    None => String::new(),
                };
                return Err(Failure::Unreachable(ModelError::new(
                    format!("{what}{asked}"),
                    "try again later, name a mirror with `HF_ENDPOINT`, or serve a copy that is in the cache with `--offline`",
                )));
            }
            (self.watch)(Event::Waiting { what: &what, wait });
            std::thread::sleep(wait);
        }
    }

    /// Asks, and follows redirects by hand: what goes to another origin goes without the token.
    fn send(&self, question: &Question<'_>) -> Result<Answer, Trouble> {
        let mut address = question.address.to_owned();
        let mut facts = Facts::default();
        for _ in 0..=MAX_REDIRECTS {
            let origin = Origin::of(&address);
            let at_hub = origin.as_ref() == Some(&self.origin);
            let request = match question.head {
                true => self.agent.head(&address),
                false => self.agent.get(&address),
            };
            let request = match &self.token {
                Some(token) if at_hub => request.header("authorization", format!("Bearer {token}")),
                _ => request,
            };
            let request = match question.from {
                Some(from) => request.header("range", format!("bytes={from}-")),
                None => request,
            };
            let response = request
                .call()
                .map_err(|error| self.broken(&address, &error))?;
            let redirect = is_redirect(response.status());
            if at_hub {
                facts.add(response.headers(), redirect);
            }
            let next = match redirect {
                true => location(&address, response.headers()),
                false => None,
            };
            let Some(next) = next else {
                return Ok(Answer {
                    response,
                    facts,
                    at_hub,
                });
            };
            let target = Origin::of(&next);
            if question.head && target.as_ref() != Some(&self.origin) {
                return Ok(Answer {
                    response,
                    facts,
                    at_hub,
                });
            }
            if target.is_none_or(|target| self.origin.https && !target.https) {
                return Err(Trouble::Final(self.nonsense(&format!(
                    "leads from `https` to `{}`",
                    without_query(&next)
                ))));
            }
            address = next;
        }
        Err(Trouble::Final(self.nonsense(&format!(
            "is more than {MAX_REDIRECTS} redirects, the last to `{}`",
            without_query(&address)
        ))))
    }

    /// Turns the status of an answer into what it means for a model.
    fn check(&self, id: &ModelId, answer: &Answer) -> Result<(), Trouble> {
        let status = answer.response.status();
        let headers = answer.response.headers();
        let code = headers
            .get("x-error-code")
            .and_then(|code| code.to_str().ok());
        let code = code.unwrap_or("");
        let path = id.path();
        let refused = |what: String, hint: String| Err(Trouble::Final(ModelError::new(what, hint)));
        match status.as_u16() {
            200 | 206 | 416 => Ok(()),
            408 | 425 | 429 | 500..=599 => Err(Trouble::Passing {
                what: format!("{} answers {status}", self.who(answer.at_hub)),
                after: retry_after(headers),
                progress: false,
            }),
            // An address of a storage is good for a while; the hub gives a new one.
            400..=499 if !answer.at_hub => Err(Trouble::passing(format!(
                "{} answers {status}",
                self.who(false)
            ))),
            _ if code == "GatedRepo" => refused(
                format!("`{path}` is gated: the hub gives it to those who took its licence ({status})"),
                format!(
                    "accept the licence at `{}/{path}`, then pass a token of that account with `HF_TOKEN` or `--hub-token-file FILE`",
                    self.endpoint
                ),
            ),
            401 if self.token.is_none() => refused(
                format!("the hub shows no `{path}` to strangers ({status}): it is private, or not there"),
                "check the name; for a private model pass a token with `HF_TOKEN` or `--hub-token-file FILE`".to_owned(),
            ),
            401 => refused(
                format!("the hub does not take the token, or has no `{path}` ({status})"),
                "check the name, and the token in `HF_TOKEN` or of `--hub-token-file`".to_owned(),
            ),
            403 => refused(
                format!("the hub does not give `{path}` to this account ({status})"),
                match self.token {
                    Some(_) => "ask its owner for access, or pass the token of another account".to_owned(),
                    None => "pass a token with `HF_TOKEN` or `--hub-token-file FILE`".to_owned(),
                },
            ),
            404 if code == "RevisionNotFound" => refused(
                format!("`{path}` has no revision `{}` ({status})", id.revision()),
                "check the branch, the tag or the commit behind `@`".to_owned(),
            ),
            404 => refused(
                format!("the hub `{}` has no `{id}` ({status})", self.endpoint),
                "check the name; if you mean a directory, it is not there".to_owned(),
            ),
            _ => Err(Trouble::Final(self.nonsense(&format!("is {status}")))),
        }
    }

    fn who(&self, at_hub: bool) -> String {
        match at_hub {
            true => format!("the hub `{}`", self.endpoint),
            false => format!("the storage of the hub `{}`", self.endpoint),
        }
    }

    /// An answer that this program does not understand.
    pub(super) fn nonsense(&self, what: &str) -> ModelError {
        ModelError::new(
            format!("the answer of the hub `{}` {what}", self.endpoint),
            "check `--hub-endpoint` (or `HF_ENDPOINT`) and the proxy in between",
        )
    }

    /// What an exchange broke off with.
    pub(super) fn broken(&self, address: &str, error: &ureq::Error) -> Trouble {
        let host = without_query(address);
        let host = Origin::of(host).map_or_else(|| host.to_owned(), |origin| origin.host);
        let refuse = |what: String, hint: &str| Trouble::Final(ModelError::new(what, hint));
        let certificate = |error: &dyn std::fmt::Display| {
            refuse(
                format!("`{host}` cannot be trusted: {error}"),
                "behind a proxy that opens TLS, name its certificate with `--hub-ca-file FILE`",
            )
        };
        match error {
            ureq::Error::Rustls(error) => certificate(error),
            ureq::Error::Io(io) if io.kind() == std::io::ErrorKind::InvalidData => certificate(io),
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => refuse(
                format!("`{host}`: {error}"),
                "check `--hub-endpoint` (or `HF_ENDPOINT`)",
            ),
            ureq::Error::BodyExceedsLimit(limit) => {
                Trouble::Final(self.nonsense(&format!("is longer than {limit} bytes")))
            }
            _ => Trouble::passing(format!("`{host}` cannot be reached: {error}")),
        }
    }

    fn resolve(&self, id: &ModelId, commit: &str, file: &str) -> String {
        format!(
            "{}/{}/resolve/{commit}/{}",
            self.endpoint,
            id.path(),
            encoded(file, "/")
        )
    }
}

/// What is asked.
struct Question<'a> {
    address: &'a str,
    /// Only what the hub itself knows.
    head: bool,
    /// The first byte that is wanted; the whole where it is `None`.
    from: Option<u64>,
}

impl<'a> Question<'a> {
    fn get(address: &'a str, from: Option<u64>) -> Self {
        Self {
            address,
            head: false,
            from,
        }
    }

    fn head(address: &'a str) -> Self {
        Self {
            address,
            head: true,
            from: None,
        }
    }
}

struct Answer {
    response: Response<Body>,
    facts: Facts,
    /// Whether the hub gave it, and not a place that it sent to.
    at_hub: bool,
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a redirect of `address` leads.
fn location(address: &str, headers: &HeaderMap) -> Option<String> {
    let to = headers.get(header::LOCATION)?.to_str().ok()?;
    let uri: Uri = address.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    if to.starts_with("//") {
        Some(format!("{scheme}:{to}"))
    } else if to.starts_with('/') {
        Some(format!("{scheme}://{authority}{to}"))
    } else {
        Some(to.to_owned())
    }
}

/// An address without what may be a signature.
fn without_query(address: &str) -> &str {
    address.split('?').next().unwrap_or(address)
}

/// Seconds that an answer asks to wait; a date is left to our own patience.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

/// `text` as a part of an address, with the characters `kept` beside letters, digits and `-._~`.
fn encoded(text: &str, kept: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        match plain || kept.as_bytes().contains(&byte) {
            true => encoded.push(byte as char),
            false => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// The certificates that are trusted: those of the system, and those of a file.
fn roots(extra: Option<&Path>) -> Result<Vec<Certificate<'static>>, ModelError> {
    let system = rustls_native_certs::load_native_certs();
    let mut roots: Vec<Certificate<'static>> = system
        .certs
        .iter()
        .map(|certificate| Certificate::from_der(certificate.as_ref()).to_owned())
        .collect();
    let Some(path) = extra else {
        return Ok(roots);
    };
    let refuse = |what: String| {
        ModelError::new(
            format!("`--hub-ca-file` is `{}`, which {what}", path.display()),
            "name a file of certificates in PEM",
        )
    };
    let text = std::fs::read(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    let before = roots.len();
    for item in parse_pem(&text) {
        match item.map_err(|error| refuse(format!("is broken: {error}")))? {
            PemItem::Certificate(certificate) => roots.push(certificate),
            _ => continue,
        }
    }
    match roots.len() > before {
        true => Ok(roots),
        false => Err(refuse("holds no certificate".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| Origin::of(a).unwrap() == Origin::of(b).unwrap();
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
            assert_eq!(Origin::of(none), None, "{none}");
        }
    }

    #[test]
    fn a_redirect_leads_where_it_says() {
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
    fn parts_of_addresses_are_encoded() {
        assert_eq!(encoded("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(encoded("onnx/a b?.onnx", "/"), "onnx/a%20b%3F.onnx");
    }
}
