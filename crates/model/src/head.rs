//! The classification head: from hidden states to logits.

use super::{ModelError, Weights};

/// Pooling and the layers after it.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// Pooling modes, concatenated; at least one.
    pub pooling: Vec<Pooling>,
    /// Layers, the last of which gives the logits; at least one.
    pub steps: Vec<HeadStep>,
    /// Subfolders of the model with tensors of their own, named `folder/name`.
    pub folders: Vec<String>,
}

/// Pools the hidden states of a sequence into one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The first token.
    First,
    /// The maximum over all tokens.
    Max,
    /// The mean over all tokens.
    Mean,
    /// The sum divided by the square root of the number of tokens.
    MeanSqrt,
    /// The mean, with weight n for the n-th token.
    WeightedMean,
    /// The last token.
    Last,
    /// The last token that is not this one, the padding token.
    LastBefore(u32),
}

/// A layer of the head.
#[derive(Debug, Clone, PartialEq)]
pub enum HeadStep {
    /// A dense layer.
    Dense(Dense),
    /// LayerNorm.
    Norm(Norm),
    /// Logits of tokens, from the language model's own head.
    LogitScore(LogitScore),
}

/// The logit of one token, or the difference of two: `logit[true] - logit[false]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogitScore {
    /// Id of the token that means "relevant".
    pub true_token: u32,
    /// Id of the token that means "not relevant".
    pub false_token: Option<u32>,
}

/// `activation(x W^T + b)`, plus an optional residual.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dense {
    /// Tensor name, without `.weight` and `.bias`.
    pub name: String,
    /// Output width.
    pub out: usize,
    /// Whether there is a bias.
    pub bias: bool,
    /// Activation.
    pub activation: HeadAct,
    /// Residual connection.
    pub residual: Residual,
}

/// A residual connection around a dense layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Residual {
    /// None.
    None,
    /// Adds the input.
    Input,
    /// Adds the input projected by the matrix of this name.
    Projected(String),
}

/// LayerNorm.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// Tensor name, without `.weight` and `.bias`.
    pub name: String,
    /// Whether there is a bias.
    pub bias: bool,
    /// Added to the variance.
    pub epsilon: f32,
}

/// The activation of a dense layer of the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadAct {
    /// None.
    Identity,
    /// Hyperbolic tangent.
    Tanh,
    /// `max(x, 0)`.
    Relu,
    /// GELU, exact (error function).
    Gelu,
    /// GELU, tanh approximation.
    GeluTanh,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// `x / (1 + e^-x)`.
    Silu,
}

impl Head {
    /// A head on the first (`[CLS]`) token.
    pub(super) fn on_first_token(layers: impl IntoIterator<Item = Dense>) -> Self {
        Self {
            pooling: vec![Pooling::First],
            steps: layers.into_iter().map(HeadStep::Dense).collect(),
            folders: Vec::new(),
        }
    }

    /// A head that reads the logits of the last token.
    pub(super) fn logit_score(score: LogitScore) -> Self {
        Self {
            pooling: vec![Pooling::Last],
            steps: vec![HeadStep::LogitScore(score)],
            folders: Vec::new(),
        }
    }

    /// The tokens whose logits are the score; `None` for a classification head.
    pub fn score_tokens(&self) -> Option<LogitScore> {
        self.steps.iter().find_map(|step| match step {
            HeadStep::LogitScore(score) => Some(*score),
            _ => None,
        })
    }

    /// Whether the head reads only the last token of a sequence, or the last that is not padding.
    pub fn reads_last_token_only(&self) -> bool {
        matches!(self.pooling[..], [Pooling::Last | Pooling::LastBefore(_)])
    }

    /// Whether the head reads only the first token of a sequence.
    pub fn reads_first_token_only(&self) -> bool {
        self.pooling == [Pooling::First]
    }

    /// Whether the head reads every token of a sequence.
    pub fn reads_all_tokens(&self) -> bool {
        let pools = |mode: &Pooling| match mode {
            Pooling::First | Pooling::Last | Pooling::LastBefore(_) => false,
            Pooling::Mean | Pooling::Max | Pooling::MeanSqrt | Pooling::WeightedMean => true,
        };
        self.pooling.iter().any(pools)
    }

    /// Number of logits.
    pub(super) fn outputs(&self) -> usize {
        let outputs = self.steps.iter().rev().find_map(|step| match step {
            HeadStep::Dense(dense) => Some(dense.out),
            HeadStep::LogitScore(_) => Some(1),
            HeadStep::Norm(_) => None,
        });
        outputs.unwrap_or(0)
    }

    /// Rejects weights without this head, which transformers would initialize randomly.
    pub(super) fn check(&self, weights: &Weights, hidden_size: usize) -> Result<(), ModelError> {
        let mut width = hidden_size * self.pooling.len();
        let mut last = None;
        for step in &self.steps {
            if let HeadStep::Dense(dense) = step {
                last = Some((dense, width));
                width = dense.out;
            }
        }
        let Some((dense, width)) = last else {
            return Ok(());
        };
        let name = format!("{}.weight", dense.name);
        let expected = [dense.out, width];
        match weights.shape(&name) {
            Some(shape) if shape == expected => Ok(()),
            Some(shape) => Err(ModelError::new(
                format!(
                    "{}: `{name}` has the shape {shape:?}; {} labels and an input width of {width} require {expected:?}",
                    weights.location(),
                    dense.out,
                ),
                "check that `config.json` (`id2label`) and the weights belong together",
            )),
            None => Err(no_head(&format!(
                "{}: there is no tensor `{name}`",
                weights.location()
            ))),
        }
    }
}

impl Dense {
    /// A layer with a bias, without activation.
    pub(super) fn new(name: impl Into<String>, out: usize) -> Self {
        Self {
            name: name.into(),
            out,
            bias: true,
            activation: HeadAct::Identity,
            residual: Residual::None,
        }
    }

    /// Sets the activation.
    pub(super) fn then(self, activation: HeadAct) -> Self {
        Self { activation, ..self }
    }
}

impl HeadAct {
    /// Parses the name that transformers uses.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "linear" => Self::Identity,
            "tanh" => Self::Tanh,
            "relu" => Self::Relu,
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Self::GeluTanh,
            "sigmoid" => Self::Sigmoid,
            "silu" | "swish" => Self::Silu,
            _ => return None,
        })
    }

    /// Parses the dotted torch path that sentence-transformers saves.
    pub(super) fn from_torch_path(path: &str) -> Option<Self> {
        Some(match path {
            "torch.nn.modules.linear.Identity" | "torch.nn.Identity" => Self::Identity,
            "torch.nn.modules.activation.Tanh" | "torch.nn.Tanh" => Self::Tanh,
            "torch.nn.modules.activation.ReLU" | "torch.nn.ReLU" => Self::Relu,
            "torch.nn.modules.activation.GELU" | "torch.nn.GELU" => Self::Gelu,
            "torch.nn.modules.activation.Sigmoid" | "torch.nn.Sigmoid" => Self::Sigmoid,
            "torch.nn.modules.activation.SiLU" | "torch.nn.SiLU" => Self::Silu,
            _ => return None,
        })
    }
}

pub(super) fn no_head(what: &str) -> ModelError {
    ModelError::new(
        format!("{what}, so this model has no classification head"),
        "pass a cross-encoder; embedding models and base models cannot score pairs without fine-tuning",
    )
}
