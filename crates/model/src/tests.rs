//! Supported and unsupported model directories.

use std::fs;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::*;
use rerankd_core::Activation;

const SIGMOID: &str = "torch.nn.modules.activation.Sigmoid";
const IDENTITY: &str = "torch.nn.modules.linear.Identity";

/// Names of the first layer of BERT and RoBERTa, by which a layout is known.
fn layer_tensors() -> Vec<(String, TensorView<'static>)> {
    let mut tensors = Vec::new();
    for base in ["bert.", "roberta.", ""] {
        for part in [
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "attention.output.LayerNorm",
            "intermediate.dense",
            "output.dense",
            "output.LayerNorm",
        ] {
            let view = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
            tensors.push((format!("{base}encoder.layer.0.{part}.weight"), view));
        }
    }
    tensors
}

/// A model directory: JSON files, and the shape of the head's tensor.
#[derive(Clone)]
struct Saved {
    files: Vec<(&'static str, Value)>,
    head: Option<(&'static str, Vec<usize>)>,
}

impl Saved {
    /// A plain transformers checkpoint of BERT with one label.
    fn bert() -> Self {
        let config = json!({
            "architectures": ["BertForSequenceClassification"], "model_type": "bert",
            "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "vocab_size": 30, "max_position_embeddings": 64,
            "id2label": {"0": "relevance"},
        });
        Self {
            files: vec![("config.json", config), ("tokenizer.json", json!({}))],
            head: Some(("classifier.weight", vec![1, 8])),
        }
    }

    /// BERT with modules, as saved by sentence-transformers 6; only `model.safetensors` has tensors.
    fn modular() -> Self {
        let module = |name: &str, path: &str| json!({"type": format!("sentence_transformers.{name}"), "path": path});
        let mut saved = Self::bert()
            .with("config.json", "architectures", json!(["BertModel"]))
            .cross_encoder()
            .with(
                "sentence_bert_config.json",
                "transformer_task",
                json!("feature-extraction"),
            )
            .with("1_Pooling/config.json", "pooling_mode", json!("mean"))
            .with("2_Dense/config.json", "out_features", json!(2))
            .with("2_Dense/config.json", "module_output_name", json!("scores"));
        saved.set_modules(json!([
            module("base.modules.transformer.Transformer", ""),
            module("sentence_transformer.modules.pooling.Pooling", "1_Pooling"),
            module("base.modules.dense.Dense", "2_Dense"),
        ]));
        saved.head = Some(("embeddings.word_embeddings.weight", vec![30, 8]));
        saved
    }

    fn set_modules(&mut self, modules: Value) {
        self.files.retain(|(name, _)| *name != "modules.json");
        self.files.push(("modules.json", modules));
    }

    fn roberta() -> Self {
        let mut saved = Self::bert()
            .with(
                "config.json",
                "architectures",
                json!(["RobertaForSequenceClassification"]),
            )
            .with("config.json", "model_type", json!("roberta"));
        saved.head = Some(("classifier.out_proj.weight", vec![1, 8]));
        saved
    }

    /// As saved by sentence-transformers 6.
    fn cross_encoder(mut self) -> Self {
        self.files.extend([
            (
                "modules.json",
                json!([{"idx": 0, "name": "0", "path": "",
                        "type": "sentence_transformers.base.modules.transformer.Transformer"}]),
            ),
            (
                "config_sentence_transformers.json",
                json!({"model_type": "CrossEncoder"}),
            ),
            (
                "sentence_bert_config.json",
                json!({"transformer_task": "sequence-classification",
                       "modality_config": {"text": {"method": "forward"}}}),
            ),
        ]);
        self
    }

    /// Sets a field of a file, which is created if needed.
    fn with(mut self, file: &'static str, field: &str, value: Value) -> Self {
        if !self.files.iter().any(|(name, _)| *name == file) {
            self.files.push((file, json!({})));
        }
        let (_, content) = self
            .files
            .iter_mut()
            .find(|(name, _)| *name == file)
            .unwrap();
        content[field] = value;
        self
    }

    fn without(mut self, file: &str) -> Self {
        self.files.retain(|(name, _)| *name != file);
        self
    }

    fn write(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in &self.files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content.to_string()).unwrap();
        }
        if let Some((name, shape)) = &self.head {
            let data = vec![0; 4 * shape.iter().product::<usize>()];
            let view = TensorView::new(Dtype::F32, shape.clone(), &data).unwrap();
            let mut tensors = layer_tensors();
            tensors.push(((*name).to_owned(), view));
            let bytes = safetensors::serialize(tensors, None).unwrap();
            fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        }
        dir
    }

