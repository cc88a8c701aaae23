//! Encodes pairs as prompts.
//!
//! The ids equal those of sentence-transformers: the prompt is cut to the maximum length, and then the
//! tail of the template is put back over the last tokens, so that the model still sees where to answer.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use tokenizers::TruncationDirection;

use super::pieces::{self, CompiledPiece, Part, Texts};
use super::template::{ChatTemplate, LayoutError, Message, TemplateError};
use super::{ChatConfig, Layout, PromptConfig};
use crate::encoder::text::{BYTES_PER_ID, TextTokenizer, TextTokens, keep};
use crate::encoder::{EncodeError, EncodedPair};
use crate::{Model, ModelError, TokenizerConfig};
use rerankd_core::{Instruction, Pair, TruncationOptions, TruncationSide, TruncationStrategy};

/// A pair, and the same pair with another query or document, which must render differently.
const PROBES: [[&str; 2]; 3] = [
    ["alpha", "bravo"],
    ["charlie", "bravo"],
    ["alpha", "foxtrot"],
];
/// Texts whose prompts have only the tail of the template in common.
const FILLERS: [&str; 2] = ["0", "1 2 3 4"];
/// Tokens that a document may have more in its prompt than alone.
const SEAM: usize = 2;

/// Checks that a template prints both texts.
pub(super) fn check_roles(config: &ChatConfig) -> Result<(), LayoutError> {
    let chat = Chat::new(config)?;
    let render = |[query, document]: [&str; 2]| chat.render(None, query, document);
    let base = render(PROBES[0])?;
    for (role, probe) in [("query", PROBES[1]), ("document", PROBES[2])] {
        if render(probe)? == base {
            return Err(LayoutError::RoleNotPrinted(role));
        }
    }
    Ok(())
}

/// A template for conversations.
#[derive(Debug)]
struct Chat {
    template: ChatTemplate,
    restore_suffix: bool,
}

impl Chat {
    fn new(config: &ChatConfig) -> Result<Self, TemplateError> {
        Ok(Self {
            template: ChatTemplate::new(&config.template, config.variables.clone(), config.format)?,
            restore_suffix: config.restore_suffix,
        })
    }

    fn render(
        &self,
        instruction: Option<&str>,
        query: &str,
        document: &str,
    ) -> Result<String, TemplateError> {
        let message = |role, content| Message { role, content };
        let pair = [message("query", query), message("document", document)];
        match instruction {
            None => self.template.render(&pair),
            Some(text) => self
                .template
                .render(&[message("system", text), pair[0], pair[1]]),
        }
    }
}

/// Pieces that are tokenized one by one.
#[derive(Debug)]
struct Pieces {
    pieces: Vec<CompiledPiece>,
    max_length: usize,
    query_percent: usize,
}

impl Pieces {
    /// The piece with the document.
    fn document(&self) -> &CompiledPiece {
        let mut pieces = self.pieces.iter();
        let document = pieces.find(|piece| piece.part == Part::Document);
        document.expect("one piece has the document")
    }
}

#[derive(Debug)]
enum Form {
    Chat(Box<Chat>),
    Pieces(Pieces),
}

impl Form {
    /// Bytes of a prompt beside its texts.
    fn frame(&self) -> Result<usize, TemplateError> {
        let [query, document] = PROBES[0];
        let bytes = match self {
            Self::Chat(chat) => chat.render(None, query, document)?.len(),
            Self::Pieces(pieces) => {
                let texts = Texts {
                    instruction: None,
                    query,
                    document,
                };
                let rendered = pieces.pieces.iter().map(|piece| piece.render(texts));
                rendered.map(|text| Ok(text?.len())).sum::<Result<_, _>>()?
            }
        };
        Ok(bytes.saturating_sub(query.len() + document.len()))
    }
}

/// Encodes pairs of a causal model. Shared by all threads.
#[derive(Debug)]
pub struct PromptEncoder {
    tokenizer: TextTokenizer,
    form: Form,
    prompts: BTreeMap<String, String>,
    default: Option<String>,
    max_length: usize,
    strategy: TruncationStrategy,
    /// Bytes of a prompt beside its texts and its instruction.
    frame: usize,
}

/// A query with its instruction, ready for its documents.
#[derive(Debug, Clone)]
pub struct PromptQuery(QueryForm);

