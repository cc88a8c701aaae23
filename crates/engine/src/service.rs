//! The steps of a request, in order: admit, tokenize, score, rank.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::admission::Refusal;
use crate::batcher::{BatchError, Demand, LaneConfig, ModelBatcher, Permit};
use crate::cache::{PairKeys, ScoreCache};
use crate::config::{CacheConfig, QueueLimits};
use crate::cost::Costs;
use crate::estimate::TokenEstimator;
use crate::host::{Host, HostConfig};
use crate::metrics::Metrics;
use crate::plan::BatchLimits;
use crate::tokenizing::{CHUNK_COST, Chunk, PoolError, Tokenizing};
use crate::trace::{Step, Timeline};
use rerankd_core::{
    Activation, DeadlineBy, Instruction, InstructionPolicy, Pair, PredictCommand, Prediction,
    Ranked, Ranking, RerankCommand, RerankError, Scale, SchedulingHints, ScoreOptions, Tenant,
    TruncationOptions, TruncationPolicy, rank, rank_fused,
};
use rerankd_core::{Encoding, PairKey};
use rerankd_model::encoder::{
    BoundEncoder, EncodeError, EncodedPair, EncodedQuery, Encoder, TextToken,
};
use rerankd_runtime::Scorer;

/// Facts about the loaded model, for `/info`, logs and responses.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Model name in responses.
    pub id: String,
    /// Architecture, such as `bert`.
    pub architecture: String,
    /// Source of the graph: `safetensors` if it is built from weights, or `onnx`.
    pub format: &'static str,
    /// Layout of batches: `packed` or `padded`.
    pub layout: &'static str,
    /// Names of the outputs, in order.
    pub labels: Vec<String>,
    /// Maximum number of tokens of a pair, special tokens included.
    pub max_length: usize,
    /// Activation applied to the logits.
    pub activation: Activation,
    /// Precision of the matrix products, such as `fp32`.
    pub precision: &'static str,
    /// Why this precision is used.
    pub precision_because: String,
    /// Instruction set that the CPU kernels use.
    pub instructions: &'static str,
    /// Number of parameters.
    pub parameters: usize,
    /// Memory of the weights, which all sessions share.
    pub weight_bytes: usize,
    /// Scoring threads: sessions times threads per session.
    pub threads: usize,
    /// Number of sessions, each of which scores one batch at a time.
    pub sessions: usize,
    /// Version of ONNX Runtime.
    pub runtime_version: String,
    /// Device that runs the model, in the format of the setting `device`.
    pub device: String,
    /// Why this device was chosen.
    pub device_because: String,
    /// Number of graph nodes that each ONNX Runtime execution provider runs.
    pub providers: BTreeMap<String, usize>,
    /// Maximum number of tokens in a batch.
    pub batch_tokens: usize,
}

impl ModelInfo {
    /// Whether batches of both cost the same: models of the same shape, computed in the same way.
    pub(crate) fn costs_as(&self, other: &Self) -> bool {
        let shape = |info: &Self| {
            (
                info.parameters,
                info.weight_bytes,
                info.labels.len(),
                info.max_length,
            )
        };
        let way = |info: &Self| (info.format, info.layout, info.precision, info.sessions);
        self.architecture == other.architecture
            && shape(self) == shape(other)
            && way(self) == way(other)
            && (&self.device, &self.providers) == (&other.device, &other.providers)
    }
}

/// The capacity of a [`Reranker`] on its own.
#[derive(Debug, Clone)]
pub struct Capacity {
    /// Limits of a batch.
    pub batch: BatchLimits,
    /// Limits of the queue.
    pub queue: QueueLimits,
    /// Number of tokenizer threads.
    pub encode_threads: usize,
    /// The score cache.
    pub cache: CacheConfig,
    /// Cost of batches.
    pub costs: Costs,
}

/// A model on its way into a [`Host`].
pub struct Prepared {
    /// What it is.
    pub info: ModelInfo,
    /// Tokenizes for it.
    pub encoder: Encoder,
    /// One for each of as many workers; each runs the model.
    pub scorers: Vec<Box<dyn Scorer>>,
    /// Limits of a batch.
    pub batch: BatchLimits,
    /// Cost of batches.
    pub costs: Costs,
    /// Weight among the models, at least 1.
    pub share: u32,
}

