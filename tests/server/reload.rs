//! The list of models of a running program: how it is written, and read again.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use crate::support::program::{PATIENCE, PROGRAM, Program};
use crate::support::reference::model_dir;
use crate::support::saved::{self, Bert, WEIGHTS};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A program with a configuration file that can be changed.
struct Configured {
    program: Program,
    file: PathBuf,
    address: String,
    admin: String,
    _dir: TempDir,
}

fn start(models: &str, arguments: &[&str]) -> Program {
    let (dir, program) = launch(models, arguments);
    std::mem::forget(dir);
    program
}

fn launch(models: &str, arguments: &[&str]) -> (TempDir, Program) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rerankd.toml");
    std::fs::write(&file, models).unwrap();
    let serve = ["serve", "--threads", "2", "--listen", "127.0.0.1:0"];
    let serve = serve.map(std::ffi::OsStr::new);
    let program = Program::start(Path::new(PROGRAM), &serve, |command| {
        command.args(["--admin-listen", "127.0.0.1:0"]);
        command.arg("--config").arg(&file).args(arguments);
    });
    (dir, program)
}

impl Configured {
    fn start(models: &str) -> Self {
        let (dir, mut program) = launch(models, &[]);
        let address = program.address();
        let line = program.until("listening for probes and metrics");
        let admin = line["admin_listen"].as_str().unwrap().to_owned();
        program.until("ready");
        Self {
            program,
            file: dir.path().join("rerankd.toml"),
            address,
            admin,
            _dir: dir,
        }
    }

    fn write(&self, models: &str) {
        std::fs::write(&self.file, models).unwrap();
    }

    fn reload(&self) -> (u16, Value) {
        exchange(&self.admin, "POST", "/admin/reload", "")
    }

    fn get(&self, path: &str) -> (u16, Value) {
        exchange(&self.address, "GET", path, "")
    }

