use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::Duration;

use proptest::prelude::*;
use smallvec::smallvec;

use super::super::reply::{self, Answer};
use super::super::sharing::Sharing;
use super::super::workers::WorkerSet;
use super::*;
use crate::admission::{Memory, Size};
use crate::plan::{BatchLimits, SHARE_ABOVE};
use rerankd_core::{Deadline, DeadlineBy, Priority};

const LIMITS: BatchLimits = BatchLimits {
    max_tokens: 64,
    max_seconds: f64::INFINITY,
    share_above: SHARE_ABOVE,
};
/// A token is a millisecond.
const COST: Cost = Cost {
    base: 0.0,
    per_token: 1e-3,
    per_square: 0.0,
};

/// How fast one worker empties the queue.
fn speed() -> Speed<'static> {
    static SHARING: LazyLock<Sharing> = LazyLock::new(|| Sharing {
        sets: smallvec![WorkerSet {
            count: 1,
            alive: 1,
            busy: 0.0,
        }],
        others: SmallVec::new(),
    });
    Speed {
        cost: COST,
        batch_tokens: 64,
        sharing: &SHARING,
    }
}

fn permit() -> MemoryPermit {
    let gauge = prometheus::IntGauge::new("queue_tokens", "test").unwrap();
    let capacity = Size {
        tokens: usize::MAX,
        bytes: usize::MAX,
    };
    let memory = Memory::new(capacity, gauge);
    memory
        .take((Tenant::default(), 0), false, Size::default(), |_| 0.0)
        .unwrap()
}

/// A queue, and the time.
struct Bench {
    queue: Queue,
    next_key: u128,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self {
            queue: Queue::new(1),
            next_key: 1000,
            now: Instant::now(),
        }
    }

    /// Sequences of these lengths that nobody else wants.
    fn own(&mut self, lengths: &[usize]) -> Vec<(PairKey, Encoding)> {
        let own = |&length: &usize| {
            self.next_key += 1;
            sequence(self.next_key, length)
        };
        lengths.iter().map(own).collect()
    }

    fn push(&mut self, lengths: &[usize]) -> (FlowId, reply::Receiver) {
        self.push_as(SchedulingHints::default(), lengths)
    }

    fn push_as(&mut self, hints: SchedulingHints, lengths: &[usize]) -> (FlowId, reply::Receiver) {
        let encodings = self.own(lengths);
        self.push_all(hints, encodings)
    }

    fn push_all(
        &mut self,
        hints: SchedulingHints,
        encodings: Vec<(PairKey, Encoding)>,
    ) -> (FlowId, reply::Receiver) {
        let (reply, receiver) = reply::channel();
        let arrival = Arrival {
            hints,
            encodings,
            prefix: 0,
            reply,
            permit: permit(),
            timeline: Timeline::default(),
            now: self.now,
        };
        (self.queue.push(arrival).0, receiver)
    }

    fn take(&mut self, limits: BatchLimits) -> Vec<Job> {
        let plan = Plan::new(limits, COST, self.queue.waiting(), &[]);
        let taken = self.queue.take(0, &plan, speed(), self.now);
        let jobs = taken.jobs;
        let tokens: usize = jobs.iter().map(|job| job.encoding.len()).sum();
        self.now += Duration::from_millis(tokens as u64);
        jobs
    }

    /// Scores each sequence of a batch with its length. Returns who wanted them, with their lengths.
    fn complete(&mut self, jobs: &[Job]) -> Vec<(FlowId, usize)> {
        let logits: Vec<f32> = jobs.iter().map(|j| j.encoding.len() as f32).collect();
        let who = jobs.iter().flat_map(|job| {
            let pending = &self.queue.jobs[job.id];
            let tokens = pending.tokens;
            pending.owners.iter().map(move |(id, _)| (*id, tokens))
        });
        let who = who.collect();
        self.queue.complete(jobs, &logits);
        who
    }

    fn run(&mut self, limits: BatchLimits) -> Vec<(FlowId, usize)> {
        let jobs = self.take(limits);
        self.complete(&jobs)
    }
}

/// A sequence of this name and length.
fn sequence(key: u128, length: usize) -> (PairKey, Encoding) {
    let encoding = Encoding {
        ids: vec![length as u32; length],
        type_ids: vec![0; length],
    };
    (PairKey(key), encoding)
}

