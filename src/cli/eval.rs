//! `rerankd eval`: evaluates the quality of a model.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use strum::VariantNames;

use super::loader::load_engine;
use super::progress::Progress;
use super::settings::EngineFlags;
use super::{Exit, output};
use crate::config::{Config, Precision};
use rerankd_core::{FusionMethod, FusionWeight, Pair, Scale};
use rerankd_engine::service::ModelInfo;
use rerankd_tools::eval::correlation::Correlation;
use rerankd_tools::eval::metric::{largest_difference, spearman};
use rerankd_tools::eval::plot::{self, PlotError, Series};
use rerankd_tools::eval::report::{Agreement, Figures, Fit, Report, Row};
use rerankd_tools::eval::reranking::{Part, Settings, Task};
use rerankd_tools::eval::{EvalError, data, reranking};

/// Flags of `eval`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    task: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Correlation of scores with human judgments: Pearson and Spearman, as in sentence-transformers'
    /// `CrossEncoderCorrelationEvaluator`.
    Correlation(CorrelationArgs),
    /// Ranking quality: NDCG, MRR, recall and MAP, as in `trec_eval`.
    Reranking(RerankingArgs),
}

/// Flags of all tasks.
#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    engine: EngineFlags,

    /// Precision to evaluate; several, such as `fp32,int8`, are compared with each other. Default: the
    /// setting `precision`.
    #[arg(
        id = "precisions",
        long = "precision",
        value_name = "PRECISION",
        value_delimiter = ','
    )]
    #[arg(value_parser = super::precision())]
    precision: Vec<Precision>,

    /// Print the report as JSON with full precision instead of a table.
    #[arg(long)]
    json: bool,

    /// Plot the results to this SVG file.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct CorrelationArgs {
    /// Labeled pairs: JSONL, TSV, or CSV with or without a header.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,

    /// Field names of the two texts and the score, and their order in files without a header.
    #[arg(
        long,
        value_name = "NAMES",
        default_value = "sentence1,sentence2,score"
    )]
    #[arg(value_parser = three_names)]
    fields: [String; 3],

    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct RerankingArgs {
    /// Documents: JSONL with `id` (or `_id`) and `text`.
    #[arg(long, value_name = "FILE")]
    corpus: PathBuf,

    /// Queries: JSONL with `id` (or `_id`) and `text`.
    #[arg(long, value_name = "FILE")]
    queries: PathBuf,

    /// Relevance judgments: `query 0 document relevance`, as in TREC, or `query document relevance`.
    #[arg(long, value_name = "FILE")]
    qrels: PathBuf,

    /// First-stage results in TREC's run format. Default: BM25 over the corpus, which is assumed to be
    /// English.
    #[arg(long, value_name = "FILE")]
    run: Option<PathBuf>,

    /// Fields that are joined by a space to the text of a document, such as `title,text`.
    #[arg(
        long,
        value_name = "NAMES",
        default_value = "text",
        value_delimiter = ','
    )]
    document_fields: Vec<String>,

    /// Number of first-stage documents to rerank for each query.
    #[arg(long, value_name = "N", default_value = "100")]
    depth: NonZeroUsize,

    /// Also rerank relevant documents that the first stage missed. This evaluates the model alone, as
    /// sentence-transformers' `CrossEncoderRerankingEvaluator` does by default.
    #[arg(long)]
    add_relevant: bool,

    /// Cutoff ranks of NDCG, MRR and recall.
    #[arg(
        long = "at",
        value_name = "RANKS",
        default_value = "10",
        value_delimiter = ','
    )]
    cutoffs: Vec<NonZeroUsize>,

    /// Minimum relevance grade that counts as relevant for MRR, recall and MAP. NDCG uses the grades.
    #[arg(long, value_name = "RELEVANCE", default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    relevant_from: u32,

    /// Also combine the model's scores with those of the first stage, as a request with `fusion` does:
    /// `zscore`, `minmax` or `rrf`.
    #[arg(long, value_name = "METHOD", value_parser = fusion_method())]
    fusion: Option<FusionMethod>,

    /// The weight of the first stage in `--fusion`, from 0 to 100; the model's is 1.
    #[arg(
        long,
        value_name = "WEIGHT",
        default_value = "0.25",
        requires = "fusion"
    )]
    #[arg(value_parser = fusion_weight)]
    fusion_weight: FusionWeight,

    /// Find the weight that is best on every other query by id, and report what it gives on the rest. The
    /// method is that of `--fusion`, or `zscore`.
    #[arg(long)]
    fit_fusion: bool,

    /// Write the reranked documents to this file in TREC's run format. With several precisions, each has
    /// a file of its own, with the precision before the extension.
    #[arg(long, value_name = "FILE")]
    save_run: Option<PathBuf>,

    #[command(flatten)]
    common: Common,
}

