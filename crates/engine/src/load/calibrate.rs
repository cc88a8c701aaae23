//! Measures what batches cost, before the first request.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::cost::{Costs, Estimator, Work};
use rerankd_core::{Batch, Encoding};
use rerankd_runtime::{ScoreError, Scorer};

/// Longest that all of it takes, as long as a short sequence takes a fraction of that.
const BUDGET: Duration = Duration::from_millis(120);

/// Sequences of each batch that is tried, small ones first: a slow machine ends after a few.
pub const SHAPES: [&[usize]; 7] = [
    &[32],
    &[16, 16, 16, 16],
    &[128],
    &[32, 32, 32, 32],
    &[64, 64, 64, 64],
    &[256],
    &[24, 24, 24, 24, 24, 24, 24, 24],
];

/// Makes batches of so many tokens.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Tokens that the model knows and that are not padding; may be equal. Of causal models they differ:
    /// sequences must not begin alike, because what they share would be computed once.
    pub tokens: [u32; 2],
    /// Most tokens of a sequence.
    pub max_length: usize,
    /// Sequences of each batch that is tried, small ones first; at least one.
    pub shapes: &'static [&'static [usize]],
    /// Batches that each scorer runs before any is measured, beside the first shape.
    pub warm_up: &'static [&'static [usize]],
}

impl Sample {
    /// The batch of the `run`-th run. Sequences of all runs differ in their first tokens, which are the bits
    /// of their number.
    fn batch(self, lengths: &[usize], run: usize) -> (Work, Batch) {
        let first = run
            * self
                .shapes
                .iter()
                .map(|shape| shape.len())
                .max()
                .unwrap_or(1);
        let lengths = || lengths.iter().map(|&length| length.min(self.max_length));
        let encodings: Vec<Encoding> = lengths()
            .enumerate()
            .map(|(index, length)| Encoding {
                ids: (0..length)
                    .map(|place| match place {
                        0..16 => self.tokens[(first + index) >> place & 1],
                        _ => self.tokens[0],
                    })
                    .collect(),
                type_ids: vec![0; length],
            })
            .collect();
        (Work::all(lengths()), Batch::pack(&encodings))
    }
}

/// Warms every session up, so that no client pays for the first touch of its memory, and finds out
/// what batches cost while all run side by side.
///
/// # Errors
/// [`ScoreError`] when a session cannot score.
pub fn calibrate(scorers: &mut [Box<dyn Scorer>], sample: Sample) -> Result<Costs, ScoreError> {
    let workers = scorers.len();
    for (run, shape) in sample.warm_up.iter().enumerate() {
        let (_, batch) = sample.batch(shape, run);
        side_by_side(scorers, |scorer| scorer.score(&batch))?;
    }
    let started = Instant::now();
    let (_, first) = sample.batch(sample.shapes[0], sample.warm_up.len());
    side_by_side(scorers, |scorer| scorer.score(&first))?;
    let left = BUDGET.saturating_sub(started.elapsed());
    let measured = side_by_side(scorers, |scorer| try_shapes(scorer, sample, left))?;
    Ok(Costs::new(
        Estimator::calibrated(&measured.concat()),
        workers,
    ))
}

/// Runs `work` on all scorers at the same time.
fn side_by_side<T: Send>(
    scorers: &mut [Box<dyn Scorer>],
    work: impl Fn(&mut dyn Scorer) -> Result<T, ScoreError> + Sync,
) -> Result<Vec<T>, ScoreError> {
    let start = Barrier::new(scorers.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = scorers
            .iter_mut()
            .map(|scorer| {
                let (start, work) = (&start, &work);
                scope.spawn(move || {
                    start.wait();
                    work(scorer.as_mut())
                })
            })
            .collect();
        let panicked = |_| Err(ScoreError("a session panicked in its warm-up".into()));
        let done = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(panicked));
        done.collect()
    })
}

/// Scores one batch of each shape after the other, round and round, while the time allows. At least
/// one is scored.
fn try_shapes(
    scorer: &mut dyn Scorer,
    sample: Sample,
    time: Duration,
) -> Result<Vec<(Work, f64)>, ScoreError> {
    let started = Instant::now();
    let mut measured: Vec<(Work, f64)> = Vec::new();
    let shapes = sample.shapes;
    let runs = shapes.iter().cycle().take(3 * shapes.len());
    for (run, shape) in (sample.warm_up.len() + 1..).zip(runs) {
        let (work, batch) = sample.batch(shape, run);
        // By what the last one took: only to know whether there is time for another.
        let expected = measured.last().map_or(0.0, |(last, seconds)| {
            1.2 * seconds * work.tokens as f64 / last.tokens as f64
        });
        if started.elapsed().as_secs_f64() + expected > time.as_secs_f64() && !measured.is_empty() {
            break;
        }
        let before = Instant::now();
        scorer.score(&batch)?;
        measured.push((work, before.elapsed().as_secs_f64()));
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Busy(Duration);

    impl Scorer for Busy {
        fn score(&mut self, batch: &Batch) -> Result<Vec<f32>, ScoreError> {
            let end = Instant::now() + self.0 * batch.tokens() as u32;
            while Instant::now() < end {
                std::hint::spin_loop();
            }
            Ok(vec![0.0; batch.sequences()])
        }
    }

    const SAMPLE: Sample = Sample {
        tokens: [0, 1],
        max_length: 100,
        shapes: &SHAPES,
        warm_up: &[&[8], &[16]],
    };

    #[test]
    fn what_a_session_takes_is_found_out() {
        let mut scorers: Vec<Box<dyn Scorer>> = vec![Box::new(Busy(Duration::from_micros(50)))];
        let costs = calibrate(&mut scorers, SAMPLE).unwrap();
        let seconds = costs.loaded().seconds(Work::of(100));
        // At least what it takes; a busy machine can make it any longer.
        assert!(seconds > 4e-3, "{seconds}");
        assert_eq!(costs.workers(), 1);
    }

    #[test]
    fn no_sequence_begins_as_another() {
        let batches: Vec<Batch> = (0..20).map(|run| SAMPLE.batch(SHAPES[1], run).1).collect();
        let mut starts: Vec<&[u32]> = batches.iter().flat_map(|b| b.ids().chunks(16)).collect();
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts.len(), 20 * SHAPES[1].len());
    }

    #[test]
    fn a_session_that_fails_is_an_error() {
        struct Broken;
        impl Scorer for Broken {
            fn score(&mut self, _: &Batch) -> Result<Vec<f32>, ScoreError> {
                Err(ScoreError("broken".into()))
            }
        }
        let mut scorers: Vec<Box<dyn Scorer>> = vec![Box::new(Broken), Box::new(Broken)];
        assert!(calibrate(&mut scorers, SAMPLE).is_err());
        assert!(calibrate(&mut [], SAMPLE).is_ok());
    }
}
