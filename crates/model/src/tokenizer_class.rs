//! Tokenizer classes of transformers that override parts of `tokenizer.json`.

use serde_json::Value;
use tokenizers::AddedToken;

use super::ModelError;
use super::json::Object;

/// The class that leaves `tokenizer.json` unchanged.
pub(super) const AS_SAVED: &str = "TokenizersBackend";
pub(super) const LLAMA: &str = "LlamaTokenizer";
pub(super) const QWEN2: &str = "Qwen2Tokenizer";
pub(super) const GEMMA: &str = "GemmaTokenizer";

/// Special tokens that a class names, in the order in which it adds them.
pub(super) const SPECIAL_TOKENS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// What a tokenizer class overrides in `tokenizer.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerClass {
    /// `BertTokenizer` and its relatives: override the normalizer.
    Bert {
        /// Whether to lower-case text.
        lowercase: bool,
        /// Whether to strip accents; `None` means only if lower-casing.
        strip_accents: Option<bool>,
        /// Whether to split Chinese characters into separate tokens.
        chinese_chars: bool,
    },
    /// `RobertaTokenizer`: overrides the byte-level pre-tokenizer.
    Roberta {
        /// Whether to prepend a space to texts without one.
        add_prefix_space: bool,
    },
    /// `DebertaV2Tokenizer`: replaces the normalizer, also a character map of SentencePiece, and the
    /// pre-tokenizer.
    DebertaV2 {
        /// Whether to lower-case text.
        lowercase: bool,
        /// Whether to split punctuation into separate tokens.
        split_by_punct: bool,
        /// Whether every word of a text, or only the first of it, gets a space where it has none.
        add_prefix_space: bool,
    },
    /// A class of decoders: keeps vocabulary, merges and post-processor, and replaces the rest.
    Decoder {
        /// How it reads text.
        form: DecoderTokenizer,
        /// Tokens that are found in texts before anything else.
        added: AddedTokens,
    },
    /// Any other class: `tokenizer.json` unchanged.
    AsSaved,
}

/// How a tokenizer class of decoders reads text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecoderTokenizer {
    /// `LlamaTokenizer`: SentencePiece's spaces. Byte-level tokenizers stay as saved.
    Llama {
        /// Whether to prepend a space to texts without one.
        add_prefix_space: bool,
        /// Whether text after a special token gets a space, too.
        legacy: bool,
    },
    /// `Qwen2Tokenizer`: byte-level words in the normalization form C.
    Qwen2 {
        /// Whether to prepend a space to texts without one.
        add_prefix_space: bool,
    },
    /// `GemmaTokenizer`: SentencePiece's spaces, and none in front.
    Gemma {
        /// The unknown token.
        unknown: String,
    },
}

/// Added tokens in `tokenizer_config.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedTokens {
    /// Instead of those in `tokenizer.json`, in the order of their ids.
    pub listed: Option<Vec<AddedToken>>,
    /// Special tokens by name and by default. They are added if they are in no list.
    pub special: Vec<AddedToken>,
}

/// The class that transformers uses, without `Fast`. `default` is that of the model type.
///
/// Classes of decoders serve their own model types only: where `tokenizer_config.json` names another class,
/// `tokenizer.json` is used unchanged.
pub(super) fn name<'a>(
    config: &'a Object,
    tokenizer: &'a Object,
    default: &'a str,
) -> Result<&'a str, ModelError> {
    let slow = |class: &'a str| class.strip_suffix("Fast").unwrap_or(class);
    let of_decoders = |class| [LLAMA, QWEN2, GEMMA].contains(&class);
    let class = match (
        tokenizer.text("tokenizer_class")?.map(slow),
        config.text("tokenizer_class")?.map(slow),
    ) {
        _ if default == AS_SAVED => default,
        (Some(class), _) if class != default && (of_decoders(class) || of_decoders(default)) => {
            AS_SAVED
        }
        (Some(class), _) | (None, Some(class)) => class,
        (None, None) => default,
    };
    Ok(match class {
        "ElectraTokenizer" => "BertTokenizer",
        class => class,
    })
}

/// Special tokens of a class where the files name none.
pub(super) fn default_token(class: &str, name: &str) -> Option<&'static str> {
    match (class, name) {
        (LLAMA, "bos_token") => Some("<s>"),
        (LLAMA, "eos_token") => Some("</s>"),
        (LLAMA | GEMMA, "unk_token") => Some("<unk>"),
        (QWEN2, "unk_token" | "eos_token" | "pad_token") => Some("<|endoftext|>"),
        (GEMMA, "bos_token") => Some("<bos>"),
        (GEMMA, "eos_token") => Some("<eos>"),
        (GEMMA, "pad_token") => Some("<pad>"),
        (GEMMA, "mask_token") => Some("<mask>"),
        _ => None,
    }
}