fn answer(receiver: &mut reply::Receiver) -> Answer {
    receiver.try_recv().expect("it was answered")
}

fn priority(priority: u16) -> SchedulingHints {
    SchedulingHints {
        priority: Priority::new(priority).unwrap(),
        ..SchedulingHints::default()
    }
}

fn tenant(tenant: u64) -> SchedulingHints {
    SchedulingHints {
        tenant: Tenant(tenant),
        ..SchedulingHints::default()
    }
}

#[test]
fn a_small_request_does_not_wait_for_a_big_one_to_finish() {
    let mut bench = Bench::new();
    let (big, _keep) = bench.push(&[16; 100]);
    bench.run(LIMITS);
    let (small, mut receiver) = bench.push(&[16, 16]);
    let batch = bench.run(LIMITS);
    assert_eq!(batch.len(), 4);
    assert_eq!(
        batch.iter().filter(|(id, _)| *id == small).count(),
        2,
        "{big:?}"
    );
    assert_eq!(answer(&mut receiver).unwrap(), [16.0, 16.0]);
}

#[test]
fn a_request_is_scored_in_its_own_order() {
    let mut bench = Bench::new();
    let (_, mut receiver) = bench.push(&[1, 40, 2, 50, 3]);
    let mut order = Vec::new();
    while bench.queue.waiting().tokens > 0 {
        order.extend(bench.run(LIMITS).into_iter().map(|(_, length)| length));
    }
    assert_eq!(order, [1, 40, 2, 50, 3]);
    assert_eq!(answer(&mut receiver).unwrap(), [1.0, 40.0, 2.0, 50.0, 3.0]);
}

/// Newcomers used to start level with whoever had been served least, so that a stream of small ones
/// kept a big one back for ever.
#[test]
fn a_stream_of_newcomers_does_not_starve_a_big_request() {
    let mut bench = Bench::new();
    let (big, mut receiver) = bench.push(&[16; 50]);
    let mut served = 0;
    // It shares with the newcomers that wait, whose number grows as long as it has a share.
    for _ in 0..2000 {
        // As many newcomers as a whole batch takes, each time.
        for _ in 0..4 {
            bench.push(&[16]);
        }
        let batch = bench.run(LIMITS);
        served += batch.iter().filter(|(id, _)| *id == big).count();
    }
    assert_eq!(served, 50);
    assert!(answer(&mut receiver).is_ok());
}

#[test]
fn priority_is_a_weight() {
    let mut bench = Bench::new();
    let (urgent, _a) = bench.push_as(priority(0), &[4; 1000]);
    let (patient, _b) = bench.push_as(priority(3), &[4; 1000]);
    let mut served = HashMap::default();
    for _ in 0..50 {
        for (id, length) in bench.run(LIMITS) {
            *served.entry(id).or_insert(0) += length;
        }
    }
    let ratio = served[&urgent] as f64 / served[&patient] as f64;
    assert!((ratio - 4.0).abs() < 0.1, "{served:?}");
}

#[test]
fn tenants_share_evenly_whatever_they_ask_for() {
    let mut bench = Bench::new();
    let (alone, _a) = bench.push_as(
        SchedulingHints {
            tenant: Tenant(2),
            ..priority(999)
        },
        &[4; 1000],
    );
    let many: Vec<_> = (0..9)
        .map(|_| bench.push_as(tenant(1), &[4; 1000]))
        .collect();
    let mut served = HashMap::default();
    for _ in 0..90 {
        for (id, length) in bench.run(LIMITS) {
            *served.entry(id).or_insert(0_usize) += length;
        }
    }
    let others: usize = many.iter().map(|(id, _)| served[id]).sum();
    assert!(served[&alone].abs_diff(others) <= 64, "{served:?}");
    for (id, _) in &many {
        assert!(served[id].abs_diff(others / 9) <= 64, "{served:?}");
    }
}

/// A tenant that leaves ahead of its share and comes back at once has gained nothing.
#[test]
fn coming_back_does_not_clear_what_a_tenant_has_had() {
    let mut bench = Bench::new();
    let (steady, _keep) = bench.push_as(tenant(1), &[16; 200]);
    let (mut own, mut others) = (0, 0);
    for _ in 0..40 {
        let (_, _receiver) = bench.push_as(tenant(2), &[16; 4]);
        for (id, length) in bench.run(LIMITS) {
            *(if id == steady { &mut own } else { &mut others }) += length;
        }
    }
    assert!(own >= others - 2 * 64, "{own} and {others}");
}

