//! The program in operation: settings, signals and socket activation.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Stdio;

use crate::support::program::{PATIENCE, PROGRAM, Program, plain};
use crate::support::reference::model_dir;

const RERANK: &str = r#"{"query":"a river","documents":["the old bridge","a"]}"#;

/// Runs `rerankd` to completion: exit code, standard output and standard error.
fn run(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let output = plain(PROGRAM)
        .args(arguments)
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn output_that_nobody_reads_on_is_no_failure() {
    for arguments in [
        &["config"][..],
        &["bench", "--print-requests", "200"],
        &["healthcheck", "--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = plain(PROGRAM)
            .args(arguments)
            .stdout(writer)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.as_str()), (Some(0), ""));
    }
}

#[test]
fn a_benchmark_without_an_answer_says_so() {
    let model = model_dir("tiny-bert");
    let (code, _, error) = run(
        &[
            "bench",
            "--workload",
            "passage",
            "--documents",
            "1000",
            "--warm-up",
            "0s",
            "--duration",
            "1ms",
            "--target-ms",
            "0",
            "--",
            "--model",
            model.to_str().unwrap(),
        ],
        &[],
    );
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("no request was answered"), "{error}");
}

/// The status of one request on a connection of its own.
fn status(mut stream: impl Read + Write, headers: &str) -> u16 {
    let length = RERANK.len();
    let request = format!(
        "POST /rerank HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{RERANK}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer
        .split(' ')
        .nth(1)
        .unwrap_or_else(|| panic!("{answer:?}"));
    status.parse().unwrap()
}

#[test]
fn the_effective_settings_are_shown_with_their_origin() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f.toml");
    std::fs::write(&file, "max_documents = 7\nthreads = 2\n").unwrap();
    let (code, shown, _) = run(
        &[
            "config",
            "--config",
            file.to_str().unwrap(),
            "--grace",
            "5s",
        ],
        &[
            ("RERANKD_THREADS", "3"),
            ("RERANKD_API_KEYS", "search: sixteen-letters!"),
        ],
    );
    assert_eq!(code, Some(0));
    let origin = |setting: &str| {
        let line = shown.lines().find(|line| line.starts_with(setting));
        let line = line.unwrap_or_else(|| panic!("no {setting} in\n{shown}"));
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let place = format!("# `{}`, line 1", file.display());
    assert_eq!(
        origin("max_documents"),
        format!("max_documents = 7 {place}")
    );
    assert_eq!(origin("threads"), "threads = 3 # `RERANKD_THREADS`");
    assert_eq!(origin("grace"), r#"grace = "5s" # `--grace`"#);
    assert_eq!(origin("body_timeout"), r#"body_timeout = "60s" # default"#);
    assert_eq!(
        origin("# api_keys"),
        "# api_keys is set: search (hidden) # `RERANKD_API_KEYS`"
    );
    assert!(!shown.contains("sixteen"), "{shown}");
}

#[test]
fn wrong_settings_are_told_before_anything_starts() {
    for command in ["serve", "config", "healthcheck"] {
        let (code, _, error) = run(&[command], &[("RERANKD_TREADS", "3")]);
        assert_eq!(code, Some(2), "{error}");
        assert!(
            error.contains("hint: did you mean `RERANKD_THREADS`?"),
            "{error}"
        );
    }
    let (code, _, error) = run(&["serve", "--tls-cert", "/nowhere"], &[]);
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("hint: set both"), "{error}");
    let endpoint = ["serve", "--otlp-endpoint", "collector.example:4318"];
    let (code, _, error) = run(&endpoint, &[]);
    assert_eq!(code, Some(2), "{error}");
    assert!(
        error.contains("hint: write it as `http://HOST:PORT`"),
        "{error}"
    );
}

#[test]
fn keys_and_certificates_are_read_again_on_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::write(&keys, "the-first-key-of-all\n").unwrap();
    let mut program = Program::serve_with(&model_dir("tiny-bert"), |command| {
        command.arg("--api-keys-file").arg(&keys);
        command.args(["--reload-interval", "0"]);
    });
    let address = program.address();
    program.until("ready");
    let ask = |key: &str| {
        let stream = TcpStream::connect(&address).unwrap();
        status(stream, &format!("x-api-key: {key}\r\n"))
    };
    assert_eq!(
        (ask("the-first-key-of-all"), ask("the-other-key-of-all")),
        (200, 401)
    );
    std::fs::write(&keys, "the-other-key-of-all\n").unwrap();
    program.signal("HUP");
    program.until("API keys reloaded");
    assert_eq!(
        (ask("the-first-key-of-all"), ask("the-other-key-of-all")),
        (401, 200)
    );
    // An invalid file changes nothing.
    std::fs::write(&keys, "").unwrap();
    program.signal("HUP");
    let line = program.until("keeping the previous API keys");
    assert_eq!(line["error"], "the file must list at least one key");
    assert_eq!(
        (ask("the-first-key-of-all"), ask("the-other-key-of-all")),
        (401, 200)
    );
    program.terminate();
    assert_eq!(program.end().0, Some(0));
}

#[test]
fn a_file_of_keys_that_changes_is_noticed_without_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::write(&keys, "the-first-key-of-all\n").unwrap();
    let mut program = Program::serve_with(&model_dir("tiny-bert"), |command| {
        command.arg("--api-keys-file").arg(&keys);
        command.args(["--reload-interval", "1ms"]);
    });
    program.until("ready");
    // As Kubernetes and certbot do: the file is replaced.
    let new = dir.path().join("new");
    std::fs::write(&new, "the-other-key-of-all\n").unwrap();
    std::fs::rename(&new, &keys).unwrap();
    program.until("API keys reloaded");
}