#[derive(Debug, Clone)]
enum QueryForm {
    Chat(ChatQuery),
    Pieces(PiecesQuery),
}

#[derive(Debug, Clone)]
struct ChatQuery {
    text: String,
    /// Ids of the template's tail, found when the first prompt is cut.
    suffix: OnceLock<Vec<u32>>,
    /// Tokens of the prompt without a document, counted when the first prompt is cut.
    empty: OnceLock<usize>,
}

#[derive(Debug, Clone)]
struct PiecesQuery {
    before: Vec<u32>,
    after: Vec<u32>,
    /// Tokens of the query that were cut off; a lower bound.
    lost: usize,
    /// Tokens that the piece with the document may have.
    room: usize,
    /// Tokens of that piece without a document.
    empty: usize,
}

impl PromptEncoder {
    /// An encoder for `config` that cuts prompts to `max_length` tokens.
    ///
    /// # Errors
    /// [`ModelError`] if the tokenizer or a template is invalid.
    pub fn new(
        tokenizer_json: &[u8],
        tokenizer: &TokenizerConfig,
        config: &PromptConfig,
        max_length: usize,
    ) -> Result<Self, ModelError> {
        let invalid = |error: LayoutError| {
            let hint = "check the template against the one the model was published with";
            ModelError::new(&*config.origin, hint).caused_by(error)
        };
        let form = match &config.layout {
            Layout::Chat(chat) => Form::Chat(Box::new(
                Chat::new(chat).map_err(|error| invalid(error.into()))?,
            )),
            Layout::Pieces(pieces) => Form::Pieces(Pieces {
                pieces: pieces::compile(pieces).map_err(invalid)?,
                max_length: pieces.max_length,
                query_percent: pieces.query_percent,
            }),
        };
        let frame = form.frame().map_err(|error| invalid(error.into()))?;
        Ok(Self {
            tokenizer: TextTokenizer::new(tokenizer_json, tokenizer)?,
            frame,
            form,
            prompts: config.prompts.clone(),
            default: config.default.clone(),
            max_length,
            strategy: TruncationStrategy::default(),
        })
    }

    /// The encoder of `model`.
    ///
    /// # Errors
    /// [`ModelError`] if the model has no prompt, if the tokenizer or a template is invalid or does not match
    /// the model, or if the maximum length leaves no room for texts.
    pub fn for_model(model: &Model) -> Result<Self, ModelError> {
        let manifest = &model.manifest;
        let config = manifest.prompts.as_ref().ok_or_else(|| {
            ModelError::new("this model reads no prompts", "encode its texts as pairs")
        })?;
        let encoder = Self::new(
            &model.tokenizer,
            &manifest.tokenizer,
            config,
            manifest.max_length,
        )?;
        encoder
            .tokenizer
            .check_vocabulary(manifest.encoder.vocab_size)?;
        encoder.check_room()?;
        Ok(encoder)
    }

    /// Refuses a maximum length that the prompt takes up without its texts.
    pub(crate) fn check_room(&self) -> Result<(), ModelError> {
        let bound = self.bind(TruncationOptions::default(), &Instruction::Default);
        let needed = bound.and_then(|bound| bound.least_length());
        let needed = needed.map_err(|error| {
            ModelError::new(
                format!("the prompt cannot be made: {error}"),
                "check the template against the one the model was published with",
            )
        })?;
        if needed <= self.max_length {
            return Ok(());
        }
        Err(ModelError::new(
            format!(
                "the prompt has {needed} tokens with the shortest texts, and the maximum length is {}",
                self.max_length
            ),
            "raise `--max-length`, or shorten `--instruction`",
        ))
    }

    /// Sets the default truncation strategy.
    #[must_use]
    pub fn with_strategy(self, strategy: TruncationStrategy) -> Self {
        Self { strategy, ..self }
    }

    /// Sets the instruction of requests without one; empty for none.
    #[must_use]
    pub fn with_instruction(self, text: &str) -> Self {
        Self {
            default: Some(text.to_owned()).filter(|text| !text.is_empty()),
            ..self
        }
    }

