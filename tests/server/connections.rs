//! Connections: protocols, TLS, Unix sockets, and idle or slow clients.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::support::fake::{Gate, Model};
use crate::support::server::{SHORT, Server, TestApp, wire};
use axum::body::Bytes;
use axum::http::{Request, StatusCode};
use rerankd::cli::healthcheck::{Endpoint, check_ready};
use rerankd::config::{ApiKeys, Config, HttpConfig, Listen, PathPrefix, Value};
use rerankd::http::socket::Socket;
use rerankd::http::state::AppState;
use rerankd::http::tls::Tls;
use rerankd::shutdown::Stopped;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixSocket, UnixStream};
use tokio_rustls::TlsConnector;

const RERANK: &str = r#"{"query":"q","documents":["a","a b c","a b"]}"#;
const PATIENCE: Duration = Duration::from_secs(60);

fn config(change: impl FnOnce(&mut HttpConfig)) -> Config {
    let mut config = Config::default();
    change(&mut config.http);
    config
}

/// Sends a request over HTTP/2 and returns status and body.
async fn over_http2<IO>(io: IO, path: &str, body: &'static str) -> (StatusCode, String)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut client, connection) = h2::client::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("http://test{path}"))
        .body(())
        .unwrap();
    let (answer, mut stream) = client.send_request(request, false).unwrap();
    stream
        .send_data(Bytes::from_static(body.as_bytes()), true)
        .unwrap();
    let answer = answer.await.unwrap();
    let status = answer.status();
    let (mut body, mut bytes) = (answer.into_body(), Vec::new());
    while let Some(chunk) = body.data().await {
        bytes.extend_from_slice(&chunk.unwrap());
    }
    (status, String::from_utf8(bytes).unwrap())
}

