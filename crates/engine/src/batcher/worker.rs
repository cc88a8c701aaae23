//! A thread that scores one batch after the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};

use slotmap::SecondaryMap;
use tokio::time::Instant;

use super::batch::{Next, complete, message, note, record_begun, run_batch};
use super::preemption::Preemption;
use super::queue::LaneId;
use super::{Model, ModelChange, Shared, State};
use rerankd_runtime::{Scorer, memory};

/// Panics in a row, without a finished batch between them, after which a worker is given up.
pub(super) const MAX_PANICS: usize = 8;

/// A worker's scorer of one model.
struct ModelScorer {
    model: Arc<Model>,
    scorer: Box<dyn Scorer>,
    preemption: Option<Arc<Preemption>>,
}

impl ModelScorer {
    fn new(
        shared: &Arc<Shared>,
        number: usize,
        model: Arc<Model>,
        mut scorer: Box<dyn Scorer>,
    ) -> Self {
        let preemption = scorer.take_nested().map(|nested| {
            let preemption = Preemption::new(shared.clone(), model.clone(), number, nested);
            scorer.on_layer(preemption.hook());
            preemption
        });
        Self {
            model,
            scorer,
            preemption,
        }
    }
}

type Scorers = SecondaryMap<LaneId, ModelScorer>;

/// Serves batches until the batcher closes. After a panic the requests of the lost batch fail, and the
/// worker starts again with the same scorers.
pub(super) fn run(shared: Arc<Shared>, number: usize) {
    let shared = &shared;
    // The queue's times are those of the runtime, wherever they are read.
    let _clock = shared.runtime.as_ref().map(|runtime| runtime.enter());
    // Also when a panic ends this thread nevertheless.
    let _retire = Retire { shared, number };
    let mut scorers = Scorers::new();
    let mut panics = 0;
    while panics < MAX_PANICS {
        let serve = || serve(shared, number, &mut scorers, &mut panics);
        // What a panic may leave half done is repaired by `recover`.
        let Err(panic) = catch_unwind(AssertUnwindSafe(serve)) else {
            return;
        };
        panics += 1;
        shared.metrics.worker_restarts.inc();
        tracing::error!(worker = number, panic = message(&*panic), "worker panicked");
        shared.recover(number);
    }
}

/// Takes a worker off the list when its thread ends.
struct Retire<'a> {
    shared: &'a Shared,
    number: usize,
}

impl Drop for Retire<'_> {
    fn drop(&mut self) {
        let retire = || self.shared.retire(self.number);
        if catch_unwind(AssertUnwindSafe(retire)).is_err() {
            tracing::error!(worker = self.number, "worker could not be retired");
        }
    }
}

fn serve(shared: &Arc<Shared>, number: usize, scorers: &mut Scorers, panics: &mut usize) {
    loop {
        match next(shared, number) {
            Task::Change(ModelChange::Add(model, scorer)) => {
                let id = model.id;
                scorers.insert(id, ModelScorer::new(shared, number, model, scorer));
            }
            Task::Change(ModelChange::Remove(id)) => {
                if scorers.remove(id).is_some() {
                    memory::give_back();
                }
            }
            Task::Batch(id, batch) => {
                let own = scorers.get_mut(id);
                let own = own.expect("a model's scorer comes before its batches");
                run_next(shared, number, own, batch);
                *panics = 0;
            }
            Task::Close => return,
        }
    }
}

fn run_next(shared: &Shared, number: usize, own: &mut ModelScorer, batch: Next) {
    shared.fault("batch taken");
    let preemption = own.preemption.as_deref();
    if let Some(preemption) = preemption {
        preemption.begin(batch.seconds);
    }
    let mut scored = run_batch(shared, &own.model, own.scorer.as_mut(), &batch);
    if let Some(preemption) = preemption {
        scored.took = scored.took.saturating_sub(preemption.end());
    }
    shared.fault("batch scored");
    let finish = |state: &mut State| state.scheduler.workers.finish(number);
    complete(shared, &own.model, batch, scored, finish);
}

/// What a worker does next.
enum Task {
    Change(ModelChange),
    /// Score a batch of this model.
    Batch(LaneId, Next),
    Close,
}

/// Waits for something to do.
fn next(shared: &Shared, number: usize) -> Task {
    let mut state = shared.lock();
    loop {
        if state.closed {
            return Task::Close;
        }
        // First, so that a batch is only taken of models whose scorers are there. One by one, so that a panic loses
        // no other.
        if let Some(change) = state.changes[number].pop_front() {
            return Task::Change(change);
        }
        let taken = state.scheduler.take(number, Instant::now());
        note(shared, &state, &taken);
        if taken.jobs.is_empty() && !taken.more {
            state = shared
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        let scheduler = &state.scheduler;
        let busy = scheduler.busy_of(taken.lane);
        let alone = scheduler.workers.busy() == 1 && scheduler.waiting() == 0;
        drop(state);
        record_begun(&taken);
        if !taken.jobs.is_empty() {
            let batch = Next {
                jobs: taken.jobs,
                seconds: taken.seconds,
                busy,
                alone,
            };
            return Task::Batch(taken.lane, batch);
        }
        state = shared.lock();
    }
}
