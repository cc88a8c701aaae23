//! A body on its way to a typed request: bounded in size and time, and read as JSON whatever its
//! content type, because some clients send none.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::app::AppState;
use super::dialect::field::{self, Fields};
use super::error::Failure;
use crate::config::HttpConfig;
use crate::rerank::RerankError;
use crate::service::Reranker;

/// Above this size, parsing takes long enough (about 0.1 ms) that other requests would notice, and
/// a blocking thread is worth its hand-over.
const PARSE_INLINE_BYTES: usize = 64 * 1024;

/// How much of a body that is too large is read and thrown away. A client that is still writing
/// when the connection closes sees a reset connection instead of the answer.
const DISCARD_BYTES: usize = 64 * 1024 * 1024;

/// A request's body, and the model that will answer it.
pub struct Accepted {
    /// The model, loaded and not draining when the request's head arrived.
    pub reranker: Arc<Reranker>,
    /// The body as it came.
    pub bytes: Bytes,
}

/// Reads the body of `request`.
///
/// # Errors
/// When the server is not serving, or the body is too large, too slow or broken.
pub async fn accept(request: Request, state: &AppState) -> Result<Accepted, Failure> {
    // Asked now: a request that starts before the drain is served, however long its body takes.
    // Told after the body is read: an answer to half a body can get lost with the connection.
    let serving = state.serving();
    let config = &state.config().http;
    let (parts, body) = request.into_parts();
    let read = read(&parts.headers, body, config);
    let read = tokio::time::timeout(config.body_timeout, read).await;
    let reranker = serving?;
    let bytes = read.map_err(|_| Failure::BodyTimeout(config.body_timeout))??;
    Ok(Accepted { reranker, bytes })
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

async fn read(headers: &HeaderMap, body: Body, config: &HttpConfig) -> Result<Bytes, RerankError> {
    let limit = config.max_body_bytes;
    if let Some(size) = declared_size(headers)
        && size > limit as u64
    {
        // A client that asks first (`Expect: 100-continue`) has sent nothing to throw away.
        if size <= DISCARD_BYTES as u64 && !headers.contains_key(header::EXPECT) {
            discard(body).await;
        }
        return Err(too_large(Some(size), limit));
    }
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large(None, limit)),
        Err(_) => Err(RerankError::invalid(
            "the body ended early; send as much as its headers announce",
        )),
    }
}

fn declared_size(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(header::CONTENT_LENGTH)?.to_str().ok()?;
    text.parse().ok()
}

async fn discard(mut body: Body) {
    while let Some(Ok(_)) = body.frame().await {}
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
