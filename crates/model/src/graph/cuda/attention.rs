//! Attention of the CUDA graph.

use super::disentangled::Term;
use super::{
    COLUMNS, CUMULATIVE, Floats, Lowering, PLACES, TOKEN_OFFSET, floats, to_fp16, unsupported,
};
use crate::ModelError;
use crate::graph::builder::{CONTRIB, Data, STANDARD, Weight};
use crate::graph::{io, operator};
use crate::onnx::{AttributeProto, DataType, NodeProto};

/// Added to the score of a key that is hidden. exp of it is 0, and fp16 has it.
pub(super) const OUTSIDE: f32 = -1e4;
/// Value: the column of each query's distance from each key in a table by distance, `[longest, longest]`.
pub(super) const DISTANCES: &str = "distances";

/// A product with weights `[inputs, stride]`, and the bias that is added to it.
struct Product {
    rows: String,
    weight: String,
    bias: Option<String>,
}

/// Some columns of a product.
struct Columns {
    /// Weights, `[inputs, width]`.
    weight: Vec<f32>,
    /// Bias, `[width]`, if it is not 0.
    bias: Option<Vec<f32>>,
}

fn bad() -> ModelError {
    unsupported(operator::PACKED_ATTENTION)
}

impl Lowering {
    /// See [`operator::PACKED_ATTENTION`].
    pub(super) fn attention(&mut self, node: &NodeProto) -> Result<(), ModelError> {
        let [query, keys, query_bias, _lengths, positions @ ..] = &node.input[..] else {
            return Err(bad());
        };
        let position = |offset: usize| positions.get(offset).filter(|name| !name.is_empty());
        let heads = node.int(operator::HEADS).ok_or_else(bad)? as usize;
        let name = &node.name;
        let query_bias = floats(self.weights.get(query_bias).ok_or_else(bad)?)?.to_vec();
        let width = query_bias.len();

        let key_product = self.product(keys)?;
        let hidden = key_product.rows.clone();
        let query_product = self.product(query)?;
        let all_tokens = query_product.rows == hidden;
        if !all_tokens {
            let gather = self.producer(&query_product.rows).ok_or_else(bad)?;
            if gather.op_type != "Gather" || gather.input[..] != [&hidden[..], io::CLS_INDEX] {
                return Err(bad());
            }
        }
        let stride = self.weights[&key_product.weight].shape[1];
        let parts = [
            Columns {
                bias: Some(query_bias),
                ..self.columns(&query_product, 0, width)?
            },
            self.columns(&key_product, stride - 2 * width, width)?,
            self.columns(&key_product, stride - width, width)?,
        ];
        let mut inputs = Vec::new();
        for (part, columns) in ["query", "key", "value"].into_iter().zip(parts) {
            let value = self.projected(&format!("{name}.{part}"), &hidden, columns, width);
            let rotated = match position(operator::ROTARY_INPUT) {
                Some(table) if part != "value" => self.rotated(&value, table, heads)?,
                _ => value,
            };
            inputs.push(rotated);
        }
        let [query, key, value] = &inputs[..] else {
            unreachable!("three parts")
        };
        let disentangled = (
            position(operator::POSITION_KEYS_INPUT),
            position(operator::POSITION_QUERIES_INPUT),
            position(operator::BUCKETS_INPUT),
        );
        let added = match (position(operator::BIAS_INPUT), node.int(operator::WINDOW)) {
            (None, None) => match disentangled {
                (None, None, None) => String::new(),
                (Some(keys), Some(queries), Some(buckets)) => {
                    let terms = [(query, keys, 2), (key, queries, 1)];
                    let terms = terms.map(|(tokens, positions, axis)| Term {
                        tokens,
                        positions,
                        axis,
                    });
                    self.disentangled(name, terms, buckets, heads)?
                }
                _ => return Err(bad()),
            },
            (Some(table), None) => self.relative_bias(table)?,
            (None, Some(window)) => self.window(window as usize)?,
            (Some(_), Some(_)) => return Err(bad()),
        };
        let context = match all_tokens {
            true => name.clone(),
            false => format!("{name}.all_tokens"),
        };
        // Queries are scaled already.
        self.packed_attention(&context, [query, key, value], heads, 1.0, &added);
        if !all_tokens {
            self.push(name, STANDARD, "Gather", &[&context, io::CLS_INDEX], &[]);
        }
        Ok(())
    }

