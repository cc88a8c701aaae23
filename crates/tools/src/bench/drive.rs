//! Load generation: a number of clients (closed loop), or a request rate (open loop).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::record::{Outcome, Sample, Window};
use super::target::Target;
use super::text::Texts;

/// Maximum number of unanswered requests of an open loop, because sockets are limited. The latency of a
/// request that waits for others still counts from when it was due.
const MAX_IN_FLIGHT: usize = 4096;
/// Pause of a client after a failed request, unless the response names another one.
const BACKOFF: Duration = Duration::from_millis(100);
/// Shortest and longest pause that a response can ask for: no client spins or sleeps through the run.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(5));

/// Number of requests so far, for a progress bar.
#[derive(Debug, Default)]
pub struct Progress {
    /// Answered requests.
    pub answered: AtomicU64,
    /// Refused, failed and lost requests.
    pub refused: AtomicU64,
}

impl Progress {
    fn note(&self, outcome: &Outcome) {
        let count = match outcome {
            Outcome::Answered { .. } => &self.answered,
            Outcome::Status { .. } | Outcome::Lost(_) => &self.refused,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Requests and where they are sent.
#[derive(Debug, Clone)]
pub struct Load<T> {
    /// The server or engine to measure.
    pub target: T,
    /// The requests.
    pub texts: Texts,
    /// Counts every request.
    pub progress: Arc<Progress>,
}

impl<T: Target> Load<T> {
    /// The same load with other texts of the same kind.
    #[must_use]
    pub fn apart(&self, by: u64) -> Self {
        Self {
            texts: self.texts.clone().apart(by),
            ..self.clone()
        }
    }

    /// Sends the request of this number at `intended`. Times count from `origin`.
    async fn one(&self, number: u64, origin: Instant, intended: Option<Instant>) -> Sample {
        let request = self.texts.request(number);
        let (pairs, tokens) = (request.documents.len() as u64, request.tokens);
        let ready = self.target.prepare(request);
        if let Some(intended) = intended {
            sleep_until(intended).await;
        }
        let sent = Instant::now();
        let outcome = self.target.send(ready).await;
        let done = Instant::now();
        self.progress.note(&outcome);
        Sample {
            intended: intended.unwrap_or(sent) - origin,
            sent: sent - origin,
            done: done - origin,
            outcome,
            pairs,
            tokens,
        }
    }

    /// One request by itself.
    pub async fn alone(&self, number: u64) -> Sample {
        self.one(number, Instant::now(), None).await
    }

    /// Requests one after the other for `duration`, and at least `requests` of them.
    pub async fn sequential(&self, requests: usize, duration: Duration) -> Vec<Sample> {
        let origin = Instant::now();
        let mut samples = Vec::new();
        while samples.len() < requests || origin.elapsed() < duration {
            let sample = self.one(samples.len() as u64, origin, None).await;
            tokio::time::sleep(pause(&sample.outcome)).await;
            samples.push(sample);
        }
        samples
    }

    /// `clients` that each wait for a response before they send the next request, until the end of
    /// `window`.
    pub async fn closed(&self, clients: usize, window: Window) -> Vec<Sample> {
        self.until(clients, move |elapsed| elapsed >= window.end)
            .await
    }

    /// The same, until `over` is true for the time since the start.
    pub async fn until(
        &self,
        clients: usize,
        over: impl Fn(Duration) -> bool + Clone + Send + Sync + 'static,
    ) -> Vec<Sample> {
        let origin = Instant::now();
        let next = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            let (load, next, over) = (self.clone(), next.clone(), over.clone());
            tasks.spawn(async move {
                let mut samples = Vec::new();
                while !over(origin.elapsed()) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let sample = load.one(number, origin, None).await;
                    let wake = Instant::now() + pause(&sample.outcome);
                    samples.push(sample);
                    // In short steps, so that a long pause does not outlast the run.
                    while Instant::now() < wake && !over(origin.elapsed()) {
                        sleep_until(wake.min(Instant::now() + BACKOFF)).await;
                    }
                }
                samples
            });
        }
        tasks.join_all().await.into_iter().flatten().collect()
    }

    /// Requests at the times of `arrivals`, regardless of earlier responses. Ends with the last response.
    pub async fn open(&self, arrivals: &[Duration]) -> Vec<Sample> {
        let origin = Instant::now();
        let turns = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        let mut tasks = JoinSet::new();
        for (number, arrival) in (0_u64..).zip(arrivals) {
            let intended = origin + *arrival;
            // Slightly ahead, so that the request is ready when it is due.
            sleep_until(intended.checked_sub(AHEAD).unwrap_or(origin)).await;
            let turn = turns.clone().acquire_owned().await;
            let load = self.clone();
            tasks.spawn(async move {
                let _turn = turn;
                load.one(number, origin, Some(intended)).await
            });
        }
        tasks.join_all().await
    }
}

/// How long a client waits after a request.
fn pause(outcome: &Outcome) -> Duration {
    let (shortest, longest) = RETRY_AFTER;
    match outcome {
        Outcome::Answered { .. } => Duration::ZERO,
        Outcome::Status {
            retry_after: Some(wait),
            ..
        } => (*wait).clamp(shortest, longest),
        Outcome::Status { .. } | Outcome::Lost(_) => BACKOFF,
    }
}

/// How long before it is due a request of an open loop is prepared.
const AHEAD: Duration = Duration::from_millis(5);

/// Stops clients that run beside others.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Ends each client after its current request.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`Stop::stop`] was called.
    pub fn stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Arrival times of a Poisson process of `rate` requests per second until `end`: many independent clients.
pub fn poisson(rate: f64, end: Duration, seed: u64) -> Vec<Duration> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut time = 0.0;
    let mut arrivals = Vec::new();
    loop {
        // The logarithm of zero would be an infinite gap.
        time -= (1.0 - random.f64()).ln() / rate;
        if time >= end.as_secs_f64() {
            return arrivals;
        }
        arrivals.push(Duration::from_secs_f64(time));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::Summary;
    use crate::bench::text::{Kind, Request, Source};

    const SECOND: Duration = Duration::from_secs(1);

    /// Answers requests one by one, each after `takes`. The clock is paused in tests.
    #[derive(Clone)]
    struct Slow {
        takes: Duration,
        free: Arc<tokio::sync::Mutex<()>>,
    }

    impl Target for Slow {
        type Ready = ();

        fn prepare(&self, _: Request) {}

        async fn send(&self, (): ()) -> Outcome {
            let _turn = self.free.lock().await;
            tokio::time::sleep(self.takes).await;
            Outcome::Answered { tokens: None }
        }
    }

    fn load(takes: Duration) -> Load<Slow> {
        Load {
            target: Slow {
                takes,
                free: Arc::default(),
            },
            texts: Texts::new(Source::BuiltIn(Kind::Short), 1).with_documents(Some(2)),
            progress: Arc::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_loop_measures_the_throughput() {
        let window = Window::new(SECOND, SECOND * 4);
        let load = load(SECOND / 10);
        let summary = Summary::of(&load.closed(3, window).await, window);
        // Ten per second; each of three clients waits for two others.
        assert!((summary.pairs_per_second - 20.0).abs() < 0.7, "{summary:?}");
        assert!((summary.latency_ms.p50 - 300.0).abs() < 4.0, "{summary:?}");
        assert!(load.progress.answered.load(Ordering::Relaxed) >= 50);
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_loop_does_not_wait_for_answers() {
        // One per second is answered, two per second arrive: the latency grows.
        let arrivals: Vec<_> = (0..20).map(|n| SECOND / 2 * n).collect();
        let mut samples = load(SECOND).open(&arrivals).await;
        samples.sort_by_key(|sample| sample.intended);
        assert_eq!(samples.len(), 20);
        for (sample, arrival) in samples.iter().zip(&arrivals) {
            assert!(sample.intended.abs_diff(*arrival) < Duration::from_millis(2));
        }
        let last = samples.iter().map(|s| s.done - s.intended).max().unwrap();
        assert!((last.as_secs_f64() - 10.5).abs() < 0.1, "{last:?}");
    }

    /// Refuses every request at once.
    #[derive(Clone)]
    struct Refusing(Option<Duration>);

    impl Target for Refusing {
        type Ready = ();

        fn prepare(&self, _: Request) {}

        async fn send(&self, (): ()) -> Outcome {
            Outcome::Status {
                status: 429,
                reason: "overloaded".to_owned(),
                retry_after: self.0,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn clients_wait_as_long_as_a_refusal_says_within_bounds() {
        for (retry_after, expected) in [
            (Some(SECOND * 2), 5),
            (Some(SECOND * 3600), 2),
            (Some(Duration::ZERO), 1000),
            (None, 100),
        ] {
            let load = Load {
                target: Refusing(retry_after),
                texts: load(SECOND).texts,
                progress: Arc::default(),
            };
            let start = Instant::now();
            let window = Window::new(Duration::ZERO, SECOND * 10);
            let refused = load.closed(1, window).await.len();
            // The timer of a paused clock counts in milliseconds, and rounds up.
            assert!(
                refused <= expected && refused * 10 >= expected * 9,
                "{retry_after:?}: {refused}"
            );
            assert!(start.elapsed() <= SECOND * 10 + BACKOFF);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn sequential_requests_go_on_until_there_are_enough() {
        let load = load(SECOND);
        assert_eq!(load.sequential(3, SECOND / 2).await.len(), 3);
        assert_eq!(load.sequential(1, SECOND * 9 / 2).await.len(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn clients_stop_when_told() {
        let stop = Stop::default();
        let load = load(SECOND);
        let clients = tokio::spawn({
            let stop = stop.clone();
            async move { load.until(2, move |_| stop.stopped()).await }
        });
        tokio::time::sleep(SECOND * 5).await;
        stop.stop();
        assert!((5..=7).contains(&clients.await.unwrap().len()));
    }

    #[test]
    fn arrivals_have_the_rate_and_the_spread_of_a_poisson_process() {
        let arrivals = poisson(50.0, SECOND * 200, 3);
        assert!(
            (9_700..10_300).contains(&arrivals.len()),
            "{}",
            arrivals.len()
        );
        let gaps: Vec<f64> = arrivals
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).as_secs_f64())
            .collect();
        let count = gaps.len() as f64;
        let mean = gaps.iter().sum::<f64>() / count;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / count;
        // The standard deviation of an exponential distribution is its mean.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05);
        assert_eq!(arrivals, poisson(50.0, SECOND * 200, 3));
    }
}
