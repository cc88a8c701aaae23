//! What a connection still owes its client: requests without an answer, and answers of which not
//! every byte has left.

use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use crate::http::progress::Computing;
use crate::http::state::InFlight;

/// Most bytes of an answer that are handed over at a time. A client that takes one of these within
/// the patience of its connection is slow; one that does not has stopped reading.
const PIECE_BYTES: usize = 16 * 1024;

/// What goes on on one connection. A cheap handle: clones share everything.
#[derive(Clone)]
pub(super) struct Traffic(Arc<Shared>);

struct Shared {
    now: watch::Sender<Now>,
    /// Answers of which bytes were handed to the stream since it was last flushed. `None` once the
    /// stream is gone.
    unflushed: Mutex<Option<Vec<Arc<Owed>>>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Now {
    /// Requests that have begun and are not done with.
    requests: usize,
    /// Those of them whose answer is being written.
    writing: usize,
}

impl Traffic {
    /// Of a connection that begins.
    pub(super) fn new() -> Self {
        Self(Arc::new(Shared {
            now: watch::Sender::default(),
            unflushed: Mutex::new(Some(Vec::new())),
        }))
    }

    /// Counts a request from here on.
    pub(super) fn begin(&self) -> UnderWay {
        self.0.now.send_modify(|now| now.requests += 1);
        UnderWay {
            traffic: self.clone(),
            writing: AtomicBool::new(false),
        }
    }

    /// `io`, which tells when bytes have left it.
    pub(super) fn watch<IO>(&self, io: IO) -> Watched<IO> {
        Watched {
            io,
            traffic: self.clone(),
        }
    }

    /// Resolves when nothing has moved for `patience`, and nobody waits for more than the client:
    /// either there is no request, or there are only answers that the client does not read.
    pub(super) async fn still(&self, patience: Duration) {
        let mut traffic = self.0.now.subscribe();
        loop {
            let now = *traffic.borrow_and_update();
            // An error would mean that the sender is gone; `self` holds it.
            if now.requests > now.writing {
                let _ = traffic.changed().await;
            } else if tokio::time::timeout(patience, traffic.changed())
                .await
                .is_err()
            {
                return;
            }
        }
    }

    fn handed_over(&self, owed: &Arc<Owed>) {
        let mut unflushed = self.unflushed();
        if let Some(unflushed) = &mut *unflushed {
            unflushed.push(owed.clone());
        }
        drop(unflushed);
        // Nothing but the time has changed.
        self.0.now.send_modify(|_| ());
    }

    fn flushed(&self) {
        let left = self.unflushed().as_mut().map(mem::take);
        drop(left);
    }

    fn ended(&self) {
        let left = self.unflushed().take();
        drop(left);
    }

    fn unflushed(&self) -> std::sync::MutexGuard<'_, Option<Vec<Arc<Owed>>>> {
        self.0
            .unflushed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one request of a connection until it is dropped.
pub(super) struct UnderWay {
    traffic: Traffic,
    writing: AtomicBool,
}

impl UnderWay {
    /// `body`, which counts as under way until its last byte has left, and keeps `in_flight` as long.
    pub(super) fn write(self, body: Body, in_flight: Option<Arc<InFlight>>) -> Answer {
        self.is_writing(true);
        Answer {
            body,
            rest: Bytes::new(),
            computing: None,
            owed: Arc::new(Owed {
                under_way: self,
                _in_flight: in_flight,
            }),
        }
    }

    /// Whether only the client is waited for.
    fn is_writing(&self, writing: bool) {
        if self.writing.swap(writing, Ordering::Relaxed) != writing {
            self.traffic.0.now.send_modify(|now| match writing {
                true => now.writing += 1,
                false => now.writing -= 1,
            });
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.traffic.0.now.send_modify(|now| {
            now.requests -= 1;
            now.writing -= usize::from(self.writing.load(Ordering::Relaxed));
        });
    }
}

/// An answer that is not with its client yet. Held by its body, by each piece of it that lies in a
/// buffer, and by the stream until it was flushed.
struct Owed {
    under_way: UnderWay,
    _in_flight: Option<Arc<InFlight>>,
}

/// The body of an answer, in pieces that tell when they have been handed over.
pub(super) struct Answer {
    body: Body,
    /// Of the last frame.
    rest: Bytes,
    /// Messages of a stream that the body waits for.
    computing: Option<Computing>,
    owed: Arc<Owed>,
}

impl Answer {
    /// The same, whose body is of a stream.
    pub(super) fn while_computing(self, computing: Option<Computing>) -> Self {
        Self { computing, ..self }
    }

    /// Asks the body for a frame. While it has none because the model computes one, nobody waits for the
    /// client.
    fn poll_body(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Some(computing) = &self.computing {
            let waits_for_model = polled.is_pending() && computing.any();
            self.owed.under_way.is_writing(!waits_for_model);
        }
        polled
    }

    fn piece(&mut self) -> Frame<Bytes> {
        let bytes = self.rest.split_to(self.rest.len().min(PIECE_BYTES));
        Frame::data(Bytes::from_owner(Piece {
            bytes,
            owed: self.owed.clone(),
        }))
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match ready!(self.poll_body(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        Poll::Ready(Some(Ok(self.piece())))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let mut hint = self.body.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

/// Bytes that are let go of once they were handed to the stream.
struct Piece {
    bytes: Bytes,
    owed: Arc<Owed>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.owed.under_way.traffic.handed_over(&self.owed);
    }
}

/// A stream that tells when what was written to it has left.
pub(super) struct Watched<IO> {
    io: IO,
    traffic: Traffic,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(context))?;
        self.traffic.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

impl<IO> Drop for Watched<IO> {
    fn drop(&mut self) {
        self.traffic.ended();
    }
}
