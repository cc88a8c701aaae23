//! Made-up numbers for tests of the kernels.

/// 24 bits at a time, always the same for a seed.
pub(super) fn bits(seed: u64) -> impl Iterator<Item = u64> {
    // Xorshift.
    let mut state = seed | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 40
    })
}

/// Numbers between -1 and 1.
pub(super) fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let number = |bits| bits as f32 / (1 << 23) as f32 - 1.0;
    bits(seed).take(count).map(number).collect()
}
