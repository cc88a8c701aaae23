//! Converts logits to scores.

/// The activation function of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `1 / (1 + e^-x)`: scores in 0..1.
    Sigmoid,
    /// The logit itself.
    Identity,
}

impl Activation {
    /// Parses the dotted torch path that sentence-transformers saves; `None` for any other function.
    pub fn from_torch_path(path: &str) -> Option<Self> {
        match path {
            "torch.nn.modules.activation.Sigmoid" | "torch.nn.Sigmoid" => Some(Self::Sigmoid),
            "torch.nn.modules.linear.Identity" | "torch.nn.Identity" => Some(Self::Identity),
            _ => None,
        }
    }

    /// The name in logs and responses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sigmoid => "sigmoid",
            Self::Identity => "identity",
        }
    }

    /// Applies the function to one logit.
    pub fn apply(self, logit: f32) -> f32 {
        match self {
            Self::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
            Self::Identity => logit,
        }
    }
}

/// The scale of scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scale {
    /// The model's own activation.
    #[default]
    Activated,
    /// 0 to 1 regardless of the model's activation: sigmoid for one label, softmax for several.
    Unit,
    /// Raw logits.
    Raw,
    /// The model's activation, then a softmax over the labels, as `apply_softmax` of
    /// sentence-transformers does.
    Softmax,
}

impl Scale {
    /// Raw logits if requested, else scores between 0 and 1.
    pub fn unit_or_raw(raw: Option<bool>) -> Self {
        if raw == Some(true) {
            Self::Raw
        } else {
            Self::Unit
        }
    }

    /// Converts logits, `[pairs, labels]`, to scores in place.
    pub fn apply(self, activation: Activation, labels: usize, logits: &mut [f32]) {
        let (activation, over_labels) = match self {
            Self::Raw => return,
            Self::Activated => (activation, false),
            Self::Softmax => (activation, true),
            Self::Unit if labels == 1 => (Activation::Sigmoid, false),
            Self::Unit => (Activation::Identity, true),
        };
        for logit in logits.iter_mut() {
            *logit = activation.apply(*logit);
        }
        if over_labels {
            logits.chunks_exact_mut(labels).for_each(softmax);
        }
    }
}

fn softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in row.iter_mut() {
        *value = (*value - max).exp();
        sum += *value;
    }
    for value in row.iter_mut() {
        *value /= sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_is_per_row() {
        let mut scores = [1.0, 2.0, 3.0, 1000.0, 0.0, 0.0];
        Scale::Softmax.apply(Activation::Identity, 3, &mut scores);
        assert!((scores[..3].iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!(scores[3..], [1.0, 0.0, 0.0]);
    }

    #[test]
    fn unit_scores_are_between_0_and_1_for_every_activation() {
        for activation in [Activation::Identity, Activation::Sigmoid] {
            let mut scores = [0.0, 9.0];
            Scale::Unit.apply(activation, 1, &mut scores);
            assert_eq!(scores[0], 0.5);
            assert!((0.999..1.0).contains(&scores[1]));
            let mut scores = [7.0, 7.0];
            Scale::Unit.apply(activation, 2, &mut scores);
            assert_eq!(scores, [0.5, 0.5]);
        }
    }

    #[test]
    fn sigmoid_is_finite_everywhere() {
        for logit in [-1e30, -100.0, 0.0, 100.0, 1e30] {
            let score = Activation::Sigmoid.apply(logit);
            assert!((0.0..=1.0).contains(&score), "{logit} -> {score}");
        }
    }

    #[test]
    fn unknown_activations_are_rejected() {
        assert_eq!(
            Activation::from_torch_path("torch.nn.modules.activation.Tanh"),
            None
        );
    }
}