#[tokio::test]
async fn a_plain_connection_speaks_either_version() {
    let server = Server::start(Model::default(), Config::default()).await;
    let answer = server.request("POST", "/rerank", RERANK).await;
    assert_eq!(answer.status, 200);
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (status, body) = over_http2(stream, "/rerank", RERANK).await;
    assert_eq!(status, 200);
    assert!(body.contains(r#""relevance_score":3.0"#), "{body}");
}

#[tokio::test]
async fn accepted_requests_of_http2_are_answered_before_the_server_stops() {
    let gate = Gate::new();
    let model = Model {
        gate: Some(gate.clone()),
        ..Model::default()
    };
    let server = Server::start(model, Config::default()).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let asked = tokio::spawn(over_http2(stream, "/rerank", RERANK));
    gate.entered().await;
    server.signals.send(()).await.unwrap();
    server.closed().await;
    gate.open();
    assert_eq!(asked.await.unwrap().0, 200);
    assert_eq!(server.stopped.await.unwrap(), Stopped::Clean);
}

/// A request with a response of three megabytes, more than the buffers of a Unix socket.
fn long_request() -> (String, usize) {
    let document = "a ".repeat(3 << 19);
    let body = serde_json::json!({"query": "q", "documents": [document], "return_documents": true});
    (wire("POST", "/rerank", &body.to_string()), document.len())
}

/// A server on a Unix socket, with a client that sent a request and reads none of the response.
async fn unread_answer(config: Config) -> (tempfile::TempDir, Server, UnixStream) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rerankd.sock");
    let socket = Socket::bind(&Listen::Unix(path.clone())).await.unwrap();
    let any = "127.0.0.1:1".parse().unwrap();
    let server = Server::on(TestApp::new(Model::default(), config), socket, any, None);
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(long_request().0.as_bytes()).await.unwrap();
    server
        .until(|state| counted(state, "/rerank", "200") == 1)
        .await;
    (dir, server, stream)
}

fn counted(state: &AppState, route: &str, status: &str) -> u64 {
    let requests = &state.metrics().edge.requests;
    requests.with_label_values(&[route, status]).get()
}

#[tokio::test]
async fn an_answer_is_in_flight_until_its_last_byte_has_left() {
    let (_dir, server, mut stream) = unread_answer(Config::default()).await;
    assert_eq!(server.state.in_flight(), 1);
    server.signals.send(()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.len() > long_request().1);
    assert_eq!(server.state.in_flight(), 0);
    assert_eq!(server.stopped.await.unwrap(), Stopped::Clean);
}

#[tokio::test]
async fn an_answer_that_was_not_read_in_time_is_lost_work() {
    let mut config = Config::default();
    config.shutdown.drain_timeout = SHORT;
    let (_dir, server, _stream) = unread_answer(config).await;
    server.signals.send(()).await.unwrap();
    assert_eq!(server.stopped.await.unwrap(), Stopped::TimedOut);
    assert_eq!(server.state.in_flight(), 1);
}

#[tokio::test]
async fn a_half_sent_body_is_not_lost_work() {
    let mut config = Config::default();
    config.shutdown.drain_timeout = SHORT;
    let server = Server::start(Model::default(), config).await;
    let mut half = server.connect().await;
    half.send("POST /rerank HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n{")
        .await;
    // After a complete exchange, the server has seen the incomplete request too.
    server.request("GET", "/live", "").await;
    server.signals.send(()).await.unwrap();
    assert_eq!(server.stopped.await.unwrap(), Stopped::TimedOut);
    assert_eq!(server.state.in_flight(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_amid_its_body_is_counted_as_one_that_left() {
    let server = Server::start(Model::default(), Config::default()).await;
    let mut client = server.connect().await;
    client
        .send("POST /rerank HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n{")
        .await;
    drop(client);
    server
        .until(|state| counted(state, "/rerank", "499") + counted(state, "/rerank", "400") == 1)
        .await;
    assert_eq!(counted(&server.state, "/rerank", "499"), 1);
}

#[tokio::test]
async fn a_body_in_broken_chunks_is_a_mistake_and_no_leaving() {
    let server = Server::start(Model::default(), Config::default()).await;
    let request =
        "POST /rerank HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\nwhat\r\n";
    let answer = server.exchange(request).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("`transfer-encoding`"), "{answer}");
    assert_eq!(counted(&server.state, "/rerank", "400"), 1);
}

// Early responses. Bodies exceed the socket buffers, so that the client is still writing when the server
// responds.

/// `megabytes` in chunks of 1 MB.
fn chunked(path: &str, megabytes: usize) -> String {
    let chunk = format!("100000\r\n{}\r\n", " ".repeat(1 << 20));
    let chunks = chunk.repeat(megabytes);
    format!(
        "POST {path} HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"
    )
}

#[tokio::test]
async fn an_early_refusal_arrives_whatever_is_still_sent() {
    let keys = config(|http| http.api_keys = ApiKeys::parse("a-key-of-somebody").unwrap());
    for (config, path, status) in [
        (Config::default(), "/rerank", 413),
        (Config::default(), "/nowhere", 404),
        (Config::default(), "/live", 405),
        (keys, "/rerank", 401),
    ] {
        let server = Server::start(Model::default(), config).await;
        for request in [chunked(path, 24), wire("POST", path, &" ".repeat(24 << 20))] {
            let mut client = server.connect().await;
            client.send(&request).await;
            assert_eq!(client.answer().await.status, status, "{path}");
            // The body was drained, so that the connection stays open.
            client.send(&wire("GET", "/live", "")).await;
            assert_eq!(client.answer().await.status, 200, "{path}");
        }
    }
}

// Unix sockets.

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_is_served_and_asked_for_its_health() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rerankd.sock");
    let listen = Listen::Unix(path.clone());
    let socket = Socket::bind(&listen).await.unwrap();
    let app = TestApp::default();
    let any = "127.0.0.1:1".parse().unwrap();
    let server = Server::on(app, socket, any, None);

    let mut stream = UnixStream::connect(&path).await.unwrap();
    let request = wire("POST", "/rerank", RERANK).replace("host", "connection: close\r\nhost");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");

    let endpoint = Endpoint {
        address: listen,
        tls: false,
        prefix: PathPrefix::default(),
    };
    let asked = tokio::task::spawn_blocking(move || check_ready(&endpoint, PATIENCE));
    asked.await.unwrap().unwrap();

    server.signals.send(()).await.unwrap();
    server.stopped.await.unwrap();
    assert!(!path.exists());
}

/// Connecting to a Unix socket with a full backlog blocks until the server accepts.
#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_that_nobody_accepts_from_is_unhealthy_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rerankd.sock");
    let socket = UnixSocket::new_stream().unwrap();
    socket.bind(&path).unwrap();
    let _listener = socket.listen(0).unwrap();
    let mut waiting = Vec::new();
    while let Ok(connection) = UnixStream::connect(&path).await {
        waiting.push(connection);
    }
    let endpoint = Endpoint {
        address: Listen::Unix(path),
        tls: false,
        prefix: PathPrefix::default(),
    };
    let asking = tokio::task::spawn_blocking(move || check_ready(&endpoint, SHORT));
    let asked = tokio::time::timeout(PATIENCE, asking).await;
    let asked = asked.expect("it ends by itself").unwrap();
    let error = asked.unwrap_err().to_string();
    assert_eq!(error, "no response within 0.1 s");
}

// TLS.

/// A self-signed certificate for `name`, and its key.
pub fn certificate(dir: &Path, name: &str) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let pem = made.cert.pem();
    std::fs::write(dir.join("cert.pem"), &pem).unwrap();
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

pub fn load(dir: &Path) -> Result<Tls, String> {
    Tls::load(&dir.join("cert.pem"), &dir.join("key.pem")).map_err(|error| error.to_string())
}

/// Connects to `localhost` as a client that trusts `root`.
pub async fn connect(
    server: &Server,
    root: &CertificateDer<'static>,
    protocols: &[&[u8]],
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

pub async fn behind_tls(tls: Arc<Tls>, config: Config) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = TestApp::new(Model::default(), config);
    Server::on(app, Socket::Tcp(listener), address, Some(tls))
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_in_either_version_and_asked_for_its_health() {
    let dir = tempfile::tempdir().unwrap();
    let root = certificate(dir.path(), "localhost");
    let server = behind_tls(Arc::new(load(dir.path()).unwrap()), Config::default()).await;

    let stream = connect(&server, &root, &[b"h2", b"http/1.1"])
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(over_http2(stream, "/rerank", RERANK).await.0, 200);

    for protocols in [&[][..], &[&b"http/1.1"[..]]] {
        let mut stream = connect(&server, &root, protocols).await.unwrap();
        let request = wire("POST", "/rerank", RERANK);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut start = [0; 15];
        stream.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 200 OK");
    }

    let endpoint = Endpoint {
        address: Listen::Tcp(server.address),
        tls: true,
        prefix: PathPrefix::default(),
    };
    let asked = tokio::task::spawn_blocking(move || check_ready(&endpoint, PATIENCE));
    asked.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_certificate_is_renewed_without_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let old = certificate(dir.path(), "localhost");
    let tls = Arc::new(load(dir.path()).unwrap());
    let server = behind_tls(tls.clone(), Config::default()).await;
    let mut kept = connect(&server, &old, &[]).await.unwrap();
    assert!(!tls.reload().unwrap(), "nothing has changed");

    // A key that does not match the certificate changes nothing.
    let before = std::fs::read(dir.path().join("cert.pem")).unwrap();
    let new = certificate(dir.path(), "localhost");
    let after = std::fs::read(dir.path().join("cert.pem")).unwrap();
    std::fs::write(dir.path().join("cert.pem"), before).unwrap();
    let error = tls.reload().unwrap_err().to_string();
    assert!(error.contains("hint: the key has to be that of"), "{error}");
    assert!(connect(&server, &old, &[]).await.is_ok());

    std::fs::write(dir.path().join("cert.pem"), after).unwrap();
    assert!(tls.reload().unwrap());
    assert!(connect(&server, &old, &[]).await.is_err());
    assert!(connect(&server, &new, &[]).await.is_ok());
    let request = wire("GET", "/live", "");
    kept.write_all(request.as_bytes()).await.unwrap();
    let mut start = [0; 15];
    kept.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200 OK", "open connections go on");
}

#[test]
fn files_that_are_no_certificate_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = load(dir.path()).err().unwrap();
    assert!(
        error.contains("cert.pem`: No such file") && error.contains("hint: "),
        "{error}"
    );
    certificate(dir.path(), "localhost");
    for (file, text, expected) in [
        ("cert.pem", "nothing", "cert.pem` holds no certificate"),
        ("key.pem", "nothing", "key.pem`: "),
    ] {
        let path = dir.path().join(file);
        let held = std::fs::read(&path).unwrap();
        std::fs::write(&path, text).unwrap();
        let error = load(dir.path()).err().unwrap();
        assert!(
            error.contains(expected) && error.contains("hint: "),
            "{error}"
        );
        std::fs::write(&path, held).unwrap();
    }
    assert!(load(dir.path()).is_ok());
}

// Idle and slow clients. Timeouts of a millisecond end what would block forever.

/// Whether the server closes a connection that sends `text` and then nothing.
async fn is_closed(address: std::net::SocketAddr, text: &[u8]) -> bool {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A reset counts as closed.
    if stream.write_all(text).await.is_err() {
        return true;
    }
    let mut rest = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest));
    read.await.is_ok()
}

