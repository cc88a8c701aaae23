//! Measures for how long the scheduler's lock is held for each pair. For benchmarks.

use std::time::{Duration, Instant};

use super::queue::Arrival;
use super::scheduler::Scheduler;
use super::{AdmissionLimits, Demand, reply};
use crate::admission::{Expected, Size};
use crate::cost::{Costs, Work};
use crate::plan::{BatchLimits, SHARE_ABOVE};
use crate::trace::Timeline;
use rerankd_core::{Encoding, PairKey, SchedulingHints, Tenant};

/// The time under the lock.
#[derive(Debug, Clone, Copy)]
pub struct LockTime {
    /// Pairs of all requests.
    pub pairs: usize,
    /// Time to admit and queue the requests.
    pub queueing: Duration,
    /// Time to form all batches.
    pub taking: Duration,
    /// Time to take the results and answer.
    pub completing: Duration,
}

/// Schedules `requests` requests of 50 pairs of 18 tokens, from 200 tenants, that all wait at the same time for
/// `workers` workers, which take batches in turn.
pub fn measure(workers: usize, requests: usize) -> LockTime {
    const PAIRS: usize = 50;
    const TOKENS: usize = 18;
    let limits = BatchLimits {
        max_tokens: 512,
        max_seconds: 0.1,
        share_above: SHARE_ABOVE,
    };
    let unlimited = AdmissionLimits {
        memory: Size {
            tokens: usize::MAX,
            bytes: usize::MAX,
        },
        max_delay: f64::INFINITY,
    };
    let gauge = prometheus::IntGauge::new("queue_tokens", "tokens").expect("the name is valid");
    let costs = Costs::guess(workers);
    let scheduler = Scheduler::new(1, workers, costs, limits, unlimited, gauge);
    let mut scheduler = scheduler.preemptible();
    let now = tokio::time::Instant::now();
    let mut receivers = Vec::with_capacity(requests);
    let mut queueing = Duration::ZERO;
    for request in 0..requests {
        let hints = SchedulingHints {
            tenant: Tenant(request as u64 % 200),
            ..SchedulingHints::default()
        };
        let demand = Demand {
            hints,
            work: Work::all([TOKENS; PAIRS]),
            bytes: 0,
            tokenizing: Expected::new(0.0, 0.0),
        };
        let encodings = (0..PAIRS).map(|pair| {
            let encoding = Encoding {
                ids: vec![0; TOKENS],
                type_ids: vec![0; TOKENS],
            };
            (PairKey((request * PAIRS + pair) as u128), encoding)
        });
        let encodings = encodings.collect();
        let (reply, receiver) = reply::channel();
        receivers.push(receiver);
        let started = Instant::now();
        let admitted = scheduler.admit(demand, now).expect("nothing is limited");
        scheduler.queue.release(admitted.request);
        scheduler.queue.push(Arrival {
            hints,
            encodings,
            prefix: 0,
            reply,
            permit: admitted.memory,
            timeline: Timeline::default(),
            now: now.into_std(),
        });
        queueing += started.elapsed();
    }
    let (mut taking, mut completing) = (Duration::ZERO, Duration::ZERO);
    for worker in (0..workers).cycle() {
        let started = Instant::now();
        let jobs = scheduler.take(worker, now).jobs;
        taking += started.elapsed();
        if jobs.is_empty() {
            break;
        }
        let logits = vec![0.0; jobs.len()];
        let started = Instant::now();
        scheduler.complete(&jobs, &logits, 0.01, workers);
        scheduler.workers.finish(worker);
        completing += started.elapsed();
    }
    LockTime {
        pairs: requests * PAIRS,
        queueing,
        taking,
        completing,
    }
}
