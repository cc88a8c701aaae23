//! `RobertaForSequenceClassification` and its kin (XLM-RoBERTa, CamemBERT): a head of two dense
//! layers with tanh between them.

use crate::graph::encoder::EncoderGraph;
use crate::graph::{Graph, Precision, Rows};
use crate::model::{Model, ModelError};

pub(crate) fn build(
    model: &Model,
    last_layer: Rows,
    precision: Precision,
) -> Result<Graph, ModelError> {
    let mut graph = EncoderGraph::new(model, last_layer, precision, "roberta");
    let first_tokens = graph.encode()?;
    let hidden = model.manifest.encoder.hidden_size;
    let dense = graph.dense("classifier.dense", &first_tokens, hidden)?;
    let dense = graph.tanh("classifier.tanh", &dense);
    let logits = graph.dense("classifier.out_proj", &dense, model.manifest.labels.len())?;
    Ok(graph.finish(&logits))
}
