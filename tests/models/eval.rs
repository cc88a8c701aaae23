//! Metrics of `rerankd eval` match those of sentence-transformers, ir-measures and ranx.
//!
//! `tests/eval/make_golden.py` computed the expected values for synthetic scores.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::reference::{Reference, model_dir};
use rerankd_core::{FusionMethod, FusionWeight};
use rerankd_tools::eval::correlation::Correlation;
use rerankd_tools::eval::data::{self, GoldPair, Texts};
use rerankd_tools::eval::reranking::{Figures, Part, Settings, Task};
use serde::Deserialize;
use serde_json::{Value, json};

const TOLERANCE: f64 = 1e-6;

#[derive(Deserialize)]
struct Golden {
    correlation: Vec<CorrelationCase>,
    reranking: Vec<RerankingCase>,
}

#[derive(Deserialize)]
struct CorrelationCase {
    name: String,
    gold: Vec<f64>,
    scores: Vec<f64>,
    pearson: f64,
    spearman: f64,
}

type Nested<T> = BTreeMap<String, BTreeMap<String, T>>;

#[derive(Deserialize)]
struct RerankingCase {
    name: String,
    relevant_from: u32,
    add_relevant: bool,
    at: Vec<usize>,
    qrels: Nested<i64>,
    run: Nested<f64>,
    /// For every document, retrieved or not.
    scores: Nested<f64>,
    first_stage: BTreeMap<String, f64>,
    reranked: BTreeMap<String, f64>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../eval/golden.json")).unwrap()
}

#[test]
fn correlations_are_those_of_the_reference() {
    let golden = golden();
    assert!(golden.correlation.len() >= 6);
    for case in golden.correlation {
        let pairs: Vec<GoldPair> = case
            .gold
            .iter()
            .map(|&score| GoldPair {
                first: String::new(),
                second: String::new(),
                score,
            })
            .collect();
        let ours = Correlation::of(&pairs, &case.scores);
        let check = |ours: Option<f64>, reference: f64| {
            let ours = ours.unwrap_or_else(|| panic!("{}: undefined", case.name));
            assert!(
                (ours - reference).abs() <= TOLERANCE,
                "{}: {ours} is not {reference}",
                case.name
            );
        };
        check(ours.pearson, case.pearson);
        check(ours.spearman, case.spearman);
    }
}

#[test]
fn rankings_are_measured_as_the_reference_does() {
    let golden = golden();
    assert!(golden.reranking.len() >= 5);
    let folder = tempfile::tempdir().unwrap();
    for case in golden.reranking {
        let path = |name: &str| folder.path().join(name);
        let mut judged = String::new();
        for (query, documents) in &case.qrels {
            for (document, relevance) in documents {
                writeln!(judged, "{query} 0 {document} {relevance}").unwrap();
            }
        }
        std::fs::write(path("qrels"), judged).unwrap();
        let mut found = String::new();
        for (query, documents) in &case.run {
            for (document, score) in documents {
                writeln!(found, "{query} Q0 {document} 1 {score} x").unwrap();
            }
        }
        std::fs::write(path("run"), found).unwrap();

        let qrels = data::read_qrels(&path("qrels")).unwrap();
        let run = data::read_run(&path("run")).unwrap();
        let texts = |ids: Vec<&String>| Texts {
            items: ids.into_iter().map(|id| (id.clone(), id.clone())).collect(),
        };
        let queries = texts(case.qrels.keys().collect());
        let first = case.scores.values().next().unwrap();
        let corpus = texts(first.keys().collect());
        let settings = Settings {
            cutoffs: case.at.clone(),
            depth: 1000,
            relevant_from: case.relevant_from,
            add_relevant: case.add_relevant,
        };
        let task = Task::new(&corpus, &queries, &qrels, Some(&run), &settings).unwrap();
        let scores: Vec<f64> = task
            .queries
            .iter()
            .flat_map(|query| query.candidates.iter().map(|c| case.scores[query.id][c.id]))
            .collect();
        let first_stage = task.first_stage(Part::All);
        check(&case.name, &first_stage, &case.at, &case.first_stage);
        check(
            &case.name,
            &task.reranked(&scores, Part::All),
            &case.at,
            &case.reranked,
        );
    }
}