#[test]
fn a_server_that_is_open_to_the_network_warns() {
    let warning = "serving the network without authentication";
    let listen = |address: &str, key: Option<&str>| {
        let model = model_dir("tiny-bert");
        let arguments = [
            "serve",
            "--listen",
            address,
            "--model",
            model.to_str().unwrap(),
        ];
        let arguments = arguments.map(OsStr::new);
        let mut program = Program::start(Path::new(PROGRAM), &arguments, |command| {
            command.envs(key.map(|key| ("RERANKD_API_KEYS", key)));
        });
        let mut warned = false;
        while let Some(line) = program.line() {
            warned |= line["message"] == warning;
            if line["message"] == "ready" {
                break;
            }
        }
        warned
    };
    assert!(listen("0.0.0.0:0", None));
    assert!(!listen("0.0.0.0:0", Some("the-first-key-of-all")));
    assert!(!listen("127.0.0.1:0", None));
}

#[test]
fn the_healthcheck_finds_a_socket_of_the_file_system_and_the_admin_port() {
    let dir = tempfile::tempdir().unwrap();
    let (main, admin) = (dir.path().join("main"), dir.path().join("admin"));
    let (main, admin) = (
        format!("unix:{}", main.display()),
        format!("unix:{}", admin.display()),
    );
    let environment = [
        ("RERANKD_LISTEN", &*main),
        ("RERANKD_ADMIN_LISTEN", &*admin),
    ];
    let model = model_dir("tiny-bert");
    let arguments = [
        OsStr::new("serve"),
        OsStr::new("--model"),
        model.as_os_str(),
    ];
    let mut program = Program::start(Path::new(PROGRAM), &arguments, |command| {
        command.envs(environment);
    });
    assert_eq!(program.address(), main);
    program.until("ready");
    let said = |address: &str| (Some(0), format!("ready at {address}\n"), String::new());
    assert_eq!(run(&["healthcheck"], &environment), said(&admin));
    assert_eq!(run(&["healthcheck"], &environment[..1]), said(&main));
    let stream = UnixStream::connect(dir.path().join("main")).unwrap();
    assert_eq!(status(stream, ""), 200);
    program.terminate();
    assert_eq!(program.end().0, Some(0));
}

/// As systemd does: the socket is open before the program starts, as file descriptor 3.
#[test]
fn a_passed_socket_is_served_and_readiness_is_notified() {
    let dir = tempfile::tempdir().unwrap();
    let notified = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    notified.set_read_timeout(Some(PATIENCE)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let model = model_dir("tiny-bert");
    let script =
        r#"LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" serve --listen 127.0.0.1:1 --model "$1" 3<&0"#;
    let arguments = ["-c", script, PROGRAM, model.to_str().unwrap()].map(OsStr::new);
    let mut program = Program::start(Path::new("/bin/sh"), &arguments, |command| {
        command
            .env("NOTIFY_SOCKET", dir.path().join("notify"))
            .stdin(Stdio::from(OwnedFd::from(listener)));
    });
    let heard = || {
        let mut text = [0; 256];
        let length = notified.recv(&mut text).unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap()
    };
    assert_eq!(program.address(), address);
    assert!(heard().contains("READY=1"));
    assert_eq!(status(TcpStream::connect(&address).unwrap(), ""), 200);
    program.terminate();
    assert!(heard().contains("STOPPING=1"));
    assert_eq!(program.end().0, Some(0));
}

/// A socket named `admin` acts as `admin_listen`: metrics are served there only.
#[test]
fn a_passed_socket_for_probes_is_the_admin_listener() {
    let (requests, admin) = (free(), free());
    let addresses = [&requests, &admin].map(|socket| socket.local_addr().unwrap().to_string());
    let model = model_dir("tiny-bert");
    let script = r#"LISTEN_FDS=2 LISTEN_FDNAMES=requests:admin LISTEN_PID=$$ exec "$0" serve --model "$1" 3<&0 4<&1"#;
    let arguments = ["-c", script, PROGRAM, model.to_str().unwrap()].map(OsStr::new);
    let mut program = Program::start(Path::new("/bin/sh"), &arguments, |command| {
        command
            .stdin(Stdio::from(OwnedFd::from(requests)))
            .stdout(Stdio::from(OwnedFd::from(admin)));
    });
    program.until("ready");
    let get = |address: &str, path: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer[..12].to_owned()
    };
    for (address, path, expected) in [
        (&addresses[0], "/ready", "HTTP/1.1 200"),
        (&addresses[0], "/metrics", "HTTP/1.1 404"),
        (&addresses[1], "/metrics", "HTTP/1.1 200"),
        (&addresses[1], "/ready", "HTTP/1.1 200"),
        (&addresses[1], "/info", "HTTP/1.1 404"),
    ] {
        assert_eq!(get(address, path), expected, "{path} at {address}");
    }
    program.terminate();
    assert_eq!(program.end().0, Some(0));
}

fn free() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}
