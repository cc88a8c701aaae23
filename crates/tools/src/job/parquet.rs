//! Apache Parquet. Its files cannot be appended to: each commit writes a complete part next to the
//! output, and the parts are merged at the end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BooleanArray, Float32Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::filter::filter_record_batch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::journal::beside;
use super::{CHUNK_ROWS, Cause, Checkpoint, Chunk, Fields, JobError, Pairing, Rows, Sink, Source};
use rerankd_core::Pair;
use rerankd_engine::bulk::{Outcome, RowError};

/// Batch size in rows when parts are merged.
const COPY_ROWS: usize = 8192;

/// Reads rows.
pub struct Reader {
    path: PathBuf,
    metadata: ArrowReaderMetadata,
    file_bytes: u64,
    total: u64,
    rows: u64,
    reader: Option<ParquetRecordBatchReader>,
    fields: Fields,
    pairing: Pairing,
}

impl Reader {
    /// Reads the schema of the file at `path`.
    pub fn open(path: &Path, fields: &Fields) -> Result<Self, JobError> {
        let failed = |error: Cause| JobError::at(path, error);
        let file = File::open(path).map_err(|e| failed(e.into()))?;
        let file_bytes = file.metadata().map_err(|e| failed(e.into()))?.len();
        let metadata =
            ArrowReaderMetadata::load(&file, Default::default()).map_err(|e| failed(e.into()))?;
        for name in [&fields.query, &fields.document] {
            let Ok(field) = metadata.schema().field_with_name(name) else {
                return Err(failed(format!(
                    "there is no column `{name}`; hint: `--query-field` and `--document-field` set the \
                     names"
                ).into()));
            };
            let kind = field.data_type();
            if !matches!(
                kind,
                DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View
            ) {
                return Err(failed(
                    format!("the column `{name}` has the type {kind}, not a string type").into(),
                ));
            }
        }
        let total = metadata.metadata().file_metadata().num_rows();
        Ok(Self {
            path: path.to_owned(),
            metadata,
            file_bytes,
            total: u64::try_from(total).unwrap_or(0),
            rows: 0,
            reader: None,
            fields: fields.clone(),
            pairing: Pairing::default(),
        })
    }

    /// The columns and their types.
    pub fn schema(&self) -> &SchemaRef {
        self.metadata.schema()
    }

    /// The reader, which is opened after the skipped rows.
    fn reader(&mut self) -> Result<&mut ParquetRecordBatchReader, JobError> {
        if self.reader.is_none() {
            let file = File::open(&self.path).map_err(|e| JobError::at(&self.path, e))?;
            let builder =
                ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone());
            let reader = builder
                .with_batch_size(CHUNK_ROWS)
                .with_offset(usize::try_from(self.rows).unwrap_or(usize::MAX))
                .build()
                .map_err(|error| JobError::at(&self.path, error))?;
            self.reader = Some(reader);
        }
        Ok(self.reader.as_mut().expect("just created"))
    }

    fn pairs(&mut self, batch: &RecordBatch) -> Vec<Result<Pair, RowError>> {
        let column = |name: &str| {
            let column = batch.column_by_name(name);
            column.expect("the schema has it").clone()
        };
        let (query, document) = (column(&self.fields.query), column(&self.fields.document));
        let null = |name: &str| RowError(format!("`{name}` is null"));
        (0..batch.num_rows())
            .map(|row| {
                let query = text(&query, row).ok_or_else(|| null(&self.fields.query))?;
                let document = text(&document, row).ok_or_else(|| null(&self.fields.document))?;
                Ok(self.pairing.pair(query, document))
            })
            .collect()
    }
}

