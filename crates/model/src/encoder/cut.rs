//! Finds positions at which a text can be cut so that the tokens of its prefix are the first tokens of the
//! whole text.
//!
//! `tokenizers` normalizes and pre-tokenizes a whole text before it produces the first token. For the
//! tokenizers that [`Cuts::of`] accepts, a cut between the characters `a` and `b` is safe because
//!
//! - no added token and no string that the normalizer replaces spans the cut, as none occurs around it,
//!   and `a` is not whitespace, so that neither a token that strips whitespace nor a run of whitespace
//!   spans it;
//! - `b` is a starter that never composes with what precedes it, in no Unicode normalization form, and
//!   starts a grapheme cluster after `a`, so that the normalized prefix is a prefix of the normalized
//!   text;
//! - the pre-tokenizers work from left to right with at most two characters of lookahead (the contraction
//!   `'re` of byte-level BPE), so that all words of the prefix but the last one, or the last two if the
//!   last is that short, are words of the whole text, and the last one is the start of a word.

use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

/// Finds safe cuts for a tokenizer.
#[derive(Debug)]
pub(super) struct Cuts {
    /// Strings that must not span a cut.
    unbroken: Vec<String>,
    /// Maximum length of one, in bytes, also if it is spelled with lookalikes.
    longest: usize,
}

impl Cuts {
    /// `None` if the tokenizer has a step that may depend on the whole text.
    pub fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let mut unbroken = Vec::new();
        for token in tokenizer
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .values()
        {
            let content = &token.content;
            if token.normalized
                && let Some(normalizer) = tokenizer.get_normalizer()
            {
                let lookalikes = lookalikes(normalizer, content)?;
                unbroken.extend(lookalikes.into_iter().map(str::to_owned));
            }
            // A cut never follows whitespace.
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
        // A lookalike takes up to three bytes.
        let longest = 3 * unbroken.iter().map(String::len).max().unwrap_or(0);
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

    /// Whether an unbroken string occurs around `cut`.
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

/// Characters that the normalizer maps to ASCII, so that a normalized text may contain `token` where the text itself
/// does not. `None` if they are unknown.
fn lookalikes(normalizer: &NormalizerWrapper, token: &str) -> Option<Vec<&'static str>> {
    match normalizer {
        // The kelvin sign, the Greek question mark and the varia become `K`, `;` and a grave accent.
        NormalizerWrapper::NFC(_) => Some(vec!["\u{212a}", "\u{37e}", "\u{1fef}"]),
        NormalizerWrapper::Sequence(steps) => {
            let steps = steps.as_ref().iter();
            let all: Option<Vec<_>> = steps.map(|step| lookalikes(step, token)).collect();
            Some(all?.concat())
        }
        NormalizerWrapper::StripNormalizer(_) => Some(Vec::new()),
        NormalizerWrapper::Replace(_) => {
            let becomes_space = matches!(replaced(normalizer), Some(Replaced::Whitespace));
            let is_apart = becomes_space && !token.contains(char::is_whitespace);
            is_apart.then(Vec::new)
        }
        _ => None,
    }
}

/// Whether a normalizer works on each starter with its combining characters, or on each grapheme cluster,
/// separately. Adds strings that it replaces to `unbroken`. `maps` is whether an earlier step may produce
/// such a string from other characters.
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

/// The pattern of a `Replace` step.
enum Replaced {
    /// Runs of whitespace, which become a space.
    Whitespace,
    /// A string of printable ASCII characters.
    Plain(String),
}

fn replaced(normalizer: &NormalizerWrapper) -> Option<Replaced> {
    let step = serde_json::to_value(normalizer).ok()?;
    let pattern = step.get("pattern")?;
    if let Some(regex) = pattern.get("Regex") {
        let whitespace = [r"\s{2,}|[\n\r\t]", r"\s{2,}", r"\s+", " {2,}"];
        let is_space = whitespace.contains(&regex.as_str()?) && step.get("content")? == " ";
        return is_space.then_some(Replaced::Whitespace);
    }
    let string = pattern.get("String")?.as_str()?;
    let plain = !string.is_empty() && string.bytes().all(|b| b.is_ascii_graphic());
    plain.then(|| Replaced::Plain(string.to_owned()))
}

/// Whether printable ASCII and single spaces are kept, except for case. A precompiled map, which is part of
/// the model, may change them.
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
        P::Split(_) => splits_words(pre_tokenizer).unwrap_or(false),
        P::Sequence(steps) => steps.as_ref().iter().all(pre_tokenizer_is_local),
        _ => false,
    }
}

/// Whether a `Split` step has the pattern of Qwen, Llama 3 or a relative. It matches from left to right, looks
/// one character ahead at most, and prefers the longer match except for the contractions, which are short.
fn splits_words(pre_tokenizer: &PreTokenizerWrapper) -> Option<bool> {
    const BEFORE_DIGITS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}";
    const AFTER_DIGITS: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let step = serde_json::to_value(pre_tokenizer).ok()?;
    let pattern = step.get("pattern")?.get("Regex")?.as_str()?;
    let digits = pattern
        .strip_prefix(BEFORE_DIGITS)?
        .strip_suffix(AFTER_DIGITS)?;
    let isolated = step.get("behavior")? == "Isolated" && step.get("invert")? == false;
    Some(isolated && ["", "{1,3}"].contains(&digits))
}

/// Whether a cut may follow `c`: it is not whitespace, is not mapped to whitespace, and does not join the next
/// grapheme cluster or syllable.
fn ends(c: char) -> bool {
    let joins_next = matches!(c,
        '\u{1100}'..='\u{11ff}' | '\u{a960}'..='\u{a97f}' // Hangul jamo
        | '\u{d4e}' | '\u{111c2}'..='\u{111c3}' | '\u{1193f}' | '\u{11941}' | '\u{11a3a}'
        | '\u{11a84}'..='\u{11a89}' | '\u{11d46}' | '\u{11f02}'); // prepended letters
    c.is_ascii_graphic() || (c.is_alphanumeric() && !joins_next)
}

/// Whether a cut may precede `c`: ASCII, or a letter of a script whose letters never compose with or join
/// the preceding grapheme cluster.
fn starts(c: char) -> bool {
    c.is_ascii() || is_han(c) || is_letter(c)
}

/// Ideographs that BERT's normalizer splits into separate words, except those normalized to another.
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

    /// Characters that may follow a cut are normalized independently of what precedes them.
    #[test]
    fn characters_after_a_cut_are_normalized_independently() {
        let before = [
            "a", "Z", "7", "é", "Σ", "ς", "文", "か", "カ", "각", "가", "ก", "ا", "א", "ß", "क",
            "ﬁ", "Ａ", "¼", "İ", "ǅ", "\u{fdfa}",
        ];
        // A sample of the ideographs, which behave alike.
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
                // Each after the text, so that they are independent of each other as well.
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
