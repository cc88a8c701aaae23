//! Disentangled attention of the CUDA graph: what relative positions add to the scores.
//!
//! Products of every token with every bucket of distances are computed for packed tokens; then each pair of a query
//! and a key looks up the bucket of its distance.

use super::attention::DISTANCES;
use super::{CELLS, Lowering, floats, unsupported};
use crate::ModelError;
use crate::graph::builder::{Data, STANDARD};
use crate::onnx::{AttributeProto, DataType};

/// Value: the bucket of each query's distance to each key, `[longest, longest]`, 32-bit.
const BUCKETS: &str = "distance_buckets";
/// Value: the first product of the token in each cell, `[sequences, longest]`, 32-bit.
const FIRST_PRODUCTS: &str = "first_products";

/// Projected positions, and the tokens that they are multiplied by.
pub(super) struct Term<'a> {
    /// Queries or keys, `[tokens, width]`.
    pub(super) tokens: &'a str,
    /// The weight `[width, buckets]`.
    pub(super) positions: &'a str,
    /// The axis along which cells become pairs: 2 for queries, 1 for keys.
    pub(super) axis: i64,
}

impl Lowering {
    /// What relative positions add to the scores, `[sequences, heads, longest, longest]`; nothing if the model has
    /// none. `table` is the bucket of each distance, `[2 * reach + 1]`.
    pub(super) fn disentangled(
        &mut self,
        name: &str,
        terms: [Term<'_>; 2],
        table: &str,
        heads: usize,
    ) -> Result<String, ModelError> {
        let mut products = Vec::new();
        for term in terms {
            products.extend(self.term(term, table, heads)?);
        }
        let sum = match &products[..] {
            [] => return Ok(String::new()),
            [term] => term.clone(),
            [first, second, ..] => {
                let sum = format!("{name}.by_head");
                self.push(&sum, STANDARD, "Add", &[first, second], &[]);
                sum
            }
        };
        let added = format!("{name}.added");
        let perm = AttributeProto::ints("perm", &[1, 0, 2, 3]);
        self.push(&added, STANDARD, "Transpose", &[&sum], &[perm]);
        Ok(added)
    }

    /// One term of the sum, `[heads, sequences, longest, longest]`; `None` if it is 0.
    fn term(
        &mut self,
        term: Term<'_>,
        table: &str,
        heads: usize,
    ) -> Result<Option<String>, ModelError> {
        let Term {
            tokens,
            positions,
            axis,
        } = term;
        let bad = || unsupported("disentangled attention");
        let weight = self.weights.get(positions).ok_or_else(bad)?;
        let numbers = floats(weight)?;
        if numbers.iter().all(|&number| number == 0.0) {
            return Ok(None);
        }
        let (width, buckets) = (weight.shape[0], weight.shape[1]);
        let data = self.attention_data(positions, numbers.to_vec())?;
        let part = |suffix: &str| format!("{positions}.{suffix}");
        let by_head = part("by_head");
        self.weight(&by_head, &[heads, width / heads, buckets], data);

        // 0 copies the dimension.
        self.longs("heads.shape", &[0, heads as i64, -1]);
        self.longs("heads.products", &[0, -1]);
        let [apart, turned, products, flat] = ["apart", "turned", "products", "flat"].map(part);
        self.push(&apart, STANDARD, "Reshape", &[tokens, "heads.shape"], &[]);
        let perm = AttributeProto::ints("perm", &[1, 0, 2]);
        self.push(&turned, STANDARD, "Transpose", &[&apart], &[perm]);
        self.push(&products, STANDARD, "MatMul", &[&turned, &by_head], &[]);
        self.push(
            &flat,
            STANDARD,
            "Reshape",
            &[&products, "heads.products"],
            &[],
        );
        let pairs = self.pairs(axis, table, buckets)?;
        let looked_up = part("looked_up");
        let along = AttributeProto::int("axis", 1);
        self.push(&looked_up, STANDARD, "Gather", &[&flat, &pairs], &[along]);
        Ok(Some(looked_up))
    }

    /// The place of each pair of a query and a key among the products of a head: `[sequences, longest, longest]`, once
    /// for all layers.
    fn pairs(&mut self, axis: i64, table: &str, buckets: usize) -> Result<String, ModelError> {
        let name = format!("pairs.{axis}");
        if self.has(&name) {
            return Ok(name);
        }
        if !self.has(BUCKETS) {
            self.buckets(table)?;
            self.cast("cells.short", CELLS, DataType::Int32);
            let bytes = (buckets as i32).to_le_bytes().to_vec();
            self.constant("buckets", DataType::Int32, 1, bytes);
            let each = ["cells.short", "buckets"];
            self.push(FIRST_PRODUCTS, STANDARD, "Mul", &each, &[]);
        }
        let (along, cells) = (format!("{name}.axis"), format!("{name}.cells"));
        self.longs(&along, &[axis]);
        self.push(
            &cells,
            STANDARD,
            "Unsqueeze",
            &[FIRST_PRODUCTS, &along],
            &[],
        );
        self.push(&name, STANDARD, "Add", &[&cells, BUCKETS], &[]);
        Ok(name)
    }

    /// Looks the bucket of each distance up. Only padding is farther apart than the table reaches.
    fn buckets(&mut self, table: &str) -> Result<(), ModelError> {
        let bad = || unsupported("disentangled attention");
        let weight = self.weights.get(table).ok_or_else(bad)?;
        let Data::I32(rows) = &weight.data else {
            return Err(bad());
        };
        let (reach, own) = (rows.len() as i64 / 2, self.longest as i64 - 1);
        // The table is by the distance from a key to its query.
        let row = |column: i64| rows[(reach + (own - column).clamp(-reach, reach)) as usize];
        let by_column: Vec<i32> = (0..=2 * own).map(row).collect();
        let name = format!("{table}.by_column");
        self.weight(&name, &[by_column.len()], Data::I32(by_column));
        self.distances();
        self.push(BUCKETS, STANDARD, "Gather", &[&name, DISTANCES], &[]);
        Ok(())
    }
}
