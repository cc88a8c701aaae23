//! Reports as a table and as JSON.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::Pace;
use super::budget::Search;
use super::fairness::{Fairness, Round, Stream};
use super::overload::Overload;
use super::record::{Latency, Summary};

/// The setup of a measurement and its results.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of this program.
    pub version: &'static str,
    /// The URL of the server, or `in process`.
    pub target: String,
    /// Model, precision and threads of the target.
    pub info: Value,
    /// Kind of texts, or the file with the requests.
    pub workload: String,
    /// Number of documents per request.
    pub documents: Option<usize>,
    /// Seed of texts and arrival times.
    pub seed: u64,
    /// The results.
    #[serde(flatten)]
    pub findings: Findings,
}

/// The results of a measurement.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Findings {
    /// One load.
    Steady {
        /// How requests were sent.
        pace: Pace,
        /// Their results.
        summary: Summary,
        /// Number of documents within the target latency.
        budget: Option<Budget>,
    },
    /// Sessions without queue and HTTP.
    Bare {
        /// Their results.
        summary: Summary,
    },
    /// A small client next to bulk clients.
    Fairness(Box<Fairness>),
    /// A bulk client next to a stream of small requests.
    Stream(Box<Stream>),
    /// A load beyond the capacity.
    Overload(Box<Overload>),
}

/// Number of documents within a target latency.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Budget {
    /// The target of the 95th percentile.
    pub p95_target_ms: f64,
    /// Largest number of documents that met it.
    pub documents: usize,
    /// Whether more documents might meet it, but were not tried.
    pub at_least: bool,
}

impl Budget {
    /// The result of a search for `target`.
    pub fn new(target: Duration, search: &Search) -> Self {
        Self {
            p95_target_ms: target.as_secs_f64() * 1000.0,
            documents: search.best(),
            at_least: search.open_ended(),
        }
    }

    /// The result as a sentence.
    fn sentence(&self) -> String {
        let result = match (self.documents, self.at_least) {
            (0, _) => "cannot rerank a single document".to_owned(),
            (1, false) => "can rerank 1 document".to_owned(),
            (n, false) => format!("can rerank {n} documents"),
            (n, true) => format!("can rerank at least {n} documents"),
        };
        let target = self.p95_target_ms;
        format!("at p95 <= {target} ms you {result} of this kind")
    }
}

impl Report {
    /// A table for a terminal. The conclusion is the last line.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let value = |key: &str| match &self.info[key] {
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
            .filter_map(|(name, key)| Some(format!("{name} {}", value(key)?)))
            .collect();
        let documents = match self.documents {
            Some(documents) => format!(", {documents} documents per request"),
            None => String::new(),
        };
        line(&mut text, "target", &[&self.target]);
        if !info.is_empty() {
            line(&mut text, "serving", &[&info.join(", ")]);
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
                    Pace::RatePerSecond(rate) => format!("{rate} requests/s"),
                };
                let load = format!("{}{documents}, {pace}", self.workload);
                line(&mut text, "load", &[&load]);
                text.push('\n');
                summary_lines(&mut text, summary);
                if let Some(budget) = budget {
                    let _ = writeln!(text, "\n{}", budget.sentence());
                }
            }
            Findings::Bare { summary } => {
                line(&mut text, "load", &[&format!("{}, batches", self.workload)]);
                text.push('\n');
                summary_lines(&mut text, summary);
            }
            Findings::Fairness(fairness) => {
                line(&mut text, "load", &[&self.workload]);
                text.push('\n');
                head(&mut text, "small, ms");
                latency_line(&mut text, "idle", &fairness.idle.latency_ms);
                for round in &fairness.rounds {
                    let name = format!("with {} bulk", round.bulk_clients);
                    latency_line(&mut text, &name, &round.small.latency_ms);
                }
                text.push('\n');
                head(&mut text, "bulk, ms");
                for round in &fairness.rounds {
                    latency_line(&mut text, &bulk_clients(round), &round.bulk.latency_ms);
                }
                text.push('\n');
                for round in &fairness.rounds {
                    round_line(&mut text, round);
                }
            }
            Findings::Stream(stream) => {
                line(&mut text, "load", &[&self.workload]);
                text.push('\n');
                head(&mut text, "ms");
                latency_line(&mut text, "bulk, idle", &stream.idle.latency_ms);
                latency_line(&mut text, "with stream", &stream.beside.latency_ms);
                latency_line(&mut text, "stream", &stream.small.latency_ms);
                status_line(&mut text, &stream.beside);
                let slowdown = stream.slowdown.map_or("unknown".to_owned(), |ratio| {
                    format!(
                        "{ratio:.2} times the latency alone ({:.0} ms and {:.0} ms)",
                        stream.beside.latency_ms.p50, stream.idle.latency_ms.p50
                    )
                });
                let _ = writeln!(
                    text,
                    "\nbulk requests next to {} small clients ({:.1} requests/s): {slowdown}",
                    stream.small_clients, stream.small.requests_per_second,
                );
            }
            Findings::Overload(overload) => {
                let offered = format!(
                    "{}{documents}, {:.1} requests/s",
                    self.workload, overload.offered_requests_per_second
                );
                line(&mut text, "load", &[&offered]);
                let capacity = format!("{:.1} pairs/s", overload.capacity_pairs_per_second);
                line(&mut text, "capacity", &[&capacity]);
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
    if kept { "kept" } else { "NOT KEPT" }
}

