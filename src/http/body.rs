//! Receiving a body: bounded in size and time, and expanded where it is compressed.
//!
//! Expanding is not a layer of its own, because its output counts against the budget of all bodies
//! and must not hold up the threads that serve other connections.

use std::error::Error;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use rerankd_core::{RerankError, SchedulingHints};

use super::budget::HeldBytes;
use super::error::Failure;
use super::hints;
use super::models::Models;
use super::state::{AppState, InFlight};

/// Above this size, parsing takes long enough (about 0.1 ms) that other requests would notice, and
/// a blocking thread is worth its hand-over.
const PARSE_INLINE_BYTES: usize = 64 * 1024;

/// Bytes that are expanded at a time.
const EXPAND_BYTES: usize = 16 * 1024;

/// When to come back while other bodies take up all the room: they arrive within seconds, or time
/// out.
pub const BODIES_RETRY: Duration = Duration::from_secs(1);

/// A request's body, and the models of which one will answer it.
pub struct Accepted {
    /// The models that were served when the request's head arrived.
    pub models: Arc<Models>,
    /// The body, expanded.
    pub bytes: Bytes,
    /// What the body and then its texts take of the budget of all bodies, until this is dropped.
    pub held: HeldBytes,
    /// Its tenant, priority and deadline.
    pub hints: SchedulingHints,
}

/// Reads the body of `request`.
///
/// # Errors
/// When the server is not serving, or the body is too large, too slow or broken.
pub async fn accept(request: Request, state: &AppState) -> Result<Accepted, Failure> {
    // Asked now: a request that starts before the drain is served, however long its body takes.
    let serving = state.serving();
    let (parts, body) = request.into_parts();
    let hints = hints::of_head(&parts, &state.config().batching);
    let limit = state.config().http.max_body_bytes;
    let received = receive(&parts, body, state, limit).await;
    let models = serving?;
    let (bytes, held) = received?;
    if let Some(in_flight) = parts.extensions.get::<Arc<InFlight>>() {
        in_flight.accept();
    }
    let (bytes, held) = match Coding::of(&parts.headers).ok_or(Failure::UnknownEncoding)? {
        Coding::Plain => (bytes, held),
        coding => expand(coding, bytes, held, limit).await?,
    };
    Ok(Accepted {
        models,
        bytes,
        held,
        hints: hints?,
    })
}

/// Reads a body of at most `limit` bytes as it comes, with what it takes of the budget of all bodies.
///
/// # Errors
/// When it is too large, too slow or broken.
pub async fn receive(
    parts: &Parts,
    body: Body,
    state: &AppState,
    limit: usize,
) -> Result<(Bytes, HeldBytes), Failure> {
    let timeout = state.config().http.body_timeout;
    let mut held = state.bodies().begin();
    let read = read(&parts.headers, body, limit, &mut held);
    let read = tokio::time::timeout(timeout, read).await;
    let bytes = read.map_err(|_| Failure::BodyTimeout(timeout))??;
    Ok((bytes, held))
}

/// What `bytes` are the compressed form of, at most `limit` bytes, and what it takes of the budget of all
/// bodies. What the compressed bytes took is given back.
///
/// # Errors
/// As [`Coding::expand`].
pub async fn expand(
    coding: Coding,
    bytes: Bytes,
    mut held: HeldBytes,
    limit: usize,
) -> Result<(Bytes, HeldBytes), RerankError> {
    let expanding = move || {
        let expanded = coding.expand(&bytes, limit, &mut held)?;
        held.give_back(bytes.len());
        Ok((expanded, held))
    };
    blocking("expanding a body or a message", expanding).await?
}

/// How a body or a message is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// Not at all.
    Plain,
    /// Gzip.
    Gzip,
    /// Zlib.
    Deflate,
}

