//! Reports of evaluations, as a table and as JSON.

use std::fmt::Write;

use serde::ser::{Serialize, SerializeMap, Serializer};

/// The setup of an evaluation and its results.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Report {
    /// `correlation` or `reranking`.
    pub task: &'static str,
    /// Name of the model.
    pub model: String,
    /// Number of parameters of the model.
    pub parameters: usize,
    /// Number of compute threads.
    pub threads: usize,
    /// Version of this program.
    pub version: &'static str,
    /// Files and settings: name and value.
    pub data: Vec<(String, String)>,
    /// Number of pairs scored for each precision.
    pub pairs: usize,
    /// Figures of each precision, and of the first stage.
    pub rows: Vec<Row>,
    /// Agreement between precisions.
    pub agreement: Vec<Agreement>,
    /// Fusions with the first stage whose weight was fitted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fits: Vec<Fit>,
}

/// A weight of the first stage that was fitted on one half of the queries, and what it gives on the other.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Fit {
    /// `fp32`, for example.
    pub name: String,
    /// The method.
    pub method: &'static str,
    /// The weight.
    pub weight: f64,
    /// Number of queries it was fitted on.
    pub fitted_on: usize,
    /// Number of queries of the figures.
    pub held_out: usize,
    /// Figures of the first stage, of the model, and of both.
    pub rows: Vec<Row>,
}

/// Figures of one precision, or of the first stage.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Row {
    /// `fp32` or `first stage`, for example.
    pub name: String,
    /// The figures, in the order of their columns.
    pub figures: Figures,
    /// Duration of scoring; `None` for the first stage.
    pub seconds: Option<f64>,
    /// Scored pairs per second; `None` for the first stage.
    pub pairs_per_second: Option<f64>,
}

/// Named figures; `None` if one is undefined.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Figures(pub Vec<(String, Option<f64>)>);

impl Serialize for Figures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, figure) in &self.0 {
            map.serialize_entry(name, figure)?;
        }
        map.end()
    }
}

/// Agreement of two precisions.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Agreement {
    /// Name of the first row.
    pub a: String,
    /// Name of the second row.
    pub b: String,
    /// Spearman's rank correlation of their scores.
    pub spearman: Option<f64>,
    /// Largest difference between two scores of the same pair.
    pub largest_difference: f64,
}

impl Report {
    /// The report as text with a table.
    pub fn table(&self) -> String {
        let mut text = format!("{} of `{}`\n", self.task, self.model);
        for (name, value) in &self.data {
            let _ = writeln!(text, "  {name}: {value}");
        }
        let _ = writeln!(text, "  pairs: {}\n", self.pairs);
        let mut cells = vec![self.header()];
        cells.extend(self.rows.iter().map(Row::cells));
        text.push_str(&aligned(&cells));
        for agreement in &self.agreement {
            let _ = writeln!(
                text,
                "\n{} and {}: rank correlation {}, scores at most {:.4} apart",
                agreement.a,
                agreement.b,
                number(agreement.spearman),
                agreement.largest_difference,
            );
        }
        for fit in &self.fits {
            let _ = writeln!(
                text,
                "\n{}: the weight {} of `{}`, fitted on {} queries; the other {}:",
                fit.name, fit.weight, fit.method, fit.fitted_on, fit.held_out,
            );
            let mut cells = vec![self.header()];
            cells.extend(fit.rows.iter().map(Row::cells));
            text.push_str(&aligned(&cells));
        }
        text
    }

    fn header(&self) -> Vec<String> {
        let figures = self.rows.first().map(|row| &row.figures.0);
        let names = figures.into_iter().flatten().map(|(name, _)| name.clone());
        std::iter::once(String::new())
            .chain(names)
            .chain(["seconds".to_owned(), "pairs/s".to_owned()])
            .collect()
    }
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let optional = |value: Option<f64>, digits: usize| match value {
            Some(value) => format!("{value:.digits$}"),
            None => String::new(),
        };
        std::iter::once(self.name.clone())
            .chain(self.figures.0.iter().map(|(_, figure)| number(*figure)))
            .chain([
                optional(self.seconds, 1),
                optional(self.pairs_per_second, 0),
            ])
            .collect()
    }
}

fn number(figure: Option<f64>) -> String {
    figure.map_or_else(|| "undefined".to_owned(), |figure| format!("{figure:.4}"))
}

/// Aligns columns, the first left and the others right.
fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            let _ = match column {
                0 => write!(line, "{cell:<width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
