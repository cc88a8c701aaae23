//! The HTTP edge: bytes to commands, rankings to bytes.
//!
//! The caller brings the listener and decides when to stop. Nothing here knows the model, flags or
//! the environment; nothing outside names axum.

pub mod admin;
pub mod app;
pub mod auth;
pub mod body;
pub mod budget;
pub mod claim;
mod connection;
pub mod dialect;
pub mod error;
mod infer;
pub mod observe;
pub mod openapi;
pub mod page;
pub mod predict;
pub mod rerank;
pub mod score;
pub mod socket;
pub mod tls;
pub mod tokenize;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use prometheus::IntGauge;
use tokio::sync::{Semaphore, watch};

use self::connection::Protocols;
use self::socket::{Socket, Stream};
use self::tls::Tls;
use crate::config::HttpConfig;
use crate::metrics::ServerMetrics;

/// Where connections come in, and how many.
pub struct Door {
    /// Gives connections.
    pub socket: Socket,
    /// Encrypts them.
    pub tls: Option<Arc<Tls>>,
    /// Longest a connection may be without a request that is under way, the head of its next
    /// request included.
    pub header_timeout: Duration,
    /// Connections at the same time.
    pub max_connections: usize,
    /// Who comes in here.
    pub listener: Listener,
    /// Counts them.
    pub metrics: Arc<ServerMetrics>,
}

/// Which of the two doors of a server one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// That of clients.
    Requests,
    /// That of probes and metrics. Its connections are counted apart, so that clients cannot take them.
    Admin,
}

impl Listener {
    /// Its label.
    fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Admin => "admin",
        }
    }
}

/// Connections of the admin listener: probes and whoever reads metrics are few. With those of clients
/// and those that are refused they stay below the 1024 files that a process commonly may open.
const ADMIN_CONNECTIONS: usize = 32;

/// Refused connections that are told so at a time, handshakes of TLS included; more are closed without a
/// word.
const REFUSALS: usize = 32;

impl Door {
    /// A door with the limits of `config`.
    pub fn new(socket: Socket, config: &HttpConfig, metrics: Arc<ServerMetrics>) -> Self {
        Self {
            socket,
            tls: None,
            header_timeout: config.header_timeout,
            max_connections: config.max_connections,
            listener: Listener::Requests,
            metrics,
        }
    }

    /// A door for probes and metrics.
    pub fn admin(socket: Socket, config: &HttpConfig, metrics: Arc<ServerMetrics>) -> Self {
        Self {
            max_connections: ADMIN_CONNECTIONS,
            listener: Listener::Admin,
            ..Self::new(socket, config, metrics)
        }
    }
}

/// Serves `app` on connections of `door` until `closing` resolves, then closes the socket and
/// resolves when the last connection has its answer.
///
/// Idle connections are closed at once, the others after the answer that is under way. This is not
/// `axum::serve`, because that one lets a client take forever to send a request's head.
pub async fn serve(mut door: Door, app: Router, closing: impl Future<Output = ()>) {
    let protocols = Arc::new(Protocols::new(app, door.header_timeout));
    let slots = Arc::new(Semaphore::new(door.max_connections));
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    let listener = [door.listener.name()];
    let open = door.metrics.edge.connections.with_label_values(&listener);
    let refused = door
        .metrics
        .edge
        .refused_connections
        .with_label_values(&listener);
    let (close, closed) = watch::channel(false);
    tokio::pin!(closing);
    loop {
        let (stream, peer) = tokio::select! {
            accepted = door.socket.accept() => accepted,
            () = &mut closing => break,
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            refused.inc();
            tracing::debug!(peer, "too many connections");
            if let Ok(place) = refusals.clone().try_acquire_owned() {
                let tls = door.tls.clone();
                tokio::spawn(async move {
                    stream.refuse(tls.as_deref()).await;
                    drop(place);
                });
            }
            continue;
        };
        let open = Open::new(open.clone());
        let (protocols, tls, closed) = (protocols.clone(), door.tls.clone(), closed.clone());
        tokio::spawn(async move {
            let served = match stream {
                Stream::Tcp(stream) => protocols.serve(stream, tls.as_deref(), closed).await,
                Stream::Unix(stream) => protocols.serve(stream, tls.as_deref(), closed).await,
            };
            if let Err(error) = served {
                tracing::debug!(peer, error, "connection ended early");
            }
            drop((open, slot));
        });
    }
    drop(door.socket);
    close.send_replace(true);
    let all = u32::try_from(door.max_connections).unwrap_or(u32::MAX);
    // An error means that the semaphore was closed, which nobody does.
    let _ = slots.acquire_many(all).await;
}

/// Counts one connection until it is dropped.
struct Open(IntGauge);

impl Open {
    fn new(connections: IntGauge) -> Self {
        connections.inc();
        Self(connections)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
