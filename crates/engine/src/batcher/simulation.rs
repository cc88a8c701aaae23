//! The scheduler in simulated time: clients that ask again and again, and workers that take as long as the
//! cost model says.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tokio::sync::oneshot::error::TryRecvError;

use super::queue::{Job, Taken, work};
use super::reply::Receiver;
use super::*;
use crate::cost::{Cost, Costs, Estimator, duration};
use crate::plan::{BatchLimits, SHARE_ABOVE};
use rerankd_core::Tenant;

/// That of a small model on one core of a small machine.
const COST: Cost = Cost {
    base: 2e-3,
    per_token: 2e-4,
    per_square: 2e-8,
};
const MAX_DELAY: f64 = 10.0;
/// Seconds between an answer and the next request.
const THINK: f64 = 2e-3;

/// A model that takes ten times as long.
const LARGE: Cost = Cost {
    base: 2e-2,
    per_token: 2e-3,
    per_square: 2e-7,
};

/// Requests of one kind: all alike but for their size.
#[derive(Clone)]
struct Client {
    /// Number of the model.
    model: usize,
    hints: SchedulingHints,
    /// Tokens of each sequence.
    lengths: Vec<usize>,
    /// Seconds between one request and the next; `None` waits for the answer first.
    every: Option<f64>,
    starts: f64,
}

fn client(sequences: usize, length: usize) -> Client {
    Client {
        model: 0,
        hints: SchedulingHints::default(),
        lengths: vec![length; sequences],
        every: None,
        starts: 0.0,
    }
}

fn bulk() -> Client {
    client(300, 360)
}

fn small() -> Client {
    client(8, 22)
}

/// One request, in seconds from the start.
#[derive(Debug, Clone, Copy)]
struct Record {
    client: usize,
    asked: f64,
    /// `None` where it was refused.
    answered: Option<f64>,
    expected: f64,
}

impl Record {
    fn took(&self) -> Option<f64> {
        self.answered.map(|answered| answered - self.asked)
    }
}

struct Waiting {
    record: usize,
    receiver: Receiver,
}

/// Layers of the model.
const LAYERS: usize = 6;

struct Running {
    lane: LaneId,
    jobs: Vec<Job>,
    seconds: f64,
    busy: usize,
    /// Layers that are done, and when the present one will be.
    layers: usize,
    ends: f64,
    /// Seconds for which it was interrupted.
    spent: f64,
    /// The batch that interrupts it.
    inner: Option<Inner>,
}

struct Inner {
    jobs: Vec<Job>,
    seconds: f64,
}

struct Simulation {
    scheduler: Scheduler,
    /// The models, each with the cost of its batches and the seconds that they took so far.
    models: Vec<(LaneId, Cost)>,
    given: Vec<f64>,
    start: Instant,
    now: f64,
    workers: Vec<Option<Running>>,
    clients: Vec<Client>,
    /// When each asks next.
    wakes: Vec<f64>,
    waiting: Vec<Waiting>,
    records: Vec<Record>,
    next_key: u128,
    scored_seconds: f64,
    random: fastrand::Rng,
}

impl Simulation {
    fn new(workers: usize, clients: Vec<Client>) -> Self {
        Self::of_models(workers, &[(COST, 1)], clients)
    }

