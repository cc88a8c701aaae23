//! Traces of the program, as received by a collector.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use crate::support::program::{PATIENCE, Program};
use crate::support::reference::model_dir;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

const RERANK: &str = r#"{"query":"a river","documents":["the old bridge","a boat"]}"#;
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A fake collector that yields the head and the spans of each request.
fn collector() -> (String, Receiver<(String, Vec<Span>)>) {
    let (address, received) = collector_over(|stream| Box::new(stream));
    (format!("http://{address}"), received)
}

trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

fn collector_over(
    wrap: impl Fn(TcpStream) -> Box<dyn Stream> + Send + 'static,
) -> (SocketAddr, Receiver<(String, Vec<Span>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, received) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = wrap(stream.unwrap());
            let (head, body) = read(&mut stream);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .unwrap();
            let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
            let resources = request.resource_spans.into_iter();
            let scopes = resources.flat_map(|resource| resource.scope_spans);
            let spans = scopes.flat_map(|scope| scope.spans).collect();
            if sender.send((head, spans)).is_err() {
                return;
            }
        }
    });
    (address, received)
}

/// Head and body of a request.
fn read(stream: &mut impl Read) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head.split("content-length: ").nth(1).unwrap();
    let length = length.split("\r\n").next().unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (head, body)
}

/// The response head for a request with these headers.
fn ask(address: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = RERANK.len();
    let request = format!(
        "POST /rerank HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{RERANK}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    answer.split("\r\n\r\n").next().unwrap().to_owned()
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let prefix = format!("{name}: ");
    head.lines().find_map(|line| line.strip_prefix(&*prefix))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_collector_receives_every_step_of_a_request() {
    let (endpoint, received) = collector();
    let mut program = Program::serve_with(&model_dir("tiny-bert"), |command| {
        command.args(["--otlp-endpoint", &endpoint]);
        command.env("RERANKD_OTLP_HEADERS", "x-tenant=search");
    });
    let address = program.address();
    program.until("ready");
    let head = ask(
        &address,
        &format!("traceparent: 00-{TRACE}-{CALLER}-01\r\nx-request-id: me\r\n"),
    );
    let line = program.until("request");
    assert_eq!(
        (&line["request_id"], &line["trace_id"]),
        (&"me".into(), &TRACE.into())
    );
    program.terminate();
    assert_eq!(program.end().0, Some(0));

    let (head_of_export, mut spans) = received.recv_timeout(PATIENCE).unwrap();
    while let Ok((_, more)) = received.try_recv() {
        spans.extend(more);
    }
    assert!(
        head_of_export.starts_with("post /v1/traces http/1.1\r\n"),
        "{head_of_export}"
    );
    assert!(head_of_export.contains("content-type: application/x-protobuf\r\n"));
    assert!(head_of_export.contains("x-tenant: search\r\n"));

    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));
    let spans: HashMap<&str, &Span> = spans.iter().map(|span| (&*span.name, span)).collect();
    let request = spans["POST /rerank"];
    assert_eq!(hex(&request.parent_span_id), CALLER);
    let own = format!("00-{TRACE}-{}-01", hex(&request.span_id));
    assert_eq!(header(&head, "traceparent"), Some(&*own));
    for step in ["admission", "tokenize", "queue", "inference"] {
        let span = spans[step];
        assert_eq!(span.parent_span_id, request.span_id, "{step}");
        assert!(
            span.start_time_unix_nano <= span.end_time_unix_nano,
            "{step}"
        );
        assert!(
            span.end_time_unix_nano <= request.end_time_unix_nano + 1_000_000,
            "{step}"
        );
    }
    for name in ["batch", "POST /rerank"] {
        let attributes = format!("{:?}", spans[name].attributes);
        let named = attributes.contains("rerankd.model") && attributes.contains("tiny-bert");
        assert!(named, "{attributes}");
    }
    let links = &spans["batch"].links;
    assert_eq!(links.len(), 1);
    assert_eq!(links[0].span_id, request.span_id);
    let text = format!("{spans:?}");
    assert!(
        !text.contains("bridge") && !text.contains("river"),
        "{text}"
    );
}

/// The caller's sampling decision takes precedence over the settings.
#[test]
fn what_is_not_sampled_is_not_sent() {
    let (endpoint, received) = collector();
    let mut program = Program::serve_with(&model_dir("tiny-bert"), |command| {
        command.args(["--otlp-endpoint", &endpoint, "--trace-sample-percent", "0"]);
    });
    let address = program.address();
    program.until("ready");
    ask(&address, "");
    ask(
        &address,
        &format!("traceparent: 00-{TRACE}-{CALLER}-00\r\n"),
    );
    ask(
        &address,
        &format!("traceparent: 00-{TRACE}-{CALLER}-01\r\n"),
    );
    program.terminate();
    assert_eq!(program.end().0, Some(0));
    let (_, spans) = received.recv_timeout(PATIENCE).unwrap();
    let requests = spans.iter().filter(|span| span.name == "POST /rerank");
    assert_eq!(requests.count(), 1);
    assert!(received.try_recv().is_err());
}

/// Its certificate is verified with the system roots.
#[test]
fn a_collector_can_be_reached_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let roots = dir.path().join("roots.pem");
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&roots, made.cert.pem()).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let (address, received) = collector_over(move |stream| {
        let connection = ServerConnection::new(config.clone()).unwrap();
        Box::new(StreamOwned::new(connection, stream))
    });
    let endpoint = format!("https://{address}");
    let mut program = Program::serve_with(&model_dir("tiny-bert"), |command| {
        command.args(["--otlp-endpoint", &endpoint]);
        command.env("SSL_CERT_FILE", &roots);
    });
    let address = program.address();
    program.until("ready");
    ask(&address, "");
    program.terminate();
    assert_eq!(program.end().0, Some(0));
    let (_, spans) = received.recv_timeout(PATIENCE).unwrap();
    assert!(spans.iter().any(|span| span.name == "POST /rerank"));
}

/// An unreachable collector causes a log line and does not affect requests.
#[test]
fn a_collector_that_is_gone_does_no_harm() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let mut program = Program::serve_with(&model_dir("tiny-bert"), |command| {
        command.args(["--otlp-endpoint", &endpoint]);
    });
    let address = program.address();
    program.until("ready");
    let head = ask(&address, "");
    assert!(header(&head, "traceparent").is_some());
    program.terminate();
    assert_eq!(program.end().0, Some(0));
}

#[test]
fn without_a_collector_only_the_times_are_told() {
    let mut program = Program::serve(&model_dir("tiny-bert"));
    let address = program.address();
    program.until("ready");
    let head = ask(&address, "");
    assert_eq!(header(&head, "traceparent"), None);
    let timing = header(&head, "server-timing").unwrap();
    let names: Vec<&str> = timing
        .split(", ")
        .map(|entry| entry.split(";dur=").next().unwrap())
        .collect();
    assert_eq!(
        names,
        ["admission", "tokenize", "queue", "inference", "total"]
    );
    for entry in timing.split(", ") {
        let milliseconds: f64 = entry.split(";dur=").nth(1).unwrap().parse().unwrap();
        assert!((0.0..60_000.0).contains(&milliseconds), "{timing}");
    }
}
