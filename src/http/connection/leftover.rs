//! What a client still sends when its answer is ready.
//!
//! A connection that closes with bytes unread is reset, and a client that is still writing then
//! sees the reset in place of its answer. So what nobody reads is read and thrown away, for a while.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::Version;
use hyper::body::Incoming;
use hyper::header::EXPECT;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::runtime::Handle;

/// How much is thrown away.
const DISCARD_BYTES: usize = 64 * 1024 * 1024;

/// For how long: a client that has its answer and goes on is not waited for.
const DISCARD_TIME: Duration = Duration::from_secs(10);

/// As [`DISCARD_TIME`], for connections that are refused: they have no place, and soon end.
const REFUSED_TIME: Duration = Duration::from_secs(2);

/// The body of a request. What is not read of it by the time it is dropped is thrown away.
pub(super) struct Received {
    body: Option<Incoming>,
    /// HTTP/2 ends one stream and keeps the connection.
    http1: bool,
    /// Whether the client sends its body without being asked for it, or was asked.
    comes: bool,
}

impl Received {
    /// `request` with its body watched over.
    pub(super) fn of(request: Request<Incoming>) -> Request<Self> {
        let http1 = request.version() < Version::HTTP_2;
        let comes = !request.headers().contains_key(EXPECT);
        request.map(|body| Self {
            body: Some(body),
            http1,
            comes,
        })
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // Asking for it is what makes a client send that waits for `100 Continue`.
        self.comes = true;
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(context);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let nothing = || SizeHint::with_exact(0);
        self.body.as_ref().map_or_else(nothing, HttpBody::size_hint)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let Some(body) = self.body.take() else {
            return;
        };
        if self.http1
            && self.comes
            && !body.is_end_stream()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(tokio::time::timeout(DISCARD_TIME, discard(body)));
        }
    }
}

async fn discard(mut body: Incoming) {
    let mut left = DISCARD_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let read = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(read) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// Reads to the end of `io`, as far and as long as is done for a connection that is refused.
pub(in crate::http) async fn read_off(io: impl AsyncRead + Unpin) {
    let (mut rest, mut nowhere) = (io.take(DISCARD_BYTES as u64), tokio::io::sink());
    let reading = tokio::io::copy(&mut rest, &mut nowhere);
    // Whatever comes of it, the connection closes next.
    let _ = tokio::time::timeout(REFUSED_TIME, reading).await;
}