/// A task of `count` queries, of which each has three documents. The first stage ranks the relevant one first
/// for even queries, last for the others.
fn with_task(count: usize, test: impl FnOnce(&Task)) {
    let (mut judged, mut found) = (String::new(), String::new());
    let mut texts = [Texts::default(), Texts::default()];
    for number in 0..count {
        let query = format!("q{number:02}");
        writeln!(judged, "{query} 0 {query}a 1").unwrap();
        let scores = if number.is_multiple_of(2) {
            [9, 5, 1]
        } else {
            [1, 5, 9]
        };
        for (document, score) in ["a", "b", "c"].into_iter().zip(scores) {
            let id = format!("{query}{document}");
            writeln!(found, "{query} Q0 {id} 1 {score} x").unwrap();
            texts[1].items.push((id.clone(), id));
        }
        texts[0].items.push((query.clone(), query));
    }
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let qrels = data::read_qrels(&write("qrels", &judged)).unwrap();
    let run = data::read_run(&write("run", &found)).unwrap();
    let settings = Settings {
        cutoffs: vec![10],
        depth: 10,
        relevant_from: 1,
        add_relevant: false,
    };
    let [queries, corpus] = &texts;
    test(&Task::new(corpus, queries, &qrels, Some(&run), &settings).unwrap());
}

#[test]
fn a_weight_is_fitted_on_one_half_and_measured_on_the_other() {
    with_task(8, |task| {
        let candidates = task.queries.iter().flat_map(|query| &query.candidates);
        // The model ranks the relevant document second everywhere.
        let logits: Vec<f64> = candidates
            .map(|candidate| match candidate.id.as_bytes()[3] {
                b'a' => 0.0,
                b'b' => 0.5,
                _ => -1.0,
            })
            .collect();
        let second = 1.0 / 3.0_f64.log2();
        for part in [Part::All, Part::Fitted, Part::HeldOut] {
            let found = task.reranked(&logits, part).ndcg[0];
            assert!((found - second).abs() < 1e-12, "{part:?}: {found}");
        }
        assert_eq!(
            (
                Part::Fitted.len(8),
                Part::HeldOut.len(8),
                Part::HeldOut.len(1)
            ),
            (4, 4, 0)
        );
        assert_eq!(task.first_stage(Part::Fitted).ndcg[0], 1.0);
        assert_eq!(task.first_stage(Part::HeldOut).ndcg[0], 0.5);
        // On the even queries the first stage helps: the smallest weight that puts the relevant first.
        let method = FusionMethod::ZScore;
        let weight = task.fit(&logits, method);
        let figures = |weight: FusionWeight, part| {
            task.reranked(&task.fused(&logits, method, weight), part)
                .ndcg[0]
        };
        assert_eq!(figures(weight, Part::Fitted), 1.0);
        // Of the weights that are tried, the next lower one is too low.
        assert_eq!(weight, FusionWeight::new(0.8).unwrap());
        assert!(figures(FusionWeight::new(0.6).unwrap(), Part::Fitted) < 1.0);
        // On the others it does not, and their figures say so.
        assert!(figures(weight, Part::HeldOut) < second);
    });
}

fn check(name: &str, ours: &Figures, at: &[usize], reference: &BTreeMap<String, f64>) {
    let mut named = vec![("map".to_owned(), ours.map)];
    for (index, k) in at.iter().enumerate() {
        named.push((format!("ndcg@{k}"), ours.ndcg[index]));
        named.push((format!("mrr@{k}"), ours.mrr[index]));
        named.push((format!("recall@{k}"), ours.recall[index]));
    }
    assert_eq!(named.len(), reference.len());
    for (figure, ours) in named {
        let reference = reference[&figure];
        assert!(
            (ours - reference).abs() <= TOLERANCE,
            "{name}, {figure}: {ours} is not {reference}"
        );
    }
}

