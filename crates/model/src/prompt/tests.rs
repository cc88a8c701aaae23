//! Prompts have the ids that sentence-transformers gives them.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use serde::Deserialize;

use super::*;
use crate::encoder::{EncodeError, PairEncoder};
use crate::{TokenizerConfig, manifest};
use rerankd_core::{Instruction, Pair, TruncationOptions, TruncationSide, TruncationStrategy};

/// The reference of a kind of prompt.
#[derive(Deserialize)]
struct Reference {
    max_length: usize,
    /// The tokens whose logits are the score.
    tokens: Option<(u32, Option<u32>)>,
    activation: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: Option<String>,
    prompt_name: Option<String>,
    max_length: Option<usize>,
    pairs: Vec<[Text; 2]>,
    ids: Vec<Vec<u32>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Plain(String),
    Repeat { repeat: (String, usize) },
}

impl Case {
    fn pairs(&self) -> Vec<Pair> {
        let expand = |text: &Text| match text {
            Text::Plain(text) => text.clone(),
            Text::Repeat {
                repeat: (unit, count),
            } => unit.repeat(*count),
        };
        let pair = |[query, document]: &[Text; 2]| Pair {
            query: expand(query).into(),
            document: expand(document).into(),
        };
        self.pairs.iter().map(pair).collect()
    }

    fn instruction(&self) -> Instruction {
        Instruction::from_fields(self.prompt.clone(), self.prompt_name.clone())
    }

    fn options(&self) -> TruncationOptions {
        TruncationOptions {
            max_tokens: self.max_length.and_then(NonZeroUsize::new),
            ..TruncationOptions::default()
        }
    }
}

fn folder(name: &str) -> PathBuf {
    let reference = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/reference/prompts");
    PathBuf::from(reference).join(name)
}

fn read<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(folder(name)).unwrap()).unwrap()
}

fn resolved(dir: &std::path::Path, options: &ModelOptions) -> Result<Prompted, ModelError> {
    let files = Files::in_directory(dir)?;
    let saved = SavedSettings::read(&files)?;
    let resolved = resolve("model", &files, &manifest::config(&files)?, &saved, options)?;
    Ok(resolved.expect("the model is causal"))
}

#[test]
fn an_encoder_refuses_a_maximum_length() {
    let dir = folder("../models/tiny-bert");
    let options = ModelOptions {
        max_length: Some(8),
        ..ModelOptions::default()
    };
    let error = crate::AnyModel::open_with(&dir, None, &options)
        .err()
        .unwrap();
    let error = format!("{error:?}");
    assert!(error.contains("leave `--max-length` unset"), "{error}");
}