#[test]
fn a_cancelled_request_leaves_at_once() {
    let mut bench = Bench::new();
    let (first, _gone) = bench.push(&[30, 30, 30]);
    let (second, _keep) = bench.push(&[10]);
    let running = bench.take(LIMITS);
    assert_eq!(bench.queue.cancel(first), Outcome::default());
    bench.queue.cancel(first);
    let logits = vec![0.0; running.len()];
    assert!(bench.queue.complete(&running, &logits).wasted > 0);
    while bench.queue.waiting().tokens > 0 {
        assert!(bench.run(LIMITS).iter().all(|(id, _)| *id == second));
    }
    assert_eq!(bench.queue.requests(), 0);
}

#[test]
fn what_was_scored_of_a_request_that_left_was_wasted() {
    let mut bench = Bench::new();
    let (id, _gone) = bench.push(&[60, 60]);
    bench.run(LIMITS);
    assert_eq!(bench.queue.cancel(id).wasted, 60);
    assert_eq!(bench.queue.waiting(), Work::default());
}

#[test]
fn a_failed_batch_fails_its_own_requests_and_no_other() {
    let mut bench = Bench::new();
    let (_, mut failed) = bench.push(&[64, 64]);
    let jobs = bench.take(LIMITS);
    let (_, mut other) = bench.push(&[5]);
    bench.queue.fail(&jobs, "broken");
    let broken = BatchError::Failed("broken".into());
    assert_eq!(answer(&mut failed), Err(broken));
    bench.run(LIMITS);
    assert_eq!(answer(&mut other).unwrap(), [5.0]);
    assert_eq!(bench.queue.waiting(), Work::default());
}

#[test]
fn a_logit_that_is_not_finite_fails_its_own_requests_and_no_other_of_the_batch() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut bench = Bench::new();
        let (_, mut first) = bench.push_all(SchedulingHints::default(), vec![sequence(1, 10)]);
        let (_, mut second) = bench.push_all(
            SchedulingHints::default(),
            vec![sequence(1, 10), sequence(2, 5)],
        );
        let (_, mut other) = bench.push_all(SchedulingHints::default(), vec![sequence(2, 5)]);
        let jobs = bench.take(LIMITS);
        let row = |job: &Job| if job.key == PairKey(1) { bad } else { 5.0 };
        let logits: Vec<f32> = jobs.iter().map(row).collect();
        assert_eq!(logits.len(), 2);
        bench.queue.complete(&jobs, &logits);
        for failed in [&mut first, &mut second] {
            let error = answer(failed).unwrap_err();
            assert!(matches!(error, BatchError::Failed(_)), "{error}");
        }
        assert_eq!(answer(&mut other).unwrap(), [5.0]);
        assert_eq!(bench.queue.requests(), 0);
    }
}

#[test]
fn what_a_worker_lost_fails_and_the_same_pair_is_scored_anew() {
    let mut bench = Bench::new();
    let (_, mut lost) = bench.push_all(SchedulingHints::default(), vec![sequence(1, 10)]);
    let jobs = bench.take(LIMITS);
    assert_eq!(jobs.len(), 1);
    drop(jobs);
    bench.queue.abandon(0, "lost");
    assert_eq!(answer(&mut lost), Err(BatchError::Failed("lost".into())));
    let (_, mut next) = bench.push_all(SchedulingHints::default(), vec![sequence(1, 10)]);
    bench.run(LIMITS);
    assert_eq!(answer(&mut next).unwrap(), [10.0]);
}

#[test]
fn abandoning_one_worker_leaves_the_batches_of_others() {
    let mut bench = Bench::new();
    let (_, mut kept) = bench.push(&[64]);
    let jobs = bench.take(LIMITS);
    let (_, mut waiting) = bench.push(&[8]);
    bench.queue.abandon(1, "lost");
    bench.complete(&jobs);
    assert_eq!(answer(&mut kept).unwrap(), [64.0]);
    bench.run(LIMITS);
    assert_eq!(answer(&mut waiting).unwrap(), [8.0]);
}

