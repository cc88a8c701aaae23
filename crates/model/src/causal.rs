//! Detects causal language models used as rerankers, which are not supported.

use serde_json::Value;

use super::json::{Object, read_value};
use super::modules::MODULES;
use super::{Files, ModelError};

/// Rejects a model whose score is the logit of a token. Its weights could load, but without its prompt
/// template and its answer tokens every score would be wrong.
pub(super) fn reject(config: &Object, files: &Files) -> Result<(), ModelError> {
    let modules = read_value(files, MODULES)?.unwrap_or_default();
    let mut modules = modules.as_array().into_iter().flatten();
    let logit_score = modules.find_map(|module| {
        let class = module.get("type")?.as_str()?;
        class.ends_with(".LogitScore").then_some(class)
    });
    if let Some(class) = logit_score {
        return Err(causal(&format!(
            "{} lists `{class}`",
            files.location(MODULES)
        )));
    }
    let classes = config.list("architectures")?.into_iter().flatten();
    let generative = |name: &&str| {
        ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration"]
            .iter()
            .any(|suffix| name.ends_with(suffix))
    };
    match classes.filter_map(Value::as_str).find(generative) {
        Some(name) => Err(causal(&format!(
            "{}: `architectures` is `{name}`",
            config.location()
        ))),
        None => Ok(()),
    }
}

fn causal(what: &str) -> ModelError {
    ModelError::new(
        format!(
            "{what}: causal language models, which answer `yes` or `no` to a prompt template, are not supported"
        ),
        "use a model with a sequence classification head, such as `BAAI/bge-reranker-v2-m3`",
    )
}
