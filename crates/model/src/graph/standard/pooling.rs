//! Pooling on padded batches.

use super::{MASKED, Rewriter, int, ints, part, to};
use crate::graph::operator;
use crate::onnx::{DataType, NodeProto};

impl Rewriter {
    /// Expands [`operator::PACKED_POOLING`]: `[batch, width]`.
    pub(super) fn pooling(&mut self, node: &NodeProto) {
        let name = node.output[0].as_str();
        let mode = node.int(operator::MODE).expect("pooling has a mode");

        // [batch, sequence, width]
        let hidden = node.input[0].as_str();
        let second = self.longs("second", &[1], &[1]);
        let shape = self.part(name, "shape", "Shape", &[hidden], &[]);
        let width = self.part(name, "width", "Gather", &[&shape, &second], &[]);
        let columns = self.longs("any", &[1], &[-1]);
        let parts = ["batch", &columns, &width];
        let shape = self.part(name, "rows_of", "Concat", &parts, &[int("axis", 0)]);
        let hidden = self.part(name, "rows", "Reshape", &[hidden, &shape], &[]);
        if mode == operator::MAX {
            let last = self.longs("axis_2", &[1], &[2]);
            let masked = self.floats("masked", &[], &[MASKED]);
            let row = self.part(name, "padding", "Mul", &["is_no_token", &masked], &[]);
            let row = self.part(name, "padding_column", "Unsqueeze", &[&row, &last], &[]);
            let kept = self.part(name, "kept", "Add", &[&hidden, &row], &[]);
            let along = [ints("axes", &[1]), int("keepdims", 0)];
            self.op(name, "ReduceMax", &[&kept], &along);
            return;
        }
        let along = self.longs("axis", &[], &[1]);
        let count = self.part(name, "position", "CumSum", &["is_token", &along], &[]);
        let weights = match mode {
            operator::WEIGHTED_MEAN => self.part(name, "weight", "Mul", &[&count, "is_token"], &[]),
            operator::LAST => {
                let tokens = self.sum(&part(name, "tokens"), "is_token", 1);
                let last = self.part(name, "is_last", "Equal", &[&count, &tokens], &[]);
                let float = [to(DataType::Float)];
                let last = self.part(name, "last", "Cast", &[&last], &float);
                // Padding after the last token has the same count.
                self.part(name, "weight", "Mul", &[&last, "is_token"], &[])
            }
            _ => "is_token".to_owned(),
        };
        let third = self.longs("axis_2", &[1], &[2]);
        let column = self.part(name, "weight_column", "Unsqueeze", &[&weights, &third], &[]);
        let weighted = self.part(name, "weighted", "Mul", &[&hidden, &column], &[]);
        let sum = self.sum(&part(name, "sum"), &weighted, 0);
        let total = self.sum(&part(name, "total"), &weights, 1);
        let total = match mode {
            operator::MEAN_SQRT => self.part(name, "root", "Sqrt", &[&total], &[]),
            _ => total,
        };
        self.op(name, "Div", &[&sum, &total], &[]);
    }

    /// Sum over the second dimension; `keep` is `keepdims`.
    fn sum(&mut self, name: &str, x: &str, keep: i64) -> String {
        let second = self.longs("second", &[1], &[1]);
        self.op(name, "ReduceSum", &[x, &second], &[int("keepdims", keep)])
    }
}
