//! The client that carries spans to a collector: one request at a time, on the thread that exports.

use std::io::{Error, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};

/// Longest that any step of an exchange may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer that is read; collectors say a few bytes.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;

/// Speaks plain HTTP/1.1. It blocks: nothing else runs on the thread that exports.
#[derive(Debug)]
pub(super) struct Client;

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        Ok(exchange(&request)?)
    }
}

fn exchange(request: &Request<Bytes>) -> Result<Response<Bytes>, Error> {
    let uri = request.uri();
    let host = uri
        .host()
        .ok_or_else(|| Error::other("the address of the collector has no host"))?;
    let port = uri.port_u16().unwrap_or(80);
    let mut stream = TcpStream::connect((host.trim_matches(['[', ']']), port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;

    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let length = request.body().len();
    let mut head = format!(
        "{} {path} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\ncontent-length: {length}\r\n",
        request.method()
    )
    .into_bytes();
    for (name, value) in request.headers() {
        if !matches!(name.as_str(), "host" | "connection" | "content-length") {
            head.extend_from_slice(name.as_str().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
    }
    head.extend_from_slice(b"\r\n");
    stream.write_all(&head)?;
    stream.write_all(request.body())?;

    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
    let status = answer
        .strip_prefix(b"HTTP/1.")
        .and_then(|rest| {
            std::str::from_utf8(rest.get(2..5)?)
                .ok()?
                .parse::<u16>()
                .ok()
        })
        .ok_or_else(|| Error::other("the answer of the collector is not HTTP"))?;
    // The body of an answer tells of spans that were refused; what matters is the status.
    Response::builder()
        .status(status)
        .body(Bytes::new())
        .map_err(Error::other)
}
