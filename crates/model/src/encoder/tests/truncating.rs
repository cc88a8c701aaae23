//! Truncation options.

use std::num::NonZeroUsize;

use proptest::prelude::*;

use super::*;
use rerankd_core::{TruncationSide as End, TruncationStrategy as Gives};

fn pair(
    encoder: &PairEncoder,
    options: TruncationOptions,
    query: &str,
    document: &str,
) -> EncodedPair {
    let fitted = encoder.truncating(options);
    fitted
        .pair(&fitted.query(query).unwrap(), document)
        .unwrap()
}

fn ids(encoder: &PairEncoder, text: &str) -> Vec<u32> {
    let right = TruncationDirection::Right;
    encoder
        .tokenizer
        .tokenize(text, usize::MAX, right)
        .unwrap()
        .ids
}

/// The tokens of query and document, distinguished by their token types.
fn sides(encoding: &Encoding) -> (&[u32], &[u32]) {
    let query = encoding.type_ids.iter().filter(|&&kind| kind == 0).count();
    let (query, document) = encoding.ids.split_at(query);
    (&query[1..query.len() - 1], &document[..document.len() - 1])
}

fn encoder(max_length: usize) -> PairEncoder {
    PairEncoder::new(&bert_classic(), max_length, None).unwrap()
}

fn some(n: usize) -> Option<NonZeroUsize> {
    NonZeroUsize::new(n)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn caps_read_the_kept_end_of_each_text(
        query in text(), document in text(), most_query in 1_usize..20, most_document in 1_usize..20,
        left: bool,
    ) {
        let encoder = encoder(60);
        let side = if left { End::Left } else { End::Right };
        let options = TruncationOptions {
            side: Some(side),
            max_query_tokens: some(most_query),
            max_document_tokens: some(most_document),
            ..TruncationOptions::default()
        };
        let pair = pair(&encoder, options, &query, &document);
        prop_assert!(!pair.truncated());
        let cut = |text: &str, most: usize| {
            let all = ids(&encoder, text);
            let most = most.min(all.len());
            if left { all[all.len() - most..].to_vec() } else { all[..most].to_vec() }
        };
        let (read_query, read_document) = sides(&pair.encoding);
        prop_assert_eq!(read_query, cut(&query, most_query));
        prop_assert_eq!(read_document, cut(&document, most_document));
    }

    #[test]
    fn chunks_together_are_the_document(
        query in text(), document in text(), max_length in 8_usize..40, chunks in 2_usize..9,
    ) {
        let encoder = encoder(max_length);
        let options = TruncationOptions { max_chunks: some(chunks), ..TruncationOptions::default() };
        let split = pair(&encoder, options, &query, &document);
        let whole = pair(&encoder, TruncationOptions::default(), &query, &document);
        prop_assert_eq!(&split.encoding, &whole.encoding, "the first chunk is what is read of one");
        prop_assert!(split.chunks() <= chunks);
        let (truncated, full) = (split.truncated(), split.full_length);
        let mut read = Vec::new();
        let mut of_query = 0;
        for part in split.encodings() {
            prop_assert!(part.len() <= max_length);
            let (query, document) = sides(&part);
            of_query = query.len();
            read.extend_from_slice(document);
        }
        let all = ids(&encoder, &document);
        prop_assert_eq!(&read[..], &all[..read.len()]);
        let lost = (all.len() - read.len()) + (ids(&encoder, &query).len() - of_query);
        prop_assert_eq!(truncated, lost > 0);
        prop_assert!(full <= all.len() + ids(&encoder, &query).len() + 3);
    }

    #[test]
    fn document_only_keeps_the_query_whole_or_refuses(
        query in text(), document in text(), max_length in 5_usize..40,
    ) {
        let encoder = encoder(max_length);
        let options = TruncationOptions { strategy: Some(Gives::DocumentOnly), ..TruncationOptions::default() };
        let fitted = encoder.truncating(options);
        let (all_query, all_document) = (ids(&encoder, &query), ids(&encoder, &document));
        let room = max_length - 3;
        let pair = fitted.pair(&fitted.query(&query).unwrap(), &document);
        if all_query.len() >= room && all_query.len() + all_document.len() > room {
            let refused = matches!(&pair, Err(EncodeError::QueryTooLong { limit, .. }) if *limit == room - 1);
            prop_assert!(refused, "{:?}", pair);
        } else {
            let pair = pair.unwrap();
            let (read_query, read_document) = sides(&pair.encoding);
            let kept = all_document.len().min(room - all_query.len());
            prop_assert_eq!(read_query, &all_query[..]);
            prop_assert_eq!(read_document, &all_document[..kept]);
            prop_assert_eq!(pair.truncated(), kept < all_document.len());
        }
    }

    #[test]
    fn a_smaller_maximum_is_that_of_a_smaller_model(
        query in text(), document in text(), most in 5_usize..40,
    ) {
        let options = TruncationOptions { max_tokens: some(most), ..TruncationOptions::default() };
        let asked = pair(&encoder(40), options, &query, &document);
        let small = pair(&encoder(most), TruncationOptions::default(), &query, &document);
        prop_assert_eq!(asked.encoding, small.encoding);
    }
}