    /// Models, each with the cost of its batches and its share.
    fn of_models(workers: usize, models: &[(Cost, u32)], clients: Vec<Client>) -> Self {
        let limits = BatchLimits {
            max_tokens: 512,
            max_seconds: 0.1,
            share_above: SHARE_ABOVE,
        };
        let admission = AdmissionLimits {
            memory: Size {
                tokens: 262_144,
                bytes: 64 << 20,
            },
            max_delay: MAX_DELAY,
        };
        let gauge = prometheus::IntGauge::new("queue_tokens", "test").unwrap();
        let mut scheduler = Scheduler::new(admission, gauge);
        let models = models.iter().map(|&(cost, share)| {
            let config = LaneConfig {
                labels: 1,
                workers,
                costs: Costs::new(Estimator::new(cost), workers),
                limits,
                share,
                is_preemptible: true,
            };
            (scheduler.add(config), cost)
        });
        let models: Vec<_> = models.collect();
        Self {
            given: vec![0.0; models.len()],
            models,
            scheduler,
            start: Instant::now(),
            now: 0.0,
            workers: (0..workers).map(|_| None).collect(),
            wakes: clients.iter().map(|client| client.starts).collect(),
            clients,
            waiting: Vec::new(),
            records: Vec::new(),
            next_key: 0,
            scored_seconds: 0.0,
            random: fastrand::Rng::with_seed(7),
        }
    }

    /// Runs until nothing happens before the end.
    fn run(&mut self, until: f64) {
        loop {
            let wakes = self.wakes.iter().copied();
            let ends = self.workers.iter().flatten().map(|running| running.ends);
            let next = wakes.chain(ends).fold(f64::INFINITY, f64::min);
            if next > until {
                return;
            }
            self.now = next;
            for worker in 0..self.workers.len() {
                if self.workers[worker]
                    .as_ref()
                    .is_some_and(|running| running.ends <= next)
                {
                    self.layer_ends(worker);
                }
            }
            for client in 0..self.clients.len() {
                if self.wakes[client] <= next {
                    self.ask(client);
                }
            }
            for worker in 0..self.workers.len() {
                self.take(worker);
            }
        }
    }

    fn at(&self) -> Instant {
        self.start + duration(self.now)
    }

