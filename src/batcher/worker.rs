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
        let scored = score(scorer.as_mut(), &jobs, shared.labels);
        finish(shared, &jobs, scored, started);
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

/// Runs the scorer; a panic, or another number of logits than was asked for, is an error like any
/// other, for this batch alone.
fn score(scorer: &mut dyn Scorer, jobs: &[Job], labels: usize) -> Result<Vec<f32>, ScoreError> {
    let mut run = || {
        let batch = Batch::pack(jobs.iter().map(|job| &job.encoding));
        let logits = scorer.score(&batch)?;
        let wanted = jobs.len() * labels;
        match logits.len() == wanted {
            true => Ok(logits),
            false => Err(ScoreError(format!(
                "the scorer gave {} logits for {wanted}",
                logits.len()
            ))),
        }
    };
    // A scorer keeps nothing from one batch to the next that a panic could leave half done.
    catch_unwind(AssertUnwindSafe(&mut run)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(ScoreError(format!("the scorer panicked: {text}")))
    })
}

fn finish(shared: &Shared, jobs: &[Job], scored: Result<Vec<f32>, ScoreError>, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    let tokens: usize = jobs.iter().map(|job| job.encoding.len()).sum();
    let metrics = &shared.metrics;
    metrics.inference_seconds.observe(seconds);
    metrics.batch_pairs.observe(jobs.len() as f64);
    metrics.batch_tokens.observe(tokens as f64);
    match scored {
        Ok(logits) => {
            let (wasted, busy) = shared.change(|state| {
                let wasted = state.queue.complete(jobs, &logits);
                (wasted, state.workers - state.idle)
            });
            metrics.wasted_tokens.inc_by(wasted as u64);
            shared.admission.observe_batch(tokens, seconds, busy);
        }
        Err(error) => {
            metrics.failed_batches.inc();
            tracing::error!(%error, pairs = jobs.len(), tokens, "batch failed");
            shared.change(|state| state.queue.fail(jobs, &error.0));
        }
    }
}
