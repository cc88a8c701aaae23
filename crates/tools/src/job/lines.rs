//! JSON lines.

use std::io::{BufRead, BufReader, Read};

use serde_json::{Map, Value};

use super::appended::AppendFile;
use super::{
    CHUNK_BYTES, CHUNK_ROWS, Chunk, Fields, JobError, MAX_ROW_BYTES, Pairing, Rows, Sink, Source,
    number,
};
use rerankd_core::Pair;
use rerankd_engine::bulk::{Outcome, RowError};

/// A line, and whether it is valid as a line.
type Line = (String, Result<(), RowError>);

/// Reads rows, and skips blank lines.
pub struct Reader {
    input: BufReader<Box<dyn Read>>,
    fields: Fields,
    rows: u64,
    bytes: u64,
    pairing: Pairing,
}

impl Reader {
    /// Reads from `input`.
    pub fn new(input: Box<dyn Read>, fields: &Fields) -> Self {
        Self {
            input: BufReader::with_capacity(1 << 16, input),
            fields: fields.clone(),
            rows: 0,
            bytes: 0,
            pairing: Pairing::default(),
        }
    }

    /// The next line that is not blank; `None` at the end. A line that is too long is skipped, and only
    /// its beginning is returned.
    fn next(&mut self) -> Result<Option<Line>, JobError> {
        loop {
            let mut line = Vec::new();
            let most = MAX_ROW_BYTES as u64 + 1;
            let read = (&mut self.input).take(most).read_until(b'\n', &mut line);
            let read = read.map_err(unreadable)?;
            if read == 0 {
                return Ok(None);
            }
            self.bytes += read as u64;
            let mut state = Ok(());
            if line.len() > MAX_ROW_BYTES {
                self.skip_line()?;
                line.truncate(200);
                state = Err(RowError(format!("longer than {MAX_ROW_BYTES} bytes")));
            }
            let line = match String::from_utf8(line) {
                Ok(line) => line,
                Err(error) => {
                    state = state.and(Err(RowError("not UTF-8".into())));
                    String::from_utf8_lossy(error.as_bytes()).into_owned()
                }
            };
            // Some editors write a byte order mark before the first line.
            let line = line.trim_start_matches('\u{feff}').trim();
            if !line.is_empty() {
                self.rows += 1;
                return Ok(Some((line.to_owned(), state)));
            }
        }
    }

    fn skip_line(&mut self) -> Result<(), JobError> {
        loop {
            let buffer = self.input.fill_buf().map_err(unreadable)?;
            let end = buffer.iter().position(|&byte| byte == b'\n');
            let skipped = end.map_or(buffer.len(), |end| end + 1);
            self.input.consume(skipped);
            self.bytes += skipped as u64;
            if end.is_some() || skipped == 0 {
                return Ok(());
            }
        }
    }

    fn pair(&mut self, line: &str) -> Result<Pair, RowError> {
        let object: Map<String, Value> = serde_json::from_str(line).map_err(|error| {
            RowError(match error.classify() {
                serde_json::error::Category::Data => "not a JSON object".to_owned(),
                _ => format!("not JSON: error at column {}", error.column()),
            })
        })?;
        if object.contains_key(&self.fields.score) {
            let name = &self.fields.score;
            return Err(RowError(format!("already has a key `{name}`")));
        }
        let text = |name: &str| match object.get(name) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(RowError(format!("`{name}` is not a string"))),
            None => Err(RowError(format!("`{name}` is missing"))),
        };
        let (query, document) = (text(&self.fields.query)?, text(&self.fields.document)?);
        Ok(self.pairing.pair(&query, &document))
    }
}

impl Source for Reader {
    fn read(&mut self) -> Result<Option<Chunk>, JobError> {
        let first = self.rows + 1;
        let (mut pairs, mut rows, mut bytes) = (Vec::new(), Vec::new(), 0);
        while rows.len() < CHUNK_ROWS && bytes < CHUNK_BYTES {
            let Some((line, state)) = self.next()? else {
                break;
            };
            bytes += line.len();
            pairs.push(state.and_then(|()| self.pair(&line)));
            rows.push(line);
        }
        Ok((!rows.is_empty()).then_some(Chunk {
            first,
            input_bytes: self.bytes,
            pairs,
            rows: Rows::Lines(rows),
        }))
    }

    fn skip(&mut self, rows: u64) -> Result<(), JobError> {
        for _ in 0..rows {
            if self.next()?.is_none() {
                return Err(super::too_short(rows));
            }
        }
        Ok(())
    }
}

/// Writes rows unchanged, with the score as the last key.
pub struct Writer {
    output: AppendFile,
    key: String,
}

impl Writer {
    /// Writes to `output`, with the key `score`.
    pub fn new(output: AppendFile, score: String) -> Self {
        Self {
            output,
            key: Value::from(score).to_string(),
        }
    }
}

impl Sink for Writer {
    fn write(&mut self, rows: &Rows, outcomes: &[Outcome]) -> Result<(), JobError> {
        let Rows::Lines(rows) = rows else {
            unreachable!("input and output have the same format");
        };
        let mut text = String::new();
        for (row, outcome) in rows.iter().zip(outcomes) {
            let Ok(scores) = outcome else { continue };
            let scores: Vec<String> = scores.iter().map(|&score| number(score)).collect();
            let scores = match &scores[..] {
                [score] => score.clone(),
                scores => format!("[{}]", scores.join(",")),
            };
            // A scored row is an object that is not empty.
            text.push_str(&row[..row.len() - 1]);
            text.push_str(&format!(",{}:{scores}}}\n", self.key));
        }
        self.output.write(text.as_bytes())
    }

    fn commit(&mut self) -> Result<u64, JobError> {
        self.output.commit()
    }
}

fn unreadable(error: std::io::Error) -> JobError {
    JobError::named("the input", error)
}
