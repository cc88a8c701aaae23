//! What a pair costs whose score is known: naming it and looking it up, in a full cache.
//!
//! ```sh
//! cargo bench --bench cache
//! ```

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rerankd_core::Tenant;
use rerankd_core::{Encoding, PairKey};
use rerankd_engine::cache::{PairKeys, ScoreCache};
use rerankd_engine::config::CacheConfig;
use rerankd_engine::metrics::Metrics;

fn encoding(length: usize) -> Encoding {
    Encoding {
        ids: (0..length as u32).map(|id| id * 7919 % 30_000).collect(),
        type_ids: (0..length).map(|at| u8::from(at > 10)).collect(),
    }
}

fn hits(c: &mut Criterion) {
    let config = CacheConfig::default();
    let keys = PairKeys::new(&["model", "fp32"], false);
    let cache = ScoreCache::new(&config, Metrics::new().cache_bytes.clone());
    for other in 0..400_000 {
        cache.insert(PairKey(other), &[0.5]);
    }
    let mut group = c.benchmark_group("a hit");
    for length in [23, 224, 512] {
        let encoding = encoding(length);
        let key = keys.of(&encoding, Tenant::default());
        // Asked for often, so that it stays.
        for _ in 0..1000 {
            cache.insert(key, &[0.25]);
            cache.get(key);
        }
        assert!(cache.get(key).is_some());
        group.bench_with_input(
            BenchmarkId::from_parameter(length),
            &encoding,
            |b, encoding| {
                b.iter(|| cache.get(keys.of(black_box(encoding), Tenant::default())));
            },
        );
    }
    group.finish();
    c.bench_function("a score is kept", |b| {
        let mut key = 1 << 40;
        b.iter(|| {
            key += 1;
            cache.insert(PairKey(key), &[0.5]);
        });
    });
}

criterion_group!(benches, hits);
criterion_main!(benches);
