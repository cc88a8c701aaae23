//! The program: error messages at startup, and clean shutdown.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::program::{PATIENCE, PROGRAM, Program, arguments, plain};
use crate::support::reference::model_dir;
use crate::support::saved::{self, WEIGHTS};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

const LIBRARY: &str = "ORT_DYLIB_PATH";

/// The program exits with the code for load errors, and its message contains all of `expected`.
#[track_caller]
fn check_refused(program: Program, expected: &[&str]) {
    let (code, last) = program.end();
    assert_eq!(code, Some(3), "{last}");
    assert_eq!(last["level"], "ERROR");
    assert_eq!(last["message"], "cannot load the model");
    let error = last["error"].as_str().unwrap();
    for part in expected {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
    assert!(error.contains("hint: "), "{error}");
}

// Models.

/// A modified copy of `tiny-bert` is rejected with a message that contains all of `expected`.
#[track_caller]
fn check_model(change: impl FnOnce(&Path), expected: &[&str]) {
    let dir = saved::copy("tiny-bert");
    change(dir.path());
    check_refused(Program::serve(dir.path()), expected);
}

/// [`check_model`] with a modified field of `config.json`.
#[track_caller]
fn check_config(field: &str, value: Value, expected: &[&str]) {
    let change = |dir: &Path| saved::edit(dir, "config.json", |config| config[field] = value);
    check_model(change, &[&["config.json`"], expected].concat());
}

#[test]
fn files_that_are_missing_are_refused() {
    let nowhere = Path::new("/nowhere/at/all");
    check_refused(
        Program::serve(nowhere),
        &["`/nowhere/at/all` is not a directory", "`config.json`"],
    );
    let remove = |file: &'static str| move |dir: &Path| fs::remove_file(dir.join(file)).unwrap();
    check_model(remove("config.json"), &["config.json` is missing"]);
    check_model(
        remove("tokenizer.json"),
        &["tokenizer.json` is missing", "save_pretrained"],
    );
    check_model(remove(WEIGHTS), &["model.safetensors` is missing"]);
    check_model(
        |dir| fs::rename(dir.join(WEIGHTS), dir.join("pytorch_model.bin")).unwrap(),
        &[
            "model.safetensors` is missing",
            "pytorch_model.bin",
            "convert",
        ],
    );
}

#[test]
fn a_model_whose_scores_mean_nothing_is_refused() {
    let fill = |name: &'static str, value: f32| {
        move |dir: &Path| {
            let mut tensors = saved::read_tensors(dir);
            tensors.get_mut(name).unwrap().1.fill(value);
            saved::write_tensors(&dir.join(WEIGHTS), &tensors, Dtype::F32);
        }
    };
    check_model(
        fill("classifier.weight", 0.0),
        &["every pair the same score"],
    );
    check_model(
        fill("bert.embeddings.LayerNorm.weight", f32::MAX),
        &["scores that are not finite", "its weights are damaged"],
    );
}

/// What Git has in place of a large file.
const POINTER: &str = "version https://git-lfs.github.com/spec/v1";

#[test]
fn models_that_cannot_be_served_are_refused() {
    check_config(
        "architectures",
        json!(["BertModel"]),
        &["`architectures` is `BertModel`", "no classification head"],
    );
    check_config(
        "model_type",
        json!("funnel"),
        &[
            "`funnel` is not supported",
            "`BertForSequenceClassification`",
        ],
    );
    check_config("hidden_act", json!("swish"), &["`hidden_act` is `swish`"]);
    check_config("hidden_size", json!("32"), &["`hidden_size` is a string"]);
    check_model(
        |dir| {
            saved::edit(dir, "config_sentence_transformers.json", |config| {
                config["activation_fn"] = json!("torch.nn.modules.activation.Tanh");
            });
        },
        &[
            "config_sentence_transformers.json`",
            "`activation_fn` is `torch.nn.modules.activation.Tanh`",
        ],
    );
    check_model(
        |dir| fs::write(dir.join("tokenizer.json"), "{}").unwrap(),
        &["`tokenizer.json` is invalid"],
    );
    check_model(
        |dir| fs::write(dir.join("config.json"), "<!DOCTYPE html>").unwrap(),
        &["config.json` is not JSON", "an HTML page"],
    );
    check_model(
        |dir| fs::write(dir.join("config.json"), POINTER).unwrap(),
        &["config.json` is a Git LFS pointer", "`git lfs pull`"],
    );
}

