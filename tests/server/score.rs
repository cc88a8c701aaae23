//! `rerankd score`: every row is written exactly once with its score, also after interruptions.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use crate::support::reference::{Reference, model_dir};
use serde_json::{Value, json};

/// Much longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);
const TOLERANCE: f64 = 1e-4;

/// `rerankd score` with a small model and a clean environment.
fn score(model: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rerankd"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RERANKD_") {
            command.env_remove(name);
        }
    }
    command.arg("score").arg("--model").arg(model_dir(model));
    command
}

fn finished(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    errors
}

fn refused(output: &Output, part: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains(part), "{errors}");
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Names of all files.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

/// Runs `score` on files.
fn run(model: &str, input: &Path, output: &Path, more: &[&str]) -> Output {
    let mut command = score(model);
    command
        .arg("--input")
        .arg(input)
        .arg("--output")
        .arg(output);
    command.args(more).output().unwrap()
}

/// Single-line pairs of the reference, with their scores.
fn reference() -> Vec<(String, String, f64)> {
    let reference = Reference::read("tiny-bert");
    let pairs = reference.pairs().into_iter().zip(reference.scores());
    let pairs = pairs.map(|(pair, score)| {
        (
            pair.query.to_string(),
            pair.document.to_string(),
            score.into(),
        )
    });
    let pairs: Vec<_> = pairs.collect();
    assert!(pairs.len() >= 20);
    pairs
}