/// Executes commands with one model.
pub struct Reranker {
    info: ModelInfo,
    encoder: Arc<Encoder>,
    estimator: TokenEstimator,
    /// Whether the scorers compute once what the pairs of a request begin with.
    shares_prefixes: bool,
    keys: PairKeys,
    // Dropped before the host: the batcher of the last model joins its workers.
    batcher: ModelBatcher,
    host: Arc<Host>,
}

/// A request's sequences, with those scores that are cached.
#[derive(Default)]
struct Sequences {
    encoded: Vec<EncodedPair>,
    /// One for each sequence, in order.
    keys: Vec<PairKey>,
    /// Cached logits of each sequence.
    known: Vec<Option<Arc<[f32]>>>,
}

impl Sequences {
    fn append(&mut self, mut other: Self) {
        self.encoded.append(&mut other.encoded);
        self.keys.append(&mut other.keys);
        self.known.append(&mut other.known);
    }
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
    /// `encoder` tokenizes for. The model has a host of its own.
    ///
    /// # Panics
    /// When the system refuses a thread.
    pub fn start(
        info: ModelInfo,
        encoder: impl Into<Encoder>,
        scorers: Vec<Box<dyn Scorer>>,
        capacity: Capacity,
        metrics: Arc<Metrics>,
    ) -> Self {
        let config = HostConfig {
            queue: capacity.queue,
            encode_threads: capacity.encode_threads,
            cores: 1,
            cache: capacity.cache,
        };
        let prepared = Prepared {
            info,
            encoder: encoder.into(),
            scorers,
            batch: capacity.batch,
            costs: capacity.costs,
            share: 1,
        };
        let host = Host::start(&config, metrics).expect("one core needs no threads");
        Self::start_on(&host, prepared)
    }

    /// Adds a model to those of `host`.
    ///
    /// # Panics
    /// When the system refuses a thread.
    pub fn start_on(host: &Arc<Host>, model: Prepared) -> Self {
        let info = model.info;
        let scorer = model.scorers.first();
        let shares_prefixes = scorer.is_some_and(|scorer| scorer.shares_prefixes());
        let config = LaneConfig {
            labels: info.labels.len(),
            workers: model.scorers.len(),
            costs: model.costs,
            limits: model.batch,
            share: model.share,
            is_preemptible: false,
        };
        Self {
            // Random, so that models and revisions of one never share cached scores.
            keys: PairKeys::new(&[&info.id, info.precision], host.cache_per_key),
            encoder: Arc::new(model.encoder),
            estimator: TokenEstimator::new(info.max_length, shares_prefixes),
            shares_prefixes,
            batcher: host.batcher.add(config, model.scorers, &info.id),
            host: host.clone(),
            info,
        }
    }

    /// What its batches cost, as far as it is known.
    pub(crate) fn costs(&self) -> Costs {
        self.batcher.costs()
    }

    /// What is served.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Orders documents by logit, or by their combined score, best first. Dropping the future cancels the work.
    ///
    /// # Errors
    /// [`RerankError`]: the model has several labels, a pair is too long and must not be truncated, the queue is
    /// full, the deadline would be missed, or scoring failed.
    pub async fn rerank(&self, command: RerankCommand) -> Result<Ranking, RerankError> {
        if self.info.labels.len() != 1 {
            return Err(RerankError::unsupported(format!(
                "this model gives {} scores a pair, which have no order; use `/predict`",
                self.info.labels.len()
            )));
        }
        let scored = self.score(command.scoring()).await?;
        let fused = command
            .fusion()
            .map(|fusion| fusion.combine(&scored.logits));
        let mut order = match &fused {
            Some(fused) => rank_fused(fused, command.ties()),
            None => rank(&scored.logits, command.ties()),
        };
        order.truncate(command.top_n());
        let mut scores: Vec<f32> = order.iter().map(|&index| scored.logits[index]).collect();
        let scale = command.scoring().options().scale;
        scale.apply(self.info.activation, 1, &mut scores);
        Ok(Ranking {
            results: order
                .into_iter()
                .zip(scores)
                .map(|(index, score)| Ranked {
                    index,
                    score,
                    fused: fused.as_ref().map(|fused| fused[index]),
                })
                .collect(),
            truncated: scored.truncated,
            tokens: scored.tokens,
        })
    }

