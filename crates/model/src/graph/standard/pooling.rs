//! Pooling on padded batches.

use super::{MASKED, Rewriter, int, ints, part, to};
use crate::graph::operator;
use crate::onnx::{DataType, NodeProto};

impl Rewriter {
    /// Expands [`operator::PACKED_POOLING`]: `[batch, width]`.
    pub(super) fn pooling(&mut self, node: &NodeProto) {
        let name = node.output[0].as_str();
        let named = |what: &str| part(name, what);
        let mode = node.int(operator::MODE).expect("pooling has a mode");

        // [batch, sequence, width]
        let hidden = node.input[0].as_str();
        let second = self.longs("second", &[1], &[1]);
        self.op(&named("shape"), "Shape", &[hidden], &[]);
        self.op(&named("width"), "Gather", &[&named("shape"), &second], &[]);
        let columns = self.longs("any", &[1], &[-1]);
        let parts = ["batch", &columns, &named("width")];
        let shape = self.op(&named("rows_of"), "Concat", &parts, &[int("axis", 0)]);
        let hidden = self.op(&named("rows"), "Reshape", &[hidden, &shape], &[]);
        if mode == operator::MAX {
            let last = self.longs("axis_2", &[1], &[2]);
            let masked = self.floats("masked", &[], &[MASKED]);
            let row = self.op(&named("padding"), "Mul", &["is_no_token", &masked], &[]);
            let row = self.op(&named("padding_column"), "Unsqueeze", &[&row, &last], &[]);
            let kept = self.op(&named("kept"), "Add", &[&hidden, &row], &[]);
            let along = [ints("axes", &[1]), int("keepdims", 0)];
            self.op(name, "ReduceMax", &[&kept], &along);
            return;
        }
        let along = self.longs("axis", &[], &[1]);
        let count = self.op(&named("position"), "CumSum", &["is_token", &along], &[]);
        let weights = match mode {
            operator::WEIGHTED_MEAN => self.op(&named("weight"), "Mul", &[&count, "is_token"], &[]),
            operator::LAST => {
                let tokens = self.sum(&named("tokens"), "is_token", 1);
                let last = self.op(&named("is_last"), "Equal", &[&count, &tokens], &[]);
                let float = [to(DataType::Float)];
                let last = self.op(&named("last"), "Cast", &[&last], &float);
                // Padding after the last token has the same count.
                self.op(&named("weight"), "Mul", &[&last, "is_token"], &[])
            }
            _ => "is_token".to_owned(),
        };
        let third = self.longs("axis_2", &[1], &[2]);
        let column = self.op(
            &named("weight_column"),
            "Unsqueeze",
            &[&weights, &third],
            &[],
        );
        let weighted = self.op(&named("weighted"), "Mul", &[&hidden, &column], &[]);
        let sum = self.sum(&named("sum"), &weighted, 0);
        let total = self.sum(&named("total"), &weights, 1);
        let total = match mode {
            operator::MEAN_SQRT => self.op(&named("root"), "Sqrt", &[&total], &[]),
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