fn lines(text: &str) -> Vec<Value> {
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn csv_keeps_its_cells_and_gets_the_scores_of_the_reference() {
    let folder = Folder::new();
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer
        .write_record(["id", "query", "note", "document"])
        .unwrap();
    for (number, (query, document, _)) in reference().iter().enumerate() {
        let note = format!("a \"note\",\nof two lines, {number}");
        writer
            .write_record([&number.to_string(), query, &note, document])
            .unwrap();
    }
    let mut input = writer.into_inner().unwrap();
    input.extend(b"too,few\n\"bad\",\"q\xff\",\"\",\"d\"\nlast,a b,,c d\n");
    let input = folder.write("in.csv", input);
    let output = run("tiny-bert", &input, &folder.path("out.csv"), &[]);
    let rows = reference().len();
    assert!(finished(&output).contains(&format!("{} rows scored, 2 rejected", rows + 1)));

    let mut reader = csv::Reader::from_path(folder.path("out.csv")).unwrap();
    assert_eq!(
        reader.headers().unwrap(),
        vec!["id", "query", "note", "document", "score"]
    );
    let found: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert_eq!(found.len(), rows + 1);
    for (number, (query, document, golden)) in reference().iter().enumerate() {
        let row = &found[number];
        assert_eq!(
            (&row[0], &row[1], &row[3]),
            (&*number.to_string(), &**query, &**document)
        );
        assert_eq!(row[2], format!("a \"note\",\nof two lines, {number}"));
        let score: f64 = row[4].parse().unwrap();
        assert!(
            (score - golden).abs() <= TOLERANCE,
            "{number}: {score} is not {golden}"
        );
    }
    assert_eq!(&found[rows][0], "last");
    let rejected = lines(&folder.read("out.csv.rejected.jsonl"));
    let expected = json!([
        {"row": rows + 1, "reason": "2 cells, but the header has 4", "input": ["too", "few"]},
        {"row": rows + 2, "reason": "`query` is not UTF-8", "input": ["bad", "q\u{fffd}", "", "d"]},
    ]);
    assert_eq!(Value::from(rejected), expected);
    assert_eq!(
        folder.names(),
        ["in.csv", "out.csv", "out.csv.rejected.jsonl"]
    );
}

#[test]
fn json_lines_stay_as_they_are_and_streams_need_no_file() {
    let folder = Folder::new();
    let good = [
        "{\"document\": \"c d\", \"n\": 1.50, \"query\": \"a b\"  }",
        "\u{feff}{\"query\":\"a b\",\"document\":\"x}\",\"deep\":{\"score\":1}}",
    ];
    let bad = [
        ("{\"query\": \"a\"", "not JSON: error at column 13"),
        ("[1]", "not a JSON object"),
        ("{\"query\": \"a\"}", "`document` is missing"),
        (
            "{\"query\": 1, \"document\": \"d\"}",
            "`query` is not a string",
        ),
        (
            "{\"query\": \"a\", \"document\": \"d\", \"score\": 1}",
            "already has a key `score`",
        ),
    ];
    let mut input = format!("{}\r\n\n", good[0]);
    for (line, _) in bad {
        writeln!(input, "{line}").unwrap();
    }
    input.push_str(good[1]);
    let mut child = score("tiny-bert")
        .args([
            "--input",
            "-",
            "--output",
            "-",
            "--format",
            "jsonl",
            "--rejects",
        ])
        .arg(folder.path("rejected"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    finished(&output);
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<&str> = text.lines().collect();
    assert_eq!(rows.len(), 2);
    for (row, line) in rows.iter().zip(good) {
        let line = line.trim_start_matches('\u{feff}');
        assert!(row.starts_with(&line[..line.len() - 1]), "{row}");
        let row: Value = serde_json::from_str(row).unwrap();
        assert!((0.0..=1.0).contains(&row["score"].as_f64().unwrap()));
    }
    let rejected = lines(&folder.read("rejected"));
    assert_eq!(rejected.len(), bad.len());
    for ((number, (_, reason)), rejected) in bad.iter().enumerate().zip(rejected) {
        assert_eq!(
            (&rejected["row"], &rejected["reason"]),
            (&json!(number + 2), &json!(reason))
        );
    }
}

#[test]
fn several_labels_are_several_scores() {
    let folder = Folder::new();
    let csv = folder.write("in.csv", "q,d\na b,c d\n");
    let fields = [
        "--query-field",
        "q",
        "--document-field",
        "d",
        "--score-field",
        "s",
        "--raw-scores",
    ];
    finished(&run(
        "tiny-bert-3-labels",
        &csv,
        &folder.path("out.csv"),
        &fields,
    ));
    let text = folder.read("out.csv");
    let header = text.lines().next().unwrap();
    assert_eq!(header, "q,d,s_LABEL_0,s_LABEL_1,s_LABEL_2");
    let row = text.lines().nth(1).unwrap().split(',').skip(2);
    let row: Vec<f64> = row.map(|score| score.parse().unwrap()).collect();
    let json = folder.write("in.jsonl", "{\"q\":\"a b\",\"d\":\"c d\"}\n");
    finished(&run(
        "tiny-bert-3-labels",
        &json,
        &folder.path("out.jsonl"),
        &fields,
    ));
    let line = &lines(&folder.read("out.jsonl"))[0];
    let list = line["s"].as_array().unwrap().iter();
    let list: Vec<f64> = list.map(|score| score.as_f64().unwrap()).collect();
    assert_eq!(list.len(), 3);
    assert!(
        list.iter().zip(&row).all(|(a, b)| (a - b).abs() < 1e-5),
        "{list:?} {row:?}"
    );
}

/// Rows of many lengths; every hundredth is invalid.
fn many(rows: usize) -> String {
    let mut text = String::new();
    for id in 0..rows {
        let document = "a few words of it ".repeat(id % 7 + 1);
        match id % 100 {
            99 => writeln!(text, "{{\"id\":{id},\"query\":null}}").unwrap(),
            _ => writeln!(
                text,
                "{{\"id\":{id},\"query\":\"q {}\",\"document\":\"{id} {document}\"}}",
                id / 50
            )
            .unwrap(),
        }
    }
    text
}

fn start(input: &Path, output: &Path) -> Child {
    score("tiny-bert")
        .arg("--input")
        .arg(input)
        .arg("--output")
        .arg(output)
        .args(["--commit-every", "0s"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits until the journal of a running job has more than `rows` rows.
fn wait_for_rows(child: &mut Child, journal: &Path, rows: u64) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(
            Instant::now() < deadline,
            "the job does not come past row {rows}"
        );
        let ended = child.try_wait().unwrap();
        assert!(
            ended.is_none(),
            "the job ended before it was killed: {ended:?}"
        );
        let text = fs::read_to_string(journal).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let last = whole.lines().skip(1).last();
        let last: Option<Value> = last.map(|line| serde_json::from_str(line).unwrap());
        let done = last.map_or(0, |mark| mark["rows"].as_u64().unwrap());
        if done > rows {
            return done;
        }
        std::thread::yield_now();
    }
}

/// Ids and scores of an output file.
fn scores(text: &str) -> BTreeMap<u64, f64> {
    let rows = lines(text);
    let count = rows.len();
    let ids: Vec<u64> = rows.iter().map(|row| row["id"].as_u64().unwrap()).collect();
    assert!(ids.is_sorted(), "rows are out of order");
    let scores: BTreeMap<u64, f64> = ids
        .into_iter()
        .zip(rows.iter().map(|row| row["score"].as_f64().unwrap()))
        .collect();
    assert_eq!(scores.len(), count, "a row came twice");
    scores
}

#[test]
fn an_input_is_known_again_whatever_the_digits_of_its_time() {
    let folder = Folder::new();
    let input = folder.write("in.jsonl", many(5_000));
    // Stored as JSON seconds, it was read back as 1795637436.939438.
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs_f64(1_795_637_436.939_437_9);
    fs::File::options()
        .append(true)
        .open(&input)
        .unwrap()
        .set_modified(modified)
        .unwrap();
    let (output, journal) = (folder.path("out.jsonl"), folder.path("out.jsonl.journal"));
    let mut child = start(&input, &output);
    wait_for_rows(&mut child, &journal, 0);
    child.kill().unwrap();
    child.wait().unwrap();
    let message = finished(&run("tiny-bert", &input, &output, &[]));
    assert!(message.contains("by an earlier run"), "{message}");
}

#[test]
fn a_killed_run_goes_on_without_losing_or_repeating_a_row() {
    const ROWS: usize = 20_000;
    let folder = Folder::new();
    let input = folder.write("in.jsonl", many(ROWS));
    let (output, journal) = (folder.path("out.jsonl"), folder.path("out.jsonl.journal"));
    let mut done = 0;
    for _ in 0..3 {
        let mut child = start(&input, &output);
        done = wait_for_rows(&mut child, &journal, done);
        // `kill` sends SIGKILL, which cannot be handled.
        child.kill().unwrap();
        child.wait().unwrap();
        // A kill may leave rows that are not in the journal, and an incomplete line.
        let mut file = fs::OpenOptions::new().append(true).open(&output).unwrap();
        file.write_all(b"{\"id\":1,\"query\":\"q\",\"document\":\"d\",\"score\":9}\n{\"id\"")
            .unwrap();
        let mut file = fs::OpenOptions::new().append(true).open(&journal).unwrap();
        file.write_all(b"{\"rows\":99999,\"outp").unwrap();
    }
    let message = finished(&run("tiny-bert", &input, &output, &[]));
    assert!(message.contains("by an earlier run"), "{message}");

    let found = scores(&folder.read("out.jsonl"));
    assert_eq!(found.len(), ROWS - ROWS / 100);
    let rejected = lines(&folder.read("out.jsonl.rejected.jsonl"));
    let rows: Vec<usize> = rejected
        .iter()
        .map(|r| r["row"].as_u64().unwrap() as usize)
        .collect();
    let expected: Vec<usize> = (1..=ROWS).filter(|row| row % 100 == 0).collect();
    assert_eq!(rows, expected);
    assert!(!journal.exists());

    let whole = folder.path("whole.jsonl");
    finished(&run("tiny-bert", &input, &whole, &[]));
    let whole = scores(&folder.read("whole.jsonl"));
    assert_eq!(found.len(), whole.len());
    for (id, score) in whole {
        assert!((found[&id] - score).abs() < 1e-5, "{id}");
    }
}

#[test]
fn an_output_is_of_one_job_and_one_process() {
    let folder = Folder::new();
    let input = folder.write("in.jsonl", many(20_000));
    let (output, journal) = (folder.path("out.jsonl"), folder.path("out.jsonl.journal"));
    let mut child = start(&input, &output);
    wait_for_rows(&mut child, &journal, 0);
    refused(
        &run("tiny-bert", &input, &output, &[]),
        "another process is writing to it",
    );
    child.kill().unwrap();
    child.wait().unwrap();

    refused(
        &run("tiny-bert", &input, &output, &["--raw-scores"]),
        "`raw` was false and is true",
    );
    let other = folder.write("other.jsonl", many(10));
    refused(
        &run("tiny-bert", &other, &output, &[]),
        "with other settings: `input`",
    );
    refused(
        &run("tiny-roberta", &input, &output, &[]),
        "with other settings: `model`",
    );

    finished(&run("tiny-bert", &other, &output, &["--overwrite"]));
    assert_eq!(scores(&folder.read("out.jsonl")).len(), 10);
    refused(
        &run("tiny-bert", &other, &output, &[]),
        "has no journal to resume from",
    );
    assert_eq!(scores(&folder.read("out.jsonl")).len(), 10);
    finished(&run("tiny-bert", &other, &output, &["--overwrite"]));
}

#[test]
fn what_cannot_be_read_is_named() {
    let folder = Folder::new();
    let output = folder.path("out.csv");
    let csv = folder.write("in.csv", "a,b\n1,2\n");
    refused(
        &run("tiny-bert", &csv, &output, &[]),
        "the input has no column `query`, only `a`, `b`",
    );
    // A failed run does not block a later run with the right names.
    let names = ["--query-field", "a", "--document-field", "b"];
    finished(&run("tiny-bert", &csv, &output, &names));
    let csv = folder.write("in2.csv", "query,document,score\n1,2,3\n");
    refused(
        &run("tiny-bert", &csv, &folder.path("out2.csv"), &[]),
        "already has a column `score`",
    );
    let long = format!("query,document\na,b\na,\"{}", "x".repeat(17 << 20));
    let csv = folder.write("in3.csv", long);
    refused(
        &run("tiny-bert", &csv, &folder.path("out3.csv"), &[]),
        "after row 1: a row is longer",
    );
    let only_bad = folder.write("in4.jsonl", "{\"q\":\"a\"}\n");
    let output = run("tiny-bert", &only_bad, &folder.path("out4.jsonl"), &[]);
    refused(&output, "0 rows scored, 1 rejected");
    let unknown = run("tiny-bert", &folder.path("in"), &folder.path("out"), &[]);
    assert_eq!(unknown.status.code(), Some(2));
    let missing = run(
        "tiny-bert",
        &folder.path("no.csv"),
        &folder.path("out5.csv"),
        &[],
    );
    refused(&missing, "no.csv`: No such file");
}

/// Peak memory of a process, in bytes.
fn peak(child: &Child) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    1024 * line
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
}

#[test]
fn memory_does_not_grow_with_the_input() {
    let folder = Folder::new();
    let mut child = score("tiny-bert")
        .args(["--input", "-", "--format", "jsonl", "--output"])
        .arg(folder.path("out.jsonl"))
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    // Most rows have no document, so that only reading and writing takes time; one exceeds the limit of a
    // row.
    let filler = "x".repeat(20_000);
    let row = format!("{{\"query\":\"a\",\"filler\":\"{filler}\"}}\n");
    let scored = format!("{{\"query\":\"a\",\"document\":\"b\",\"filler\":\"{filler}\"}}\n");
    let mut after_warm_up = 0;
    for number in 0..8_000 {
        let row = if number % 50 == 0 { &scored } else { &row };
        input.write_all(row.as_bytes()).unwrap();
        match number {
            500 => {
                input.write_all(&vec![b'y'; 40 << 20]).unwrap();
                input.write_all(b"\n").unwrap();
            }
            1000 => after_warm_up = peak(&child),
            _ => (),
        }
    }
    let at_the_end = peak(&child);
    drop(input);
    assert!(child.wait().unwrap().success());
    assert_eq!(lines(&folder.read("out.jsonl")).len(), 160);
    // 140 MB were processed in between.
    let grown = at_the_end.saturating_sub(after_warm_up);
    assert!(
        grown < 32 << 20,
        "grown by {grown} bytes from {after_warm_up}"
    );
}

#[cfg(feature = "parquet")]
mod parquet {
    use super::*;
    use ::parquet::arrow::ArrowWriter;
    use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use arrow_array::cast::AsArray;
    use arrow_array::types::{Float32Type, Int64Type};
    use arrow_array::{Int64Array, RecordBatch, StringArray};
    use std::sync::Arc;

    fn write(path: &Path, rows: usize) {
        let ids = Int64Array::from_iter_values(0..rows as i64);
        let queries = (0..rows).map(|id| Some(format!("q {}", id / 50)));
        let documents = (0..rows).map(|id| {
            (id % 100 != 99).then(|| format!("{id} {}", "a few words of it ".repeat(id % 7 + 1)))
        });
        let batch = RecordBatch::try_from_iter([
            ("id", Arc::new(ids) as _),
            ("query", Arc::new(queries.collect::<StringArray>()) as _),
            (
                "document",
                Arc::new(documents.collect::<StringArray>()) as _,
            ),
        ])
        .unwrap();
        let file = fs::File::create(path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }

    fn read(path: &Path) -> BTreeMap<u64, f64> {
        let file = fs::File::open(path).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file)
            .unwrap()
            .build()
            .unwrap();
        let mut rows = Vec::new();
        for batch in reader {
            let batch = batch.unwrap();
            let ids = batch["id"].as_primitive::<Int64Type>();
            let scores = batch["score"].as_primitive::<Float32Type>();
            rows.extend(
                (0..batch.num_rows()).map(|i| (ids.value(i) as u64, f64::from(scores.value(i)))),
            );
        }
        assert!(rows.is_sorted_by_key(|row| row.0));
        let count = rows.len();
        let rows: BTreeMap<u64, f64> = rows.into_iter().collect();
        assert_eq!(rows.len(), count, "a row came twice");
        rows
    }

    #[test]
    fn a_killed_run_goes_on_and_scores_are_those_of_the_same_json() {
        const ROWS: usize = 20_000;
        let folder = Folder::new();
        let (input, output) = (folder.path("in.parquet"), folder.path("out.parquet"));
        write(&input, ROWS);
        let journal = folder.path("out.parquet.journal");
        let mut done = 0;
        for _ in 0..2 {
            let mut child = start(&input, &output);
            done = wait_for_rows(&mut child, &journal, done);
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(!output.exists());
        let message = finished(&run("tiny-bert", &input, &output, &[]));
        assert!(message.contains("by an earlier run"), "{message}");
        let found = read(&output);
        assert_eq!(found.len(), ROWS - ROWS / 100);
        let names = folder.names();
        assert_eq!(
            names,
            ["in.parquet", "out.parquet", "out.parquet.rejected.jsonl"]
        );
        let rejected = lines(&folder.read("out.parquet.rejected.jsonl"));
        assert_eq!(rejected.len(), ROWS / 100);
        assert_eq!(
            rejected[0],
            json!({"row": 100, "reason": "`document` is null", "input": null})
        );

        let json = folder.write("in.jsonl", many(ROWS));
        finished(&run("tiny-bert", &json, &folder.path("out.jsonl"), &[]));
        for (id, score) in scores(&folder.read("out.jsonl")) {
            assert!((found[&id] - score).abs() < 1e-5, "{id}");
        }
    }

    #[test]
    fn what_has_no_strings_is_refused() {
        let folder = Folder::new();
        let input = folder.path("in.parquet");
        write(&input, 3);
        let (output, fields) = (folder.path("out.parquet"), ["--query-field", "id"]);
        refused(
            &run("tiny-bert", &input, &output, &fields),
            "column `id` has the type Int64",
        );
        refused(
            &run("tiny-bert", &input, &output, &["--score-field", "id"]),
            "already has a column `id`",
        );
        let missing = ["--document-field", "text"];
        refused(
            &run("tiny-bert", &input, &output, &missing),
            "there is no column `text`",
        );
    }
}

#[cfg(not(feature = "parquet"))]
#[test]
fn parquet_wants_its_feature() {
    let folder = Folder::new();
    let input = folder.write("in.parquet", "PAR1");
    let output = run("tiny-bert", &input, &folder.path("out.parquet"), &[]);
    refused(&output, "build it with `--features parquet`");
}
