//! Hub downloads against a fake hub: selection and verification of files, token scope, and offline mode.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::hub::{COMMIT, Fault, Hub, Model, git_blob, sha256};
use crate::support::program::{PROGRAM, Program, plain};
use crate::support::reference::{Reference, model_dir};
use crate::support::saved;
use rerankd::config::{Secret, Value as _};
use rerankd::http::tls::Tls;
use rerankd_hub::{DownloadEvent, HubConfig, ModelId, Proxy, Retries, fetch};
use rerankd_model::{AnyModel, Model as Opened, ModelError};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Barrier;

const ID: &str = "owner/tiny-bert";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Files of [`tiny_bert`] that are needed.
const NEEDED: [&str; 7] = [
    "config.json",
    "config_sentence_transformers.json",
    WEIGHTS,
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// A model with unneeded files.
fn tiny_bert() -> Model {
    Model::of(ID, &model_dir("tiny-bert"))
        .with("README.md", "read me")
        .with("pytorch_model.bin", "a pickle")
        .with("onnx/model.onnx", "a graph")
}

/// A temporary cache, filled from a fake hub.
struct Place {
    dir: TempDir,
    config: HubConfig,
    events: Mutex<Vec<String>>,
}

impl Place {
    fn new(hub: &Hub) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = HubConfig {
            endpoint: hub.endpoint.clone(),
            token: None,
            cache: dir.path().join("hub"),
            offline: false,
            ca_file: None,
            proxy: None,
            retries: Retries {
                attempts: 4,
                delay: Duration::from_millis(1),
                longest_wait: Duration::from_secs(2),
            },
            model: rerankd_model::ModelOptions::default(),
        };
        Self {
            dir,
            config,
            events: Mutex::default(),
        }
    }

    fn fetch(&self, id: &str) -> Result<PathBuf, ModelError> {
        self.fetch_file(id, None)
    }

    /// Fetches a model with `--onnx-file`.
    fn fetch_file(&self, id: &str, file: Option<&str>) -> Result<PathBuf, ModelError> {
        let id: ModelId = id.parse().unwrap();
        fetch(
            &id,
            file.map(Path::new),
            &self.config,
            &|event: DownloadEvent<'_>| {
                self.events.lock().unwrap().push(format!("{event:?}"));
            },
        )
    }

    #[track_caller]
    fn fetched(&self, id: &str) -> PathBuf {
        self.fetch(id).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Fetching fails with an error that contains all of `expected`.
    #[track_caller]
    fn refused(&self, id: &str, expected: &[&str]) {
        let said = self.fetch(id).unwrap_err().to_string();
        for part in expected {
            assert!(said.contains(part), "no `{part}` in: {said}");
        }
        assert!(said.contains("\nhint: "), "{said}");
    }

    fn repo(&self) -> PathBuf {
        self.config.cache.join("models--owner--tiny-bert")
    }

    /// All files and links in the cache, except lock files.
    fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.config.cache.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true if path.ends_with(".locks") => {}
                    true => folders.push(path),
                    false => {
                        let inner = path.strip_prefix(&self.config.cache).unwrap();
                        found.push(inner.display().to_string());
                    }
                }
            }
        }
        found.sort();
        found
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_model_comes_once_in_the_layout_that_others_read() {
    let model = tiny_bert();
    let hub = Hub::new(vec![model.clone()]);
    let place = Place::new(&hub);
    let dir = place.fetched(ID);

    assert_eq!(dir, place.repo().join("snapshots").join(COMMIT));
    assert_eq!(names(&dir), NEEDED);
    for name in NEEDED {
        let content = &model.files[name];
        let digits = match name {
            WEIGHTS => sha256(content),
            _ => git_blob(content),
        };
        let link = fs::read_link(dir.join(name)).unwrap();
        assert_eq!(link, Path::new(&format!("../../blobs/{digits}")));
        assert_eq!(&fs::read(dir.join(name)).unwrap(), content);
    }
    assert_eq!(names(&place.repo().join("blobs")).len(), NEEDED.len());
    let main = fs::read_to_string(place.repo().join("refs/main"));
    assert_eq!(main.unwrap(), COMMIT);
    assert_eq!(Opened::open(&dir).unwrap().manifest.id, ID);

    // Fetching again resolves `main` and requests no file.
    let before = hub.seen().len();
    assert_eq!(place.fetched(ID), dir);
    let after = hub.seen();
    assert_eq!(after.len(), before + 1);
    assert_eq!(after.last().unwrap().what, "listing");

    // A commit is immutable, so the hub is not asked.
    assert_eq!(place.fetched(&format!("{ID}@{COMMIT}")), dir);
    assert_eq!(hub.seen().len(), before + 1);
}

