//! Calls with an answer to each message of a stream.
//!
//! Each message is a request of its own: it is admitted, scored and refused alone, and the first one that
//! fails ends the call. Answers keep the order of the messages. Only so many messages are read ahead: a
//! client that does not read its answers is not read from either.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::response::Response;
use bytes::BytesMut;
use futures_util::stream::{Stream, StreamExt, unfold};
use http_body::Frame;
use http_body_util::BodyExt;
use rerankd_core::RerankError;
use rerankd_engine::trace::Timeline;
use rerankd_grpc::frame::{FrameHead, HEAD_BYTES, cut_off, framed};
use rerankd_grpc::method::ReadOne;
use rerankd_grpc::{Call, Method};

use super::super::body::{self, BODIES_RETRY};
use super::super::budget::HeldBytes;
use super::super::error::Failure;
use super::super::hints;
use super::super::notes::attach;
use super::super::observe::RequestId;
use super::super::progress::{Computing, Streamed};
use super::super::state::{AppState, InFlight};
use super::call::{self, CallContext};
use super::head::CallHead;
use super::status;
use crate::shutdown::Phase;

/// Messages of one stream that are computed at a time, or wait for their turn to be sent.
const SCORED_AHEAD: usize = 32;

/// The same where answers are much larger than messages, and nothing is gained by batches.
const TOKENIZED_AHEAD: usize = 1;

/// The answers to the messages of `request`, each of which `read` reads.
pub(super) fn each(
    state: AppState,
    id: RequestId,
    request: Request,
    method: &'static Method,
    read: ReadOne,
) -> Result<Response, Failure> {
    let (incoming, work) = begin(state, id, request, method, read)?;
    let (streamed, computing) = (work.streamed.clone(), work.computing.clone());
    let ahead = match method.call {
        Call::TokenizesEach(_) => TOKENIZED_AHEAD,
        _ => SCORED_AHEAD,
    };
    let messages = unfold(Some(incoming), async |incoming| {
        let mut incoming = incoming?;
        match incoming.next().await {
            Ok(None) => None,
            Ok(Some(message)) => Some((Ok(message), Some(incoming))),
            Err(failure) => Some((Err(failure), None)),
        }
    });
    let work = Arc::new(work);
    let answers = messages.map(move |message| {
        let work = work.clone();
        let begun = work.computing.begin();
        async move {
            let answer = work.answer(message?).await;
            drop(begun);
            answer
        }
    });
    let answers = Answers {
        answers: Some(Box::pin(answers.buffered(ahead))),
        streamed: streamed.clone(),
    };
    let response = attach(status::answer(Body::new(answers)), streamed);
    Ok(attach(response, computing))
}

fn begin(
    state: AppState,
    id: RequestId,
    request: Request,
    method: &'static Method,
    read: ReadOne,
) -> Result<(Incoming, Work), Failure> {
    state.serving()?;
    let head = CallHead::of(&request)?;
    let (parts, body) = request.into_parts();
    let hints = hints::of_head(&parts, &state.config().batching)?;
    let work = Work {
        call: CallContext::new(state.clone(), id, method, head, hints),
        read,
        timeline: Timeline::current(),
        streamed: Streamed::default(),
        computing: Computing::default(),
    };
    let incoming = Incoming {
        in_flight: parts.extensions.get().cloned(),
        limit: state.config().http.max_body_bytes,
        held: state.bodies().begin(),
        received: BytesMut::new(),
        state,
        body,
    };
    Ok((incoming, work))
}

/// A message as it came, and what it takes of the budget of all bodies.
struct Message {
    compressed: bool,
    bytes: Bytes,
    held: HeldBytes,
}

/// The messages of a call that is still being sent.
struct Incoming {
    state: AppState,
    body: Body,
    in_flight: Option<Arc<InFlight>>,
    /// Most bytes of a message.
    limit: usize,
    /// What was received and not handed on.
    received: BytesMut,
    held: HeldBytes,
}