fn three_names(text: &str) -> Result<[String; 3], &'static str> {
    let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    names
        .try_into()
        .map_err(|_| "must be three names: of two texts and a score")
}

fn fusion_method() -> impl TypedValueParser<Value = FusionMethod> {
    let names = <FusionMethod as VariantNames>::VARIANTS;
    PossibleValuesParser::new(names).try_map(|name| name.parse::<FusionMethod>())
}

fn fusion_weight(text: &str) -> Result<FusionWeight, String> {
    let weight = text.parse().ok().and_then(FusionWeight::new);
    weight.ok_or_else(|| format!("must be a number from 0 to {}", FusionWeight::MAX))
}

/// Evaluates and reports.
pub fn run(args: &Args) -> Exit {
    let common = match &args.task {
        Command::Correlation(args) => &args.common,
        Command::Reranking(args) => &args.common,
    };
    let config = match common.engine.resolve() {
        Ok(effective) => effective.one_model(),
        Err(exit) => return exit,
    };
    let done = match &args.task {
        Command::Correlation(args) => correlation(args, &config),
        Command::Reranking(args) => reranking(args, &config),
    };
    match done {
        Ok(()) => Exit::Success,
        Err(error) => {
            eprintln!("rerankd: {error}");
            match error {
                EvalError::Load(_) => Exit::Model,
                EvalError::Data(_)
                | EvalError::File { .. }
                | EvalError::Plot(_)
                | EvalError::Engine(_) => Exit::Failure,
            }
        }
    }
}

fn correlation(args: &CorrelationArgs, config: &Config) -> Result<(), EvalError> {
    let gold = data::read_pairs(&args.data, &args.fields)?;
    let pairs: Vec<Pair> = gold
        .iter()
        .map(|pair| Pair {
            query: pair.first.as_str().into(),
            document: pair.second.as_str().into(),
        })
        .collect();
    let runs = score(&args.common, config, &pairs, Scale::Activated)?;
    let rows = runs.iter().map(|run| {
        let figures = Correlation::of(&gold, &run.scores);
        run.row(vec![
            ("pearson".to_owned(), figures.pearson),
            ("spearman".to_owned(), figures.spearman),
        ])
    });
    let report = report(
        "correlation",
        vec![("data".to_owned(), args.data.display().to_string())],
        &runs,
        rows.collect(),
    );
    finish(&args.common, &report, |title| {
        let series: Vec<Series> = runs
            .iter()
            .map(|run| Series {
                name: run.precision.name(),
                points: gold
                    .iter()
                    .map(|g| g.score)
                    .zip(run.scores.iter().copied())
                    .collect(),
            })
            .collect();
        plot::scatter(title, &series)
    })
}

