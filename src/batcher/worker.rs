//! A thread that scores one batch after the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::Shared;
use super::queue::Job;
use crate::batch::Batch;
use crate::scorer::{ScoreError, Scorer};

pub(super) fn run(shared: &Shared, mut scorer: Box<dyn Scorer>) {
    while let Some(jobs) = next_batch(shared) {
        let started = Instant::now();
        for job in &jobs {
            let waited = started.duration_since(job.queued_at);
            shared.metrics.queue_seconds.observe(waited.as_secs_f64());
        }
        let batch = Batch::pack(jobs.iter().map(|job| &job.encoding));
        let scored = score(scorer.as_mut(), &batch);
        finish(shared, &jobs, &batch, scored, started);
    }
}

/// Waits for work. `None` when the batcher has closed.
fn next_batch(shared: &Shared) -> Option<Vec<Job>> {
    let mut state = shared.lock();
    state.idle += 1;
    loop {
        if state.closed {
            return None;
        }
        let waiting = state.queue.waiting_tokens();
        let limits = shared.limits.shared(waiting, state.idle);
        let jobs = state.queue.take(limits);
        if !jobs.is_empty() {
            state.idle -= 1;
            return Some(jobs);
        }
        state = shared
            .work
            .wait(state)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
    }
}

/// Runs the scorer; a panic is an error like any other, for this batch alone.
fn score(scorer: &mut dyn Scorer, batch: &Batch) -> Result<Vec<f32>, ScoreError> {
    // A scorer keeps nothing from one batch to the next that a panic could leave half done.
    catch_unwind(AssertUnwindSafe(|| scorer.score(batch))).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(ScoreError(format!("the scorer panicked: {text}")))
    })
}

fn finish(
    shared: &Shared,
    jobs: &[Job],
    batch: &Batch,
    scored: Result<Vec<f32>, ScoreError>,
    started: Instant,
) {
    let seconds = started.elapsed().as_secs_f64();
    let metrics = &shared.metrics;
    metrics.inference_seconds.observe(seconds);
    metrics.batch_pairs.observe(batch.sequences() as f64);
    metrics.batch_tokens.observe(batch.tokens() as f64);
    match scored {
        Ok(logits) => {
            let (wasted, busy) = shared.change(|state| {
                let wasted = state.queue.complete(jobs, &logits);
                (wasted, state.workers - state.idle)
            });
            metrics.wasted_tokens.inc_by(wasted as u64);
            shared
                .admission
                .observe_batch(batch.tokens(), seconds, busy);
        }
        Err(error) => {
            metrics.failed_batches.inc();
            tracing::error!(%error, pairs = batch.sequences(), tokens = batch.tokens(), "batch failed");
            shared.change(|state| state.queue.fail(jobs, &error.0));
        }
    }
}