    fn ask(&mut self, client: usize) {
        let Client {
            model,
            hints,
            mut lengths,
            every,
            ..
        } = self.clients[client].clone();
        // Texts of a kind differ; in step, workers would be free at the same time always or never.
        for length in &mut lengths {
            *length += self.random.usize(0..=*length / 4);
        }
        self.wakes[client] = every.map_or(f64::INFINITY, |every| self.now + every);
        let demand = Demand {
            hints,
            work: Work::all(lengths.iter().copied()),
            bytes: 4 * lengths.iter().sum::<usize>(),
            tokenizing: Expected::new(0.0, 0.0),
        };
        let now = self.at();
        let (lane, _) = self.models[model];
        let admitted = self.scheduler.admit(lane, demand, now);
        let expected = admitted.as_ref().map_or(0.0, |a| a.expected.completion);
        self.records.push(Record {
            client,
            asked: self.now,
            answered: None,
            expected,
        });
        let admitted = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => {
                if every.is_none() {
                    let error = rerankd_core::RerankError::from(refusal);
                    let seconds = error.retry_after().unwrap().as_secs_f64();
                    self.wakes[client] = self.now + seconds.ceil().max(1.0);
                }
                return;
            }
        };
        let queue = &mut self.scheduler.lanes[lane].queue;
        queue.release(admitted.request);
        let (reply, receiver) = reply::channel();
        let encodings = lengths.iter().map(|&length| {
            self.next_key += 1;
            let encoding = Encoding {
                ids: vec![0; length],
                type_ids: vec![0; length],
            };
            (PairKey(self.next_key), encoding)
        });
        let arrival = Arrival {
            hints,
            encodings: encodings.collect(),
            prefix: 0,
            reply,
            permit: admitted.memory,
            timeline: Timeline::default(),
            now: now.into_std(),
        };
        self.scheduler.lanes[lane].queue.push(arrival);
        self.waiting.push(Waiting {
            record: self.records.len() - 1,
            receiver,
        });
    }

    fn take(&mut self, worker: usize) {
        if self.workers[worker].is_some() {
            return;
        }
        let now = self.at();
        let Taken { lane, jobs, .. } = self.scheduler.take(worker, now);
        if jobs.is_empty() {
            return;
        }
        let seconds = self.score(lane, &jobs);
        self.workers[worker] = Some(Running {
            lane,
            jobs,
            seconds,
            busy: self.scheduler.workers.busy(),
            layers: 0,
            ends: self.now + seconds / LAYERS as f64,
            spent: 0.0,
            inner: None,
        });
    }

    /// Counts a batch, and returns its seconds.
    fn score(&mut self, lane: LaneId, jobs: &[Job]) -> f64 {
        let model = self.models.iter().position(|(id, _)| *id == lane).unwrap();
        let (_, cost) = self.models[model];
        let seconds = cost.seconds(work(jobs));
        self.scored_seconds += cost.marginal(work(jobs));
        self.given[model] += seconds;
        seconds
    }

    /// A layer of a worker's batch ends, or the batch that ran behind one.
    fn layer_ends(&mut self, worker: usize) {
        let mut running = self.workers[worker].take().unwrap();
        let lane = running.lane;
        match running.inner.take() {
            Some(inner) => self.complete(lane, &inner.jobs, inner.seconds, running.busy),
            None => running.layers += 1,
        }
        if running.layers == LAYERS {
            self.complete(lane, &running.jobs, running.seconds, running.busy);
            return self.scheduler.workers.finish(worker);
        }
        let (seconds, spent) = (running.seconds, running.spent);
        let times = (seconds, spent);
        let taken = self.scheduler.preempt(lane, worker, times, self.at());
        running.ends = self.now + seconds / LAYERS as f64;
        if !taken.jobs.is_empty() {
            let seconds = self.score(lane, &taken.jobs);
            running.ends = self.now + seconds;
            running.spent += seconds;
            running.inner = Some(Inner {
                jobs: taken.jobs,
                seconds,
            });
        }
        self.workers[worker] = Some(running);
    }

    fn complete(&mut self, lane: LaneId, jobs: &[Job], seconds: f64, busy: usize) {
        let logits = vec![0.0; jobs.len()];
        let times = (seconds, busy);
        self.scheduler.complete(lane, jobs, &logits, times);
        let (now, records) = (self.now, &mut self.records);
        let (clients, wakes) = (&self.clients, &mut self.wakes);
        self.waiting
            .retain_mut(|waiting| match waiting.receiver.try_recv() {
                Ok(answer) => {
                    assert!(answer.is_ok());
                    let record = &mut records[waiting.record];
                    assert!(record.answered.is_none(), "answered twice");
                    record.answered = Some(now);
                    if clients[record.client].every.is_none() {
                        wakes[record.client] = now + THINK;
                    }
                    false
                }
                Err(TryRecvError::Empty) => true,
                Err(TryRecvError::Closed) => panic!("a request was lost"),
            });
    }

    /// Answers all that was admitted, and nothing new.
    fn drain(&mut self) {
        self.wakes.fill(f64::INFINITY);
        for client in &mut self.clients {
            client.every = Some(f64::INFINITY);
        }
        self.run(1e9);
        assert!(self.waiting.is_empty(), "a request was lost");
        for lane in self.scheduler.lanes.values() {
            assert_eq!(lane.queue.admitted(), Work::default());
        }
    }

    fn of(&self, client: usize) -> impl Iterator<Item = &Record> {
        self.records
            .iter()
            .filter(move |record| record.client == client)
    }

    /// Quantile of what the answered requests of a client took.
    fn took(&self, client: usize, quantile: f64) -> f64 {
        let took: Vec<f64> = self.of(client).filter_map(Record::took).collect();
        at(took, quantile)
    }

    fn refused(&self, client: usize) -> usize {
        self.of(client)
            .filter(|record| record.expected == 0.0)
            .count()
    }
}

fn at(mut values: Vec<f64>, quantile: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * quantile) as usize]
}

fn alone(client: Client) -> f64 {
    let mut simulation = Simulation::new(2, vec![client]);
    simulation.run(60.0);
    simulation.took(0, 0.5)
}

