//! Sending requests: as fast as some clients get answers, or at a rate whatever the answers do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::record::{Outcome, Sample, Window};
use super::target::Target;
use super::text::Texts;

/// Requests of an open loop that may be unanswered at a time; their sockets are limited. One that
/// has to wait for its turn still counts from when it should have been sent.
const MAX_IN_FLIGHT: usize = 4096;

/// What has happened so far, for whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Requests that were answered.
    pub answered: AtomicU64,
    /// Requests that ended otherwise.
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

/// What to send, to whom.
#[derive(Debug, Clone)]
pub struct Load<T> {
    /// Who is measured.
    pub target: T,
    /// What is asked.
    pub texts: Texts,
    /// Told of every end.
    pub progress: Arc<Progress>,
}

impl<T: Target> Load<T> {
    /// Sends the request of this number when `intended` comes, and tells how it went. Times count
    /// from `origin`.
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

    /// `clients` that each send a request when the one before was answered, until `window` is over.
    pub async fn closed(&self, clients: usize, window: Window) -> Vec<Sample> {
        self.until(clients, move |elapsed| elapsed >= window.end)
            .await
    }

    /// The same, until `over` says so of the time since the start.
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
                    // A server that is gone would be asked without end.
                    let lost = matches!(sample.outcome, Outcome::Lost(_));
                    samples.push(sample);
                    if lost {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
                samples
            });
        }
        tasks.join_all().await.into_iter().flatten().collect()
    }

    /// Requests at the times of `arrivals`, whether or not earlier ones were answered. Ends with the
    /// last answer.
    pub async fn open(&self, arrivals: &[Duration]) -> Vec<Sample> {
        let origin = Instant::now();
        let turns = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        let mut tasks = JoinSet::new();
        for (number, arrival) in (0_u64..).zip(arrivals) {
            let intended = origin + *arrival;
            // A little ahead, so that the request is made when it has to leave.
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

/// How long before its time a request of an open loop is made.
const AHEAD: Duration = Duration::from_millis(5);

/// A stop for clients that run beside others.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Lets each client finish its request and end.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was said.
    pub fn stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Times of arrivals at `rate` a second, independent of each other, until `end`: what many clients
/// who know nothing of each other make.
pub fn poisson(rate: f64, end: Duration, seed: u64) -> Vec<Duration> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut time = 0.0;
    let mut arrivals = Vec::new();
    loop {
        // Of a number above zero, so that no gap is endless.
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

    /// Answers one request after the other, each after `takes`; the clock is paused in tests.
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
    async fn a_closed_loop_measures_what_the_server_does() {
        let window = Window::new(SECOND, SECOND * 4);
        let load = load(SECOND / 10);
        let summary = Summary::of(&load.closed(3, window).await, window);
        // Ten a second; with three clients each waits for two others.
        assert!((summary.pairs_per_second - 20.0).abs() < 0.7, "{summary:?}");
        assert!((summary.latency_ms.p50 - 300.0).abs() < 4.0, "{summary:?}");
        assert!(load.progress.answered.load(Ordering::Relaxed) >= 50);
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_loop_does_not_wait_for_answers() {
        // One a second is answered, two a second arrive: the wait grows, and is seen.
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
        // Of an exponential distribution the deviation is the mean.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05);
        assert_eq!(arrivals, poisson(50.0, SECOND * 200, 3));
    }
}
