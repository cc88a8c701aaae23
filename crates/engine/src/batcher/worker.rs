//! A thread that scores one batch after the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tokio::time::Instant;

use super::batch::{Next, complete, message, note, record_begun, run_batch};
use super::preemption::Preemption;
use super::{Shared, State};
use rerankd_runtime::Scorer;

/// Panics in a row, without a finished batch between them, after which a worker is given up.
pub(super) const MAX_PANICS: usize = 8;

/// Serves batches until the batcher closes. After a panic the requests of the lost batch fail, and the
/// worker starts again with the same scorer.
pub(super) fn run(shared: Arc<Shared>, number: usize, mut scorer: Box<dyn Scorer>) {
    let preemption = scorer.take_nested().map(|nested| {
        let preemption = Preemption::new(shared.clone(), number, nested);
        scorer.on_layer(preemption.hook());
        preemption
    });
    let shared = &*shared;
    // The queue's times are those of the runtime, wherever they are read.
    let _clock = shared.runtime.as_ref().map(|runtime| runtime.enter());
    // Also when a panic ends this thread nevertheless.
    let _retire = Retire { shared, number };
    let mut panics = 0;
    while panics < MAX_PANICS {
        let preemption = preemption.as_deref();
        let serve = || serve(shared, number, scorer.as_mut(), preemption, &mut panics);
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

fn serve(
    shared: &Shared,
    number: usize,
    scorer: &mut dyn Scorer,
    preemption: Option<&Preemption>,
    panics: &mut usize,
) {
    while let Some(batch) = next_batch(shared, number) {
        shared.fault("batch taken");
        if let Some(preemption) = preemption {
            preemption.begin(batch.seconds);
        }
        let mut scored = run_batch(shared, scorer, &batch);
        if let Some(preemption) = preemption {
            scored.took = scored.took.saturating_sub(preemption.end());
        }
        shared.fault("batch scored");
        let finish = |state: &mut State| state.scheduler.workers.finish(number);
        complete(shared, batch, scored, finish);
        *panics = 0;
    }
}

/// Waits for work. `None` when the batcher has closed.
fn next_batch(shared: &Shared, number: usize) -> Option<Next> {
    let mut state = shared.lock();
    loop {
        if state.closed {
            return None;
        }
        let taken = state.scheduler.take(number, Instant::now());
        note(shared, &state, &taken);
        if taken.jobs.is_empty() && !taken.more {
            state = shared
                .work
                .wait(state)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            continue;
        }
        let scheduler = &state.scheduler;
        let busy = scheduler.workers.busy();
        let alone = busy == 1 && scheduler.queue.waiting().sequences == 0;
        drop(state);
        record_begun(&taken);
        if !taken.jobs.is_empty() {
            return Some(Next {
                jobs: taken.jobs,
                seconds: taken.seconds,
                busy,
                alone,
            });
        }
        state = shared.lock();
    }
}