fn reranking(args: &RerankingArgs, config: &Config) -> Result<(), EvalError> {
    let corpus = data::read_texts(&args.corpus, &args.document_fields)?;
    let queries = data::read_texts(&args.queries, &["text".to_owned()])?;
    let qrels = data::read_qrels(&args.qrels)?;
    let first_stage = args.run.as_deref().map(data::read_run).transpose()?;
    let settings = Settings {
        cutoffs: args.cutoffs.iter().map(|k| k.get()).collect(),
        depth: args.depth.get(),
        relevant_from: args.relevant_from,
        add_relevant: args.add_relevant,
    };
    let task = Task::new(&corpus, &queries, &qrels, first_stage.as_ref(), &settings)?;
    if task.without_text > 0 {
        eprintln!(
            "rerankd: {} judged queries have no text and are left out",
            task.without_text
        );
    }
    let fuses = args.fusion.is_some() || args.fit_fusion;
    let scale = if fuses { Scale::Raw } else { Scale::Activated };
    let runs = score(&args.common, config, &task_pairs(&task), scale)?;
    let figures = |figures: reranking::Figures| named(figures, &settings.cutoffs);
    let untimed = |name: String, found: reranking::Figures| Row {
        name,
        figures: Figures(figures(found)),
        seconds: None,
        pairs_per_second: None,
    };
    let first_stage_name = if args.run.is_some() {
        "first stage"
    } else {
        "BM25"
    };
    let first_stage = |part| untimed(first_stage_name.to_owned(), task.first_stage(part));
    let fused = |run: &Run, method: FusionMethod, weight: FusionWeight, part| {
        let scores = task.fused(&run.scores, method, weight);
        let (precision, weight) = (run.precision.name(), weight.get());
        let method: &str = method.into();
        let name = format!("{precision} + {weight} {first_stage_name} ({method})");
        untimed(name, task.reranked(&scores, part))
    };
    let mut rows = vec![first_stage(Part::All)];
    for run in &runs {
        rows.push(run.row(figures(task.reranked(&run.scores, Part::All))));
        if let Some(method) = args.fusion {
            rows.push(fused(run, method, args.fusion_weight, Part::All));
        }
    }
    let queries_of = |part: Part| part.len(task.queries.len());
    let fit = |run: &Run| {
        let method = args.fusion.unwrap_or_default();
        let weight = task.fit(&run.scores, method);
        let name = run.precision.name().to_owned();
        let alone = untimed(name.clone(), task.reranked(&run.scores, Part::HeldOut));
        Fit {
            name,
            method: method.into(),
            weight: weight.get(),
            fitted_on: queries_of(Part::Fitted),
            held_out: queries_of(Part::HeldOut),
            rows: vec![
                first_stage(Part::HeldOut),
                alone,
                fused(run, method, weight, Part::HeldOut),
            ],
        }
    };
    if args.fit_fusion && queries_of(Part::HeldOut) == 0 {
        return Err(EvalError::Data(
            "`--fit-fusion` needs two judged queries at least".to_owned(),
        ));
    }
    let fits = match args.fit_fusion {
        true => runs.iter().map(fit).collect(),
        false => Vec::new(),
    };
    if let Some(path) = &args.save_run {
        for run in &runs {
            save_run(&run_path(path, run.precision, runs.len()), &task, run)?;
        }
    }
    let path = |path: &Path| path.display().to_string();
    let data = vec![
        (
            "corpus".to_owned(),
            format!("{}, {} documents", path(&args.corpus), corpus.items.len()),
        ),
        (
            "queries".to_owned(),
            format!("{}, {} judged", path(&args.queries), task.queries.len()),
        ),
        ("judgments".to_owned(), path(&args.qrels)),
        (
            "first stage".to_owned(),
            format!(
                "{}, the best {}{}",
                args.run.as_deref().map_or_else(|| "BM25".to_owned(), path),
                args.depth,
                if args.add_relevant {
                    " and all relevant"
                } else {
                    ""
                }
            ),
        ),
    ];
    let report = Report {
        fits,
        ..report("reranking", data, &runs, rows)
    };
    finish(&args.common, &report, |title| plot::bars(title, &report))
}

fn task_pairs(task: &Task) -> Vec<Pair> {
    let mut pairs = Vec::with_capacity(task.pairs());
    for query in &task.queries {
        // Shared, so that the encoder tokenizes it once.
        let text: Arc<str> = query.text.into();
        pairs.extend(query.candidates.iter().map(|candidate| Pair {
            query: text.clone(),
            document: candidate.text.into(),
        }));
    }
    pairs
}

fn named(figures: reranking::Figures, cutoffs: &[usize]) -> Vec<(String, Option<f64>)> {
    let lists = [
        ("ndcg", figures.ndcg),
        ("mrr", figures.mrr),
        ("recall", figures.recall),
    ];
    let mut named = Vec::new();
    for (name, list) in lists {
        let at = cutoffs.iter().zip(list);
        named.extend(at.map(|(k, figure)| (format!("{name}@{k}"), Some(figure))));
    }
    named.push(("map".to_owned(), Some(figures.map)));
    named
}

/// Scores in one precision.
struct Run {
    precision: Precision,
    info: ModelInfo,
    scores: Vec<f64>,
    seconds: f64,
}

