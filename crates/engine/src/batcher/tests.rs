//! Workers that panic. Places outside the model panic where a test plants it.

use std::pin::Pin;
use std::task::{Context, Waker};

use super::*;
use crate::config::CacheConfig;
use crate::cost::Costs;
use crate::plan::{BatchLimits, SHARE_ABOVE};
use rerankd_core::Batch;
use rerankd_runtime::{LayerHook, ScoreError};

/// The logit of a sequence is its first token id.
struct FirstToken;

impl Scorer for FirstToken {
    fn score(&mut self, batch: &Batch) -> Result<Vec<f32>, ScoreError> {
        let mut start = 0;
        let mut logits = Vec::new();
        for &length in batch.lengths() {
            let id = batch.ids()[start];
            logits.push(if id == 0 { f32::NAN } else { id as f32 });
            start += length;
        }
        Ok(logits)
    }
}

/// Stops between its two layers for texts of more than [`LONG`] tokens.
struct TwoLayers {
    nested: Option<Box<dyn Scorer>>,
    hook: Option<LayerHook>,
    /// Sent when a long batch has run its first layer; the second begins when something comes back.
    stops: Stops,
}

type Stops = Option<(std::sync::mpsc::Sender<()>, std::sync::mpsc::Receiver<()>)>;

const LONG: usize = 40;

impl Scorer for TwoLayers {
    fn score(&mut self, batch: &Batch) -> Result<Vec<f32>, ScoreError> {
        if batch.tokens() > LONG
            && let (Some(hook), Some((reached, go))) = (&self.hook, &self.stops)
        {
            for _ in 0..2 {
                reached.send(()).unwrap();
                go.recv().unwrap();
                hook();
            }
        }
        FirstToken.score(batch)
    }

    fn on_layer(&mut self, hook: LayerHook) {
        self.hook = Some(hook);
    }

    fn nested(&mut self) -> Option<&mut (dyn Scorer + 'static)> {
        self.nested.as_deref_mut()
    }

    fn take_nested(&mut self) -> Option<Box<dyn Scorer>> {
        self.nested.take()
    }
}

struct Bench {
    batcher: ModelBatcher,
    _workers: Batcher,
    cache: Arc<ScoreCache>,
    metrics: Arc<Metrics>,
}

impl Bench {
    fn new(workers: usize) -> Self {
        let scorer = |_| Box::new(FirstToken) as Box<dyn Scorer>;
        Self::with((0..workers).map(scorer).collect())
    }

    fn with(scorers: Vec<Box<dyn Scorer>>) -> Self {
        let workers = scorers.len();
        let metrics = Metrics::new();
        let limits = CacheConfig {
            size: 1 << 20,
            ..CacheConfig::default()
        };
        let cache = Arc::new(ScoreCache::new(&limits, metrics.cache_bytes.clone()));
        let config = LaneConfig {
            labels: 1,
            workers,
            limits: BatchLimits {
                max_tokens: 64,
                max_seconds: f64::INFINITY,
                share_above: SHARE_ABOVE,
            },
            costs: Costs::guess(workers),
            share: 1,
            is_preemptible: false,
        };
        let admission = AdmissionLimits {
            memory: Size {
                tokens: usize::MAX,
                bytes: usize::MAX,
            },
            max_delay: f64::INFINITY,
        };
        let delay = QueueDelay::new(metrics.queue_delay_seconds.clone());
        let batcher = Batcher::start(admission, cache.clone(), delay, metrics.clone());
        let model = batcher.add(config, scorers, "test");
        Self {
            batcher: model,
            _workers: batcher,
            cache,
            metrics,
        }
    }

    fn plant(&self, place: &'static str, times: usize) {
        let mut faults = self.batcher.shared.faults.lock().unwrap();
        faults.extend(std::iter::repeat_n(place, times));
    }

    async fn score(&self, ids: &[u32]) -> Result<Vec<f32>, BatchError> {
        self.score_texts(ids, 4).await
    }

    /// Scores texts of so many tokens.
    async fn score_texts(&self, ids: &[u32], length: usize) -> Result<Vec<f32>, BatchError> {
        let pair = |&id: &u32| {
            let encoding = Encoding {
                ids: vec![id; length],
                type_ids: vec![0; length],
            };
            (PairKey(id.into()), encoding)
        };
        let demand = Demand {
            hints: SchedulingHints::default(),
            work: Work::all(vec![length; ids.len()]),
            bytes: 0,
            tokenizing: Expected::new(0.0, 0.0),
        };
        let permit = self.batcher.admit(demand).unwrap();
        let pairs = ids.iter().map(pair).collect();
        self.batcher
            .score(pairs, 0, SchedulingHints::default(), permit)
            .await
    }
}

#[tokio::test]
async fn a_worker_that_panics_fails_its_batch_and_serves_the_next() {
    for place in ["batch taken", "batch scored"] {
        let bench = Bench::new(1);
        bench.plant(place, 1);
        let failed = bench.score(&[7]).await;
        assert_eq!(
            failed,
            Err(BatchError::Failed("the worker panicked".into())),
            "{place}"
        );
        // The same pair: it must not join the lost job.
        assert_eq!(bench.score(&[7]).await.unwrap(), [7.0], "{place}");
        assert_eq!(bench.metrics.worker_restarts.get(), 1);
        assert_eq!(bench.metrics.workers.get(), 1);
        assert!(bench.batcher.can_serve());
        bench.batcher.idle().await;
    }
}