#[test]
fn a_small_request_beside_bulk_is_never_refused_and_soon_answered() {
    let idle = alone(small());
    for clients in [1, 3, 8] {
        let mut all = vec![small()];
        all.extend(vec![bulk(); clients]);
        let mut simulation = Simulation::new(2, all);
        simulation.run(120.0);
        let (median, p99) = (simulation.took(0, 0.5), simulation.took(0, 0.99));
        println!(
            "beside {clients} bulk clients: idle {:.1} ms, median {:.1}, p99 {:.1}, {} answered",
            idle * 1e3,
            median * 1e3,
            p99 * 1e3,
            simulation.of(0).count()
        );
        assert_eq!(simulation.refused(0), 0, "beside {clients}");
        let most = if clients == 1 { 0.03 } else { 0.04 };
        assert!(median < idle + most, "{median} beside {clients}");
        assert!(p99 < idle + 0.1, "{p99} beside {clients}");
        simulation.drain();
    }
}

#[test]
fn a_tenant_with_many_bulk_clients_leaves_another_its_share() {
    let of = |tenant, client: Client| Client {
        hints: SchedulingHints {
            tenant: Tenant(tenant),
            ..SchedulingHints::default()
        },
        ..client
    };
    let mut all = vec![of(2, small())];
    all.extend(vec![of(1, bulk()); 20]);
    let mut simulation = Simulation::new(2, all.clone());
    simulation.run(120.0);
    let idle = alone(small());
    assert!(simulation.took(0, 0.5) < idle + 0.04);
    assert!(simulation.took(0, 0.99) < idle + 0.1);
    all.insert(1, of(2, client(40, 200)));
    let mut simulation = Simulation::new(2, all);
    simulation.run(120.0);
    assert_eq!(simulation.refused(0) + simulation.refused(1), 0);
    println!(
        "beside 20 bulk clients of another tenant: median {:.1} ms, p99 {:.1}",
        simulation.took(0, 0.5) * 1e3,
        simulation.took(0, 0.99) * 1e3
    );
    let lone = alone(client(40, 200));
    // Half of the machine, of which the other client of its tenant takes half.
    assert!(simulation.took(1, 0.5) < 4.0 * lone + 0.2);
    simulation.drain();
}

/// Small requests that take half of the machine, and one that takes all of it for a while.
#[test]
fn a_big_request_beside_a_stream_of_small_ones_is_done_in_three_times_its_lone_time() {
    let lone = alone(bulk());
    let seconds = COST.seconds(Work::all(small().lengths));
    let stream = Client {
        every: Some(seconds),
        ..small()
    };
    let big = Client {
        starts: 20.0,
        every: Some(1e9),
        ..bulk()
    };
    let mut simulation = Simulation::new(2, vec![stream, big]);
    simulation.run(120.0);
    println!(
        "beside a stream: {:.2} s, alone {lone:.2} s, small {:.1} ms",
        simulation.took(1, 0.5),
        simulation.took(0, 0.5) * 1e3
    );
    assert_eq!(simulation.refused(0) + simulation.refused(1), 0);
    assert!(simulation.took(1, 0.5) <= 3.0 * lone);
    assert!(simulation.took(0, 0.99) < 0.3);
}

#[test]
fn short_batches_cost_little_throughput() {
    for (name, of) in [("short", client(32, 25)), ("long", client(32, 250))] {
        let mut simulation = Simulation::new(2, vec![of; 8]);
        simulation.run(120.0);
        let used = simulation.scored_seconds / (2.0 * 120.0);
        println!("{name}: {used:.3} of the time in sequences");
        // Batches of 100 ms have a fixed cost of 2 %.
        assert!(used >= 0.98 * 0.98, "{used}");
    }
}

