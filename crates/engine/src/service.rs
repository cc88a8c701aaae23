//! The one place that sequences a request: admit, tokenise, score, order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::admission::{Admission, Permit};
use crate::batcher::{BatchError, Batcher, Workshop};
use crate::cache::{PairKeys, ScoreCache};
use crate::config::CacheConfig;
use crate::cost::Costs;
use crate::metrics::Metrics;
use crate::plan::BatchLimits;
use crate::trace::{Step, Timeline};
use rerankd_core::{
    Activation, Claim, DeadlineBy, Fit, Pair, PredictCommand, Prediction, Ranked, Ranking,
    RerankCommand, RerankError, Scale, ScoreOptions, Truncate, rank,
};
use rerankd_core::{Encoding, PairKey};
use rerankd_model::encoder::{EncodeError, EncodedPair, Fitted, PairEncoder, TextToken};
use rerankd_runtime::Scorer;

/// What is served, for `/info`, logs and responses.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Name that responses carry.
    pub id: String,
    /// Kind of network, such as `bert`.
    pub architecture: String,
    /// What its graph comes from: `safetensors` where it is built from weights, or `onnx`.
    pub format: &'static str,
    /// How batches are laid out: `packed`, or `padded`.
    pub layout: &'static str,
    /// Names of the outputs, in order.
    pub labels: Vec<String>,
    /// Tokens a pair may have, special tokens included.
    pub max_length: usize,
    /// What is put behind the logits.
    pub activation: Activation,
    /// Arithmetic of the matrix products, such as `fp32`.
    pub precision: &'static str,
    /// Which of the processor's instructions the kernels of this server use.
    pub instructions: &'static str,
    /// Numbers in the model.
    pub parameters: usize,
    /// Threads that score: sessions times threads of each.
    pub threads: usize,
    /// Batches that are scored at the same time.
    pub sessions: usize,
    /// Version of ONNX Runtime.
    pub runtime_version: String,
    /// What runs the model, as the setting `device` spells it.
    pub device: String,
    /// Why it was taken.
    pub device_because: String,
    /// Nodes of the graph that each provider of ONNX Runtime runs.
    pub providers: BTreeMap<String, usize>,
    /// Most tokens of one batch.
    pub batch_tokens: usize,
}

/// How much a [`Reranker`] takes on.
#[derive(Debug, Clone)]
pub struct Capacity {
    /// The most that one batch may be.
    pub batch: BatchLimits,
    /// Tokens that may be outstanding before requests are refused.
    pub max_queue_tokens: usize,
    /// Threads that tokenise.
    pub encode_threads: usize,
    /// Which scores are kept.
    pub cache: CacheConfig,
    /// What batches cost.
    pub costs: Costs,
}

/// Answers commands with one model.
pub struct Reranker {
    info: ModelInfo,
    encoder: Arc<PairEncoder>,
    encode_pool: rayon::ThreadPool,
    admission: Arc<Admission>,
    batcher: Batcher,
    keys: PairKeys,
    cache: Arc<ScoreCache>,
    metrics: Arc<Metrics>,
}

/// What of a request scoring needs to know beside its pairs.
#[derive(Debug, Clone, Copy)]
struct Terms {
    /// What the caller calls the pairs.
    field: &'static str,
    options: ScoreOptions,
    claim: Claim,
}

/// A request's sequences, with what is known of them.
struct Prepared {
    encoded: Vec<EncodedPair>,
    /// One for each sequence, in order.
    keys: Vec<PairKey>,
    /// Logits of those sequences whose score is known.
    known: Vec<Option<Arc<[f32]>>>,
}

/// What scoring found out about a request's pairs.
struct Scored {
    /// `[pairs, labels]`, row by row.
    logits: Vec<f32>,
    truncated: Vec<usize>,
    tokens: usize,
}

