//! One connection: TLS, HTTP/1.1 or HTTP/2, and an end for those that only take up room.

mod leftover;
mod traffic;

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use self::leftover::Received;
pub(super) use self::leftover::read_off;
use self::traffic::Traffic;
use super::progress::Computing;
use super::state::InFlight;
use super::tls::{H2, Tls};

/// Requests of one connection at the same time. The queue is fair by requests, not by connections.
const STREAMS: u32 = 128;

/// How long a connection that speaks HTTP/2 may leave a ping without an answer.
const PONG_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a connection ended before its client closed it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("the TLS handshake took too long")]
    HandshakeTimeout,
    #[error("TLS: {0}")]
    Tls(#[source] io::Error),
    #[error("idle, or slow to read")]
    Idle,
    /// The client does not speak HTTP, or is gone.
    #[error("{0}")]
    Http(#[source] Box<dyn Error + Send + Sync>),
}

/// Speaks HTTP on connections.
pub(super) struct Protocols {
    /// Tells the protocols apart by what the client sends first.
    either: Builder<TokioExecutor>,
    http1: Builder<TokioExecutor>,
    http2: Builder<TokioExecutor>,
    app: TowerToHyperService<Router>,
    patience: Duration,
}

impl Protocols {
    /// Serves `app`; a connection may be idle, or busy with one head, for `patience`.
    pub(super) fn new(app: Router, patience: Duration) -> Self {
        let mut either = Builder::new(TokioExecutor::new());
        either
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(patience);
        either
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            // A client that went away without a word is noticed, and its requests are dropped.
            .keep_alive_interval(patience)
            .keep_alive_timeout(PONG_TIMEOUT);
        Self {
            http1: either.clone().http1_only(),
            http2: either.clone().http2_only(),
            either,
            app: TowerToHyperService::new(app),
            patience,
        }
    }

    /// Serves one connection to its end; from `closed` on, to the end of what is under way.
    pub(super) async fn serve<IO>(
        &self,
        io: IO,
        tls: Option<&Tls>,
        mut closed: watch::Receiver<bool>,
    ) -> Result<(), ConnectionError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(tls) = tls else {
            return self.speak(&self.either, io, closed).await;
        };
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(self.patience, tls.accept(io)) => shaken,
            _ = closed.wait_for(|closed| *closed) => return Ok(()),
        };
        let stream = shaken
            .map_err(|_| ConnectionError::HandshakeTimeout)?
            .map_err(ConnectionError::Tls)?;
        let builder = match stream.get_ref().1.alpn_protocol() {
            Some(H2) => &self.http2,
            _ => &self.http1,
        };
        self.speak(builder, stream, closed).await
    }

    async fn speak<IO>(
        &self,
        builder: &Builder<TokioExecutor>,
        io: IO,
        mut closed: watch::Receiver<bool>,
    ) -> Result<(), ConnectionError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let traffic = Traffic::new();
        let io = TokioIo::new(traffic.watch(io));
        let app = self.app.clone();
        let requests = traffic.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let under_way = requests.begin();
            let answer = app.call(Received::of(request));
            async move {
                let (mut head, body) = answer.await?.into_parts();
                let in_flight = head.extensions.remove::<Arc<InFlight>>();
                let computing = head.extensions.remove::<Computing>();
                let body = under_way.write(body, in_flight).while_computing(computing);
                Ok::<_, Infallible>(Response::from_parts(head, body))
            }
        });
        let connection = builder.serve_connection(io, service);
        let still = traffic.still(self.patience);
        tokio::pin!(connection, still);
        let (mut told, mut given_up) = (false, false);
        loop {
            tokio::select! {
                ended = connection.as_mut() => return ended.map_err(ConnectionError::Http),
                _ = closed.wait_for(|closed| *closed), if !told => {
                    told = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = still.as_mut() => {
                    // It was asked to close, and has not in the same time again. A request that
                    // came at the last moment starts that time anew.
                    if given_up {
                        return Err(ConnectionError::Idle);
                    }
                    (told, given_up) = (true, true);
                    connection.as_mut().graceful_shutdown();
                    still.set(traffic.still(self.patience));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::task::{Context, Waker};

    use axum::body::{Body, Bytes, HttpBody};
    use axum::routing::post;
    use hyper::Request;
    use tokio::io::duplex;
    use tokio::time::{Instant, sleep};

    const PATIENCE: Duration = Duration::from_secs(10);
    /// Of an answer: some hundred times what a stream may have open.
    const ANSWER_BYTES: usize = 4 << 20;

    /// What a slow client reads in that time.
    const BYTES_A_PATIENCE: f64 = 160e3;

    /// A client of HTTP/2 that has asked for a long answer, and how the server's side of it ends.
    async fn asked() -> (
        hyper::http::response::Parts,
        h2::RecvStream,
        tokio::task::JoinHandle<Result<(), ConnectionError>>,
    ) {
        let app = Router::new().route("/", post(async || vec![0; ANSWER_BYTES]));
        let (client, server) = duplex(4096);
        let (_open, closed) = watch::channel(false);
        let served = tokio::spawn(async move {
            let protocols = Protocols::new(app, PATIENCE);
            let served = protocols.serve(server, None, closed).await;
            drop(_open);
            served
        });
        let (mut client, connection) = h2::client::handshake(client).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post("http://test/").body(()).unwrap();
        let (answer, _) = client.send_request(request, true).unwrap();
        let (head, body) = answer.await.unwrap().into_parts();
        (head, body, served)
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_of_http2_is_not_idle() {
        let (head, mut body, served) = asked().await;
        assert_eq!(head.status, 200);
        let begun = Instant::now();
        let mut read = 0;
        while let Some(data) = body.data().await {
            let Ok(data) = data else {
                panic!("after {:?}: {:?}", begun.elapsed(), served.await);
            };
            read += data.len();
            sleep(PATIENCE.mul_f64(data.len() as f64 / BYTES_A_PATIENCE)).await;
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        assert_eq!(read, ANSWER_BYTES);
        assert!(begun.elapsed() > 4 * PATIENCE, "it was slow indeed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_of_http2_that_stops_reading_is_closed() {
        let (_head, _body, served) = asked().await;
        let begun = Instant::now();
        let error = served.await.unwrap().unwrap_err();
        assert!(matches!(error, ConnectionError::Idle), "{error}");
        assert!(begun.elapsed() <= 3 * PATIENCE);
    }

    /// A stream has an answer under way from its head on, and its messages are computed meanwhile.
    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_messages_are_computed_is_not_idle() {
        let traffic = Traffic::new();
        let computing = Computing::default();
        let begun = computing.begin();
        let pending =
            Body::from_stream(futures_util::stream::pending::<Result<Bytes, Infallible>>());
        let stream = traffic.begin().write(pending, None);
        let mut stream = stream.while_computing(Some(computing));
        let still = traffic.still(PATIENCE);
        tokio::pin!(still);
        let mut poll = || {
            let mut context = Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut stream).poll_frame(&mut context).is_pending());
        };
        poll();
        let waited = tokio::time::timeout(100 * PATIENCE, still.as_mut()).await;
        assert!(waited.is_err(), "it waits for the model");
        drop(begun);
        poll();
        let start = Instant::now();
        still.await;
        assert_eq!(start.elapsed(), PATIENCE, "it waits for the client");
    }

    /// Beside an answer that nobody reads, another request is computed for longer than any patience.
    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_something_is_computed_is_not_idle() {
        let traffic = Traffic::new();
        let unread = traffic.begin().write(vec![0; 8].into(), None);
        let computed = traffic.begin();
        let still = traffic.still(PATIENCE);
        tokio::pin!(still);
        let waited = tokio::time::timeout(100 * PATIENCE, still.as_mut()).await;
        assert!(waited.is_err());
        drop(computed);
        let begun = Instant::now();
        still.await;
        assert_eq!(begun.elapsed(), PATIENCE);
        drop(unread);
    }
}
