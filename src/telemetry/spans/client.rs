//! The HTTP client that exports spans.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Largest response that is read; collectors send a few bytes.
const MAX_RESPONSE_BYTES: u64 = 64 * 1024;

/// Blocks the thread that calls it, which is the exporter's own: no async task runs there.
#[derive(Debug)]
pub(super) struct Client(Agent);

impl Client {
    /// A client whose requests take at most `timeout`, from the name lookup to the end of the
    /// response. It trusts `roots` on `https://` addresses.
    pub(super) fn new(timeout: Duration, roots: &[Certificate<'static>]) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(provider)
            .root_certs(RootCerts::new_with_certs(roots))
            .build();
        let config = Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // Exports are seconds apart: a kept connection saves little, and spans that are sent into
            // one that the collector has just closed are lost.
            .max_idle_connections(0)
            .proxy(None)
            .tls_config(tls)
            .build();
        Self(config.new_agent())
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let (head, body) = request.into_parts();
        let mut response = self.0.run(Request::from_parts(head, &body[..]))?;
        let body = response.body_mut().with_config().limit(MAX_RESPONSE_BYTES);
        let body = body.read_to_vec()?;
        Ok(response.map(|_| body.into()))
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        Ok(self.send(request)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, TcpStream};
    use tokio::net::{TcpListener, TcpSocket};

    const TIMEOUT: Duration = Duration::from_millis(100);

    /// A listener that nobody accepts from, with room for a single connection.
    async fn listener() -> (TcpListener, SocketAddr) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn check_times_out(address: SocketAddr) {
        let request = Request::post(format!("http://{address}/v1/traces"));
        let request = request.body(Bytes::from_static(b"spans")).unwrap();
        let error = Client::new(TIMEOUT, &[]).send(request).unwrap_err();
        assert!(matches!(error, ureq::Error::Timeout(_)), "{error}");
    }

    #[tokio::test]
    async fn a_collector_that_never_answers_costs_one_timeout() {
        let (_listener, address) = listener().await;
        check_times_out(address);
    }

    #[tokio::test]
    async fn a_collector_that_drops_packets_costs_one_timeout() {
        let (_listener, address) = listener().await;
        // Once the backlog is full, the system drops the packets of further connections.
        let mut waiting = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, TIMEOUT) {
            waiting.push(stream);
        }
        check_times_out(address);
    }
}