impl Reranker {
    /// Starts a worker for each of `scorers`, which all run the model that `info` describes and
    /// `encoder` tokenises for.
    ///
    /// # Panics
    /// When the system refuses a thread.
    pub fn start(
        info: ModelInfo,
        encoder: PairEncoder,
        scorers: Vec<Box<dyn Scorer>>,
        capacity: Capacity,
        metrics: Arc<Metrics>,
    ) -> Self {
        let admission = Admission::new(
            capacity.max_queue_tokens,
            info.max_length,
            metrics.queue_tokens.clone(),
        );
        let cache = Arc::new(ScoreCache::new(
            &capacity.cache,
            metrics.cache_bytes.clone(),
        ));
        let keys = PairKeys::new(&[&info.id, info.precision], capacity.cache.per_key);
        let encode_pool = rayon::ThreadPoolBuilder::new()
            .num_threads(capacity.encode_threads)
            .thread_name(|number| format!("encode-{number}"))
            // Without a handler a panic would end the process; its request sees an error instead.
            .panic_handler(|_| tracing::error!("the tokeniser panicked"))
            .build()
            .expect("the system gives threads");
        let workshop = Workshop {
            scorers,
            labels: info.labels.len(),
            limits: capacity.batch,
            costs: capacity.costs,
            cache: cache.clone(),
        };
        let batcher = Batcher::start(workshop, admission.clone(), metrics.clone());
        Self {
            info,
            encoder: Arc::new(encoder),
            encode_pool,
            admission,
            batcher,
            keys,
            cache,
            metrics,
        }
    }

    /// What is served.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Orders documents by logit, best first. Dropping the future cancels the work.
    ///
    /// # Errors
    /// [`RerankError`]: the model has several labels, a pair is too long and must not be cut, the
    /// queue is full, there is no time left, or scoring failed.
    pub async fn rerank(&self, command: RerankCommand) -> Result<Ranking, RerankError> {
        if self.info.labels.len() != 1 {
            return Err(RerankError::unsupported(format!(
                "this model gives {} scores a pair, which have no order; use `/predict`",
                self.info.labels.len()
            )));
        }
        self.check(command.options())?;
        let terms = Terms {
            field: command.field(),
            options: command.options(),
            claim: command.claim(),
        };
        let scored = self.score(command.pairs(), terms).await?;
        let mut order = rank(&scored.logits, command.ties());
        order.truncate(command.top_n());
        let mut scores: Vec<f32> = order.iter().map(|&index| scored.logits[index]).collect();
        command
            .options()
            .scale
            .apply(self.info.activation, 1, &mut scores);
        Ok(Ranking {
            results: order
                .into_iter()
                .zip(scores)
                .map(|(index, score)| Ranked { index, score })
                .collect(),
            truncated: scored.truncated,
            tokens: scored.tokens,
        })
    }

    /// Scores pairs, each on its own. Dropping the future cancels the work.
    ///
    /// # Errors
    /// [`RerankError`]: softmax was asked of a single label, a pair is too long and must not be cut,
    /// the queue is full, there is no time left, or scoring failed.
    pub async fn predict(&self, command: PredictCommand) -> Result<Prediction, RerankError> {
        self.check(command.options())?;
        let terms = Terms {
            field: command.field(),
            options: command.options(),
            claim: command.claim(),
        };
        let scored = self.score(command.pairs(), terms).await?;
        let labels = self.info.labels.len();
        let mut scores = scored.logits;
        command
            .options()
            .scale
            .apply(self.info.activation, labels, &mut scores);
        Ok(Prediction {
            scores,
            labels,
            truncated: scored.truncated,
            tokens: scored.tokens,
        })
    }

    /// Shows the tokens of each of `texts`, with or without those around it.
    ///
    /// # Errors
    /// When the tokenizer failed.
    pub async fn tokenize(
        &self,
        texts: Vec<String>,
        special: bool,
    ) -> Result<Vec<Vec<TextToken>>, RerankError> {
        self.on_encode_pool(move |encoder, cancelled| {
            texts
                .iter()
                .map(|text| {
                    go_on(cancelled)?;
                    encoder.text_tokens(text, special)
                })
                .collect()
        })
        .await
    }

