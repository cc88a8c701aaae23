//! `rerankd healthcheck`: what a container asks about the server inside it.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use super::settings::Flags;
use super::{Exit, output};
use crate::config::{Config, Listen};

/// Longest answer that is read; `/ready` says less than this in every case.
const MAX_ANSWER_BYTES: u64 = 16 * 1024;

/// Asks, and says the answer in one line.
pub fn run(flags: &Flags) -> Exit {
    let config = match flags.resolve() {
        Ok(effective) => effective.config,
        Err(exit) => return exit,
    };
    let place = Place::of(&config);
    match ask(&place, config.healthcheck.timeout) {
        Ok(()) => {
            output::line(format_args!("ready at {}", place.address));
            Exit::Success
        }
        Err(reason) => {
            output::line(format_args!("not ready at {}: {reason}", place.address));
            Exit::Failure
        }
    }
}

/// Where a server is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// An address that can be connected to.
    pub address: Listen,
    /// Whether TLS is spoken there.
    pub tls: bool,
}

impl Place {
    /// Where the server of this configuration answers probes.
    pub fn of(config: &Config) -> Self {
        let http = &config.http;
        match &http.admin_listen {
            Some(listen) => Self {
                address: reachable(listen),
                tls: false,
            },
            None => Self {
                address: reachable(&http.listen),
                tls: http.tls_cert.is_some(),
            },
        }
    }
}

/// The address a client on this machine uses for a server that listens on `listen`.
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

/// Asks `GET /ready` within `timeout`, connecting included.
///
/// # Errors
/// Why the server is not known to be ready, in a few words.
pub fn ask(place: &Place, timeout: Duration) -> Result<(), String> {
    let deadline = Instant::now() + timeout;
    let answer = exchange(place, deadline).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
            format!("no answer within {} s", timeout.as_secs_f64())
        }
        _ => error.to_string(),
    })?;
    let status = answer
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .ok_or("the answer is not HTTP")?;
    match status {
        "200" => Ok(()),
        _ => Err(format!("status {status}{}", message(&answer))),
    }
}

/// The message of an error's body, to be put behind its status.
fn message(answer: &str) -> String {
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str::<serde_json::Value>(body)
        .ok()
        .and_then(|body| Some(format!(", {}", body.get("message")?.as_str()?)))
        .unwrap_or_default()
}

fn exchange(place: &Place, deadline: Instant) -> io::Result<String> {
    let stream = Timed::connect(&place.address, deadline)?;
    match place.tls {
        false => converse(stream),
        true => converse(StreamOwned::new(tls()?, stream)),
    }
}

fn converse(mut stream: impl Read + Write) -> io::Result<String> {
    stream.write_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    match stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer) {
        // TLS wants a goodbye that some servers do not say.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !answer.is_empty() => {}
        read => drop(read?),
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A connection whose every step ends at a deadline. Timeouts of sockets are for one call: without
/// it, a server that drips would keep us.
struct Timed {
    socket: Box<dyn Socket>,
    deadline: Instant,
}

trait Socket: Read + Write {
    /// Lets the next calls take no longer than `time`.
    fn limit(&self, time: Duration) -> io::Result<()>;
}

impl Socket for TcpStream {
    fn limit(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

impl Socket for UnixStream {
    fn limit(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

impl Timed {
    fn connect(address: &Listen, deadline: Instant) -> io::Result<Self> {
        let left = left(deadline)?;
        let socket: Box<dyn Socket> = match address {
            Listen::Tcp(address) => Box::new(TcpStream::connect_timeout(address, left)?),
            Listen::Unix(path) => Box::new(connect_unix(path, left)?),
        };
        Ok(Self { socket, deadline })
    }
}

/// Connects within `time`. Where the queue of a Unix socket is full, connecting waits for as long as
/// nobody accepts, and there is no timeout to set: a thread waits, which ends with the process.
fn connect_unix(path: &Path, time: Duration) -> io::Result<UnixStream> {
    let (sender, connected) = mpsc::channel();
    let path = path.to_owned();
    std::thread::spawn(move || sender.send(UnixStream::connect(path)));
    connected
        .recv_timeout(time)
        .map_err(|_| io::ErrorKind::TimedOut)?
}

fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.limit(left(self.deadline)?)?;
        self.socket.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.limit(left(self.deadline)?)?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn tls() -> io::Result<ClientConnection> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
    ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)
}

/// Takes whatever certificate the server shows: it is made out to the name that clients use, and
/// this probe of the own machine neither tells nor learns a secret.
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
    use std::net::TcpListener;

    fn plain(address: SocketAddr) -> Place {
        Place {
            address: Listen::Tcp(address),
            tls: false,
        }
    }

    /// Answers one connection with `answer` and returns what it was asked.
    fn server(answer: &'static str) -> (Place, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = [0; 1024];
            let read = stream.read(&mut question).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&question[..read]).into_owned()
        });
        (plain(address), asked)
    }

    fn check(answer: &'static str, expected: Result<(), &str>) {
        let (place, asked) = server(answer);
        let result = ask(&place, Duration::from_secs(10));
        assert_eq!(result, expected.map_err(str::to_owned));
        assert!(asked.join().unwrap().starts_with("GET /ready HTTP/1.1\r\n"));
    }

    #[test]
    fn answers_are_told_apart() {
        check("HTTP/1.1 200 OK\r\n\r\n{}", Ok(()));
        check(
            "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"message\":\"the model is still loading\"}",
            Err("status 503, the model is still loading"),
        );
        check("HTTP/1.1 500 \r\n\r\n", Err("status 500"));
        check("SSH-2.0-OpenSSH", Err("the answer is not HTTP"));
        check("", Err("the answer is not HTTP"));
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        // The system accepts into the backlog; nobody ever answers.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let result = ask(&plain(address), Duration::from_millis(100));
        assert_eq!(result, Err("no answer within 0.1 s".to_owned()));
    }

    #[test]
    fn every_interface_is_asked_over_loopback() {
        for (listen, asked) in [
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:80", "[::1]:80"),
            ("10.0.0.7:80", "10.0.0.7:80"),
        ] {
            let listen = Listen::Tcp(listen.parse().unwrap());
            assert_eq!(reachable(&listen).to_string(), asked);
        }
    }
}
