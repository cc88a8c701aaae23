//! What the benchmarks of layers share.

use std::time::Instant;

/// Numbers between -1 and 1 of a linear congruential generator.
pub fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Seconds of the fastest of `rounds` runs, after one that is not counted: other programs only slow it down.
pub fn seconds(rounds: usize, mut run: impl FnMut()) -> f64 {
    run();
    let times = (0..rounds).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}
