//! `rerankd verify` accepts correct scores and rejects wrong ones.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::reference::model_dir;
use serde_json::{Value, json};

fn golden(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/reference/{model}.json"))
}

fn verify(model: &str, reference: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rerankd"));
    command
        .args(["verify", "--model"])
        .arg(model_dir(model))
        .arg("--reference")
        .arg(reference);
    command.args(more).output().unwrap()
}

#[track_caller]
fn check(output: &Output, code: i32, parts: &[&str]) {
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    assert!(!said.contains("secret"), "{said}");
}

#[test]
fn models_verify_against_their_references() {
    for model in ["tiny-bert", "tiny-bert-3-labels", "tiny-xlm-roberta"] {
        let output = verify(model, &golden(model), &[]);
        check(
            &output,
            0,
            &["logits of ", "scores of ", "\nverified: ", "in fp32"],
        );
    }
    let int8 = ["--precision", "int8", "--tolerance", "2"];
    let output = verify("tiny-bert", &golden("tiny-bert"), &int8);
    check(&output, 0, &["tolerance 2e0", "in int8"]);
}

#[test]
fn another_model_or_another_number_does_not_verify() {
    let output = verify("tiny-roberta", &golden("tiny-bert"), &[]);
    check(&output, 1, &["  and ", "NOT verified: "]);

    let mut reference: Value =
        serde_json::from_slice(&std::fs::read(golden("tiny-bert")).unwrap()).unwrap();
    let third = reference["logits"][3][0].as_f64().unwrap();
    reference["logits"][3][0] = json!(third + 2e-4);
    let folder = tempfile::tempdir().unwrap();
    let changed = folder.path().join("changed.json");
    std::fs::write(&changed, reference.to_string()).unwrap();
    let output = verify("tiny-bert", &changed, &[]);
    check(&output, 1, &["  pair 3: ", "(pair 3), tolerance 1e-4"]);
    check(
        &verify("tiny-bert", &changed, &["--tolerance", "0.001"]),
        0,
        &["verified"],
    );
    reference["tolerance"] = json!(1e-3);
    std::fs::write(&changed, reference.to_string()).unwrap();
    check(&verify("tiny-bert", &changed, &[]), 0, &["tolerance 1e-3"]);
}

#[test]
fn golden_scores_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let check = |golden: &str, part: &str| {
        let path = folder.path().join("golden.json");
        std::fs::write(&path, golden).unwrap();
        check(&verify("tiny-bert", &path, &[]), 1, &["golden.json`", part]);
    };
    check(
        "{\"pairs\": [[\"secret\", 1]]}",
        "not reference scores, at line 1; hint: ",
    );
    check("{\"pairs\": [], \"logits\": []}", "has no pairs");
    check(
        "{\"pairs\": [[\"a\", \"b\"]]}",
        "neither `logits` nor `scores`",
    );
    check(
        "{\"pairs\": [[\"a\", \"b\"]], \"scores\": []}",
        "`scores` has 0 items for 1 pairs",
    );
    check(
        "{\"pairs\": [[\"a\", \"b\"]], \"scores\": [[1, 2]]}",
        "2 numbers per pair; the model returns 1",
    );
    check(
        "{\"pairs\": [[\"a\", {\"repeat\": [\"ab\", 9999999]}]], \"scores\": [1]}",
        "a text is longer",
    );
}
