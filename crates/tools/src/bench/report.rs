//! Figures as a table for people, and as JSON for scripts.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::Pace;
use super::budget::Search;
use super::fairness::{Fairness, Verdict};
use super::overload::Overload;
use super::record::{Latency, Summary};

/// What was measured, and what was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of this program.
    pub version: &'static str,
    /// Who was measured: an address, or `in process`.
    pub target: String,
    /// What it says about itself: model, precision, threads.
    pub info: Value,
    /// Kind of texts, or the file they are from.
    pub workload: String,
    /// Documents a request.
    pub documents: Option<usize>,
    /// What texts and arrivals were made from.
    pub seed: u64,
    /// The figures.
    #[serde(flatten)]
    pub findings: Findings,
}

/// The figures of one of the kinds of measurement.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Findings {
    /// One load for some time.
    Steady {
        /// How it was sent.
        pace: Pace,
        /// What came of it.
        summary: Summary,
        /// How many documents can be answered in time.
        budget: Option<Budget>,
    },
    /// Sessions without a server around them.
    Bare {
        /// What came of it.
        summary: Summary,
    },
    /// A small client beside a big one.
    Fairness {
        /// Their figures.
        figures: Box<Fairness>,
        /// Whether it was fair.
        verdict: Verdict,
    },
    /// Far more than can be answered.
    Overload(Box<Overload>),
}

/// How many documents can be answered in time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Budget {
    /// The time that 95 % of the answers have to keep.
    pub p95_target_ms: f64,
    /// Most documents that kept it.
    pub documents: usize,
    /// Whether more might, but are not allowed or were not tried.
    pub at_least: bool,
}

impl Budget {
    /// What a search for `target` found.
    pub fn new(target: Duration, search: &Search) -> Self {
        Self {
            p95_target_ms: target.as_secs_f64() * 1000.0,
            documents: search.best(),
            at_least: search.open_ended(),
        }
    }

    /// The sentence that a user needs.
    fn sentence(&self) -> String {
        let target = self.p95_target_ms;
        match (self.documents, self.at_least) {
            (0, _) => {
                format!("at p95 <= {target} ms you cannot rerank a single document of this kind")
            }
            (1, false) => format!("at p95 <= {target} ms you can rerank 1 document of this kind"),
            (n, false) => {
                format!("at p95 <= {target} ms you can rerank {n} documents of this kind")
            }
            (n, true) => {
                format!("at p95 <= {target} ms you can rerank at least {n} documents of this kind")
            }
        }
    }
}

impl Report {
    /// Lines for people; the last one is what they wanted to know.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let told = |key: &str| match &self.info[key] {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        let names = [
            ("model", "model_id"),
            ("precision", "precision"),
            ("threads", "threads"),
        ];
        let info: Vec<String> = names
            .iter()
            .filter_map(|(name, key)| Some(format!("{name} {}", told(key)?)))
            .collect();
        let documents = match self.documents {
            Some(documents) => format!(", {documents} documents a request"),
            None => String::new(),
        };
        line(&mut text, "target", std::slice::from_ref(&self.target));
        if !info.is_empty() {
            line(&mut text, "serving", &[info.join(", ")]);
        }
        match &self.findings {
            Findings::Steady {
                pace,
                summary,
                budget,
            } => {
                let pace = match pace {
                    Pace::Clients(1) => "1 client".to_owned(),
                    Pace::Clients(clients) => format!("{clients} clients"),
                    Pace::RatePerSecond(rate) => format!("{rate} requests/s arrive"),
                };
                line(
                    &mut text,
                    "load",
                    &[format!("{}{documents}, {pace}", self.workload)],
                );
                text.push('\n');
                summary_lines(&mut text, summary);
                if let Some(budget) = budget {
                    let _ = writeln!(text, "\n{}", budget.sentence());
                }
            }
            Findings::Bare { summary } => {
                line(&mut text, "load", &[format!("{}, batches", self.workload)]);
                text.push('\n');
                summary_lines(&mut text, summary);
            }
            Findings::Fairness { figures, verdict } => {
                text.push('\n');
                head(&mut text, "small client");
                latency_line(&mut text, "by itself", &figures.idle.latency_ms);
                latency_line(&mut text, "beside bulk", &figures.beside.latency_ms);
                latency_line(&mut text, "bulk", &figures.bulk.latency_ms);
                status_line(&mut text, &figures.beside);
                let _ = writeln!(
                    text,
                    "\nbeside bulk, median {:.1} ms (limit {:.1}) and p99 {:.1} ms (limit {:.1}): {}",
                    figures.beside.latency_ms.p50,
                    verdict.median_limit_ms,
                    figures.beside.latency_ms.p99,
                    verdict.p99_limit_ms,
                    kept(verdict.kept),
                );
            }
            Findings::Overload(overload) => {
                let offered = format!(
                    "{}{documents}, {:.1} requests/s arrive",
                    self.workload, overload.offered_requests_per_second
                );
                line(&mut text, "load", &[offered]);
                let capacity = format!("{:.1} pairs/s", overload.capacity_pairs_per_second);
                line(&mut text, "capacity", &[capacity]);
                text.push('\n');
                head(&mut text, "ms");
                latency_line(&mut text, "answered", &overload.outcome.latency_ms);
                latency_line(&mut text, "refused", &overload.outcome.refusal_ms);
                status_line(&mut text, &overload.outcome);
                let _ = writeln!(
                    text,
                    "\ngoodput {:.1} pairs/s, {:.1} % of capacity; refusals p99.9 {:.1} ms: {}",
                    overload.goodput_pairs_per_second,
                    overload.goodput * 100.0,
                    overload.outcome.refusal_ms.p99_9,
                    kept(overload.kept),
                );
            }
        }
        text
    }
}

