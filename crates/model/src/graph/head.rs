//! Graph of the classification head: from hidden states to logits.

use super::builder::{CONTRIB, STANDARD, Value};
use super::encoder::EncoderGraph;
use super::{Rows, operator};
use crate::ModelError;
use crate::head::{Dense, HeadAct, HeadStep, Norm, Pooling, Residual};
use crate::onnx::AttributeProto;

/// One row per sequence, `[sequences, width]`.
pub(super) struct Pooled {
    pub(super) rows: Value,
    pub(super) width: usize,
}

impl EncoderGraph<'_> {
    /// Pools hidden states, which are those of `rows`.
    pub(super) fn pooled(&mut self, hidden: &Value, rows: Rows) -> Pooled {
        let model = self.model();
        let modes = &model.manifest.head.pooling;
        let width = modes.len() * model.manifest.encoder.hidden_size;
        let parts: Vec<Value> = modes
            .iter()
            .enumerate()
            .map(|(index, &mode)| match rows {
                Rows::FirstOfEach => hidden.clone(),
                Rows::All => self.pool(&format!("pooled.{index}"), hidden, mode),
            })
            .collect();
        let rows = match &parts[..] {
            [part] => part.clone(),
            parts => self.graph.node(
                "pooled",
                STANDARD,
                "Concat",
                &parts.iter().collect::<Vec<_>>(),
                &[AttributeProto::int("axis", 1)],
            ),
        };
        Pooled { rows, width }
    }

    pub(super) fn pool(&mut self, name: &str, hidden: &Value, mode: Pooling) -> Value {
        let mode = match mode {
            Pooling::First => return self.first_of_each(name, hidden),
            Pooling::Max => operator::MAX,
            Pooling::Mean => operator::MEAN,
            Pooling::MeanSqrt => operator::MEAN_SQRT,
            Pooling::WeightedMean => operator::WEIGHTED_MEAN,
            // What is behind the last token that is not padding was cut off.
            Pooling::Last | Pooling::LastBefore(_) => operator::LAST,
        };
        let lengths = self.lengths();
        self.graph.node(
            name,
            operator::DOMAIN,
            operator::PACKED_POOLING,
            &[hidden, &lengths],
            &[AttributeProto::int(operator::MODE, mode)],
        )
    }

    /// The layers of the head: `[sequences, labels]`.
    pub(super) fn head(&mut self, pooled: Pooled) -> Result<Value, ModelError> {
        let Pooled {
            mut rows,
            mut width,
        } = pooled;
        for step in &self.model().manifest.head.steps {
            match step {
                HeadStep::Dense(dense) => {
                    rows = self.head_dense(dense, &rows, width)?;
                    width = dense.out;
                }
                HeadStep::Norm(norm) => rows = self.head_norm(norm, &rows, width)?,
                HeadStep::LogitScore(score) => {
                    rows = self.logit_score(*score, &rows)?;
                    width = 1;
                }
            }
        }
        Ok(rows)
    }

    fn head_dense(&mut self, dense: &Dense, x: &Value, width: usize) -> Result<Value, ModelError> {
        let Dense {
            name, out, bias, ..
        } = dense;
        let applied = self.dense(name, x, width, *out, *bias)?;
        let activated = self.head_activation(name, applied, dense.activation);
        let residual = match &dense.residual {
            Residual::None => return Ok(activated),
            Residual::Input => x.clone(),
            Residual::Projected(matrix) => self.dense(matrix, x, width, *out, false)?,
        };
        let name = format!("{name}.residual");
        Ok(self.graph.op(&name, "Add", &[&activated, &residual]))
    }

    fn head_activation(&mut self, name: &str, x: Value, activation: HeadAct) -> Value {
        let name = format!("{name}.activated");
        let (domain, operator) = match activation {
            HeadAct::Identity => return x,
            HeadAct::Tanh => (STANDARD, "Tanh"),
            HeadAct::Relu => (STANDARD, "Relu"),
            HeadAct::Gelu => (CONTRIB, "Gelu"),
            HeadAct::GeluTanh => (CONTRIB, "FastGelu"),
            HeadAct::Sigmoid | HeadAct::Silu => (STANDARD, "Sigmoid"),
        };
        let activated = self.graph.node(&name, domain, operator, &[&x], &[]);
        if activation != HeadAct::Silu {
            return activated;
        }
        let name = format!("{name}.silu");
        self.graph.op(&name, "Mul", &[&x, &activated])
    }

    fn head_norm(&mut self, norm: &Norm, x: &Value, width: usize) -> Result<Value, ModelError> {
        self.plain_norm(&norm.name, x, width, norm.bias, norm.epsilon)
    }
}
