//! Rerankers that are language models, asked for `yes` or `no`: told apart, so that none is served wrongly.

use serde_json::Value;

use super::json::{Object, read_value};
use super::{Files, ModelError};

/// Refuses a model whose score is the logit of a word. Its weights would load as far as names go, and
/// every score would be wrong without the template of its questions and the words that it answers with.
pub(super) fn refuse(config: &Object, files: &Files) -> Result<(), ModelError> {
    if let Some(Value::Array(modules)) = read_value(files, "modules.json")? {
        let class = |module: &Value| {
            module
                .get("type")
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        let classes = modules.iter().filter_map(class);
        if let Some(class) = classes
            .into_iter()
            .find(|class| class.ends_with(".LogitScore"))
        {
            return Err(causal(&format!(
                "{} lists `{class}`",
                files.place("modules.json")
            )));
        }
    }
    let classes = config.list("architectures")?.into_iter().flatten();
    let mut names = classes.filter_map(Value::as_str);
    let generating = |name: &&str| {
        ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    match names.find(generating) {
        Some(name) => Err(causal(&format!(
            "{}: `architectures` is `{name}`",
            config.place()
        ))),
        None => Ok(()),
    }
}

fn causal(what: &str) -> ModelError {
    ModelError::new(
        format!(
            "{what}: this is a language model that answers `yes` or `no`, and what is missing here is causal \
             attention, its template of questions, and reading a score off the logits of two words"
        ),
        "take a model with a head for sequence classification, such as `BAAI/bge-reranker-v2-m3`",
    )
}