    /// Scores pairs, each on its own. Dropping the future cancels the work.
    ///
    /// # Errors
    /// [`RerankError`]: softmax was requested of a single label, a pair is too long and must not be truncated, the
    /// queue is full, the deadline would be missed, or scoring failed.
    pub async fn predict(&self, command: PredictCommand) -> Result<Prediction, RerankError> {
        let scored = self.score(&command).await?;
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

    /// The tokens of each of `texts`, with or without special tokens. Dropping the future cancels the work.
    ///
    /// # Errors
    /// When the tokenizer failed.
    pub async fn tokenize(
        &self,
        texts: Vec<String>,
        special: bool,
        hints: SchedulingHints,
    ) -> Result<Vec<Vec<TextToken>>, RerankError> {
        let encoder = self.encoder.clone();
        let tokens = move |text: &String| encoder.text_tokens(text, special);
        self.each(texts, hints, String::len, tokens).await
    }

    /// The texts of lists of token ids, optionally without special tokens. Dropping the future cancels the work.
    ///
    /// # Errors
    /// When the tokenizer failed.
    pub async fn decode(
        &self,
        ids: Vec<Vec<u32>>,
        skip_special: bool,
        hints: SchedulingHints,
    ) -> Result<Vec<String>, RerankError> {
        let encoder = self.encoder.clone();
        let text = move |ids: &Vec<u32>| encoder.decode(ids, skip_special);
        self.each(ids, hints, |ids| BYTES_PER_ID * ids.len(), text)
            .await
    }

    /// Calls `work` for each of `items` on the tokenizing threads, in chunks of about the same `cost`.
    async fn each<I: Send + 'static, T: Send + 'static>(
        &self,
        items: Vec<I>,
        hints: SchedulingHints,
        cost: impl Fn(&I) -> usize,
        work: impl Fn(&I) -> Result<T, EncodeError> + Send + Sync + 'static,
    ) -> Result<Vec<T>, RerankError> {
        let work = Arc::new(work);
        let costs: Vec<usize> = items.iter().map(cost).collect();
        let mut items = items.into_iter();
        let chunks = chunks(&costs).map(|(range, cost)| {
            let work = work.clone();
            let items: Vec<I> = items.by_ref().take(range.len()).collect();
            let work = move || items.iter().map(|item| work(item)).collect();
            Chunk {
                cost,
                work: Box::new(work),
            }
        });
        let tokenizing = self.host.tokenizers.open(hints, costs.iter().sum());
        let results = tokenizing.run(chunks.collect()).await;
        let results: Vec<Vec<T>> = results.map_err(untokenized)?;
        Ok(results.into_iter().flatten().collect())
    }

    /// Resolves when nothing that was accepted is left unanswered.
    pub async fn drain(&self) {
        self.batcher.idle().await;
    }

    /// Whether a worker is left to score.
    pub fn can_serve(&self) -> bool {
        self.batcher.can_serve()
    }

    /// Starts no more batches, of any model of its host, and waits at most `limit` for running ones. Queued pairs
    /// are never scored.
    pub fn stop(&self, limit: Duration) {
        self.host.stop(limit);
    }

    fn metrics(&self) -> &Metrics {
        &self.host.metrics
    }

    fn check(&self, options: ScoreOptions) -> Result<(), RerankError> {
        if options.scale == Scale::Softmax && self.info.labels.len() == 1 {
            return Err(RerankError::unsupported(
                "`softmax` needs several labels; this model has one",
            ));
        }
        Ok(())
    }

    /// The instruction of a request, if the model takes one.
    fn instruction(
        &self,
        instruction: &Instruction,
        options: ScoreOptions,
    ) -> Result<Instruction, RerankError> {
        if self.encoder.takes_instructions() || *instruction == Instruction::Default {
            let bound = self.encoder.bind(options.truncation, instruction);
            bound.map_err(|error| RerankError::invalid(error.to_string()))?;
            return Ok(instruction.clone());
        }
        // An empty one is none.
        if *instruction == Instruction::Text("".into()) {
            return Ok(Instruction::Default);
        }
        match options.instruction {
            InstructionPolicy::Ignore => Ok(Instruction::Default),
            InstructionPolicy::Reject => Err(RerankError::unsupported(
                "this model takes no instruction; leave the field out",
            )),
        }
    }

    async fn score(&self, command: &PredictCommand) -> Result<Scored, RerankError> {
        self.check(command.options())?;
        let instruction = self.instruction(command.instruction(), command.options())?;
        let command = &command.clone().with_instruction(instruction);
        let (timeline, started) = (Timeline::current(), Instant::now());
        timeline.of_model(&self.info.id);
        let bound = self
            .encoder
            .bind(command.options().truncation, command.instruction())
            .map_err(|error| untokenized(PoolError::Encode(error)))?;
        let costs = TextCosts::of(command.pairs(), &bound);
        let permit = self.admit(command, &costs)?;
        let tokenizing = self.host.tokenizers.open(command.hints(), costs.total());
        timeline.record(Step::Admission, started, Instant::now());
        let unanswered = Unanswered(self.metrics());
        let texts = Texts {
            command,
            costs,
            tokenizing,
        };
        let scored = self.score_admitted(texts, permit).await;
        unanswered.settle();
        scored
    }

    /// Rejects a request that would miss its deadline, wait too long or take too much memory, before any work is
    /// done for it.
    fn admit(&self, command: &PredictCommand, costs: &TextCosts) -> Result<Permit, RerankError> {
        let (pairs, hints) = (command.pairs(), command.hints());
        let chunks = command.options().truncation.chunks();
        let demand = Demand {
            hints,
            work: self.estimator.work(pairs, costs.overhead, chunks),
            bytes: pairs.iter().map(Pair::bytes).sum::<usize>() + command.instruction().bytes(),
            tokenizing: self.host.tokenizers.expect(hints, costs.total()),
        };
        self.batcher.admit(demand).map_err(|refusal| {
            self.refused(refusal.reason());
            refusal.into()
        })
    }

    fn refused(&self, reason: &str) {
        self.metrics().refused.with_label_values(&[reason]).inc();
        self.batcher.metrics().refused.inc();
    }

    async fn score_admitted(
        &self,
        texts: Texts<'_>,
        permit: Permit,
    ) -> Result<Scored, RerankError> {
        let (command, hints) = (texts.command, texts.command.hints());
        let encoding = self.encode(texts, permit);
        let (prepared, mut permit) = match hints.deadline {
            None => encoding.await?,
            Some(deadline) => {
                let at = tokio::time::Instant::from_std(deadline.at);
                let passed = BatchError::DeadlinePassed { begun: false };
                tokio::time::timeout_at(at, encoding)
                    .await
                    .map_err(|_| self.unscored(passed, hints))??
            }
        };
        let Sequences {
            encoded,
            keys,
            known,
        } = prepared;

        let truncated: Vec<usize> = (0..encoded.len())
            .filter(|&index| encoded[index].truncated())
            .collect();
        let policy = command.options().truncate;
        if let (TruncationPolicy::Reject, Some(&index)) = (policy, truncated.first()) {
            let field = command.field();
            return Err(RerankError::invalid(format!(
                "`{field}[{index}]` is {} tokens long with its query and special tokens; the limit is {}; shorten it, or allow `truncate`",
                encoded[index].full_length, self.info.max_length
            )));
        }
        let chunks: Vec<usize> = encoded.iter().map(EncodedPair::chunks).collect();
        let tokens = encoded.iter().map(EncodedPair::tokens).sum();
        self.metrics().pairs.inc_by(chunks.len() as u64);
        self.metrics().tokens.inc_by(tokens as u64);
        let of_model = self.batcher.metrics();
        of_model.pairs.inc_by(chunks.len() as u64);
        of_model.tokens.inc_by(tokens as u64);
        self.metrics().truncated.inc_by(truncated.len() as u64);

        let encodings = encoded.into_iter().flat_map(EncodedPair::encodings);
        let unknown: Vec<(PairKey, Encoding)> = keys
            .into_iter()
            .zip(encodings)
            .zip(&known)
            .filter(|(_, known)| known.is_none())
            .map(|(keyed, _)| keyed)
            .collect();
        if self.host.cache.is_on() {
            let hits = known.len() - unknown.len();
            self.metrics().cache_hits.inc_by(hits as u64);
            self.metrics().cache_misses.inc_by(unknown.len() as u64);
        }
        let computed = match unknown.is_empty() {
            true => Vec::new(),
            false => {
                let prefix = match self.shares_prefixes {
                    true => shared_prefix(unknown.iter().map(|(_, encoding)| encoding)),
                    false => 0,
                };
                let tokens: usize = unknown.iter().map(|(_, encoding)| encoding.len()).sum();
                permit.correct(tokens - prefix * (unknown.len() - 1));
                self.batcher
                    .score(unknown, prefix, hints, permit)
                    .await
                    .map_err(|error| self.unscored(error, hints))?
            }
        };
        let logits = merge(&known, computed, self.info.labels.len());
        Ok(Scored {
            logits: best_parts(logits, &chunks, self.info.labels.len()),
            truncated,
            tokens,
        })
    }

    /// The error of a request that was not scored.
    fn unscored(&self, error: BatchError, hints: SchedulingHints) -> RerankError {
        let by = hints.deadline.map(|deadline| deadline.by);
        match error {
            BatchError::Failed(cause) => RerankError::internal(cause),
            BatchError::NoWorkers => RerankError::no_workers(),
            BatchError::TooLate { needed } => {
                let left = hints.deadline.map_or(Duration::ZERO, |deadline| {
                    deadline.at.saturating_duration_since(now())
                });
                let refusal = Refusal::CannotFinishInTime {
                    needed,
                    retry_after: needed.saturating_sub(left),
                };
                self.refused(refusal.reason());
                refusal.into()
            }
            BatchError::DeadlinePassed { begun } => {
                self.metrics().missed_deadlines.inc();
                match (begun, by) {
                    (false, Some(DeadlineBy::Client)) => RerankError::deadline_passed(),
                    _ => RerankError::out_of_time(self.batcher.delay()),
                }
            }
        }
    }

    /// Tokenizes on the tokenizer threads, looks up cached scores, and corrects the permit's estimate.
    async fn encode(
        &self,
        texts: Texts<'_>,
        mut permit: Permit,
    ) -> Result<(Sequences, Permit), RerankError> {
        let started = Instant::now();
        let (pairs, options) = (texts.command.pairs(), texts.command.options());
        let mut prepared = self.prepare(&texts).await?;
        let encoded = &mut prepared.encoded;
        if options.truncate == TruncationPolicy::Reject
            && let Some(index) = encoded.iter().position(EncodedPair::truncated)
        {
            // The error names the full length of this pair.
            encoded[index].full_length = self.full_length(&texts, index).await?;
        }
        let encoded = &prepared.encoded;
        let whole = pairs.iter().zip(encoded).filter(|(_, e)| !e.truncated());
        let (bytes, tokens) = whole.fold((0, 0), |(bytes, tokens), (pair, encoded)| {
            let read = pair.bytes() + texts.costs.overhead;
            (bytes + read, tokens + encoded.full_length)
        });
        // If only some tokens of each text are read, the density of the rest is unknown.
        if options.truncation == TruncationOptions::default() {
            self.estimator.observe(bytes, tokens);
        }
        permit.correct(encoded.iter().map(EncodedPair::tokens).sum());
        let ended = Instant::now();
        self.metrics()
            .tokenize_seconds
            .observe((ended - started).as_secs_f64());
        Timeline::current().record(Step::Tokenize, started, ended);
        Ok((prepared, permit))
    }

    /// Encodes all pairs: in one chunk if that is enough, otherwise first the queries, then the documents.
    async fn prepare(&self, texts: &Texts<'_>) -> Result<Sequences, RerankError> {
        let Texts { command, costs, .. } = texts;
        let (pairs, instruction) = (command.pairs(), command.instruction());
        let (truncation, total) = (command.options().truncation, costs.total());
        let finish = Finish {
            keys: self.keys.clone(),
            cache: self.host.cache.clone(),
            tenant: command.hints().tenant,
        };
        if total <= CHUNK_COST {
            let (encoder, pairs) = (self.encoder.clone(), Arc::clone(pairs));
            let instruction = instruction.clone();
            let work = move || {
                let encoded = encoder
                    .bind(truncation, &instruction)?
                    .encode(&pairs, &AtomicBool::new(false))?;
                Ok(finish.prepared(encoded))
            };
            let chunk = Chunk {
                cost: total,
                work: Box::new(work),
            };
            let mut prepared = texts.run(vec![chunk]).await?;
            return Ok(prepared.pop().unwrap_or_default());
        }

        let first = Arc::new(costs.first.clone());
        let chunks_of_queries = chunks(&costs.queries).map(|(range, cost)| {
            let (encoder, pairs, first) = (self.encoder.clone(), Arc::clone(pairs), first.clone());
            let instruction = instruction.clone();
            let work = move || {
                let fitted = encoder.bind(truncation, &instruction)?;
                let queries = first[range]
                    .iter()
                    .map(|&at| fitted.query(&pairs[at].query));
                queries.collect::<Result<Vec<EncodedQuery>, _>>()
            };
            Chunk {
                cost,
                work: Box::new(work),
            }
        });
        let queries = texts.run(chunks_of_queries.collect()).await?;
        let queries: Arc<[EncodedQuery]> = queries.into_iter().flatten().collect();

        let query_of = Arc::new(costs.query_of.clone());
        let chunks_of_documents = chunks(&costs.documents).map(|(range, cost)| {
            let (encoder, pairs) = (self.encoder.clone(), Arc::clone(pairs));
            let query_of = query_of.clone();
            let instruction = instruction.clone();
            let (queries, finish) = (queries.clone(), finish.clone());
            let work = move || {
                let fitted = encoder.bind(truncation, &instruction)?;
                let encoded =
                    range.map(|at| fitted.pair(&queries[query_of[at]], &pairs[at].document));
                Ok(finish.prepared(encoded.collect::<Result<_, _>>()?))
            };
            Chunk {
                cost,
                work: Box::new(work),
            }
        });
        let parts = texts.run(chunks_of_documents.collect()).await?;
        let mut prepared = Sequences::default();
        for part in parts {
            prepared.append(part);
        }
        Ok(prepared)
    }

    /// Number of tokens of a pair before truncation.
    async fn full_length(&self, texts: &Texts<'_>, index: usize) -> Result<usize, RerankError> {
        let (encoder, command) = (self.encoder.clone(), texts.command.clone());
        let cost = texts.costs.overhead + command.pairs()[index].bytes();
        let work = move || {
            encoder
                .bind(command.options().truncation, command.instruction())?
                .full_length(&command.pairs()[index])
        };
        let chunk = Chunk {
            cost,
            work: Box::new(work),
        };
        let lengths = texts.run(vec![chunk]).await?;
        Ok(lengths[0])
    }
}

/// The texts of an admitted request, and its access to the tokenizer threads.
struct Texts<'a> {
    command: &'a PredictCommand,
    costs: TextCosts,
    tokenizing: Tokenizing<'a>,
}