/// A panic in the middle of `complete` has ended a job without telling its request.
#[test]
fn a_request_whose_job_got_lost_is_failed() {
    let mut bench = Bench::new();
    let (_, mut stuck) = bench.push(&[10, 10]);
    let jobs = bench.take(LIMITS);
    bench.queue.end(jobs[0].id);
    bench.queue.abandon(0, "lost");
    assert!(answer(&mut stuck).is_err());
    assert_eq!(bench.queue.requests(), 0);
}

#[test]
fn a_shared_prefix_counts_once() {
    let mut bench = Bench::new();
    let (reply, _receiver) = reply::channel();
    bench.queue.push(Arrival {
        hints: SchedulingHints::default(),
        encodings: vec![sequence(1, 40), sequence(2, 50), sequence(3, 31)],
        prefix: 30,
        reply,
        permit: permit(),
        timeline: Timeline::default(),
        now: bench.now,
    });
    assert_eq!(bench.queue.waiting(), Work::all([40, 20, 1]));
    let limits = BatchLimits {
        max_tokens: 60,
        ..LIMITS
    };
    let tokens = |jobs: Vec<Job>| jobs.iter().map(|job| job.tokens).collect::<Vec<_>>();
    assert_eq!(tokens(bench.take(limits)), [40, 20]);
    assert_eq!(tokens(bench.take(limits)), [1]);
    assert_eq!(bench.queue.waiting(), Work::default());
}

/// The caller records it, without the lock.
#[test]
fn the_queue_builds_no_spans() {
    let mut bench = Bench::new();
    let timeline = Timeline::begin("POST /rerank".to_owned(), opentelemetry::Context::new());
    let (reply, _receiver) = reply::channel();
    bench.queue.push(Arrival {
        hints: SchedulingHints::default(),
        encodings: vec![sequence(1, 40), sequence(2, 40)],
        prefix: 0,
        reply,
        permit: permit(),
        timeline: timeline.clone(),
        now: bench.now,
    });
    bench.now += Duration::from_millis(5);
    let mut begun = Vec::new();
    for _ in 0..2 {
        let plan = Plan::new(LIMITS, COST, bench.queue.waiting(), &[]);
        let taken = bench.queue.take(0, &plan, speed(), bench.now);
        assert_eq!(taken.jobs.len(), 1);
        begun.extend(taken.begun);
    }
    assert_eq!(timeline.spent(), []);
    assert_eq!(begun.len(), 1, "once for each request");
    assert!(begun[0].0.is(&timeline));
}

// Identical pairs.

#[test]
fn identical_pairs_are_scored_once() {
    let mut bench = Bench::new();
    let all = || vec![sequence(1, 10), sequence(2, 20), sequence(1, 10)];
    let (_, mut first) = bench.push_all(SchedulingHints::default(), all());
    let (_, mut second) = bench.push_all(SchedulingHints::default(), all());
    assert_eq!(bench.queue.waiting().tokens, 30);
    let jobs = bench.take(LIMITS);
    assert_eq!(jobs.len(), 2);
    // While it runs, too.
    let (_, mut third) = bench.push_all(SchedulingHints::default(), vec![sequence(2, 20)]);
    assert_eq!(bench.queue.waiting().tokens, 0);
    bench.complete(&jobs);
    assert_eq!(answer(&mut first).unwrap(), [10.0, 20.0, 10.0]);
    assert_eq!(answer(&mut second).unwrap(), [10.0, 20.0, 10.0]);
    assert_eq!(answer(&mut third).unwrap(), [20.0]);
    // It is over: from here on it is the cache's.
    bench.push_all(SchedulingHints::default(), vec![sequence(2, 20)]);
    assert_eq!(bench.queue.waiting().tokens, 20);
}

#[test]
fn whoever_leaves_the_others_keep_their_pair() {
    for leaves in [0, 1] {
        for running in [false, true] {
            let mut bench = Bench::new();
            let pair = || vec![sequence(1, 10)];
            let mut clients = [
                bench.push_all(SchedulingHints::default(), pair()),
                bench.push_all(SchedulingHints::default(), pair()),
            ];
            let jobs = if running {
                bench.take(LIMITS)
            } else {
                Vec::new()
            };
            bench.queue.cancel(clients[leaves].0);
            let jobs = if running { jobs } else { bench.take(LIMITS) };
            bench.complete(&jobs);
            let (_, kept) = &mut clients[1 - leaves];
            assert_eq!(answer(kept).unwrap(), [10.0]);
            assert_eq!(bench.queue.requests(), 0);
        }
    }
}

