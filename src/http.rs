//! The HTTP edge: bytes to commands, rankings to bytes.
//!
//! The caller brings the listener and decides when to stop. Nothing here knows the model, flags or
//! the environment; nothing outside names axum.

mod access;
pub mod admin;
pub mod auth;
pub mod body;
pub mod budget;
mod connection;
pub mod error;
mod exchange;
pub mod grpc;
pub mod hints;
mod metadata;
pub mod models;
mod notes;
pub mod observe;
mod open_inference;
pub mod openapi;
pub mod page;
mod path;
mod progress;
pub mod route;
pub mod router;
pub mod socket;
pub mod state;
pub mod tls;

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

/// A listener, and the limits of its connections.
pub struct ListenerConfig {
    /// Gives connections.
    pub socket: Socket,
    /// Encrypts them.
    pub tls: Option<Arc<Tls>>,
    /// Longest a connection may be without a request that is under way, the head of its next
    /// request included.
    pub header_timeout: Duration,
    /// Connections at the same time.
    pub max_connections: usize,
    /// Whose connections these are.
    pub listener: Listener,
    /// Counts them.
    pub metrics: Arc<ServerMetrics>,
}

/// Which of the two listeners of a server one is.
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

impl ListenerConfig {
    /// The listener of clients, with the limits of the settings.
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

    /// The listener of probes and metrics.
    pub fn admin(socket: Socket, config: &HttpConfig, metrics: Arc<ServerMetrics>) -> Self {
        Self {
            max_connections: ADMIN_CONNECTIONS,
            listener: Listener::Admin,
            ..Self::new(socket, config, metrics)
        }
    }
}

/// Serves `app` on connections of `config` until `closing` resolves, then closes the socket and
/// resolves when the last connection has its answer.
///
/// Idle connections are closed at once, the others after the answer that is under way. This is not
/// `axum::serve`, because that one lets a client take forever to send a request's head.
pub async fn serve(mut config: ListenerConfig, app: Router, closing: impl Future<Output = ()>) {
    let protocols = Arc::new(Protocols::new(app, config.header_timeout));
    let slots = Arc::new(Semaphore::new(config.max_connections));
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    let listener = [config.listener.name()];
    let open = config.metrics.edge.connections.with_label_values(&listener);
    let refused = config
        .metrics
        .edge
        .refused_connections
        .with_label_values(&listener);
    let (close, closed) = watch::channel(false);
    tokio::pin!(closing);
    loop {
        let (stream, peer) = tokio::select! {
            accepted = config.socket.accept() => accepted,
            () = &mut closing => break,
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            refused.inc();
            tracing::debug!(peer, "too many connections");
            if let Ok(place) = refusals.clone().try_acquire_owned() {
                let tls = config.tls.clone();
                tokio::spawn(async move {
                    stream.refuse(tls.as_deref()).await;
                    drop(place);
                });
            }
            continue;
        };
        let open = Open::new(open.clone());
        let (protocols, tls, closed) = (protocols.clone(), config.tls.clone(), closed.clone());
        tokio::spawn(async move {
            let served = match stream {
                Stream::Tcp(stream) => protocols.serve(stream, tls.as_deref(), closed).await,
                Stream::Unix(stream) => protocols.serve(stream, tls.as_deref(), closed).await,
            };
            if let Err(error) = served {
                tracing::debug!(peer, %error, "connection ended early");
            }
            drop((open, slot));
        });
    }
    drop(config.socket);
    close.send_replace(true);
    let all = u32::try_from(config.max_connections).unwrap_or(u32::MAX);
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