fn kept(kept: bool) -> &'static str {
    match kept {
        true => "kept",
        false => "NOT KEPT",
    }
}

fn summary_lines(text: &mut String, summary: &Summary) {
    head(text, "ms");
    latency_line(text, "answered", &summary.latency_ms);
    if summary.refusal_ms.count > 0 {
        latency_line(text, "refused", &summary.refusal_ms);
    }
    status_line(text, summary);
    line(
        text,
        "pairs/s",
        &[format!("{:.1}", summary.pairs_per_second)],
    );
    if let Some(tokens) = summary.tokens_per_second {
        line(text, "tokens/s", &[format!("{tokens:.0}")]);
    }
    line(
        text,
        "requests/s",
        &[format!("{:.2}", summary.requests_per_second)],
    );
}

fn status_line(text: &mut String, summary: &Summary) {
    let counts: Vec<String> = summary
        .statuses
        .iter()
        .map(|(status, count)| format!("{status}: {count}"))
        .collect();
    line(text, "statuses", &[counts.join(", ")]);
}

fn head(text: &mut String, of: &str) {
    let columns = ["count", "p50", "p90", "p95", "p99", "p99.9", "max"];
    line(text, of, &columns.map(|column| format!("{column:>9}")));
}

fn latency_line(text: &mut String, name: &str, latency: &Latency) {
    let mut cells = vec![format!("{:>9}", latency.count)];
    let values = [
        latency.p50,
        latency.p90,
        latency.p95,
        latency.p99,
        latency.p99_9,
        latency.max,
    ];
    cells.extend(values.map(|value| match latency.count {
        0 => format!("{:>9}", "-"),
        _ => format!("{value:>9.1}"),
    }));
    line(text, name, &cells);
}

fn line(text: &mut String, name: &str, cells: &[String]) {
    let _ = writeln!(text, "{name:<13}{}", cells.join(""));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::{Outcome, Sample, Window};
    use serde_json::json;

    fn report(budget: Option<Budget>) -> Report {
        let sample = Sample {
            intended: Duration::ZERO,
            sent: Duration::ZERO,
            done: Duration::from_millis(250),
            outcome: Outcome::Answered { tokens: Some(46) },
            pairs: 2,
            tokens: 46,
        };
        let window = Window::new(Duration::ZERO, Duration::from_secs(1));
        Report {
            version: "0.0.0",
            target: "in process".to_owned(),
            info: json!({ "model_id": "m", "precision": "int8", "threads": 2 }),
            workload: "short".to_owned(),
            documents: Some(2),
            seed: 1,
            findings: Findings::Steady {
                pace: Pace::Clients(4),
                summary: Summary::of(&[sample], window),
                budget,
            },
        }
    }

    #[test]
    fn the_table_ends_with_what_a_user_needs() {
        let mut search = Search::new(1000);
        search.learn(40, true);
        search.learn(41, false);
        let budget = Budget::new(Duration::from_millis(200), &search);
        let expected = "\
target       in process
serving      model m, precision int8, threads 2
load         short, 2 documents a request, 4 clients

ms               count      p50      p90      p95      p99    p99.9      max
answered             1    250.1    250.1    250.1    250.1    250.1    250.1
statuses     200: 1
pairs/s      2.0
tokens/s     46
requests/s   1.00

at p95 <= 200 ms you can rerank 40 documents of this kind
";
        assert_eq!(report(Some(budget)).table(), expected);
    }

    #[test]
    fn the_sentence_says_no_more_than_was_seen() {
        let sentence = |seen: &[(usize, bool)], max| {
            let mut search = Search::new(max);
            seen.iter()
                .for_each(|(n, in_time)| search.learn(*n, *in_time));
            Budget::new(Duration::from_millis(50), &search).sentence()
        };
        let late = sentence(&[(1, false)], 9);
        assert_eq!(
            late,
            "at p95 <= 50 ms you cannot rerank a single document of this kind"
        );
        let one = sentence(&[(1, true), (2, false)], 9);
        assert_eq!(
            one,
            "at p95 <= 50 ms you can rerank 1 document of this kind"
        );
        let all = sentence(&[(9, true)], 9);
        assert_eq!(
            all,
            "at p95 <= 50 ms you can rerank at least 9 documents of this kind"
        );
    }

    #[test]
    fn json_holds_the_same_figures() {
        let value = serde_json::to_value(report(None)).unwrap();
        assert_eq!(value["steady"]["pace"]["clients"], 4);
        assert_eq!(value["steady"]["summary"]["statuses"]["200"], 1);
        assert_eq!(value["steady"]["summary"]["pairs_per_second"], 2.0);
        assert_eq!(value["info"]["precision"], "int8");
    }
}
