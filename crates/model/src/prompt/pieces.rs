//! A prompt of pieces that are tokenized one by one, so that no token spans two of them.

use minijinja::context;
use serde::Deserialize;

use super::PiecesConfig;
use super::template::{ChatTemplate, LayoutError, TemplateError};

/// A piece of a prompt.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// A template with the variables `query`, `document` and `instruction`, and the special tokens.
    pub text: String,
    /// Whether its tokens count toward the maximum length.
    #[serde(default)]
    pub counted: bool,
}

/// The texts of a pair.
#[derive(Debug, Clone, Copy)]
pub(super) struct Texts<'a> {
    pub instruction: Option<&'a str>,
    pub query: &'a str,
    pub document: &'a str,
}

/// What a piece depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Fixed,
    Query,
    Document,
}

/// A compiled piece.
#[derive(Debug)]
pub(super) struct CompiledPiece {
    template: ChatTemplate,
    pub part: Part,
    pub counted: bool,
}

impl CompiledPiece {
    pub fn render(&self, texts: Texts) -> Result<String, TemplateError> {
        let Texts {
            instruction,
            query,
            document,
        } = texts;
        self.template
            .render_with(context! { instruction, query, document })
    }
}

/// Compiles the pieces.
pub(super) fn compile(config: &PiecesConfig) -> Result<Vec<CompiledPiece>, LayoutError> {
    let compile = |piece: &Piece| {
        let mut piece = CompiledPiece {
            template: ChatTemplate::of_piece(&piece.text, config.variables.clone())?,
            part: Part::Fixed,
            counted: piece.counted,
        };
        let render = |query, document| {
            piece.render(Texts {
                instruction: None,
                query,
                document,
            })
        };
        let base = render("alpha", "bravo")?;
        let (query, document) = (render("charlie", "bravo")?, render("alpha", "foxtrot")?);
        piece.part = match (query != base, document != base) {
            (false, false) => Part::Fixed,
            (true, false) => Part::Query,
            (false, true) => Part::Document,
            (true, true) => return Err(LayoutError::BothTexts),
        };
        Ok(piece)
    };
    let pieces: Vec<CompiledPiece> = config
        .pieces
        .iter()
        .map(compile)
        .collect::<Result<_, _>>()?;
    let count = |part| pieces.iter().filter(|piece| piece.part == part).count();
    match (count(Part::Query), count(Part::Document)) {
        (0, _) => Err(LayoutError::NoQuery),
        (_, 1) => Ok(pieces),
        _ => Err(LayoutError::NotOneDocument),
    }
}
