//! Benchmarks of a server, or of the engine in this process.
//!
//! This module and [`drive`] send requests; pure functions in the other modules evaluate the results.

pub mod bare;
pub mod budget;
pub mod drive;
pub mod fairness;
pub mod overload;
pub mod record;
pub mod report;
pub mod target;
pub mod text;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use budget::{Search, TRIALS};
use drive::{Load, Progress, Stop, poisson};
use fairness::{Fairness, Stream};
use overload::Overload;
use record::{Outcome, Sample, Summary, Window};
use target::Target;
use text::{Kind, Source, Texts};

/// Documents per request of a small client.
const SMALL_DOCUMENTS: usize = 8;
/// Bulk requests that are measured at least, however long they take.
const BULK_REQUESTS: usize = 3;
/// Number of clients that measure the capacity.
const CAPACITY_CLIENTS: usize = 8;
/// Load of an overload run, as a multiple of the capacity.
const OVERLOAD: f64 = 10.0;

/// How requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// Closed loop: this number of clients, each of which waits for a response before its next request.
    Clients(usize),
    /// Open loop: this number of requests per second on average, regardless of earlier responses.
    RatePerSecond(f64),
}

/// Duration of a measurement.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// The warm-up, which does not count.
    pub warm_up: Duration,
    /// The measured time after it.
    pub duration: Duration,
}

/// A request of [`budget()`] failed.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// It was answered with an error status.
    #[error("a request with {documents} documents returned {status} {reason}")]
    Status {
        /// Number of documents.
        documents: usize,
        /// The HTTP status.
        status: u16,
        /// The `error_type` of the response.
        reason: String,
    },
    /// It had no response.
    #[error("{0}")]
    Lost(String),
}

impl Times {
    fn window(self) -> Window {
        Window::new(self.warm_up, self.duration)
    }
}

/// Measures one load.
pub async fn steady<T: Target>(load: &Load<T>, pace: Pace, times: Times, seed: u64) -> Summary {
    let window = times.window();
    let samples = match pace {
        Pace::Clients(clients) => load.closed(clients, window).await,
        Pace::RatePerSecond(rate) => load.open(&poisson(rate, window.end, seed)).await,
    };
    Summary::of(&samples, window)
}

/// Searches for the largest number of documents per request, up to `max`, with which 95 % of sequential
/// requests are answered within `target`.
///
/// # Errors
/// When a request is not answered.
pub async fn budget<T: Target>(
    load: &Load<T>,
    target: Duration,
    max: usize,
) -> Result<Search, BudgetError> {
    let mut search = Search::new(max);
    while let Some(documents) = search.next() {
        let mut trial = load.apart(documents as u64);
        trial.texts = trial.texts.with_documents(Some(documents));
        let mut late = 0;
        for number in 0..TRIALS {
            let sample = trial.alone(number).await;
            match sample.outcome {
                Outcome::Answered { .. } => {}
                Outcome::Status { status, reason, .. } => {
                    return Err(BudgetError::Status {
                        documents,
                        status,
                        reason,
                    });
                }
                Outcome::Lost(reason) => return Err(BudgetError::Lost(reason)),
            }
            late += u64::from(sample.done - sample.sent > target);
            if late > budget::LATE {
                break;
            }
        }
        search.learn(documents, late <= budget::LATE);
    }
    Ok(search)
}

/// Small requests: 8 sentences each.
pub fn small<T: Target>(target: T, seed: u64, progress: Arc<Progress>) -> Load<T> {
    let texts = Texts::new(Source::BuiltIn(Kind::Short), seed);
    Load {
        target,
        texts: texts.apart(1).with_documents(Some(SMALL_DOCUMENTS)),
        progress,
    }
}

/// Bulk requests: `documents` of `words` words each.
pub fn bulk<T: Target>(
    target: T,
    documents: usize,
    words: usize,
    seed: u64,
    progress: Arc<Progress>,
) -> Load<T> {
    let texts = Texts::new(Source::BuiltIn(Kind::Passage), seed);
    Load {
        target,
        texts: texts
            .apart(2)
            .with_documents(Some(documents))
            .with_words(Some(words)),
        progress,
    }
}

/// Measures a small client, first alone, then next to each number of bulk clients.
pub async fn fairness<T: Target>(
    small: &Load<T>,
    bulk: &Load<T>,
    bulk_clients: &[usize],
    times: Times,
) -> Fairness {
    let window = times.window();
    let idle = Summary::of(&small.closed(1, window).await, window);
    let mut rounds = Vec::new();
    for (round, clients) in (1..).zip(bulk_clients) {
        let background = Background::start(bulk.apart(2 * round), *clients);
        let beside = small.apart(2 * round).closed(1, window).await;
        let bulk = background.stop().await;
        rounds.push((
            *clients,
            Summary::of(&beside, window),
            Summary::of(&bulk, window),
        ));
    }
    Fairness::new(idle, rounds)
}