    fn open(&self) -> Manifest {
        Model::open(self.write().path()).unwrap().manifest
    }

    /// The error must contain all of `what`.
    fn refused(&self, what: &[&str]) -> ModelError {
        let error = Model::open(self.write().path()).unwrap_err();
        let text = error.to_string();
        for part in what {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
        assert!(text.contains("\nhint: "), "{text}");
        error
    }
}

#[test]
fn a_plain_checkpoint_is_read() {
    let manifest = Saved::bert().open();
    assert_eq!(manifest.architecture, "bert");
    assert_eq!(manifest.labels, ["relevance"]);
    assert_eq!(manifest.activation, Activation::Sigmoid);
    assert_eq!(manifest.max_length, 64);
    assert_eq!(manifest.prompt, None);
    assert_eq!(
        manifest.encoder,
        EncoderConfig {
            hidden_size: 8,
            embedding_size: 8,
            layers: 1,
            heads: 2,
            intermediate_size: 16,
            vocab_size: 30,
            max_positions: 64,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            pad_token_id: 0,
            hidden_act: HiddenAct::Gelu,
            first_position: 0,
            skipped_token: None,
            form: LayerForm::PostNorm,
            tensors: manifest.encoder.tensors.clone(),
        }
    );
    assert!(manifest.tokenizer.uses_type_ids);
}

#[test]
fn relatives_of_roberta_share_its_graph() {
    for (model_type, class) in [
        ("roberta", "RobertaForSequenceClassification"),
        ("xlm-roberta", "XLMRobertaForSequenceClassification"),
        ("camembert", "CamembertForSequenceClassification"),
    ] {
        let manifest = Saved::roberta()
            .with("config.json", "model_type", json!(model_type))
            .with("config.json", "architectures", json!([class]))
            .open();
        assert_eq!(manifest.architecture, "roberta");
        assert_eq!(manifest.encoder.pad_token_id, 1);
        assert!(!manifest.tokenizer.uses_type_ids);
    }
}

#[test]
fn without_a_model_type_the_class_decides() {
    let saved = Saved::roberta().with("config.json", "model_type", Value::Null);
    assert_eq!(saved.open().architecture, "roberta");
}

#[test]
fn the_first_maximum_length_takes_precedence() {
    const TOKENIZER: &str = "tokenizer_config.json";
    const MODULE: &str = "sentence_bert_config.json";
    let bert = |limit: Value| Saved::bert().with(TOKENIZER, "model_max_length", limit);
    assert_eq!(bert(json!(32)).open().max_length, 32);
    assert_eq!(bert(json!(1e30)).open().max_length, 64);
    assert_eq!(bert(Value::Null).open().max_length, 64);
    assert_eq!(
        bert(Value::Null)
            .with(TOKENIZER, "max_len", json!(20))
            .open()
            .max_length,
        20
    );

    // Rows 0 and 1 of RoBERTa's 64 positions are never used.
    assert_eq!(Saved::roberta().open().max_length, 62);
    let roberta = Saved::roberta().with("config.json", "pad_token_id", json!(5));
    assert_eq!(roberta.open().max_length, 58);

    let stored = || {
        bert(json!(32))
            .cross_encoder()
            .with(MODULE, "max_seq_length", json!(48))
    };
    assert_eq!(stored().open().max_length, 48);
    assert_eq!(
        stored()
            .with(MODULE, "max_seq_length", json!(512))
            .open()
            .max_length,
        64,
        "there are no more positions"
    );
    let stored = stored().with(MODULE, "processor_kwargs", json!({"model_max_length": 40}));
    assert_eq!(stored.open().max_length, 40);
    let stored = stored.with(
        MODULE,
        "processing_kwargs",
        json!({"text": {"max_length": 24}}),
    );
    assert_eq!(stored.open().max_length, 24);

    // Without `modules.json` sentence-transformers does not look there.
    let stored = stored.without("modules.json");
    assert_eq!(stored.open().max_length, 32);
}

#[test]
fn the_first_activation_takes_precedence() {
    const NEW: &str = "config_sentence_transformers.json";
    const OLD: &str = "sbert_ce_default_activation_function";
    let saved = Saved::bert().with("config.json", OLD, json!(IDENTITY));
    assert_eq!(saved.open().activation, Activation::Identity);
    let section = json!({"activation_fn": SIGMOID, "version": "5.0.0"});
    let saved = saved.with("config.json", "sentence_transformers", section);
    assert_eq!(saved.open().activation, Activation::Sigmoid);
    let saved = saved
        .cross_encoder()
        .with(NEW, "activation_fn", json!(IDENTITY));
    assert_eq!(saved.open().activation, Activation::Identity);
    let saved = saved.with(NEW, "model_type", json!("SentenceTransformer"));
    assert_eq!(saved.open().activation, Activation::Sigmoid);

    // A null in the newer place hides the older one.
    let saved = Saved::bert()
        .with("config.json", OLD, json!(IDENTITY))
        .with(
            "config.json",
            "sentence_transformers",
            json!({"activation_fn": null}),
        );
    assert_eq!(saved.open().activation, Activation::Sigmoid);
}

#[test]
fn unknown_activations_are_refused() {
    const TANH: &str = "torch.nn.modules.activation.Tanh";
    Saved::bert()
        .with(
            "config.json",
            "sentence_transformers",
            json!({"activation_fn": TANH}),
        )
        .refused(&[
            "config.json`, `sentence_transformers`: `activation_fn` is",
            TANH,
        ]);
    Saved::bert()
        .cross_encoder()
        .with(
            "config_sentence_transformers.json",
            "activation_fn",
            json!("my.Own"),
        )
        .refused(&["config_sentence_transformers.json`: `activation_fn` is `my.Own`"]);
}

#[test]
fn labels_match_transformers() {
    let saved = |head: usize| Saved {
        head: Some(("classifier.weight", vec![head, 8])),
        ..Saved::bert()
    };
    let unnamed = saved(2).with("config.json", "id2label", Value::Null);
    assert_eq!(unnamed.open().labels, ["LABEL_0", "LABEL_1"]);
    assert_eq!(unnamed.open().activation, Activation::Identity);
    let three = saved(3).with("config.json", "id2label", Value::Null).with(
        "config.json",
        "num_labels",
        json!(3),
    );
    assert_eq!(three.open().labels.len(), 3);
    let named = saved(2).with("config.json", "id2label", json!({"1": "yes", "0": "no"}));
    assert_eq!(named.open().labels, ["no", "yes"]);
    let classless = saved(1)
        .with("config.json", "architectures", Value::Null)
        .with("config.json", "id2label", Value::Null);
    assert_eq!(classless.open().labels, ["LABEL_0"]);
    saved(2).refused(&["`classifier.weight` has the shape [2, 8]", "[1, 8]"]);
    saved(2)
        .with("config.json", "id2label", json!({"0": "a", "2": "b"}))
        .refused(&["`id2label` has 2 labels but no label 1"]);
}

#[test]
fn the_default_prompt_is_resolved() {
    const FILE: &str = "config_sentence_transformers.json";
    let saved = Saved::bert().cross_encoder().with(
        FILE,
        "prompts",
        json!({"query": "query: ", "none": "", "null": null}),
    );
    assert_eq!(saved.open().prompt, None);
    let saved = saved.with(FILE, "default_prompt_name", json!("query"));
    assert_eq!(saved.open().prompt.as_deref(), Some("query: "));
    for empty in ["none", "null"] {
        let saved = Saved::bert()
            .cross_encoder()
            .with(FILE, "prompts", json!({"none": "", "null": null}))
            .with(FILE, "default_prompt_name", json!(empty));
        assert_eq!(saved.open().prompt, None);
    }
    let saved = saved.with(FILE, "default_prompt_name", json!("other"));
    saved.refused(&["`default_prompt_name` is `other`, which is not in `prompts`"]);
    assert_eq!(saved.without("modules.json").open().prompt, None);
}

#[test]
fn the_tokenizer_class_overrides_the_file() {
    const FILE: &str = "tokenizer_config.json";
    let class = |saved: Saved| saved.open().tokenizer.class;
    let bert = |lowercase| TokenizerClass::Bert {
        lowercase,
        strip_accents: None,
        chinese_chars: true,
    };
    assert_eq!(class(Saved::bert()), bert(true));
    let cased = || Saved::bert().with(FILE, "do_lower_case", json!(false));
    assert_eq!(class(cased()), bert(false));
    let fast = cased().with(FILE, "tokenizer_class", json!("BertTokenizerFast"));
    assert_eq!(class(fast), bert(false));
    let generic = cased().with(FILE, "tokenizer_class", json!("PreTrainedTokenizerFast"));
    assert_eq!(class(generic), TokenizerClass::AsSaved);
    let generic = || Saved::bert().with(FILE, "tokenizer_class", json!("TokenizersBackend"));
    assert!(!generic().open().tokenizer.uses_type_ids);
    let inputs = json!(["input_ids", "token_type_ids", "attention_mask"]);
    let typed = generic().with(FILE, "model_input_names", inputs);
    assert!(typed.open().tokenizer.uses_type_ids);
    let roberta = Saved::roberta().with(FILE, "add_prefix_space", json!(true));
    assert_eq!(
        class(roberta),
        TokenizerClass::Roberta {
            add_prefix_space: true
        }
    );
    let lowered = Saved::roberta().cross_encoder().with(
        "sentence_bert_config.json",
        "do_lower_case",
        json!(true),
    );
    assert!(lowered.open().tokenizer.lowercase);
    let left = Saved::bert().with(FILE, "truncation_side", json!("left"));
    assert_eq!(left.open().tokenizer.truncate_start, Some(true));
    let inputs = json!(["input_ids", "attention_mask"]);
    let typeless = Saved::bert().with(FILE, "model_input_names", inputs);
    assert!(!typeless.open().tokenizer.uses_type_ids);
}

#[test]
fn missing_files_are_named() {
    Saved::bert()
        .without("config.json")
        .refused(&["config.json` is missing"]);
    Saved::bert().without("tokenizer.json").refused(&[
        "tokenizer.json` is missing",
        "python -c",
        "save_pretrained",
    ]);
    let mut saved = Saved::bert();
    saved.head = None;
    saved.refused(&["model.safetensors` is missing"]);
    saved.files.push(("pytorch_model.bin", json!({})));
    saved.refused(&["only `pytorch_model.bin`", "python -c"]);
    let error = Model::open(Path::new("/nowhere/at/all")).unwrap_err();
    assert!(error.message().contains("is not a directory"));
}

#[test]
fn models_without_a_trained_head_are_refused() {
    let no_head = ["no classification head", "hint: pass a cross-encoder"];
    for class in ["BertModel", "BertForMaskedLM"] {
        Saved::bert()
            .with("config.json", "architectures", json!([class]))
            .refused(&no_head);
    }
    let mut saved = Saved::bert();
    saved.head = Some(("bert.pooler.dense.weight", vec![8, 8]));
    saved.refused(&no_head);
    saved.refused(&["there is no tensor `classifier.weight`"]);
}

#[test]
fn architectures_that_cannot_be_built_are_refused() {
    Saved::bert()
        .with("config.json", "model_type", json!("funnel"))
        .refused(&[
            "`funnel` is not supported",
            "`XLMRobertaForSequenceClassification`",
        ]);
    Saved::bert()
        .with("config.json", "model_type", Value::Null)
        .with(
            "config.json",
            "architectures",
            json!(["XLNetForSequenceClassification"]),
        )
        .refused(&["`XLNetForSequenceClassification` is not supported"]);
    let deberta = || Saved::bert().with("config.json", "model_type", json!("deberta-v2"));
    deberta()
        .with("config.json", "conv_kernel_size", json!(3))
        .refused(&["`conv_kernel_size` is set", "deberta-v2-xlarge"]);
    deberta().refused(&["`relative_attention` is not true"]);
    let relative = || deberta().with("config.json", "relative_attention", json!(true));
    for (field, value, expected) in [
        ("pooler_hidden_act", json!("mish"), "is `mish`"),
        ("pooler_hidden_size", json!(4), "is 4"),
        ("attention_head_size", json!(64), "is not"),
        ("max_relative_positions", json!(1e9), "the maximum is"),
    ] {
        let model = relative().with("config.json", field, value);
        model.refused(&[field, expected]);
    }
    Saved::bert()
        .with("config.json", "model_type", Value::Null)
        .with("config.json", "architectures", Value::Null)
        .refused(&["neither `model_type` nor `architectures`"]);
    Saved::bert()
        .with(
            "config.json",
            "position_embedding_type",
            json!("relative_key"),
        )
        .refused(&["`position_embedding_type` is `relative_key`"]);
    Saved::bert()
        .with("config.json", "is_decoder", json!(true))
        .refused(&["`is_decoder` is true"]);
    Saved::bert()
        .with("config.json", "hidden_act", json!("swish"))
        .refused(&["`hidden_act` is `swish`"]);
    Saved::bert()
        .with("adapter_config.json", "peft_type", json!("LORA"))
        .refused(&["adapter_config.json`", "merge_and_unload"]);
}

#[test]
fn unsupported_modules_are_named() {
    let module = |class: &str, path: &str| json!({"type": class, "path": path});
    let transformer = module("sentence_transformers.models.Transformer", "");
    for (modules, what) in [
        (
            json!([
                transformer,
                module("sentence_transformers.models.Pooling", "1_Pooling")
            ]),
            "`sentence_transformers.models.Pooling` at path `1_Pooling`",
        ),
        (
            json!([module("sentence_transformers.models.Transformer", "0_T")]),
            "path `0_T`",
        ),
        (
            json!([module("mine.Transformer", "")]),
            "`mine.Transformer`",
        ),
        (json!([]), "is not a list of modules"),
        (json!({}), "is not a list of modules"),
    ] {
        let mut saved = Saved::bert();
        saved.files.push(("modules.json", modules));
        saved.refused(&["modules.json`", what]);
    }
}

#[test]
fn inconsistent_modules_are_rejected() {
    const DENSE: &str = "2_Dense/config.json";
    let module = |name: &str, path: &str| json!({"type": format!("sentence_transformers.models.{name}"), "path": path});
    let behind = |modules: &[Value]| {
        let mut saved = Saved::modular();
        saved.set_modules(json!([&[module("Transformer", "")], modules].concat()));
        saved
    };
    let (pooling, dense) = (module("Pooling", "1_Pooling"), module("Dense", "2_Dense"));
    for (modules, what) in [
        (
            vec![dense.clone()],
            "`Dense` at path `2_Dense` is not supported in this position",
        ),
        (vec![pooling.clone()], "none writes `scores`"),
        (
            vec![pooling.clone(), module("Normalize", "2_Normalize")],
            "`Normalize` at path",
        ),
        (
            vec![pooling.clone(), module("Dense", "../2_Dense")],
            "path `../2_Dense` is not",
        ),
        (
            vec![pooling.clone(), module("Dense", "/2_Dense")],
            "path `/2_Dense` is not",
        ),
        (
            vec![pooling.clone(), dense.clone(), module("LayerNorm", "3_N")],
            "comes after the scores",
        ),
    ] {
        let what = what.replace("`Dense` at", "`sentence_transformers.models.Dense` at");
        let what = what.replace(
            "`Normalize` at",
            "`sentence_transformers.models.Normalize` at",
        );
        behind(&modules).refused(&["modules.json`", &what]);
    }
    let saved = || behind(&[pooling.clone(), dense.clone()]);
    saved().refused(&["2_Dense/model.safetensors` is missing"]);
    let refused =
        |file, field, value, what: &str| saved().with(file, field, value).refused(&[file, what]);
    refused(
        DENSE,
        "module_input_name",
        json!("token_embeddings"),
        "`module_input_name` is",
    );
    refused(
        DENSE,
        "activation_function",
        json!("my.Own"),
        "`activation_function` is `my.Own`",
    );
    refused(
        DENSE,
        "out_features",
        Value::Null,
        "`out_features` is missing",
    );
    refused(
        "1_Pooling/config.json",
        "include_prompt",
        json!(false),
        "`include_prompt`",
    );
    refused(
        "1_Pooling/config.json",
        "pooling_mode",
        json!("median"),
        "is `median`",
    );
    refused(
        "1_Pooling/config.json",
        "pooling_mode",
        json!([]),
        "is empty",
    );
    refused(
        "sentence_bert_config.json",
        "transformer_task",
        json!("sequence-classification"),
        "only `feature-extraction`",
    );
}

#[test]
fn unsupported_transformer_settings_are_rejected() {
    for (field, value) in [
        ("transformer_task", json!("text-generation")),
        ("modality_config", json!({"message": {}})),
        ("query_expansion", json!({"length": 32})),
        ("config_kwargs", json!({"num_labels": 3})),
        (
            "processing_kwargs",
            json!({"text": {"truncation": "only_second"}}),
        ),
    ] {
        Saved::bert()
            .cross_encoder()
            .with("sentence_bert_config.json", field, value)
            .refused(&["sentence_bert_config.json`", field]);
    }
}

/// A plain checkpoint of ModernBERT with one label.
fn modernbert() -> Saved {
    Saved::bert()
        .with(
            "config.json",
            "architectures",
            json!(["ModernBertForSequenceClassification"]),
        )
        .with("config.json", "model_type", json!("modernbert"))
        .with("config.json", "num_hidden_layers", json!(4))
        .with("config.json", "pad_token_id", json!(3))
}

#[test]
fn modernbert_is_read_in_both_formats() {
    let gated = |saved: Saved| match saved.open().encoder.form {
        LayerForm::PreNormGated(gated) => gated,
        other => panic!("{other:?}"),
    };
    let plain = gated(modernbert());
    assert_eq!(plain.local, [false, true, true, false]);
    assert_eq!(plain.window, 64);
    assert_eq!(
        (plain.global_theta, plain.local_theta),
        (160_000.0, 10_000.0)
    );
    let old = gated(
        modernbert()
            .with("config.json", "global_rope_theta", json!(80_000.0))
            .with("config.json", "local_rope_theta", json!(5_000.0))
            .with("config.json", "local_attention", json!(32))
            .with("config.json", "global_attn_every_n_layers", json!(2)),
    );
    assert_eq!(old.local, [false, true, false, true]);
    assert_eq!(old.window, 16);
    assert_eq!((old.global_theta, old.local_theta), (80_000.0, 5_000.0));
    let new = gated(
        modernbert()
            .with(
                "config.json",
                "rope_parameters",
                json!({"full_attention": {"rope_type": "default", "rope_theta": 70_000.0},
                       "sliding_attention": {"rope_theta": 6_000.0}}),
            )
            .with(
                "config.json",
                "layer_types",
                json!([
                    "sliding_attention",
                    "sliding_attention",
                    "full_attention",
                    "full_attention"
                ]),
            ),
    );
    assert_eq!(new.local, [true, true, false, false]);
    assert_eq!((new.global_theta, new.local_theta), (70_000.0, 6_000.0));
    let renamed = gated(modernbert().with("config.json", "sliding_window", json!(9)));
    assert_eq!(renamed.window, 9);
    // A field that the class does not read.
    let unread = modernbert().with("config.json", "position_embedding_type", json!("sans_pos"));
    assert_eq!(gated(unread), plain);
    // The class that a published model names is not believed.
    let named = modernbert().with(
        "tokenizer_config.json",
        "tokenizer_class",
        json!("BertTokenizer"),
    );
    assert_eq!(named.open().tokenizer.class, TokenizerClass::AsSaved);
}

#[test]
fn invalid_modernbert_settings_are_rejected() {
    for (field, value, what) in [
        (
            "rope_scaling",
            json!({"factor": 2}),
            "`rope_scaling` is set",
        ),
        (
            "rope_parameters",
            json!({"full_attention": {"rope_type": "yarn"}}),
            "`rope_type` is `yarn`",
        ),
        (
            "rope_parameters",
            json!({"sliding_attention": {"type": "linear"}}),
            "`rope_type` is `linear`",
        ),
        (
            "layer_types",
            json!(["full_attention"]),
            "has 1 entries for 4 layers",
        ),
        (
            "layer_types",
            json!(["full_attention", "none", "full_attention", "full_attention"]),
            "has \"none\"",
        ),
        (
            "classifier_pooling",
            json!("max"),
            "`classifier_pooling` is `max`",
        ),
        ("classifier_activation", json!("mish"), "is `mish`"),
        ("num_attention_heads", json!(8), "odd head size"),
        ("global_rope_theta", json!(0), "must be above 1"),
    ] {
        modernbert()
            .with("config.json", field, value)
            .refused(&["config.json`", what]);
    }
}

#[test]
fn impossible_sizes_are_refused() {
    for (field, value, what) in [
        ("hidden_size", json!(0), "must be a positive integer"),
        ("hidden_size", json!(-8), "must be a positive integer"),
        ("hidden_size", json!(8.5), "must be a positive integer"),
        (
            "hidden_size",
            json!("8"),
            "is a string; it must be a number",
        ),
        ("hidden_size", Value::Null, "is missing"),
        ("hidden_size", json!(u64::MAX), "the maximum is"),
        ("num_hidden_layers", json!(1e30), "the maximum is"),
        (
            "num_attention_heads",
            json!(3),
            "does not divide `hidden_size` 8",
        ),
        ("type_vocab_size", json!(257), "the maximum is 256"),
        ("layer_norm_eps", json!(0), "must be between 0 and 1"),
        (
            "pad_token_id",
            json!(30),
            "must be a token id below `vocab_size` 30",
        ),
        ("pad_token_id", json!(-1), "must be a token id"),
        (
            "architectures",
            json!("Bert"),
            "is a string; it must be a list",
        ),
        ("id2label", json!({}), "has 0 labels"),
    ] {
        Saved::bert().with("config.json", field, value).refused(&[
            "config.json`",
            &format!("`{field}`"),
            what,
        ]);
    }
    Saved::roberta()
        .with("config.json", "max_position_embeddings", json!(2))
        .refused(&["leaves no position after `pad_token_id` 1"]);
    Saved::bert()
        .with("tokenizer_config.json", "model_max_length", json!(0))
        .refused(&["tokenizer_config.json`: `model_max_length` is 0"]);
}

#[test]
fn files_that_are_not_json_are_refused() {
    let dir = Saved::bert().write();
    fs::write(dir.path().join("config.json"), "<!DOCTYPE html>").unwrap();
    let error = Model::open(dir.path()).unwrap_err();
    assert!(
        error.message().contains("config.json` is not JSON"),
        "{error}"
    );
    let source = error.source().expect("a cause");
    assert!(source.is::<serde_json::Error>(), "{source:?}");
}

#[test]
fn a_model_in_memory_is_read_like_a_directory() {
    let dir = Saved::bert().cross_encoder().write();
    let files: Vec<(&'static str, &'static [u8])> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name: &'static str = entry.file_name().into_string().unwrap().leak();
            let bytes: &'static [u8] = fs::read(entry.path()).unwrap().leak();
            (name, bytes)
        })
        .collect();
    let model = Model::from_memory("inside", files.leak()).unwrap();
    let opened = Model::open(dir.path()).unwrap();
    assert_eq!(
        Manifest {
            id: opened.manifest.id.clone(),
            ..model.manifest
        },
        opened.manifest
    );
    assert_eq!(
        model.weights.read("classifier.weight", &[1, 8]).unwrap(),
        [0.0; 8]
    );
    let error = Model::from_memory("empty", &[]).unwrap_err();
    assert!(
        error
            .message()
            .contains("`config.json` of the embedded model is missing")
    );
}

