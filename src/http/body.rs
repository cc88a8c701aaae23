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
use axum::http::{HeaderMap, header};
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use rerankd_core::{RerankError, SchedulingHints};

use super::budget::HeldBytes;
use super::error::Failure;
use super::hints;
use super::models::Models;
use super::state::{AppState, InFlight};
use crate::config::HttpConfig;

/// Above this size, parsing takes long enough (about 0.1 ms) that other requests would notice, and
/// a blocking thread is worth its hand-over.
const PARSE_INLINE_BYTES: usize = 64 * 1024;

/// Bytes that are expanded at a time.
const EXPAND_BYTES: usize = 16 * 1024;

/// When to come back while other bodies take up all the room: they arrive within seconds, or time
/// out.
const BODIES_RETRY: Duration = Duration::from_secs(1);

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
    let config = &state.config().http;
    let (parts, body) = request.into_parts();
    let mut held = state.bodies().begin();
    let hints = hints::of_head(&parts, &state.config().batching);
    let read = read(&parts.headers, body, config, &mut held);
    let read = tokio::time::timeout(config.body_timeout, read).await;
    let models = serving?;
    let bytes = read.map_err(|_| Failure::BodyTimeout(config.body_timeout))??;
    if let Some(in_flight) = parts.extensions.get::<Arc<InFlight>>() {
        in_flight.accept();
    }
    let bytes = match Coding::of(&parts.headers).ok_or(Failure::UnknownEncoding)? {
        Coding::Plain => bytes,
        coding => {
            let limit = config.max_body_bytes;
            // Expanding takes longer than reading: as long as a body of the limit does.
            let expanding = tokio::task::spawn_blocking(move || {
                let expanded = coding.expand(&bytes, limit, &mut held);
                held.give_back(bytes.len());
                (expanded, held)
            });
            let expanded;
            (expanded, held) = expanding
                .await
                .map_err(|error| RerankError::internal(format!("expanding a body: {error}")))?;
            expanded?
        }
    };
    Ok(Accepted {
        models,
        bytes,
        held,
        hints: hints?,
    })
}

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Plain,
    Gzip,
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
    fn expand(
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
    tokio::task::spawn_blocking(move || look(bytes))
        .await
        .map_err(|error| RerankError::internal(format!("parsing a body: {error}")))
}

async fn read(
    headers: &HeaderMap,
    body: Body,
    config: &HttpConfig,
    held: &mut HeldBytes,
) -> Result<Bytes, Failure> {
    let limit = config.max_body_bytes;
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

fn too_large(size: Option<u64>, limit: usize) -> RerankError {
    let has = match size {
        Some(size) => format!("the body has {size} bytes"),
        None => format!("the body has more than {limit} bytes"),
    };
    RerankError::too_large(format!(
        "{has}; the limit is {limit} (`--max-body-bytes`, `RERANKD_MAX_BODY_BYTES`)"
    ))
}
