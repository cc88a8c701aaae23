//! Measuring a server, or the engine in this process: loads, what became of each request, figures.
//!
//! Sending is here and in [`drive`]; what is concluded from it is decided by pure functions in the
//! other modules.

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
use fairness::Fairness;
use overload::Overload;
use record::{Outcome, Sample, Summary, Window};
use target::Target;
use text::{Kind, Source, Texts};

/// Documents that the small client of the fairness run sends at a time.
const SMALL_DOCUMENTS: usize = 8;
/// Documents that the big one sends at a time.
const BULK_DOCUMENTS: usize = 256;
/// Clients that find out the capacity before it is exceeded.
const CAPACITY_CLIENTS: usize = 8;
/// How many times the capacity an overload run offers.
const OVERLOAD: f64 = 10.0;

/// How requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// Each of so many clients waits for its answer before it sends again.
    Clients(usize),
    /// So many requests a second on average, whether or not earlier ones were answered.
    RatePerSecond(f64),
}

/// How long.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Before anything counts.
    pub warm_up: Duration,
    /// What counts.
    pub duration: Duration,
}

impl Times {
    fn window(self) -> Window {
        Window::new(self.warm_up, self.duration)
    }
}

/// One load for some time.
pub async fn steady<T: Target>(load: &Load<T>, pace: Pace, times: Times, seed: u64) -> Summary {
    let window = times.window();
    let samples = match pace {
        Pace::Clients(clients) => load.closed(clients, window).await,
        Pace::RatePerSecond(rate) => load.open(&poisson(rate, window.end, seed)).await,
    };
    Summary::of(&samples, window)
}

/// The most documents of this kind that one request can hold with 95 % of answers within `target`,
/// one request at a time.
///
/// # Errors
/// How a request ended that was not answered.
pub async fn budget<T: Target>(
    load: &Load<T>,
    target: Duration,
    max: usize,
) -> Result<Search, String> {
    let mut search = Search::new(max);
    while let Some(documents) = search.next() {
        let mut trial = load.clone();
        trial.texts = load
            .texts
            .clone()
            .apart(documents as u64)
            .with_documents(Some(documents));
        let mut late = 0;
        for number in 0..TRIALS {
            let sample = trial.alone(number).await;
            match sample.outcome {
                Outcome::Answered { .. } => {}
                Outcome::Status { status, reason } => {
                    return Err(format!(
                        "a request of {documents} documents got {status} {reason}"
                    ));
                }
                Outcome::Lost(reason) => return Err(reason),
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

/// A small client by itself, then beside one that sends a great many abstracts at a time.
pub async fn fairness<T: Target>(
    target: &T,
    times: Times,
    seed: u64,
    progress: &Arc<Progress>,
) -> Fairness {
    let load = |kind, documents, part| Load {
        target: target.clone(),
        texts: Texts::new(Source::BuiltIn(kind), seed)
            .apart(part)
            .with_documents(Some(documents)),
        progress: progress.clone(),
    };
    let window = times.window();
    let small = load(Kind::Short, SMALL_DOCUMENTS, 1);
    let idle = Summary::of(&small.closed(1, window).await, window);

    let stop = Stop::default();
    let bulk = tokio::spawn({
        let (bulk, stop) = (load(Kind::Passage, BULK_DOCUMENTS, 2), stop.clone());
        async move { bulk.until(1, move |_| stop.stopped()).await }
    });
    let small = load(Kind::Short, SMALL_DOCUMENTS, 3);
    let beside = Summary::of(&small.closed(1, window).await, window);
    stop.stop();
    let bulk = bulk.await.unwrap_or_default();
    Fairness {
        bulk: Summary::of(&bulk, window),
        idle,
        beside,
    }
}

/// Finds out how much the target does, then offers it ten times that.
pub async fn overload<T: Target>(load: &Load<T>, times: Times, seed: u64) -> Overload {
    let mut busy = load.clone();
    busy.texts = load.texts.clone().apart(1);
    let probe = Window::new(times.warm_up, times.duration / 4);
    let capacity = Summary::of(&busy.closed(CAPACITY_CLIENTS, probe).await, probe);
    let rate = OVERLOAD * capacity.requests_per_second;
    let window = Window::new(Duration::ZERO, times.duration);
    let samples: Vec<Sample> = match rate > 0.0 {
        true => load.open(&poisson(rate, window.end, seed)).await,
        false => Vec::new(),
    };
    Overload::of(&capacity, rate, &samples, window)
}