impl TokenizerClass {
    /// Settings that transformers derives from the class, regardless of `tokenizer.json`.
    pub(super) fn read(tokenizer: &Object, class: &str) -> Result<Self, ModelError> {
        let flag = |name, default| Ok(tokenizer.flag(name)?.unwrap_or(default));
        Ok(match class {
            "BertTokenizer" | "DistilBertTokenizer" | "MPNetTokenizer" => Self::Bert {
                lowercase: flag("do_lower_case", true)?,
                strip_accents: tokenizer.flag("strip_accents")?,
                chinese_chars: flag("tokenize_chinese_chars", true)?,
            },
            "RobertaTokenizer" => Self::Roberta {
                add_prefix_space: flag("add_prefix_space", false)?,
            },
            "DebertaV2Tokenizer" => Self::DebertaV2 {
                lowercase: flag("do_lower_case", false)?,
                split_by_punct: flag("split_by_punct", false)?,
                add_prefix_space: flag("add_prefix_space", true)?,
            },
            LLAMA => Self::Decoder {
                form: DecoderTokenizer::Llama {
                    add_prefix_space: flag("add_prefix_space", true)?,
                    legacy: flag("legacy", false)?,
                },
                added: AddedTokens::read(tokenizer, class)?,
            },
            QWEN2 => Self::Decoder {
                form: DecoderTokenizer::Qwen2 {
                    add_prefix_space: flag("add_prefix_space", false)?,
                },
                added: AddedTokens::read(tokenizer, class)?,
            },
            GEMMA => {
                let unknown = named_token(tokenizer, class, "unk_token")?;
                Self::Decoder {
                    form: DecoderTokenizer::Gemma {
                        // Python's `str(None)`.
                        unknown: unknown.map_or("None".to_owned(), |token| token.content),
                    },
                    added: AddedTokens::read(tokenizer, class)?,
                }
            }
            _ => Self::AsSaved,
        })
    }
}

impl AddedTokens {
    fn read(tokenizer: &Object, class: &str) -> Result<Self, ModelError> {
        const LISTED: &str = "added_tokens_decoder";
        let listed = match tokenizer.object(LISTED)? {
            None => None,
            Some(tokens) => {
                let mut listed = Vec::new();
                for name in tokens.names() {
                    let id: u32 = name
                        .parse()
                        .map_err(|_| tokens.invalid(name, "is not the id of a token"))?;
                    let token = tokens.value(name).and_then(token);
                    listed.push((
                        id,
                        token.ok_or_else(|| tokens.invalid(name, "is no token"))?,
                    ));
                }
                listed.sort_by_key(|(id, _)| *id);
                Some(listed.into_iter().map(|(_, token)| token).collect())
            }
        };
        let mut special = Vec::new();
        for name in SPECIAL_TOKENS {
            special.extend(named_token(tokenizer, class, name)?);
        }
        let extra = match tokenizer.value("extra_special_tokens") {
            None => tokenizer.value("additional_special_tokens"),
            found => found,
        };
        special.extend(
            extra
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(token),
        );
        for token in &mut special {
            token.special = true;
        }
        Ok(Self { listed, special })
    }
}

/// A special token by its name. An explicit `null` is none.
fn named_token(
    tokenizer: &Object,
    class: &str,
    name: &str,
) -> Result<Option<AddedToken>, ModelError> {
    if !tokenizer.contains(name) {
        return Ok(default_token(class, name).map(|text| AddedToken::from(text, true)));
    }
    match tokenizer.value(name) {
        None => Ok(None),
        Some(value) => token(value)
            .map(Some)
            .ok_or_else(|| tokenizer.invalid(name, "is no token")),
    }
}

/// A token as a string, which is special, or as an object.
fn token(value: &Value) -> Option<AddedToken> {
    if let Some(text) = value.as_str() {
        return Some(AddedToken::from(text, true));
    }
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    Some(AddedToken {
        content: value.get("content")?.as_str()?.to_owned(),
        single_word: flag("single_word").unwrap_or(false),
        lstrip: flag("lstrip").unwrap_or(false),
        rstrip: flag("rstrip").unwrap_or(false),
        normalized: flag("normalized").unwrap_or(!special),
        special,
    })
}
