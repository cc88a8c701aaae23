//! Runs the program.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

/// Much longer than any startup takes; a program that takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_rerankd");

/// A running `rerankd`, killed on drop.
pub struct Program {
    pub child: Child,
    /// Lines of its log; closed when it exits.
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Program {
    /// Starts `rerankd` on a free port with the given settings only.
    pub fn start(program: &Path, arguments: &[&OsStr], change: impl FnOnce(&mut Command)) -> Self {
        let mut command = plain(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in log.lines() {
                if sender.send(line.unwrap()).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            lines,
            seen: Vec::new(),
        }
    }

    pub fn serve(model: &Path) -> Self {
        Self::serve_with(model, |_| ())
    }

    pub fn serve_with(model: &Path, change: impl FnOnce(&mut Command)) -> Self {
        Self::start(Path::new(PROGRAM), &arguments(model), change)
    }

    /// The next log line; `None` if the program has exited.
    #[track_caller]
    pub fn line(&mut self) -> Option<Value> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                self.seen.push(line.clone());
                Some(serde_json::from_str(&line).unwrap_or(Value::String(line)))
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => None,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                panic!("the program hangs after {:#?}", self.seen)
            }
        }
    }

    /// Reads the log up to a message.
    #[track_caller]
    pub fn until(&mut self, message: &str) -> Value {
        while let Some(line) = self.line() {
            if line["message"] == message {
                return line;
            }
        }
        panic!("no `{message}` in {:#?}", self.seen);
    }

    /// Waits for the program to exit: exit code and last log line.
    #[track_caller]
    pub fn end(mut self) -> (Option<i32>, Value) {
        let mut last = Value::Null;
        while let Some(line) = self.line() {
            last = line;
        }
        // Its standard error is closed, so it has exited or is about to.
        (self.child.wait().unwrap().code(), last)
    }

    /// Its address, once it listens.
    #[track_caller]
    pub fn address(&mut self) -> String {
        let line = self.until("starting");
        line["listen"].as_str().unwrap().to_owned()
    }

    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        let killed = Command::new("sh").args(["-c", &kill]).status();
        assert!(killed.unwrap().success());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `program` with a clean environment.
pub fn plain(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().to_ascii_uppercase();
        let theirs = ["RERANKD_", "HF_", "HUGGING", "TRANSFORMERS_"];
        if theirs.iter().any(|prefix| text.starts_with(prefix))
            || text.ends_with("_PROXY")
            || text == "RUST_LOG"
        {
            command.env_remove(name);
        }
    }
    command
}

/// The command line to serve a model on a free port.
pub fn arguments(model: &Path) -> [&OsStr; 7] {
    let plain = OsStr::new;
    [
        plain("serve"),
        plain("--listen"),
        plain("127.0.0.1:0"),
        plain("--threads"),
        plain("1"),
        plain("--model"),
        model.as_os_str(),
    ]
}