fn bulk_clients(round: &Round) -> String {
    match round.bulk_clients {
        1 => "1 client".to_owned(),
        clients => format!("{clients} clients"),
    }
}

fn round_line(text: &mut String, round: &Round) {
    let latency = &round.small.latency_ms;
    let _ = writeln!(
        text,
        "{} in bulk, {:.1} pairs/s, {} refused; small {} answered, {} refused, median {:.1} ms \
         (limit {:.1}), p99 {:.1} ms (limit {:.1}): {}",
        bulk_clients(round),
        round.bulk.pairs_per_second,
        round.bulk_refused,
        round.answered,
        round.refused,
        latency.p50,
        round.median_limit_ms,
        latency.p99,
        round.p99_limit_ms,
        kept(round.kept),
    );
}

fn summary_lines(text: &mut String, summary: &Summary) {
    head(text, "ms");
    latency_line(text, "answered", &summary.latency_ms);
    if summary.refusal_ms.count > 0 {
        latency_line(text, "refused", &summary.refusal_ms);
    }
    status_line(text, summary);
    let pairs = format!("{:.1}", summary.pairs_per_second);
    line(text, "pairs/s", &[&pairs]);
    if let Some(tokens) = summary.tokens_per_second {
        line(text, "tokens/s", &[&format!("{tokens:.0}")]);
    }
    let requests = format!("{:.2}", summary.requests_per_second);
    line(text, "requests/s", &[&requests]);
}

fn status_line(text: &mut String, summary: &Summary) {
    let counts: Vec<String> = summary
        .statuses
        .iter()
        .map(|(status, count)| format!("{status}: {count}"))
        .collect();
    line(text, "statuses", &[&counts.join(", ")]);
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

fn line(text: &mut String, name: &str, cells: &[impl AsRef<str>]) {
    let _ = write!(text, "{name:<13}");
    cells.iter().for_each(|cell| text.push_str(cell.as_ref()));
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::{Outcome, Sample, Window};
    use serde_json::json;

    fn summary(latency_ms: u64) -> Summary {
        let sample = Sample {
            intended: Duration::ZERO,
            sent: Duration::ZERO,
            done: Duration::from_millis(latency_ms),
            outcome: Outcome::Answered { tokens: Some(46) },
            pairs: 2,
            tokens: 46,
        };
        let window = Window::new(Duration::ZERO, Duration::from_secs(1));
        Summary::of(&[sample], window)
    }

    fn report(findings: Findings) -> Report {
        Report {
            version: "0.0.0",
            target: "in process".to_owned(),
            info: json!({ "model_id": "m", "precision": "int8", "threads": 2 }),
            workload: "short".to_owned(),
            documents: Some(2),
            seed: 1,
            findings,
        }
    }

    fn steady(budget: Option<Budget>) -> Report {
        report(Findings::Steady {
            pace: Pace::Clients(4),
            summary: summary(250),
            budget,
        })
    }

    #[test]
    fn the_table_ends_with_the_conclusion() {
        let mut search = Search::new(1000);
        search.learn(40, true);
        search.learn(41, false);
        let budget = Budget::new(Duration::from_millis(200), &search);
        let expected = "\
target       in process
serving      model m, precision int8, threads 2
load         short, 2 documents per request, 4 clients

ms               count      p50      p90      p95      p99    p99.9      max
answered             1    250.1    250.1    250.1    250.1    250.1    250.1
statuses     200: 1
pairs/s      2.0
tokens/s     46
requests/s   1.00

at p95 <= 200 ms you can rerank 40 documents of this kind
";
        assert_eq!(steady(Some(budget)).table(), expected);
    }

    #[test]
    fn the_table_of_fairness_has_a_line_for_each_number_of_bulk_clients() {
        let rounds = vec![
            (1, summary(20), summary(400)),
            (8, summary(90), summary(400)),
        ];
        let fairness = Fairness::new(summary(10), rounds);
        let table = report(Findings::Fairness(Box::new(fairness))).table();
        let expected = "\
1 client in bulk, 2.0 pairs/s, 0 refused; small 1 answered, 0 refused, median 20.0 ms (limit 50.0), \
p99 20.0 ms (limit 110.0): kept
8 clients in bulk, 2.0 pairs/s, 0 refused; small 1 answered, 0 refused, median 90.0 ms (limit 70.0), \
p99 90.0 ms (limit 110.0): NOT KEPT
";
        assert!(table.ends_with(expected), "{table}");
    }

    #[test]
    fn the_table_of_a_stream_ends_with_the_slowdown() {
        let stream = Stream::new(4, summary(200), summary(300), summary(10));
        let table = report(Findings::Stream(Box::new(stream))).table();
        let expected = "\
bulk requests next to 4 small clients (1.0 requests/s): 1.50 times the latency alone (300 ms and 200 ms)
";
        assert!(table.ends_with(expected), "{table}");
    }

    #[test]
    fn the_sentence_claims_no_more_than_was_measured() {
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
    fn json_has_the_same_results() {
        let value = serde_json::to_value(steady(None)).unwrap();
        assert_eq!(value["steady"]["pace"]["clients"], 4);
        assert_eq!(value["steady"]["summary"]["statuses"]["200"], 1);
        assert_eq!(value["steady"]["summary"]["pairs_per_second"], 2.0);
        assert_eq!(value["info"]["precision"], "int8");
    }
}