    /// The texts that lists of token ids stand for, without special tokens where they are skipped.
    ///
    /// # Errors
    /// When the tokenizer failed.
    pub async fn decode(
        &self,
        ids: Vec<Vec<u32>>,
        skip_special: bool,
    ) -> Result<Vec<String>, RerankError> {
        self.on_encode_pool(move |encoder, cancelled| {
            ids.iter()
                .map(|ids| {
                    go_on(cancelled)?;
                    encoder.decode(ids, skip_special)
                })
                .collect()
        })
        .await
    }

    /// Resolves when nothing that was accepted is left unanswered.
    pub async fn drain(&self) {
        self.batcher.idle().await;
    }

    /// As [`Batcher::stop`].
    pub fn stop(&self, limit: Duration) {
        self.batcher.stop(limit);
    }

    fn check(&self, options: ScoreOptions) -> Result<(), RerankError> {
        if options.scale == Scale::Softmax && self.info.labels.len() == 1 {
            return Err(RerankError::unsupported(
                "`softmax` needs several labels; this model has one",
            ));
        }
        Ok(())
    }

    async fn score(&self, pairs: &Arc<[Pair]>, terms: Terms) -> Result<Scored, RerankError> {
        let (timeline, started) = (Timeline::current(), Instant::now());
        let permit = self
            .admission
            .admit(pairs, terms.options.fit.chunks())
            .inspect_err(|_| self.refused("overloaded"))?;
        self.check_time(&permit, terms.claim)?;
        timeline.record(Step::Admission, started, Instant::now());
        let unanswered = Unanswered(&self.metrics);
        let scored = self.score_admitted(pairs, terms, permit).await;
        unanswered.settle();
        scored
    }

    /// Refuses what would not be answered in time, before it costs anything.
    fn check_time(&self, permit: &Permit, claim: Claim) -> Result<(), RerankError> {
        let Some(deadline) = claim.deadline else {
            return Ok(());
        };
        let needed = self.batcher.forecast(permit.estimated(), claim);
        let left = deadline.at.saturating_duration_since(now());
        match needed > left {
            true => {
                self.refused("cannot_finish_in_time");
                Err(RerankError::too_late(needed, needed - left))
            }
            false => Ok(()),
        }
    }

    fn refused(&self, reason: &str) {
        self.metrics.refused.with_label_values(&[reason]).inc();
    }

    async fn score_admitted(
        &self,
        pairs: &Arc<[Pair]>,
        terms: Terms,
        permit: Permit,
    ) -> Result<Scored, RerankError> {
        let Terms { field, options, .. } = terms;
        let (prepared, mut permit) = self.encode(pairs.clone(), terms, permit).await?;
        let Prepared {
            encoded,
            keys,
            known,
        } = prepared;

        let truncated: Vec<usize> = (0..encoded.len())
            .filter(|&index| encoded[index].truncated())
            .collect();
        if let (Truncate::Refuse, Some(&index)) = (options.truncate, truncated.first()) {
            return Err(RerankError::invalid(format!(
                "`{field}[{index}]` is {} tokens long with its query and special tokens; the limit is {}; shorten it, or allow `truncate`",
                encoded[index].full_length, self.info.max_length
            )));
        }
        let parts: Vec<usize> = encoded.iter().map(EncodedPair::parts).collect();
        let tokens = encoded.iter().map(EncodedPair::tokens).sum();
        self.metrics.pairs.inc_by(parts.len() as u64);
        self.metrics.tokens.inc_by(tokens as u64);
        self.metrics.truncated.inc_by(truncated.len() as u64);

        let encodings = encoded.into_iter().flat_map(EncodedPair::encodings);
        let unknown: Vec<(PairKey, Encoding)> = keys
            .into_iter()
            .zip(encodings)
            .zip(&known)
            .filter(|(_, known)| known.is_none())
            .map(|(keyed, _)| keyed)
            .collect();
        if self.cache.is_on() {
            let hits = known.len() - unknown.len();
            self.metrics.cache_hits.inc_by(hits as u64);
            self.metrics.cache_misses.inc_by(unknown.len() as u64);
        }
        let computed = match unknown.is_empty() {
            true => Vec::new(),
            false => {
                let waiting = unknown.iter().map(|(_, encoding)| encoding.len()).sum();
                permit.correct(waiting);
                self.batcher
                    .score(unknown, terms.claim, permit)
                    .await
                    .map_err(|error| self.unscored(error, terms.claim))?
            }
        };
        let logits = merge(&known, computed, self.info.labels.len());
        Ok(Scored {
            logits: best_parts(logits, &parts, self.info.labels.len()),
            truncated,
            tokens,
        })
    }

