//! The HTTP edge: bytes to commands, rankings to bytes.
//!
//! The caller brings the listener and decides when to stop. Nothing here knows the model, flags or
//! the environment; nothing outside names axum.

pub mod admin;
pub mod app;
pub mod body;
pub mod dialect;
pub mod error;
pub mod observe;
pub mod openapi;
pub mod page;
pub mod predict;
pub mod rerank;
pub mod score;
pub mod tokenize;

use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;

/// Serves `app` on `listener` until `closing` resolves, then closes the listener and resolves when
/// the last connection has its answer.
///
/// Idle connections are closed at once, the others after the answer that is under way. This is not
/// `axum::serve`, because that one lets a client take forever to send a request's head.
pub async fn serve(
    mut listener: TcpListener,
    app: Router,
    header_timeout: Duration,
    closing: impl Future<Output = ()>,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(header_timeout);
    let service = TowerToHyperService::new(app);
    let connections = GracefulShutdown::new();
    tokio::pin!(closing);
    loop {
        // `Listener::accept` of axum outlives errors such as too many open files.
        let (stream, peer) = tokio::select! {
            accepted = Listener::accept(&mut listener) => accepted,
            () = &mut closing => break,
        };
        // An answer is one small write: holding it back for company only adds latency.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "TCP_NODELAY was refused");
        }
        let connection =
            connections.watch(http.serve_connection(TokioIo::new(stream), service.clone()));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%peer, %error, "connection ended early");
            }
        });
    }
    drop(listener);
    connections.shutdown().await;
}
