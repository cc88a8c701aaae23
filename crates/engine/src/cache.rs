//! The cache of scores.
//!
//! The cache key of a pair is a keyed 128-bit hash of the tokens that the model reads. Each process draws a
//! random hash key, so that nobody can construct colliding texts. Values are raw logits: a cached score is
//! bit-identical to the computed one.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use prometheus::IntGauge;
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::config::CacheConfig;
use rerankd_core::Tenant;
use rerankd_core::{Encoding, PairKey};

/// Memory of an entry besides its logits: key, links, counters, and its share of the tables. An estimate,
/// on the safe side.
const ENTRY_BYTES: u32 = 240;

/// Makes the cache keys of pairs.
#[derive(Debug, Clone)]
pub struct PairKeys {
    /// A hasher that has read the process's secret, the model and its precision.
    start: SipHasher13,
    /// Whether tenants have separate keys.
    by_tenant: bool,
}

impl PairKeys {
    /// `model` is everything besides the pair that determines scores, such as the model's fingerprint and
    /// precision.
    pub fn new(model: &[&str], by_tenant: bool) -> Self {
        // The standard library seeds this hasher with the system's random numbers.
        let random = RandomState::new();
        let mut start = SipHasher13::new_with_keys(random.hash_one(0_u8), random.hash_one(1_u8));
        for part in model {
            start.write_usize(part.len());
            start.write(part.as_bytes());
        }
        Self { start, by_tenant }
    }

    /// The key of an encoded pair, for `tenant`.
    pub fn of(&self, encoding: &Encoding, tenant: Tenant) -> PairKey {
        let mut hasher = self.start;
        if self.by_tenant {
            hasher.write_u64(tenant.0);
        }
        hasher.write_usize(encoding.ids.len());
        // A few tokens at a time: a call costs more than its bytes.
        let mut bytes = [0_u8; 256];
        for ids in encoding.ids.chunks(bytes.len() / 4) {
            for (four, id) in bytes.chunks_exact_mut(4).zip(ids) {
                four.copy_from_slice(&id.to_le_bytes());
            }
            hasher.write(&bytes[..4 * ids.len()]);
        }
        hasher.write(&encoding.type_ids);
        PairKey(hasher.finish128().as_u128())
    }
}

/// Scores by the keys of pairs.
#[derive(Debug)]
pub enum ScoreCache {
    /// Stores nothing.
    Off,
    /// In memory, up to a limit. Frequently used entries stay longest.
    Memory {
        /// Logits by pair.
        scores: Cache<PairKey, Arc<[f32]>>,
        /// Reports the memory used.
        gauge: IntGauge,
    },
}

impl ScoreCache {
    /// A cache with these limits. `gauge` reports the bytes it uses.
    pub fn new(limits: &CacheConfig, gauge: IntGauge) -> Self {
        if limits.size == 0 {
            return Self::Off;
        }
        let mut builder = Cache::builder()
            .max_capacity(limits.size as u64)
            .eviction_policy(EvictionPolicy::tiny_lfu())
            .weigher(|_, logits: &Arc<[f32]>| ENTRY_BYTES + 4 * logits.len() as u32);
        if !limits.ttl.is_zero() {
            builder = builder.time_to_live(limits.ttl);
        }
        Self::Memory {
            scores: builder.build(),
            gauge,
        }
    }

    /// Whether scores are stored.
    pub fn is_on(&self) -> bool {
        matches!(self, Self::Memory { .. })
    }

    /// The cached logits of the pair with this `key`.
    pub fn get(&self, key: PairKey) -> Option<Arc<[f32]>> {
        match self {
            Self::Off => None,
            Self::Memory { scores, .. } => scores.get(&key),
        }
    }

    /// Stores the `logits` of a pair.
    pub fn insert(&self, key: PairKey, logits: &[f32]) {
        if let Self::Memory { scores, gauge } = self {
            scores.insert(key, logits.into());
            gauge.set(scores.weighted_size() as i64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn encoding(ids: &[u32], type_ids: &[u8]) -> Encoding {
        Encoding {
            ids: ids.to_vec(),
            type_ids: type_ids.to_vec(),
        }
    }

    fn cache(limits: &CacheConfig) -> (ScoreCache, IntGauge) {
        let gauge = IntGauge::new("cache_bytes", "test").unwrap();
        (ScoreCache::new(limits, gauge.clone()), gauge)
    }

    const LIMITS: CacheConfig = CacheConfig {
        size: 1 << 20,
        ttl: Duration::ZERO,
        per_key: false,
    };

    #[test]
    fn a_key_tells_apart_what_the_model_tells_apart() {
        let keys = PairKeys::new(&["model", "fp32"], false);
        let key = |ids: &[u32], types: &[u8]| keys.of(&encoding(ids, types), Tenant(0));
        let first = key(&[1, 2, 3], &[0, 0, 1]);
        assert_eq!(first, key(&[1, 2, 3], &[0, 0, 1]));
        assert_ne!(first, key(&[1, 2, 3], &[0, 1, 1]));
        assert_ne!(first, key(&[1, 2, 4], &[0, 0, 1]));
        let long: Vec<u32> = (0..300).collect();
        let mut other = long.clone();
        other[299] = 7;
        assert_ne!(key(&long, &[0; 300]), key(&other, &[0; 300]));

        let pair = encoding(&[1, 2, 3], &[0, 0, 1]);
        let mut int8 = PairKeys::new(&["model", "fp32"], false);
        int8.start = keys.start;
        assert_eq!(int8.of(&pair, Tenant(1)), first, "tenants share");
        int8.by_tenant = true;
        assert_ne!(int8.of(&pair, Tenant(1)), int8.of(&pair, Tenant(2)));
        // Another process, another key.
        let again = PairKeys::new(&["model", "fp32"], false);
        assert_ne!(again.of(&pair, Tenant(0)), first);
    }

    #[test]
    fn what_is_kept_is_the_same_bits() {
        let (cache, gauge) = cache(&LIMITS);
        let logits = [f32::MIN_POSITIVE, -0.0, 1.0 / 3.0];
        cache.insert(PairKey(1), &logits);
        let kept = cache.get(PairKey(1)).unwrap();
        assert!(
            kept.iter()
                .zip(logits)
                .all(|(a, b)| a.to_bits() == b.to_bits())
        );
        assert_eq!(cache.get(PairKey(2)), None);
        let ScoreCache::Memory { scores, .. } = &cache else {
            panic!("it is on");
        };
        scores.run_pending_tasks();
        cache.insert(PairKey(1), &logits);
        assert!(gauge.get() > 0);
    }

    #[test]
    fn memory_is_bounded() {
        let (cache, _) = cache(&LIMITS);
        for key in 0..20_000 {
            cache.insert(PairKey(key), &[0.0]);
        }
        let ScoreCache::Memory { scores, .. } = &cache else {
            panic!("it is on");
        };
        scores.run_pending_tasks();
        assert!(scores.weighted_size() <= LIMITS.size as u64);
        assert!(scores.entry_count() > 1000);
    }

    #[test]
    fn off_answers_every_call() {
        let (cache, gauge) = cache(&CacheConfig { size: 0, ..LIMITS });
        cache.insert(PairKey(1), &[1.0]);
        assert_eq!(cache.get(PairKey(1)), None);
        assert!(!cache.is_on());
        assert_eq!(gauge.get(), 0);
    }
}