#[test]
fn a_revision_that_is_named_is_the_one_that_comes() {
    let mut other = tiny_bert().with("config.json", "{}");
    other.commit = "f".repeat(40);
    let mut wanted = tiny_bert();
    other.revisions = vec!["main".to_owned()];
    wanted.revisions = vec!["refs/pr/1".to_owned()];
    let hub = Hub::new(vec![other, wanted]);
    let place = Place::new(&hub);
    let dir = place.fetched(&format!("{ID}@refs/pr/1"));
    assert!(dir.ends_with(COMMIT));
    let named = fs::read_to_string(place.repo().join("refs/refs/pr/1"));
    assert_eq!(named.unwrap(), COMMIT);
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let hub = Hub::private(vec![tiny_bert()], "hf_secret");
    let mut place = Place::new(&hub);
    place.config.token = Some(Secret::parse("hf_secret").unwrap());
    place.fetched(ID);
    let seen = hub.seen();
    let (storage, at_hub): (Vec<_>, Vec<_>) = seen
        .iter()
        .partition(|seen| seen.what.starts_with("storage"));
    assert!(!storage.is_empty() && at_hub.len() > NEEDED.len());
    for seen in storage {
        assert_eq!(seen.authorization, None, "{seen:?}");
    }
    for seen in at_hub {
        assert_eq!(
            seen.authorization.as_deref(),
            Some("Bearer hf_secret"),
            "{seen:?}"
        );
    }
    let config = format!("{:?}", place.config);
    assert!(!config.contains("hf_secret"), "{config}");
}

/// Another port on the same host is another origin.
#[test]
fn a_redirect_to_another_port_takes_no_token_along() {
    let thief = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: &'static str = format!("http://{}/x", thief.local_addr().unwrap()).leak();
    let hub = Hub::private(vec![tiny_bert()], "hf_secret");
    let headers: &'static [(&str, &str)] = vec![("location", address)].leak();
    hub.fail("listing", [Fault::Status(302, headers)]);
    let caught = std::thread::spawn(move || {
        let (mut stream, _) = thief.accept().unwrap();
        let mut head = vec![0; 4096];
        let read = stream.read(&mut head).unwrap();
        stream
            .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            .unwrap();
        String::from_utf8_lossy(&head[..read]).to_ascii_lowercase()
    });
    let mut place = Place::new(&hub);
    place.config.token = Some(Secret::parse("hf_secret").unwrap());
    place.fetched(ID);
    let head = caught.join().unwrap();
    assert!(head.starts_with("get /x"), "{head}");
    assert!(
        !head.contains("authorization") && !head.contains("hf_secret"),
        "{head}"
    );
}

#[test]
fn interrupted_downloads_resume() {
    let hub = Hub::new(vec![tiny_bert()]);
    hub.fail(
        &format!("storage {WEIGHTS}"),
        [Fault::Cut(1000), Fault::Cut(500)],
    );
    hub.fail(
        "moved tokenizer.json",
        [Fault::Header("x-a", "for HEAD"), Fault::Cut(100)],
    );
    let place = Place::new(&hub);
    let dir = place.fetched(ID);
    let weights = fs::read(dir.join(WEIGHTS)).unwrap();
    assert_eq!(weights, tiny_bert().files[WEIGHTS]);
    let ranges = |what: &str| -> Vec<Option<String>> {
        let seen = hub.seen().into_iter().filter(|seen| seen.what == what);
        seen.map(|seen| seen.range).collect()
    };
    let from = |bytes: usize| Some(format!("bytes={bytes}-"));
    assert_eq!(
        ranges(&format!("storage {WEIGHTS}")),
        [None, from(1000), from(1500)]
    );
    assert_eq!(ranges("get tokenizer.json"), [None, from(100)]);
    assert!(
        !place
            .files()
            .iter()
            .any(|file| file.ends_with(".incomplete"))
    );
}

#[test]
fn interrupted_downloads_resume_in_another_process() {
    let hub = Hub::new(vec![tiny_bert()]);
    hub.fail(&format!("storage {WEIGHTS}"), vec![Fault::Cut(1000); 4]);
    let place = Place::new(&hub);
    place.refused(
        ID,
        &["`model.safetensors` was interrupted after 4000 bytes"],
    );
    assert_eq!(hub.count(&format!("storage {WEIGHTS}")), 4);
    assert!(!place.repo().join("refs/main").exists());
    let dir = place.fetched(ID);
    assert_eq!(
        fs::read(dir.join(WEIGHTS)).unwrap(),
        tiny_bert().files[WEIGHTS]
    );
    let last = hub.seen().pop().unwrap();
    assert_eq!(last.range.as_deref(), Some("bytes=4000-"));
}

#[test]
fn downloads_restart_if_the_storage_ignores_ranges() {
    let hub = Hub::new(vec![tiny_bert()]);
    hub.fail(
        &format!("storage {WEIGHTS}"),
        [Fault::Cut(1000), Fault::Whole],
    );
    let place = Place::new(&hub);
    let dir = place.fetched(ID);
    assert_eq!(
        fs::read(dir.join(WEIGHTS)).unwrap(),
        tiny_bert().files[WEIGHTS]
    );
}

#[test]
fn files_with_a_wrong_checksum_are_removed() {
    for what in [format!("storage {WEIGHTS}"), "moved config.json".to_owned()] {
        let hub = Hub::new(vec![tiny_bert()]);
        let head = what
            .starts_with("moved")
            .then_some(Fault::Header("x-a", "for HEAD"));
        hub.fail(&what, head.clone());
        hub.fail(&what, [Fault::Corrupt]);
        // A single mismatch is retried.
        Place::new(&hub).fetched(ID);

        hub.fail(&what, head);
        hub.fail(&what, [Fault::Corrupt, Fault::Corrupt]);
        let place = Place::new(&hub);
        place.refused(ID, &["checksum mismatch", "proxy"]);
        let name = what.split(' ').next_back().unwrap();
        let content = &tiny_bert().files[name];
        for file in place.files() {
            assert!(!file.ends_with(&format!("/{name}")), "{file}");
            assert!(!file.contains(&sha256(content)), "{file}");
            assert!(!file.contains(&git_blob(content)), "{file}");
            assert!(!file.contains("refs/"), "{file}");
        }
    }
}