    fn names(&self) -> BTreeSet<String> {
        let (_, list) = self.get("/v1/models");
        let cards = list["data"].as_array().unwrap().iter();
        cards
            .map(|card| card["id"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The threads of the program, by name, each with its nice value.
    fn threads(&self) -> Vec<(String, i32)> {
        let tasks = format!("/proc/{}/task", self.program.child.id());
        let thread = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
            let (name, fields) = stat.split_once('(')?.1.rsplit_once(") ")?;
            let nice = fields.split(' ').nth(16)?;
            Some((name.to_owned(), nice.parse().ok()?))
        };
        // One that ends meanwhile is none.
        let tasks = std::fs::read_dir(tasks).unwrap().flatten();
        tasks.filter_map(thread).collect()
    }

    fn resident_bytes(&self) -> f64 {
        let path = format!("/proc/{}/status", self.program.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.unwrap().trim().strip_suffix("kB").unwrap().trim();
        kilobytes.parse::<f64>().unwrap() * 1024.0
    }
}

/// One request on a connection of its own.
fn exchange(address: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    try_exchange(address, method, path, body).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn try_exchange(
    address: &str,
    method: &str,
    path: &str,
    body: &str,
) -> std::io::Result<(u16, Value)> {
    let mut stream = TcpStream::connect(address)?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let json = serde_json::from_str(body).unwrap_or(Value::String(body.to_owned()));
    Ok((status.expect("a status"), json))
}

fn entry(name: &str, source: &Path) -> String {
    format!(
        "[[models]]\nname = \"{name}\"\nsource = \"{}\"\n",
        source.display()
    )
}

fn scores(address: &str, model: &str) -> Vec<f64> {
    let body = json!({
        "model": model,
        "pairs": [["what is a cat", "a small animal"], ["what is a cat", "a train to the coast"]],
        "raw_scores": true,
    });
    let (status, answer) = exchange(address, "POST", "/predict", &body.to_string());
    assert_eq!(status, 200, "{answer}");
    let scores = answer["scores"].as_array().unwrap().iter();
    scores.map(|score| score.as_f64().unwrap()).collect()
}

/// The weights of a model with a number added to the bias of its head, so that every score differs by it.
fn other_revision(dir: &Path) -> Vec<u8> {
    let mut tensors = saved::read_tensors(dir);
    let (_, bias) = tensors.get_mut("classifier.bias").unwrap();
    bias[0] += 5.0;
    let other = tempfile::tempdir().unwrap();
    let path = other.path().join(WEIGHTS);
    saved::write_tensors(&path, &tensors, Dtype::F32);
    std::fs::read(path).unwrap()
}

#[test]
fn models_are_listed_in_a_file_or_on_the_command_line() {
    let (bert, electra) = (model_dir("tiny-bert"), model_dir("tiny-electra"));
    let mut file = entry("first", &bert);
    file += &entry("second", &electra);
    file += "aliases = [\"other\", \"org/second\"]\nshare = 3\ndefault = true\n";
    let server = Configured::start(&file);
    assert_eq!(server.get("/info").1["model_id"], "second");
    assert_eq!(server.get("/info?model=first").1["architecture"], "bert");
    assert_eq!(server.get("/info?model=other").1["architecture"], "electra");

    let first = format!("first={}", bert.display());
    let second = format!("second={}", electra.display());
    let mut program = start("", &["--model", &first, "--model", &second]);
    let address = program.address();
    program.until("ready");
    let info = |query| exchange(&address, "GET", query, "").1["model_id"].clone();
    assert_eq!(
        (info("/info"), info("/info?model=second")),
        (json!("first"), json!("second"))
    );
}

#[test]
fn wrong_lists_are_told_before_anything_starts() {
    let bert = model_dir("tiny-bert");
    let (a, b) = (entry("a", &bert), entry("b", &bert));
    for (file, arguments, expected) in [
        (format!("{a}{a}"), &[][..], "two models are called `a`"),
        (
            format!("{a}{b}aliases = [\"a\"]\n"),
            &[],
            "two models are called `a`",
        ),
        (
            format!("{a}shape = 1\n"),
            &[],
            "`shape` is not a field of a model",
        ),
        (
            format!("{a}share = 0\n"),
            &[],
            "`share` must be from `1` to `1000`",
        ),
        (
            format!("{a}precision = \"fp8\"\n"),
            &[],
            "`precision` must be one of",
        ),
        (
            format!("{a}default = true\n{b}default = true\n"),
            &[],
            "`default = true`",
        ),
        (
            format!("{a}optional = true\n{b}"),
            &[],
            "the default model `a` is `optional`",
        ),
        (
            "[[models]]\nsource = \"x\"\n".to_owned(),
            &[],
            "has no `name`",
        ),
        (
            format!("onnx_file = \"x\"\n{a}"),
            &[],
            "is set beside a list of models",
        ),
        ("models = 3\n".to_owned(), &[], "must be tables"),
        (
            String::new(),
            &["--model", "a", "--model", "b"],
            "need names",
        ),
    ] {
        let mut program = start(&file, arguments);
        let mut said = String::new();
        while let Some(line) = program.line() {
            said += line.as_str().unwrap_or_default();
        }
        assert!(said.contains(expected), "{expected} in {said}");
        assert_eq!(program.end().0, Some(2), "{said}");
    }
}

#[test]
fn an_optional_model_that_cannot_be_loaded_stops_nobody_and_any_other_does() {
    let (bert, missing) = (model_dir("tiny-bert"), Path::new("/nowhere/at/all"));
    let file = entry("a", &bert) + &entry("b", missing);
    let server = Configured::start(&(file.clone() + "optional = true\n"));
    let (status, ready) = exchange(&server.admin, "GET", "/ready?verbose", "");
    assert_eq!(
        (status, &ready["models"][1]["status"]),
        (200, &json!("failed"))
    );
    let (_, metrics) = exchange(&server.admin, "GET", "/metrics", "");
    let metrics = metrics.as_str().unwrap();
    for line in [
        r#"rerankd_model_up{model="a"} 1"#,
        r#"rerankd_model_up{model="b"} 0"#,
    ] {
        assert!(metrics.contains(line), "{line}");
    }
    assert_eq!(start(&file, &[]).end().0, Some(3));
    // One that is no longer wanted is not told to be missing.
    server.write(&entry("a", &bert));
    assert_eq!(
        server.reload(),
        (200, json!({ "loaded": [], "removed": [] }))
    );
    let (_, metrics) = exchange(&server.admin, "GET", "/metrics", "");
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains(r#"rerankd_model_up{model="a"} 1"#));
    assert!(!metrics.contains(r#"rerankd_model_up{model="b"}"#));
}

#[test]
fn models_come_and_go_while_others_are_served() {
    let (bert, electra) = (model_dir("tiny-bert"), model_dir("tiny-electra"));
    let (a, b) = (entry("a", &bert), entry("b", &electra));
    let mut server = Configured::start(&a);
    let before = scores(&server.address, "a");
    server.write(&(a.clone() + &b));
    assert_eq!(
        server.reload(),
        (200, json!({ "loaded": ["b"], "removed": [] }))
    );
    assert_eq!(server.names(), ["a", "b"].map(str::to_owned).into());
    assert_ne!(scores(&server.address, "b"), before);
    // Nothing has changed, or nothing that is a model's own, so that nothing is loaded.
    let shared = "cache_size = 7\nmax_queue_tokens = 70000\nmax_model_bytes = 1000000000\n";
    for settings in ["", shared] {
        server.write(&format!("{settings}{a}{b}"));
        assert_eq!(
            server.reload(),
            (200, json!({ "loaded": [], "removed": [] })),
            "{settings}"
        );
    }
    for _ in 0..3 {
        server.program.until("models reloaded");
    }
    server.write(&b);
    server.program.signal("HUP");
    server.program.until("models reloaded");
    assert_eq!(server.names(), ["b".to_owned()].into());
    server.program.terminate();
    assert_eq!(server.program.end().0, Some(0));
}

/// Cores that a lone batch borrows are not lent to another model's at the same time.
#[test]
fn models_borrow_the_cores_of_one_pool() {
    let int8 = "precision = \"int8\"\n";
    let a = entry("a", &model_dir("tiny-bert")) + int8;
    let b = entry("b", &model_dir("tiny-electra")) + int8;
    let server = Configured::start(&(a.clone() + &b));
    let lent = || {
        let threads = server.threads().into_iter();
        threads
            .filter(|(name, _)| name.starts_with("lone-"))
            .count()
    };
    assert_eq!(lent(), 2);
    server.write(&(a + &b + &entry("c", &model_dir("tiny-bert")) + int8));
    assert_eq!(server.reload().0, 200);
    assert_eq!(lent(), 2);
}

/// The load stops at a pipe until the test has looked at the priorities of all threads.
#[cfg(target_os = "linux")]
#[test]
fn models_are_loaded_at_low_priority_and_served_at_that_of_the_process() {
    let a = entry("a", &model_dir("tiny-bert"));
    let dir = saved::copy("tiny-electra");
    let pipe = dir.path().join("tokenizer.json");
    let tokenizer = std::fs::read(&pipe).unwrap();
    std::fs::remove_file(&pipe).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let server = Configured::start(&a);
    let usual = server.threads()[0].1;
    server.write(&(a + &entry("b", dir.path())));
    let admin = &server.admin;
    std::thread::scope(|scope| {
        let reloaded = scope.spawn(|| exchange(admin, "POST", "/admin/reload", ""));
        // Returns when the load reads.
        let mut pipe = std::fs::File::options().write(true).open(&pipe).unwrap();
        let (loading, others): (Vec<_>, Vec<_>) = server
            .threads()
            .into_iter()
            .partition(|(name, _)| name == "load");
        assert_eq!(loading, [("load".to_owned(), (usual + 10).min(19))]);
        assert!(others.iter().all(|(_, nice)| *nice == usual), "{others:?}");
        assert!(
            others.iter().any(|(name, _)| name == "worker-1"),
            "{others:?}"
        );
        pipe.write_all(&tokenizer).unwrap();
        drop(pipe);
        assert_eq!(reloaded.join().unwrap().0, 200);
    });
    scores(&server.address, "b");
    let threads = server.threads();
    assert!(
        threads.iter().all(|(_, nice)| *nice == usual),
        "{threads:?}"
    );
}

/// Measured beside requests, a model seems slower than it is; one of the same shape costs what it cost.
#[test]
fn a_revision_of_the_same_shape_keeps_what_is_known_about_its_batches() {
    let dir = saved::copy("tiny-bert");
    let m = entry("m", dir.path());
    let mut server = Configured::start(&m);
    std::fs::write(dir.path().join("new"), other_revision(dir.path())).unwrap();
    std::fs::rename(dir.path().join("new"), dir.path().join(WEIGHTS)).unwrap();
    assert_eq!(server.reload().0, 200);
    assert_eq!(server.program.until("calibrated")["as_before"], true);
    server.write(&entry("m", &model_dir("tiny-electra")));
    assert_eq!(server.reload().0, 200);
    assert_eq!(server.program.until("calibrated")["as_before"], false);
}

/// Two directories whose files have the same names, sizes and times, and a link that leads to one of them.
#[test]
fn a_link_that_leads_to_another_model_is_a_change() {
    let (first, second) = (saved::copy("tiny-bert"), saved::copy("tiny-bert"));
    std::fs::write(second.path().join(WEIGHTS), other_revision(first.path())).unwrap();
    for dir in [&first, &second] {
        for file in std::fs::read_dir(dir.path()).unwrap() {
            let file = std::fs::File::options()
                .append(true)
                .open(file.unwrap().path());
            let time = std::time::SystemTime::UNIX_EPOCH;
            file.unwrap().set_modified(time).unwrap();
        }
    }
    let place = tempfile::tempdir().unwrap();
    let link = place.path().join("current");
    let lead_to = |dir: &Path| {
        let new = place.path().join("new");
        std::os::unix::fs::symlink(dir, &new).unwrap();
        std::fs::rename(new, &link).unwrap();
    };
    lead_to(first.path());
    let server = Configured::start(&entry("m", &link));
    let before = scores(&server.address, "m");
    lead_to(second.path());
    let loaded = json!({ "loaded": ["m"], "removed": [] });
    assert_eq!(server.reload(), (200, loaded));
    let after = scores(&server.address, "m");
    assert!(
        (after[0] - before[0] - 5.0).abs() < 1e-3,
        "{before:?}, {after:?}"
    );
}

#[test]
fn a_signal_while_the_first_models_load_is_not_lost() {
    let (bert, electra) = (model_dir("tiny-bert"), model_dir("tiny-electra"));
    let a = entry("a", &bert);
    let (dir, mut program) = launch(&a, &[]);
    let address = program.address();
    program.until("loading model");
    let both = a + &entry("b", &electra);
    std::fs::write(dir.path().join("rerankd.toml"), both).unwrap();
    program.signal("HUP");
    program.until("models reloaded");
    let (status, info) = exchange(&address, "GET", "/info?model=b", "");
    assert_eq!((status, &info["model_id"]), (200, &json!("b")));
}

#[test]
fn a_server_that_stops_loads_no_models() {
    let a = entry("a", &model_dir("tiny-bert"));
    let server = Configured::start(&format!("grace = \"1h\"\n{a}"));
    server.write(&(a + &entry("b", &model_dir("tiny-electra"))));
    server.program.terminate();
    let deadline = Instant::now() + PATIENCE;
    while exchange(&server.admin, "GET", "/ready", "").0 != 503 {
        assert!(Instant::now() < deadline, "the server does not stop");
    }
    let (status, answer) = server.reload();
    let message = answer["message"].as_str().unwrap_or_default();
    assert_eq!(status, 409);
    assert!(message.contains("the server is stopping"), "{message}");
    assert_eq!(server.names(), ["a".to_owned()].into());
}

#[test]
fn a_reload_that_fails_leaves_everything_as_it_was() {
    let dir = saved::copy("tiny-bert");
    let a = entry("a", dir.path());
    let mut server = Configured::start(&a);
    let before = scores(&server.address, "a");
    let missing = entry("b", Path::new("/nowhere/at/all"));
    let heavy = format!(
        "max_model_bytes = 1000\n{a}{}",
        entry("b", &model_dir("tiny-electra"))
    );
    for (file, expected) in [
        (a.clone() + &missing, "/nowhere/at/all"),
        (a.clone() + "what = 1\n", "`what` is not a field of a model"),
        (heavy, "and 0 are left for them"),
    ] {
        server.write(&file);
        let (status, answer) = server.reload();
        let message = answer["message"].as_str().unwrap_or_default();
        assert_eq!(
            (status, &answer["error_type"]),
            (409, &json!("not_reloaded"))
        );
        assert!(
            message.starts_with("the models stay as they are: "),
            "{message}"
        );
        assert!(message.contains(expected), "{message}");
        server.program.until("keeping the models that are served");
        assert_eq!(server.names(), ["a".to_owned()].into());
    }
    // Weights that are no model.
    server.write(&a);
    std::fs::write(dir.path().join("new"), b"broken").unwrap();
    std::fs::rename(dir.path().join("new"), dir.path().join(WEIGHTS)).unwrap();
    assert_eq!(server.reload().0, 409);
    assert_eq!(scores(&server.address, "a"), before);
    // Pages of other origins cannot ask for it.
    let mut stream = TcpStream::connect(&server.admin).unwrap();
    let request = "POST /admin/reload HTTP/1.1\r\nhost: a\r\norigin: http://b\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    // And nobody on the listener of clients.
    assert_eq!(
        exchange(&server.address, "POST", "/admin/reload", "").0,
        404
    );
}

/// Whatever is under way, each answer is of one revision, and none fails: with scores from the cache, which must
/// not be those of another revision, and with each of them computed.
#[test]
fn a_revision_is_swapped_ten_times_under_load() {
    let dir = saved::copy("tiny-bert");
    let weights = dir.path().join(WEIGHTS);
    let revisions = [std::fs::read(&weights).unwrap(), other_revision(dir.path())];
    let is = |scores: &[f64], of: &[f64]| scores.iter().zip(of).all(|(a, b)| (a - b).abs() < 1e-3);
    let replace = |revision: usize| {
        std::fs::write(dir.path().join("new"), &revisions[revision]).unwrap();
        std::fs::rename(dir.path().join("new"), &weights).unwrap();
    };
    for settings in ["", "cache_size = 0\n"] {
        replace(0);
        let m = entry("m", dir.path());
        let mut server = Configured::start(&format!("{settings}{m}"));
        let first = scores(&server.address, "m");
        let second: Vec<f64> = first.iter().map(|score| score + 5.0).collect();
        let (done, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let scores = scores(&server.address, "m");
                        assert!(is(&scores, &first) || is(&scores, &second), "{scores:?}");
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for swap in 1..=5 {
                replace(swap % 2);
                let (status, answer) = server.reload();
                assert_eq!(status, 200, "{answer}");
                assert_eq!(answer["loaded"], json!(["m"]), "swap {swap}");
                // Once it is answered, the new one has taken over, for pairs that were asked before too.
                let expected = if swap % 2 == 1 { &second } else { &first };
                let scores = scores(&server.address, "m");
                assert!(is(&scores, expected), "{scores:?} after swap {swap}");
            }
            done.store(true, Ordering::Relaxed);
        });
        let asked = asked.load(Ordering::Relaxed);
        println!("{asked} requests during five swaps, with {settings:?}");
        assert!(asked > 10);

        // Killed in the middle of a swap, the next start serves what is there.
        for _ in 1..=5 {
            server.program.until("models reloaded");
        }
        replace(0);
        server.program.signal("HUP");
        server.program.until("loading model");
        server.program.signal("KILL");
        let again = Configured::start(&m);
        assert!(is(&scores(&again.address, "m"), &first));
    }
}

#[test]
fn a_model_that_is_removed_gives_its_memory_back() {
    let small = entry("a", &model_dir("tiny-bert"));
    let large = Bert::LIKE_EMBEDDED.write();
    let both = small.clone() + &entry("b", large.path());
    let server = Configured::start(&small);
    let settle = |most: f64| {
        let deadline = Instant::now() + PATIENCE;
        while server.resident_bytes() > most && Instant::now() < deadline {
            std::thread::yield_now();
        }
        server.resident_bytes()
    };
    let start = server.resident_bytes();
    // Once, so that what a first time leaves behind is there before.
    for models in [&both, &small] {
        server.write(models);
        assert_eq!(server.reload().0, 200);
    }
    // Workers close their sessions soon after the answer.
    let before = settle(1.12 * start);
    let mut with = 0.0_f64;
    for _ in 0..3 {
        server.write(&both);
        assert_eq!(server.reload().0, 200);
        scores(&server.address, "b");
        with = with.max(server.resident_bytes());
        server.write(&small);
        assert_eq!(server.reload().0, 200);
    }
    let after = settle(1.1 * before);
    println!("start {start}, before {before}, with both {with}, after {after}");
    assert!(before <= 1.12 * start, "{before} after {start}");
    assert!(with > before + 30e6, "{with} after {before}");
    assert!(after <= 1.1 * before, "{after} after {before}");
}