/// A text in a column of any string type; `None` if it is null.
fn text(column: &ArrayRef, row: usize) -> Option<&str> {
    if column.is_null(row) {
        return None;
    }
    match column.data_type() {
        DataType::Utf8 => Some(column.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Some(column.as_string::<i64>().value(row)),
        DataType::Utf8View => Some(column.as_string_view().value(row)),
        _ => None,
    }
}

impl Source for Reader {
    fn read(&mut self) -> Result<Option<Chunk>, JobError> {
        let Some(batch) = self.reader()?.next() else {
            return Ok(None);
        };
        let batch = batch.map_err(|error| JobError::at(&self.path, error))?;
        let first = self.rows + 1;
        self.rows += batch.num_rows() as u64;
        let part = self.rows as f64 / self.total.max(1) as f64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let input_bytes = (self.file_bytes as f64 * part) as u64;
        Ok(Some(Chunk {
            first,
            input_bytes,
            pairs: self.pairs(&batch),
            rows: Rows::Columns(batch),
        }))
    }

    fn skip(&mut self, rows: u64) -> Result<(), JobError> {
        if rows > self.total {
            return Err(super::too_short(rows));
        }
        self.rows = rows;
        Ok(())
    }
}

/// Writes parts, and merges them at the end.
pub struct Writer {
    output: PathBuf,
    folder: PathBuf,
    schema: SchemaRef,
    columns: usize,
    /// Number of complete parts.
    complete: u64,
    open: Option<ArrowWriter<File>>,
}

impl Writer {
    /// Opens the parts of `output`, and removes those after the checkpoint.
    pub fn open(
        output: &Path,
        input: &SchemaRef,
        columns: &[String],
        Checkpoint {
            output: complete, ..
        }: Checkpoint,
    ) -> Result<Self, JobError> {
        if let Some(name) = columns.iter().find(|c| input.field_with_name(c).is_ok()) {
            return Err(super::name_taken(name));
        }
        let mut fields: Vec<Arc<Field>> = input.fields().iter().cloned().collect();
        let score = |name: &String| Arc::new(Field::new(name, DataType::Float32, false));
        fields.extend(columns.iter().map(score));
        let schema = Schema::new_with_metadata(fields, input.metadata().clone());
        let writer = Self {
            output: output.to_owned(),
            folder: beside(output, ".parts"),
            schema: Arc::new(schema),
            columns: columns.len(),
            complete,
            open: None,
        };
        let kept = writer.keep_complete();
        kept.map_err(|e| JobError::at(&writer.folder, e))?;
        Ok(writer)
    }

    fn keep_complete(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let number = path
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse::<u64>().ok());
            if number.is_none_or(|number| number >= self.complete) {
                std::fs::remove_file(path)?;
            }
        }
        match (0..self.complete).find(|&number| !self.part(number).exists()) {
            None => Ok(()),
            Some(number) => Err(std::io::Error::other(format!(
                "part {number} is missing; hint: `--overwrite` starts over"
            ))),
        }
    }

    fn part(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:08}.parquet"))
    }

    fn writer(&self, path: &Path) -> Result<ArrowWriter<File>, JobError> {
        let file = File::create(path).map_err(|e| JobError::at(path, e))?;
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
        ArrowWriter::try_new(file, self.schema.clone(), Some(properties.build()))
            .map_err(|e| JobError::at(path, e))
    }
}

fn close(writer: ArrowWriter<File>) -> Result<(), Cause> {
    let file = writer.into_inner()?;
    file.sync_all()?;
    Ok(())
}

impl Sink for Writer {
    fn write(&mut self, rows: &Rows, outcomes: &[Outcome]) -> Result<(), JobError> {
        let Rows::Columns(batch) = rows else {
            unreachable!("input and output have the same format");
        };
        let failed = |error: Cause| JobError::at(&self.output, error);
        let scored: BooleanArray = outcomes.iter().map(|o| Some(o.is_ok())).collect();
        let kept = filter_record_batch(batch, &scored).map_err(|e| failed(e.into()))?;
        if kept.num_rows() == 0 {
            return Ok(());
        }
        let mut columns = kept.columns().to_vec();
        for column in 0..self.columns {
            let scores = outcomes.iter().flatten().map(|scores| scores[column]);
            columns.push(Arc::new(Float32Array::from_iter_values(scores)));
        }
        let batch =
            RecordBatch::try_new(self.schema.clone(), columns).map_err(|e| failed(e.into()))?;
        if self.open.is_none() {
            self.open = Some(self.writer(&self.part(self.complete))?);
        }
        let writer = self.open.as_mut().expect("just opened");
        writer
            .write(&batch)
            .map_err(|e| JobError::at(&self.folder, e))
    }

    fn commit(&mut self) -> Result<u64, JobError> {
        if let Some(writer) = self.open.take() {
            close(writer).map_err(|e| JobError::at(&self.folder, e))?;
            self.complete += 1;
        }
        Ok(self.complete)
    }

    fn finish(&mut self) -> Result<(), JobError> {
        let unfinished = beside(&self.output, ".unfinished");
        let mut writer = self.writer(&unfinished)?;
        for number in 0..self.complete {
            let path = self.part(number);
            let failed = |error: Cause| JobError::at(&path, error);
            let file = File::open(&path).map_err(|e| failed(e.into()))?;
            let reader = ParquetRecordBatchReaderBuilder::try_new(file)
                .and_then(|builder| builder.with_batch_size(COPY_ROWS).build())
                .map_err(|e| failed(e.into()))?;
            for batch in reader {
                let batch = batch.map_err(|e| failed(e.into()))?;
                writer.write(&batch).map_err(|e| failed(e.into()))?;
            }
        }
        close(writer).map_err(|e| JobError::at(&unfinished, e))?;
        std::fs::rename(&unfinished, &self.output).map_err(|e| JobError::at(&self.output, e))
    }

    fn clean(&mut self) -> Result<(), JobError> {
        std::fs::remove_dir_all(&self.folder).map_err(|e| JobError::at(&self.folder, e))
    }
}