#[test]
fn partial_files_of_others_are_verified() {
    let hub = Hub::new(vec![tiny_bert()]);
    let place = Place::new(&hub);
    let weights = &tiny_bert().files[WEIGHTS];
    let part = place
        .repo()
        .join(format!("blobs/{}.incomplete", sha256(weights)));
    fs::create_dir_all(part.parent().unwrap()).unwrap();
    // Of the right length, shorter and longer.
    for length in [weights.len(), 10, weights.len() + 10] {
        fs::write(&part, vec![7; length]).unwrap();
        let dir = place.fetched(ID);
        assert_eq!(&fs::read(dir.join(WEIGHTS)).unwrap(), weights);
        fs::remove_file(dir.join(WEIGHTS)).unwrap();
        fs::remove_file(place.repo().join("blobs").join(sha256(weights))).unwrap();
    }
}

#[test]
fn a_body_that_is_too_long_is_refused() {
    let hub = Hub::new(vec![tiny_bert()]);
    hub.fail(&format!("storage {WEIGHTS}"), [Fault::Longer]);
    Place::new(&hub).refused(ID, &["is longer than the expected"]);
}

#[test]
fn rejected_requests_are_not_retried() {
    const GATED: &[(&str, &str)] = &[("x-error-code", "GatedRepo")];
    const REVISION: &[(&str, &str)] = &[("x-error-code", "RevisionNotFound")];
    for (status, headers, expected) in [
        (
            401,
            &[][..],
            &["`owner/tiny-bert` not found, or private", "`HF_TOKEN`"][..],
        ),
        (
            403,
            GATED,
            &[
                "is gated",
                "accept the license at",
                "/owner/tiny-bert`",
                "token",
            ],
        ),
        (401, GATED, &["is gated", "accept the license"]),
        (403, &[], &["access to `owner/tiny-bert` denied"]),
        (
            404,
            &[],
            &["`owner/tiny-bert` not found on the hub", "check the name"],
        ),
        (404, REVISION, &["has no revision `main`", "after `@`"]),
        (418, &[], &["has the status 418", "`--hub-endpoint`"]),
    ] {
        let hub = Hub::new(vec![tiny_bert()]);
        hub.fail("listing", [Fault::Status(status, headers)]);
        Place::new(&hub).refused(ID, expected);
        assert_eq!(hub.seen().len(), 1, "{status}");
    }
    // Errors of the fake hub itself.
    let hub = Hub::private(vec![tiny_bert()], "hf_secret");
    let mut place = Place::new(&hub);
    place.config.token = Some(Secret::parse("hf_other").unwrap());
    place.refused(ID, &["the token is invalid"]);
    let hub = Hub::new(vec![tiny_bert()]);
    Place::new(&hub).refused("owner/other", &["`owner/other` not found"]);
    Place::new(&hub).refused("owner/tiny-bert@v9", &["has no revision `v9`"]);
}

#[test]
fn transient_errors_are_retried_after_the_requested_delay() {
    const AT_ONCE: &[(&str, &str)] = &[("retry-after", "0")];
    const LATER: &[(&str, &str)] = &[("retry-after", "3600")];
    let busy = |headers| Fault::Status(429, headers);
    for faults in [
        vec![busy(AT_ONCE), busy(AT_ONCE), busy(AT_ONCE)],
        vec![
            Fault::Status(500, &[]),
            Fault::Status(503, AT_ONCE),
            Fault::Status(502, &[]),
        ],
    ] {
        for what in [
            "listing",
            "head config.json",
            "get config.json",
            "storage model.safetensors",
        ] {
            let hub = Hub::new(vec![tiny_bert()]);
            hub.fail(what, faults.clone());
            Place::new(&hub).fetched(ID);
            assert_eq!(hub.count(what), 4, "{what}");
        }
    }
    let hub = Hub::new(vec![tiny_bert()]);
    hub.fail("listing", vec![Fault::Status(500, &[]); 9]);
    Place::new(&hub).refused(ID, &["returned 500", "try again later"]);
    assert_eq!(hub.count("listing"), 4);
    let hub = Hub::new(vec![tiny_bert()]);
    hub.fail("listing", [busy(LATER)]);
    Place::new(&hub).refused(ID, &["returned 429", "retry after 3600 s"]);
    assert_eq!(hub.count("listing"), 1);
}

#[test]
fn expired_storage_urls_are_requested_again() {
    let hub = Hub::new(vec![tiny_bert()]);
    hub.fail(&format!("storage {WEIGHTS}"), [Fault::Status(403, &[])]);
    Place::new(&hub).fetched(ID);
    assert_eq!(hub.count(&format!("get {WEIGHTS}")), 2);
}