/// Their weights could load, but without a prompt every score would be wrong.
#[test]
fn language_models_without_a_prompt_are_refused() {
    let ways = [
        "prompt",
        "chat_template.jinja",
        "rerankd_profile.json",
        "`--profile`",
    ];
    let kind = ["language models of this kind are not supported"];
    for (model_type, class, why) in [
        ("qwen3", "Qwen3ForCausalLM", &ways[..]),
        ("gemma", "GemmaForCausalLM", &ways),
        ("gpt2", "GPT2LMHeadModel", &kind),
        ("t5", "T5ForConditionalGeneration", &kind),
        ("bert", "BertForCausalLM", &kind),
    ] {
        let change = |dir: &Path| {
            saved::edit(dir, "config.json", |config| {
                config["model_type"] = json!(model_type);
                config["architectures"] = json!([class]);
            });
            // An ONNX file does not help.
            fs::write(dir.join("model.onnx"), "").unwrap();
        };
        check_model(change, why);
    }
    let module = |name: &str| json!({"idx": 1, "name": "1", "path": "1_LogitScore", "type": name});
    let change = |dir: &Path| {
        saved::edit(dir, "modules.json", |modules| {
            let class = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore";
            modules.as_array_mut().unwrap().push(module(class));
        });
        fs::remove_file(dir.join("sentence_bert_config.json")).unwrap();
        fs::create_dir(dir.join("1_LogitScore")).unwrap();
        fs::write(
            dir.join("1_LogitScore/config.json"),
            r#"{"true_token_id": 7}"#,
        )
        .unwrap();
    };
    check_model(change, &kind);
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let change = |change: fn(&mut saved::Tensors)| {
        move |dir: &Path| {
            let mut tensors = saved::read_tensors(dir);
            change(&mut tensors);
            saved::write_tensors(&dir.join(WEIGHTS), &tensors, Dtype::F32);
        }
    };
    check_model(
        change(|tensors| {
            let key = "bert.encoder.layer.1.attention.self.key.weight";
            tensors.insert(key.to_owned(), (vec![32, 16], vec![0.5; 32 * 16]));
        }),
        &[
            "model.safetensors`",
            "`bert.encoder.layer.1.attention.self.key.weight`",
            "[32, 16]",
            "[32, 32]",
        ],
    );
    check_model(
        change(|tensors| {
            tensors.insert("classifier.weight".to_owned(), (vec![2, 32], vec![0.5; 64]));
        }),
        &["`classifier.weight` has the shape [2, 32]", "[1, 32]"],
    );
    check_model(
        change(|tensors| {
            tensors.remove("classifier.weight").unwrap();
        }),
        &["no tensor `classifier.weight`", "no classification head"],
    );
    check_model(
        change(|tensors| {
            tensors.remove("bert.pooler.dense.bias").unwrap();
        }),
        &["there is no tensor `bert.pooler.dense.bias`"],
    );
    check_config(
        "vocab_size",
        json!(1201),
        &[
            "`bert.embeddings.word_embeddings.weight`",
            "[1200, 32]",
            "[1201, 32]",
        ],
    );
}

