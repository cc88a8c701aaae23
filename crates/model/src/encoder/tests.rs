//! Compares the encoder with the tokenizer's own pair encoding.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::strategy::Strategy;
use serde_json::{Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use super::pieces::Pieces;
use super::text::TextTokens;
use super::*;
use crate::TokenizerClass;

mod start;
mod truncating;

const WORDS: [&str; 6] = ["the", "river", "run", "##ning", "##s", "a"];

/// A tokenizer file with padding and truncation, which must have no effect.
fn file(normalizer: Value, pre_tokenizer: Value, post_processor: Value, model: Value) -> Vec<u8> {
    let special = |id: u32, content: &str, lstrip: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": lstrip,
               "rstrip": false, "normalized": false, "special": true})
    };
    let file = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"},
        "added_tokens": [special(0, "<pad>", false), special(1, "<s>", false),
                         special(2, "</s>", false), special(3, "<unk>", false),
                         special(4, "<mask>", true)],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": null,
        "model": model,
    });
    serde_json::to_vec(&file).unwrap()
}

fn vocabulary(tokens: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut vocabulary: Vec<String> = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
        .map(str::to_owned)
        .to_vec();
    for token in tokens {
        if !vocabulary.contains(&token) {
            vocabulary.push(token);
        }
    }
    vocabulary
}

