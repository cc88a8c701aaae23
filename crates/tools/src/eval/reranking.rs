//! Evaluates rankings against relevance judgments.

use std::collections::HashMap;
use std::ops::Range;

use super::EvalError;
use super::data::{Qrels, Run, Texts};
use super::first_stage::Bm25;
use super::metric::{Judged, best_first};
use rerankd_core::{FirstStage, Fusion, FusionMethod, FusionWeight};

/// Settings of a reranking evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Cutoff ranks of the figures.
    pub cutoffs: Vec<usize>,
    /// Number of first-stage documents to rerank per query.
    pub depth: usize,
    /// Minimum grade that counts as relevant for binary figures.
    pub relevant_from: u32,
    /// Whether to also rerank relevant documents that the first stage missed.
    pub add_relevant: bool,
}

/// Queries and their candidates.
#[derive(Debug)]
pub struct Task<'a> {
    /// Judged queries, sorted by id.
    pub queries: Vec<Query<'a>>,
    /// Number of judged queries without a text.
    pub without_text: usize,
    settings: &'a Settings,
}

/// A query and its candidates.
#[derive(Debug)]
pub struct Query<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its text.
    pub text: &'a str,
    /// Documents to rerank.
    pub candidates: Vec<Candidate<'a>>,
    judgments: &'a HashMap<String, i64>,
}

/// A document to rerank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its text.
    pub text: &'a str,
    /// Its first-stage score; `None` if the first stage missed it.
    pub first_stage: Option<f64>,
}

/// A part of the queries, which are sorted by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of them.
    All,
    /// Every other one, from the first: what a weight is fitted on.
    Fitted,
    /// The others, held out.
    HeldOut,
}

impl Part {
    fn has(self, number: usize) -> bool {
        match self {
            Self::All => true,
            Self::Fitted => number.is_multiple_of(2),
            Self::HeldOut => !number.is_multiple_of(2),
        }
    }

    /// How many of `queries` it has.
    pub fn len(self, queries: usize) -> usize {
        (0..queries).filter(|number| self.has(*number)).count()
    }
}

/// The weights that are tried, ascending.
const WEIGHTS: [f64; 17] = [
    0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0,
];

/// Means over queries. Lists have one figure per cutoff.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// Normalized discounted cumulative gain.
    pub ndcg: Vec<f64>,
    /// Mean reciprocal rank.
    pub mrr: Vec<f64>,
    /// Recall.
    pub recall: Vec<f64>,
    /// Mean average precision, without a cutoff.
    pub map: f64,
}

impl<'a> Task<'a> {
    /// Candidates come from `run`, or from BM25 over `corpus` if there is none. Queries without a text
    /// are counted and skipped, because partial collections are common.
    ///
    /// # Errors
    /// [`EvalError::Data`] when no query is left, or a candidate has no text.
    pub fn new(
        corpus: &'a Texts,
        queries: &'a Texts,
        qrels: &'a Qrels,
        run: Option<&'a Run>,
        settings: &'a Settings,
    ) -> Result<Self, EvalError> {
        let documents: HashMap<&str, &str> = texts_by_id(corpus);
        let texts = texts_by_id(queries);
        let bm25 = run.is_none().then(|| Bm25::new(&corpus.items));
        let mut found = Vec::new();
        for (id, judgments) in qrels {
            let Some(&text) = texts.get(id.as_str()) else {
                continue;
            };
            let mut candidates: Vec<(&str, Option<f64>)> = match (&bm25, run) {
                (Some(bm25), _) => bm25
                    .search(text, settings.depth)
                    .into_iter()
                    .map(|(number, score)| (corpus.items[number].0.as_str(), Some(score)))
                    .collect(),
                (None, run) => results(run.and_then(|run| run.get(id)), settings.depth),
            };
            if settings.add_relevant {
                let missed = missed(judgments, &candidates, settings.relevant_from);
                candidates.extend(missed.into_iter().map(|id| (id, None)));
            }
            let candidates = candidates
                .into_iter()
                .map(|(document, first_stage)| {
                    let text = documents.get(document).ok_or_else(|| {
                        EvalError::Data(format!(
                            "the document `{document}` of the query `{id}` is not in the corpus"
                        ))
                    })?;
                    Ok(Candidate {
                        id: document,
                        text,
                        first_stage,
                    })
                })
                .collect::<Result<_, EvalError>>()?;
            found.push(Query {
                id,
                text,
                candidates,
                judgments,
            });
        }
        if found.iter().all(|query| query.candidates.is_empty()) {
            return Err(EvalError::Data(
                "no judged query has a text and a document to rank; hint: queries, corpus, judgments \
                 and run must use the same ids"
                    .to_owned(),
            ));
        }
        Ok(Self {
            without_text: qrels.len() - found.len(),
            queries: found,
            settings,
        })
    }

    /// Number of pairs to score.
    pub fn pairs(&self) -> usize {
        self.queries.iter().map(|q| q.candidates.len()).sum()
    }

