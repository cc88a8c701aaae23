//! `tei.v1`: the services of Text Embeddings Inference.
//!
//! Commands and their order are those of its HTTP API. A flag cannot be left out here, so that texts which
//! are too long are refused unless `truncate` is set.

use std::time::Duration;

use prost::Message;
use rerankd_core::{
    Pair, PredictCommand, Prediction, Ranking, RerankCommand, RerankError, ScoreOptions, TieOrder,
    TruncationSide,
};
use rerankd_wire::answer::{Context, Token};
use rerankd_wire::tei::{best_first, check_prompt, options};
use rerankd_wire::{Asked, List, Served, Work};

use crate::fields::{Fields, Value};
use crate::frame::Messages;
use crate::proto::tei as proto;

/// What requests say about scores and long texts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Options {
    truncate: bool,
    raw_scores: bool,
    left: bool,
}

impl Options {
    fn truncate(&mut self, value: Value<'_>) -> Result<(), RerankError> {
        self.truncate = value.flag("truncate")?;
        Ok(())
    }

    fn raw_scores(&mut self, value: Value<'_>) -> Result<(), RerankError> {
        self.raw_scores = value.flag("raw_scores")?;
        Ok(())
    }

    fn direction(&mut self, value: Value<'_>) -> Result<(), RerankError> {
        const NAME: &str = "truncation_direction";
        self.left = match value.number(NAME, "a direction")? {
            0 => false,
            1 => true,
            _ => {
                return Err(RerankError::invalid(format!(
                    "`{NAME}` is unknown; send 0 (right) or 1 (left)"
                )));
            }
        };
        Ok(())
    }

    fn of_scores(self) -> ScoreOptions {
        // Right is what a message says that does not say anything: then the tokenizer decides.
        let side = self.left.then_some(TruncationSide::Left);
        options(Some(self.raw_scores), Some(self.truncate), side)
    }
}

/// A reranking, from one message or from many.
#[derive(Default)]
struct Rerank<'a> {
    query: &'a str,
    texts: List<String>,
    options: Options,
    return_text: bool,
}

impl<'a> Rerank<'a> {
    /// Takes over a field that a message of one reranking and a message of a stream both have.
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), RerankError> {
        match number {
            1 => self.query = value.text("query")?,
            3 => self.options.truncate(value)?,
            4 => self.options.raw_scores(value)?,
            5 => self.return_text = value.flag("return_text")?,
            6 => self.options.direction(value)?,
            _ => {}
        }
        Ok(())
    }

    fn asked(self, served: &Served<'_>) -> Result<Asked, RerankError> {
        let limits = &served.limits;
        let texts = self.texts.texts("texts", limits)?;
        let options = self.options.of_scores();
        let command = RerankCommand::new(self.query.to_owned(), texts, None, options, limits)?
            .with_ties(TieOrder::ReverseOrder);
        let pairs = command.scoring().pairs().clone();
        let return_text = self.return_text;
        let fill = move |context: &Context<'_>, ranking: &Ranking| {
            let ranks = ranking.results.iter().map(|ranked| proto::Rank {
                index: saturating_u32(ranked.index),
                text: return_text.then(|| pairs[ranked.index].document.to_string()),
                score: ranked.score,
            });
            let response = proto::RerankResponse {
                ranks: ranks.collect(),
                metadata: Some(metadata(context, &pairs, ranking.tokens)),
            };
            response.encode_to_vec()
        };
        Ok(served.asked(Work::Rerank(command, Box::new(fill))))
    }
}

/// Reads a `RerankRequest`.
///
/// # Errors
/// When it is malformed, or beyond the limits of what is served.
pub fn rerank(message: &[u8], served: &Served<'_>) -> Result<Asked, RerankError> {
    let mut request = Rerank::default();
    for field in Fields::of(message) {
        let (number, value) = field?;
        match number {
            2 => {
                let text = value.item("texts", request.texts.len())?;
                request.texts.push_text(text, &served.limits);
            }
            number => request.field(number, value)?,
        }
    }
    request.asked(served)
}

