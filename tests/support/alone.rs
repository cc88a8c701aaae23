//! Runs tests in a child process.

use std::any::type_name;
use std::process::Command;

/// Name of the test that the child process runs.
const ALONE: &str = "RERANKD_TEST_ALONE";

/// Runs the body of a test in a child process, for measurements that other tests in this process would
/// disturb.
///
/// `body` must be a closure in the test function: its type name identifies the test.
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

/// Peak memory of this process since the last call, in bytes.
pub fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.unwrap().trim().strip_suffix("kB").unwrap().trim();
    // Resets the peak.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    kilobytes.parse::<u64>().unwrap() * 1024
}