#[test]
fn the_servers_strategy_is_the_default() {
    let encoder = encoder(8).with_strategy(Gives::DocumentOnly);
    let query = "the the the the";
    let document = "a a a a";
    let whole = pair(&encoder, TruncationOptions::default(), query, document);
    assert_eq!(sides(&whole.encoding).0.len(), 4);
    let options = TruncationOptions {
        strategy: Some(Gives::LongestFirst),
        ..TruncationOptions::default()
    };
    let shared = pair(&encoder, options, query, document);
    assert_eq!(sides(&shared.encoding).0.len(), 2);
}

#[test]
fn chunks_from_the_left_are_the_last_tokens_in_their_order() {
    let encoder = encoder(8);
    let options = TruncationOptions {
        side: Some(End::Left),
        max_chunks: some(2),
        ..TruncationOptions::default()
    };
    let document = "a the river runs a the river";
    let all = ids(&encoder, document);
    let split = pair(&encoder, options, "a", document);
    assert!(split.truncated() == (all.len() > 8));
    let read: Vec<u32> = split
        .encodings()
        .flat_map(|part| sides(&part).1.to_vec())
        .collect();
    assert_eq!(read, all[all.len() - read.len()..]);
}

#[test]
fn a_query_that_fills_more_than_half_of_each_chunk_is_refused() {
    let encoder = encoder(11);
    let options = TruncationOptions {
        strategy: Some(Gives::DocumentOnly),
        max_chunks: some(3),
        ..TruncationOptions::default()
    };
    let fitted = encoder.truncating(options);
    let query = fitted.query("the the the the the").unwrap();
    assert!(fitted.pair(&query, "a a a").is_ok(), "it fits as it is");
    assert_eq!(
        fitted.pair(&query, "a a a a"),
        Err(EncodeError::QueryTooLong {
            tokens: 5,
            limit: 4
        })
    );
}

#[test]
fn tokens_show_the_text_they_stand_for() {
    let encoder = crate::encoder::Encoder::from(encoder(8));
    let tokens = encoder.text_tokens("the running", true).unwrap();
    let shown: Vec<(&str, Option<(usize, usize)>)> = tokens
        .iter()
        .map(|token| (token.text.as_str(), token.span))
        .collect();
    let expected = [
        ("<s>", None),
        ("the", Some((0, 3))),
        ("run", Some((4, 7))),
        ("ning", Some((7, 11))),
        ("</s>", None),
    ];
    assert_eq!(shown, expected);
    let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
    assert!(encoder.decode(&ids, true).unwrap().starts_with("the run"));
    assert!(encoder.decode(&ids, false).unwrap().starts_with("<s>"));
    assert_eq!(encoder.decode(&[u32::MAX], true).unwrap(), "");
    assert_eq!(encoder.text_tokens("the", false).unwrap().len(), 1);
}