impl Incoming {
    /// The next message; `None` after the last one. From when the server drains on, no more are read.
    async fn next(&mut self) -> Result<Option<Message>, Failure> {
        let draining = self.state.lifecycle().reached(Phase::Draining);
        let message = tokio::select! {
            biased;
            () = draining => Err(RerankError::draining().into()),
            message = self.receive() => message,
        };
        if let (Ok(Some(_)), Some(in_flight)) = (&message, &self.in_flight) {
            in_flight.accept();
        }
        message
    }

    async fn receive(&mut self) -> Result<Option<Message>, Failure> {
        // A client may wait before it begins a message, and not inside it.
        if self.received.is_empty() && !self.more().await? {
            return Ok(None);
        }
        let timeout = self.state.config().http.body_timeout;
        let rest = tokio::time::timeout(timeout, self.rest()).await;
        rest.map_err(|_| Failure::BodyTimeout(timeout))?.map(Some)
    }

    /// The rest of a message of which something has arrived.
    async fn rest(&mut self) -> Result<Message, Failure> {
        while self.received.len() < HEAD_BYTES {
            self.piece().await?;
        }
        let head = self.received.split_to(HEAD_BYTES);
        let head = FrameHead::of(&head)?.ok_or(Failure::BodyEnded)?;
        self.held.give_back(HEAD_BYTES);
        if head.bytes > self.limit {
            return Err(body::too_large(Some(head.bytes as u64), self.limit).into());
        }
        while self.received.len() < head.bytes {
            self.piece().await?;
        }
        Ok(Message {
            compressed: head.compressed,
            bytes: self.received.split_to(head.bytes).freeze(),
            held: self.held.split(head.bytes),
        })
    }

    async fn piece(&mut self) -> Result<(), Failure> {
        match self.more().await? {
            true => Ok(()),
            false => Err(cut_off().into()),
        }
    }

    /// Receives more bytes; whether there were any.
    async fn more(&mut self) -> Result<bool, Failure> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|_| Failure::BodyEnded)?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if data.is_empty() {
                continue;
            }
            if !self.held.take(data.len()) {
                return Err(RerankError::overloaded(BODIES_RETRY).into());
            }
            // Copied, since a client may send frames of a byte each.
            self.received.extend_from_slice(&data);
            return Ok(true);
        }
        Ok(false)
    }
}

/// What answers the messages of a call.
struct Work {
    call: CallContext,
    read: ReadOne,
    timeline: Timeline,
    streamed: Streamed,
    computing: Computing,
}

impl Work {
    /// The answer to a message, in its frame.
    async fn answer(&self, message: Message) -> Result<Bytes, Failure> {
        let timeline = self.timeline.part("message");
        timeline.scope(self.answer_timed(message)).await
    }

    async fn answer_timed(&self, message: Message) -> Result<Bytes, Failure> {
        // Each message chooses its model anew: a stream may last longer than a model.
        let models = self.call.state.serving()?;
        let Message {
            compressed,
            mut bytes,
            mut held,
        } = message;
        if compressed {
            let coding = call::supported(self.call.head.coding)?;
            let limit = self.call.state.config().http.max_body_bytes;
            (bytes, held) = body::expand(coding, bytes, held, limit).await?;
        }
        let message_bytes = bytes.len();
        let answer = self
            .call
            .ask(models, bytes, message_bytes, self.read)
            .await?;
        drop(held);
        if let Some(cost) = answer.cost {
            self.streamed.change(|outcome| {
                outcome.pairs += cost.pairs;
                outcome.tokens += cost.tokens;
            });
        }
        Ok(framed(&answer.into_body()).into())
    }
}

/// The body of the answers, which ends in a status.
struct Answers<S> {
    /// `None` after the status.
    answers: Option<Pin<Box<S>>>,
    streamed: Streamed,
}

impl<S: Stream<Item = Result<Bytes, Failure>>> HttpBody for Answers<S> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(answers) = &mut self.answers else {
            return Poll::Ready(None);
        };
        let trailers = match ready!(answers.as_mut().poll_next(context)) {
            Some(Ok(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Some(Err(failure)) => {
                let trailers = status::trailers(&failure);
                self.streamed
                    .change(|outcome| outcome.failure = Some(failure));
                trailers
            }
            None => status::ok(),
        };
        // What is left of the stream is not waited for.
        self.answers = None;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}