/// A pair deep in a big request does not keep a small one waiting that wants the same.
#[test]
fn a_shared_pair_is_taken_at_the_turn_of_whoever_comes_first() {
    let mut bench = Bench::new();
    let mut many = bench.own(&[16; 100]);
    many.push(sequence(1, 16));
    let (_, mut big) = bench.push_all(SchedulingHints::default(), many);
    bench.run(LIMITS);
    let (_, mut small) = bench.push_all(SchedulingHints::default(), vec![sequence(1, 16)]);
    bench.run(LIMITS);
    assert_eq!(answer(&mut small).unwrap(), [16.0]);
    while bench.queue.waiting().tokens > 0 {
        bench.run(LIMITS);
    }
    assert_eq!(answer(&mut big).unwrap(), [16.0; 101]);
}

#[test]
fn what_runs_for_nobody_may_find_somebody() {
    let mut bench = Bench::new();
    let (first, _gone) = bench.push_all(SchedulingHints::default(), vec![sequence(1, 10)]);
    let jobs = bench.take(LIMITS);
    bench.queue.cancel(first);
    let (_, mut second) = bench.push_all(SchedulingHints::default(), vec![sequence(1, 10)]);
    let outcome = bench.queue.complete(&jobs, &[7.0]);
    assert_eq!(outcome.wasted, 0);
    assert_eq!(answer(&mut second).unwrap(), [7.0]);
}

// Deadlines.

fn within(bench: &Bench, milliseconds: u64) -> SchedulingHints {
    SchedulingHints {
        deadline: Some(Deadline {
            at: bench.now + Duration::from_millis(milliseconds),
            by: DeadlineBy::Client,
        }),
        ..SchedulingHints::default()
    }
}

#[test]
fn what_cannot_be_answered_in_time_is_not_begun() {
    let mut bench = Bench::new();
    let hints = within(&bench, 50);
    let (_, mut late) = bench.push_as(hints, &[40, 40]);
    let (_, mut other) = bench.push(&[50]);
    let batch = bench.run(LIMITS);
    assert_eq!(batch.len(), 1);
    let needed = Duration::from_millis(130);
    assert_eq!(answer(&mut late), Err(BatchError::TooLate { needed }));
    assert!(answer(&mut other).is_ok());
}

#[test]
fn a_deadline_that_has_passed_is_told_apart_by_whether_it_cost_a_token() {
    let mut bench = Bench::new();
    let (_, _other) = bench.push(&[64; 3]);
    let hints = within(&bench, 30);
    let (waiting, mut receiver) = bench.push_as(hints, &[1]);
    bench.now += Duration::from_millis(31);
    while bench.queue.flows.contains_key(&waiting) {
        bench.run(LIMITS);
    }
    let begun = false;
    assert_eq!(
        answer(&mut receiver),
        Err(BatchError::DeadlinePassed { begun })
    );

    let mut bench = Bench::new();
    let hints = within(&bench, 120);
    let (id, mut receiver) = bench.push_as(hints, &[50, 50]);
    bench.run(LIMITS);
    bench.now += Duration::from_millis(71);
    let outcome = bench.queue.expire(id);
    assert_eq!(outcome.wasted, 50);
    let begun = true;
    assert_eq!(
        answer(&mut receiver),
        Err(BatchError::DeadlinePassed { begun })
    );
    assert_eq!(bench.queue.expire(id), Outcome::default());
}

#[test]
fn a_request_is_forecast_with_its_share_and_no_more() {
    let mut bench = Bench::new();
    let (_, _big) = bench.push(&[16; 100]);
    let (_, _other) = bench.push_as(tenant(7), &[16; 10]);
    let forecast = |hints, length| {
        let request = ForecastRequest {
            hints,
            work: Work::of(length),
        };
        bench.queue.forecast(request, false, speed())
    };
    let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
    // As much again for the request beside it, and as much as both for the other tenant.
    assert!(close(forecast(SchedulingHints::default(), 16), 4.0 * 0.016));
    assert!(close(
        forecast(priority(1), 16),
        (16.0 + 32.0 + 48.0) * 1e-3
    ));
    // Alone in its tenant.
    assert!(close(forecast(tenant(8), 16), 3.0 * 0.016));
    // Never more than there is.
    assert!(close(
        forecast(SchedulingHints::default(), 10_000),
        10.0 + 1.6 + 0.16
    ));
}

