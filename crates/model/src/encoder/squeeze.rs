//! Shortens words beyond the limit of WordPiece.
//!
//! A word longer than `max_input_chars_per_word` is one unknown token, regardless of its letters, so that
//! letters in its middle can be dropped without changing any token.

use tokenizers::{ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

use super::cut::is_letter;

/// Shortens long runs of letters for a tokenizer.
#[derive(Debug)]
pub(super) struct Squeezer {
    /// Letters to keep at each end of a run.
    keep: usize,
}

impl Squeezer {
    /// `None` if long words are not unknown tokens, or words may end within a run of letters.
    pub fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let ModelWrapper::WordPiece(model) = tokenizer.get_model() else {
            return None;
        };
        let local = tokenizer.get_normalizer().is_none_or(keeps_letters);
        let words = matches!(
            tokenizer.get_pre_tokenizer(),
            Some(
                PreTokenizerWrapper::BertPreTokenizer(_) | PreTokenizerWrapper::WhitespaceSplit(_)
            )
        );
        if !local || !words {
            return None;
        }
        // The rest contains an added token if and only if the whole run does.
        let tokens = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let chars = |token: &str| token.chars().count();
        let mut longest = 0;
        for token in tokens.values() {
            if token.content.chars().all(is_inside) {
                return None;
            }
            longest = longest.max(chars(&token.content));
        }
        Some(Self {
            keep: model.max_input_chars_per_word.max(longest) + 1,
        })
    }

    /// Appends `text` from `position` on to `short`, with runs of letters shortened, until `short` has
    /// `target` bytes. Returns the position reached, which is not within a run.
    pub fn extend(
        &self,
        text: &str,
        mut position: usize,
        short: &mut String,
        target: usize,
    ) -> usize {
        while position < text.len() && short.len() < target {
            let run = run(&text[position..]);
            if run == 0 {
                let c = text[position..]
                    .chars()
                    .next()
                    .expect("a character is left");
                short.push(c);
                position += c.len_utf8();
                continue;
            }
            let letters = &text[position..position + run];
            position += run;
            match self.ends(letters) {
                Some((head, tail)) => {
                    short.push_str(&letters[..head]);
                    short.push_str(&letters[tail..]);
                }
                None => short.push_str(letters),
            }
        }
        position
    }

    /// The end of the kept start, and the start of the kept end, of a long run.
    fn ends(&self, letters: &str) -> Option<(usize, usize)> {
        // Most runs are short.
        if letters.len() <= 2 * self.keep {
            return None;
        }
        let bases = || letters.char_indices().filter(|(_, c)| is_inside(*c));
        let (head, _) = bases().nth(self.keep)?;
        let (tail, _) = bases().nth_back(self.keep - 1)?;
        (head < tail).then_some((head, tail))
    }
}

/// Bytes of the run of letters, with their combining marks, at the start of `text`.
fn run(text: &str) -> usize {
    let ascii = text.bytes().position(|b| !b.is_ascii_alphanumeric());
    let Some(ascii) = ascii else {
        return text.len();
    };
    if text.as_bytes()[ascii].is_ascii() {
        return ascii;
    }
    let in_run = |c: char| is_inside(c) || is_mark(c);
    let rest = text[ascii..].find(|c| !in_run(c));
    let run = rest.map_or(text.len(), |rest| ascii + rest);
    // A run starts with a letter, as a mark belongs to the preceding character.
    if text.chars().next().is_some_and(is_inside) {
        run
    } else {
        0
    }
}

/// Characters that no supported normalizer removes or splits, and no supported pre-tokenizer separates.
fn is_inside(c: char) -> bool {
    c.is_ascii_digit() || is_letter(c) || matches!(c, '\u{1f300}'..='\u{1f64f}')
}

fn is_mark(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}')
}

fn keeps_letters(normalizer: &NormalizerWrapper) -> bool {
    use NormalizerWrapper as N;
    match normalizer {
        N::BertNormalizer(_) | N::Lowercase(_) | N::StripAccents(_) => true,
        N::NFC(_) | N::NFD(_) | N::NFKC(_) | N::NFKD(_) => true,
        N::Sequence(steps) => steps.as_ref().iter().all(keeps_letters),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
    use tokenizers::{
        NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString,
        PreTokenizer,
    };

    /// Each character that may be dropped yields at least one character of its word.
    #[test]
    fn letters_are_kept_by_every_normalizer_and_separate_no_words() {
        let inside: Vec<char> = ('\0'..='\u{1ffff}').filter(|&c| is_inside(c)).collect();
        assert!(inside.len() > 12_000);
        let bert = |lowercase| {
            json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                   "strip_accents": true, "lowercase": lowercase})
        };
        let kinds = [
            bert(true),
            bert(false),
            json!({"type": "NFKC"}),
            json!({"type": "NFKD"}),
        ];
        for kind in kinds {
            let normalizer: NormalizerWrapper = serde_json::from_value(kind).unwrap();
            for &c in &inside {
                let mut text = NormalizedString::from(format!("{c}\u{301}{c}"));
                normalizer.normalize(&mut text).unwrap();
                let mut words = PreTokenizedString::from(text.get());
                BertPreTokenizer.pre_tokenize(&mut words).unwrap();
                let words = words.get_splits(OffsetReferential::Normalized, OffsetType::None);
                assert_eq!(words.len(), 1, "{c:?}");
                assert!(words[0].0.chars().count() >= 2, "{c:?}");
            }
        }
    }

    #[test]
    fn only_the_middle_of_long_runs_is_left_out() {
        let squeezer = Squeezer { keep: 3 };
        let squeeze = |text: &str| {
            let mut short = String::new();
            let end = squeezer.extend(text, 0, &mut short, usize::MAX);
            assert_eq!(end, text.len());
            short
        };
        for same in [
            "",
            "abc def",
            "abcdef",
            "文文文文文文文文",
            "a,b,c,d,e,f,g,h",
            "\u{301}a",
        ] {
            assert_eq!(squeeze(same), same);
        }
        assert_eq!(squeeze("(abcdefghijk) x"), "(abcijk) x");
        assert_eq!(squeeze("日abcdefghijк本"), "日abcijк本");
        let marked = "e\u{301}".repeat(9);
        assert_eq!(squeeze(&marked), "e\u{301}".repeat(6));
    }

    #[test]
    fn a_run_is_read_as_far_as_is_needed() {
        let squeezer = Squeezer { keep: 3 };
        let mut short = String::new();
        let text = format!("{} and more", "a".repeat(1000));
        let end = squeezer.extend(&text, 0, &mut short, 2);
        assert_eq!((end, short.as_str()), (1000, "aaaaaa"));
    }
}
