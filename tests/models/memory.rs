//! Sessions share the weights, including packed matrices.
//!
//! Other tests run in this process, so memory is measured in a child process for each number of sessions.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::real;
use crate::support::saved::Bert;
use rerankd_engine::metrics::{Metrics, resident_bytes};

/// Model directory for the child process.
const MODEL: &str = "RERANKD_TEST_MEMORY_MODEL";
/// Number of sessions for the child process.
const SESSIONS: &str = "RERANKD_TEST_MEMORY_SESSIONS";
/// Prefix of the result of the child process.
const ANSWER: &str = "resident bytes: ";

#[test]
fn four_sessions_take_little_more_memory_than_one() {
    let model = Bert::LIKE_EMBEDDED.write();
    let one = measure(model.path(), 1);
    let four = measure(model.path(), 4);
    let ratio = four as f64 / one as f64;
    println!("1 session: {one} bytes, 4 sessions: {four} bytes, ratio {ratio:.3}");
    assert!(
        ratio <= 1.15,
        "4 sessions take {four} bytes, {ratio:.3} times the {one} of 1"
    );
}

/// Runs [`child`] in a child process.
fn measure(model: &Path, sessions: usize) -> u64 {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "memory::child"])
        .env(MODEL, model)
        .env(SESSIONS, sessions.to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let number = text
        .lines()
        .find_map(|line| Some(line.split_once(ANSWER)?.1));
    let number = number.unwrap_or_else(|| panic!("no answer from the child: {output:?}"));
    number.parse().unwrap()
}

#[test]
#[ignore = "the other side of the test above, which starts it"]
fn child() {
    let Some(model) = std::env::var_os(MODEL).map(PathBuf::from) else {
        return;
    };
    let sessions = std::env::var(SESSIONS).unwrap().parse().unwrap();
    let _reranker = real::reranker(Some(&model), sessions, Metrics::new());
    println!("{ANSWER}{}", resident_bytes().unwrap());
}