#[test]
fn unsafe_paths_are_rejected_and_write_nothing() {
    for name in [
        "../../../outside",
        "/outside",
        "a/../../../../outside",
        "..",
        "a\\..\\b",
        "a//b",
    ] {
        let hub = Hub::new(vec![tiny_bert().with(name, "outside")]);
        let place = Place::new(&hub);
        place.refused(ID, &["has a file with an unsafe path"]);
        assert_eq!(hub.seen().len(), 1);
        assert_eq!(place.files(), [""; 0]);
    }
    // Shards.
    for name in [
        "../outside.safetensors",
        "/outside.safetensors",
        "a/b.safetensors",
    ] {
        let index = json!({ "weight_map": { "classifier.weight": name } }).to_string();
        let hub = Hub::new(vec![tiny_bert().without(WEIGHTS).with(INDEX, index)]);
        let place = Place::new(&hub);
        place.refused(ID, &[name, "which is not a file name"]);
        assert!(!hub.seen().iter().any(|seen| seen.path.contains("outside")));
        assert_eq!(names(place.dir.path()), ["hub"]);
    }
    // Commits and checksums.
    for body in [
        r#"{"sha":"../../../outside","siblings":[{"rfilename":"config.json"}]}"#,
        r#"{"sha":"","siblings":[]}"#,
        r#"{"siblings":[{"rfilename":"config.json"}]}"#,
        "[]",
        "no JSON",
    ] {
        let hub = Hub::new(vec![tiny_bert()]);
        hub.fail("listing", [Fault::Body(body)]);
        Place::new(&hub).refused(ID, &["the response of the hub"]);
    }
    for etag in ["\"../../../outside\"", "\"1234\"", "\"\""] {
        let hub = Hub::new(vec![tiny_bert()]);
        hub.fail(
            &format!("head {WEIGHTS}"),
            [Fault::Header("x-linked-etag", etag)],
        );
        let place = Place::new(&hub);
        place.refused(ID, &["which is not a checksum"]);
        assert!(!place.files().iter().any(|file| file.contains("outside")));
    }
    let hub = Hub::new(vec![tiny_bert()]);
    let other = Fault::Header("x-repo-commit", "ffffffffffffffffffffffffffffffffffffffff");
    hub.fail(&format!("head {WEIGHTS}"), [other]);
    Place::new(&hub).refused(ID, &["is for another commit"]);
}

#[test]
fn unsupported_models_fail_before_their_weights_are_downloaded() {
    let refused = |model: Model, expected: &[&str]| {
        let hub = Hub::new(vec![model]);
        Place::new(&hub).refused(ID, expected);
        for seen in hub.seen() {
            assert!(!seen.what.starts_with("storage"), "{seen:?}");
        }
    };
    let only_pickle = tiny_bert().without(WEIGHTS).without("onnx/model.onnx");
    refused(
        only_pickle,
        &[
            "there is only `pytorch_model.bin`, a pickle",
            "convert it with `python -c ",
            "CrossEncoder as M; M('owner/tiny-bert').save_pretrained('DIR')",
        ],
    );
    let without_graph = tiny_bert().without("onnx/model.onnx");
    let mut config: Value = serde_json::from_slice(&without_graph.files["config.json"]).unwrap();
    config["model_type"] = json!("no-such-model");
    let config = config.to_string();
    refused(
        without_graph.with("config.json", config),
        &["`no-such-model` is not supported"],
    );
    refused(
        tiny_bert().without("tokenizer.json"),
        &["has no `tokenizer.json`", "save_pretrained"],
    );
    refused(
        tiny_bert().without("config.json"),
        &["has no `config.json`"],
    );
    let empty = tiny_bert()
        .without(WEIGHTS)
        .without("onnx/model.onnx")
        .without("pytorch_model.bin");
    refused(empty, &["has no `model.safetensors`"]);
}

/// The fixture with its weights in two shards.
fn sharded() -> Model {
    let tensors = saved::read_tensors(&model_dir("tiny-bert"));
    let dir = tempfile::tempdir().unwrap();
    let mut model = tiny_bert().without(WEIGHTS);
    let mut map = BTreeMap::new();
    for shard in 0..2 {
        let file = format!("model-0000{}-of-00002.safetensors", shard + 1);
        let mut part = tensors.clone();
        let mut place = 0;
        part.retain(|_, _| {
            place += 1;
            place % 2 == shard
        });
        for name in part.keys() {
            map.insert(name.clone(), file.clone());
        }
        let path = dir.path().join(&file);
        saved::write_tensors(&path, &part, safetensors::Dtype::F32);
        model = model.with(&file, fs::read(path).unwrap());
    }
    model.with(INDEX, json!({ "weight_map": map }).to_string())
}

#[test]
fn shards_are_downloaded_concurrently() {
    let hub = Hub::new(vec![sharded()]);
    // Neither is sent before both are requested.
    let barrier = Arc::new(Barrier::new(2));
    for shard in 1..=2 {
        let what = format!("storage model-0000{shard}-of-00002.safetensors");
        hub.fail(&what, [Fault::Meet(barrier.clone())]);
    }
    let place = Place::new(&hub);
    let dir = place.fetched(ID);
    Opened::open(&dir).unwrap();
    assert_eq!(names(&dir).len(), NEEDED.len() + 2);

    let hub = Hub::new(vec![sharded().without("model-00002-of-00002.safetensors")]);
    Place::new(&hub).refused(ID, &["has no `model-00002-of-00002.safetensors`"]);
}

const DEBERTA: &str = "owner/tiny-deberta-v2";
const ALBERT: &str = "owner/tiny-albert";
const GRAPH: &str = "onnx/model.onnx";
const QUANTIZED: &str = "onnx/model_quantized.onnx";