    /// Maximum tokens of a pair.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    pub(crate) fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// Binds the options and the instruction of a request.
    ///
    /// # Errors
    /// [`EncodeError::UnknownPrompt`].
    pub fn bind<'a>(
        &'a self,
        options: TruncationOptions,
        instruction: &'a Instruction,
    ) -> Result<BoundPrompts<'a>, EncodeError> {
        let text = match instruction {
            Instruction::Default => self.default.as_deref(),
            Instruction::Text(text) => Some(&**text),
            Instruction::Named(name) => {
                let known = self.prompts.get(&**name);
                Some(known.ok_or_else(|| self.unknown_prompt())?.as_str())
            }
        };
        let direction = match options.side {
            Some(TruncationSide::Left) => TruncationDirection::Left,
            Some(TruncationSide::Right) => TruncationDirection::Right,
            None => self.tokenizer.direction(),
        };
        let asked = options.max_tokens.map_or(usize::MAX, |most| most.get());
        Ok(BoundPrompts {
            encoder: self,
            options,
            // As in sentence-transformers, an empty one is none.
            instruction: text.filter(|text| !text.is_empty()),
            strategy: options.strategy.unwrap_or(self.strategy),
            direction,
            max_length: self.max_length.min(asked),
        })
    }

    fn unknown_prompt(&self) -> EncodeError {
        let names: Vec<String> = self
            .prompts
            .keys()
            .map(|name| format!("`{name}`"))
            .collect();
        EncodeError::UnknownPrompt {
            known: match names.is_empty() {
                true => "there are none".to_owned(),
                false => names.join(", "),
            },
        }
    }
}

/// A [`PromptEncoder`] with the options and the instruction of a request.
#[derive(Debug, Clone, Copy)]
pub struct BoundPrompts<'a> {
    encoder: &'a PromptEncoder,
    options: TruncationOptions,
    instruction: Option<&'a str>,
    strategy: TruncationStrategy,
    /// The end at which texts are cut. A prompt is cut where the tokenizer says, as its start is not text.
    direction: TruncationDirection,
    /// Maximum tokens of a pair.
    max_length: usize,
}

