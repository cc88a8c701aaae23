//! Where a text may be cut so that the tokens of its start are the first tokens of the whole text.
//!
//! `tokenizers` normalizes and splits a whole text before the first token is known. For the tokenizers
//! that [`Cuts::of`] accepts, a cut between the characters `a` and `b` is safe because
//!
//! - no added token and no string that the normalizer replaces lies across the cut, as none of them
//!   occurs around it, and `a` is not whitespace, so that neither a token that strips whitespace around
//!   it nor a run of whitespace reaches across;
//! - `b` is a starter that never composes with what precedes it, in no Unicode normalization form, and
//!   begins a grapheme cluster after `a`, so that the normalized start is a prefix of the normalized
//!   text;
//! - the pre-tokenizers decide from left to right and look at most two characters ahead (the contraction
//!   `'re` of byte-level BPE), so that all words of the start but the last one, or the last two where the
//!   last is that short, are words of the whole text, and the last one is the beginning of a word.

use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

/// The safe cuts of one tokenizer.
#[derive(Debug)]
pub(super) struct Cuts {
    /// Strings that must not lie across a cut.
    unbroken: Vec<String>,
    /// Length of the longest of them, in bytes.
    longest: usize,
}

impl Cuts {
    /// `None` when the tokenizer has a step that may look at a whole text.
    pub fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let mut unbroken = Vec::new();
        for token in tokenizer
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .values()
        {
            let content = &token.content;
            if token.normalized && !is_normalized_from_itself(tokenizer.get_normalizer(), content) {
                return None;
            }
            // A cut is never behind whitespace.
            if content.chars().all(char::is_whitespace) {
                continue;
            }
            if !content.bytes().all(|b| b.is_ascii_graphic()) {
                return None;
            }
            unbroken.push(content.clone());
        }
        if let Some(normalizer) = tokenizer.get_normalizer() {
            let local = normalizer_is_local(normalizer, &mut unbroken, &mut false);
            if !local || !keeps_ascii(normalizer) {
                return None;
            }
        }
        if !pre_tokenizer_is_local(tokenizer.get_pre_tokenizer()?) {
            return None;
        }
        let longest = unbroken.iter().map(String::len).max().unwrap_or(0);
        Some(Self { unbroken, longest })
    }

    /// The last safe cut of `text` up to `target`, in bytes, and after `least`.
    pub fn last(&self, text: &str, target: usize, least: usize) -> Option<usize> {
        let mut end = target.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut next = text[end..].chars().next();
        for (position, character) in text[..end].char_indices().rev() {
            if end <= least {
                return None;
            }
            let between = next.is_some_and(|next| ends(character) && starts(next));
            if between && !self.breaks(text, end) {
                return Some(end);
            }
            (end, next) = (position, Some(character));
        }
        None
    }

    /// Whether one of the strings that must stay whole occurs around `cut`.
    fn breaks(&self, text: &str, cut: usize) -> bool {
        let start = cut.saturating_sub(self.longest);
        let end = text.len().min(cut + self.longest);
        let around = &text.as_bytes()[start..end];
        self.unbroken.iter().any(|string| {
            let string = string.as_bytes();
            around.windows(string.len()).any(|part| part == string)
        })
    }
}

/// Whether a normalized text has `token` only where the text itself has it. This is uncertain where the
/// normalizer maps other characters to ASCII.
fn is_normalized_from_itself(normalizer: Option<&NormalizerWrapper>, token: &str) -> bool {
    match normalizer {
        None => true,
        // The kelvin sign, the Greek question mark and the varia become these.
        Some(NormalizerWrapper::NFC(_)) => !token.contains(['K', ';', '`']),
        Some(_) => false,
    }
}

/// Whether a normalizer changes a text piece by piece, the pieces being starters with what composes with
/// them, or grapheme clusters. Strings that it replaces are added to `unbroken`. `maps` says whether an
/// earlier step may make such a string of other characters.
fn normalizer_is_local(
    normalizer: &NormalizerWrapper,
    unbroken: &mut Vec<String>,
    maps: &mut bool,
) -> bool {
    use NormalizerWrapper as N;
    match normalizer {
        N::BertNormalizer(_) | N::Lowercase(_) | N::StripAccents(_) | N::NFC(_) | N::NFD(_) => true,
        N::Precompiled(_) | N::NFKC(_) | N::NFKD(_) => {
            *maps = true;
            true
        }
        // Whitespace at the ends of a text; a cut is never at whitespace.
        N::StripNormalizer(_) => true,
        N::Replace(_) => match replaced(normalizer) {
            Some(Replaced::Whitespace) => true,
            Some(Replaced::Plain(string)) if !*maps => {
                unbroken.push(string);
                true
            }
            _ => false,
        },
        N::Sequence(steps) => steps
            .as_ref()
            .iter()
            .all(|step| normalizer_is_local(step, unbroken, maps)),
        _ => false,
    }
}

/// What a `Replace` step looks for.
enum Replaced {
    /// Runs of whitespace.
    Whitespace,
    /// A string of printable ASCII characters.
    Plain(String),
}