    /// What a client is told of a request that has no logits.
    fn unscored(&self, error: BatchError, claim: Claim) -> RerankError {
        let by = claim.deadline.map(|deadline| deadline.by);
        match error {
            BatchError::Failed(cause) => RerankError::internal(cause),
            BatchError::TooLate { needed } => {
                self.refused("cannot_finish_in_time");
                let left = claim.deadline.map_or(Duration::ZERO, |deadline| {
                    deadline.at.saturating_duration_since(now())
                });
                RerankError::too_late(needed, needed.saturating_sub(left))
            }
            BatchError::DeadlinePassed { begun } => {
                self.metrics.missed_deadlines.inc();
                match (begun, by) {
                    (false, Some(DeadlineBy::Client)) => RerankError::deadline_passed(),
                    _ => RerankError::out_of_time(self.batcher.delay()),
                }
            }
        }
    }

    /// Tokenises on the pool, so that no thread that answers others is held up, looks up what is known,
    /// and corrects the permit's estimate.
    async fn encode(
        &self,
        pairs: Arc<[Pair]>,
        terms: Terms,
        mut permit: Permit,
    ) -> Result<(Prepared, Permit), RerankError> {
        let started = Instant::now();
        let options = terms.options;
        let to_encode = pairs.clone();
        let (keys, cache) = (self.keys.clone(), self.cache.clone());
        let prepared = self
            .on_encode_pool(move |encoder, cancelled| {
                let fitted = encoder.fitting(options.fit);
                let encoded = encode(&fitted, &to_encode, options.truncate, cancelled)?;
                let keys: Vec<PairKey> = encoded
                    .iter()
                    .flat_map(|pair| std::iter::once(&pair.encoding).chain(&pair.further))
                    .map(|encoding| keys.of(encoding, terms.claim.tenant))
                    .collect();
                let known = keys.iter().map(|&key| cache.get(key)).collect();
                Ok(Prepared {
                    encoded,
                    keys,
                    known,
                })
            })
            .await?;
        let encoded = &prepared.encoded;
        let whole = pairs.iter().zip(encoded).filter(|(_, e)| !e.truncated());
        let (bytes, tokens) = whole.fold((0, 0), |(bytes, tokens), (pair, encoded)| {
            (bytes + pair.bytes(), tokens + encoded.full_length)
        });
        // Where only some tokens of each text were asked for, nobody knows what the rest came to.
        if options.fit == Fit::default() {
            self.admission.observe_density(bytes, tokens);
        }
        permit.correct(encoded.iter().map(EncodedPair::tokens).sum());
        let ended = Instant::now();
        self.metrics
            .tokenize_seconds
            .observe((ended - started).as_secs_f64());
        Timeline::current().record(Step::Tokenize, started, ended);
        Ok((prepared, permit))
    }

