//! A thread that scores one batch after the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tokio::time::Instant;

use super::queue::Job;
use super::{Shared, State};
use crate::cost::{Work, duration};
use crate::plan::Plan;
use crate::trace::{BatchRecord, Timeline};
use rerankd_core::Batch;
use rerankd_runtime::{ScoreError, Scorer};

pub(super) fn run(shared: &Shared, number: usize, mut scorer: Box<dyn Scorer>) {
    // The queue's times are those of the runtime, wherever they are read.
    let _clock = shared.runtime.as_ref().map(|runtime| runtime.enter());
    while let Some(batch) = next_batch(shared, number) {
        let now = Instant::now().into_std();
        for job in &batch.jobs {
            let waited = now.duration_since(job.queued_at);
            shared.metrics.queue_seconds.observe(waited.as_secs_f64());
        }
        let started = std::time::Instant::now();
        let scored = score(scorer.as_mut(), &batch, shared.labels);
        let took = started.elapsed();
        send_span(&batch.jobs, now, took);
        finish(shared, number, batch, scored, took);
    }
    // Whoever stops the batcher waits for this.
    shared.work.notify_all();
}

/// Tells a collector of a batch, where there is one.
fn send_span(jobs: &[Job], started: std::time::Instant, took: Duration) {
    let mut requests: Vec<Timeline> = Vec::new();
    for request in jobs.iter().flat_map(|job| &job.requests) {
        if !requests.iter().any(|other| other.is(request)) {
            requests.push(request.clone());
        }
    }
    if !requests.is_empty() {
        let record = BatchRecord {
            requests: &requests,
            started,
            ended: started + took,
            pairs: jobs.len(),
            tokens: work(jobs).tokens,
        };
        record.send();
    }
}

/// What one worker does next.
struct Taken {
    jobs: Vec<Job>,
    /// Workers that were busy when it began, this one among them.
    busy: usize,
    /// Whether nothing else ran or waited.
    alone: bool,
}

/// Waits for work. `None` when the batcher has closed.
fn next_batch(shared: &Shared, number: usize) -> Option<Taken> {
    let mut state = shared.lock();
    loop {
        if state.closed {
            return None;
        }
        let jobs = take(shared, &mut state, number);
        if !jobs.is_empty() {
            let busy = state.busy();
            return Some(Taken {
                jobs,
                busy,
                alone: busy == 1 && state.queue.waiting().sequences == 0,
            });
        }
        state = shared
            .work
            .wait(state)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
    }
}

/// Takes the next batch and notes how long it should take.
fn take(shared: &Shared, state: &mut State, number: usize) -> Vec<Job> {
    let waiting = state.queue.waiting();
    if waiting.sequences == 0 {
        return Vec::new();
    }
    let now = Instant::now();
    let others: Vec<f64> = (0..state.busy_until.len())
        .filter(|&other| other != number)
        .map(|other| match state.busy_until[other] {
            Some(until) => until.saturating_duration_since(now).as_secs_f64(),
            None => 0.0,
        })
        .collect();
    let cost = state.costs.loaded();
    let plan = Plan::new(shared.limits, cost, waiting, &others);
    let speed = shared.speed(state, now);
    let (jobs, outcome) = state.queue.take(&plan, speed, now.into_std());
    if !jobs.is_empty() {
        let seconds = cost.seconds(work(&jobs));
        state.busy_until[number] = Some(now + duration(seconds));
    }
    shared.metrics.wasted_tokens.inc_by(outcome.wasted as u64);
    shared.tell(state);
    jobs
}

fn work(jobs: &[Job]) -> Work {
    Work::all(jobs.iter().map(|job| job.encoding.len()))
}

/// Runs the scorer; a panic, or another number of logits than was asked for, is an error like any
/// other, for this batch alone.
fn score(scorer: &mut dyn Scorer, taken: &Taken, labels: usize) -> Result<Vec<f32>, ScoreError> {
    let Taken { jobs, alone, .. } = taken;
    let mut run = || {
        let batch = Batch::pack(jobs.iter().map(|job| &job.encoding));
        let logits = match alone {
            true => scorer.score_alone(&batch)?,
            false => scorer.score(&batch)?,
        };
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

fn finish(
    shared: &Shared,
    number: usize,
    batch: Taken,
    scored: Result<Vec<f32>, ScoreError>,
    took: Duration,
) {
    let Taken { jobs, busy, .. } = batch;
    let seconds = took.as_secs_f64();
    let work = work(&jobs);
    let metrics = &shared.metrics;
    metrics.inference_seconds.observe(seconds);
    metrics.batch_pairs.observe(jobs.len() as f64);
    metrics.batch_tokens.observe(work.tokens as f64);
    match scored {
        Ok(logits) => {
            // First, so that who asks again finds them, and nobody waits for it.
            for (job, logits) in jobs.iter().zip(logits.chunks_exact(shared.labels)) {
                shared.cache.insert(job.key, logits);
            }
            shared.settle(|state| {
                let busy = [busy, state.busy()];
                state.costs.observe(work, seconds, busy);
                shared.admission.set_pace(state.costs.pace(work));
                state.busy_until[number] = None;
                state.queue.complete(&jobs, &logits)
            });
        }
        Err(error) => {
            metrics.failed_batches.inc();
            tracing::error!(%error, pairs = jobs.len(), tokens = work.tokens, "batch failed");
            shared.change(|state| {
                state.busy_until[number] = None;
                state.queue.fail(&jobs, &error.0);
            });
        }
    }
}
