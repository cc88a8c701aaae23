//! Test bodies in a process of their own.

use std::any::type_name;
use std::process::Command;

/// Names the test that a child process runs alone.
const ALONE: &str = "RERANKD_TEST_ALONE";

/// Runs the body of a test in a child process, so that what it measures of its process is its own.
/// Other tests run in this process meanwhile.
///
/// `body` is a closure written in the test function: its type names the test.
pub fn alone<F: FnOnce()>(body: F) {
    let (_, path) = type_name::<F>().split_once("::").unwrap();
    let test = path.split("::{{closure}}").next().unwrap();
    if std::env::var(ALONE).is_ok_and(|name| name == test) {
        return body();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", test])
        .env(ALONE, test)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The most memory that this process has held since the last call, in bytes.
pub fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.unwrap().trim().strip_suffix("kB").unwrap().trim();
    // The kernel begins anew when it is told so.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    kilobytes.parse::<u64>().unwrap() * 1024
}