    /// Runs `work` on the pool that tokenises, until the caller leaves.
    async fn on_encode_pool<T: Send + 'static>(
        &self,
        work: impl FnOnce(&PairEncoder, &AtomicBool) -> Result<T, EncodeError> + Send + 'static,
    ) -> Result<T, RerankError> {
        let cancelled = CancelOnDrop::default();
        let flag = cancelled.0.clone();
        let encoder = self.encoder.clone();
        let (sender, receiver) = oneshot::channel();
        self.encode_pool.spawn(move || {
            // The client may have left meanwhile; then nobody is left to tell.
            let _ = sender.send(work(&encoder, &flag));
        });
        match receiver.await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(EncodeError::Cancelled)) => {
                Err(RerankError::internal("tokenising was cancelled"))
            }
            Ok(Err(error @ EncodeError::QueryTooLong { .. })) => Err(RerankError::invalid(
                format!("{error}; shorten it, or let it be cut too (`longest_first`)"),
            )),
            Ok(Err(error)) => Err(RerankError::internal(error.to_string())),
            Err(_) => Err(RerankError::internal("the tokeniser panicked")),
        }
    }
}

/// The time of the runtime's clock, which tests stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The logits of all sequences, in their order: those that are `known`, and the others `computed`, each
/// of `labels`.
fn merge(known: &[Option<Arc<[f32]>>], computed: Vec<f32>, labels: usize) -> Vec<f32> {
    if known.iter().all(Option::is_none) {
        return computed;
    }
    let mut computed = computed.chunks_exact(labels);
    let rows = known.iter().map(|row| match row {
        Some(row) => &row[..],
        None => computed.next().expect("what is not known was computed"),
    });
    rows.flatten().copied().collect()
}

fn go_on(cancelled: &AtomicBool) -> Result<(), EncodeError> {
    match cancelled.load(Ordering::Relaxed) {
        true => Err(EncodeError::Cancelled),
        false => Ok(()),
    }
}

/// The logits of each pair's best part: for every label the highest, as one part that answers is
/// enough.
fn best_parts(logits: Vec<f32>, parts: &[usize], labels: usize) -> Vec<f32> {
    if parts.iter().all(|&parts| parts == 1) {
        return logits;
    }
    let mut rows = logits.chunks_exact(labels);
    let mut best = Vec::with_capacity(parts.len() * labels);
    for &parts in parts {
        let start = best.len();
        for (part, row) in rows.by_ref().take(parts).enumerate() {
            match part {
                0 => best.extend_from_slice(row),
                _ => best[start..].iter_mut().zip(row).for_each(|(best, &new)| {
                    // Unlike `max`, this keeps what is no number, which is an error later.
                    if new.total_cmp(best).is_gt() {
                        *best = new;
                    }
                }),
            }
        }
    }
    best
}

/// Tokenises; the first pair that will be refused is counted to its end, to tell the caller.
fn encode(
    encoder: &Fitted,
    pairs: &[Pair],
    truncate: Truncate,
    cancelled: &AtomicBool,
) -> Result<Vec<EncodedPair>, EncodeError> {
    let mut encoded = encoder.encode(pairs, cancelled)?;
    if truncate == Truncate::Refuse
        && let Some(index) = encoded.iter().position(EncodedPair::truncated)
    {
        encoded[index].full_length = encoder.full_length(&pairs[index])?;
    }
    Ok(encoded)
}

/// An admitted request. Dropped before it is settled, its client has left.
struct Unanswered<'a>(&'a Metrics);

impl Unanswered<'_> {
    fn settle(self) {
        std::mem::forget(self);
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.cancelled.inc();
    }
}

/// Tells the tokeniser that nobody waits any more.
#[derive(Default)]
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_as_good_as_its_best_part() {
        let logits = vec![1.0, -3.0, 2.0, 0.5, -7.0, -6.0];
        assert_eq!(best_parts(logits.clone(), &[1, 3, 2], 1), [1.0, 2.0, -6.0]);
        assert_eq!(
            best_parts(logits.clone(), &[1, 2], 2),
            [1.0, -3.0, 2.0, 0.5]
        );
        assert_eq!(best_parts(logits.clone(), &[1; 6], 1), logits);
        assert!(best_parts(vec![1.0, f32::NAN], &[2], 1)[0].is_nan());
    }
}