impl BoundPrompts<'_> {
    /// Approximate bytes of a prompt beside its texts.
    pub fn overhead(&self) -> usize {
        self.encoder.frame + self.instruction.map_or(0, str::len)
    }

    /// Approximate bytes that are tokenized once for a query of `query` bytes.
    pub fn query_cost(&self, query: usize) -> usize {
        let limited = match self.options.max_query_tokens {
            Some(_) => query,
            None => 0,
        };
        let prompt = self.overhead() + query;
        limited
            + match self.encoder.form {
                Form::Pieces(_) => prompt,
                // A prompt that is cut needs its length without a document, and two to find its tail.
                Form::Chat(_) if prompt > self.max_length => prompt + 2 * self.overhead(),
                Form::Chat(_) => 0,
            }
    }

    /// Approximate bytes that are tokenized for each document, of `document` bytes, of a query of `query` bytes.
    pub fn pair_cost(&self, query: usize, document: usize) -> usize {
        let tokenizer = &self.encoder.tokenizer;
        let (around, direction) = match self.encoder.form {
            Form::Chat(_) => (self.overhead() + query, tokenizer.direction()),
            Form::Pieces(_) => (0, self.direction),
        };
        let limited = match self.options.max_document_tokens {
            Some(_) => document,
            None => 0,
        };
        let prompt = around + document;
        let once = limited + tokenizer.bytes_read(prompt, self.max_length, direction);
        let chunks = self.options.chunks();
        if prompt <= self.max_length || (chunks == 1 && direction == self.direction) {
            return once;
        }
        // The document is tokenized to find its parts, and each part with what is around it.
        let room = self.max_length.saturating_mul(BYTES_PER_ID);
        let room = room.saturating_sub(around).max(BYTES_PER_ID);
        let parts = document.div_ceil(room).clamp(1, chunks);
        once + document + parts * around + document.min(parts.saturating_mul(room))
    }

    /// Prepares a query for its documents.
    ///
    /// # Errors
    /// [`EncodeError`] if the tokenizer or the template fails.
    pub fn query(&self, text: &str) -> Result<PromptQuery, EncodeError> {
        let text = match self.options.max_query_tokens {
            None => Cow::Borrowed(text),
            Some(most) => self.shorten(text, most.get())?,
        };
        let form = match &self.encoder.form {
            Form::Chat(_) => QueryForm::Chat(ChatQuery {
                text: text.into_owned(),
                suffix: OnceLock::new(),
                empty: OnceLock::new(),
            }),
            Form::Pieces(pieces) => QueryForm::Pieces(self.pieces_query(pieces, &text)?),
        };
        Ok(PromptQuery(form))
    }

    /// Encodes a document with its query.
    ///
    /// # Errors
    /// [`EncodeError`] if the tokenizer or the template fails, [`EncodeError::QueryTooLong`] if the query must
    /// not be cut and leaves no room, [`EncodeError::PromptTooLong`] if what is never cut exceeds the maximum
    /// length, [`EncodeError::EmptyPrompt`] if the prompt has no tokens.
    pub fn pair(&self, query: &PromptQuery, document: &str) -> Result<EncodedPair, EncodeError> {
        let document = match self.options.max_document_tokens {
            None => Cow::Borrowed(document),
            Some(most) => self.shorten(document, most.get())?,
        };
        let pair = match (&self.encoder.form, &query.0) {
            (Form::Chat(chat), QueryForm::Chat(query)) => self.chat_pair(chat, query, &document),
            (Form::Pieces(pieces), QueryForm::Pieces(query)) => {
                self.pieces_pair(pieces, query, &document)
            }
            _ => unreachable!("a query is paired by the encoder that made it"),
        };
        pair?.readable(self.max_length)
    }

    /// Encodes pairs in order. A query shared by consecutive pairs is prepared once.
    ///
    /// # Errors
    /// [`EncodeError::Cancelled`] soon after `cancelled` is set; otherwise the same as [`Self::pair`].
    pub fn encode(
        &self,
        pairs: &[Pair],
        cancelled: &AtomicBool,
    ) -> Result<Vec<EncodedPair>, EncodeError> {
        let mut encoded = Vec::with_capacity(pairs.len());
        for run in pairs.chunk_by(|a, b| a.query == b.query) {
            let query = self.query(&run[0].query)?;
            for pair in run {
                if cancelled.load(Ordering::Relaxed) {
                    return Err(EncodeError::Cancelled);
                }
                encoded.push(self.pair(&query, &pair.document)?);
            }
        }
        Ok(encoded)
    }

    /// The exact number of tokens of a pair before truncation.
    ///
    /// # Errors
    /// Same as [`Self::pair`].
    pub fn full_length(&self, pair: &Pair) -> Result<usize, EncodeError> {
        let query = self.query(&pair.query)?;
        let document = match self.options.max_document_tokens {
            None => Cow::Borrowed(&*pair.document),
            Some(most) => self.shorten(&pair.document, most.get())?,
        };
        match (&self.encoder.form, &query.0) {
            (Form::Chat(chat), QueryForm::Chat(query)) => {
                Ok(self.ids(chat, &query.text, &document)?.len())
            }
            (Form::Pieces(pieces), QueryForm::Pieces(query)) => {
                let text = pieces.document().render(self.texts("", &document))?;
                let tokens = self.encoder.tokenizer.count(&text)?;
                Ok(query.before.len() + query.after.len() + query.lost + tokens)
            }
            _ => unreachable!("a query is paired by the encoder that made it"),
        }
    }

    /// Tokens of the prompt of the shortest texts.
    fn least_length(&self) -> Result<usize, EncodeError> {
        match &self.encoder.form {
            Form::Chat(chat) => Ok(self.ids(chat, FILLERS[0], FILLERS[0])?.len()),
            Form::Pieces(pieces) => {
                let pieces = pieces.pieces.iter();
                let tokens = pieces.map(|piece| {
                    let text = piece.render(self.texts(FILLERS[0], FILLERS[0]))?;
                    self.encoder.tokenizer.count(&text)
                });
                tokens.sum()
            }
        }
    }

    fn chat_pair(
        &self,
        chat: &Chat,
        query: &ChatQuery,
        document: &str,
    ) -> Result<EncodedPair, EncodeError> {
        let (ids, length) = self.cut_prompt(chat, query, document)?;
        if length <= self.max_length {
            return Ok(EncodedPair::of_prompts(vec![ids], length, length));
        }
        let empty = self.empty_length(chat, query)?;
        if self.strategy == TruncationStrategy::DocumentOnly && empty >= self.max_length {
            let tokens = self.encoder.tokenizer.count(&query.text)?;
            let over = empty + 1 - self.max_length;
            return Err(EncodeError::QueryTooLong {
                tokens,
                limit: tokens.saturating_sub(over),
            });
        }
        let room = self.max_length.saturating_sub(empty + SEAM);
        if self.options.chunks() == 1 || room == 0 {
            let ids = match self.direction == self.encoder.tokenizer.direction() || room == 0 {
                true => ids,
                false => {
                    let document = self.shorten(document, room)?;
                    self.cut_prompt(chat, query, &document)?.0
                }
            };
            let read = ids.len();
            return Ok(EncodedPair::of_prompts(vec![ids], length, read));
        }
        let (parts, all) = self.parts(document, room)?;
        let chunks = parts
            .iter()
            .map(|part| Ok(self.cut_prompt(chat, query, part)?.0))
            .collect::<Result<_, EncodeError>>()?;
        let read = if all { length } else { length - 1 };
        Ok(EncodedPair::of_prompts(chunks, length, read))
    }

    /// The ids of a prompt, cut, and its length before; a lower bound above the maximum if it is cut.
    fn cut_prompt(
        &self,
        chat: &Chat,
        query: &ChatQuery,
        document: &str,
    ) -> Result<(Vec<u32>, usize), EncodeError> {
        let text = chat.render(self.instruction, &query.text, document)?;
        let tokenizer = &self.encoder.tokenizer;
        let tokens = tokenizer.tokenize(&text, self.max_length, tokenizer.direction())?;
        let length = full_length(&tokens);
        let mut ids = tokens.ids;
        if chat.restore_suffix && ids.len() >= self.max_length {
            let suffix = self.suffix(chat, query)?;
            let kept = suffix.len().min(ids.len());
            let at = ids.len() - kept;
            ids[at..].copy_from_slice(&suffix[suffix.len() - kept..]);
        }
        Ok((ids, length))
    }

    /// The last tokens that all prompts with this instruction have in common.
    fn suffix<'q>(&self, chat: &Chat, query: &'q ChatQuery) -> Result<&'q [u32], EncodeError> {
        if let Some(suffix) = query.suffix.get() {
            return Ok(suffix);
        }
        let [first, second] = FILLERS.map(|filler| self.ids(chat, filler, filler));
        let (mut first, second) = (first?, second?);
        let count = common(first.iter().rev().zip(second.iter().rev()));
        let suffix = match count < first.len().min(second.len()) {
            true => first.split_off(first.len() - count),
            // One prompt is the end of the other, so the two do not show where the tail begins.
            false => Vec::new(),
        };
        Ok(query.suffix.get_or_init(|| suffix))
    }

    fn empty_length(&self, chat: &Chat, query: &ChatQuery) -> Result<usize, EncodeError> {
        if let Some(length) = query.empty.get() {
            return Ok(*length);
        }
        let length = self.ids(chat, &query.text, "")?.len();
        Ok(*query.empty.get_or_init(|| length))
    }

    /// All ids of a prompt.
    fn ids(&self, chat: &Chat, query: &str, document: &str) -> Result<Vec<u32>, EncodeError> {
        let text = chat.render(self.instruction, query, document)?;
        self.encoder.tokenizer.all(&text)
    }

    fn pieces_query(&self, pieces: &Pieces, query: &str) -> Result<PiecesQuery, EncodeError> {
        let rendered = pieces
            .pieces
            .iter()
            .map(|piece| {
                let text = piece.render(self.texts(query, ""))?;
                let tokens = self.encoder.tokenizer.all(&text)?;
                Ok((piece, tokens))
            })
            .collect::<Result<Vec<_>, EncodeError>>()?;
        let uncounted = rendered.iter().filter(|(piece, _)| !piece.counted);
        let uncounted: usize = uncounted.map(|(_, ids)| ids.len()).sum();
        let window = pieces
            .max_length
            .min(self.max_length.saturating_sub(uncounted));
        let most = window.saturating_mul(pieces.query_percent) / 100;
        let mut form = PiecesQuery {
            before: Vec::new(),
            after: Vec::new(),
            lost: 0,
            room: window,
            empty: 0,
        };
        let mut seen_document = false;
        for (piece, mut ids) in rendered {
            match piece.part {
                Part::Document => {
                    seen_document = true;
                    form.empty = ids.len();
                    continue;
                }
                Part::Query if ids.len() > most => {
                    form.lost += ids.len() - most;
                    ids = keep(&ids, most, self.direction).to_vec();
                }
                _ => {}
            }
            if piece.counted {
                form.room = form.room.saturating_sub(ids.len());
            }
            match seen_document {
                true => form.after.extend(ids),
                false => form.before.extend(ids),
            }
        }
        if self.strategy == TruncationStrategy::DocumentOnly && form.lost > 0 {
            return Err(EncodeError::QueryTooLong {
                tokens: most + form.lost,
                limit: most,
            });
        }
        Ok(form)
    }

    fn pieces_pair(
        &self,
        pieces: &Pieces,
        query: &PiecesQuery,
        document: &str,
    ) -> Result<EncodedPair, EncodeError> {
        let piece = pieces.document();
        let encode = |document: &str| {
            let text = piece.render(self.texts("", document))?;
            self.encoder
                .tokenizer
                .tokenize(&text, query.room, self.direction)
        };
        let assemble = |tokens: &TextTokens| {
            let document = keep(
                &tokens.ids,
                tokens.ids.len().min(query.room),
                self.direction,
            );
            [&query.before, document, &query.after].concat()
        };
        let tokens = encode(document)?;
        let around = query.before.len() + query.after.len();
        let length = around + query.lost + full_length(&tokens);
        let whole = tokens.all && tokens.length <= query.room;
        let read = |all: bool| match all {
            true => length - query.lost,
            false => length - query.lost - 1,
        };
        let room = query.room.saturating_sub(query.empty + SEAM);
        if whole || self.options.chunks() == 1 || room == 0 {
            let chunks = vec![assemble(&tokens)];
            return Ok(EncodedPair::of_prompts(chunks, length, read(whole)));
        }
        let (parts, all) = self.parts(document, room)?;
        let chunks = parts
            .iter()
            .map(|part| Ok(assemble(&encode(part)?)))
            .collect::<Result<_, EncodeError>>()?;
        Ok(EncodedPair::of_prompts(chunks, length, read(all)))
    }

    fn texts<'t>(&'t self, query: &'t str, document: &'t str) -> Texts<'t> {
        Texts {
            instruction: self.instruction,
            query,
            document,
        }
    }

    /// The part of a text that has its first `most` tokens, or its last ones.
    fn shorten<'t>(&self, text: &'t str, most: usize) -> Result<Cow<'t, str>, EncodeError> {
        let spans = self.encoder.tokenizer.spans(text)?;
        if spans.len() <= most {
            return Ok(Cow::Borrowed(text));
        }
        let (start, end) = match self.direction {
            TruncationDirection::Right => (0, spans[most].0),
            TruncationDirection::Left => (spans[spans.len() - most].0, text.len()),
        };
        Ok(Cow::Borrowed(
            &text[on_boundary(text, start)..on_boundary(text, end)],
        ))
    }

    /// Consecutive parts of a document of at most `room` tokens each, as many as the options allow, and whether
    /// they are all of it.
    fn parts<'t>(
        &self,
        document: &'t str,
        room: usize,
    ) -> Result<(Vec<&'t str>, bool), EncodeError> {
        let spans = self.encoder.tokenizer.spans(document)?;
        let starts = spans.iter().step_by(room).map(|span| span.0).skip(1);
        let mut bounds: Vec<usize> = starts.map(|at| on_boundary(document, at)).collect();
        bounds.push(document.len());
        let mut start = 0;
        let mut parts = Vec::new();
        for end in bounds {
            // A character of several tokens is in one part.
            if end == start {
                continue;
            }
            if parts.len() == self.options.chunks() {
                return Ok((parts, false));
            }
            parts.push(&document[start..end]);
            start = end;
        }
        Ok((parts, true))
    }
}

/// The start of the character at `at`: a token can begin inside one.
fn on_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn full_length(tokens: &TextTokens) -> usize {
    tokens.length + usize::from(!tokens.all)
}

/// How many pairs are equal at the start.
fn common<'a>(pairs: impl Iterator<Item = (&'a u32, &'a u32)>) -> usize {
    pairs.take_while(|(a, b)| a == b).count()
}
