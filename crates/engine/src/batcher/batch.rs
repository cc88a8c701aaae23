//! Runs one batch, from what was taken out of the queue to the answers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tokio::time::Instant;

use super::queue::{Job, Taken, work};
use super::{Model, Shared, State};
use crate::trace::{BatchRecord, Timeline};
use rerankd_core::Batch;
use rerankd_runtime::{ScoreError, Scorer};

/// A batch to be scored.
pub(super) struct Next {
    pub jobs: Vec<Job>,
    /// How long it should take.
    pub seconds: f64,
    /// Workers of its model that were busy when it began, this one among them.
    pub busy: usize,
    /// Whether nothing else ran or waited.
    pub alone: bool,
}

/// Notes what was taken, under the lock.
pub(super) fn note(shared: &Shared, state: &State, taken: &Taken) {
    let wasted = taken.outcome.wasted as u64;
    shared.metrics.wasted_tokens.inc_by(wasted);
    shared.publish(state);
}

/// Records the requests that a batch begins, without the lock.
pub(super) fn record_begun(taken: &Taken) {
    let now = Instant::now().into_std();
    for (timeline, queued_at) in &taken.begun {
        timeline.take(*queued_at, now);
    }
}

/// What came of a batch.
pub(super) struct Scored {
    pub logits: Result<Vec<f32>, ScoreError>,
    pub took: Duration,
}

/// Runs a batch.
pub(super) fn run_batch(
    shared: &Shared,
    model: &Model,
    scorer: &mut dyn Scorer,
    batch: &Next,
) -> Scored {
    let now = Instant::now().into_std();
    for job in &batch.jobs {
        let waited = now.duration_since(job.queued_at);
        shared.metrics.queue_seconds.observe(waited.as_secs_f64());
    }
    let started = std::time::Instant::now();
    let logits = score(scorer, batch, model.labels);
    let took = started.elapsed();
    send_span(model, &batch.jobs, now, took);
    Scored { logits, took }
}

/// Sends the span of a batch, where traces are sent.
fn send_span(model: &Model, jobs: &[Job], started: std::time::Instant, took: Duration) {
    let mut requests: Vec<Timeline> = Vec::new();
    for request in jobs.iter().flat_map(|job| &job.requests) {
        if !requests.iter().any(|other| other.is(request)) {
            requests.push(request.clone());
        }
    }
    if !requests.is_empty() {
        let record = BatchRecord {
            model: &model.name,
            requests: &requests,
            started,
            ended: started + took,
            pairs: jobs.len(),
            tokens: work(jobs).tokens,
        };
        record.send();
    }
}

/// Runs the scorer. A panic, or a wrong number of logits, is an error of this batch alone.
fn score(scorer: &mut dyn Scorer, batch: &Next, labels: usize) -> Result<Vec<f32>, ScoreError> {
    let Next { jobs, alone, .. } = batch;
    let mut run = || {
        let batch = Batch::pack(jobs.iter().map(|job| &job.encoding));
        let logits = if *alone {
            scorer.score_alone(&batch)?
        } else {
            scorer.score(&batch)?
        };
        let expected = jobs.len() * labels;
        if logits.len() != expected {
            return Err(ScoreError(format!(
                "the scorer returned {} logits instead of {expected}",
                logits.len()
            )));
        }
        Ok(logits)
    };
    // A scorer keeps nothing from one batch to the next that a panic could leave half done.
    catch_unwind(AssertUnwindSafe(&mut run)).unwrap_or_else(|panic| {
        let text = message(&*panic);
        Err(ScoreError(format!("the scorer panicked: {text}")))
    })
}

/// Answers the requests that a batch completes. `then` runs under the same lock.
pub(super) fn complete(
    shared: &Shared,
    model: &Model,
    batch: Next,
    scored: Scored,
    then: impl FnOnce(&mut State),
) {
    let Next { jobs, busy, .. } = batch;
    let seconds = scored.took.as_secs_f64();
    let work = work(&jobs);
    let metrics = &shared.metrics;
    metrics.inference_seconds.observe(seconds);
    model.metrics.inference_seconds.observe(seconds);
    metrics.batch_pairs.observe(jobs.len() as f64);
    metrics.batch_tokens.observe(work.tokens as f64);
    match scored.logits {
        Ok(logits) => {
            // Before the answers, so that a client that asks again hits the cache.
            let mut failed = 0;
            for (job, logits) in jobs.iter().zip(logits.chunks_exact(model.labels)) {
                if logits.iter().all(|logit| logit.is_finite()) {
                    shared.cache.insert(job.key, logits);
                } else {
                    failed += 1;
                }
            }
            if failed > 0 {
                metrics.failed_pairs.inc_by(failed);
                tracing::error!(pairs = failed, "model returned logits that are not finite");
            }
            shared.settle(|state| {
                let scheduler = &mut state.scheduler;
                let outcome = scheduler.complete(model.id, &jobs, &logits, (seconds, busy));
                then(state);
                outcome
            });
        }
        Err(error) => {
            metrics.failed_batches.inc();
            tracing::error!(%error, pairs = jobs.len(), tokens = work.tokens, "batch failed");
            shared.change(|state| {
                // Removed where nobody waits for it.
                if let Some(lane) = state.scheduler.lanes.get_mut(model.id) {
                    lane.queue.fail(&jobs, &error.0);
                }
                then(state);
            });
        }
    }
}

/// The text of a panic.
pub(crate) fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}