/// The encoder of a reference model, with another maximum length, and after a change of its settings.
fn encoder_with(
    name: &str,
    max_length: usize,
    change: impl FnOnce(&mut ChatConfig),
) -> PromptEncoder {
    let dir = folder(name);
    let files = Files::in_directory(&dir).unwrap();
    let prompted = resolved(&dir, &ModelOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let mut config = prompted.config.expect("there is a template");
    let Layout::Chat(chat) = &mut config.layout else {
        panic!("it is a chat template");
    };
    change(chat);
    let saved = SavedSettings::read(&files).unwrap();
    let tokenizer = manifest::tokenizer_settings(&files).unwrap();
    let tokenizer = manifest::tokenizer_config(
        &manifest::config(&files).unwrap(),
        &tokenizer,
        &saved,
        "PreTrainedTokenizer",
    );
    let json = files.tokenizer().unwrap();
    PromptEncoder::new(&json, &tokenizer.unwrap(), &config, max_length).unwrap()
}

fn encoder(name: &str, max_length: usize) -> PromptEncoder {
    encoder_with(name, max_length, |_| {})
}

fn encode(encoder: &PromptEncoder, case: &Case) -> Vec<crate::encoder::EncodedPair> {
    let instruction = case.instruction();
    let bound = encoder.bind(case.options(), &instruction).unwrap();
    bound
        .encode(&case.pairs(), &AtomicBool::new(false))
        .unwrap()
}

/// The number of prompts whose ids differ from the reference.
fn differences(reference: &Reference, encoder: impl Fn(usize) -> PromptEncoder) -> usize {
    let usual = encoder(reference.max_length);
    let long = encoder(1 << 20);
    let mut count = 0;
    for case in &reference.cases {
        let encoder = if case.max_length.is_some() {
            &long
        } else {
            &usual
        };
        let encoded = encode(encoder, case);
        assert_eq!(encoded.len(), case.ids.len());
        for (i, (pair, ids)) in encoded.iter().zip(&case.ids).enumerate() {
            if pair.encoding.ids != *ids {
                if count == 0 {
                    eprintln!("{:?} {:?}, pair {i}", case.prompt, case.max_length);
                    eprintln!("{:?}\n{ids:?}", pair.encoding.ids);
                }
                count += 1;
            }
        }
    }
    count
}

fn check(name: &str) {
    let reference: Reference = read(&format!("{name}.json"));
    let prompts: usize = reference.cases.iter().map(|case| case.ids.len()).sum();
    assert!(prompts >= 120, "{prompts} prompts");
    assert_eq!(differences(&reference, |most| encoder(name, most)), 0);

    let prompted = resolved(&folder(name), &ModelOptions::default()).unwrap();
    let score = prompted
        .score
        .map(|score| (score.true_token, score.false_token));
    assert_eq!(score, reference.tokens);
    let files = Files::in_directory(&folder(name)).unwrap();
    let saved = SavedSettings::read(&files).unwrap();
    let activation = manifest::activation(&manifest::config(&files).unwrap(), &saved, 1);
    assert_eq!(format!("{:?}", activation.unwrap()), reference.activation);
}

#[test]
fn an_instruction_with_a_default_in_the_template() {
    check("judge");
}

#[test]
fn a_turn_for_each_text() {
    check("turns");
}

#[test]
fn a_long_tail() {
    check("task");
}

#[test]
fn structured_content_and_no_tail_put_back() {
    check("structured");
}

#[test]
fn a_prompt_in_the_tail_and_a_cut_at_the_start() {
    check("named");
}

#[test]
fn a_model_without_modules() {
    check("bare");
}

#[test]
fn a_classification_head() {
    check("classifier");
}

/// Without a template, the tokenizer joins the texts.
#[test]
fn texts_of_a_classifier_are_joined_by_the_tokenizer() {
    for name in ["joined", "joined-bos"] {
        let reference: Reference = read(&format!("{name}.json"));
        let prompted = resolved(&folder(name), &ModelOptions::default()).unwrap();
        assert_eq!((prompted.config, prompted.score), (None, None));
        let files = Files::in_directory(&folder(name)).unwrap();
        let json = files.tokenizer().unwrap();
        for case in &reference.cases {
            let most = case.max_length.unwrap_or(reference.max_length);
            let encoder = PairEncoder::new(&json, most, None).unwrap();
            for (i, (pair, ids)) in case.pairs().iter().zip(&case.ids).enumerate() {
                let query = encoder.query(&pair.query).unwrap();
                let encoded = encoder.pair(&query, &pair.document);
                // A batch has no place for a pair without tokens.
                let expected = match ids.is_empty() {
                    true => Err(EncodeError::EmptyPrompt),
                    false => Ok(ids.clone()),
                };
                assert_eq!(
                    encoded.map(|pair| pair.encoding.ids),
                    expected,
                    "{name}, {most} tokens, pair {i}"
                );
            }
        }
    }
}

/// A tokenizer without special tokens leaves nothing of a pair without texts, and a batch has no place for it.
#[test]
fn a_pair_without_tokens_is_refused() {
    let files = Files::in_directory(&folder("joined")).unwrap();
    let encoder = PairEncoder::new(&files.tokenizer().unwrap(), 100, None).unwrap();
    let pair = |query: &str, document: &str| encoder.pair(&encoder.query(query)?, document);
    assert_eq!(pair("", ""), Err(EncodeError::EmptyPrompt));
    assert_eq!(pair("", "a").unwrap().encoding.len(), 1);
}

/// Mistakes that the references must expose.
#[test]
fn mistakes_are_noticed() {
    let mistakes = |name: &'static str, change: fn(&mut ChatConfig)| {
        let reference: Reference = read(&format!("{name}.json"));
        differences(&reference, |most| encoder_with(name, most, change))
    };
    // The tail is not put back.
    for name in ["judge", "turns", "task", "bare", "classifier"] {
        assert!(
            mistakes(name, |chat| chat.restore_suffix = false) > 10,
            "{name}"
        );
    }
    assert!(mistakes("structured", |chat| chat.restore_suffix = true) > 10);
    // The newline at the end of the template is kept.
    for name in ["judge", "task"] {
        assert!(
            mistakes(name, |chat| chat.template.push('\n')) > 100,
            "{name}"
        );
    }
    let ungenerated = |chat: &mut ChatConfig| chat.variables.clear();
    assert!(mistakes("turns", ungenerated) > 100);
    assert!(mistakes("bare", ungenerated) > 100);
    let lined =
        |chat: &mut ChatConfig| chat.template = chat.template.replace("<Query>: ", "<Query>:");
    assert!(mistakes("judge", lined) > 100);
}

