//! Causal attention of the CUDA graph.

use super::attention::OUTSIDE;
use super::{Lowering, unsupported};
use crate::ModelError;
use crate::graph::builder::STANDARD;
use crate::graph::operator;
use crate::onnx::{AttributeProto, NodeProto};

impl Lowering {
    /// See [`operator::CAUSAL_ATTENTION`]. Keys that come later, or lie before the window, are masked: the operator
    /// has no causal form. It has no grouped queries either, so keys and values are repeated.
    pub(super) fn causal_attention(&mut self, node: &NodeProto) -> Result<(), ModelError> {
        let bad = || unsupported(operator::CAUSAL_ATTENTION);
        let [query, key, value, table] = &node.input[..] else {
            return Err(bad());
        };
        let int = |name: &str| node.int(name).map(|number| number as usize);
        let heads = int(operator::HEADS).ok_or_else(bad)?;
        let kv_heads = int(operator::KV_HEADS).ok_or_else(bad)?;
        let size = int(operator::HEAD_SIZE).ok_or_else(bad)?;
        let [query, key, value] = [query, key, value].map(|value| self.for_attention(value));
        let query = self.rotated(&query, table, heads)?;
        let key = self.rotated(&key, table, kv_heads)?;
        let [key, value] = [key, value].map(|value| self.repeated(&value, kv_heads, heads));
        let mask = self.causal_mask(int(operator::WINDOW))?;
        let scale = (size as f32).sqrt().recip();
        self.packed_attention(&node.name, [&query, &key, &value], heads, scale, &mask);
        Ok(())
    }

    /// Keys or values `[tokens, kv_heads * size]`, each head for all queries that share it.
    fn repeated(&mut self, value: &str, kv_heads: usize, heads: usize) -> String {
        if kv_heads == heads {
            return value.to_owned();
        }
        let head_of: Vec<i64> = (0..heads)
            .map(|head| (head * kv_heads / heads) as i64)
            .collect();
        self.longs("kv.of_query", &head_of);
        self.longs("kv.shape", &[0, kv_heads as i64, -1]);
        self.longs("kv.rows", &[0, -1]);
        let part = |suffix: &str| format!("{value}.{suffix}");
        let (by_head, repeated, rows) = (part("by_head"), part("repeated"), part("rows"));
        self.push(&by_head, STANDARD, "Reshape", &[value, "kv.shape"], &[]);
        let axis = AttributeProto::int("axis", 1);
        self.push(
            &repeated,
            STANDARD,
            "Gather",
            &[&by_head, "kv.of_query"],
            &[axis],
        );
        self.push(&rows, STANDARD, "Reshape", &[&repeated, "kv.rows"], &[]);
        rows
    }

    /// What hides keys behind their query, and those that are `window` tokens before it or more: `[1, 1, longest,
    /// longest]`.
    fn causal_mask(&mut self, window: Option<usize>) -> Result<String, ModelError> {
        let own = self.longest - 1;
        let window = window.unwrap_or(self.longest);
        let is_seen = |distance: usize| distance <= own && own - distance < window;
        let by_distance = (0..2 * self.longest - 1).map(|d| if is_seen(d) { 0.0 } else { OUTSIDE });
        self.added(&format!("causal.{window}.added"), 1, by_distance.collect())
    }
}
