//! One connection: TLS, HTTP/1.1 or HTTP/2, and an end for those that only take up room.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::tls::{H2, Tls};

/// Requests of one connection at the same time. The queue is fair by requests, not by connections.
const STREAMS: u32 = 128;

/// How long a connection that speaks HTTP/2 may leave a ping without an answer.
const PONG_TIMEOUT: Duration = Duration::from_secs(20);

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
    ) -> Result<(), String>
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
            .map_err(|_| "the TLS handshake took too long".to_owned())?
            .map_err(|error| format!("TLS: {error}"))?;
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
    ) -> Result<(), String>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let busy = Arc::new(watch::Sender::new(0_usize));
        let idle = idle(busy.subscribe(), self.patience);
        let app = self.app.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let under_way = UnderWay::new(busy.clone());
            let answer = app.call(request);
            async move {
                let answer = answer.await;
                drop(under_way);
                answer
            }
        });
        let connection = builder.serve_connection(TokioIo::new(io), service);
        tokio::pin!(connection, idle);
        let (mut told, mut given_up) = (false, false);
        loop {
            tokio::select! {
                ended = connection.as_mut() => return ended.map_err(|error| error.to_string()),
                _ = closed.wait_for(|closed| *closed), if !told => {
                    told = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut idle, if !given_up => {
                    (told, given_up) = (true, true);
                    connection.as_mut().graceful_shutdown();
                }
                // Whoever does not read its last answer in the time of a request holds memory.
                () = tokio::time::sleep(self.patience), if given_up => {
                    return Err("idle, or slow to read".to_owned());
                }
            }
        }
    }
}

/// Resolves when no request has been under way for `patience`.
async fn idle(mut busy: watch::Receiver<usize>, patience: Duration) {
    loop {
        if busy.wait_for(|requests| *requests == 0).await.is_err() {
            return;
        }
        let begun = busy.wait_for(|requests| *requests > 0);
        if tokio::time::timeout(patience, begun).await.is_err() {
            return;
        }
    }
}

/// Counts one request of a connection until its answer is there.
struct UnderWay(Arc<watch::Sender<usize>>);

impl UnderWay {
    fn new(busy: Arc<watch::Sender<usize>>) -> Self {
        busy.send_modify(|requests| *requests += 1);
        Self(busy)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|requests| *requests -= 1);
    }
}
