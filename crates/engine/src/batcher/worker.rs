//! A thread that scores one batch after the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};

use slotmap::SecondaryMap;
use tokio::time::Instant;

use super::batch::{Next, complete, message, note, record_begun, run_batch};
use super::preemption::Preemption;
use super::queue::LaneId;
use super::{Mail, Model, Shared, State};
use rerankd_runtime::{Scorer, memory};

/// Panics in a row, without a finished batch between them, after which a worker is given up.
pub(super) const MAX_PANICS: usize = 8;

/// A worker's scorer of one model.
struct Seat {
    model: Arc<Model>,
    scorer: Box<dyn Scorer>,
    preemption: Option<Arc<Preemption>>,
}

impl Seat {
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

type Seats = SecondaryMap<LaneId, Seat>;

/// Serves batches until the batcher closes. After a panic the requests of the lost batch fail, and the
/// worker starts again with the same scorers.
pub(super) fn run(shared: Arc<Shared>, number: usize) {
    let shared = &shared;
    // The queue's times are those of the runtime, wherever they are read.
    let _clock = shared.runtime.as_ref().map(|runtime| runtime.enter());
    // Also when a panic ends this thread nevertheless.
    let _retire = Retire { shared, number };
    let mut seats = Seats::new();
    let mut panics = 0;
    while panics < MAX_PANICS {
        let serve = || serve(shared, number, &mut seats, &mut panics);
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

fn serve(shared: &Arc<Shared>, number: usize, seats: &mut Seats, panics: &mut usize) {
    loop {
        match next(shared, number) {
            Task::Mail(mail) => mail.into_iter().for_each(|mail| match mail {
                Mail::Join(model, scorer) => {
                    let id = model.id;
                    seats.insert(id, Seat::new(shared, number, model, scorer));
                }
                Mail::Leave(id) => {
                    if seats.remove(id).is_some() {
                        memory::give_back();
                    }
                }
            }),
            Task::Batch(id, batch) => {
                let seat = seats.get_mut(id);
                let seat = seat.expect("a model's scorer comes before its batches");
                run_next(shared, number, seat, batch);
                *panics = 0;
            }
            Task::Close => return,
        }
    }
}

fn run_next(shared: &Shared, number: usize, seat: &mut Seat, batch: Next) {
    shared.fault("batch taken");
    let preemption = seat.preemption.as_deref();
    if let Some(preemption) = preemption {
        preemption.begin(batch.seconds);
    }
    let mut scored = run_batch(shared, &seat.model, seat.scorer.as_mut(), &batch);
    if let Some(preemption) = preemption {
        scored.took = scored.took.saturating_sub(preemption.end());
    }
    shared.fault("batch scored");
    let finish = |state: &mut State| state.scheduler.workers.finish(number);
    complete(shared, &seat.model, batch, scored, finish);
}

/// What a worker does next.
enum Task {
    Mail(Vec<Mail>),
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
        // First, so that a batch is only taken of models whose scorers are there.
        let mail = std::mem::take(&mut state.mail[number]);
        if !mail.is_empty() {
            return Task::Mail(mail);
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
        let busy = scheduler.workers.busy();
        let alone = busy == 1 && scheduler.waiting() == 0;
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
