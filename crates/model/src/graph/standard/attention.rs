//! Attention on padded batches, with rotary embeddings, relative position bias, disentangled attention and sliding
//! windows.

use super::{MASKED, Rewriter, int, ints, part, to};
use crate::graph::operator;
use crate::onnx::{DataType, NodeProto};

/// Queries, keys, query bias and lengths precede the optional inputs.
const FIXED_INPUTS: usize = 4;

impl Rewriter {
    /// Expands [`operator::PACKED_ATTENTION`].
    pub(super) fn attention(&mut self, node: &NodeProto) {
        let name = node.output[0].as_str();
        let [query, keys, bias] = [0, 1, 2].map(|index| node.input[index].as_str());
        let optional = |index: usize| {
            let name = node.input.get(FIXED_INPUTS + index)?.as_str();
            (!name.is_empty()).then_some(name)
        };
        let width = self.weights[bias].shape[0] as i64;
        let heads = node.int(operator::HEADS).expect("attention has heads");
        let size = width / heads;

        let [q, k, v] = ["q", "k", "v"].map(|what| part(name, what));
        let query = if query == keys {
            let sizes = self.longs(&format!("three_of_{width}"), &[3], &[width; 3]);
            self.split(&[query, &sizes], &[&q, &k, &v], 1);
            q.as_str()
        } else {
            let sizes = self.longs(&format!("two_of_{width}"), &[2], &[width; 2]);
            self.split(&[keys, &sizes], &[&k, &v], 1);
            query
        };
        let q = self.part(name, "q_biased", "Add", &[query, bias], &[]);
        let [q, k, v] = [q, k, v].map(|x| self.by_head(&x, heads, size));
        let table = optional(operator::ROTARY_INPUT);
        let distances = optional(operator::BIAS_INPUT);
        let disentangled = match (
            optional(operator::POSITION_KEYS_INPUT),
            optional(operator::POSITION_QUERIES_INPUT),
            optional(operator::BUCKETS_INPUT),
        ) {
            (Some(keys), Some(queries), Some(buckets)) => Some([keys, queries, buckets]),
            _ => None,
        };
        let window = node.int(operator::WINDOW);
        if table.is_some() || distances.is_some() || disentangled.is_some() || window.is_some() {
            // One query per token, or one per sequence.
            self.part(name, "q_shape", "Shape", &[&q], &[]);
            let third = self.longs("third", &[1], &[2]);
            let shape = part(name, "q_shape");
            self.part(name, "query_length", "Gather", &[&shape, &third], &[]);
        }
        let (q, k) = match table {
            Some(table) => {
                let second = self.longs("second", &[1], &[1]);
                self.part(name, "key_length", "Gather", &["shape", &second], &[]);
                let half = self.longs(&format!("two_of_{}", size / 2), &[2], &[size / 2; 2]);
                let mut rotated = |x: &str, rows: &str| self.rotated(x, [table, rows, &half]);
                (
                    rotated(&q, &part(name, "query_length")),
                    rotated(&k, &part(name, "key_length")),
                )
            }
            None => (q, k),
        };
        let order = [ints("perm", &[0, 1, 3, 2])];
        let columns = self.part(name, "k_transposed", "Transpose", &[&k], &order);
        let mut scores = self.part(name, "scores", "MatMul", &[&q, &columns], &[]);
        if let Some(tables) = disentangled {
            let added = self.relative_scores(name, [&q, &columns, &scores], tables, [heads, size]);
            scores = self.part(name, "scores_relative", "Add", &[&scores, &added], &[]);
        }
        if distances.is_some() || window.is_some() {
            let distance = self.distance(name);
            if let Some(table) = distances {
                let added = self.relative_bias(name, &distance, table);
                scores = self.part(name, "scores_biased", "Add", &[&scores, &added], &[]);
            }
            if let Some(window) = window {
                let added = self.window_mask(name, &distance, window);
                scores = self.part(name, "scores_windowed", "Add", &[&scores, &added], &[]);
            }
        }
        let scores = self.part(name, "masked", "Add", &[&scores, "mask"], &[]);
        let last = [int("axis", -1)];
        let weights = self.part(name, "weights", "Softmax", &[&scores], &last);
        let context = self.part(name, "heads", "MatMul", &[&weights, &v], &[]);
        let order = [ints("perm", &[0, 2, 1, 3])];
        let context = self.part(name, "perm", "Transpose", &[&context], &order);
        let flat = self.longs(&format!("rows_{width}"), &[2], &[-1, width]);
        self.op(name, "Reshape", &[&context, &flat], &[]);
    }

    /// Reshapes `[tokens, width]` to `[batch, heads, sequence, size]`.
    fn by_head(&mut self, x: &str, heads: i64, size: i64) -> String {
        let rest = self.longs(&format!("heads_{heads}_{size}"), &[3], &[-1, heads, size]);
        let shape = format!("by_head_{heads}_{size}");
        if !self.nodes.iter().any(|node| node.name == shape) {
            self.op(&shape, "Concat", &["batch", &rest], &[int("axis", 0)]);
        }
        let rows = self.part(x, "heads", "Reshape", &[x, &shape], &[]);
        let order = [ints("perm", &[0, 2, 1, 3])];
        self.part(x, "perm", "Transpose", &[&rows], &order)
    }

