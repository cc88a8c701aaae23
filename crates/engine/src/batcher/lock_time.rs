//! Measures for how long the scheduler's lock is held for each pair. For benchmarks.

use std::time::{Duration, Instant};

use super::queue::{Arrival, Job, LaneId};
use super::scheduler::Scheduler;
use super::{AdmissionLimits, Demand, LaneConfig, reply};
use crate::admission::{Expected, Size};
use crate::cost::{Cost, Costs, Estimator, Work};
use crate::plan::{BatchLimits, SHARE_ABOVE};
use crate::trace::Timeline;
use rerankd_core::{Encoding, PairKey, SchedulingHints, Tenant};

/// Pairs of a request.
const PAIRS: usize = 50;
/// Tokens of a pair.
const TOKENS: usize = 18;
/// API keys that send requests in turn.
const TENANTS: usize = 200;

/// The time under the lock.
#[derive(Debug, Clone, Copy, Default)]
pub struct LockTime {
    /// Pairs that were scored.
    pub pairs: usize,
    /// Batches that they made.
    pub batches: usize,
    /// Time to admit and queue requests.
    pub queueing: Duration,
    /// Time to form batches.
    pub taking: Duration,
    /// Time to take the results and answer.
    pub completing: Duration,
}

/// Scores `rounds` times `requests` requests of 50 pairs of 18 tokens, from 200 tenants. `requests` of them wait at
/// any time: each one that is answered is followed by another. `workers` workers take batches in turn, and would
/// together score so many `pairs_per_second`.
pub fn measure(workers: usize, requests: usize, rounds: usize, pairs_per_second: f64) -> LockTime {
    let seconds_per_pair = workers as f64 / pairs_per_second;
    let (mut scheduler, lane) = scheduler(workers, seconds_per_pair / TOKENS as f64);
    let now = tokio::time::Instant::now();
    let mut receivers: Vec<_> = (0..requests)
        .map(|request| queue((&mut scheduler, lane), request, now).0)
        .collect();
    let mut time = LockTime::default();
    let mut running: Vec<Vec<Job>> = (0..workers).map(|_| Vec::new()).collect();
    let mut sent = requests;
    for worker in (0..workers).cycle() {
        let ended = std::mem::take(&mut running[worker]);
        let logits = vec![0.0; ended.len()];
        let seconds = ended.len() as f64 * seconds_per_pair;
        let started = Instant::now();
        scheduler.complete(lane, &ended, &logits, (seconds, workers));
        scheduler.workers.finish(worker);
        time.completing += started.elapsed();
        time.pairs += ended.len();
        while scheduler.lanes[lane].queue.requests() < requests {
            let (receiver, queueing) = queue((&mut scheduler, lane), sent, now);
            receivers.push(receiver);
            time.queueing += queueing;
            sent += 1;
        }
        if time.pairs >= rounds * requests * PAIRS {
            break;
        }
        let started = Instant::now();
        running[worker] = scheduler.take(worker, now).jobs;
        time.taking += started.elapsed();
        time.batches += 1;
    }
    time
}

/// A scheduler that admits everything, where each token takes a worker `per_token` seconds.
fn scheduler(workers: usize, per_token: f64) -> (Scheduler, LaneId) {
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
    let cost = Cost {
        base: 0.0,
        per_token,
        per_square: 0.0,
    };
    let gauge = prometheus::IntGauge::new("queue_tokens", "tokens").expect("the name is valid");
    let costs = Costs::new(Estimator::new(cost), workers);
    let mut scheduler = Scheduler::new(unlimited, gauge);
    let lane = scheduler.add(LaneConfig {
        labels: 1,
        workers,
        costs,
        limits,
        share: 1,
        is_preemptible: true,
    });
    (scheduler, lane)
}

/// Admits and queues a request. Returns where it is answered, and the time that it took under the lock.
fn queue(
    (scheduler, lane): (&mut Scheduler, LaneId),
    request: usize,
    now: tokio::time::Instant,
) -> (reply::Receiver, Duration) {
    let hints = SchedulingHints {
        tenant: Tenant((request % TENANTS) as u64),
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
    let started = Instant::now();
    let admitted = scheduler
        .admit(lane, demand, now)
        .expect("nothing is limited");
    let queue = &mut scheduler.lanes[lane].queue;
    queue.release(admitted.request);
    queue.push(Arrival {
        hints,
        encodings,
        prefix: 0,
        reply,
        permit: admitted.memory,
        timeline: Timeline::default(),
        now: now.into_std(),
    });
    (receiver, started.elapsed())
}
