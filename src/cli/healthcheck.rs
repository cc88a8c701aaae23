//! `rerankd healthcheck`: what a container asks about the server inside it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::Exit;
use super::settings::Flags;

/// Longest answer that is read; `/ready` says less than this in every case.
const MAX_ANSWER_BYTES: u64 = 16 * 1024;

/// Asks, and says the answer in one line.
pub fn run(flags: &Flags) -> Exit {
    let config = match flags.resolve() {
        Ok(effective) => effective.config,
        Err(exit) => return exit,
    };
    let address = reachable(config.http.listen);
    match ask(address, config.healthcheck.timeout) {
        Ok(()) => {
            println!("ready at {address}");
            Exit::Success
        }
        Err(reason) => {
            println!("not ready at {address}: {reason}");
            Exit::Failure
        }
    }
}

/// The address a client on this machine uses for a server that listens on `listen`.
pub fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Asks `GET /ready` within `timeout`, connecting included.
///
/// # Errors
/// Why the server is not known to be ready, in a few words.
pub fn ask(address: SocketAddr, timeout: Duration) -> Result<(), String> {
    let deadline = Instant::now() + timeout;
    let answer = exchange(address, deadline).map_err(|error| match error.kind() {
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

fn exchange(address: SocketAddr, deadline: Instant) -> std::io::Result<String> {
    let left = || match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(std::io::Error::from(std::io::ErrorKind::TimedOut)),
        left => Ok(left),
    };
    let mut stream = TcpStream::connect_timeout(&address, left()?)?;
    stream.set_write_timeout(Some(left()?))?;
    let request = format!("GET /ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    // Timeouts of a socket are for one call: without a deadline, a server that drips would keep us.
    while (answer.len() as u64) < MAX_ANSWER_BYTES {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut chunk)? {
            0 => break,
            read => answer.extend_from_slice(&chunk[..read]),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Answers one connection with `answer` and returns what it was asked.
    fn server(answer: &'static str) -> (SocketAddr, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = [0; 1024];
            let read = stream.read(&mut question).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&question[..read]).into_owned()
        });
        (address, asked)
    }

    fn check(answer: &'static str, expected: Result<(), &str>) {
        let (address, asked) = server(answer);
        let result = ask(address, Duration::from_secs(10));
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
        let result = ask(address, Duration::from_millis(1));
        assert_eq!(result, Err("no answer within 0.001 s".to_owned()));
    }

    #[test]
    fn every_interface_is_asked_over_loopback() {
        for (listen, asked) in [
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:80", "[::1]:80"),
            ("10.0.0.7:80", "10.0.0.7:80"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), asked);
        }
    }
}