#[test]
fn templates_render_as_in_transformers() {
    #[derive(Deserialize)]
    struct Templates {
        messages: [Map<String, Value>; 2],
        variables: Map<String, Value>,
        templates: Vec<Rendered>,
    }
    #[derive(Deserialize)]
    struct Rendered {
        source: String,
        rendered: Option<String>,
    }
    let reference: Templates = read("templates.json");
    let [query, document] = &reference.messages;
    let message = |role, of: &'static Map<String, Value>| Message {
        role,
        content: of["content"].as_str().unwrap(),
    };
    let leaked: &'static [Map<String, Value>; 2] =
        Box::leak(Box::new([query.clone(), document.clone()]));
    let messages = [
        message("query", &leaked[0]),
        message("document", &leaked[1]),
    ];
    for Rendered { source, rendered } in reference.templates {
        let variables = reference.variables.clone();
        let template = ChatTemplate::new(&source, variables, MessageFormat::Flat);
        let text = template.and_then(|template| template.render(&messages));
        assert_eq!(text.clone().ok(), rendered, "{source}: {text:?}");
    }
}

#[test]
fn pieces_are_joined_by_id() {
    let reference: BTreeMap<String, Vec<Case>> = read("pieces.json");
    let dir = folder("pieces");
    let json = Files::in_directory(&dir).unwrap().tokenizer().unwrap();
    for (name, cases) in reference {
        let options = ModelOptions {
            profile: Some(ProfileChoice::parse(&name)),
            max_length: None,
        };
        let prompted = resolved(&dir, &options).unwrap_or_else(|error| panic!("{error}"));
        for case in cases {
            let mut config = prompted.config.clone().unwrap();
            let Layout::Pieces(pieces) = &mut config.layout else {
                panic!("{name} has pieces");
            };
            pieces.max_length = case.max_length.unwrap();
            let encoder = PromptEncoder::new(&json, &TokenizerConfig::default(), &config, 1 << 20);
            let instruction = case.instruction();
            let encoder = encoder.unwrap();
            let bound = encoder
                .bind(TruncationOptions::default(), &instruction)
                .unwrap();
            let encoded = bound
                .encode(&case.pairs(), &AtomicBool::new(false))
                .unwrap();
            for (i, (pair, ids)) in encoded.iter().zip(&case.ids).enumerate() {
                assert_eq!(
                    pair.encoding.ids, *ids,
                    "{name}, {:?}, pair {i}",
                    case.max_length
                );
            }
        }
    }
}

/// An encoder of the tokenizer of the pieces' reference, with the pieces of a profile.
fn pieces_encoder(profile: &str, max_length: usize) -> PromptEncoder {
    let dir = folder("pieces");
    let json = Files::in_directory(&dir).unwrap().tokenizer().unwrap();
    let options = ModelOptions {
        profile: Some(ProfileChoice::parse(profile)),
        max_length: None,
    };
    let prompted = resolved(&dir, &options).unwrap_or_else(|error| panic!("{error}"));
    let config = prompted.config.unwrap();
    PromptEncoder::new(&json, &TokenizerConfig::default(), &config, max_length).unwrap()
}

#[test]
fn an_instruction_that_fills_the_prompt_is_refused() {
    let encoder = pieces_encoder("bge-reranker-v2-gemma", 400);
    encoder.check_room().unwrap();
    let pair = |instruction: &Instruction, chunks| {
        let options = TruncationOptions {
            max_chunks: NonZeroUsize::new(chunks),
            ..TruncationOptions::default()
        };
        let bound = encoder.bind(options, instruction).unwrap();
        let query = bound.query("what")?;
        bound.pair(&query, &"a document ".repeat(300))
    };
    let short = Instruction::Text("Yes or No?".into());
    for chunk in pair(&short, 9).unwrap().encodings() {
        assert!(chunk.len() <= 400, "{}", chunk.len());
    }
    let long = Instruction::Text("is it so? ".repeat(1000).into());
    for chunks in [1, 9] {
        let error = pair(&long, chunks).unwrap_err();
        assert!(
            matches!(error, EncodeError::PromptTooLong { limit: 400, .. }),
            "{error}"
        );
    }
    let encoder = encoder.with_instruction(&"is it so? ".repeat(1000));
    let error = encoder.check_room().unwrap_err().to_string();
    assert!(error.contains("shorten `--instruction`"), "{error}");
}