/// Resolves when `count` connections are open.
async fn open_connections(server: &Server, count: i64) {
    let of = ["requests"];
    server
        .until(|state| {
            state
                .metrics()
                .edge
                .connections
                .with_label_values(&of)
                .get()
                == count
        })
        .await;
}

#[tokio::test]
async fn connections_that_say_nothing_whole_are_closed() {
    let config = config(|http| http.header_timeout = SHORT);
    let server = Server::start(Model::default(), config).await;
    for text in [
        &b""[..],
        b"P",
        b"PRI * HTTP/2.0\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        // An incomplete HTTP/2 header block.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\0\0\0\0\x01\x82",
        b"POST /rerank HTTP/1.1\r\nhost:",
        b"GET /live HTTP/1.1\r\nhost: test\r\n\r\n",
    ] {
        assert!(is_closed(server.address, text).await, "{text:?}");
    }
    open_connections(&server, 0).await;
}

#[tokio::test]
async fn handshakes_that_do_not_end_are_closed() {
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path(), "localhost");
    let config = config(|http| http.header_timeout = SHORT);
    let server = behind_tls(Arc::new(load(dir.path()).unwrap()), config).await;
    for text in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        assert!(is_closed(server.address, text).await, "{text:?}");
    }
}

/// A client that never reads its responses is eventually disconnected.
#[tokio::test]
async fn a_client_that_does_not_read_is_closed() {
    let config = config(|http| http.header_timeout = SHORT);
    let server = Server::start(Model::default(), config).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = wire("GET", "/openapi.json", "");
    // Responses of some hundred kilobytes each, until all buffers are full.
    let written = async {
        loop {
            if stream.write_all(request.as_bytes()).await.is_err() {
                return;
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, written).await;
    assert!(ended.is_ok(), "the server never closed it");
    open_connections(&server, 0).await;
}

/// Checks that a connection was refused with a standard error.
#[track_caller]
fn too_many(refused: &str) {
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(refused.contains("\r\nretry-after: 1\r\n"), "{refused}");
    let (_, body) = refused.split_once("\r\n\r\n").unwrap();
    let length = format!("\r\ncontent-length: {}\r\n", body.len());
    assert!(refused.contains(&length), "{refused}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    let message = body["message"].as_str().unwrap();
    let expected = serde_json::json!({
        "error": message, "error_type": "too_many_connections", "message": message, "detail": message,
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_and_counted() {
    let config = config(|http| http.max_connections = 2);
    let server = Server::start(Model::default(), config).await;
    let (mut first, mut second) = (server.connect().await, server.connect().await);
    // An exchange on each, so that both are open.
    for connection in [&mut first, &mut second] {
        connection.send(&wire("GET", "/live", "")).await;
        assert_eq!(connection.answer().await.status, 200);
    }
    // It gets the error regardless of how much it sends before it reads.
    let mut third = server.connect().await;
    third
        .send(&wire("POST", "/rerank", &" ".repeat(24 << 20)))
        .await;
    let refused = third.rest().await;
    too_many(&refused);
    let metrics = server.state.metrics();
    let of = ["requests"];
    assert_eq!(
        metrics
            .edge
            .refused_connections
            .with_label_values(&of)
            .get(),
        1
    );
    assert_eq!(metrics.edge.connections.with_label_values(&of).get(), 2);

    drop(first);
    open_connections(&server, 1).await;
    let mut third = server.connect().await;
    third.send(&wire("GET", "/live", "")).await;
    assert_eq!(third.answer().await.status, 200);
}

/// TLS clients get the error too, in the negotiated protocol.
#[tokio::test]
async fn connections_beyond_the_limit_are_refused_behind_tls() {
    let dir = tempfile::tempdir().unwrap();
    let root = certificate(dir.path(), "localhost");
    let config = config(|http| http.max_connections = 1);
    let server = behind_tls(Arc::new(load(dir.path()).unwrap()), config).await;
    let first = connect(&server, &root, &[b"http/1.1"]).await.unwrap();

    for protocols in [&[][..], &[&b"http/1.1"[..]], &[b"h2", b"http/1.1"]] {
        let mut second = connect(&server, &root, protocols).await.unwrap();
        let request = wire("POST", "/rerank", RERANK);
        second.write_all(request.as_bytes()).await.unwrap();
        let mut refused = String::new();
        second.read_to_string(&mut refused).await.unwrap();
        too_many(&refused);
    }
    let second = connect(&server, &root, &[b"h2"]).await.unwrap();
    let (client, connection) = h2::client::handshake(second).await.unwrap();
    let driven = tokio::spawn(connection);
    let request = Request::post("http://test/rerank").body(()).unwrap();
    let answer = match client.ready().await {
        Ok(mut client) => client.send_request(request, true).unwrap().0.await,
        Err(error) => Err(error),
    };
    let error = answer.expect_err("it is refused");
    assert!(error.is_go_away() && error.is_remote(), "{error:?}");
    assert_eq!(error.reason(), Some(h2::Reason::NO_ERROR));
    assert!(driven.await.unwrap().is_ok_and(|()| true));

    let metrics = server.state.metrics();
    let refused = metrics
        .edge
        .refused_connections
        .with_label_values(&["requests"]);
    assert_eq!(refused.get(), 4);
    drop(first);
    open_connections(&server, 0).await;
    let stream = connect(&server, &root, &[b"h2"]).await.unwrap();
    assert_eq!(over_http2(stream, "/rerank", RERANK).await.0, 200);
}

/// Beyond the limit, clients that do not complete the handshake are disconnected.
#[tokio::test(start_paused = true)]
async fn refused_handshakes_that_do_not_end_are_closed() {
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path(), "localhost");
    let config = config(|http| http.max_connections = 1);
    let server = behind_tls(Arc::new(load(dir.path()).unwrap()), config).await;
    let _first = TcpStream::connect(server.address).await.unwrap();
    open_connections(&server, 1).await;
    let begun = tokio::time::Instant::now();
    assert!(is_closed(server.address, b"\x16\x03\x01\x02\x00\x01").await);
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
}
