//! Telling a long text's first tokens from its first bytes.
//!
//! Normalising and splitting take most of the time of tokenising, and `tokenizers` does both for
//! the whole text before the first token. For the tokenizers that [`allows_cuts`] knows, all words
//! of a text cut at a [`safe_cut`], but the last one, are also the first words of the whole text:
//!
//! - added tokens hold no whitespace, so that none lies across the cut, and those that swallow
//!   whitespace around them stop at the printable character on the other side of the blank;
//! - the normalizers work on one character, or on one with its combining marks, at a time, and
//!   leave the three ASCII characters around the cut as they are, but for their case;
//! - the pre-tokenizers end a word where a printable character is followed by a blank, and look
//!   no further than that for where words end before it.

use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

/// Whether the words of a text's start tell those of the text.
pub(super) fn allows_cuts(tokenizer: &Tokenizer) -> bool {
    let plain = |token: &str| token.bytes().all(|b| b.is_ascii_graphic());
    let added = tokenizer.get_added_vocabulary().get_vocab();
    added.keys().all(|token| plain(token))
        && tokenizer.get_normalizer().is_none_or(normalizer_is_local)
        && tokenizer
            .get_pre_tokenizer()
            .is_some_and(pre_tokenizer_is_local)
}

fn normalizer_is_local(normalizer: &NormalizerWrapper) -> bool {
    known_normalizer(normalizer) && keeps_ascii(normalizer)
}

fn known_normalizer(normalizer: &NormalizerWrapper) -> bool {
    use NormalizerWrapper as N;
    match normalizer {
        N::BertNormalizer(_) | N::Lowercase(_) | N::StripAccents(_) | N::Precompiled(_) => true,
        N::NFC(_) | N::NFD(_) | N::NFKC(_) | N::NFKD(_) => true,
        N::Sequence(steps) => steps.as_ref().iter().all(known_normalizer),
        _ => false,
    }
}

/// Whether printable characters and single blanks between them stay, but for their case. This is
/// not certain of a precompiled map, which comes with the model.
fn keeps_ascii(normalizer: &NormalizerWrapper) -> bool {
    let text: String = ('!'..='~').flat_map(|c| [c, ' ']).collect();
    let text = text.trim_end();
    let mut normalized = NormalizedString::from(text);
    normalizer.normalize(&mut normalized).is_ok()
        && (normalized.get() == text || normalized.get() == text.to_ascii_lowercase())
}

fn pre_tokenizer_is_local(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    use PreTokenizerWrapper as P;
    match pre_tokenizer {
        P::BertPreTokenizer(_) | P::Whitespace(_) | P::WhitespaceSplit(_) => true,
        P::ByteLevel(_) | P::Metaspace(_) => true,
        P::Sequence(steps) => steps.as_ref().iter().all(pre_tokenizer_is_local),
        _ => false,
    }
}

/// The last position up to `target` that is at a blank between two printable ASCII characters.
pub(super) fn safe_cut(text: &str, target: usize) -> Option<usize> {
    let bytes = &text.as_bytes()[..text.len().min(target.saturating_add(2))];
    bytes
        .windows(3)
        .rposition(|w| w[0].is_ascii_graphic() && w[1] == b' ' && w[2].is_ascii_graphic())
        .map(|position| position + 1)
}