#[test]
fn a_maximum_length_without_room_for_texts_is_refused() {
    for encoder in [
        pieces_encoder("mxbai-rerank-v2", 64),
        pieces_encoder("bge-reranker-v2-gemma", 32),
        encoder("turns", 10),
    ] {
        let error = encoder.check_room().unwrap_err().to_string();
        assert!(error.contains("raise `--max-length`"), "{error}");
    }
    encoder("turns", 100).check_room().unwrap();
}

#[test]
fn what_is_tokenized_for_each_document_is_charged_for_each() {
    let long = Instruction::Text("i".repeat(1 << 16).into());
    let cost = |encoder: &PromptEncoder, instruction: &Instruction, chunks| {
        let options = TruncationOptions {
            max_chunks: NonZeroUsize::new(chunks),
            ..TruncationOptions::default()
        };
        let bound = encoder.bind(options, instruction).unwrap();
        (bound.query_cost(100), bound.pair_cost(100, 1000))
    };
    let chat = encoder("turns", 1 << 20);
    let (query, pair) = cost(&chat, &Instruction::Default, 1);
    assert!(query == 0 && (1100..1500).contains(&pair), "{query} {pair}");
    let (_, pair) = cost(&chat, &long, 1);
    assert!(pair > 1 << 16, "{pair}");
    let short = encoder("turns", 100);
    let (one, parts) = (
        cost(&short, &Instruction::Default, 1).1,
        cost(&short, &Instruction::Default, 9).1,
    );
    assert!(parts > one + 1000, "{one} {parts}");
    // Pieces are tokenized once for each query.
    let pieces = pieces_encoder("bge-reranker-v2-gemma", 1 << 20);
    let (query, pair) = cost(&pieces, &long, 1);
    assert!(query > 1 << 16 && pair == 1000, "{query} {pair}");
}

/// A character can have more tokens than a part.
#[test]
fn no_part_of_a_document_is_empty() {
    let encoder = encoder("turns", 1 << 20);
    let instruction = Instruction::Default;
    let all = encoder
        .bind(TruncationOptions::default(), &instruction)
        .unwrap();
    let empty = all.pair(&all.query("q").unwrap(), "").unwrap().encoding;
    // Room for one token of the document, and the tokens that may be added where it begins and ends.
    let encoder = self::encoder("turns", empty.len() + 3);
    let options = TruncationOptions {
        max_chunks: NonZeroUsize::new(99),
        ..TruncationOptions::default()
    };
    let bound = encoder.bind(options, &instruction).unwrap();
    let pair = bound.pair(&bound.query("q").unwrap(), "🏳abcde");
    let parts: Vec<_> = pair.unwrap().encodings().collect();
    assert!(parts.len() > 2);
    assert!(!parts.contains(&empty), "{parts:?}");
}

#[test]
fn texts_are_limited_before_the_prompt_is_made() {
    let encoder = encoder("turns", 1 << 20);
    let instruction = Instruction::Default;
    let ids = |options: TruncationOptions, query: &str, document: &str| {
        let bound = encoder.bind(options, &instruction).unwrap();
        let query = bound.query(query).unwrap();
        let pair = bound.pair(&query, document).unwrap();
        assert!(!pair.truncated());
        pair.encoding.ids
    };
    let all = TruncationOptions::default();
    let most = |n| NonZeroUsize::new(n);
    let three = TruncationOptions {
        max_document_tokens: most(3),
        ..all
    };
    assert_eq!(ids(three, "q", "a a a a"), ids(all, "q", "a a a"));
    let left = TruncationOptions {
        side: Some(TruncationSide::Left),
        ..three
    };
    assert_eq!(ids(left, "q", "e a a a"), ids(all, "q", "a a a"));
    let query = TruncationOptions {
        max_query_tokens: most(2),
        ..all
    };
    assert_eq!(ids(query, "a a a", "d"), ids(all, "a a", "d"));
    // A token can begin within a character.
    let one = TruncationOptions {
        max_document_tokens: most(1),
        ..all
    };
    assert_eq!(ids(one, "q", "🏳🏳"), ids(all, "q", ""));
}

