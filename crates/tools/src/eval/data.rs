//! Reads evaluation data: labeled pairs, texts, relevance judgments and runs.
//!
//! Errors name the file and the line, and never quote a text.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::{Map, Value};

use super::{Cause, EvalError};

/// A labeled pair.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldPair {
    /// The first text.
    pub first: String,
    /// The second text.
    pub second: String,
    /// The score, on any scale: correlations do not depend on it.
    pub score: f64,
}

/// Relevance of documents, by query id and document id. Sorted, so that every evaluation adds up in the
/// same order.
pub type Qrels = BTreeMap<String, HashMap<String, i64>>;

/// First-stage results: document ids and scores, by query id.
pub type Run = HashMap<String, Vec<(String, f64)>>;

/// Texts with ids, in the order of their file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Texts {
    /// Id and text.
    pub items: Vec<(String, String)>,
}

/// Reads labeled pairs: JSONL, TSV or CSV, by extension.
///
/// `fields` are the names of the two texts and the score. In a CSV file without a header, they are the
/// first three columns, as in STS Benchmark.
///
/// # Errors
/// [`EvalError::File`] when a line is invalid, or the file has no pairs.
pub fn read_pairs(path: &Path, fields: &[String; 3]) -> Result<Vec<GoldPair>, EvalError> {
    let pairs = if is_json(path) {
        json_pairs(path, fields)?
    } else {
        csv_pairs(path, fields)?
    };
    if pairs.is_empty() {
        return Err(whole(path, "has no pairs"));
    }
    Ok(pairs)
}

fn is_json(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    extension.is_some_and(|e| ["jsonl", "ndjson", "json"].contains(&e))
}

fn json_pairs(path: &Path, fields: &[String; 3]) -> Result<Vec<GoldPair>, EvalError> {
    let mut pairs = Vec::new();
    each_object(path, |at, object| {
        pairs.push(GoldPair {
            first: at.text(object, &fields[0])?,
            second: at.text(object, &fields[1])?,
            score: object
                .get(&fields[2])
                .and_then(Value::as_f64)
                .ok_or_else(|| at.error(format!("`{}` is not a number", fields[2])))?,
        });
        Ok(())
    })?;
    Ok(pairs)
}

fn csv_pairs(path: &Path, fields: &[String; 3]) -> Result<Vec<GoldPair>, EvalError> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .delimiter(if path.extension().is_some_and(|e| e == "tsv") {
            b'\t'
        } else {
            b','
        })
        .flexible(true)
        .from_path(path)
        .map_err(|error| whole(path, error))?;
    let mut columns = [0, 1, 2];
    let mut pairs = Vec::new();
    for (index, record) in reader.records().enumerate() {
        let record = record.map_err(|error| whole(path, error))?;
        let line = record.position().map_or(0, csv::Position::line);
        let at = At { path, line };
        let cell = |column: usize| record.get(column).map(str::trim);
        let score = cell(columns[2]).and_then(|cell| cell.parse::<f64>().ok());
        let named = |name: &String| record.iter().position(|cell| cell.trim() == name);
        match (score, index) {
            (None, 0) => {
                for (column, name) in columns.iter_mut().zip(fields) {
                    *column = named(name).ok_or_else(|| {
                        at.error(format!(
                            "neither a score in the third column nor a header with `{name}`; hint: \
                             `--fields` names the columns"
                        ))
                    })?;
                }
            }
            (None, _) => return Err(at.error(format!("`{}` is not a number", fields[2]))),
            (Some(score), _) => {
                let text = |which: usize| {
                    record
                        .get(columns[which])
                        .map(str::to_owned)
                        .ok_or_else(|| {
                            at.error(format!("there is no column for `{}`", fields[which]))
                        })
                };
                pairs.push(GoldPair {
                    first: text(0)?,
                    second: text(1)?,
                    score,
                });
            }
        }
    }
    Ok(pairs)
}

/// Reads JSONL with an id (`id` or `_id`) and a text, joined by spaces from `fields`.
///
/// # Errors
/// [`EvalError::File`] when a line is invalid, or an id is repeated.
pub fn read_texts(path: &Path, fields: &[String]) -> Result<Texts, EvalError> {
    let mut items = Vec::new();
    let mut seen = HashSet::new();
    each_object(path, |at, object| {
        let id = ["id", "_id"]
            .iter()
            .find_map(|name| object.get(*name))
            .and_then(id)
            .ok_or_else(|| at.error("`id` is neither a string nor an integer"))?;
        if !seen.insert(id.clone()) {
            return Err(at.error(format!("the id `{id}` is repeated")));
        }
        let parts: Vec<String> = fields
            .iter()
            .map(|field| at.text(object, field))
            .collect::<Result<_, _>>()?;
        items.push((id, parts.join(" ").trim().to_owned()));
        Ok(())
    })?;
    Ok(Texts { items })
}