/// Requests of all sizes at random, from several tenants.
fn crowd(random: &mut fastrand::Rng, load: f64, tenants: u64) -> Vec<Client> {
    let shapes = [(1, 40), (8, 25), (8, 25), (32, 60), (100, 100), (300, 200)];
    let clients = 40;
    (0..clients)
        .map(|nth| {
            let (sequences, length) = shapes[nth % shapes.len()];
            let base = client(sequences, length);
            let seconds = COST.marginal(Work::all(base.lengths.iter().copied()));
            let every = seconds * clients as f64 / (2.0 * load);
            Client {
                hints: SchedulingHints {
                    tenant: Tenant(random.u64(0..tenants)),
                    ..SchedulingHints::default()
                },
                every: Some(every * (0.8 + 0.4 * random.f64())),
                starts: every * random.f64(),
                ..base
            }
        })
        .collect()
}

fn of_model(model: usize, client: Client) -> Client {
    Client { model, ..client }
}

#[test]
fn a_small_request_waits_for_one_batch_of_another_model_at_most() {
    let idle = alone(small());
    for clients in [1, 4] {
        let mut all = vec![small()];
        all.extend(vec![of_model(1, bulk()); clients]);
        let mut simulation = Simulation::of_models(2, &[(COST, 1), (LARGE, 1)], all);
        simulation.run(300.0);
        let (median, p99) = (simulation.took(0, 0.5), simulation.took(0, 0.99));
        // What a batch of the large model takes where a full one is limited to 512 tokens.
        let batch = LARGE.seconds(Work::of(450)).max(LARGE.base / 0.05);
        println!(
            "beside {clients} of a large model: idle {idle:.4} s, median {median:.4}, p99 {p99:.4}"
        );
        assert_eq!(simulation.refused(0), 0);
        assert!(median <= idle + batch, "{median} beside {clients}");
        assert!(p99 <= idle + 2.0 * batch, "{p99} beside {clients}");
        simulation.drain();
    }
}

/// Whatever their batches cost, and however many ask for each.
#[test]
fn models_share_the_seconds_of_the_workers_by_weight() {
    for shares in [[1, 1], [1, 3], [5, 1]] {
        let mut all = vec![of_model(0, client(32, 60)); 12];
        all.extend(vec![of_model(1, client(8, 200)); 4]);
        let models = [(COST, shares[0]), (LARGE, shares[1])];
        let mut simulation = Simulation::of_models(2, &models, all);
        simulation.run(200.0);
        let [first, second] = [simulation.given[0], simulation.given[1]];
        let part = first / (first + second);
        let expected = f64::from(shares[0]) / f64::from(shares[0] + shares[1]);
        println!("shares {shares:?}: {part:.3} of the time, expected {expected:.3}");
        assert!((part - expected).abs() < 0.05, "{part} of {shares:?}");
        assert_eq!(simulation.refused(0), 0);
        simulation.drain();
    }
}