/// A decoder with a classification head.
fn decoder(model_type: &str, class: &str) -> Saved {
    let mut saved = Saved::bert()
        .with("config.json", "model_type", json!(model_type))
        .with("config.json", "architectures", json!([class]))
        .with("config.json", "num_key_value_heads", json!(1));
    saved.head = Some(("score.weight", vec![1, 8]));
    saved
}

fn read_decoder(saved: &Saved) -> Decoder {
    saved.open().encoder.decoder().expect("a decoder").clone()
}

#[test]
fn decoders_are_read_in_both_formats() {
    use crate::rotary::Scaling;

    let llama = || decoder("llama", "LlamaForSequenceClassification");
    let plain = read_decoder(&llama());
    assert_eq!((plain.kv_heads, plain.head_size), (1, 4));
    assert_eq!(plain.rotary.theta, 10_000.0);
    assert_eq!(plain.rotary.scaling, Scaling::None);
    assert_eq!(
        (plain.padding, plain.tied, plain.head_norms),
        (None, false, false)
    );
    let scaled = json!({"type": "linear", "factor": 2.0});
    let former = llama().with("config.json", "rope_theta", json!(5e5)).with(
        "config.json",
        "rope_scaling",
        scaled,
    );
    let current = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5});
    let current = llama().with("config.json", "rope_parameters", current);
    for saved in [former, current] {
        let rotary = read_decoder(&saved).rotary;
        assert_eq!(rotary.theta, 5e5);
        assert_eq!(rotary.scaling, Scaling::Linear { factor: 2.0 });
    }

    let qwen = decoder("qwen3", "Qwen3ForSequenceClassification")
        .with("config.json", "pad_token_id", json!(3))
        .with("config.json", "sliding_window", json!(16));
    let read = read_decoder(&qwen);
    assert_eq!((read.head_size, read.head_norms), (128, true));
    assert_eq!((read.padding, &read.windows[..]), (Some(3), &[None][..]));
    let windowed = qwen
        .with("config.json", "use_sliding_window", json!(true))
        .with("config.json", "max_window_layers", json!(0));
    assert_eq!(read_decoder(&windowed).windows, [Some(16)]);
    let mistral = decoder("mistral", "MistralForSequenceClassification");
    assert_eq!(read_decoder(&mistral).windows, [Some(4096)]);
    let unlimited = mistral.with("config.json", "sliding_window", Value::Null);
    assert_eq!(read_decoder(&unlimited).windows, [None]);
    let mixed = decoder("mistral", "MistralForSequenceClassification").with(
        "config.json",
        "layer_types",
        json!(["full_attention"]),
    );
    assert_eq!(read_decoder(&mixed).windows, [None]);
    let gemma = read_decoder(&decoder("gemma", "GemmaForSequenceClassification"));
    assert_eq!((gemma.head_size, gemma.padding), (256, Some(0)));
    assert!(gemma.is_gemma && gemma.tied);
}

