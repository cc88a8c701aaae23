//! CSV and TSV, with a header.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use csv::{ByteRecord, StringRecord};

use super::appended::AppendFile;
use super::{
    CHUNK_BYTES, CHUNK_ROWS, Chunk, Fields, JobError, MAX_ROW_BYTES, Pairing, Rows, Sink, Source,
    number,
};
use rerankd_core::Pair;
use rerankd_engine::bulk::{Outcome, RowError};

/// Reads rows.
pub struct Reader {
    reader: csv::Reader<Bounded>,
    /// Bytes read since the end of the last row.
    since: Rc<Cell<usize>>,
    header: StringRecord,
    query: usize,
    document: usize,
    rows: u64,
    pairing: Pairing,
}

/// Limits the length of a row, which a missing closing quote would make endless.
struct Bounded {
    input: Box<dyn Read>,
    since: Rc<Cell<usize>>,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.since.set(self.since.get() + read);
        if self.since.get() > MAX_ROW_BYTES {
            return Err(io::Error::other(format!(
                "a row is longer than {MAX_ROW_BYTES} bytes; hint: look for a missing closing quote"
            )));
        }
        Ok(read)
    }
}

impl Reader {
    /// Reads the header.
    pub fn new(input: Box<dyn Read>, delimiter: u8, fields: &Fields) -> Result<Self, JobError> {
        let since = Rc::new(Cell::new(0));
        let bounded = Bounded {
            input,
            since: since.clone(),
        };
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .flexible(true)
            .from_reader(bounded);
        let header = reader.headers().map_err(unreadable)?.clone();
        let column = |name: &str| {
            header.iter().position(|cell| cell == name).ok_or_else(|| {
                let names: Vec<&str> = header.iter().collect();
                JobError::Setup(format!(
                    "the input has no column `{name}`, only `{}`; hint: `--query-field` and \
                     `--document-field` set the names",
                    names.join("`, `")
                ))
            })
        };
        let (query, document) = (column(&fields.query)?, column(&fields.document)?);
        since.set(0);
        Ok(Self {
            reader,
            since,
            header,
            query,
            document,
            rows: 0,
            pairing: Pairing::default(),
        })
    }

    /// Names of the columns.
    pub fn header(&self) -> &StringRecord {
        &self.header
    }

    fn next(&mut self, row: &mut ByteRecord) -> Result<bool, JobError> {
        let more = self.reader.read_byte_record(row).map_err(|error| {
            JobError::named(format!("the input, after row {}", self.rows), error)
        })?;
        self.since.set(0);
        self.rows += u64::from(more);
        Ok(more)
    }

    fn pair(&mut self, row: &ByteRecord) -> Result<Pair, RowError> {
        if row.len() != self.header.len() {
            return Err(RowError(format!(
                "{} cells, but the header has {}",
                row.len(),
                self.header.len()
            )));
        }
        let text = |index: usize| {
            std::str::from_utf8(&row[index])
                .map_err(|_| RowError(format!("`{}` is not UTF-8", &self.header[index])))
        };
        let (query, document) = (text(self.query)?, text(self.document)?);
        Ok(self.pairing.pair(query, document))
    }
}

impl Source for Reader {
    fn read(&mut self) -> Result<Option<Chunk>, JobError> {
        let first = self.rows + 1;
        let (mut pairs, mut rows, mut bytes) = (Vec::new(), Vec::new(), 0);
        while rows.len() < CHUNK_ROWS && bytes < CHUNK_BYTES {
            let mut row = ByteRecord::new();
            if !self.next(&mut row)? {
                break;
            }
            bytes += row.as_slice().len();
            pairs.push(self.pair(&row));
            rows.push(row);
        }
        Ok((!rows.is_empty()).then(|| Chunk {
            first,
            input_bytes: self.reader.position().byte(),
            pairs,
            rows: Rows::Cells(rows),
        }))
    }

    fn skip(&mut self, rows: u64) -> Result<(), JobError> {
        let mut row = ByteRecord::new();
        for _ in 0..rows {
            if !self.next(&mut row)? {
                return Err(super::too_short(rows));
            }
        }
        Ok(())
    }
}

/// Appends scores to rows.
pub struct Writer {
    output: AppendFile,
    delimiter: u8,
}

impl Writer {
    /// Writes the header if `output` is empty.
    pub fn new(
        output: AppendFile,
        delimiter: u8,
        header: &StringRecord,
        columns: &[String],
    ) -> Result<Self, JobError> {
        if let Some(name) = columns
            .iter()
            .find(|c| header.iter().any(|cell| cell == *c))
        {
            return Err(super::name_taken(name));
        }
        let mut writer = Self { output, delimiter };
        if writer.output.is_empty() {
            let header = header.iter().map(str::as_bytes);
            let columns = columns.iter().map(String::as_bytes);
            writer.put(|to| to.write_record(header.chain(columns)))?;
        }
        Ok(writer)
    }

    fn put(
        &mut self,
        write: impl FnOnce(&mut csv::Writer<Vec<u8>>) -> csv::Result<()>,
    ) -> Result<(), JobError> {
        let mut writer = csv::WriterBuilder::new()
            .delimiter(self.delimiter)
            .flexible(true)
            .from_writer(Vec::new());
        write(&mut writer).map_err(|error| JobError::named("the output", error))?;
        let bytes = writer.into_inner();
        let bytes = bytes.map_err(|error| JobError::named("the output", error.into_error()))?;
        self.output.write(&bytes)
    }
}

impl Sink for Writer {
    fn write(&mut self, rows: &Rows, outcomes: &[Outcome]) -> Result<(), JobError> {
        let Rows::Cells(rows) = rows else {
            unreachable!("input and output have the same format");
        };
        self.put(|to| {
            for (row, outcome) in rows.iter().zip(outcomes) {
                let Ok(scores) = outcome else { continue };
                for cell in row {
                    to.write_field(cell)?;
                }
                to.write_record(scores.iter().map(|&score| number(score)))?;
            }
            Ok(())
        })
    }

    fn commit(&mut self) -> Result<u64, JobError> {
        self.output.commit()
    }
}

fn unreadable(error: csv::Error) -> JobError {
    JobError::named("the input", error)
}