    /// Attention of queries, keys and values, `[tokens, width]` each, with `added` to the scores unless it is empty.
    pub(super) fn packed_attention(
        &mut self,
        name: &str,
        [query, key, value]: [&str; 3],
        heads: usize,
        scale: f32,
        added: &str,
    ) {
        let attended = match self.floats {
            Floats::Bfloat => format!("{name}.fp16"),
            Floats::Single | Floats::Half => name.to_owned(),
        };
        self.push(
            &attended,
            CONTRIB,
            "PackedMultiHeadAttention",
            &[query, key, value, "", TOKEN_OFFSET, CUMULATIVE, added],
            &[
                AttributeProto::int("num_heads", heads as i64),
                AttributeProto::float("scale", scale),
            ],
        );
        if attended != name {
            self.cast(name, &attended, DataType::Bfloat16);
        }
    }

    /// The matrix product `value`, with or without the addition of a bias.
    fn product(&self, value: &str) -> Result<Product, ModelError> {
        let node = self.producer(value).ok_or_else(bad)?;
        match (node.op_type.as_str(), &node.input[..]) {
            ("Add", [product, bias]) if self.weights.contains_key(bias) => Ok(Product {
                bias: Some(bias.clone()),
                ..self.product(product)?
            }),
            ("MatMul", [rows, weight]) if self.weights.contains_key(weight) => Ok(Product {
                rows: rows.clone(),
                weight: weight.clone(),
                bias: None,
            }),
            _ => Err(bad()),
        }
    }

    /// `width` columns of a product, from `first` on.
    fn columns(
        &self,
        product: &Product,
        first: usize,
        width: usize,
    ) -> Result<Columns, ModelError> {
        let weight = &self.weights[&product.weight];
        let rows = floats(weight)?.chunks_exact(weight.shape[1]);
        let bias = match &product.bias {
            Some(bias) => floats(&self.weights[bias])?[first..first + width].to_vec(),
            None => Vec::new(),
        };
        Ok(Columns {
            weight: rows
                .flat_map(|row| &row[first..first + width])
                .copied()
                .collect(),
            bias: bias.iter().any(|&number| number != 0.0).then_some(bias),
        })
    }

    /// Queries, keys or values `[tokens, width]`, in the type that attention takes. A bias is added before the
    /// product is rounded.
    fn projected(&mut self, name: &str, hidden: &str, columns: Columns, width: usize) -> String {
        let Columns { weight, bias } = columns;
        let matrix = format!("{name}.weight");
        self.weight(&matrix, &[weight.len() / width, width], Data::F32(weight));
        match bias {
            None => self.push(name, STANDARD, "MatMul", &[hidden, &matrix], &[]),
            Some(bias) => {
                let vector = format!("{name}.bias");
                self.weight(&vector, &[width], Data::F32(bias));
                self.push(name, STANDARD, "Gemm", &[hidden, &matrix, &vector], &[]);
            }
        }
        self.for_attention(name)
    }

    /// `value` in the type that attention takes.
    pub(super) fn for_attention(&mut self, value: &str) -> String {
        if self.floats != Floats::Bfloat {
            return value.to_owned();
        }
        let cast = format!("{value}.fp16");
        self.cast(&cast, value, DataType::Float16);
        cast
    }

    /// Applies rotary position embeddings to `value`, `[tokens, width]` or `[tokens, heads, size]`. Output: `[tokens,
    /// width]`. The operator compares the length of a sequence with the table, so every token is a sequence of its own.
    pub(super) fn rotated(
        &mut self,
        value: &str,
        table: &str,
        heads: usize,
    ) -> Result<String, ModelError> {
        let [cosines, sines] = ["cosines", "sines"].map(|part| format!("{table}.{part}"));
        if !self.weights.contains_key(&cosines) {
            let weight: &Weight = self.weights.get(table).ok_or_else(bad)?;
            let (rows, half) = (weight.shape[0], weight.shape[1] / 2);
            let numbers = floats(weight)?;
            let halves_of = |first: usize| -> Vec<f32> {
                let rows = numbers.chunks_exact(2 * half);
                rows.flat_map(|row| &row[first..first + half])
                    .copied()
                    .collect()
            };
            for (name, numbers) in [(&cosines, halves_of(0)), (&sines, halves_of(half))] {
                let data = self.attention_data(name, numbers)?;
                self.weight(name, &[rows, half], data);
            }
        }
        // 0 copies the dimension.
        self.longs("rotary.shape", &[0, 1, -1]);
        self.longs("rotary.rows", &[0, -1]);
        let part = |suffix: &str| format!("{value}.{suffix}");
        let (apart, rotated, together) = (part("apart"), part("rotated"), part("together"));
        self.push(&apart, STANDARD, "Reshape", &[value, "rotary.shape"], &[]);
        self.push(
            &rotated,
            CONTRIB,
            "RotaryEmbedding",
            &[&apart, PLACES, &cosines, &sines],
            &[AttributeProto::int("num_heads", heads as i64)],
        );
        self.push(
            &together,
            STANDARD,
            "Reshape",
            &[&rotated, "rotary.rows"],
            &[],
        );
        Ok(together)
    }

