//! A fake model with predictable scores, behind the real encoder and the real batcher.

use std::sync::{Arc, Mutex};

use rerankd::http::state::AppState;
use rerankd_core::Activation;
use rerankd_core::Batch;
use rerankd_engine::config::QueueLimits;
use rerankd_engine::cost::Costs;
use rerankd_engine::plan::BatchLimits;
use rerankd_engine::service::{ModelInfo, Prepared, Reranker};
use rerankd_engine::{Host, HostConfig};
use rerankd_model::TokenizerConfig;
use rerankd_model::encoder::{Encoder, PairEncoder};
use rerankd_model::prompt::{ChatConfig, Layout, MessageFormat, PromptConfig, PromptEncoder};
use rerankd_runtime::{ScoreError, Scorer};
use tokio::sync::Semaphore;

/// Maximum tokens of a pair of the default [`Model`], with three special tokens.
pub const MAX_LENGTH: usize = 16;

/// A model that scores a document by its number of words after truncation.
#[derive(Clone)]
pub struct Model {
    /// Number of labels; the logits of a document are `logit(words) + 0, 1, …`.
    pub labels: usize,
    pub activation: Activation,
    pub logit: fn(usize) -> f32,
    /// A batch with a document of this many words fails.
    pub fails: fn(usize) -> bool,
    /// Maximum tokens of a pair.
    pub max_length: usize,
    /// Pairs are written as prompts, and scored by all of their ids.
    pub prompts: bool,
    /// Number of workers.
    pub workers: usize,
    /// Initial cost model.
    pub costs: Option<Costs>,
    /// Blocks each batch.
    pub gate: Option<Gate>,
    /// Records the batches.
    pub seen: Seen,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            labels: 1,
            activation: Activation::Identity,
            logit: |words| words as f32,
            fails: |_| false,
            max_length: MAX_LENGTH,
            prompts: false,
            workers: 1,
            costs: None,
            gate: None,
            seen: Seen::default(),
        }
    }
}

/// Batches received by a model.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<Vec<SeenBatch>>>);

struct SeenBatch {
    words: Vec<usize>,
    alone: bool,
}

impl Seen {
    /// Words of the documents of each batch.
    pub fn batches(&self) -> Vec<Vec<usize>> {
        let seen = self.0.lock().unwrap();
        seen.iter().map(|batch| batch.words.clone()).collect()
    }

    /// Whether each batch was marked as alone.
    pub fn alone(&self) -> Vec<bool> {
        let seen = self.0.lock().unwrap();
        seen.iter().map(|batch| batch.alone).collect()
    }

    pub fn pairs(&self) -> usize {
        self.batches().iter().map(Vec::len).sum()
    }
}

/// Blocks a model until the test releases it.
#[derive(Clone)]
pub struct Gate {
    entered: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl Gate {
    pub fn new() -> Self {
        let closed = || Arc::new(Semaphore::new(0));
        Self {
            entered: closed(),
            open: closed(),
        }
    }

    /// Resolves when the model has received a batch.
    pub async fn entered(&self) {
        self.entered.acquire().await.unwrap().forget();
    }

    /// Releases one batch.
    pub fn open(&self) {
        self.open.add_permits(1);
    }

    /// Releases all batches from now on.
    pub fn open_for_good(&self) {
        self.open.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    fn pass(&self) {
        self.entered.add_permits(1);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async { self.open.acquire().await.unwrap().forget() });
    }
}

impl Scorer for Model {
    fn score(&mut self, batch: &Batch) -> Result<Vec<f32>, ScoreError> {
        self.run(batch, false)
    }