#[test]
fn long_documents_are_cut_or_scored_in_parts() {
    let encoder = encoder("turns", 36);
    let instruction = Instruction::Default;
    let document = "a b c d e f g h i j k l m n o p q r s t u v w x y z";
    let options = |chunks| TruncationOptions {
        max_chunks: NonZeroUsize::new(chunks),
        ..TruncationOptions::default()
    };
    let pair = |options: TruncationOptions, document: &str| {
        let bound = encoder.bind(options, &instruction).unwrap();
        bound.pair(&bound.query("what").unwrap(), document)
    };
    let whole = pair(options(1), "a b").unwrap();
    assert!(!whole.truncated());
    let cut = pair(options(1), document).unwrap();
    assert!(cut.truncated() && cut.chunks() == 1 && cut.encoding.len() == 36);
    let parts = pair(options(99), document).unwrap();
    assert!(!parts.truncated() && parts.chunks() > 2);
    let tail = &whole.encoding.ids[whole.encoding.len() - 4..];
    for part in parts.encodings() {
        assert!(part.len() <= 36);
        assert_eq!(&part.ids[part.len() - 4..], tail);
    }
    assert!(pair(options(2), document).unwrap().truncated());
    let left = TruncationOptions {
        side: Some(TruncationSide::Left),
        ..options(1)
    };
    let left = pair(left, document).unwrap();
    assert!(left.truncated() && left.encoding.len() <= 36);
    assert_ne!(left.encoding, cut.encoding);

    let strict = TruncationOptions {
        strategy: Some(TruncationStrategy::DocumentOnly),
        ..options(1)
    };
    let bound = encoder.bind(strict, &instruction).unwrap();
    let query = bound.query(document).unwrap();
    let error = bound.pair(&query, "d").unwrap_err();
    assert!(matches!(error, EncodeError::QueryTooLong { .. }), "{error}");
    let full = Pair {
        query: "what".into(),
        document: document.into(),
    };
    let bound = encoder.bind(options(1), &instruction).unwrap();
    let exact = bound.full_length(&full).unwrap();
    assert!(exact > 40, "{exact}");
}

#[test]
fn prompts_are_named() {
    let encoder = encoder("judge", 100);
    let named = Instruction::Named("other".into());
    let error = encoder
        .bind(TruncationOptions::default(), &named)
        .unwrap_err();
    assert!(error.to_string().contains("`facts`, `query`"), "{error}");
    let encoder = self::encoder("turns", 100);
    let error = encoder
        .bind(TruncationOptions::default(), &named)
        .unwrap_err();
    assert!(error.to_string().contains("there are none"), "{error}");
}

/// A copy of a reference model to change.
fn copied(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let mut folders = vec![PathBuf::new()];
    while let Some(inner) = folders.pop() {
        std::fs::create_dir_all(copy.path().join(&inner)).unwrap();
        for entry in std::fs::read_dir(folder(name).join(&inner)).unwrap() {
            let entry = entry.unwrap();
            let path = inner.join(entry.file_name());
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(path),
                false => drop(std::fs::copy(entry.path(), copy.path().join(path)).unwrap()),
            }
        }
    }
    copy
}

fn set(dir: &tempfile::TempDir, file: &str, field: &str, value: Value) {
    let path = dir.path().join(file);
    let mut content: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    content[field] = value;
    std::fs::write(path, content.to_string()).unwrap();
}

fn refused(dir: &tempfile::TempDir, options: &ModelOptions, what: &[&str]) {
    let error = resolved(dir.path(), options).unwrap_err().to_string();
    for what in what {
        assert!(error.contains(what), "{error}\nlacks {what}");
    }
}

#[test]
fn a_model_without_a_prompt_is_refused_with_both_ways_out() {
    let none = ModelOptions::default();
    let ways = ["chat_template.jinja", "rerankd_profile.json", "--profile"];
    // A template for chats drops the texts.
    let chat = copied("judge");
    let plain =
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}";
    std::fs::write(chat.path().join("chat_template.jinja"), plain).unwrap();
    refused(
        &chat,
        &none,
        &["does not print the message with the role `query`"],
    );
    refused(&chat, &none, &ways);
    // No template.
    let bare = copied("bare");
    set(&bare, "tokenizer_config.json", "chat_template", Value::Null);
    refused(&bare, &none, &ways);
    // Modules without messages.
    let text = copied("judge");
    let modalities = serde_json::json!({"text": {"method": "forward"}});
    set(
        &text,
        "sentence_bert_config.json",
        "modality_config",
        modalities,
    );
    refused(&text, &none, &ways);
    refused(&text, &none, &["has no `message`"]);
    // A template that is none.
    let broken = copied("judge");
    std::fs::write(broken.path().join("chat_template.jinja"), "a\n{% if %}").unwrap();
    refused(&broken, &none, &["chat_template.jinja`", "line 2"]);
}