impl Texts<'_> {
    async fn run<T: Send + 'static>(&self, chunks: Vec<Chunk<T>>) -> Result<Vec<T>, RerankError> {
        self.tokenizing.run(chunks).await.map_err(untokenized)
    }
}

/// The error of texts that were not tokenized.
fn untokenized(error: PoolError) -> RerankError {
    match error {
        PoolError::Encode(error @ EncodeError::QueryTooLong { .. }) => RerankError::invalid(
            format!("{error}; shorten it, or let it be cut too (`longest_first`)"),
        ),
        PoolError::Encode(
            error @ (EncodeError::Template(_)
            | EncodeError::EmptyPrompt
            | EncodeError::PromptTooLong { .. }
            | EncodeError::UnknownPrompt { .. }
            | EncodeError::NoInstruction),
        ) => RerankError::invalid(error.to_string()),
        error => RerankError::internal(error.to_string()),
    }
}

/// Cost of tokenizing pairs. Consecutive pairs with the same query share its tokens.
struct TextCosts {
    /// Approximate bytes of each pair besides its texts: special tokens and prompt.
    overhead: usize,
    /// Of each pair.
    documents: Vec<usize>,
    /// Of each query that is tokenized.
    queries: Vec<usize>,
    /// The first pair with each query.
    first: Vec<usize>,
    /// The query of each pair.
    query_of: Vec<usize>,
}