    /// Applies rotary position embeddings: the first `rows` rows of `table`.
    fn rotated(&mut self, x: &str, [table, rows, halves]: [&str; 3]) -> String {
        let [cos, sin, a, b] = ["cosines", "sines", "a", "b"].map(|what| part(x, what));
        let zero = self.longs("zero_list", &[1], &[0]);
        let table = self.part(x, "table", "Slice", &[table, &zero, rows, &zero], &[]);
        self.split(&[&table, halves], &[&cos, &sin], 1);
        self.split(&[x, halves], &[&a, &b], 3);
        let mut product =
            |what: &str, half: &str, by: &str| self.part(x, what, "Mul", &[half, by], &[]);
        let [a_cos, b_sin] = [product("a_cos", &a, &cos), product("b_sin", &b, &sin)];
        let [b_cos, a_sin] = [product("b_cos", &b, &cos), product("a_sin", &a, &sin)];
        let a = self.part(x, "a_rotated", "Sub", &[&a_cos, &b_sin], &[]);
        let b = self.part(x, "b_rotated", "Add", &[&b_cos, &a_sin], &[]);
        self.part(x, "rotated", "Concat", &[&a, &b], &[int("axis", 3)])
    }

    /// Distance from each query to each key, `[queries, keys]`.
    fn distance(&mut self, name: &str) -> String {
        let zero = self.longs("zero", &[], &[0]);
        let step = self.longs("step", &[], &[1]);
        let [first, second] = [0, 1].map(|axis| self.longs(&format!("axis_{axis}"), &[1], &[axis]));
        let length = part(name, "query_length");
        let scalar = self.part(name, "queries", "Squeeze", &[&length], &[]);
        let query = self.part(
            name,
            "query_positions",
            "Range",
            &[&zero, &scalar, &step],
            &[],
        );
        let key = self.part(
            name,
            "key_positions",
            "Range",
            &[&zero, "columns", &step],
            &[],
        );
        let query = self.part(name, "query_column", "Unsqueeze", &[&query, &second], &[]);
        let key = self.part(name, "key_row", "Unsqueeze", &[&key, &first], &[]);
        self.part(name, "distance", "Sub", &[&key, &query], &[])
    }

    /// Relative position bias from a table `[heads, 2 * reach + 1]`, `[heads, queries, keys]`.
    fn relative_bias(&mut self, name: &str, distance: &str, table: &str) -> String {
        let reach = (self.weights[table].shape[1] as i64 - 1) / 2;
        let reach_name = self.longs(&format!("reach_{reach}"), &[], &[reach]);
        let back = self.longs(&format!("reach_back_{reach}"), &[], &[-reach]);
        let near = self.part(name, "clamped_above", "Min", &[distance, &reach_name], &[]);
        let near = self.part(name, "clamped", "Max", &[&near, &back], &[]);
        let column = self.part(name, "column", "Add", &[&near, &reach_name], &[]);
        let along = [int("axis", 1)];
        self.part(name, "relative_bias", "Gather", &[table, &column], &along)
    }

    /// What relative positions add to scores `[batch, heads, queries, keys]`, from queries and transposed keys:
    /// their products with the keys and the queries of all buckets, of which each score takes those of its
    /// distance.
    fn relative_scores(
        &mut self,
        name: &str,
        [q, k, scores]: [&str; 3],
        [keys, queries, buckets]: [&str; 3],
        [heads, size]: [i64; 2],
    ) -> String {
        let reach = (self.weights[buckets].shape[0] as i64 - 1) / 2;
        let reach = self.longs(&format!("reach_{reach}"), &[], &[reach]);
        let distance = self.distance(name);
        let column = self.part(name, "bucket_column", "Sub", &[&reach, &distance], &[]);
        let bucket = self.part(name, "bucket", "Gather", &[buckets, &column], &[]);
        let shape = self.part(name, "scores_shape", "Shape", &[scores], &[]);
        let index = self.part(name, "buckets", "Expand", &[&bucket, &shape], &[]);

        let by_head = self.longs(&format!("table_{heads}_{size}"), &[3], &[heads, size, -1]);
        let take = |axis| [int("axis", axis)];
        let table = self.part(name, "position_keys", "Reshape", &[keys, &by_head], &[]);
        let all = self.part(name, "c2p", "MatMul", &[q, &table], &[]);
        let c2p = self.part(
            name,
            "c2p_taken",
            "GatherElements",
            &[&all, &index],
            &take(3),
        );
        let table = self.part(
            name,
            "position_queries",
            "Reshape",
            &[queries, &by_head],
            &[],
        );
        let order = [ints("perm", &[0, 2, 1])];
        let rows = self.part(name, "position_query_rows", "Transpose", &[&table], &order);
        let all = self.part(name, "p2c", "MatMul", &[&rows, k], &[]);
        let p2c = self.part(
            name,
            "p2c_taken",
            "GatherElements",
            &[&all, &index],
            &take(2),
        );
        self.part(name, "relative_scores", "Add", &[&c2p, &p2c], &[])
    }

    /// [`MASKED`] for keys outside the sliding window, else 0, `[queries, keys]`.
    fn window_mask(&mut self, name: &str, distance: &str, window: i64) -> String {
        let window = self.longs(&format!("window_{window}"), &[], &[window]);
        let masked = self.floats("masked", &[], &[MASKED]);
        let size = self.part(name, "absolute", "Abs", &[distance], &[]);
        let beyond = self.part(name, "beyond", "Greater", &[&size, &window], &[]);
        let float = [to(DataType::Float)];
        let beyond = self.part(name, "beyond_float", "Cast", &[&beyond], &float);
        self.part(name, "beyond_mask", "Mul", &[&beyond, &masked], &[])
    }

    fn split(&mut self, inputs: &[&str], outputs: &[&str], axis: i64) {
        self.nodes.push(NodeProto {
            name: outputs.concat(),
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: outputs.iter().map(|&name| name.to_owned()).collect(),
            op_type: "Split".into(),
            attribute: vec![int("axis", axis)],
            ..NodeProto::default()
        });
    }
}