#[tokio::test]
async fn a_worker_that_only_panics_is_given_up_and_nobody_waits_for_it() {
    let bench = Bench::new(1);
    bench.plant("batch taken", worker::MAX_PANICS);
    for _ in 0..worker::MAX_PANICS {
        assert!(bench.score(&[7]).await.is_err());
    }
    // The last panic has been answered before the worker is retired.
    while bench.batcher.can_serve() {
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.score(&[7]).await, Err(BatchError::NoWorkers));
    assert_eq!(bench.metrics.workers.get(), 0);
    bench.batcher.idle().await;
}

#[tokio::test]
async fn changes_of_models_do_not_wait_for_a_worker_whose_thread_has_ended() {
    let bench = Bench::new(2);
    bench.plant("batch taken", 2 * worker::MAX_PANICS);
    // Until one of the two is given up.
    let alive = || bench.batcher.shared.lock().scheduler.workers.alive();
    while alive() == 2 {
        assert!(bench.score(&[7]).await.is_err());
        tokio::task::yield_now().await;
    }
    bench.batcher.shared.faults.lock().unwrap().clear();
    let shared = bench.batcher.shared.clone();
    drop(bench.batcher);
    // The other one makes the change; for the one that has ended there is none.
    while shared.lock().changes.iter().any(|left| !left.is_empty()) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_logit_that_is_not_finite_is_not_cached_and_fails_its_request_alone() {
    let bench = Bench::new(1);
    let (bad, good) = tokio::join!(bench.score(&[0]), bench.score(&[3]));
    assert!(matches!(bad, Err(BatchError::Failed(_))));
    assert_eq!(good.unwrap(), [3.0]);
    assert_eq!(bench.cache.get(PairKey(0)), None);
    assert!(bench.cache.get(PairKey(3)).is_some());
    assert_eq!(bench.metrics.failed_pairs.get(), 1);
    assert_eq!(bench.metrics.failed_batches.get(), 0);
}

/// A request that was admitted is ahead of the next, whether it is still tokenized or gone by then.
#[tokio::test]
async fn an_admitted_request_counts_until_it_leaves() {
    let bench = Bench::new(1);
    let demand = |tokens| Demand {
        hints: SchedulingHints::default(),
        work: Work::of(tokens),
        bytes: 0,
        tokenizing: Expected::new(0.0, 0.0),
    };
    let delay = || bench.metrics.queue_delay_seconds.get();
    let first = bench.batcher.admit(demand(100)).unwrap();
    assert!(delay() > 0.1);
    let second = bench.batcher.admit(demand(100)).unwrap();
    assert!(delay() > 0.2);
    drop((first, second));
    assert_eq!(delay(), 0.0);
    assert_eq!(bench.metrics.queue_tokens.get(), 0);
}

/// Starts a request, and says whether it waits.
fn waits(request: Pin<&mut impl Future>) -> bool {
    request
        .poll(&mut Context::from_waker(Waker::noop()))
        .is_pending()
}

/// A bench with one worker that stops between the layers of long texts, and the channels of its stops.
fn interruptible() -> (
    Bench,
    std::sync::mpsc::Receiver<()>,
    std::sync::mpsc::Sender<()>,
) {
    let (reached, stopped) = std::sync::mpsc::channel();
    let (go, goes) = std::sync::mpsc::channel();
    let scorer = TwoLayers {
        nested: Some(Box::new(FirstToken)),
        hook: None,
        stops: Some((reached, goes)),
    };
    (Bench::with(vec![Box::new(scorer)]), stopped, go)
}

#[tokio::test]
async fn a_small_request_is_answered_between_two_layers_of_a_long_text() {
    let (bench, stopped, go) = interruptible();
    let mut long = Box::pin(bench.score_texts(&[9], 60));
    assert!(waits(long.as_mut()));
    stopped.recv().unwrap();
    let mut small = Box::pin(bench.score(&[3]));
    assert!(waits(small.as_mut()));
    go.send(()).unwrap();
    // The long text is between its layers again.
    stopped.recv().unwrap();
    assert_eq!(small.await.unwrap(), [3.0]);
    assert!(waits(long.as_mut()));
    assert_eq!(bench.metrics.preemptions.get(), 1);
    go.send(()).unwrap();
    assert_eq!(long.await.unwrap(), [9.0]);
    assert_eq!(bench.metrics.workers.get(), 1);
}

#[tokio::test]
async fn a_request_as_long_as_the_batch_does_not_interrupt_it() {
    let (bench, stopped, go) = interruptible();
    let mut long = Box::pin(bench.score_texts(&[9], 60));
    assert!(waits(long.as_mut()));
    stopped.recv().unwrap();
    let mut other = Box::pin(bench.score_texts(&[3, 4, 5, 6], LONG));
    assert!(waits(other.as_mut()));
    for _ in 0..2 {
        go.send(()).unwrap();
    }
    assert_eq!(long.await.unwrap(), [9.0]);
    assert_eq!(other.await.unwrap(), [3.0, 4.0, 5.0, 6.0]);
    assert_eq!(bench.metrics.preemptions.get(), 0);
}

#[tokio::test]
async fn a_panic_between_two_layers_fails_both_batches_and_the_worker_goes_on() {
    let (bench, stopped, go) = interruptible();
    bench.plant("nested batch taken", 1);
    let mut long = Box::pin(bench.score_texts(&[9], 60));
    assert!(waits(long.as_mut()));
    stopped.recv().unwrap();
    let mut small = Box::pin(bench.score(&[3]));
    assert!(waits(small.as_mut()));
    go.send(()).unwrap();
    let lost = Err(BatchError::Failed("the worker panicked".into()));
    assert_eq!(small.await, lost);
    assert_eq!(long.await, lost);
    assert_eq!(bench.score(&[3]).await.unwrap(), [3.0]);
    assert_eq!(bench.metrics.worker_restarts.get(), 1);
    bench.batcher.idle().await;
}