fn ids(vocabulary: &[String]) -> Value {
    vocabulary
        .iter()
        .enumerate()
        .map(|(id, token)| (token.clone(), json!(id)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn wordpiece_model() -> Value {
    let letters = ('a'..='z').flat_map(|c| [c.to_string(), format!("##{c}")]);
    let vocabulary = vocabulary(WORDS.map(str::to_owned).into_iter().chain(letters));
    json!({"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
           "max_input_chars_per_word": 100, "vocab": ids(&vocabulary)})
}

fn template(pair: &[(&str, u32)]) -> Value {
    let piece = |&(name, type_id): &(&str, u32)| match name {
        "A" | "B" => json!({"Sequence": {"id": name, "type_id": type_id}}),
        special => json!({"SpecialToken": {"id": special, "type_id": type_id}}),
    };
    let pair: Vec<Value> = pair.iter().map(piece).collect();
    json!({"type": "TemplateProcessing",
           "single": [{"Sequence": {"id": "A", "type_id": 0}}],
           "pair": pair,
           "special_tokens": {
               "<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
               "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}})
}

fn bert_normalizer() -> Value {
    json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
           "strip_accents": null, "lowercase": true})
}

fn bert(post_processor: Value) -> Vec<u8> {
    let pre_tokenizer = json!({"type": "BertPreTokenizer"});
    file(
        bert_normalizer(),
        pre_tokenizer,
        post_processor,
        wordpiece_model(),
    )
}

fn bert_classic() -> Vec<u8> {
    bert(json!({"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}))
}

fn bert_template() -> Vec<u8> {
    bert(template(&[
        ("<s>", 0),
        ("A", 0),
        ("</s>", 0),
        ("B", 1),
        ("</s>", 1),
    ]))
}

fn roberta() -> Vec<u8> {
    let mut bytes: Vec<String> = ByteLevel::alphabet().iter().map(char::to_string).collect();
    bytes.sort();
    let merges = [
        ("t", "h"),
        ("th", "e"),
        ("Ġ", "the"),
        ("i", "n"),
        ("in", "g"),
    ];
    let merged = merges.map(|(a, b)| format!("{a}{b}"));
    let vocabulary = vocabulary(bytes.into_iter().chain(merged));
    file(
        Value::Null,
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}),
        json!({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1],
               "trim_offsets": true, "add_prefix_space": false}),
        json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
               "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
               "vocab": ids(&vocabulary), "merges": merges.map(|(a, b)| format!("{a} {b}"))}),
    )
}

fn unigram() -> Vec<u8> {
    let letters = ('a'..='z').map(|c| c.to_string());
    let pieces = ["▁", "▁the", "▁river", "run", "ning", "s"].map(str::to_owned);
    let scored: Vec<Value> = vocabulary(pieces.into_iter().chain(letters))
        .iter()
        .enumerate()
        .map(|(i, token)| json!([token, -(i as f64) / 8.0]))
        .collect();
    file(
        json!({"type": "NFKC"}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
        template(&[
            ("<s>", 0),
            ("A", 0),
            ("</s>", 0),
            ("</s>", 0),
            ("B", 0),
            ("</s>", 0),
        ]),
        json!({"type": "Unigram", "unk_id": 3, "byte_fallback": false, "vocab": scored}),
    )
}

#[test]
fn a_vocabulary_with_a_huge_token_is_rejected_before_it_overflows_the_stack() {
    let mut saved: Value = serde_json::from_slice(&unigram()).unwrap();
    let tokens = saved["model"]["vocab"].as_array_mut().unwrap();
    tokens.push(json!(["x".repeat(1_000_000), -1.0]));
    let error = PairEncoder::new(saved.to_string().as_bytes(), 32, None).unwrap_err();
    assert!(error.to_string().contains("1000000 bytes"), "{error}");
}

/// A template without special tokens.
fn bare() -> Vec<u8> {
    bert(Value::Null)
}

fn all() -> [(&'static str, Vec<u8>); 5] {
    [
        ("bert", bert_classic()),
        ("bert template", bert_template()),
        ("roberta", roberta()),
        ("unigram", unigram()),
        ("bare", bare()),
    ]
}

/// The tokenizer's own encoding of a pair, and its number of tokens before truncation.
///
/// The steps of the pair encoding are called one by one: with truncation, `tokenizers` 0.23.0 to 0.23.2 stop
/// tokenizing early and then compare lengths that are too small, which gives the odd token to the wrong
/// text. Other versions do not.
fn expected(
    file: &[u8],
    max_length: usize,
    direction: TruncationDirection,
    query: &str,
    document: &str,
) -> (Encoding, usize) {
    let mut tokenizer = Tokenizer::from_bytes(file).unwrap();
    tokenizer.with_padding(None).with_truncation(None).unwrap();
    let full = tokenizer.encode((query, document), true).unwrap().len();

    let query = tokenizer.encode(query, false).unwrap();
    let mut document = tokenizer.encode(document, false).unwrap();
    document.set_type_ids(vec![1; document.len()]);
    let special = full - query.len() - document.len();
    let params = TruncationParams {
        direction,
        max_length: max_length - special,
        strategy: TruncationStrategy::LongestFirst,
        stride: 0,
    };
    let (query, document) = tokenizers::truncate_encodings(query, Some(document), &params).unwrap();
    let tokens = tokenizer.post_process(query, document, true).unwrap();
    let encoding = Encoding {
        ids: tokens.get_ids().to_vec(),
        type_ids: tokens.get_type_ids().iter().map(|&t| t as u8).collect(),
    };
    (encoding, full)
}

fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec!["the", " the", "River", "running", "runs", " zzz"]),
        2 => prop::sample::select(vec![" ", "  ", "\t\n", "\u{a0}", "\u{3000}"]),
        1 => prop::sample::select(vec!["<s>", "</s>", "<mask>", " <mask> ", "<unk>", "▁"]),
        1 => prop::sample::select(vec!["é", "e\u{301}", "İ", "ß", "Σς", "今日は", "🎉", "ﬁ", "\0"]),
    ]
    .prop_map(str::to_owned);
    let long = prop::collection::vec(piece.clone(), 0..30).prop_map(|pieces| pieces.concat());
    prop_oneof![
        4 => prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat()),
        2 => (long, 0_usize..8).prop_map(|(text, times)| text.repeat(times)),
        1 => any::<String>(),
        1 => Just("running".repeat(30)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn pairs_are_encoded_like_the_tokenizer_does(
        query in text(), document in text(), max_length in 5_usize..40, from_start: bool,
    ) {
        let direction = if from_start { TruncationDirection::Left } else { TruncationDirection::Right };
        let config = TokenizerConfig { truncate_start: Some(from_start), ..TokenizerConfig::default() };
        for (name, file) in all() {
            let encoder = PairEncoder::with_config(&file, max_length, None, &config).unwrap();
            let pair = encoder.pair(&encoder.query(&query).unwrap(), &document);
            let (expected, full) = expected(&file, max_length, direction, &query, &document);
            if expected.is_empty() {
                prop_assert_eq!(pair, Err(EncodeError::EmptyPrompt), "{}", name);
                continue;
            }
            let pair = pair.unwrap();
            prop_assert_eq!(&pair.encoding, &expected, "{}", name);
            prop_assert_eq!(pair.truncated(), full > max_length, "{}", name);
            prop_assert!(pair.full_length <= full, "{}", name);
        }
    }

    #[test]
    fn longest_first_is_that_of_the_tokenizer(
        query in 0_usize..40, document in 0_usize..40, room in 1_usize..60,
    ) {
        let tokens = |n| {
            let token = tokenizers::Token::new(7, String::new(), (0, 0));
            tokenizers::Encoding::from_tokens(vec![token; n], 0)
        };
        let params = TruncationParams {
            max_length: room,
            strategy: TruncationStrategy::LongestFirst,
            ..TruncationParams::default()
        };
        let (a, b) =
            tokenizers::truncate_encodings(tokens(query), Some(tokens(document)), &params).unwrap();
        prop_assert_eq!(longest_first(query, document, room), (a.len(), b.unwrap().len()));
    }
}

fn pair(query: &str, document: &str) -> Pair {
    Pair {
        query: query.into(),
        document: document.into(),
    }
}

#[test]
fn encode_keeps_the_order_of_the_pairs() {
    let encoder = PairEncoder::new(&bert_classic(), 12, None).unwrap();
    let shared: Arc<str> = "the river".into();
    let mut pairs: Vec<Pair> = (0..20)
        .map(|i| Pair {
            query: shared.clone(),
            document: "a ".repeat(i).into(),
        })
        .collect();
    pairs.extend([pair("the", "river"), pair("the", "run"), pair("runs", "a")]);
    let encoded = encoder.encode(&pairs, &AtomicBool::new(false)).unwrap();
    let one_by_one: Vec<EncodedPair> = pairs
        .iter()
        .map(|p| {
            encoder
                .pair(&encoder.query(&p.query).unwrap(), &p.document)
                .unwrap()
        })
        .collect();
    assert_eq!(encoded, one_by_one);
    assert!(
        encoder
            .encode(&[], &AtomicBool::new(false))
            .unwrap()
            .is_empty()
    );
}

#[test]
fn encode_stops_when_cancelled() {
    let encoder = PairEncoder::new(&bert_classic(), 12, None).unwrap();
    assert_eq!(
        encoder.encode(&[pair("a", "b")], &AtomicBool::new(true)),
        Err(EncodeError::Cancelled)
    );
}

#[test]
fn the_prompt_is_prepended_to_the_query() {
    let file = bert_classic();
    let encoder = PairEncoder::new(&file, 20, Some("run")).unwrap();
    let plain = PairEncoder::new(&file, 20, None).unwrap();
    assert_eq!(
        encoder.pair(&encoder.query("ning").unwrap(), "a").unwrap(),
        plain.pair(&plain.query("running").unwrap(), "a").unwrap()
    );
}

#[test]
fn a_maximum_length_without_room_is_refused() {
    let error = PairEncoder::new(&roberta(), 4, None).unwrap_err();
    assert!(error.message().contains("4 special tokens"), "{error}");
    assert!(PairEncoder::new(&roberta(), 5, None).is_ok());
}

#[test]
fn invalid_pair_templates_are_rejected() {
    for (pair, what) in [
        (
            vec![("B", 0), ("A", 1)],
            "puts the document before the query",
        ),
        (
            vec![("A", 0), ("</s>", 0), ("A", 0), ("B", 0)],
            "omits or repeats a text",
        ),
    ] {
        let error = PairEncoder::new(&bert(template(&pair)), 20, None).unwrap_err();
        assert!(error.message().contains(what), "{error}");
    }
}

#[test]
fn a_broken_tokenizer_is_refused() {
    for broken in [
        "",
        "{}",
        "[1]",
        "not json",
        r#"{"version":"1.0","model":{}}"#,
    ] {
        let error = PairEncoder::new(broken.as_bytes(), 20, None).unwrap_err();
        assert!(error.message().contains("`tokenizer.json`"), "{error}");
    }
}

/// The tokenizers library panics on such a file.
#[test]
fn a_template_with_an_unknown_special_token_is_refused() {
    let mut template = template(&[("<s>", 0), ("A", 0), ("</s>", 0), ("B", 0)]);
    template["special_tokens"] = json!({"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}});
    let error = PairEncoder::new(&bert(template), 16, None).unwrap_err();
    assert!(
        error
            .message()
            .contains("post-processor of `tokenizer.json` is damaged"),
        "{error}"
    );
}

/// The tokenizers library panics on such a file.
#[test]
fn a_tokenizer_with_a_damaged_character_map_is_refused() {
    let normalizer = json!({"type": "Precompiled", "precompiled_charsmap": "~"});
    let broken = file(normalizer, Value::Null, Value::Null, wordpiece_model());
    let error = PairEncoder::new(&broken, 20, None).unwrap_err();
    assert!(
        error.message().contains("`tokenizer.json` is damaged"),
        "{error}"
    );
}

/// The ids of a document after an empty query, without special tokens.
fn document_ids(file: &[u8], config: &TokenizerConfig, document: &str) -> Vec<u32> {
    let encoder = PairEncoder::with_config(file, 100, None, config).unwrap();
    let right = TruncationDirection::Right;
    encoder
        .tokenizer
        .tokenize(document, 100, right)
        .unwrap()
        .ids
}

#[test]
fn settings_override_the_tokenizer_file() {
    let as_saved = TokenizerConfig::default();
    let cased = TokenizerConfig {
        class: TokenizerClass::Bert {
            lowercase: false,
            strip_accents: None,
            chinese_chars: true,
        },
        ..TokenizerConfig::default()
    };
    let bert = bert_classic();
    let unknown = vec![3];
    assert_ne!(document_ids(&bert, &as_saved, "THE"), unknown);
    assert_eq!(document_ids(&bert, &cased, "THE"), unknown);
    assert_eq!(
        document_ids(&bert, &cased, "the"),
        document_ids(&bert, &as_saved, "the")
    );

    let spaced = TokenizerConfig {
        class: TokenizerClass::Roberta {
            add_prefix_space: true,
        },
        ..TokenizerConfig::default()
    };
    assert_eq!(
        document_ids(&roberta(), &spaced, "the"),
        document_ids(&roberta(), &as_saved, " the")
    );

    let lowered = TokenizerConfig {
        lowercase: true,
        ..TokenizerConfig::default()
    };
    for file in [roberta(), unigram()] {
        assert_eq!(
            document_ids(&file, &lowered, "THE River"),
            document_ids(&file, &as_saved, "the river")
        );
    }

    let split = TokenizerConfig {
        split_special_tokens: true,
        ..TokenizerConfig::default()
    };
    assert_eq!(document_ids(&bert, &as_saved, "</s>"), [2]);
    assert_ne!(document_ids(&bert, &split, "</s>"), [2]);
}

#[test]
fn token_types_can_be_cleared() {
    let config = TokenizerConfig {
        uses_type_ids: false,
        ..TokenizerConfig::default()
    };
    let encoder = PairEncoder::with_config(&bert_template(), 20, None, &config).unwrap();
    let pair = encoder
        .pair(&encoder.query("the").unwrap(), "river")
        .unwrap();
    assert_eq!(pair.encoding.type_ids, [0; 5]);
}

#[test]
fn a_tokenizer_that_does_not_match_the_model_is_rejected() {
    let encoder = PairEncoder::new(&bert_template(), 20, None).unwrap();
    let tokens = encoder.tokenizer.inner().get_vocab_size(true);
    assert!(encoder.check_compatible(tokens, 2, true).is_ok());
    let error = encoder.check_compatible(tokens - 1, 2, true).unwrap_err();
    assert!(error.message().contains("`vocab_size`"), "{error}");
    let error = encoder.check_compatible(tokens, 1, true).unwrap_err();
    assert!(error.message().contains("`type_vocab_size`"), "{error}");
    let bare = PairEncoder::new(&bare(), 20, None).unwrap();
    assert!(bare.check_compatible(tokens, 2, false).is_ok());
    let error = bare.check_compatible(tokens, 2, true).unwrap_err();
    assert!(error.message().contains("no special tokens"), "{error}");
}

#[test]
fn the_odd_token_goes_to_the_text_that_is_longer_as_a_whole() {
    // Room for 9 tokens. `running` is two tokens, so that stopping early would count 12 tokens of
    // the query and 13 of the document.
    let file = bert_classic();
    let encoder = PairEncoder::new(&file, 12, None).unwrap();
    let query = format!("the{}", " running".repeat(20));
    let document = " running".repeat(15);
    let pair = encoder
        .pair(&encoder.query(&query).unwrap(), &document)
        .unwrap();
    let second_separator = pair.encoding.ids[1..].iter().position(|&id| id == 2);
    assert_eq!(second_separator, Some(5));
    assert!(pair.full_length > 12);
}

/// The first tokens of `text`, from its prefix only.
fn start(file: &[u8], text: &str) -> Option<TextTokens> {
    let encoder = PairEncoder::new(file, 12, None).unwrap();
    encoder.tokenizer.tokenize_start(text, 12).unwrap()
}

#[test]
fn only_the_prefix_of_a_long_text_is_tokenized() {
    let long = "The river, running. ".repeat(1000);
    for (name, file) in all() {
        let encoder = PairEncoder::new(&file, 12, None).unwrap();
        let side = start(&file, &long).unwrap();
        assert!(!side.all, "{name}");
        assert_eq!(side.ids.len(), 12, "{name}");
        // Nothing says where words end.
        let word = "a".repeat(200_000);
        let side = start(&file, &word).unwrap();
        let whole = encoder.tokenizer.inner().encode(word, false).unwrap();
        assert_eq!(side.ids, whole.get_ids()[..side.ids.len()], "{name}");
        assert_eq!(side.all, whole.len() == 1, "{name}");
    }
}

/// A token that begins with the first byte of the word may span the end of the prefix.
#[test]
fn a_prefix_that_begins_a_longer_token_decides_nothing() {
    let file = unigram();
    let encoder = PairEncoder::new(&file, 12, None).unwrap();
    let pieces = Pieces::of(encoder.tokenizer.inner().get_model()).unwrap();
    let model = encoder.tokenizer.inner().get_model();
    assert!(pieces.certain(model, "▁rive").unwrap().is_empty());
    assert!(!pieces.certain(model, "▁therunrun").unwrap().is_empty());
}

#[test]
fn texts_are_tokenized_completely_if_their_prefix_is_not_enough() {
    let words = || json!({"type": "WhitespaceSplit"});
    let replace = json!({"type": "Replace", "pattern": {"String": "a b"}, "content": "c"});
    let (post_processor, model) = (Value::Null, wordpiece_model());
    let file = |normalizer, pre_tokenizer| {
        file(
            normalizer,
            pre_tokenizer,
            post_processor.clone(),
            model.clone(),
        )
    };
    let long = "The river, running. ".repeat(1000);
    assert!(start(&file(Value::Null, words()), &long).is_some());
    for known_not in [
        file(replace.clone(), words()),
        file(
            json!({"type": "Sequence", "normalizers": [replace]}),
            words(),
        ),
        file(Value::Null, Value::Null),
        file(Value::Null, json!({"type": "FixedLength", "length": 5})),
    ] {
        assert_eq!(start(&known_not, &long), None);
    }
    let spaced = String::from_utf8(bert_classic())
        .unwrap()
        .replace("<mask>", "< >");
    assert_eq!(start(spaced.as_bytes(), &long), None);
}

#[test]
fn a_special_token_at_the_first_try_is_not_cut() {
    // The first try ends inside of `</s>`, whose parts would be words of their own.
    let max_length = 11;
    let document = format!("{}     </s>{}", "the     ".repeat(10), " the".repeat(20));
    let (file, query) = (bert_classic(), "");
    let encoder = PairEncoder::new(&file, max_length, None).unwrap();
    let right = TruncationDirection::Right;
    let side = encoder
        .tokenizer
        .tokenize(&document, max_length, right)
        .unwrap();
    assert_eq!(side.ids[10], 2);
    let pair = encoder
        .pair(&encoder.query(query).unwrap(), &document)
        .unwrap();
    let (expected, _) = expected(&file, max_length, right, query, &document);
    assert_eq!(pair.encoding, expected);
}
