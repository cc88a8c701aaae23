//! Measures the model alone: sessions with prepared batches, without queue and HTTP. It is the baseline
//! for the overhead of a server.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use super::Times;
use super::record::{Outcome, Sample, Summary};
use super::text::{Request, Texts};
use rerankd_core::{Batch, Encoding};
use rerankd_core::{Limits, RerankCommand, ScoreOptions};
use rerankd_model::encoder::{EncodeError, Encoder};
use rerankd_runtime::{ScoreError, Scorer};

/// Number of requests that are tokenized before the measurement. Sessions score them repeatedly.
const REQUESTS: u64 = 32;

/// The sessions could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum BareError {
    /// The tokenizer failed.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A session failed.
    #[error(transparent)]
    Score(#[from] ScoreError),
    /// The thread of a session panicked.
    #[error("a session panicked")]
    Panicked,
}

/// Batches of up to `max_tokens` tokens, each from the requests of one wave of `clients`, with pairs of
/// similar length together. Shuffled, so that a short measurement has batches of all lengths.
///
/// # Errors
/// When the tokenizer fails.
pub fn batches(
    encoder: &Encoder,
    texts: &Texts,
    clients: usize,
    max_tokens: usize,
) -> Result<Vec<Batch>, EncodeError> {
    let canceled = AtomicBool::new(false);
    let requests: Vec<Request> = (0..REQUESTS).map(|number| texts.request(number)).collect();
    let mut batches = Vec::new();
    for wave in requests.chunks(clients) {
        let mut encodings = Vec::new();
        for request in wave {
            let limits = Limits {
                max_documents: usize::MAX,
            };
            let (query, documents) = (request.query.clone(), request.documents.clone());
            let options = ScoreOptions::default();
            let command = RerankCommand::new(query, documents, None, options, &limits)
                .expect("requests have documents, and there is no limit");
            let pairs = encoder.encode(command.scoring().pairs(), &canceled)?;
            encodings.extend(pairs.into_iter().map(|pair| pair.encoding));
        }
        encodings.sort_by_key(|encoding| std::cmp::Reverse(encoding.len()));
        batches.extend(group(&encodings, max_tokens).map(Batch::pack));
    }
    fastrand::Rng::with_seed(0).shuffle(&mut batches);
    Ok(batches)
}

/// Consecutive encodings of up to `max_tokens` in total, and at least one.
fn group(encodings: &[Encoding], max_tokens: usize) -> impl Iterator<Item = &[Encoding]> {
    let mut rest = encodings;
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fits = rest.iter().take_while(|encoding| {
            tokens += encoding.len();
            tokens <= max_tokens
        });
        let count = fits.count().max(1).min(rest.len());
        let (group, left) = rest.split_at(count);
        rest = left;
        (!group.is_empty()).then_some(group)
    })
}

/// Runs `sessions` in parallel on `batches`, repeatedly.
///
/// # Errors
/// When a session fails.
pub fn run(
    sessions: &mut [Box<dyn Scorer>],
    batches: &[Batch],
    times: Times,
) -> Result<Summary, BareError> {
    let window = times.window();
    let origin = Instant::now();
    let next = AtomicUsize::new(0);
    let worker = |session: &mut Box<dyn Scorer>| {
        let mut samples = Vec::new();
        while origin.elapsed() < window.end {
            let batch = &batches[next.fetch_add(1, Ordering::Relaxed) % batches.len()];
            let sent = origin.elapsed();
            session.score(batch)?;
            let tokens = batch.tokens() as u64;
            samples.push(Sample {
                intended: sent,
                sent,
                done: origin.elapsed(),
                outcome: Outcome::Answered {
                    tokens: Some(tokens),
                },
                pairs: batch.sequences() as u64,
                tokens,
            });
        }
        Ok::<_, BareError>(samples)
    };
    let mut samples = Vec::new();
    std::thread::scope(|scope| {
        let workers: Vec<_> = sessions
            .iter_mut()
            .map(|session| scope.spawn(|| worker(session)))
            .collect();
        for worker in workers {
            samples.extend(worker.join().map_err(|_| BareError::Panicked)??);
        }
        Ok::<_, BareError>(())
    })?;
    Ok(Summary::of(&samples, window))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encodings(lengths: &[usize]) -> Vec<Encoding> {
        let encoding = |length: &usize| Encoding {
            ids: vec![1; *length],
            type_ids: vec![0; *length],
        };
        lengths.iter().map(encoding).collect()
    }

    #[test]
    fn groups_keep_the_limit_and_hold_every_encoding() {
        let encodings = encodings(&[90, 60, 40, 30, 30, 10]);
        let lengths: Vec<Vec<usize>> = group(&encodings, 100)
            .map(|group| group.iter().map(Encoding::len).collect())
            .collect();
        assert_eq!(lengths, [vec![90], vec![60, 40], vec![30, 30, 10]]);
        let long: Vec<usize> = group(&encodings, 5).map(<[_]>::len).collect();
        assert_eq!(long, [1; 6], "a longer sequence is a group of its own");
        assert_eq!(group(&[], 5).count(), 0);
    }

    /// Scores without work, and fails on batches of nine.
    struct Idle;

    impl Scorer for Idle {
        fn score(&mut self, batch: &Batch) -> Result<Vec<f32>, ScoreError> {
            match batch.sequences() {
                9 => Err(ScoreError("nine".to_owned())),
                sequences => Ok(vec![0.0; sequences]),
            }
        }
    }

    #[test]
    fn every_session_works_and_a_failure_is_returned() {
        let times = Times {
            warm_up: std::time::Duration::ZERO,
            duration: std::time::Duration::from_millis(100),
        };
        let mut sessions: Vec<Box<dyn Scorer>> = vec![Box::new(Idle), Box::new(Idle)];
        let good = [Batch::pack(&encodings(&[3, 4]))];
        let summary = run(&mut sessions, &good, times).unwrap();
        assert!(summary.pairs_per_second > 0.0);
        let ratio = summary.tokens_per_second.unwrap() / summary.pairs_per_second;
        assert!((ratio - 3.5).abs() < 1e-6);
        let bad = [Batch::pack(&encodings(&[1; 9]))];
        let error = run(&mut sessions, &bad, times).unwrap_err();
        assert_eq!(error.to_string(), "nine");
    }
}
