//! Runs short batches between two layers of a long one.
//!
//! A worker cannot abandon a batch, and a long text takes a tenth of a second or more. Between two layers, the worker
//! checks whether a small request is next, and runs it first, on a second session.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::batch::{self, Next};
use super::{Model, Shared};
use crate::plan::largest_part;
use rerankd_runtime::{LayerHook, Scorer};

/// What may interrupt one worker's batches of a model.
pub(super) struct Preemption {
    shared: Arc<Shared>,
    model: Arc<Model>,
    number: usize,
    inner: Mutex<Inner>,
}

struct Inner {
    scorer: Box<dyn Scorer>,
    /// Seconds that the running batch takes without interruptions.
    running: f64,
    /// For how long it was interrupted.
    spent: Duration,
    /// An interruption panicked, and its sequences are lost.
    panicked: bool,
}

impl Preemption {
    /// `scorer` runs what interrupts the batches of `model` on worker `number`.
    pub fn new(
        shared: Arc<Shared>,
        model: Arc<Model>,
        number: usize,
        scorer: Box<dyn Scorer>,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared,
            model,
            number,
            inner: Mutex::new(Inner {
                scorer,
                running: 0.0,
                spent: Duration::ZERO,
                panicked: false,
            }),
        })
    }

    /// What the worker's own scorer calls between two layers.
    pub fn hook(self: &Arc<Self>) -> LayerHook {
        let this = self.clone();
        Arc::new(move || this.between_layers())
    }

    /// The worker begins a batch that takes about so many seconds.
    pub fn begin(&self, seconds: f64) {
        let mut inner = self.lock();
        inner.running = seconds;
        inner.spent = Duration::ZERO;
    }

    /// The worker's batch is done. Returns for how long it was interrupted.
    ///
    /// # Panics
    /// If an interruption panicked, so that the worker recovers as from any panic of its own.
    pub fn end(&self) -> Duration {
        let mut inner = self.lock();
        let panicked = std::mem::take(&mut inner.panicked);
        let spent = inner.spent;
        drop(inner);
        assert!(!panicked, "a batch between two layers panicked");
        spent
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn between_layers(&self) {
        let mut inner = self.lock();
        let run = AssertUnwindSafe(|| self.run_waiting(&mut inner));
        if let Err(panic) = catch_unwind(run) {
            inner.panicked = true;
            drop(inner);
            resume_unwind(panic);
        }
    }

    /// Runs what may interrupt the batch now.
    fn run_waiting(&self, inner: &mut Inner) {
        let (shared, model, number) = (&*self.shared, &*self.model, self.number);
        loop {
            let part = f64::from_bits(model.next_part.load(Ordering::Relaxed));
            if part > largest_part(inner.running) {
                return;
            }
            let _clock = shared.runtime.as_ref().map(|runtime| runtime.enter());
            let started = std::time::Instant::now();
            let mut state = shared.lock();
            if state.closed {
                return;
            }
            let spent = inner.spent.as_secs_f64();
            let now = Instant::now();
            let running = (inner.running, spent);
            let taken = state.scheduler.preempt(model.id, number, running, now);
            batch::note(shared, &state, &taken);
            let busy = state.scheduler.busy_of(model.id);
            drop(state);
            batch::record_begun(&taken);
            if taken.jobs.is_empty() {
                if taken.more {
                    continue;
                }
                return;
            }
            shared.fault("nested batch taken");
            let batch = Next {
                jobs: taken.jobs,
                seconds: taken.seconds,
                busy,
                alone: false,
            };
            let scored = batch::run_batch(shared, model, inner.scorer.as_mut(), &batch);
            batch::complete(shared, model, batch, scored, |_| ());
            shared.metrics.preemptions.inc();
            inner.spent += started.elapsed();
        }
    }
}
