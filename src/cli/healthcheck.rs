//! `rerankd healthcheck`: asks a server on this machine whether it is ready, for container runtimes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream as BlockingUnixStream;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::settings::Flags;
use super::{Exit, output};
use crate::config::{Config, Listen, PathPrefix};
use crate::http::socket::lookup;

/// Largest response body that is read; those of `/ready` are smaller.
const MAX_BODY_BYTES: usize = 16 * 1024;

/// Prints one line, and exits with 0 if the server is ready.
pub fn run(flags: &Flags) -> Exit {
    let config = match flags.resolve() {
        Ok(effective) => effective.config,
        Err(exit) => return exit,
    };
    let endpoint = Endpoint::of(&config);
    match check_ready(&endpoint, config.healthcheck.timeout) {
        Ok(()) => {
            output::line(format_args!("ready at {}", endpoint.address));
            Exit::Success
        }
        Err(reason) => {
            output::line(format_args!("not ready at {}: {reason}", endpoint.address));
            Exit::Failure
        }
    }
}

/// Where a server answers probes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// An address to connect to.
    pub address: Listen,
    /// Whether the server speaks TLS there.
    pub tls: bool,
    /// Below which path.
    pub prefix: PathPrefix,
}

impl Endpoint {
    /// The endpoint of the server with this configuration.
    pub fn of(config: &Config) -> Self {
        let http = &config.http;
        match &http.admin_listen {
            Some(listen) => Self {
                address: reachable(listen),
                tls: false,
                prefix: PathPrefix::default(),
            },
            None => Self {
                address: reachable(&http.listen),
                tls: http.tls_cert.is_some(),
                prefix: http.path_prefix.clone(),
            },
        }
    }
}

/// The address by which clients on this machine reach a server that listens on `listen`.
pub fn reachable(listen: &Listen) -> Listen {
    let Listen::Tcp(address) = listen else {
        return listen.clone();
    };
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Listen::Tcp(SocketAddr::new(ip, address.port()))
}

/// Why a server does not count as ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// There was no response in time.
    #[error("no response within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    /// There is no connection.
    #[error(transparent)]
    Connection(#[from] io::Error),
    /// Something else listens there.
    #[error("no HTTP response: {0}")]
    Http(#[from] hyper::Error),
    /// The server says why it is not ready.
    #[error("status {}, {message}", .status.as_u16())]
    Message {
        /// The status of the response.
        status: StatusCode,
        /// The message in its body.
        message: String,
    },
    /// The server says that it is not ready.
    #[error("status {}", .0.as_u16())]
    Status(StatusCode),
}

/// Sends `GET /ready`, all of it within `timeout`: the name lookup, the connection and the response.
///
/// # Errors
/// Why the server does not count as ready.
pub fn check_ready(endpoint: &Endpoint, timeout: Duration) -> Result<(), NotReady> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let checked =
        runtime.block_on(async { tokio::time::timeout(timeout, connect(endpoint)).await });
    // Does not wait for what cannot be canceled, such as a name lookup.
    runtime.shutdown_background();
    checked.unwrap_or(Err(NotReady::Timeout(timeout)))
}

async fn connect(endpoint: &Endpoint) -> Result<(), NotReady> {
    match &endpoint.address {
        Listen::Tcp(address) => secure(TcpStream::connect(address).await?, endpoint).await,
        Listen::Name(name) => {
            let addresses = lookup(name).await?;
            secure(TcpStream::connect(&addresses[..]).await?, endpoint).await
        }
        Listen::Unix(path) => {
            // Only a blocking socket waits while the backlog of a busy server is full.
            let path = path.clone();
            let connecting = tokio::task::spawn_blocking(move || BlockingUnixStream::connect(path));
            let stream = connecting.await.map_err(io::Error::other)??;
            stream.set_nonblocking(true)?;
            secure(UnixStream::from_std(stream)?, endpoint).await
        }
    }
}