/// Reads relevance judgments: `query 0 document relevance`, as in TREC, or `query document relevance`,
/// with or without a header.
///
/// # Errors
/// [`EvalError::File`] when a line is invalid, or the file has no judgments.
pub fn read_qrels(path: &Path) -> Result<Qrels, EvalError> {
    let mut qrels = Qrels::new();
    each_line(path, |at, line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (query, document, relevance) = match words[..] {
            [query, _, document, relevance] | [query, document, relevance] => {
                (query, document, relevance)
            }
            _ => {
                return Err(at.error(
                    "not a judgment; hint: `query 0 document relevance`, or `query document relevance`",
                ));
            }
        };
        let Ok(relevance) = relevance.parse::<i64>() else {
            // A header.
            if at.line == 1 {
                return Ok(());
            }
            return Err(at.error("the relevance is not an integer"));
        };
        let judged = qrels.entry(query.to_owned()).or_default();
        judged.insert(document.to_owned(), relevance);
        Ok(())
    })?;
    if qrels.is_empty() {
        return Err(whole(path, "has no judgments"));
    }
    Ok(qrels)
}

/// Reads a run in TREC's format: `query Q0 document rank score tag`. Results are sorted by score, and
/// ranks are ignored, as in `trec_eval`.
///
/// # Errors
/// [`EvalError::File`] when a line is invalid, or a document is repeated for a query.
pub fn read_run(path: &Path) -> Result<Run, EvalError> {
    let mut run = Run::new();
    let mut seen = HashSet::new();
    each_line(path, |at, line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [query, _, document, _, score, ..] = words[..] else {
            return Err(at.error("not a result; hint: `query Q0 document rank score tag`"));
        };
        let score = score.parse::<f64>().ok().filter(|score| score.is_finite());
        let score = score.ok_or_else(|| at.error("the score is not a finite number"))?;
        if !seen.insert((query.to_owned(), document.to_owned())) {
            return Err(at.error(format!(
                "the document `{document}` is repeated for the query `{query}`"
            )));
        }
        let results = run.entry(query.to_owned()).or_default();
        results.push((document.to_owned(), score));
        Ok(())
    })?;
    Ok(run)
}

/// A line of a file, for error messages.
struct At<'a> {
    path: &'a Path,
    line: u64,
}

impl At<'_> {
    fn error(&self, source: impl Into<Cause>) -> EvalError {
        EvalError::File {
            place: format!("`{}`, line {}", self.path.display(), self.line),
            source: source.into(),
        }
    }

    fn text(&self, object: &Map<String, Value>, field: &str) -> Result<String, EvalError> {
        let text = object.get(field).and_then(Value::as_str);
        text.map(str::to_owned)
            .ok_or_else(|| self.error(format!("`{field}` is not a string")))
    }
}

fn whole(path: &Path, source: impl Into<Cause>) -> EvalError {
    EvalError::File {
        place: format!("`{}`", path.display()),
        source: source.into(),
    }
}

/// Calls `line` for each line that is not blank.
fn each_line(
    path: &Path,
    mut line: impl FnMut(&At, &str) -> Result<(), EvalError>,
) -> Result<(), EvalError> {
    let file = File::open(path).map_err(|error| whole(path, error))?;
    for (index, text) in BufReader::new(file).lines().enumerate() {
        let at = At {
            path,
            line: index as u64 + 1,
        };
        let text = text.map_err(|error| at.error(error))?;
        if !text.trim().is_empty() {
            line(&at, &text)?;
        }
    }
    Ok(())
}

fn each_object(
    path: &Path,
    mut object: impl FnMut(&At, &Map<String, Value>) -> Result<(), EvalError>,
) -> Result<(), EvalError> {
    each_line(path, |at, line| {
        // The message of the parser may quote what it read.
        let value: Value = serde_json::from_str(line)
            .map_err(|error| at.error(format!("not JSON at column {}", error.column())))?;
        let value = value.as_object();
        object(at, value.ok_or_else(|| at.error("not a JSON object"))?)
    })
}

fn id(value: &Value) -> Option<String> {
    match value {
        Value::String(id) => Some(id.clone()),
        Value::Number(id) if id.is_i64() || id.is_u64() => Some(id.to_string()),
        _ => None,
    }
}