/// Reads each `RerankStreamRequest` as one text of a reranking.
///
/// # Errors
/// As [`rerank`], and when messages differ in what all texts of a reranking share.
pub fn rerank_stream(messages: Messages<'_>, served: &Served<'_>) -> Result<Asked, RerankError> {
    let mut all: Option<Rerank<'_>> = None;
    for message in messages {
        let (_, message) = message?;
        let (mut one, mut text) = (Rerank::default(), "");
        for field in Fields::of(message) {
            let (number, value) = field?;
            match number {
                2 => text = value.text("text")?,
                number => one.field(number, value)?,
            }
        }
        let all = all.get_or_insert_with(|| Rerank {
            texts: List::default(),
            ..one
        });
        one.options.raw_scores = all.options.raw_scores;
        if (one.query, one.options) != (all.query, all.options) {
            return Err(RerankError::invalid(
                "messages of the stream differ in `query`, `truncate` or `truncation_direction`; send the \
                 same in each, or another stream for another query",
            ));
        }
        all.texts.push(text.to_owned(), &served.limits);
    }
    all.unwrap_or_default().asked(served)
}

/// Reads a `PredictRequest`, which is refused.
///
/// # Errors
/// Always: a cross-encoder scores pairs.
pub fn predict(_: &[u8], _: &Served<'_>) -> Result<Asked, RerankError> {
    Err(RerankError::unsupported(
        "`inputs` is one text, and this model scores pairs; call `PredictPair` with two texts",
    ))
}

/// Reads a `PredictPairRequest`.
///
/// # Errors
/// When it is malformed, or not of two texts.
pub fn predict_pair(message: &[u8], served: &Served<'_>) -> Result<Asked, RerankError> {
    let (mut texts, mut count, mut options) = (["", ""], 0, Options::default());
    for field in Fields::of(message) {
        let (number, value) = field?;
        match number {
            1 => {
                let text = value.item("inputs", count)?;
                if let Some(place) = texts.get_mut(count) {
                    *place = text;
                }
                count += 1;
            }
            2 => options.truncate(value)?,
            3 => options.raw_scores(value)?,
            4 => options.direction(value)?,
            _ => {}
        }
    }
    if count != 2 {
        return Err(RerankError::invalid(format!(
            "`inputs` has {count} items; send exactly two strings"
        )));
    }
    let pair = Pair {
        query: texts[0].into(),
        document: texts[1].into(),
    };
    let options = options.of_scores();
    let command = PredictCommand::named("inputs", vec![pair], options, &served.limits)?;
    let pairs = command.pairs().clone();
    let fill = move |context: &Context<'_>, prediction: &Prediction| {
        let row = best_first(&prediction.scores, context.labels).into_iter();
        let predictions = row.map(|(score, label)| proto::Prediction {
            score,
            label: label.to_owned(),
        });
        let response = proto::PredictResponse {
            predictions: predictions.collect(),
            metadata: Some(metadata(context, &pairs, prediction.tokens)),
        };
        response.encode_to_vec()
    };
    Ok(served.asked(Work::Predict(command, Box::new(fill))))
}

/// Reads an `EncodeRequest`.
///
/// # Errors
/// When it is malformed, or names a prompt.
pub fn tokenize(message: &[u8], served: &Served<'_>) -> Result<Asked, RerankError> {
    let (mut text, mut special_tokens) = ("", false);
    for field in Fields::of(message) {
        let (number, value) = field?;
        match number {
            1 => text = value.text("inputs")?,
            2 => special_tokens = value.flag("add_special_tokens")?,
            3 => check_prompt(value.text("prompt_name")?)?,
            _ => {}
        }
    }
    let fill = |_: &Context<'_>, texts: &Vec<Vec<Token>>| {
        let tokens = texts.iter().flatten().map(|token| proto::SimpleToken {
            id: token.id,
            text: token.text.clone(),
            special: token.special,
            start: token.start.map(saturating_u32),
            stop: token.stop.map(saturating_u32),
        });
        let tokens = tokens.collect();
        proto::EncodeResponse { tokens }.encode_to_vec()
    };
    Ok(served.asked(Work::Tokenize {
        texts: vec![text.to_owned()],
        special_tokens,
        fill: Box::new(fill),
    }))
}