/// An unsupported architecture with ONNX files and weights.
fn deberta() -> Model {
    let dir = model_dir("tiny-deberta-v2");
    let file = |name: &str| fs::read(dir.join(name)).unwrap();
    let mut config: Value = serde_json::from_slice(&file("config.json")).unwrap();
    config["model_type"] = json!("deberta");
    Model::of(DEBERTA, &dir)
        .with("config.json", config.to_string())
        .with(GRAPH, file(GRAPH))
        .with(QUANTIZED, file(QUANTIZED))
        .with("model.onnx", "another graph")
        .with(WEIGHTS, "weights")
        .with("pytorch_model.bin", "a pickle")
}

/// An ONNX file with external data.
fn albert() -> Model {
    Model::of(ALBERT, &model_dir("tiny-albert"))
}

fn exists(dir: &Path, names: &[&str]) -> Vec<bool> {
    names.iter().map(|name| dir.join(name).exists()).collect()
}

#[test]
fn unsupported_architectures_are_downloaded_as_onnx() {
    let hub = Hub::new(vec![deberta()]);
    let place = Place::new(&hub);
    let dir = place.fetched(DEBERTA);
    let others = [QUANTIZED, "model.onnx", WEIGHTS, "pytorch_model.bin"];
    assert!(dir.join(GRAPH).is_file());
    assert_eq!(exists(&dir, &others), [false; 4]);
    let AnyModel::Exported(model) = AnyModel::open(&dir, None).unwrap() else {
        panic!("it is run from its graph");
    };
    assert_eq!(model.path, dir.join(GRAPH));

    // `--onnx-file` downloads another file, also into a cache with the first.
    let named = |file: &str| place.fetch_file(&format!("{DEBERTA}@{COMMIT}"), Some(file));
    assert_eq!(named(QUANTIZED).unwrap(), dir);
    assert!(dir.join(QUANTIZED).is_file());
    let before = hub.seen().len();
    assert_eq!(named("./onnx/model_quantized.onnx").unwrap(), dir);
    assert_eq!(hub.seen().len(), before);
    let refused = named("onnx/model_O4.onnx").unwrap_err().to_string();
    assert!(
        refused.contains("has no `onnx/model_O4.onnx`\nhint: "),
        "{refused}"
    );
    let refused = named("../model.onnx").unwrap_err().to_string();
    assert!(
        refused.contains("is outside the model's directory"),
        "{refused}"
    );
}

/// Only the names of the tensors show that no graph can be built.
#[test]
fn unknown_layouts_are_downloaded_with_their_onnx_file() {
    let graph = deberta().files[GRAPH].clone();
    let unknown = || {
        let dir = saved::copy("tiny-bert");
        let tensors = saved::read_tensors(dir.path()).into_iter();
        let renamed = |name: String| name.replace("intermediate.dense", "intermediate.other");
        let tensors = tensors
            .map(|(name, tensor)| (renamed(name), tensor))
            .collect();
        saved::write_tensors(&dir.path().join(WEIGHTS), &tensors, safetensors::Dtype::F32);
        Model::of(ID, dir.path())
    };
    let hub = Hub::new(vec![unknown().with(GRAPH, graph)]);
    let place = Place::new(&hub);
    let dir = place.fetched(ID);
    assert_eq!(exists(&dir, &[WEIGHTS, GRAPH]), [true, true]);
    let AnyModel::Exported(model) = AnyModel::open(&dir, None).unwrap() else {
        panic!("a graph was built");
    };
    let reason = model.reason.unwrap();
    assert!(reason.contains("intermediate.dense.weight"), "{reason}");

    let hub = Hub::new(vec![unknown()]);
    let place = Place::new(&hub);
    let dir = place.fetched(ID);
    let error = AnyModel::open(&dir, None).unwrap_err();
    assert!(error.hint().contains("`--onnx-file`"), "{error}");
}

#[test]
fn external_data_is_downloaded_with_its_onnx_file() {
    let hub = Hub::new(vec![albert().with("model.onnx.data", "of another")]);
    let place = Place::new(&hub);
    let dir = place.fetched(ALBERT);
    let files = ["model.onnx", "model.onnx_data", "model.onnx.data"];
    assert_eq!(exists(&dir, &files), [true, true, false]);

    // In any subfolder and with any name.
    const DATA: &str = "model.onnx_data";
    const OTHER: &str = "./sub/weights_1";
    let renamed = || {
        let files = albert().files;
        let graph = saved::replaced(files["model.onnx"].clone(), DATA, OTHER);
        let moved = albert()
            .without(DATA)
            .with("onnx/sub/weights_1", files[DATA].clone());
        moved.without("model.onnx").with(GRAPH, graph)
    };
    let hub = Hub::new(vec![renamed()]);
    let mut place = Place::new(&hub);
    let dir = place.fetched(ALBERT);
    assert_eq!(exists(&dir, &["onnx/sub/weights_1", GRAPH]), [true, true]);

    // Offline, it must be cached.
    place.config.offline = true;
    assert_eq!(place.fetched(ALBERT), dir);
    fs::remove_file(dir.join("onnx/sub/weights_1")).unwrap();
    place.refused(
        ALBERT,
        &[
            "`onnx/sub/weights_1` of `owner/tiny-albert` is not in the cache",
            "`rerankd pull owner/tiny-albert`",
        ],
    );

    let hub = Hub::new(vec![renamed().without("onnx/sub/weights_1")]);
    Place::new(&hub).refused(ALBERT, &["has no `onnx/sub/weights_1`"]);
}

