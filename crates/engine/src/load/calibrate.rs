//! Measures the cost of batches before the first request.

use std::sync::{Barrier, LazyLock};
use std::time::{Duration, Instant};

use crate::cost::{Costs, Estimator, Work};
use rerankd_core::{Batch, Encoding};
use rerankd_runtime::{ScoreError, Scorer};

/// Maximum time of the calibration, if one short sequence takes a fraction of it.
const BUDGET: Duration = Duration::from_millis(120);

/// Lengths of the sequences of each batch, small ones first: a slow machine runs only a few.
pub const SHAPES: [&[usize]; 7] = [
    &[32],
    &[16, 16, 16, 16],
    &[128],
    &[32, 32, 32, 32],
    &[64, 64, 64, 64],
    &[256],
    &[24, 24, 24, 24, 24, 24, 24, 24],
];

/// Makes the batches of a calibration.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Tokens in the vocabulary that are not padding; may be equal. For causal models they differ: sequences must
    /// not share a prefix, which would be computed only once.
    pub tokens: [u32; 2],
    /// Maximum number of tokens of a sequence.
    pub max_length: usize,
    /// Lengths of the sequences of each batch, small ones first; at least one batch.
    pub shapes: &'static [&'static [usize]],
    /// Batches that each scorer runs before the measurement, besides the first shape.
    pub warm_up: &'static [&'static [usize]],
    /// The time of the thread that scores. On a CPU, its time on a processor: it may have to wait for one while other
    /// models serve, which says nothing about its batches.
    pub clock: fn() -> Duration,
}

/// Time since some moment of this process.
pub fn wall_time() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

impl Sample {
    /// The batch of the `run`-th run. All sequences differ in their first tokens, which are the bits of their
    /// number.
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

/// Runs `sample.warm_up` on every session, so that no request pays for the first use of its memory. There is none on
/// a CPU, where the self-test has warmed them up.
///
/// # Errors
/// [`ScoreError`] if a session cannot score.
pub fn warm_up(scorers: &mut [Box<dyn Scorer>], sample: Sample) -> Result<(), ScoreError> {
    for (run, shape) in sample.warm_up.iter().enumerate() {
        let (_, batch) = sample.batch(shape, run);
        side_by_side(scorers, |scorer| scorer.score(&batch))?;
    }
    Ok(())
}

/// Measures the cost of batches while all sessions run, which are warm.
///
/// # Errors
/// [`ScoreError`] if a session cannot score.
pub fn calibrate(scorers: &mut [Box<dyn Scorer>], sample: Sample) -> Result<Costs, ScoreError> {
    let workers = scorers.len();
    let (_, first) = sample.batch(sample.shapes[0], sample.warm_up.len());
    let took = side_by_side(scorers, |scorer| {
        let started = (sample.clock)();
        scorer.score(&first)?;
        Ok((sample.clock)() - started)
    })?;
    let left = BUDGET.saturating_sub(took.into_iter().max().unwrap_or_default());
    let measured = side_by_side(scorers, |scorer| try_shapes(scorer, sample, left))?;
    Ok(Costs::new(
        Estimator::calibrated(&measured.concat()),
        workers,
    ))
}

/// Runs `work` on all scorers in parallel.
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
        let panicked = |_| Err(ScoreError("a session panicked during warm-up".into()));
        let done = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(panicked));
        done.collect()
    })
}

/// Scores a batch of each shape in turn, several times, until `time` is up. Scores at least one.
fn try_shapes(
    scorer: &mut dyn Scorer,
    sample: Sample,
    time: Duration,
) -> Result<Vec<(Work, f64)>, ScoreError> {
    let started = (sample.clock)();
    let mut measured: Vec<(Work, f64)> = Vec::new();
    let shapes = sample.shapes;
    let runs = shapes.iter().cycle().take(3 * shapes.len());
    for (run, shape) in (sample.warm_up.len() + 1..).zip(runs) {
        let (work, batch) = sample.batch(shape, run);
        // From the previous batch; only decides whether there is time for another.
        let expected = measured.last().map_or(0.0, |(last, seconds)| {
            1.2 * seconds * work.tokens as f64 / last.tokens as f64
        });
        let before = (sample.clock)();
        let spent = (before - started).as_secs_f64();
        if spent + expected > time.as_secs_f64() && !measured.is_empty() {
            break;
        }
        scorer.score(&batch)?;
        measured.push((work, ((sample.clock)() - before).as_secs_f64()));
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static TIME: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    /// Takes so long for a token.
    struct Busy(Duration);

    impl Scorer for Busy {
        fn score(&mut self, batch: &Batch) -> Result<Vec<f32>, ScoreError> {
            TIME.set(TIME.get() + self.0 * batch.tokens() as u32);
            Ok(vec![0.0; batch.sequences()])
        }
    }

    const SAMPLE: Sample = Sample {
        tokens: [0, 1],
        max_length: 100,
        shapes: &SHAPES,
        warm_up: &[&[8], &[16]],
        clock: || TIME.get(),
    };

    #[test]
    fn what_a_session_takes_is_found_out() {
        let mut scorers: Vec<Box<dyn Scorer>> = vec![Box::new(Busy(Duration::from_micros(50)))];
        let costs = calibrate(&mut scorers, SAMPLE).unwrap();
        let seconds = costs.loaded().seconds(Work::of(100));
        assert!((4.5e-3..5.5e-3).contains(&seconds), "{seconds}");
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