#[test]
fn a_model_that_nobody_asks_takes_nothing() {
    let run = |models: &[(Cost, u32)]| {
        let mut simulation = Simulation::of_models(2, models, vec![bulk(), small()]);
        simulation.run(60.0);
        let took = |client| simulation.of(client).map(Record::took).collect::<Vec<_>>();
        (took(0), took(1))
    };
    assert_eq!(run(&[(COST, 1)]), run(&[(COST, 1), (LARGE, 100)]));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3,
        rng_seed: RngSeed::Fixed(3),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_request_is_done_about_when_it_was_expected(
        seed in any::<u64>(),
        load in prop::sample::select(vec![0.5, 0.8, 2.0]),
        tenants in 1_u64..4,
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut simulation = Simulation::new(2, crowd(&mut random, load, tenants));
        simulation.run(300.0);
        simulation.drain();
        let settled = simulation.records.iter().filter(|record| record.asked > 60.0);
        let errors = settled.filter_map(|record| {
            // A batch more or less is no mistake.
            let off = (record.took()? - record.expected).abs() - 0.1;
            Some(off.max(0.0) / record.expected)
        });
        let errors: Vec<f64> = errors.collect();
        let p90 = at(errors.clone(), 0.9);
        println!("load {load}, {tenants} tenants: {} requests, error median {:.2}, p90 {p90:.2}", errors.len(), at(errors, 0.5));
        prop_assert!(p90 <= 0.3, "load {load}, {tenants} tenants: {p90}");
    }

    #[test]
    fn under_overload_answers_come_in_time(seed in any::<u64>()) {
        let mut random = fastrand::Rng::with_seed(seed);
        let shape = client(32, 100);
        let seconds = COST.marginal(Work::all(shape.lengths.iter().copied()));
        let clients = 50;
        let every = seconds * clients as f64 / 20.0;
        let all = (0..clients).map(|_| Client {
            every: Some(every * (0.8 + 0.4 * random.f64())),
            starts: every * random.f64(),
            ..shape.clone()
        });
        let mut simulation = Simulation::new(2, all.collect());
        simulation.run(60.0);
        let used = simulation.scored_seconds / 120.0;
        simulation.drain();
        let took: Vec<f64> = simulation.records.iter().filter_map(Record::took).collect();
        let median = at(took, 0.5);
        println!("tenfold overload: median {median:.2} s, {used:.3} of the time in sequences");
        prop_assert!(median <= MAX_DELAY);
        prop_assert!(used > 0.95);
    }

    /// Also where two models share the machine.
    #[test]
    fn a_request_beside_another_model_is_done_about_when_it_was_expected(
        seed in any::<u64>(),
        load in prop::sample::select(vec![0.5, 0.8, 2.0]),
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        // Half of the load is for each, of which a token of the second costs ten times as much.
        let mut all = crowd(&mut random, load / 2.0, 2);
        let slow = crowd(&mut random, load / 20.0, 2);
        all.extend(slow.into_iter().map(|client| of_model(1, client)));
        let mut simulation = Simulation::of_models(2, &[(COST, 1), (LARGE, 1)], all);
        simulation.run(300.0);
        simulation.drain();
        let settled = simulation.records.iter().filter(|record| record.asked > 60.0);
        let errors: Vec<f64> = settled
            .filter_map(|record| {
                // A batch of the slower model more or less is no mistake.
                let off = (record.took()? - record.expected).abs() - 0.3;
                Some(off.max(0.0) / record.expected)
            })
            .collect();
        let p90 = at(errors.clone(), 0.9);
        println!("load {load}: {} requests, error median {:.2}, p90 {p90:.2}", errors.len(), at(errors, 0.5));
        prop_assert!(p90 <= 0.5, "load {load}: {p90}");
    }

    /// With any models, requests and weights, nothing is lost, and a model for which something always waits gets at
    /// least its share of the time, but for a batch of each.
    #[test]
    fn no_model_is_starved(
        seed in any::<u64>(),
        shares in prop::collection::vec(1_u32..10, 2..5),
        slowness in prop::collection::vec(1.0_f64..20.0, 5),
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        let models = shares.iter().zip(&slowness).map(|(&share, &slow)| {
            let cost = Cost {
                base: COST.base * slow,
                per_token: COST.per_token * slow,
                per_square: COST.per_square * slow,
            };
            (cost, share)
        });
        let models: Vec<_> = models.collect();
        // The first always has something waiting; the others come and go.
        let mut all = vec![of_model(0, client(64, 80)); 4];
        for model in 1..models.len() {
            let every = random.bool().then(|| 0.5 + 4.0 * random.f64());
            let sequences = random.usize(1..80);
            let length = random.usize(10..300);
            all.push(Client { every, ..of_model(model, client(sequences, length)) });
        }
        let mut simulation = Simulation::of_models(2, &models, all);
        simulation.run(200.0);
        let total: f64 = simulation.given.iter().sum();
        let share = f64::from(shares[0]) / f64::from(shares.iter().sum::<u32>());
        let part = simulation.given[0] / total;
        println!("{part:.3} of the time, at least {share:.3}");
        prop_assert!(part >= 0.9 * share, "{part} of {share}");
        simulation.drain();
    }
}