/// Groups that `take` looks at when it refuses and takes among so many requests.
fn steps_of_a_take(requests: usize) -> (usize, usize) {
    let mut bench = Bench::new();
    let mut kept = Vec::new();
    for nth in 0..requests {
        let hints = match nth % 2 {
            0 => within(&bench, 20),
            _ => within(&bench, 1_000_000_000),
        };
        let hints = SchedulingHints {
            tenant: Tenant(nth as u64 % 100),
            ..hints
        };
        kept.push(bench.push_as(hints, &[4, 1 + nth % 50]));
    }
    bench.queue.backlog.steps.set(0);
    let plan = Plan::new(LIMITS, COST, bench.queue.waiting(), &[]);
    let taken = bench.queue.take(0, &plan, speed(), bench.now);
    let refused = requests - bench.queue.requests();
    assert!(refused > 0 && (taken.more || !taken.jobs.is_empty()));
    (bench.queue.backlog.steps.get(), refused)
}

#[test]
fn forming_a_batch_looks_at_no_more_when_more_requests_wait() {
    let (few, refused_of_few) = steps_of_a_take(2_000);
    let (many, refused_of_many) = steps_of_a_take(20_000);
    assert!(refused_of_few <= MAX_REFUSED && refused_of_many <= MAX_REFUSED);
    assert!(
        many <= few + few / 4,
        "{few} steps for 2,000 requests, {many} for 20,000"
    );
}

#[test]
fn refusals_of_one_batch_are_bounded_and_the_rest_follows() {
    let mut bench = Bench::new();
    let hints = within(&bench, 50);
    let late: Vec<_> = (0..1000).map(|_| bench.push_as(hints, &[64])).collect();
    bench.now += Duration::from_millis(51);
    let mut rounds = 0;
    while bench.queue.requests() > 0 {
        let before = bench.queue.requests();
        let plan = Plan::new(LIMITS, COST, bench.queue.waiting(), &[]);
        let taken = bench.queue.take(0, &plan, speed(), bench.now);
        assert!(taken.jobs.is_empty());
        let refused = before - bench.queue.requests();
        assert!(refused <= MAX_REFUSED);
        assert_eq!(taken.more, bench.queue.requests() > 0);
        rounds += 1;
    }
    assert_eq!(rounds, late.len().div_ceil(MAX_REFUSED));
}

/// A forecast from sums never promises an earlier end than one from each request would.
#[test]
fn a_forecast_from_sums_is_close_to_the_exact_one() {
    let mut bench = Bench::new();
    let mut exact = Vec::new();
    let mut kept = Vec::new();
    for nth in 0..300_usize {
        let (of, urgency) = (nth as u64 % 7, [0, 1, 9][nth % 3]);
        let lengths = vec![1 + nth * 13 % 60; 1 + nth % 5];
        let hints = SchedulingHints {
            tenant: Tenant(of),
            ..priority(urgency)
        };
        kept.push(bench.push_as(hints, &lengths));
        exact.push((
            of,
            hints.priority.parts() as f64,
            lengths.iter().sum::<usize>() as f64 * 1e-3,
        ));
    }
    for length in [1, 20, 100, 1000] {
        for urgency in [0, 1, 9] {
            let hints = SchedulingHints {
                tenant: Tenant(3),
                ..priority(urgency)
            };
            let own = length as f64 * 1e-3;
            let parts = hints.priority.parts() as f64;
            let beside: f64 = exact
                .iter()
                .filter(|(of, ..)| *of == 3)
                .map(|(_, theirs, seconds)| seconds.min(own * parts / theirs))
                .sum();
            let within = own + beside;
            let others: f64 = (0..7)
                .filter(|of| *of != 3)
                .map(|tenant| {
                    let of = exact.iter().filter(|(of, ..)| *of == tenant);
                    of.map(|(.., seconds)| seconds).sum::<f64>().min(within)
                })
                .sum();
            let request = ForecastRequest {
                hints,
                work: Work::of(length),
            };
            let forecast = bench.queue.forecast(request, false, speed());
            let exact = within + others;
            assert!(
                forecast >= exact * (1.0 - 1e-4) && forecast <= 1.25 * exact,
                "{forecast} of {exact}"
            );
        }
    }
}