#[test]
fn decoders_that_the_graph_does_not_compute_are_refused() {
    for (field, value, said) in [
        ("num_key_value_heads", json!(3), "does not divide"),
        ("head_dim", json!(3), "must be even"),
        ("hidden_act", json!("tanh"), "`hidden_act` is `tanh`"),
        ("rope_theta", json!(0.5), "must be above 1"),
        (
            "rope_scaling",
            json!({"rope_type": "dynamic", "factor": 2.0}),
            "`dynamic`",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "linear"}),
            "`factor` is missing",
        ),
        (
            "rope_parameters",
            json!({"rope_type": "default", "partial_rotary_factor": 0.5}),
            "whole heads",
        ),
        ("use_bidirectional_attention", json!(true), "only causal"),
        ("is_causal", json!(false), "only causal"),
    ] {
        let saved = decoder("llama", "LlamaForSequenceClassification");
        let error = saved.with("config.json", field, value).refused(&[said]);
        assert!(!error.is_unsupported(), "{error}");
    }
}

#[test]
fn a_saved_length_beyond_the_positions_counts_where_no_table_limits_it() {
    const MODULE: &str = "sentence_bert_config.json";
    let long = |saved: Saved| {
        saved
            .cross_encoder()
            .with(MODULE, "max_seq_length", json!(100))
    };
    assert_eq!(long(Saved::bert()).open().max_length, 64);
    let manifest = long(modernbert()).open();
    assert_eq!(
        (manifest.max_length, manifest.encoder.max_positions),
        (100, 100)
    );
    let manifest = long(decoder("llama", "LlamaForSequenceClassification")).open();
    assert_eq!(
        (manifest.max_length, manifest.encoder.max_positions),
        (100, 100)
    );
}