impl Coding {
    /// `None` where it is not supported, or there are several.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
        let coding = codings
            .next()
            .map(|value| value.as_bytes().to_ascii_lowercase());
        match (coding.as_deref(), codings.next()) {
            (None | Some(b"identity" | b""), None) => Some(Self::Plain),
            (Some(b"gzip" | b"x-gzip"), None) => Some(Self::Gzip),
            (Some(b"deflate"), None) => Some(Self::Deflate),
            _ => None,
        }
    }

    /// What `bytes` are the compressed form of. All that it takes is taken from `held`, and it never
    /// takes more than a little over `limit` bytes.
    ///
    /// # Errors
    /// When they are not, or when there is too much.
    pub fn expand(
        self,
        bytes: &[u8],
        limit: usize,
        held: &mut HeldBytes,
    ) -> Result<Bytes, RerankError> {
        let mut packed: Box<dyn Read + '_> = match self {
            Self::Plain => Box::new(bytes),
            Self::Gzip => Box::new(MultiGzDecoder::new(bytes)),
            Self::Deflate => Box::new(ZlibDecoder::new(bytes)),
        };
        let (mut expanded, mut piece) = (Vec::new(), vec![0; EXPAND_BYTES]);
        loop {
            let read = packed.read(&mut piece).map_err(|_| {
                RerankError::invalid(
                    "the body is not what its `content-encoding` says; compress it so, or send it \
                     uncompressed",
                )
            })?;
            if read == 0 {
                return Ok(expanded.into());
            }
            if expanded.len() + read > limit {
                return Err(too_large(None, limit));
            }
            if !held.take(read) {
                return Err(RerankError::overloaded(BODIES_RETRY));
            }
            expanded.extend_from_slice(&piece[..read]);
        }
    }
}

/// What `look` makes of `bytes`, without holding up other requests.
///
/// # Errors
/// When it panicked.
pub async fn on_bytes<T: Send + 'static>(
    bytes: Bytes,
    look: impl FnOnce(Bytes) -> T + Send + 'static,
) -> Result<T, RerankError> {
    if bytes.len() <= PARSE_INLINE_BYTES {
        return Ok(look(bytes));
    }
    blocking("parsing a body", move || look(bytes)).await
}

/// What `work` gives, on a thread that serves no connections. `what` names it in the log.
///
/// # Errors
/// When it panicked.
pub async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RerankError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| RerankError::internal(format!("{what}: {error}")))
}

async fn read(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    held: &mut HeldBytes,
) -> Result<Bytes, Failure> {
    let declared = declared_size(headers);
    if let Some(size) = declared
        && size > limit as u64
    {
        return Err(too_large(Some(size), limit).into());
    }
    let declared = declared.and_then(|size| usize::try_from(size).ok());
    collect(
        Limited::new(body, limit),
        held,
        limit,
        declared.unwrap_or(0),
    )
    .await
}

/// The bytes of `body`, as long as there is room for them.
async fn collect(
    mut body: Limited<Body>,
    held: &mut HeldBytes,
    limit: usize,
    declared: usize,
) -> Result<Bytes, Failure> {
    // Most bodies are one frame, which is kept as it came.
    let mut first = Bytes::new();
    let mut all = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if error.is::<LengthLimitError>() {
                Failure::from(too_large(None, limit))
            } else if is_malformed(&*error) {
                Failure::from(RerankError::invalid(
                    "the body is not what its `transfer-encoding` says; send chunks of the size \
                     they announce",
                ))
            } else {
                Failure::BodyEnded
            }
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if !held.take(data.len()) {
            return Err(RerankError::overloaded(BODIES_RETRY).into());
        }
        if first.is_empty() {
            first = data;
        } else {
            if all.is_empty() {
                // No larger than the body, where its size is known.
                all.reserve_exact(declared);
                all.extend_from_slice(&first);
            }
            all.extend_from_slice(&data);
        }
    }
    Ok(if all.is_empty() { first } else { all.into() })
}

/// Whether the framing was wrong, and not only ended early.
fn is_malformed(error: &(dyn Error + 'static)) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput};
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return matches!(io.kind(), InvalidData | InvalidInput);
        }
        cause = error.source();
    }
    false
}

fn declared_size(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(header::CONTENT_LENGTH)?.to_str().ok()?;
    text.parse().ok()
}

/// The refusal of a body of `size` bytes, where that is known.
pub fn too_large(size: Option<u64>, limit: usize) -> RerankError {
    let has = match size {
        Some(size) => format!("the body has {size} bytes"),
        None => format!("the body has more than {limit} bytes"),
    };
    RerankError::too_large(format!(
        "{has}; the limit is {limit} (`--max-body-bytes`, `RERANKD_MAX_BODY_BYTES`)"
    ))
}