impl Run {
    fn row(&self, figures: Vec<(String, Option<f64>)>) -> Row {
        Row {
            name: self.precision.name().to_owned(),
            figures: Figures(figures),
            seconds: Some(self.seconds),
            pairs_per_second: Some(self.scores.len() as f64 / self.seconds),
        }
    }
}

/// Scores `pairs` in each precision, one after the other, so that only one model is in memory.
fn score(
    common: &Common,
    config: &Config,
    pairs: &[Pair],
    scale: Scale,
) -> Result<Vec<Run>, EvalError> {
    let precisions = match &common.precision[..] {
        [] => &[config.model.precision],
        precisions => precisions,
    };
    let runs = precisions.iter().map(|&precision| {
        let engine = load_engine(config, Some(precision))?;
        let labels = engine.info().labels.len();
        if labels != 1 {
            return Err(EvalError::Data(format!(
                "the model has {labels} labels; only models with one label can be evaluated"
            )));
        }
        let mut progress = Progress::new(precision.name(), pairs.len() as u64);
        let started = Instant::now();
        let scores = engine.score_all(pairs, scale, |more| progress.add(more as u64))?;
        progress.end();
        Ok(Run {
            precision,
            info: engine.info().clone(),
            scores: scores.into_iter().map(f64::from).collect(),
            seconds: started.elapsed().as_secs_f64(),
        })
    });
    runs.collect()
}

fn report(task: &'static str, data: Vec<(String, String)>, runs: &[Run], rows: Vec<Row>) -> Report {
    let info = &runs[0].info;
    let mut agreement = Vec::new();
    for (index, a) in runs.iter().enumerate() {
        agreement.extend(runs[index + 1..].iter().map(|b| Agreement {
            a: a.precision.name().to_owned(),
            b: b.precision.name().to_owned(),
            spearman: spearman(&a.scores, &b.scores),
            largest_difference: largest_difference(&a.scores, &b.scores),
        }));
    }
    Report {
        task,
        model: info.id.clone(),
        parameters: info.parameters,
        threads: info.threads,
        version: env!("CARGO_PKG_VERSION"),
        data,
        pairs: runs[0].scores.len(),
        rows,
        agreement,
        fits: Vec::new(),
    }
}

/// Writes the report, and the plot if there is one.
fn finish(
    common: &Common,
    report: &Report,
    draw: impl FnOnce(&str) -> Result<String, PlotError>,
) -> Result<(), EvalError> {
    if common.json {
        let text = serde_json::to_string_pretty(report).expect("a report has only text keys");
        output::line(text);
    } else {
        output::text(report.table());
    }
    let Some(path) = &common.plot else {
        return Ok(());
    };
    let title = format!("{} of {}", report.task, report.model);
    write(path, &draw(&title)?)
}

fn write(path: &Path, text: &str) -> Result<(), EvalError> {
    let written = std::fs::write(path, text);
    written.map_err(|error| EvalError::Data(format!("`{}`: {error}", path.display())))
}

fn run_path(path: &Path, precision: Precision, runs: usize) -> PathBuf {
    if runs == 1 {
        return path.to_owned();
    }
    let extension = path.extension().map(|e| format!(".{}", e.display()));
    path.with_extension(format!(
        "{}{}",
        precision.name(),
        extension.unwrap_or_default()
    ))
}

/// Writes scores in TREC's format.
fn save_run(path: &Path, task: &Task, run: &Run) -> Result<(), EvalError> {
    use std::fmt::Write;
    let mut text = String::new();
    let mut scores = run.scores.iter();
    for query in &task.queries {
        let mut ranking: Vec<(&str, f64)> = query
            .candidates
            .iter()
            .map(|candidate| candidate.id)
            .zip(scores.by_ref().copied())
            .collect();
        ranking.sort_by(|a, b| rerankd_tools::eval::metric::best_first((a.1, a.0), (b.1, b.0)));
        for (index, (id, score)) in ranking.iter().enumerate() {
            let (query, rank, tag) = (query.id, index + 1, run.precision.name());
            let _ = writeln!(text, "{query} Q0 {id} {rank} {score} rerankd-{tag}");
        }
    }
    write(path, &text)
}
