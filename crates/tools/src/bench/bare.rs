//! The model alone: sessions that are handed batch after batch, with no queue and no HTTP. What a
//! server gives away is told by comparing with this.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use super::Times;
use super::record::{Outcome, Sample, Summary};
use super::text::{Request, Texts};
use rerankd_core::{Batch, Encoding};
use rerankd_core::{Limits, RerankCommand, ScoreOptions};
use rerankd_model::encoder::{EncodeError, PairEncoder};
use rerankd_runtime::Scorer;

/// Requests that are tokenised before the clock starts; sessions go through them over and over.
const REQUESTS: u64 = 32;

/// Batches of the pairs of so many requests at a time as `clients` says, neighbours in length
/// together, up to `max_tokens` each. Shuffled, so that those that fit into a short measurement are
/// like all.
///
/// # Errors
/// When the tokenizer failed.
pub fn batches(
    encoder: &PairEncoder,
    texts: &Texts,
    clients: usize,
    max_tokens: usize,
) -> Result<Vec<Batch>, EncodeError> {
    let go_on = AtomicBool::new(false);
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
                .expect("a request has documents, and there is no limit");
            let pairs = encoder.encode(command.pairs(), &go_on)?;
            encodings.extend(pairs.into_iter().map(|pair| pair.encoding));
        }
        encodings.sort_by_key(|encoding| std::cmp::Reverse(encoding.len()));
        batches.extend(group(&encodings, max_tokens).map(Batch::pack));
    }
    fastrand::Rng::with_seed(0).shuffle(&mut batches);
    Ok(batches)
}

/// Neighbours, as many as fit into `max_tokens`, one at least.
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

/// Runs `sessions` side by side on `batches`, over and over.
///
/// # Errors
/// The first failure of a session, in words.
pub fn run(
    sessions: &mut [Box<dyn Scorer>],
    batches: &[Batch],
    times: Times,
) -> Result<Summary, String> {
    let window = times.window();
    let origin = Instant::now();
    let next = AtomicUsize::new(0);
    let worker = |session: &mut Box<dyn Scorer>| {
        let mut samples = Vec::new();
        while origin.elapsed() < window.end {
            let batch = &batches[next.fetch_add(1, Ordering::Relaxed) % batches.len()];
            let sent = origin.elapsed();
            session.score(batch).map_err(|error| error.to_string())?;
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
        Ok::<_, String>(samples)
    };
    let mut samples = Vec::new();
    std::thread::scope(|scope| {
        let workers: Vec<_> = sessions
            .iter_mut()
            .map(|session| scope.spawn(|| worker(session)))
            .collect();
        for worker in workers {
            samples.extend(worker.join().map_err(|_| "a session panicked")??);
        }
        Ok::<_, String>(())
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
    fn groups_keep_the_limit_and_lose_nothing() {
        let encodings = encodings(&[90, 60, 40, 30, 30, 10]);
        let lengths: Vec<Vec<usize>> = group(&encodings, 100)
            .map(|group| group.iter().map(Encoding::len).collect())
            .collect();
        assert_eq!(lengths, [vec![90], vec![60, 40], vec![30, 30, 10]]);
        let long: Vec<usize> = group(&encodings, 5).map(<[_]>::len).collect();
        assert_eq!(long, [1; 6], "a sequence that is longer goes alone");
        assert_eq!(group(&[], 5).count(), 0);
    }

    /// Notes nothing and takes no time to speak of.
    struct Idle;

    impl Scorer for Idle {
        fn score(&mut self, batch: &Batch) -> Result<Vec<f32>, rerankd_runtime::ScoreError> {
            match batch.sequences() {
                9 => Err(rerankd_runtime::ScoreError("nine".to_owned())),
                sequences => Ok(vec![0.0; sequences]),
            }
        }
    }

    #[test]
    fn every_session_works_and_a_failure_is_told() {
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
        assert_eq!(run(&mut sessions, &bad, times).unwrap_err(), "nine");
    }
}