#[test]
fn what_the_graphs_of_deberta_and_gte_do_not_compute_may_be_served_from_an_onnx_file() {
    let deberta = Saved::bert()
        .with("config.json", "model_type", json!("deberta-v2"))
        .with(
            "config.json",
            "architectures",
            json!(["DebertaV2ForSequenceClassification"]),
        )
        .with("config.json", "relative_attention", json!(true));
    let gte = Saved::bert()
        .with("config.json", "model_type", json!("new"))
        .with(
            "config.json",
            "architectures",
            json!(["NewForSequenceClassification"]),
        );
    for (saved, field, value) in [
        (&deberta, "conv_kernel_size", json!(3)),
        (&deberta, "relative_attention", json!(false)),
        (&deberta, "attention_head_size", json!(2)),
        (
            &gte,
            "rope_scaling",
            json!({"type": "linear", "factor": 2.0}),
        ),
        (&gte, "rope_scaling", json!({"type": "yarn", "factor": 2.0})),
        (&gte, "logn_attention_scale", json!(true)),
    ] {
        let error = saved
            .clone()
            .with("config.json", field, value)
            .refused(&[field]);
        assert!(error.is_unsupported(), "{field}: {error}");
    }
    let buckets = deberta
        .with("config.json", "position_buckets", json!(4))
        .with("config.json", "max_relative_positions", json!(3));
    buckets.refused(&["`position_buckets` is 4"]);
}
