//! The scheduler in simulated time: clients that ask again and again, and workers that take as long as the
//! cost model says.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tokio::sync::oneshot::error::TryRecvError;

use super::queue::Job;
use super::reply::Receiver;
use super::scheduler::work;
use super::*;
use crate::cost::{Cost, Estimator, duration};
use crate::plan::SHARE_ABOVE;
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

/// Requests of one kind: all alike but for their size.
#[derive(Clone)]
struct Client {
    hints: SchedulingHints,
    /// Tokens of each sequence.
    lengths: Vec<usize>,
    /// Seconds between one request and the next; `None` waits for the answer first.
    every: Option<f64>,
    starts: f64,
}

fn client(sequences: usize, length: usize) -> Client {
    Client {
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
        let costs = Costs::new(Estimator::new(COST), workers);
        Self {
            scheduler: Scheduler::new(1, workers, costs, limits, admission, gauge).preemptible(),
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
        let admitted = self.scheduler.admit(demand, now);
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
        self.scheduler.queue.release(admitted.request);
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
        self.scheduler.queue.push(arrival);
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
        let jobs = self.scheduler.take(worker, now).jobs;
        if jobs.is_empty() {
            return;
        }
        let seconds = COST.seconds(work(&jobs));
        self.scored_seconds += COST.marginal(work(&jobs));
        self.workers[worker] = Some(Running {
            jobs,
            seconds,
            busy: self.scheduler.workers.busy(),
            layers: 0,
            ends: self.now + seconds / LAYERS as f64,
            spent: 0.0,
            inner: None,
        });
    }

    /// A layer of a worker's batch ends, or the batch that ran behind one.
    fn layer_ends(&mut self, worker: usize) {
        let mut running = self.workers[worker].take().unwrap();
        match running.inner.take() {
            Some(inner) => self.complete(&inner.jobs, inner.seconds, running.busy),
            None => running.layers += 1,
        }
        if running.layers == LAYERS {
            self.complete(&running.jobs, running.seconds, running.busy);
            return self.scheduler.workers.finish(worker);
        }
        let (seconds, spent) = (running.seconds, running.spent);
        let taken = self.scheduler.preempt(worker, seconds, spent, self.at());
        running.ends = self.now + seconds / LAYERS as f64;
        if !taken.jobs.is_empty() {
            let seconds = COST.seconds(work(&taken.jobs));
            self.scored_seconds += COST.marginal(work(&taken.jobs));
            running.ends = self.now + seconds;
            running.spent += seconds;
            running.inner = Some(Inner {
                jobs: taken.jobs,
                seconds,
            });
        }
        self.workers[worker] = Some(running);
    }

    fn complete(&mut self, jobs: &[Job], seconds: f64, busy: usize) {
        let logits = vec![0.0; jobs.len()];
        self.scheduler.complete(jobs, &logits, seconds, busy);
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
        assert_eq!(self.scheduler.queue.admitted(), Work::default());
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
}