    /// Figures of the first stage on a part of the queries. Documents that it missed are not in its ranking.
    pub fn first_stage(&self, part: Part) -> Figures {
        self.figures(part, |query, _| {
            let scored = query.candidates.iter();
            scored.filter_map(|c| Some((c, c.first_stage?))).collect()
        })
    }

    /// Figures of `scores` on a part of the queries. There is one score per candidate, query by query.
    pub fn reranked(&self, scores: &[f64], part: Part) -> Figures {
        self.figures(part, |query, candidates| {
            let own = scores[candidates].iter().copied();
            query.candidates.iter().zip(own).collect()
        })
    }

    /// `logits` combined with the scores of the first stage, as a reranking with `fusion` does. A query of
    /// which the first stage found nothing keeps its logits.
    pub fn fused(&self, logits: &[f64], method: FusionMethod, weight: FusionWeight) -> Vec<f64> {
        let mut fused = Vec::with_capacity(logits.len());
        let mut rest = logits;
        for query in &self.queries {
            let (own, others) = rest.split_at(query.candidates.len());
            rest = others;
            let scores = query
                .candidates
                .iter()
                .map(|candidate| candidate.first_stage);
            let first_stage = FirstStage::Scores(scores.collect());
            match Fusion::new(method, weight, first_stage, "candidates") {
                Ok(fusion) => {
                    #[allow(clippy::cast_possible_truncation, reason = "they were f32 before")]
                    let own: Vec<f32> = own.iter().map(|&logit| logit as f32).collect();
                    fused.extend(fusion.combine(&own));
                }
                Err(_) => fused.extend(own),
            }
        }
        fused
    }

    /// The weight of the first stage that gives the best NDCG at the first cutoff on one half of the queries.
    /// Of equal ones, it is the smallest.
    pub fn fit(&self, logits: &[f64], method: FusionMethod) -> FusionWeight {
        let mut best = (f64::NEG_INFINITY, FusionWeight::default());
        for weight in WEIGHTS.into_iter().filter_map(FusionWeight::new) {
            let fused = self.fused(logits, method, weight);
            let ndcg = self.reranked(&fused, Part::Fitted).ndcg[0];
            if ndcg > best.0 {
                best = (ndcg, weight);
            }
        }
        best.1
    }

    /// Means over a part of the queries. `scored` is called for each with the range of its candidates.
    fn figures<'b>(
        &'b self,
        part: Part,
        mut scored: impl FnMut(&'b Query<'a>, Range<usize>) -> Vec<(&'b Candidate<'a>, f64)>,
    ) -> Figures {
        let mut end = 0;
        let ranges = self.queries.iter().map(|query| {
            let start = end;
            end += query.candidates.len();
            (query, start..end)
        });
        let judged: Vec<Judged> = ranges
            .enumerate()
            .filter(|(number, _)| part.has(*number))
            .map(|(_, (query, candidates))| {
                let mut ranking = scored(query, candidates);
                ranking.sort_by(|a, b| best_first((a.1, a.0.id), (b.1, b.0.id)));
                let relevance = |id: &str| query.judgments.get(id).copied().unwrap_or(0);
                Judged::new(
                    ranking.iter().map(|(candidate, _)| relevance(candidate.id)),
                    query.judgments.values().copied(),
                    self.settings.relevant_from,
                )
            })
            .collect();
        let mean = |figure: &dyn Fn(&Judged) -> f64| {
            judged.iter().map(figure).sum::<f64>() / judged.len() as f64
        };
        let at_each = |figure: fn(&Judged, usize) -> f64| {
            let cutoffs = self.settings.cutoffs.iter();
            cutoffs
                .map(|&k| mean(&|judged| figure(judged, k)))
                .collect()
        };
        Figures {
            ndcg: at_each(Judged::ndcg),
            mrr: at_each(Judged::reciprocal_rank),
            recall: at_each(Judged::recall),
            map: mean(&Judged::average_precision),
        }
    }
}

fn texts_by_id(texts: &Texts) -> HashMap<&str, &str> {
    let items = texts.items.iter();
    items
        .map(|(id, text)| (id.as_str(), text.as_str()))
        .collect()
}

/// The top `depth` results of one query.
fn results(results: Option<&Vec<(String, f64)>>, depth: usize) -> Vec<(&str, Option<f64>)> {
    let mut results: Vec<(&str, f64)> = results
        .into_iter()
        .flatten()
        .map(|(id, score)| (id.as_str(), *score))
        .collect();
    results.sort_by(|a, b| best_first((a.1, a.0), (b.1, b.0)));
    results.truncate(depth);
    let results = results.into_iter();
    results.map(|(id, score)| (id, Some(score))).collect()
}

/// Relevant documents that are not candidates, sorted by id.
fn missed<'a>(
    judgments: &'a HashMap<String, i64>,
    candidates: &[(&str, Option<f64>)],
    relevant_from: u32,
) -> Vec<&'a str> {
    let mut missed: Vec<&str> = judgments
        .iter()
        .filter(|&(_, &relevance)| relevance >= i64::from(relevant_from.max(1)))
        .map(|(id, _)| id.as_str())
        .filter(|id| candidates.iter().all(|(found, _)| found != id))
        .collect();
    missed.sort_unstable();
    missed
}