impl TextCosts {
    fn of(pairs: &[Pair], encoder: &BoundEncoder) -> Self {
        let same = |a: &Pair, b: &Pair| Arc::ptr_eq(&a.query, &b.query) || a.query == b.query;
        let mut first = Vec::new();
        let mut query_of = Vec::with_capacity(pairs.len());
        for (index, pair) in pairs.iter().enumerate() {
            if index == 0 || !same(&pairs[index - 1], pair) {
                first.push(index);
            }
            query_of.push(first.len() - 1);
        }
        let document =
            |pair: &Pair| TEXT_COST + encoder.pair_cost(pair.query.len(), pair.document.len());
        let query = |&at: &usize| TEXT_COST + encoder.query_cost(pairs[at].query.len());
        Self {
            overhead: encoder.overhead(),
            documents: pairs.iter().map(document).collect(),
            queries: first.iter().map(query).collect(),
            first,
            query_of,
        }
    }

    fn total(&self) -> usize {
        self.queries.iter().chain(&self.documents).sum()
    }
}

/// Fixed cost of a text, in bytes.
const TEXT_COST: usize = 64;
/// Approximate bytes of text per token id.
const BYTES_PER_ID: usize = 4;

/// Splits items of these `costs` into ranges of about [`CHUNK_COST`], each with its cost. An item that costs
/// more has a range of its own.
fn chunks(costs: &[usize]) -> impl Iterator<Item = (Range<usize>, usize)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let mut total = *costs.get(start)?;
        let mut end = start + 1;
        while let Some(cost) = costs.get(end)
            && total + cost <= CHUNK_COST
        {
            total += cost;
            end += 1;
        }
        let range = start..end;
        start = end;
        Some((range, total))
    })
}