#[test]
fn external_data_outside_the_folder_is_rejected() {
    for outside in ["/etc/hosts.conf", "../../../hosts1", "a/../../outside"] {
        let graph = albert().files["model.onnx"].clone();
        let graph = saved::replaced(graph, "model.onnx_data", outside);
        let hub = Hub::new(vec![albert().with("model.onnx", graph)]);
        let place = Place::new(&hub);
        place.refused(ALBERT, &[outside, "is outside its folder"]);
        assert!(!hub.seen().iter().any(|seen| seen.path.contains("host")));
        assert_eq!(names(place.dir.path()), ["hub"]);
    }
    let hub = Hub::new(vec![albert().with("model.onnx", "<html>")]);
    Place::new(&hub).refused(ALBERT, &["is not an ONNX file"]);
}

#[test]
fn a_snapshot_is_complete_only_with_the_weights_of_its_modules() {
    let dir = model_dir("tiny-modular");
    let mut model = Model::of("owner/tiny-modular", &dir);
    let mut modules = Vec::new();
    for entry in fs::read_dir(&dir).unwrap() {
        let folder = entry.unwrap().path();
        for file in folder
            .is_dir()
            .then(|| names(&folder))
            .into_iter()
            .flatten()
        {
            let name = format!("{}/{file}", folder.file_name().unwrap().to_str().unwrap());
            let content = fs::read(folder.join(file)).unwrap();
            modules.extend(name.ends_with(WEIGHTS).then(|| name.clone()));
            model = model.with(&name, content);
        }
    }
    assert!(modules.len() > 1);
    let hub = Hub::new(vec![model]);
    let place = Place::new(&hub);
    let id = format!("owner/tiny-modular@{COMMIT}");
    let dir = place.fetched(&id);
    Opened::open(&dir).unwrap();
    fs::remove_file(dir.join(&modules[0])).unwrap();
    assert_eq!(place.fetched(&id), dir);
    Opened::open(&dir).unwrap();
}

#[test]
fn concurrent_downloads_of_a_file_happen_once() {
    let hub = Hub::new(vec![tiny_bert()]);
    let place = Place::new(&hub);
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| place.fetched(ID)));
        for thread in both {
            thread.join().unwrap();
        }
    });
    assert_eq!(hub.count(&format!("storage {WEIGHTS}")), 1);
}

#[test]
fn an_unreachable_hub_falls_back_to_the_cache() {
    let hub = Hub::new(vec![tiny_bert()]);
    let mut place = Place::new(&hub);
    let dir = place.fetched(ID);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    place.config.endpoint = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    assert_eq!(place.fetched(ID), dir);
    let last = place.events.lock().unwrap().pop().unwrap();
    assert!(last.starts_with("Stale") && last.contains(COMMIT), "{last}");
    place.refused("owner/other", &["`127.0.0.1` is unreachable"]);
    // A rejection is not a fallback.
    place.config.endpoint = hub.endpoint.clone();
    hub.fail("listing", [Fault::Status(403, &[])]);
    place.refused(ID, &["denied"]);
}

#[test]
fn offline_only_complete_snapshots_are_used() {
    let hub = Hub::new(vec![tiny_bert()]);
    let mut place = Place::new(&hub);
    let dir = place.fetched(ID);
    let before = hub.seen().len();
    place.config.offline = true;
    assert_eq!(place.fetched(ID), dir);
    assert_eq!(place.fetched(&format!("{ID}@{COMMIT}")), dir);
    place.refused(
        "owner/other",
        &["is not in the cache", "`rerankd pull owner/other`"],
    );
    place.refused("owner/tiny-bert@v1", &["is not in the cache"]);
    fs::remove_file(fs::canonicalize(dir.join(WEIGHTS)).unwrap()).unwrap();
    place.refused(
        ID,
        &[
            "`model.safetensors` of `owner/tiny-bert` is not in the cache",
            "`rerankd pull owner/tiny-bert`",
        ],
    );
    assert_eq!(hub.seen().len(), before);
}

#[test]
fn certificates_of_a_file_are_trusted_too() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let tls = Arc::new(Tls::load(&certificate, &key).unwrap());
    let hub = Hub::tls(vec![tiny_bert()], tls);
    let mut place = Place::new(&hub);
    place.refused(
        ID,
        &[
            "TLS connection to `localhost` failed",
            "`--hub-ca-file FILE`",
        ],
    );
    place.config.ca_file = Some(key);
    place.refused(ID, &["has no certificate"]);
    place.config.ca_file = Some(certificate);
    place.fetched(ID);
    // No downgrade to plain HTTP.
    hub.fail(
        "listing",
        [Fault::Status(302, &[("location", "http://localhost:1/")])],
    );
    place.refused(ID, &["redirects from `https` to `http://localhost:1/`"]);
}

/// A proxy that connects every `CONNECT` to `target`; returns its URL and the request lines.
fn proxy(target: String) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let notes = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut client, mut head) = (stream.unwrap(), Vec::new());
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).unwrap() == 1 {
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            notes
                .lock()
                .unwrap()
                .push(head.lines().next().unwrap_or("").to_owned());
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let server = TcpStream::connect(&target).unwrap();
            for (mut from, mut to) in [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server, client),
            ] {
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            }
        }
    });
    (address, asked)
}

