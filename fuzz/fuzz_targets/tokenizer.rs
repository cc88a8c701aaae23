//! A `tokenizer.json`, and pairs of texts for it.
#![no_main]

use std::panic::{AssertUnwindSafe, catch_unwind};

use libfuzzer_sys::{Corpus, fuzz_target};
use rerankd_model::encoder::{Encoder, PairEncoder};

const MAX_LENGTH: usize = 32;
const TEXTS: [&str; 5] = [
    "",
    "a river",
    "The Ünïcode — 東京 \u{1f600} [SEP]\u{0}\n",
    "antidisestablishmentarianism 1234567890 !?",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d e f g h i j k l m n o p q r s",
];

// The tokenizers library panics on some files, and with others on some texts. The encoder catches the first, the
// threads that tokenize and the self-test the others. So only what they would not catch counts, and not what the
// hook of libFuzzer sees.
fuzz_target!(init: std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))), |data: &[u8]| -> Corpus {
    let Ok(encoder) = PairEncoder::new(data, MAX_LENGTH, None) else {
        return Corpus::Keep;
    };
    for query in TEXTS {
        let Some(query) = caught(|| encoder.query(query)) else {
            continue;
        };
        for document in TEXTS {
            if let Some(pair) = caught(|| encoder.pair(&query, document)) {
                assert!(pair.encoding.ids.len() <= MAX_LENGTH);
                assert_eq!(pair.encoding.ids.len(), pair.encoding.type_ids.len());
            }
        }
    }
    let encoder = Encoder::from(encoder);
    for text in TEXTS {
        if let Some(tokens) = caught(|| encoder.text_tokens(text, true)) {
            let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
            let _ = caught(|| encoder.decode(&ids, true));
        }
    }
    Corpus::Keep
});

/// The result of `work`; `None` if it fails or panics.
fn caught<T, E>(work: impl FnOnce() -> Result<T, E>) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()?.ok()
}