#[test]
fn weights_that_are_damaged_are_refused() {
    let whole = fs::read(model_dir("tiny-bert").join(WEIGHTS)).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let lying = |length: u64| [&length.to_le_bytes()[..], &whole[8..]].concat();
    let text = String::from_utf8(whole[8..8 + header].to_vec()).unwrap();
    // Declares a tensor of 2^60 elements.
    let huge = text.replacen("[1200,32]", "[1152921504606846976]", 1);
    assert_ne!(text, huge);
    let with_header = |text: &str| {
        let length = text.len() as u64;
        [
            &length.to_le_bytes()[..],
            text.as_bytes(),
            &whole[8 + header..],
        ]
        .concat()
    };
    for (bytes, expected) in [
        (Vec::new(), "too short for a header"),
        (whole[..100].to_vec(), "but declares a header of"),
        (
            whole[..whole.len() / 2].to_vec(),
            "bytes of tensors; its header declares",
        ),
        (
            whole[..whole.len() - 1].to_vec(),
            "bytes of tensors; its header declares",
        ),
        (lying(u64::MAX), "but declares a header of"),
        (lying(1 << 40), "but declares a header of"),
        (lying(header as u64 / 2), "has an invalid header"),
        (with_header(&huge), "has an invalid header"),
    ] {
        let write = |dir: &Path| fs::write(dir.join(WEIGHTS), bytes).unwrap();
        check_model(
            write,
            &["model.safetensors` ", expected, "download the file again"],
        );
    }
    check_model(
        |dir| fs::write(dir.join(WEIGHTS), POINTER).unwrap(),
        &["model.safetensors` is a Git LFS pointer", "`git lfs pull`"],
    );
}

// ONNX Runtime.

fn library() -> PathBuf {
    let path = std::env::var_os(LIBRARY).expect("cargo sets it");
    fs::canonicalize(path).unwrap()
}

#[track_caller]
fn check_library(value: &OsStr, expected: &[&str]) {
    let model = model_dir("tiny-bert");
    let program = Program::serve_with(&model, |command| {
        command.env(LIBRARY, value);
    });
    check_refused(program, expected);
}

#[test]
fn a_library_that_is_none_is_refused() {
    let missing = OsStr::new("/nowhere/libonnxruntime.so");
    check_library(
        missing,
        &[
            "`/nowhere/libonnxruntime.so` cannot be loaded",
            "`make onnxruntime`",
        ],
    );
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("libonnxruntime.so");
    fs::write(&text, "not a library").unwrap();
    check_library(
        text.as_os_str(),
        &[text.to_str().unwrap(), "cannot be loaded"],
    );
    check_library(dir.path().as_os_str(), &["cannot be loaded"]);
    check_library(
        OsStr::new("target/onnxruntime/libonnxruntime.so"),
        &["`target/onnxruntime/libonnxruntime.so`, which is not a full path"],
    );
}

/// Compiles a library from C source.
fn compile(dir: &Path, source: &str) -> PathBuf {
    let (code, library) = (dir.join("fake.c"), dir.join("libonnxruntime.so"));
    fs::write(&code, source).unwrap();
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &code]);
    assert!(compiler.status().expect("a C compiler").success());
    library
}

#[test]
fn a_library_that_is_another_or_too_old_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let other = compile(dir.path(), "int other(void) { return 1; }");
    check_library(other.as_os_str(), &["does not export `OrtGetApiBase`"]);
    let old = compile(
        dir.path(),
        r#"
        static const void *api(unsigned version) { return 0; }
        static const char *version(void) { return "1.9.1"; }
        static const struct { const void *(*a)(unsigned); const char *(*v)(void); }
            base = { api, version };
        const void *OrtGetApiBase(void) { return &base; }
        "#,
    );
    check_library(
        old.as_os_str(),
        &["is ONNX Runtime 1.9.1; this program needs 1."],
    );
}

/// The program in an otherwise empty folder.
fn installed() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("bin")).unwrap();
    let program = dir.path().join("bin/rerankd");
    if fs::hard_link(PROGRAM, &program).is_err() {
        fs::copy(PROGRAM, &program).unwrap();
    }
    (dir, program)
}

