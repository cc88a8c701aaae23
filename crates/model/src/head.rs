//! What turns the hidden states of a sequence into its logits.

use super::{ModelError, Weights};

/// Pooling, and the layers behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// How the tokens of a sequence become one vector; several are laid side by side. At least one.
    pub pooling: Vec<Pooling>,
    /// What is done to that vector, the last of which gives the logits. At least one.
    pub steps: Vec<HeadStep>,
    /// Folders of the model whose tensors are read, as `folder/name`.
    pub folders: Vec<String>,
}

/// How the tokens of a sequence become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The first token.
    First,
    /// The largest number of each dimension.
    Max,
    /// The mean.
    Mean,
    /// The sum over the root of the number of tokens.
    MeanSqrt,
    /// The mean, where the n-th token counts n times.
    WeightedMean,
    /// The last token.
    Last,
}

/// A layer of the head.
#[derive(Debug, Clone, PartialEq)]
pub enum HeadStep {
    /// A dense layer.
    Dense(Dense),
    /// LayerNorm.
    Norm(Norm),
}

/// `activation(x W^T + b)`, and `x` or a projection of it beside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dense {
    /// The name of its tensors, without `.weight` and `.bias`.
    pub name: String,
    /// Outputs.
    pub out: usize,
    /// Whether there is a bias.
    pub bias: bool,
    /// What follows.
    pub activation: HeadAct,
    /// What is added to the result.
    pub residual: Residual,
}

/// What a dense layer's result is added to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Residual {
    /// Nothing.
    None,
    /// Its input.
    Input,
    /// Its input times a matrix of this name.
    Projected(String),
}

/// LayerNorm.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// The name of its tensors, without `.weight` and `.bias`.
    pub name: String,
    /// Whether there is a bias.
    pub bias: bool,
    /// Added to the variance.
    pub epsilon: f32,
}

/// What follows a dense layer of the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadAct {
    /// Nothing.
    Identity,
    /// Hyperbolic tangent.
    Tanh,
    /// `max(x, 0)`.
    Relu,
    /// GELU by the error function.
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// `x / (1 + e^-x)`.
    Silu,
}

impl Head {
    /// A head that reads the first token.
    pub(super) fn of_first_token(layers: impl IntoIterator<Item = Dense>) -> Self {
        Self {
            pooling: vec![Pooling::First],
            steps: layers.into_iter().map(HeadStep::Dense).collect(),
            folders: Vec::new(),
        }
    }

    /// Whether only the first token of a sequence is read.
    pub fn reads_first_token_only(&self) -> bool {
        self.pooling == [Pooling::First]
    }

    /// Numbers it gives.
    pub(super) fn outputs(&self) -> usize {
        let dense = self.steps.iter().rev().find_map(|step| match step {
            HeadStep::Dense(dense) => Some(dense.out),
            HeadStep::Norm(_) => None,
        });
        dense.unwrap_or(0)
    }

    /// Refuses weights without this head: transformers would make up a random one.
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
                    "{}: `{name}` has the shape {shape:?}; {} labels and {width} numbers before them make it {expected:?}",
                    weights.place(),
                    dense.out,
                ),
                "check that `config.json` (`id2label`) and the weights belong together",
            )),
            None => Err(no_head(&format!(
                "{}: there is no tensor `{name}`",
                weights.place()
            ))),
        }
    }
}

impl Dense {
    /// A layer with a bias and nothing behind it.
    pub(super) fn new(name: impl Into<String>, out: usize) -> Self {
        Self {
            name: name.into(),
            out,
            bias: true,
            activation: HeadAct::Identity,
            residual: Residual::None,
        }
    }

    /// The same with an activation behind it.
    pub(super) fn then(self, activation: HeadAct) -> Self {
        Self { activation, ..self }
    }
}

impl HeadAct {
    /// The function that transformers knows by this name.
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

    /// The function that sentence-transformers names by the path of its class in torch.
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
        "pass a cross-encoder; an embedding model or a bare base model cannot judge a pair until it is trained to",
    )
}