/// Reads a `DecodeRequest`.
///
/// # Errors
/// When it is malformed.
pub fn decode(message: &[u8], served: &Served<'_>) -> Result<Asked, RerankError> {
    let (mut ids, mut too_large, mut skip_special_tokens) = (Vec::new(), false, false);
    for field in Fields::of(message) {
        let (number, value) = field?;
        match number {
            1 => value.numbers("ids", |id| match u32::try_from(id) {
                Ok(id) => ids.push(id),
                Err(_) => too_large = true,
            })?,
            2 => skip_special_tokens = value.flag("skip_special_tokens")?,
            _ => {}
        }
    }
    if too_large {
        return Err(RerankError::invalid(
            "`ids` has a number of more than 32 bits; send ids of tokens",
        ));
    }
    let fill = |_: &Context<'_>, texts: &Vec<String>| {
        let text = texts.concat();
        proto::DecodeResponse { text }.encode_to_vec()
    };
    Ok(served.asked(Work::Decode {
        ids: vec![ids],
        skip_special_tokens,
        fill: Box::new(fill),
    }))
}

/// What a request cost.
fn metadata(context: &Context<'_>, pairs: &[Pair], tokens: usize) -> proto::Metadata {
    let chars = |pair: &Pair| pair.query.chars().count() + pair.document.chars().count();
    let times = context.times;
    proto::Metadata {
        compute_chars: saturating_u32(pairs.iter().map(chars).sum()),
        compute_tokens: saturating_u32(tokens),
        total_time_ns: nanoseconds(times.total),
        tokenization_time_ns: nanoseconds(times.tokenize),
        queue_time_ns: nanoseconds(times.queue),
        inference_time_ns: nanoseconds(times.inference),
    }
}

/// A count in a message; the largest one stands for more.
pub fn saturating_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::framed;
    use crate::method::{Call, METHODS};
    use proptest::prelude::*;
    use rerankd_core::{ErrorCode, Limits, Scale, TruncationPolicy};
    use rerankd_wire::ServedModel;

    const LIMITS: Limits = Limits { max_documents: 4 };

    /// What `look` finds in what a server of one model reads.
    fn with_served<T>(look: impl FnOnce(&Served<'_>) -> T) -> T {
        let model = ServedModel {
            name: "model".into(),
            aliases: Vec::new(),
            labels: vec!["score".into()],
        };
        look(&Served {
            models: &[model],
            failed: &[],
            chosen: 0,
            strict_model_name: false,
            return_documents: false,
            limits: LIMITS,
        })
    }

    proptest! {
        #[test]
        fn what_the_definition_writes_is_read(
            query in ".{0,20}",
            texts in prop::collection::vec(".{0,20}", 0..7),
            (truncate, raw_scores, left) in any::<(bool, bool, bool)>(),
        ) {
            let request = proto::RerankRequest {
                query: query.clone(),
                texts: texts.clone(),
                truncate,
                raw_scores,
                return_text: false,
                truncation_direction: left.into(),
            };
            let frame = framed(&request.encode_to_vec());
            let read = with_served(|served| rerank(Messages::of(&frame).only()?, served));
            let Ok(Asked { work: Work::Rerank(command, _), .. }) = read else {
                let error = read.err().unwrap();
                let expected = match texts.len() {
                    0 => ErrorCode::Empty,
                    _ => ErrorCode::InvalidRequest,
                };
                prop_assert_eq!(error.code(), expected);
                prop_assert!(!(1..=4).contains(&texts.len()));
                return Ok(());
            };
            let scoring = command.scoring();
            let read: Vec<&str> = scoring.pairs().iter().map(|pair| &*pair.document).collect();
            prop_assert_eq!(read, texts);
            prop_assert!(scoring.pairs().iter().all(|pair| *pair.query == *query));
            let options = scoring.options();
            prop_assert_eq!(options.scale == Scale::Raw, raw_scores);
            prop_assert_eq!(options.truncate == TruncationPolicy::Truncate, truncate);
            prop_assert_eq!(options.truncation.side == Some(TruncationSide::Left), left);
        }

        #[test]
        fn whatever_is_sent_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let frame = framed(&bytes);
            with_served(|served| {
                for method in METHODS {
                    let read = match method.call {
                        Call::Scores(read) | Call::Tokenizes(read) => {
                            let message = Messages::of(&frame).only();
                            message.and_then(|message| read(message, served))
                        }
                        Call::ScoresAll(read) => read(Messages::of(&frame), served),
                        Call::ScoresEach(read) | Call::TokenizesEach(read) => read(&bytes, served),
                        _ => continue,
                    };
                    let is_internal = read.is_err_and(|e| e.code() == ErrorCode::Internal);
                    assert!(!is_internal, "{}", method.path);
                }
            });
        }
    }
}
