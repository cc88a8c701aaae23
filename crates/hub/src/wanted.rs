//! Which files of a model are needed. The one place that knows; pure.

use serde_json::Value;

use rerankd_model::exported::PLACES;
use rerankd_model::modules::{MODULE_CONFIGS, MODULES};
use rerankd_model::names::is_inner_path;
use rerankd_model::{INDEX, SINGLE};

/// Weights that run code when they are read.
const PICKLES: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/// What says how a model is built and how it reads text, beside [`MODULE_CONFIGS`]. All of it is small.
const SETTINGS: [&str; 9] = [
    "config.json",
    "config_sentence_transformers.json",
    MODULES,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "adapter_config.json",
    // What newer versions keep apart.
    "chat_template.jinja",
];

/// What there is of the numbers of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Weights {
    /// This file of tensors.
    File(String),
    /// The files that this index names.
    Index(String),
    /// This graph that somebody made, and the files that it names.
    Graph(String),
    /// Only a pickle.
    Pickle(String),
    /// Nothing that is known.
    None,
}

/// The settings among the files of a model.
pub fn settings(files: &[String]) -> Vec<String> {
    let known = |name: &str| SETTINGS.contains(&name) || MODULE_CONFIGS.contains(&name);
    let is_one = |file: &&String| known(file);
    files.iter().filter(is_one).cloned().collect()
}

/// What the modules that `modules.json` names have in folders of their own: settings and weights.
pub fn modules(files: &[String], modules: &Value) -> Vec<String> {
    let folders: Vec<&str> = modules
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|module| module.get("path")?.as_str())
        .map(|path| path.trim_end_matches('/'))
        .filter(|path| is_inner_path(path))
        .collect();
    let is_one = |file: &&String| {
        let Some((folder, name)) = file.rsplit_once('/') else {
            return false;
        };
        folders.contains(&folder) && (name.ends_with(".json") || name == SINGLE)
    };
    files.iter().filter(is_one).cloned().collect()
}

/// The weights among the files of a model. A graph that somebody made comes after safetensors, unless
/// the model is not one that can be `built` of them.
pub fn weights(files: &[String], built: bool) -> Weights {
    let has = |name: &str| files.iter().any(|file| file == name);
    if built && has(SINGLE) {
        return Weights::File(SINGLE.to_owned());
    }
    if built && has(INDEX) {
        return Weights::Index(INDEX.to_owned());
    }
    if let Some(graph) = PLACES.into_iter().find(|graph| has(graph)) {
        return Weights::Graph(graph.to_owned());
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
    fn settings_are_taken_and_everything_else_is_left() {
        let all = listed(&[
            ".gitattributes",
            "README.md",
            "config.json",
            "modules.json",
            "model.safetensors",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "tokenizer.json",
            "vocab.txt",
            "1_Dense/config.json",
        ]);
        let taken = listed(&["config.json", "modules.json", "tokenizer.json"]);
        assert_eq!(settings(&all), taken);
    }

    #[test]
    fn modules_bring_their_own_folders_and_no_other() {
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
        assert_eq!(modules(&all, &named), taken);
        assert_eq!(modules(&all, &Value::Null), listed(&[]));
    }

    #[test]
    fn safetensors_come_before_graphs_and_graphs_before_pickles() {
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
        // The one that is run where both are there.
        let graph = Weights::Graph("onnx/model.onnx".to_owned());
        assert_eq!(weights(&all, false), graph);
        assert_eq!(weights(&all[1..], true), graph);
        let graph = Weights::Graph("model.onnx".to_owned());
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
