//! `BertForSequenceClassification`: a pooler (dense, tanh) and a linear classifier.

use crate::graph::encoder::EncoderGraph;
use crate::graph::{Graph, Precision, Rows};
use crate::model::{Model, ModelError};

pub(crate) fn build(
    model: &Model,
    last_layer: Rows,
    precision: Precision,
) -> Result<Graph, ModelError> {
    let mut graph = EncoderGraph::new(model, last_layer, precision, "bert");
    let first_tokens = graph.encode()?;
    let hidden = model.manifest.encoder.hidden_size;
    let pooled = graph.dense("bert.pooler.dense", &first_tokens, hidden)?;
    let pooled = graph.tanh("pooled", &pooled);
    let logits = graph.dense("classifier", &pooled, model.manifest.labels.len())?;
    Ok(graph.finish(&logits))
}