#[test]
fn models_that_need_their_own_code_are_refused_by_name() {
    let none = ModelOptions::default();
    for (field, value, name) in [
        (
            "architectures",
            serde_json::json!(["JinaForRanking"]),
            "jina-reranker-v3",
        ),
        (
            "architectures",
            serde_json::json!(["LlamaBidirectionalForSequenceClassification"]),
            "llama-nemotron-rerank",
        ),
        (
            "auto_map",
            serde_json::json!({"AutoConfig": "modeling_zeranker.ZEConfig"}),
            "zerank-1",
        ),
        (
            "auto_map",
            serde_json::json!({"AutoModel": "own.Model"}),
            "`auto_map`",
        ),
    ] {
        let dir = copied("judge");
        set(&dir, "config.json", field, value);
        refused(&dir, &none, &[name]);
    }
}

/// The code of a classification head is not run: tensors and configuration say what it is.
#[test]
fn a_classifier_with_code_of_its_own_is_read_without_it() {
    let dir = copied("classifier");
    let none = ModelOptions::default();
    let expected = resolved(dir.path(), &none).unwrap();
    let code = serde_json::json!({"AutoModelForSequenceClassification": "own.Model"});
    set(&dir, "config.json", "auto_map", code);
    assert_eq!(resolved(dir.path(), &none).unwrap(), expected);
}

#[test]
fn profiles_replace_what_files_say() {
    let dir = copied("bare");
    let written = |profile: Value| {
        std::fs::write(dir.path().join(PROFILE_FILE), profile.to_string()).unwrap();
        resolved(dir.path(), &ModelOptions::default())
    };
    let template = "{{ messages[-2].content }}|{{ messages[-1].content }}";
    let prompted = written(serde_json::json!({
        "template": template, "true_token": "yes", "false_token": "no", "max_length": 30,
        "activation": "identity", "instruction": "i",
    }));
    let prompted = prompted.unwrap();
    let vocabulary = source::Vocabulary::read(&Files::in_directory(dir.path()).unwrap()).unwrap();
    let score = LogitScore {
        true_token: vocabulary.id("yes").unwrap(),
        false_token: vocabulary.id("no"),
    };
    assert_eq!(prompted.score, Some(score));
    assert_eq!(prompted.max_length, Some(30));
    assert_eq!(prompted.activation, Some(Activation::Identity));
    let config = prompted.config.unwrap();
    assert_eq!(config.default.as_deref(), Some("i"));
    assert!(config.origin.contains(PROFILE_FILE));
    for (profile, what) in [
        (
            serde_json::json!({"template": template}),
            "`true_token` is missing",
        ),
        (
            serde_json::json!({"template": template, "true_token": "certainly not"}),
            "not one token",
        ),
        (
            serde_json::json!({"true_token": "yes"}),
            "either `template` or `pieces`",
        ),
        (
            serde_json::json!({"true_token": "yes", "template": "x"}),
            "role `query`",
        ),
        (
            serde_json::json!({"true_token": "yes", "pieces": [{"text": "{{ query }}", "counted": true}]}),
            "not exactly one piece has the document",
        ),
        (
            serde_json::json!({"true_token": "yes", "pieces": [
                {"text": "{{ query }}", "counted": true}, {"text": "{{ document }}"}]}),
            "must be `counted`",
        ),
    ] {
        let error = written(profile).unwrap_err().to_string();
        assert!(error.contains(what), "{error}\nlacks {what}");
    }
    // The setting wins.
    let options = ModelOptions {
        profile: Some(ProfileChoice::parse("qwen3-reranker")),
        max_length: None,
    };
    let config = resolved(dir.path(), &options).unwrap().config.unwrap();
    assert_eq!(config.origin, "the profile `qwen3-reranker`");
    let missing = ModelOptions {
        profile: Some(ProfileChoice::parse("no/such/file.json")),
        max_length: None,
    };
    refused(&dir, &missing, &["no/such/file.json", "`mxbai-rerank-v2`"]);
}
