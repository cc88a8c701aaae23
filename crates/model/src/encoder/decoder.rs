//! Rebuilds a tokenizer as transformers' tokenizer classes of decoders do, from its vocabulary and merges.

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{NFC, Replace};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
    Tokenizer,
};

use super::vocabulary::unusable;
use crate::ModelError;
use crate::tokenizer_class::{AddedTokens, DecoderTokenizer};

/// The words of Qwen2.
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// `saved` as the class `form` reads it. Vocabulary, merges and post-processor are kept.
///
/// # Errors
/// [`ModelError`] if the model is not BPE, or one that joins words from marked pieces.
pub(super) fn rebuild(
    saved: Tokenizer,
    form: &DecoderTokenizer,
    added: &AddedTokens,
) -> Result<Tokenizer, ModelError> {
    // Since 5.23, transformers leaves a byte-level tokenizer alone that is called Llama's by mistake.
    if matches!(form, DecoderTokenizer::Llama { .. }) && is_byte_level(&saved) {
        return Ok(saved);
    }
    let ModelWrapper::BPE(bpe) = saved.get_model() else {
        return Err(unusable(
            "`tokenizer.json`: `model` is not `BPE`, which `tokenizer_class` requires",
        ));
    };
    let affixes = [&bpe.continuing_subword_prefix, &bpe.end_of_word_suffix];
    if affixes.into_iter().flatten().any(|affix| !affix.is_empty()) {
        return Err(unusable(
            "`tokenizer.json`: `model` marks pieces of words, which `tokenizer_class` does not do",
        ));
    }
    let cannot = |error| unusable("`tokenizer.json` cannot be used").caused_by(error);
    let mut rebuilt = Tokenizer::new(model(bpe, form));
    rebuilt
        .with_normalizer(normalizer(form).map_err(cannot)?)
        .map_err(cannot)?;
    rebuilt.with_pre_tokenizer(Some(pre_tokenizer(form).map_err(cannot)?));
    rebuilt.with_post_processor(saved.get_post_processor().cloned());
    rebuilt.add_tokens(tokens(&saved, added)).map_err(cannot)?;
    Ok(rebuilt)
}

/// Whether any part of the pre-tokenizer or the decoder is byte-level.
fn is_byte_level(saved: &Tokenizer) -> bool {
    let parts = [
        serde_json::to_string(&saved.get_pre_tokenizer()),
        serde_json::to_string(&saved.get_decoder()),
    ];
    let mut parts = parts.into_iter().flatten();
    parts.any(|part| part.contains(r#""ByteLevel""#))
}

fn model(saved: &BPE, form: &DecoderTokenizer) -> BPE {
    let is_byte_level = matches!(form, DecoderTokenizer::Qwen2 { .. });
    let mut bpe = saved.clone();
    bpe.dropout = None;
    bpe.ignore_merges = false;
    bpe.fuse_unk = !is_byte_level;
    bpe.byte_fallback = !is_byte_level;
    bpe.unk_token = match form {
        DecoderTokenizer::Gemma { unknown } => Some(unknown.clone()),
        DecoderTokenizer::Llama { .. } | DecoderTokenizer::Qwen2 { .. } => None,
    };
    bpe
}

fn normalizer(form: &DecoderTokenizer) -> tokenizers::Result<Option<NormalizerWrapper>> {
    Ok(match form {
        DecoderTokenizer::Llama { .. } => None,
        DecoderTokenizer::Qwen2 { .. } => Some(NFC.into()),
        DecoderTokenizer::Gemma { .. } => Some(Replace::new(" ", "▁")?.into()),
    })
}

fn pre_tokenizer(form: &DecoderTokenizer) -> tokenizers::Result<PreTokenizerWrapper> {
    Ok(match *form {
        DecoderTokenizer::Llama {
            add_prefix_space,
            legacy,
        } => {
            let prepend = match (add_prefix_space, legacy) {
                (false, _) => PrependScheme::Never,
                (true, false) => PrependScheme::First,
                (true, true) => PrependScheme::Always,
            };
            Metaspace::new('▁', prepend, false).into()
        }
        DecoderTokenizer::Qwen2 { add_prefix_space } => {
            let words = SplitPattern::Regex(QWEN2_WORDS.to_owned());
            let words = Split::new(words, SplitDelimiterBehavior::Isolated, false)?;
            let bytes = ByteLevel::new(add_prefix_space, true, false);
            Sequence::new(vec![words.into(), bytes.into()]).into()
        }
        DecoderTokenizer::Gemma { .. } => {
            let space = SplitPattern::String(" ".to_owned());
            Split::new(space, SplitDelimiterBehavior::MergedWithPrevious, false)?.into()
        }
    })
}

/// The added tokens, in the order in which those without an id get one.
fn tokens(saved: &Tokenizer, added: &AddedTokens) -> Vec<AddedToken> {
    let mut tokens = match &added.listed {
        Some(listed) => listed.clone(),
        None => {
            let vocabulary = saved.get_added_vocabulary().get_added_tokens_decoder();
            let mut saved: Vec<_> = vocabulary.iter().collect();
            saved.sort_by_key(|(id, _)| **id);
            saved.into_iter().map(|(_, token)| token.clone()).collect()
        }
    };
    for token in &added.special {
        if tokens.iter().all(|known| known.content != token.content) {
            tokens.push(token.clone());
        }
    }
    tokens
}
