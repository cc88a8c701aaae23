//! A body on its way to a typed request: bounded in size and time, and read as JSON whatever its
//! content type, because some clients send none.

use std::error::Error;
use std::io::{Read, Take};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::app::{AppState, InFlight};
use super::budget::HeldBytes;
use super::claim;
use super::dialect::field::{self, Fields};
use super::error::Failure;
use crate::config::HttpConfig;
use rerankd_core::{Claim, RerankError};
use rerankd_engine::service::Reranker;

/// Above this size, parsing takes long enough (about 0.1 ms) that other requests would notice, and
/// a blocking thread is worth its hand-over.
const PARSE_INLINE_BYTES: usize = 64 * 1024;

/// When to come back while other bodies take up all the room: they arrive within seconds, or time
/// out.
const BODIES_RETRY: Duration = Duration::from_secs(1);

/// A request's body, and the model that will answer it.
pub struct Accepted {
    /// The model, loaded and not draining when the request's head arrived.
    pub reranker: Arc<Reranker>,
    /// The body, unpacked.
    pub bytes: Bytes,
    /// What the body takes of what all bodies may take, until it is dropped.
    pub held: HeldBytes,
    /// What it may claim of the machine.
    pub claim: Claim,
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
    let claim = claim::of_head(&parts, &state.config().batching);
    let read = read(&parts.headers, body, config, &mut held);
    let read = tokio::time::timeout(config.body_timeout, read).await;
    let reranker = serving?;
    let bytes = read.map_err(|_| Failure::BodyTimeout(config.body_timeout))??;
    if let Some(in_flight) = parts.extensions.get::<Arc<InFlight>>() {
        in_flight.accept();
    }
    let bytes = match Coding::of(&parts.headers).ok_or(Failure::UnknownEncoding)? {
        Coding::Plain => bytes,
        coding => {
            let limit = config.max_body_bytes;
            // Expanding takes longer than reading: as long as a body of the limit does.
            tokio::task::spawn_blocking(move || coding.expand(&bytes, limit))
                .await
                .map_err(|error| RerankError::internal(format!("expanding a body: {error}")))??
        }
    };
    Ok(Accepted {
        reranker,
        bytes,
        held,
        claim: claim?,
    })
}

/// How a body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Plain,
    Gzip,
    Deflate,
}

impl Coding {
    /// `None` where it is one that is not read, or several at once.
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

    /// What `bytes` are the packed form of. Never holds more than `limit` bytes of it.
    fn expand(self, bytes: &[u8], limit: usize) -> Result<Bytes, RerankError> {
        /// One byte more than is allowed tells what is too large from what is just as large.
        fn unpacked(mut packed: Take<impl Read>) -> std::io::Result<Vec<u8>> {
            let mut expanded = Vec::new();
            packed.read_to_end(&mut expanded)?;
            Ok(expanded)
        }
        let most = limit as u64 + 1;
        let expanded = match self {
            Self::Plain => return Ok(Bytes::copy_from_slice(bytes)),
            Self::Gzip => unpacked(MultiGzDecoder::new(bytes).take(most)),
            Self::Deflate => unpacked(ZlibDecoder::new(bytes).take(most)),
        };
        match expanded {
            Ok(expanded) if expanded.len() > limit => Err(too_large(None, limit)),
            Ok(expanded) => Ok(expanded.into()),
            Err(_) => Err(RerankError::invalid(
                "the body is not what its `content-encoding` says; pack it so, or send it plain",
            )),
        }
    }
}

/// Reads `bytes` as a request of one dialect.
///
/// # Errors
/// What is wrong with it.
pub async fn parse<T: Fields>(bytes: &Bytes) -> Result<T, RerankError> {
    on_bytes(bytes, field::parse).await?
}

/// Looks at `bytes` without holding up other requests.
///
/// # Errors
/// When looking panicked.
pub async fn on_bytes<T: Send + 'static>(
    bytes: &Bytes,
    look: impl FnOnce(&[u8]) -> T + Send + 'static,
) -> Result<T, RerankError> {
    if bytes.len() <= PARSE_INLINE_BYTES {
        return Ok(look(bytes));
    }
    let bytes = bytes.clone();
    tokio::task::spawn_blocking(move || look(&bytes))
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
    if let Some(size) = declared_size(headers)
        && size > limit as u64
    {
        return Err(too_large(Some(size), limit).into());
    }
    collect(Limited::new(body, limit), held, limit).await
}

/// The bytes of `body`, as long as there is room for them.
async fn collect(
    mut body: Limited<Body>,
    held: &mut HeldBytes,
    limit: usize,
) -> Result<Bytes, Failure> {
    // Most bodies are one frame, which is kept as it came.
    let mut first = Bytes::new();
    let mut all = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| match error.is::<LengthLimitError>() {
            true => too_large(None, limit).into(),
            false if is_malformed(&*error) => Failure::from(RerankError::invalid(
                "the body is not what its `transfer-encoding` says; send it in chunks of their size",
            )),
            false => Failure::BodyEnded,
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
                all.extend_from_slice(&first);
            }
            all.extend_from_slice(&data);
        }
    }
    Ok(if all.is_empty() { first } else { all.into() })
}

/// Whether what came was wrong, and not only less than was announced.
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