#[test]
fn the_library_is_found_beside_the_program_and_not_in_the_working_directory() {
    let (dir, program) = installed();
    let model = model_dir("tiny-bert");
    let working = dir.path().join("working");
    fs::create_dir(&working).unwrap();
    std::os::unix::fs::symlink(library(), working.join("libonnxruntime.so")).unwrap();
    let start = || {
        Program::start(&program, &arguments(&model), |command| {
            command.env_remove(LIBRARY).current_dir(&working);
        })
    };
    check_refused(
        start(),
        &[
            "no ONNX Runtime library in",
            "/bin`",
            "/bin/../onnxruntime`",
            "system",
        ],
    );
    for place in ["onnxruntime", "bin"] {
        let folder = dir.path().join(place);
        fs::create_dir_all(&folder).unwrap();
        let link = folder.join("libonnxruntime.so");
        std::os::unix::fs::symlink(library(), &link).unwrap();
        start().until("ready");
        fs::remove_file(link).unwrap();
    }
}

// Normal operation.

/// Reads until the server closes the connection.
fn rest(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn healthcheck(listen: &str) -> (Option<i32>, String) {
    let output = plain(PROGRAM)
        .args([
            "healthcheck",
            "--listen",
            listen,
            "--healthcheck-timeout",
            "60s",
        ])
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
    )
}

#[test]
fn a_request_under_way_is_answered_after_sigterm() {
    let mut program = Program::serve_with(&model_dir("tiny-bert"), |command| {
        command.args(["--drain-timeout", "60s"]);
    });
    let address = program.address();
    program.until("ready");

    let mut stream = TcpStream::connect(&address).unwrap();
    let body = r#"{"query":"a river","documents":["the old bridge","a"]}"#;
    let head = format!(
        "POST /rerank HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The server asks for the body, so the request is in progress.
    let mut go_on = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    stream.read_exact(&mut go_on).unwrap();
    assert!(go_on.starts_with(b"HTTP/1.1 100 "));

    program.terminate();
    program.until("stopping");
    while TcpStream::connect(&address).is_ok() {
        std::thread::yield_now();
    }
    stream.write_all(body.as_bytes()).unwrap();
    let answer = rest(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert_eq!(answer.matches("relevance_score").count(), 2, "{answer}");
    let (code, last) = program.end();
    assert_eq!((code, &last["message"]), (Some(0), &json!("stopped")));
}

#[test]
fn a_second_signal_ends_the_program_at_once() {
    let mut program = Program::serve_with(&model_dir("tiny-bert"), |command| {
        command.args(["--grace", "1h"]);
    });
    program.until("ready");
    program.terminate();
    program.until("stopping");
    program.terminate();
    assert_eq!(program.end().0, Some(130));
}

#[test]
fn the_healthcheck_tells_by_its_exit_code() {
    let mut program = Program::serve_with(&model_dir("tiny-bert"), |command| {
        command.args(["--grace", "1h"]);
    });
    let address = program.address();
    program.until("ready");
    assert_eq!(
        healthcheck(&address),
        (Some(0), format!("ready at {address}\n"))
    );
    program.terminate();
    program.until("stopping");
    // Logged just before readiness is withdrawn.
    let (mut code, mut said) = healthcheck(&address);
    while code == Some(0) {
        (code, said) = healthcheck(&address);
    }
    assert_eq!(code, Some(1));
    assert!(
        said.contains("status 503, the server is stopping"),
        "{said}"
    );
    drop(program);
    let (code, said) = healthcheck(&address);
    assert_eq!(code, Some(1));
    assert!(
        said.contains(&format!("not ready at {address}: ")),
        "{said}"
    );
}

#[test]
fn wrong_usage_has_its_own_exit_code() {
    for arguments in [
        &["serve", "--threads", "0"][..],
        &["serve", "--nonsense"],
        &[],
    ] {
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        let program = Program::start(Path::new(PROGRAM), &arguments, |_| ());
        assert_eq!(program.end().0, Some(2), "{arguments:?}");
    }
    // A port in use is not a usage error.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let arguments = ["serve", "--listen", &listen].map(OsStr::new);
    let (code, last) = Program::start(Path::new(PROGRAM), &arguments, |_| ()).end();
    assert_eq!(code, Some(1), "{last}");
    assert!(last["message"].as_str().unwrap().contains("cannot listen"));
}
