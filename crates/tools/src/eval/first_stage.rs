//! What a reranker is given: documents that BM25 finds, where the user brings no run.

use bm25::{DefaultTokenizer, Embedder, EmbedderBuilder, Language, LanguageMode, Scorer};

use super::metric::best_first;

/// BM25 over a corpus of English texts: stop words left out, the rest stemmed.
pub struct Bm25<'a> {
    ids: Vec<&'a str>,
    embedder: Embedder<u32, DefaultTokenizer>,
    scorer: Scorer<usize>,
}

impl<'a> Bm25<'a> {
    /// Reads `corpus`, a list of ids and texts.
    pub fn new(corpus: &'a [(String, String)]) -> Self {
        let texts: Vec<&str> = corpus.iter().map(|(_, text)| text.as_str()).collect();
        let language = LanguageMode::Fixed(Language::English);
        let embedder = EmbedderBuilder::<u32>::with_fit_to_corpus(language, &texts).build();
        let mut scorer = Scorer::new();
        for (number, text) in texts.iter().enumerate() {
            scorer.upsert(&number, embedder.embed(text));
        }
        Self {
            ids: corpus.iter().map(|(id, _)| id.as_str()).collect(),
            embedder,
            scorer,
        }
    }

    /// Numbers and scores of the `depth` best documents that share a word with `query`.
    pub fn search(&self, query: &str, depth: usize) -> Vec<(usize, f64)> {
        let mut found: Vec<(usize, f64)> = self
            .scorer
            .matches(&self.embedder.embed(query))
            .into_iter()
            .map(|found| (found.id, f64::from(found.score)))
            .collect();
        // The crate leaves the order of equal scores to chance.
        found.sort_by(|a, b| best_first((a.1, self.ids[a.0]), (b.1, self.ids[b.0])));
        found.truncate(depth);
        found
    }
}
