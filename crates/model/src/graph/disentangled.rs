//! Relative positions of disentangled attention (DeBERTa), projected once, when the graph is built.

use super::Data;
use super::builder::Value;
use super::encoder::EncoderGraph;
use crate::{Disentangled, ModelError};
use rerankd_kernels::fp32::{Fp32, Matrix};
use rerankd_kernels::isa::InstructionSet;
use rerankd_kernels::layer::{Epilogue, Operand, Products};
use rerankd_kernels::strips::strips;

/// The relative positions that all layers project.
pub(super) struct RelativePositions<'a> {
    pub(super) config: &'a Disentangled,
    /// The embeddings, as [`strips`].
    embeddings: Vec<f32>,
    /// Bucket of each distance.
    pub(super) buckets: Value,
}

/// Relative positions as a layer's attention reads them, `[width, buckets]` each.
pub(super) struct Projected {
    pub(super) keys: Vec<f32>,
    pub(super) queries: Vec<f32>,
}

impl<'a> EncoderGraph<'a> {
    pub(super) fn relative_positions(
        &mut self,
        config: &'a Disentangled,
    ) -> Result<RelativePositions<'a>, ModelError> {
        let width = self.config.hidden_size;
        let tensors = &self.config.tensors;
        let mut embeddings = self.matrix(&tensors.name(config.table), config.buckets, width)?;
        if let Some(norm) = config.norm {
            let norm = tensors.name(norm);
            let weights = &self.model().weights;
            let gamma = weights.read(&format!("{norm}.weight"), &[width])?;
            let beta = weights.read(&format!("{norm}.bias"), &[width])?;
            for row in embeddings.chunks_exact_mut(width) {
                normalize(row, &gamma, &beta, self.config.layer_norm_eps);
            }
        }
        let rows = config.rows.iter().map(|&row| row as i32).collect();
        let shape = [config.rows.len()];
        let buckets = self
            .graph
            .weight("position_buckets", &shape, Data::I32(rows));
        Ok(RelativePositions {
            config,
            embeddings: strips(&[&embeddings], width),
            buckets,
        })
    }

    /// The relative positions of a layer. Keys have no bias: it would add the same to all scores of a query. A term
    /// that the model does not have is 0.
    pub(super) fn projected(
        &self,
        base: &str,
        positions: &RelativePositions<'_>,
    ) -> Result<Projected, ModelError> {
        let &RelativePositions {
            config,
            ref embeddings,
            ..
        } = positions;
        let width = self.config.hidden_size;
        let project = |name: &str, bias: &[f32]| -> Result<Vec<f32>, ModelError> {
            let weight = self.matrix(name, width, width)?;
            Ok(product(&weight, bias, embeddings, config.buckets))
        };
        let nothing = || vec![0.0; width * config.buckets];
        let keys = match config.position_keys {
            true => project(&format!("{base}.{}", config.key), &vec![0.0; width])?,
            false => nothing(),
        };
        let queries = match config.position_queries {
            true => {
                let name = format!("{base}.{}", config.query);
                let bias = self
                    .model()
                    .weights
                    .read(&format!("{name}.bias"), &[width])?;
                self.scaled(project(&name, &bias)?)
            }
            false => nothing(),
        };
        Ok(Projected { keys, queries })
    }
}

/// Multiplies weights `[width, width]` by the embeddings of positions and adds a bias: `[width, buckets]`.
fn product(weight: &[f32], bias: &[f32], embeddings: &[f32], buckets: usize) -> Vec<f32> {
    let width = bias.len();
    let rows = Operand {
        rows: weight,
        inputs: width,
    };
    let matrix = Matrix {
        strips: embeddings,
        bias: &vec![0.0; buckets],
    };
    let mut output = vec![0.0; width * buckets];
    let set = InstructionSet::best();
    Fp32.dense(set, rows, matrix, Epilogue::Identity, &mut output);
    for (row, bias) in output.chunks_exact_mut(buckets).zip(bias) {
        row.iter_mut().for_each(|number| *number += bias);
    }
    output
}

/// LayerNorm of one row.
fn normalize(row: &mut [f32], gamma: &[f32], beta: &[f32], epsilon: f32) {
    let count = row.len() as f64;
    let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
    let squares = row.iter().map(|&x| (f64::from(x) - mean).powi(2));
    let variance = squares.sum::<f64>() / count;
    let factor = (variance + f64::from(epsilon)).sqrt().recip();
    for ((x, gamma), beta) in row.iter_mut().zip(gamma).zip(beta) {
        *x = ((f64::from(*x) - mean) * factor) as f32 * gamma + beta;
    }
}