#[test]
fn the_proxy_resolves_host_names() {
    // Small files only: the storage is another target.
    let hub = Hub::new(vec![
        tiny_bert().without(WEIGHTS).without("onnx/model.onnx"),
    ]);
    let (address, asked) = proxy(hub.endpoint.trim_start_matches("http://").to_owned());
    let mut place = Place::new(&hub);
    place.config.endpoint = "http://hub.invalid".to_owned();
    place.config.proxy = Some(Proxy::new(&address).unwrap());
    place.refused(ID, &["a pickle"]);
    assert!(hub.count("get config.json") == 1);
    let asked = asked.lock().unwrap();
    assert!(
        asked
            .iter()
            .all(|line| line == "CONNECT hub.invalid:80 HTTP/1.1"),
        "{asked:?}"
    );
}

// The program.

/// `rerankd` with a temporary home.
fn command(home: &Path, hub: &Hub, arguments: &[&str]) -> Command {
    let mut command = plain(PROGRAM);
    command
        .args(arguments)
        .env("HF_HOME", home)
        .env("HF_ENDPOINT", &hub.endpoint);
    command
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn models_are_pulled_listed_and_removed() {
    let hub = Hub::private(vec![tiny_bert()], "hf_secret");
    let home = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| said(&command(home.path(), &hub, arguments).output().unwrap());

    let (code, _, error) = run(&["pull", ID]);
    assert_eq!(code, Some(3), "{error}");
    assert!(
        error.contains("not found, or private") && error.contains("\nhint: "),
        "{error}"
    );
    // Where `hf auth login` saves it.
    fs::write(home.path().join("token"), "hf_secret\n").unwrap();
    let (code, place, error) = run(&["pull", ID]);
    assert_eq!(code, Some(0), "{error}");
    let repo = home.path().join("hub/models--owner--tiny-bert");
    let snapshot = repo.join("snapshots").join(COMMIT);
    assert_eq!(place.trim_end(), snapshot.to_str().unwrap());
    assert!(
        error.contains("owner/tiny-bert: downloading 1 files"),
        "{error}"
    );

    let (code, table, total) = run(&["models"]);
    assert_eq!(code, Some(0));
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0], ["MODEL", "REVISION", "COMMIT", "FILES", "SIZE"]);
    assert_eq!(lines[1][..4], [ID, "main", &COMMIT[..12], "7"]);
    assert!(total.contains(" in `"), "{total}");
    let (_, json, _) = run(&["models", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    let files: usize = NEEDED
        .iter()
        .map(|name| tiny_bert().files[*name].len())
        .sum();
    assert_eq!(json["models"][0]["model"], ID);
    assert_eq!(json["models"][0]["snapshots"][0]["bytes"], files);

    let (code, _, error) = run(&["models", "remove", "owner/other"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("`owner/other` is not in `"), "{error}");
    let (code, out, _) = run(&["models", "remove", ID]);
    assert_eq!(code, Some(0));
    assert!(
        out.starts_with("removed owner/tiny-bert, which freed "),
        "{out}"
    );
    assert!(!repo.exists());
    assert!(run(&["models"]).2.starts_with("no models in `"));
}

#[test]
fn pulled_models_verify_in_every_format() {
    let hub = Hub::new(vec![deberta(), albert(), tiny_bert()]);
    let home = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| said(&command(home.path(), &hub, arguments).output().unwrap());
    let golden = home.path().join("golden.json");
    let golden = golden.to_str().unwrap();
    for (id, name) in [
        (DEBERTA, "tiny-deberta-v2"),
        (ALBERT, "tiny-albert"),
        (ID, "tiny-bert"),
    ] {
        let reference = Reference::read(name);
        let pairs = reference.pairs().into_iter().map(|p| [p.query, p.document]);
        let pairs: Vec<_> = pairs
            .map(|pair| pair.map(|text| text.to_string()))
            .collect();
        let content = json!({"pairs": pairs, "logits": reference.logits(), "tolerance": 1e-4});
        fs::write(golden, content.to_string()).unwrap();
        let (code, _, error) = run(&["pull", id]);
        assert_eq!(code, Some(0), "{id}: {error}");
        let verify = [
            "verify",
            "--model",
            id,
            "--reference",
            golden,
            "--offline",
            "--precision",
        ];
        let (code, out, error) = run(&[&verify[..], &["fp32"]].concat());
        assert_eq!(code, Some(0), "{id}: {out}{error}");
        assert!(out.contains(&format!("verified: `{id}` in fp32")), "{out}");
    }
    let (code, _, error) = run(&["pull", DEBERTA, "--onnx-file", QUANTIZED]);
    assert_eq!(code, Some(0), "{error}");
    let out = home.path().join("bert.onnx");
    let (code, _, error) = run(&["export", "--model", ID, "--out", out.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{error}");
    assert!(out.is_file());
    let (code, _, error) = run(&["export", "--model", ALBERT, "--out", "unused.onnx"]);
    assert_eq!(code, Some(3));
    assert!(error.contains("is already an ONNX file"), "{error}");
}

/// The command line of a server for a hub model.
const SERVE: [&str; 7] = [
    "serve",
    "--listen",
    "127.0.0.1:0",
    "--threads",
    "1",
    "--model",
    ID,
];

fn serve(change: impl FnOnce(&mut Command)) -> Program {
    let arguments = SERVE.map(OsStr::new);
    Program::start(Path::new(PROGRAM), &arguments, change)
}

fn rerank(address: &str) -> Value {
    let body = r#"{"query":"a river","documents":["the old bridge","a"]}"#;
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!(
        "POST /rerank HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap()
}

#[test]
fn a_server_downloads_its_model() {
    let hub = Hub::new(vec![tiny_bert()]);
    let home = tempfile::tempdir().unwrap();
    let mut from_hub = serve(|command| {
        command
            .env("HF_HOME", home.path())
            .env("HF_ENDPOINT", &hub.endpoint);
    });
    from_hub.until("downloading the model");
    from_hub.until("model downloaded");
    let address = from_hub.address();
    let ready = from_hub.until("ready");
    assert_eq!(ready["model"], ID);
    let mut from_directory = Program::serve(&model_dir("tiny-bert"));
    let other = from_directory.address();
    from_directory.until("ready");
    let (mut ours, theirs) = (rerank(&address), rerank(&other));
    assert_eq!(ours["model"], ID);
    ours["model"] = theirs["model"].clone();
    ours["id"] = theirs["id"].clone();
    assert_eq!(ours["results"], theirs["results"]);
}

#[test]
fn directories_and_offline_servers_do_not_contact_the_hub() {
    let hub = Hub::new(vec![tiny_bert()]);
    let home = tempfile::tempdir().unwrap();
    let mut directory = Program::serve_with(&model_dir("tiny-bert"), |command| {
        command
            .env("HF_HOME", home.path())
            .env("HF_ENDPOINT", &hub.endpoint);
    });
    directory.until("ready");
    let offline = |flag: &str, variable: &str| {
        serve(|command| {
            command
                .env("HF_HOME", home.path())
                .env("HF_ENDPOINT", &hub.endpoint);
            if !flag.is_empty() {
                command.arg(flag);
            }
            command.env("HF_HUB_OFFLINE", variable);
        })
    };
    for (flag, variable) in [("--offline", ""), ("", "1"), ("", "ON")] {
        let (code, last) = offline(flag, variable).end();
        let error = last["error"].as_str().unwrap();
        assert_eq!(code, Some(3), "{error}");
        assert!(
            error.contains("cannot be downloaded offline\nhint: run `rerankd pull"),
            "{error}"
        );
    }
    assert_eq!(hub.seen(), []);
    let (code, _, error) = said(&command(home.path(), &hub, &["pull", ID]).output().unwrap());
    assert_eq!(code, Some(0), "{error}");
    let before = hub.seen().len();
    assert!(before > 0);
    offline("--offline", "").until("ready");
    assert_eq!(hub.seen().len(), before);
}

/// Kills the traced process, which ends `strace`.
fn terminate_child(parent: u32) {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let kill = format!("kill -TERM {}", children.unwrap());
    assert!(
        Command::new("sh")
            .args(["-c", &kill])
            .status()
            .unwrap()
            .success()
    );
}

/// Checked by system calls, which show more than a fake hub sees.
#[test]
fn an_offline_server_opens_no_connection_and_resolves_no_name() {
    if Command::new("strace").arg("-V").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "strace is missing");
        eprintln!("not tried: `strace` (a package of Debian) is missing");
        return;
    }
    let hub = Hub::new(vec![tiny_bert()]);
    let home = tempfile::tempdir().unwrap();
    let trace = |offline: bool, name: &str| {
        let file = home.path().join(name);
        let mut arguments = vec!["-f", "-qq", "-e", "trace=network", "-o"];
        arguments.extend([file.to_str().unwrap(), PROGRAM]);
        arguments.extend(SERVE);
        arguments.extend(offline.then_some("--offline"));
        let arguments: Vec<&OsStr> = arguments.into_iter().map(OsStr::new).collect();
        let mut program = Program::start(Path::new("strace"), &arguments, |command| {
            // A name, so that a lookup would show.
            let endpoint = hub.endpoint.replace("127.0.0.1", "localhost");
            command
                .env("HF_HOME", home.path())
                .env("HF_ENDPOINT", endpoint);
        });
        let address = program.address();
        program.until("ready");
        rerank(&address);
        terminate_child(program.child.id());
        assert_eq!(program.end().0, Some(0));
        fs::read_to_string(file).unwrap()
    };
    let lines = |trace: &str, calls: &[&str]| -> Vec<String> {
        let is_one = |line: &&str| calls.iter().any(|call| line.contains(&format!("{call}(")));
        trace.lines().filter(is_one).map(str::to_owned).collect()
    };
    let online = trace(false, "online");
    assert!(!lines(&online, &["connect"]).is_empty(), "{online}");
    let asked = hub.seen().len();
    let offline = trace(true, "offline");
    assert!(!lines(&offline, &["listen"]).is_empty(), "{offline}");
    // Responses are sent by `sendto` on an accepted connection, or by `writev`.
    let opened = lines(&offline, &["connect", "sendmmsg"]);
    assert_eq!(opened, [""; 0]);
    let datagrams = lines(&offline, &["socket"]);
    assert!(
        datagrams.iter().all(|line| !line.contains("SOCK_DGRAM")),
        "{datagrams:?}"
    );
    assert_eq!(hub.seen().len(), asked);
}
