//! First-stage retrieval with BM25, the default if there is no run.

use bm25::{DefaultTokenizer, Embedder, EmbedderBuilder, Language, LanguageMode, Scorer};

use super::metric::best_first;

/// BM25 over an English corpus, with stop words removed and stemming.
pub struct Bm25<'a> {
    ids: Vec<&'a str>,
    embedder: Embedder<u32, DefaultTokenizer>,
    scorer: Scorer<usize>,
}

impl<'a> Bm25<'a> {
    /// Indexes `corpus`, a list of ids and texts.
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

    /// Indices and scores of the top `depth` documents that share a word with `query`.
    pub fn search(&self, query: &str, depth: usize) -> Vec<(usize, f64)> {
        let mut found: Vec<(usize, f64)> = self
            .scorer
            .matches(&self.embedder.embed(query))
            .into_iter()
            .map(|found| (found.id, f64::from(found.score)))
            .collect();
        // The crate returns equal scores in random order.
        found.sort_by(|a, b| best_first((a.1, self.ids[a.0]), (b.1, self.ids[b.0])));
        found.truncate(depth);
        found
    }
}
