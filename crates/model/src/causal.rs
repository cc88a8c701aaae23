//! Refuses language models that cannot be scored as sentence-transformers or their cards do.

use serde_json::Value;

use super::json::Object;
use super::{Files, ModelError};

/// A model family that is refused by name.
struct Refused {
    name: &'static str,
    /// The start of a class in `architectures`, or of a module in `auto_map`.
    marks: &'static [&'static str],
    why: &'static str,
    hint: &'static str,
}

const REFUSED: [Refused; 3] = [
    Refused {
        name: "jina-reranker-v3",
        marks: &["JinaForRanking"],
        why: "scores all documents of a request together, so a score depends on the other documents",
        hint: "use a model that scores each pair on its own, such as `Qwen/Qwen3-Reranker-0.6B`",
    },
    Refused {
        name: "llama-nemotron-rerank",
        marks: &["LlamaBidirectional"],
        why: "reads in both directions with code of its own",
        hint: "use a causal reranker, such as `Qwen/Qwen3-Reranker-0.6B`",
    },
    Refused {
        name: "zerank-1",
        marks: &["modeling_zeranker"],
        why: "replaces the scoring of sentence-transformers with code of its own",
        hint: "use its successor `zeroentropy/zerank-2`",
    },
];

/// Rejects a model whose scores need code of its own, and one that generates text without being a causal
/// model that is supported.
pub(super) fn reject(config: &Object, files: &Files) -> Result<(), ModelError> {
    let classes = config.list("architectures")?.into_iter().flatten();
    let classes: Vec<&str> = classes.filter_map(Value::as_str).collect();
    let code = config.object("auto_map")?;
    let modules = code.iter().flat_map(|code| {
        let names = code.names().filter_map(|name| code.value(name)?.as_str());
        names.collect::<Vec<_>>()
    });
    let found: Vec<&str> = classes.iter().copied().chain(modules).collect();
    for refused in REFUSED {
        let marked = |name: &&str| refused.marks.iter().any(|mark| name.starts_with(mark));
        if found.iter().any(marked) || (refused.name == "zerank-1" && has_code(files)) {
            return Err(ModelError::new(
                format!(
                    "{}: `{}` {}, which is not supported",
                    config.location(),
                    refused.name,
                    refused.why
                ),
                refused.hint,
            ));
        }
    }
    let generates = |name: &&&str| {
        ["LMHeadModel", "ForConditionalGeneration"]
            .iter()
            .any(|suffix| name.ends_with(suffix))
    };
    let causal = classes.iter().find(|name| name.ends_with("ForCausalLM"));
    if let (Some(class), Some(code)) = (causal, &code) {
        return Err(ModelError::new(
            format!(
                "{}: `{class}` runs code of its own (`auto_map`), which is not supported",
                code.location()
            ),
            "use a model whose classes are those of transformers",
        ));
    }
    match classes.iter().find(generates) {
        Some(name) => Err(ModelError::new(
            format!(
                "{}: `architectures` is `{name}`: language models of this kind are not supported",
                config.location()
            ),
            "use a model with a sequence classification head, such as `BAAI/bge-reranker-v2-m3`, or a \
             causal reranker, such as `Qwen/Qwen3-Reranker-0.6B`",
        )),
        None => Ok(()),
    }
}

fn has_code(files: &Files) -> bool {
    files.contains("modeling_zeranker.py")
}
