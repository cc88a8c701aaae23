//! Models saved by different versions of sentence-transformers and transformers are read as by the version
//! that saved them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::reference::{OneOrMany, fixture};
use rerankd_core::{Activation, Pair, Scale};
use rerankd_engine::bulk::Engine;
use serde::Deserialize;

const TOLERANCE: f32 = 1e-4;
/// Versions that saved the fixtures; see their README.md.
const VERSIONS: [&str; 6] = [
    "sentence-transformers-3.4.1",
    "sentence-transformers-4.1.0",
    "sentence-transformers-5.7.0",
    "sentence-transformers-6.2.0",
    "transformers-4.57.6",
    "transformers-5.23.0",
];
/// Defaults with one label; a non-default length and activation; three labels.
const VARIANTS: [&str; 3] = ["plain", "settings", "labels"];

/// Scores of a version for a model that it saved.
#[derive(Deserialize)]
struct Answers {
    labels: Vec<String>,
    max_length: usize,
    pairs: Vec<[String; 2]>,
    logits: Vec<OneOrMany>,
    scores: Vec<OneOrMany>,
}

impl Answers {
    fn pairs(&self) -> Vec<Pair> {
        let pair = |[query, document]: &[String; 2]| Pair {
            query: query.as_str().into(),
            document: document.as_str().into(),
        };
        self.pairs.iter().map(pair).collect()
    }
}

fn flat(rows: &[OneOrMany]) -> Vec<f32> {
    rows.iter().flat_map(OneOrMany::values).copied().collect()
}

fn open(name: &str) -> (PathBuf, Answers) {
    let folder = fixture("formats").join(name);
    let answers = fs::read(folder.with_file_name(format!("{name}.json"))).unwrap();
    (folder, serde_json::from_slice(&answers).unwrap())
}

#[track_caller]
fn check(variant: &str) {
    for version in VERSIONS {
        let name = format!("{version}-{variant}");
        let (folder, answers) = open(&name);
        let engine = Engine::load(&crate::support::real::config(Some(&folder), 1)).unwrap();
        let info = engine.info();
        assert_eq!(info.labels, answers.labels, "{name}");
        assert_eq!(info.max_length, answers.max_length, "{name}");
        let (logits, scores) = (flat(&answers.logits), flat(&answers.scores));
        let identity = info.activation == Activation::Identity;
        assert_eq!(identity, scores == logits, "{name}");
        for (scale, expected) in [(Scale::Raw, logits), (Scale::Activated, scores)] {
            let ours = engine.score_all(&answers.pairs(), scale, |_| ()).unwrap();
            assert_eq!(ours.len(), expected.len());
            for (place, (ours, theirs)) in ours.iter().zip(&expected).enumerate() {
                let off = (ours - theirs).abs();
                assert!(
                    off <= TOLERANCE,
                    "{name}, {scale:?}, number {place}: {ours} and {theirs}"
                );
            }
        }
    }
}

#[test]
fn a_model_that_nobody_said_anything_about() {
    check("plain");
}

#[test]
fn the_length_and_the_activation_that_a_version_keeps() {
    check("settings");
}

#[test]
fn several_labels_and_their_names() {
    check("labels");
}

/// Every folder is in the lists above, and all variants differ.
#[test]
fn every_fixture_is_read_and_tells_the_variants_apart() {
    let entries = fs::read_dir(fixture("formats")).unwrap();
    let folders = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir());
    let found: BTreeSet<String> = folders.map(|path| file_name(&path)).collect();
    let listed = VERSIONS
        .iter()
        .flat_map(|version| VARIANTS.map(|variant| format!("{version}-{variant}")));
    assert_eq!(found, listed.collect());

    let (_, plain) = open("sentence-transformers-6.2.0-plain");
    let (_, settings) = open("sentence-transformers-6.2.0-settings");
    assert_ne!(plain.max_length, settings.max_length);
    assert_ne!(flat(&plain.logits), flat(&plain.scores));
    assert_eq!(flat(&settings.logits), flat(&settings.scores));
    // The third version saves an activation but no length.
    let (_, third) = open("sentence-transformers-3.4.1-settings");
    assert_eq!(third.max_length, plain.max_length);
    assert_eq!(flat(&third.logits), flat(&third.scores));
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}
