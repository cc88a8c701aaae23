//! Pooling of the CUDA graph: on padded rows, which only models that need it pay for.

use super::{
    CELLS, LAST_INDEX, Lowering, MEAN_SQRT_WEIGHTS, MEAN_WEIGHTS, WEIGHTED_MEAN_WEIGHTS,
    unsupported,
};
use crate::ModelError;
use crate::graph::builder::STANDARD;
use crate::graph::operator;
use crate::onnx::{AttributeProto, NodeProto};

impl Lowering {
    /// See [`operator::PACKED_POOLING`].
    pub(super) fn pooling(&mut self, node: &NodeProto) -> Result<(), ModelError> {
        let bad = || unsupported(operator::PACKED_POOLING);
        let [hidden, _lengths] = &node.input[..] else {
            return Err(bad());
        };
        let name = &node.name;
        let weights = match node.int(operator::MODE).ok_or_else(bad)? {
            operator::LAST => {
                self.push(name, STANDARD, "Gather", &[hidden, LAST_INDEX], &[]);
                return Ok(());
            }
            operator::MAX => {
                let cells = self.cells(hidden);
                // Padding repeats a token.
                let attributes = [
                    AttributeProto::ints("axes", &[1]),
                    AttributeProto::int("keepdims", 0),
                ];
                self.push(name, STANDARD, "ReduceMax", &[&cells], &attributes);
                return Ok(());
            }
            operator::MEAN => MEAN_WEIGHTS,
            operator::MEAN_SQRT => MEAN_SQRT_WEIGHTS,
            operator::WEIGHTED_MEAN => WEIGHTED_MEAN_WEIGHTS,
            _ => return Err(bad()),
        };
        let cells = self.cells(hidden);
        let sum = format!("{name}.sum");
        self.push(&sum, STANDARD, "MatMul", &[weights, &cells], &[]);
        // 0 copies the dimension.
        self.longs("pooled.shape", &[0, -1]);
        self.push(name, STANDARD, "Reshape", &[&sum, "pooled.shape"], &[]);
        Ok(())
    }

    /// The rows of `hidden` in a padded batch, `[sequences, longest, width]`.
    fn cells(&mut self, hidden: &str) -> String {
        let name = format!("{hidden}.cells");
        if !self.has(&name) {
            self.push(&name, STANDARD, "Gather", &[hidden, CELLS], &[]);
        }
        name
    }
}
