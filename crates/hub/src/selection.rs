//! Selects the files of a model to download.

use serde_json::Value;

use rerankd_model::exported::DEFAULT_PATHS;
use rerankd_model::modules::{MODULE_CONFIGS, MODULES};
use rerankd_model::names::is_inner_path;
use rerankd_model::prompt::{PROFILE_FILE, TEMPLATE_FILE, TEMPLATE_FOLDER};
use rerankd_model::{PICKLES, WEIGHTS_FILE, WEIGHTS_INDEX};

/// Small files with configuration and tokenizer, besides [`MODULE_CONFIGS`].
const CONFIG_FILES: [&str; 10] = [
    "config.json",
    "config_sentence_transformers.json",
    MODULES,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "adapter_config.json",
    // Separate in newer versions.
    TEMPLATE_FILE,
    PROFILE_FILE,
];

/// The weights of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Weights {
    /// A safetensors file.
    File(String),
    /// Sharded safetensors, with this index.
    Index(String),
    /// An ONNX file, possibly with external data.
    Onnx(String),
    /// Only a pickle, which is not supported.
    Pickle(String),
    /// None.
    None,
}

/// Configuration and tokenizer files.
pub fn config_files(files: &[String]) -> Vec<String> {
    let template = |name: &str| {
        let inside = name.strip_prefix(TEMPLATE_FOLDER);
        let file = inside.and_then(|rest| rest.strip_prefix('/'));
        file.is_some_and(|file| file.ends_with(".jinja") && !file.contains('/'))
    };
    let known = |name: &str| {
        CONFIG_FILES.contains(&name) || MODULE_CONFIGS.contains(&name) || template(name)
    };
    files.iter().filter(|file| known(file)).cloned().collect()
}

/// Configuration and weights of modules in subfolders, for the content of `modules.json`.
pub fn module_files(files: &[String], modules: &Value) -> Vec<String> {
    let folders: Vec<&str> = modules
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|module| module.get("path")?.as_str())
        .map(|path| path.trim_end_matches('/'))
        .filter(|path| is_inner_path(path))
        .collect();
    let selected = |file: &&String| {
        let Some((folder, name)) = file.rsplit_once('/') else {
            return false;
        };
        folders.contains(&folder) && (name.ends_with(".json") || name == WEIGHTS_FILE)
    };
    files.iter().filter(selected).cloned().collect()
}

/// The weights to use: safetensors before ONNX, unless the architecture is not `supported`.
pub fn weights(files: &[String], supported: bool) -> Weights {
    let has = |name: &str| files.iter().any(|file| file == name);
    if supported && has(WEIGHTS_FILE) {
        return Weights::File(WEIGHTS_FILE.to_owned());
    }
    if supported && has(WEIGHTS_INDEX) {
        return Weights::Index(WEIGHTS_INDEX.to_owned());
    }
    if let Some(onnx) = DEFAULT_PATHS.into_iter().find(|path| has(path)) {
        return Weights::Onnx(onnx.to_owned());
    }
    match PICKLES.into_iter().find(|pickle| has(pickle)) {
        Some(pickle) => Weights::Pickle(pickle.to_owned()),
        None => Weights::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn config_files_are_selected_and_others_are_not() {
        let all = listed(&[
            ".gitattributes",
            "README.md",
            "additional_chat_templates/pair.jinja",
            "additional_chat_templates/deep/er.jinja",
            "additional_chat_templates/notes.txt",
            "chat_template.jinja",
            "config.json",
            "modules.json",
            "model.safetensors",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "tokenizer.json",
            "vocab.txt",
            "1_Dense/config.json",
        ]);
        let taken = listed(&[
            "additional_chat_templates/pair.jinja",
            "chat_template.jinja",
            "config.json",
            "modules.json",
            "tokenizer.json",
        ]);
        assert_eq!(config_files(&all), taken);
    }

    #[test]
    fn module_files_are_selected_only_in_listed_folders() {
        let all = listed(&[
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "2_Dense/pytorch_model.bin",
            "2_Dense/deeper/config.json",
            "3_Other/config.json",
            "config.json",
        ]);
        let named = serde_json::json!([
            { "path": "" },
            { "path": "1_Pooling" },
            { "path": "2_Dense/" },
            { "path": "../3_Other" },
            { "path": 3 },
        ]);
        let taken = listed(&[
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
        ]);
        assert_eq!(module_files(&all, &named), taken);
        assert_eq!(module_files(&all, &Value::Null), listed(&[]));
    }

    #[test]
    fn safetensors_are_preferred_to_onnx_and_onnx_to_pickles() {
        let all = listed(&[
            "model.safetensors",
            "onnx/model.onnx",
            "model.onnx",
            "onnx/model.onnx_data",
            "onnx/model_quantized.onnx",
            "pytorch_model.bin",
        ]);
        let tensors = Weights::File("model.safetensors".to_owned());
        assert_eq!(weights(&all, true), tensors);
        let graph = Weights::Onnx("onnx/model.onnx".to_owned());
        assert_eq!(weights(&all, false), graph);
        assert_eq!(weights(&all[1..], true), graph);
        let graph = Weights::Onnx("model.onnx".to_owned());
        assert_eq!(weights(&all[2..], true), graph);
        assert_eq!(
            weights(&all[5..], true),
            Weights::Pickle("pytorch_model.bin".to_owned())
        );
        let index = "model.safetensors.index.json";
        let sharded = listed(&["model-00001-of-00002.safetensors", index]);
        assert_eq!(weights(&sharded, true), Weights::Index(index.to_owned()));
        assert_eq!(weights(&[], true), Weights::None);
        assert_eq!(weights(&all[..1], false), Weights::None);
    }
}