async fn secure<IO>(stream: IO, endpoint: &Endpoint) -> Result<(), NotReady>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let path = format!("{}/ready", endpoint.prefix.as_str());
    if !endpoint.tls {
        return get_ready(stream, &path).await;
    }
    let connector = TlsConnector::from(Arc::new(tls_config()?));
    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
    get_ready(connector.connect(name, stream).await?, &path).await
}

async fn get_ready<IO>(stream: IO, path: &str) -> Result<(), NotReady>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, "localhost")
        .body(Empty::<Bytes>::new())
        .expect("the prefix has plain characters only");
    let response = sender.send_request(request).await?;
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(());
    }
    let body = Limited::new(response.into_body(), MAX_BODY_BYTES);
    let message = body.collect().await.ok().and_then(|body| {
        let body: serde_json::Value = serde_json::from_slice(&body.to_bytes()).ok()?;
        Some(body.get("message")?.as_str()?.to_owned())
    });
    Err(match message {
        Some(message) => NotReady::Message { status, message },
        None => NotReady::Status(status),
    })
}

fn tls_config() -> io::Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Ok(config)
}

/// Accepts any certificate: the server's is for the name that clients use, and this probe of the same
/// machine neither sends nor receives secrets.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Value;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    fn plain(address: SocketAddr) -> Endpoint {
        Endpoint {
            address: Listen::Tcp(address),
            tls: false,
            prefix: PathPrefix::default(),
        }
    }

    /// Answers one connection with `response`, and returns the request.
    fn server(response: &'static str) -> (Endpoint, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let request = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).unwrap();
            stream.write_all(response.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        (plain(address), request)
    }

    fn check(response: &'static str, expected: Result<(), &str>) {
        let (endpoint, request) = server(response);
        let result = check_ready(&endpoint, Duration::from_secs(10));
        let result = result.map_err(|error| error.to_string());
        assert_eq!(result, expected.map_err(str::to_owned));
        let request = request.join().unwrap();
        assert!(request.starts_with("GET /ready HTTP/1.1\r\n"), "{request}");
    }

    #[test]
    fn only_status_200_is_ready() {
        check("HTTP/1.1 200 OK\r\n\r\n{}", Ok(()));
        check(
            "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"message\":\"the model is still loading\"}",
            Err("status 503, the model is still loading"),
        );
        check("HTTP/1.1 500 \r\n\r\n", Err("status 500"));
        check(
            "SSH-2.0-OpenSSH\r\n",
            Err("no HTTP response: invalid HTTP version parsed"),
        );
        check(
            "",
            Err("no HTTP response: connection closed before message completed"),
        );
    }

    #[test]
    fn a_silent_server_is_not_ready_at_the_timeout() {
        // Connections wait in the backlog, and are never accepted.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = plain(listener.local_addr().unwrap());
        let error = check_ready(&endpoint, Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.to_string(), "no response within 0.1 s");
    }

    #[test]
    fn a_name_is_looked_up_when_it_is_connected_to() {
        let (endpoint, request) = server("HTTP/1.1 200 OK\r\n\r\n");
        let port = endpoint.address.to_string();
        let port = port.rsplit(':').next().unwrap();
        let endpoint = Endpoint {
            address: Listen::Name(format!("localhost:{port}")),
            prefix: PathPrefix::parse("/a").unwrap(),
            ..endpoint
        };
        check_ready(&endpoint, Duration::from_secs(10)).unwrap();
        let request = request.join().unwrap();
        assert!(request.starts_with("GET /a/ready "), "{request}");
    }

    #[test]
    fn a_server_on_all_interfaces_is_asked_over_loopback() {
        for (listen, expected) in [
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:80", "[::1]:80"),
            ("10.0.0.7:80", "10.0.0.7:80"),
        ] {
            let listen = Listen::Tcp(listen.parse().unwrap());
            assert_eq!(reachable(&listen).to_string(), expected);
        }
    }
}