    fn score_alone(&mut self, batch: &Batch) -> Result<Vec<f32>, ScoreError> {
        self.run(batch, true)
    }
}

impl Model {
    fn run(&self, batch: &Batch, alone: bool) -> Result<Vec<f32>, ScoreError> {
        let words = match self.prompts {
            true => sums(batch),
            false => words(batch),
        };
        let seen = SeenBatch {
            words: words.clone(),
            alone,
        };
        self.seen.0.lock().unwrap().push(seen);
        if let Some(gate) = &self.gate {
            gate.pass();
        }
        let mut logits = Vec::new();
        for words in words {
            if (self.fails)(words) {
                return Err(ScoreError(format!("{words} words are too much")));
            }
            let logit = (self.logit)(words);
            logits.extend((0..self.labels).map(|label| logit + label as f32));
        }
        Ok(logits)
    }
}

/// Words of the documents of a batch.
fn words(batch: &Batch) -> Vec<usize> {
    let mut types = batch.type_ids();
    let mut words = Vec::new();
    for &length in batch.lengths() {
        let (sequence, rest) = types.split_at(length);
        types = rest;
        // The final special token has the second type too.
        words.push(sequence.iter().filter(|&&kind| kind == 1).count() - 1);
    }
    words
}

/// A number for the ids of each sequence of a batch.
fn sums(batch: &Batch) -> Vec<usize> {
    let mut ids = batch.ids();
    let sum = |&length: &usize| {
        let (sequence, rest) = ids.split_at(length);
        ids = rest;
        let add = |sum: usize, (at, id): (usize, &u32)| (sum + (at + 1) * *id as usize) % 9973;
        sequence.iter().enumerate().fold(0, add)
    };
    batch.lengths().iter().map(sum).collect()
}

/// The encoder of a small causal model.
fn prompts(max_length: usize) -> PromptEncoder {
    let template = "{% if messages[0].role == 'system' %}{{ messages[0].content }} {% endif %}\
                    {{ messages[-2].content }} w0 {{ messages[-1].content }} w1";
    let config = PromptConfig {
        layout: Layout::Chat(ChatConfig {
            template: template.to_owned(),
            variables: serde_json::Map::new(),
            format: MessageFormat::Flat,
            restore_suffix: true,
        }),
        prompts: [("named".to_owned(), "w2 w3".to_owned())].into(),
        default: None,
        origin: "a test".to_owned(),
    };
    let tokenizer = TokenizerConfig::default();
    PromptEncoder::new(&tokenizer_json(), &tokenizer, &config, max_length).unwrap()
}

/// Builds a fake [`Reranker`].
pub fn reranker(model: Model, state: &AppState) -> Arc<Reranker> {
    named("fake", 1, model, &host(state), state)
}

/// What fake models of a server share.
pub fn host(state: &AppState) -> Arc<Host> {
    let batching = (&state.config().batching).into();
    let config = HostConfig {
        queue: QueueLimits::of(&batching),
        encode_threads: 1,
        cores: 1,
        cache: (&state.config().cache).into(),
    };
    Host::start(&config, state.metrics().engine.clone()).unwrap()
}

/// Builds a fake [`Reranker`] with this name and share.
pub fn named(
    name: &str,
    share: u32,
    model: Model,
    host: &Arc<Host>,
    state: &AppState,
) -> Arc<Reranker> {
    let info = ModelInfo {
        id: name.to_owned(),
        architecture: "bert".to_owned(),
        format: "safetensors",
        layout: "packed",
        labels: (0..model.labels).map(|i| format!("LABEL_{i}")).collect(),
        max_length: model.max_length,
        activation: model.activation,
        precision: "fp32",
        precision_because: "it is made up".to_owned(),
        instructions: "portable",
        weight_bytes: 0,
        parameters: 7,
        threads: model.workers,
        sessions: model.workers,
        runtime_version: "0.0.0".to_owned(),
        device: "cpu".to_owned(),
        device_because: "it is made up".to_owned(),
        providers: [("CPUExecutionProvider".to_owned(), 3)].into(),
        batch_tokens: state.config().batching.max_batch_tokens,
    };
    let worker = || -> Box<dyn Scorer> { Box::new(model.clone()) };
    let prepared = Prepared {
        info,
        encoder: match model.prompts {
            true => Encoder::from(prompts(model.max_length)),
            false => encoder(model.max_length).into(),
        },
        scorers: (0..model.workers).map(|_| worker()).collect(),
        batch: BatchLimits::of(&(&state.config().batching).into()),
        costs: model.costs.clone().unwrap_or(Costs::guess(model.workers)),
        share,
    };
    Arc::new(Reranker::start_on(host, prepared))
}

/// Words in the vocabulary of the fake tokenizer: `w0`, `w1`, … All others are unknown, and texts with equal
/// tokens are scored once.
pub const WORDS: usize = 4096;

/// A word-level tokenizer with BERT's pair template.
fn encoder(max_length: usize) -> PairEncoder {
    PairEncoder::new(&tokenizer_json(), max_length, None).unwrap()
}

fn tokenizer_json() -> Vec<u8> {
    let mut vocab = serde_json::json!({ "[UNK]": 0, "[CLS]": 1, "[SEP]": 2 });
    for word in 0..WORDS {
        vocab[format!("w{word}")] = (word + 3).into();
    }
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": {
            "type": "BertProcessing",
            "sep": ["[SEP]", 2],
            "cls": ["[CLS]", 1],
        },
        "decoder": null,
        "model": {
            "type": "WordLevel",
            "vocab": vocab,
            "unk_token": "[UNK]",
        },
    });
    tokenizer.to_string().into_bytes()
}
