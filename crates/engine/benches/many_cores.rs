//! How much of the time the scheduler's lock is held on a machine of many cores: `cargo bench -p rerankd-engine`.
//!
//! Workers take batches and give results under one lock. At 500,000 pairs a second, each nanosecond that a pair
//! needs under the lock is 0.05 % of the time.

use rerankd_engine::lock_time::{LockTime, measure};

const WORKERS: usize = 128;
const PAIRS_PER_SECOND: f64 = 500_000.0;

fn main() {
    for (requests, rounds) in [(100, 200), (1_000, 20), (10_000, 3)] {
        let LockTime {
            pairs,
            batches,
            queueing,
            taking,
            completing,
        } = measure(WORKERS, requests, rounds, PAIRS_PER_SECOND);
        let each = |time: std::time::Duration| time.as_nanos() as f64 / pairs as f64;
        let held = each(queueing + taking + completing);
        println!(
            "{requests} requests wait, {:.1} pairs a batch: {:.0} ns a pair to queue, {:.0} to take, \
             {:.0} to complete; lock held {:.0} % at 500,000 pairs/s, at most {:.0} pairs/s",
            pairs as f64 / batches as f64,
            each(queueing),
            each(taking),
            each(completing),
            held * 1e-9 * PAIRS_PER_SECOND * 100.0,
            1e9 / held,
        );
    }
}