    /// What a table `[heads, 2 * reach + 1]` adds to the scores, by the distance from query to key: `[1, heads,
    /// longest, longest]`.
    fn relative_bias(&mut self, table: &str) -> Result<String, ModelError> {
        let weight = self.weights.get(table).ok_or_else(bad)?;
        let reach = weight.shape[1] / 2;
        let rows = floats(weight)?.chunks_exact(weight.shape[1]);
        let longest = self.longest;
        // Farther distances have the first and the last value.
        let column = |distance: usize| {
            (distance + reach)
                .saturating_sub(longest - 1)
                .min(2 * reach)
        };
        let by_distance = rows.flat_map(|row| (0..2 * longest - 1).map(move |d| row[column(d)]));
        let (heads, by_distance) = (weight.shape[0], by_distance.collect());
        self.added(&format!("{table}.added"), heads, by_distance)
    }

    /// The same for a sliding window, the same for all heads.
    fn window(&mut self, window: usize) -> Result<String, ModelError> {
        let distances = (0..2 * self.longest - 1).map(|d| d.abs_diff(self.longest - 1));
        let outside = distances.map(|d| if d <= window { 0.0 } else { OUTSIDE });
        let by_distance = outside.collect();
        self.added(&format!("window.{window}.added"), 1, by_distance)
    }

    /// Looks up the distance of every query from every key in `by_distance`, `[heads, 2 * longest - 1]`, once for
    /// all layers.
    pub(super) fn added(
        &mut self,
        name: &str,
        heads: usize,
        by_distance: Vec<f32>,
    ) -> Result<String, ModelError> {
        if self.has(name) {
            return Ok(name.to_owned());
        }
        self.distances();
        let (table, by_head) = (format!("{name}.table"), format!("{name}.by_head"));
        let shape = [heads, by_distance.len() / heads];
        let data = self.attention_data(&table, by_distance)?;
        self.weight(&table, &shape, data);
        let axis = AttributeProto::int("axis", 1);
        self.push(&by_head, STANDARD, "Gather", &[&table, DISTANCES], &[axis]);
        self.longs("first_axis", &[0]);
        self.push(name, STANDARD, "Unsqueeze", &[&by_head, "first_axis"], &[]);
        Ok(name.to_owned())
    }

    /// Computes [`DISTANCES`], once for all layers.
    pub(super) fn distances(&mut self) {
        if self.has(DISTANCES) {
            return;
        }
        self.longs("as_row", &[1, -1]);
        self.longs("as_column", &[-1, 1]);
        let middle = self.longest as i32 - 1;
        let bytes = middle.to_le_bytes().to_vec();
        self.constant("no_distance", DataType::Int32, 1, bytes);
        self.push(
            "key_columns",
            STANDARD,
            "Reshape",
            &[COLUMNS, "as_row"],
            &[],
        );
        self.push(
            "query_columns",
            STANDARD,
            "Reshape",
            &[COLUMNS, "as_column"],
            &[],
        );
        let both = ["key_columns", "query_columns"];
        self.push("signed_distances", STANDARD, "Sub", &both, &[]);
        let both = ["signed_distances", "no_distance"];
        self.push(DISTANCES, STANDARD, "Add", &both, &[]);
    }

    /// Numbers in the type that attention computes in.
    pub(super) fn attention_data(&self, name: &str, numbers: Vec<f32>) -> Result<Data, ModelError> {
        Ok(match self.floats {
            Floats::Single => Data::F32(numbers),
            Floats::Half | Floats::Bfloat => Data::F16(to_fp16(name, &numbers)?),
        })
    }
}