fn replaced(normalizer: &NormalizerWrapper) -> Option<Replaced> {
    let step = serde_json::to_value(normalizer).ok()?;
    let pattern = step.get("pattern")?;
    if let Some(regex) = pattern.get("Regex") {
        let whitespace = [r"\s{2,}|[\n\r\t]", r"\s{2,}", r"\s+", " {2,}"];
        return whitespace
            .contains(&regex.as_str()?)
            .then_some(Replaced::Whitespace);
    }
    let string = pattern.get("String")?.as_str()?;
    let plain = !string.is_empty() && string.bytes().all(|b| b.is_ascii_graphic());
    plain.then(|| Replaced::Plain(string.to_owned()))
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

/// Whether a cut may follow `c`: it is not whitespace, is not mapped to any, and does not join the
/// grapheme cluster or the syllable of what follows.
fn ends(c: char) -> bool {
    let joins_next = matches!(c,
        '\u{1100}'..='\u{11ff}' | '\u{a960}'..='\u{a97f}' // Hangul jamo
        | '\u{d4e}' | '\u{111c2}'..='\u{111c3}' | '\u{1193f}' | '\u{11941}' | '\u{11a3a}'
        | '\u{11a84}'..='\u{11a89}' | '\u{11d46}' | '\u{11f02}'); // prepended letters
    c.is_ascii_graphic() || (c.is_alphanumeric() && !joins_next)
}

/// Whether a cut may precede `c`: an ASCII character, or a letter of a script in which letters never
/// compose with, and never join the grapheme cluster of, what precedes them.
fn starts(c: char) -> bool {
    c.is_ascii() || is_han(c) || is_letter(c)
}

/// Ideographs that BERT's normalizer takes for words of their own, without those that are normalized to
/// another.
pub(super) fn is_han(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{20000}'..='\u{2a6df}')
}

/// Letters, without ideographs, that start and end their grapheme cluster unless a mark follows.
pub(super) fn is_letter(c: char) -> bool {
    c.is_ascii_alphabetic()
        || matches!(c,
            'À'..='Ö' | 'Ø'..='ö' | 'ø'..='\u{13e}' | '\u{141}'..='\u{24f}' // Latin
            | '\u{391}'..='\u{3a1}' | '\u{3a3}'..='\u{3ce}' // Greek
            | '\u{400}'..='\u{481}' | '\u{48a}'..='\u{52f}' // Cyrillic
            | '\u{5d0}'..='\u{5ea}' // Hebrew
            | '\u{621}'..='\u{63a}' | '\u{641}'..='\u{64a}' // Arabic
            | '\u{e01}'..='\u{e2e}' // Thai
            | '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}' // Hiragana, Katakana
            | '\u{ac00}'..='\u{d7a3}') // Hangul
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn normalizers() -> Vec<NormalizerWrapper> {
        let charsmap = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../..",
            "/tests/reference/models/tiny-xlm-roberta/tokenizer.json"
        );
        let xlm = Tokenizer::from_file(charsmap).unwrap();
        let bert = |lowercase, accents| {
            json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                   "strip_accents": accents, "lowercase": lowercase})
        };
        [
            bert(true, None),
            bert(false, Some(true)),
            json!({"type": "Lowercase"}),
            json!({"type": "StripAccents"}),
            json!({"type": "NFC"}),
            json!({"type": "NFD"}),
            json!({"type": "NFKC"}),
            json!({"type": "NFKD"}),
        ]
        .into_iter()
        .map(|json| serde_json::from_value(json).unwrap())
        .chain([xlm.get_normalizer().unwrap().clone()])
        .collect()
    }

    fn normalized(normalizer: &NormalizerWrapper, text: &str) -> String {
        let mut text = NormalizedString::from(text);
        normalizer.normalize(&mut text).unwrap();
        text.get().to_owned()
    }

    /// Every character that may follow a cut is normalized alike whatever is in front of it.
    #[test]
    fn characters_behind_a_cut_do_not_change_with_what_precedes() {
        let before = [
            "a", "Z", "7", "é", "Σ", "ς", "文", "か", "カ", "각", "가", "ก", "ا", "א", "ß", "क",
            "ﬁ", "Ａ", "¼", "İ", "ǅ", "\u{fdfa}",
        ];
        // Ideographs are alike: some of them stand for all.
        let one_of_many = |c: char| !is_han(c) || u32::from(c).is_multiple_of(61);
        let behind: Vec<char> = ('\0'..='\u{2a6df}')
            .filter(|&c| starts(c) && one_of_many(c))
            .collect();
        assert!(behind.len() > 12_000);
        for normalizer in normalizers() {
            let alone: Vec<String> = behind
                .iter()
                .map(|c| normalized(&normalizer, c.encode_utf8(&mut [0; 4])))
                .collect();
            for text in before {
                assert!(text.chars().all(ends));
                let first = normalized(&normalizer, text);
                // Each behind the text, so that they are local among each other as well.
                let whole: String = behind
                    .iter()
                    .flat_map(|c| [text.into(), c.to_string()])
                    .collect();
                let parts: String = alone.iter().flat_map(|c| [&first[..], c]).collect();
                assert!(
                    normalized(&normalizer, &whole) == parts,
                    "{text} {normalizer:?}"
                );
            }
        }
    }
}