// Properties.

/// What happens to a queue, step by step.
#[derive(Debug, Clone)]
enum Step {
    /// Somebody asks for sequences, each one of a few that others may ask for too.
    Push { hints: (u64, u16), keys: Vec<u8> },
    /// The request of so many pushes ago leaves.
    Cancel(usize),
    /// A worker takes a batch.
    Take,
    /// The batch that runs longest ends, well or badly.
    End { fails: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let hints = (0..3_u64, prop::sample::select(vec![0_u16, 1, 9, 999]));
    let push = (hints, prop::collection::vec(0..60_u8, 1..20))
        .prop_map(|(hints, keys)| Step::Push { hints, keys });
    let step = prop_oneof![
        3 => push,
        1 => (0..8_usize).prop_map(Step::Cancel),
        4 => Just(Step::Take),
        4 => prop::bool::weighted(0.1).prop_map(|fails| Step::End { fails }),
    ];
    prop::collection::vec(step, 1..80)
}

/// How long the sequence of this name is.
fn length(key: u8) -> usize {
    1 + usize::from(key) * 7 % 90
}

proptest! {
    /// No sequence lost, none answered twice, every answer in the order of its request, tokens and
    /// seconds of a batch kept and identical pairs never scored twice at a time, whatever is cancelled
    /// or fails on the way and with however many batches at once.
    #[test]
    fn every_request_is_answered_once_and_in_order(
        steps in steps(),
        max_tokens in 1_usize..200,
        max_milliseconds in 1_u32..300,
    ) {
        let limits = BatchLimits {
            max_tokens,
            max_seconds: f64::from(max_milliseconds) * 1e-3,
            share_above: SHARE_ABOVE,
        };
        let mut bench = Bench::new();
        let mut asked: Vec<(FlowId, Vec<u8>, reply::Receiver)> = Vec::new();
        let (mut cancelled, mut failed) = (HashSet::new(), HashSet::new());
        let mut running: Vec<Vec<Job>> = Vec::new();
        let end = [Step::Take, Step::End { fails: false }];
        let rest = std::iter::repeat_n(end, 2000).flatten();
        for step in steps.into_iter().chain(rest) {
            match step {
                Step::Push { hints: (tenant, urgency), keys } => {
                    let hints = SchedulingHints { tenant: Tenant(tenant), ..priority(urgency) };
                    let all = keys.iter().map(|&key| sequence(key.into(), length(key)));
                    let (id, receiver) = bench.push_all(hints, all.collect());
                    asked.push((id, keys, receiver));
                }
                Step::Cancel(ago) => {
                    if let Some((id, ..)) = asked.iter().rev().nth(ago) {
                        if bench.queue.flows.contains_key(id) {
                            cancelled.insert(*id);
                        }
                        bench.queue.cancel(*id);
                    }
                }
                Step::Take => {
                    let waiting = bench.queue.waiting().sequences;
                    let jobs = bench.take(limits);
                    prop_assert_eq!(jobs.is_empty(), waiting == 0);
                    let work = Work::all(jobs.iter().map(|job| job.encoding.len()));
                    prop_assert!(jobs.len() <= 1 || work.tokens <= max_tokens);
                    prop_assert!(jobs.len() <= 1 || COST.seconds(work) <= limits.max_seconds);
                    if !jobs.is_empty() {
                        running.push(jobs);
                    }
                    let mut keys = HashSet::new();
                    for job in running.iter().flatten() {
                        prop_assert!(keys.insert(job.key), "scored twice at a time");
                    }
                }
                Step::End { fails } => {
                    if running.is_empty() {
                        if bench.queue.requests() == 0 {
                            continue;
                        }
                        prop_assert!(bench.queue.waiting().sequences > 0, "nobody is forgotten");
                        continue;
                    }
                    let jobs = running.remove(0);
                    if fails {
                        for job in &jobs {
                            failed.extend(bench.queue.jobs[job.id].owners.iter().map(|(id, _)| *id));
                        }
                        bench.queue.fail(&jobs, "broken");
                    } else {
                        bench.complete(&jobs);
                    }
                }
            }
        }
        prop_assert_eq!(bench.queue.requests(), 0);
        prop_assert_eq!(bench.queue.waiting(), Work::default());
        prop_assert!(bench.queue.jobs.is_empty() && bench.queue.by_key.is_empty());
        prop_assert!(bench.queue.turns.next().is_none());
        prop_assert!(bench.queue.backlog.is_empty());
        for (id, keys, mut receiver) in asked {
            let answer = receiver.try_recv();
            if cancelled.contains(&id) {
                prop_assert!(answer.is_err());
            } else if failed.contains(&id) {
                prop_assert_eq!(answer.unwrap(), Err(BatchError::Failed("broken".into())));
            } else {
                let logits: Vec<f32> = keys.iter().map(|&key| length(key) as f32).collect();
                prop_assert_eq!(answer.unwrap(), Ok(logits));
            }
        }
    }

    /// While requests wait, none is ahead of another by more than a batch and a sequence of each, by
    /// what it has had over its weight. Whoever came first, and whatever is cancelled beside them.
    #[test]
    fn shares_stay_fair(
        flows in prop::collection::vec(
            (prop::sample::select(vec![0_u16, 1, 4]), prop::collection::vec(1_usize..64, 40..80)),
            2..5),
        others in prop::collection::vec((0..30_usize, 1_usize..64, any::<bool>()), 0..10),
    ) {
        let mut bench = Bench::new();
        let mut all = Vec::new();
        for (urgency, lengths) in &flows {
            let (id, receiver) = bench.push_as(priority(*urgency), lengths);
            all.push((id, f64::from(*urgency) + 1.0, receiver));
        }
        let mut served: HashMap<FlowId, f64> = HashMap::default();
        let mut kept = Vec::new();
        for round in 0.. {
            for (_, length, cancel) in others.iter().filter(|(when, ..)| *when == round) {
                let (id, receiver) = bench.push(&[*length; 3]);
                kept.push(receiver);
                if *cancel {
                    bench.queue.cancel(id);
                }
            }
            for (id, length) in bench.run(LIMITS) {
                *served.entry(id).or_default() += length as f64;
            }
            if !all.iter().all(|(id, ..)| {
                bench.queue.flows.get(id).is_some_and(|flow| flow.work.sequences > 0)
            }) {
                break;
            }
            for (a, parts_a, _) in &all {
                for (b, parts_b, _) in &all {
                    let a = served.get(a).copied().unwrap_or_default() * parts_a;
                    let b = served.get(b).copied().unwrap_or_default() * parts_b;
                    let bound = 64.0 * (parts_a + parts_b) + 64.0 * parts_a.max(*parts_b);
                    prop_assert!((a - b).abs() <= bound, "{a} {b}");
                }
            }
        }
    }

    /// However many others keep coming, a request is done by the time that its share, among those that
    /// wait at the same time, takes to be served.
    #[test]
    fn nobody_starves(
        lengths in prop::collection::vec(1_usize..64, 1..40),
        urgency in prop::sample::select(vec![0_u16, 1, 9]),
        at_once in 1_usize..6,
        newcomer in 1_usize..64,
    ) {
        let mut bench = Bench::new();
        // Others wait all the time, each replaced as soon as it is done.
        let mut others: Vec<_> = (0..at_once).map(|_| bench.push(&[newcomer])).collect();
        let (id, _receiver) = bench.push_as(priority(urgency), &lengths);
        let own: usize = lengths.iter().sum();
        let parts = usize::from(urgency) + 1;
        let bound = own * (1 + at_once * parts) + (at_once + 2) * parts * 128 + 64;
        let mut served = 0;
        while bench.queue.flows.contains_key(&id) {
            served += bench.run(LIMITS).iter().map(|(_, length)| length).sum::<usize>();
            prop_assert!(served <= bound, "{served} tokens, {bound} expected");
            others.retain(|(id, _)| bench.queue.flows.contains_key(id));
            while others.len() < at_once {
                others.push(bench.push(&[newcomer]));
            }
        }
    }
}