fn eval(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rerankd"));
    command.arg("eval").args(arguments);
    command.output().unwrap()
}

fn report(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Pairs with the reference scores as gold scores.
fn write_pairs(path: &Path) -> usize {
    let reference = Reference::read("tiny-bert");
    let mut file = csv::Writer::from_path(path).unwrap();
    file.write_record(["left", "right", "gold"]).unwrap();
    for (pair, score) in reference.pairs().iter().zip(reference.scores()) {
        file.write_record([&*pair.query, &*pair.document, &score.to_string()])
            .unwrap();
    }
    file.flush().unwrap();
    reference.pairs.len()
}

#[test]
fn the_model_correlates_with_its_own_reference_scores() {
    let folder = tempfile::tempdir().unwrap();
    let (data, plot) = (
        folder.path().join("pairs.csv"),
        folder.path().join("plot.svg"),
    );
    let pairs = write_pairs(&data);
    let model = model_dir("tiny-bert");
    let flags = [
        "correlation",
        "--data",
        data.to_str().unwrap(),
        "--fields",
        "left,right,gold",
        "--model",
        model.to_str().unwrap(),
    ];
    let more = [
        "--precision",
        "fp32,int8",
        "--plot",
        plot.to_str().unwrap(),
        "--json",
    ];
    let report = report(&eval(&[&flags[..], &more].concat()));
    assert_eq!(report["pairs"], pairs);
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    let figure = |row: usize, name: &str| rows[row]["figures"][name].as_f64().unwrap();
    assert_eq!(rows[0]["name"], "fp32");
    assert!(figure(0, "pearson") > 0.999_999, "{}", rows[0]);
    assert!(figure(0, "spearman") > 0.999, "{}", rows[0]);
    assert!(figure(1, "pearson") > 0.99, "{}", rows[1]);
    let agreement = &report["agreement"][0];
    assert_eq!(
        (&agreement["a"], &agreement["b"]),
        (&json!("fp32"), &json!("int8"))
    );
    assert!(agreement["spearman"].as_f64().unwrap() > 0.99);
    let apart = agreement["largest_difference"].as_f64().unwrap();
    assert!(apart > 0.0 && apart < 0.3, "{apart}");
    let svg = std::fs::read_to_string(plot).unwrap();
    assert_eq!(
        svg.matches("<circle").count(),
        2 * pairs + 2,
        "one a pair, and the legend"
    );

    let table = String::from_utf8(eval(&flags).stdout).unwrap();
    let row = table.lines().find(|line| line.starts_with("fp32")).unwrap();
    assert!(row.contains("1.0000"), "{table}");
}

#[test]
fn reranking_puts_first_what_the_reference_puts_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let reference = Reference::read("tiny-bert");
    let (mut corpus, mut queries, mut qrels, mut run) = Default::default();
    let mut cases = 0;
    for (number, case) in reference.rank.iter().enumerate() {
        let documents: Vec<String> = case.documents.iter().map(|d| d.expand()).collect();
        // Skips duplicate documents and single-document queries.
        let best = &documents[case.order[0]];
        if documents.iter().filter(|d| *d == best).count() > 1 || documents.len() < 2 {
            continue;
        }
        cases += 1;
        let add = |to: &mut String, line: String| writeln!(to, "{line}").unwrap();
        add(
            &mut queries,
            json!({"_id": format!("q{number}"), "text": case.query}).to_string(),
        );
        for (index, text) in documents.iter().enumerate() {
            let id = format!("q{number}d{index}");
            add(&mut corpus, json!({"id": id, "text": text}).to_string());
            // The first stage ranks the relevant document last.
            let score = if index == case.order[0] { -1 } else { 1 };
            add(&mut run, format!("q{number} Q0 {id} 1 {score} test"));
        }
        add(
            &mut qrels,
            format!("q{number}\tq{number}d{}\t1", case.order[0]),
        );
    }
    assert!(cases >= 3);
    for (name, text) in [
        ("corpus", corpus),
        ("queries", queries),
        ("qrels", qrels),
        ("run", run),
    ] {
        std::fs::write(path(name), text).unwrap();
    }
    let (model, saved) = (model_dir("tiny-bert"), path("saved"));
    let flags = [
        "reranking",
        "--corpus",
        &path("corpus"),
        "--queries",
        &path("queries"),
        "--qrels",
        &path("qrels"),
        "--model",
        model.to_str().unwrap(),
        "--at",
        "1,10",
        "--json",
        "--plot",
        &path("plot.svg"),
        "--save-run",
        &saved,
    ];
    let with_run = report(&eval(&[&flags[..], &["--run", &path("run")]].concat()));
    let figures = |row: usize| &with_run["rows"][row]["figures"];
    assert_eq!(with_run["rows"][0]["name"], "first stage");
    assert_eq!(figures(0)["mrr@1"], 0.0);
    assert_eq!(figures(0)["recall@1"], 0.0);
    for figure in ["ndcg@1", "mrr@1", "recall@1", "map", "ndcg@10"] {
        assert_eq!(figures(1)[figure], 1.0, "{figure}");
    }
    let saved = data::read_run(Path::new(&saved)).unwrap();
    assert_eq!(saved.len(), cases);
    assert!(
        std::fs::read_to_string(path("plot.svg"))
            .unwrap()
            .contains("<rect")
    );

    // The first stage knows nothing here: the more it counts, the worse.
    let run_flag = ["--run", &path("run")];
    let fusion = [
        "--fusion",
        "minmax",
        "--fusion-weight",
        "100",
        "--fit-fusion",
    ];
    let fused = report(&eval(&[&flags[..], &run_flag, &fusion].concat()));
    assert_eq!(fused["rows"][2]["name"], "fp32 + 100 first stage (minmax)");
    assert_eq!(fused["rows"][2]["figures"]["mrr@1"], 0.0);
    let fit = &fused["fits"][0];
    assert_eq!(
        (&fit["method"], &fit["weight"]),
        (&json!("minmax"), &json!(0.0))
    );
    assert_eq!(fit["held_out"], cases / 2);
    assert_eq!(fit["rows"][2]["figures"]["mrr@1"], 1.0);
    let table = eval(&[&flags[..9], &["--fit-fusion"]].concat());
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("of `zscore`, fitted on"), "{table}");
    let wrong = eval(&[&flags[..], &["--fusion", "rrf", "--fusion-weight", "-1"]].concat());
    assert_eq!(wrong.status.code(), Some(2));

    // Without a run, candidates come from BM25.
    let without_run = report(&eval(
        &[&flags[..], &["--add-relevant", "--at", "1000"]].concat(),
    ));
    assert_eq!(without_run["rows"][0]["name"], "BM25");
    assert_eq!(without_run["rows"][1]["figures"]["recall@1000"], 1.0);
}

#[test]
fn what_cannot_be_evaluated_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let fails = |data: String, part: &str| {
        let output = eval(&["correlation", "--data", &data]);
        assert_eq!(output.status.code(), Some(1));
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains(part), "{message}");
        assert!(!message.contains("secret"), "{message}");
    };
    fails("no-such-file.csv".into(), "`no-such-file.csv`");
    fails(file("empty.csv", ""), "has no pairs");
    fails(
        file("a.csv", "secret,b,1\nsecret,b,much\n"),
        "line 2: `score` is not a number",
    );
    fails(
        file("b.csv", "x,y,z\nsecret,b,1\n"),
        "a header with `sentence1`",
    );
    fails(
        file("c.jsonl", "{\"sentence1\": \"secret\"}\n"),
        "line 1: `sentence2` is not a string",
    );
    fails(
        file("d.jsonl", "\n[\"secret\n"),
        "line 2: not JSON at column",
    );
}