/// Measures sequential bulk requests, first alone, then next to a stream of `small_clients`.
pub async fn stream<T: Target>(
    small: &Load<T>,
    bulk: &Load<T>,
    small_clients: usize,
    times: Times,
) -> Stream {
    let warm_up = Window::new(Duration::ZERO, times.warm_up);
    small.apart(2).closed(1, warm_up).await;
    let idle = bulk.sequential(BULK_REQUESTS, times.duration).await;
    let background = Background::start(small.apart(4), small_clients);
    tokio::time::sleep(times.warm_up).await;
    let beside = bulk
        .apart(2)
        .sequential(BULK_REQUESTS, times.duration)
        .await;
    let stream = background.stop().await;
    let whole = |samples: &[Sample]| {
        let end = samples.iter().map(|sample| sample.done).max();
        Window::new(Duration::ZERO, end.unwrap_or_default())
    };
    // The stream also ran during its warm-up, before the first bulk request.
    let counted = Window::new(times.warm_up, whole(&beside).end);
    Stream::new(
        small_clients,
        Summary::of(&idle, whole(&idle)),
        Summary::of(&beside, whole(&beside)),
        Summary::of(&stream, counted),
    )
}

/// Clients that send requests while others are measured.
struct Background {
    stop: Stop,
    clients: tokio::task::JoinHandle<Vec<Sample>>,
}

impl Background {
    fn start<T: Target>(load: Load<T>, clients: usize) -> Self {
        let stop = Stop::default();
        let stopped = stop.clone();
        let clients = async move { load.until(clients, move |_| stopped.stopped()).await };
        Self {
            stop,
            clients: tokio::spawn(clients),
        }
    }

    async fn stop(self) -> Vec<Sample> {
        self.stop.stop();
        self.clients.await.expect("clients do not panic")
    }
}

/// Measures the capacity, then sends ten times as much.
pub async fn overload<T: Target>(load: &Load<T>, times: Times, seed: u64) -> Overload {
    let probe = Window::new(times.warm_up, times.duration / 4);
    let busy = load.apart(1).closed(CAPACITY_CLIENTS, probe).await;
    let capacity = Summary::of(&busy, probe);
    let rate = OVERLOAD * capacity.requests_per_second;
    let window = Window::new(Duration::ZERO, times.duration);
    let samples = if rate > 0.0 {
        load.open(&poisson(rate, window.end, seed)).await
    } else {
        Vec::new()
    };
    Overload::of(&capacity, rate, &samples, window)
}

#[cfg(test)]
mod tests {
    use super::*;
    use text::Request;

    const MS: Duration = Duration::from_millis(1);

    /// One worker that takes a millisecond per document, and has room for two requests.
    #[derive(Clone)]
    struct Worker {
        free: Arc<tokio::sync::Mutex<()>>,
        room: Arc<tokio::sync::Semaphore>,
    }

    impl Worker {
        fn new() -> Self {
            Self {
                free: Arc::default(),
                room: Arc::new(tokio::sync::Semaphore::new(2)),
            }
        }
    }

    impl Target for Worker {
        type Ready = u32;

        fn prepare(&self, request: Request) -> u32 {
            u32::try_from(request.documents.len()).unwrap()
        }

        async fn send(&self, documents: u32) -> Outcome {
            let Ok(_room) = self.room.try_acquire() else {
                return Outcome::Status {
                    status: 429,
                    reason: "overloaded".to_owned(),
                    retry_after: Some(MS * 50),
                };
            };
            let _turn = self.free.lock().await;
            tokio::time::sleep(MS * documents).await;
            Outcome::Answered { tokens: None }
        }
    }

    fn loads() -> (Load<Worker>, Load<Worker>) {
        let (worker, progress) = (Worker::new(), Arc::<Progress>::default());
        (
            small(worker.clone(), 1, progress.clone()),
            bulk(worker, 100, 20, 1, progress),
        )
    }

    fn times() -> Times {
        Times {
            warm_up: MS * 500,
            duration: MS * 4000,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_client_is_compared_next_to_each_number_of_bulk_clients() {
        let (small, bulk) = loads();
        let fairness = fairness(&small, &bulk, &[1, 8], times()).await;
        assert!((fairness.idle.latency_ms.p50 - 8.0).abs() < 1.5);
        let [one, eight] = &fairness.rounds[..] else {
            panic!("two rounds: {fairness:?}");
        };
        assert_eq!((one.bulk_clients, eight.bulk_clients), (1, 8));
        // Behind one request of 100 ms; the limit is 48 ms.
        assert!((one.small.latency_ms.p50 - 108.0).abs() < 2.0, "{one:?}");
        assert_eq!((one.refused, one.bulk_refused, one.kept), (0, 0, false));
        assert!(one.bulk.pairs_per_second > 900.0, "{one:?}");
        assert!(eight.bulk_refused > 0, "{eight:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn bulk_requests_are_compared_next_to_a_stream_of_small_ones() {
        let (small, bulk) = loads();
        let stream = stream(&small, &bulk, 1, times()).await;
        assert!((stream.idle.latency_ms.p50 - 100.0).abs() < 2.0);
        assert!((stream.beside.latency_ms.p50 - 108.0).abs() < 2.0);
        assert!((stream.slowdown.unwrap() - 1.08).abs() < 0.03, "{stream:?}");
        assert!(stream.small.requests_per_second > 8.0, "{stream:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_bulk_requests_outlast_the_duration() {
        let (small, bulk) = loads();
        let short = Times {
            warm_up: Duration::ZERO,
            duration: MS * 50,
        };
        let stream = stream(&small, &bulk, 1, short).await;
        assert_eq!(stream.idle.answered(), 3);
        assert_eq!(stream.beside.answered(), 3);
    }
}