/// Work on encoded pairs that is done on the tokenizer thread.
#[derive(Clone)]
struct Finish {
    keys: PairKeys,
    cache: Arc<ScoreCache>,
    tenant: Tenant,
}

impl Finish {
    /// Looks up the cached scores of `encoded`.
    fn prepared(&self, encoded: Vec<EncodedPair>) -> Sequences {
        let parts = encoded
            .iter()
            .flat_map(|pair| std::iter::once(&pair.encoding).chain(&pair.further_chunks));
        let keys: Vec<PairKey> = parts
            .map(|encoding| self.keys.of(encoding, self.tenant))
            .collect();
        let known = keys.iter().map(|&key| self.cache.get(key)).collect();
        Sequences {
            encoded,
            keys,
            known,
        }
    }
}

/// The time of the runtime's clock, which tests pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Tokens that all sequences begin with; every one keeps a token of its own.
fn shared_prefix<'a>(encodings: impl IntoIterator<Item = &'a Encoding>) -> usize {
    let mut encodings = encodings.into_iter();
    let Some(Encoding { ids: first, .. }) = encodings.next() else {
        return 0;
    };
    encodings.fold(
        first.len().saturating_sub(1),
        |prefix, Encoding { ids, .. }| {
            let equal = first.iter().zip(ids).take_while(|(a, b)| a == b).count();
            prefix.min(equal).min(ids.len().saturating_sub(1))
        },
    )
}

/// The logits of all sequences, in order: the `known` ones, and the `computed` others, each `[labels]`.
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

/// The logits of each pair's best chunk: the maximum per label, since one relevant chunk is enough.
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
                    // Unlike `max`, this keeps NaN, which is an error later.
                    if new.total_cmp(best).is_gt() {
                        *best = new;
                    }
                }),
            }
        }
    }
    best
}

/// An admitted request. If it is dropped before it is settled, its client has disconnected.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_all_items_and_no_more_than_one_is_too_large() {
        let half = CHUNK_COST / 2;
        let costs = [half, half, 1, 2 * CHUNK_COST, 1, half, half];
        let found: Vec<_> = chunks(&costs).collect();
        let expected = [
            (0..2, CHUNK_COST),
            (2..3, 1),
            (3..4, 2 * CHUNK_COST),
            (4..6, half + 1),
            (6..7, half),
        ];
        assert_eq!(found, expected);
        assert_eq!(chunks(&[]).count(), 0);
    }

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
