//! The models that are served, by name.

use std::sync::Arc;

use rerankd_engine::service::Reranker;
use rerankd_wire::ServedModel;

/// A model that is served.
pub struct LoadedModel {
    /// Answers its requests.
    pub reranker: Arc<Reranker>,
    /// Other names of it.
    pub aliases: Vec<String>,
}

/// A model that is configured and not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedModel {
    /// Its name.
    pub name: String,
    /// Other names of it.
    pub aliases: Vec<String>,
    /// Why it is not served.
    pub reason: String,
}

/// The models that are served from one moment to the next. Requests keep the set that they began with.
pub struct Models {
    /// In the order of the settings; never empty.
    catalog: Vec<ServedModel>,
    rerankers: Vec<Arc<Reranker>>,
    default: usize,
    failed: Vec<FailedModel>,
    /// All names of those that failed.
    failed_names: Vec<String>,
}

impl Models {
    /// `loaded` models, of which the one at `default` answers requests that name none.
    ///
    /// # Panics
    /// When there is no such model.
    pub fn new(loaded: Vec<LoadedModel>, default: usize, failed: Vec<FailedModel>) -> Self {
        assert!(
            default < loaded.len(),
            "the default model is one that is served"
        );
        let (catalog, rerankers) = loaded
            .into_iter()
            .map(|LoadedModel { reranker, aliases }| {
                let info = reranker.info();
                let model = ServedModel {
                    name: info.id.clone(),
                    aliases,
                    labels: info.labels.clone(),
                };
                (model, reranker)
            })
            .unzip();
        let failed_names = failed.iter().flat_map(|failed| {
            let aliases = failed.aliases.iter();
            aliases.chain(std::iter::once(&failed.name)).cloned()
        });
        Self {
            catalog,
            rerankers,
            default,
            failed_names: failed_names.collect(),
            failed,
        }
    }

    /// One model, which answers every request.
    pub fn one(reranker: Arc<Reranker>) -> Self {
        let aliases = Vec::new();
        Self::new(vec![LoadedModel { reranker, aliases }], 0, Vec::new())
    }

    /// The names of the models.
    pub fn catalog(&self) -> &[ServedModel] {
        &self.catalog
    }

    /// The model at this place of the catalog.
    pub fn at(&self, place: usize) -> &Arc<Reranker> {
        &self.rerankers[place]
    }

    /// All models, in the order of the catalog.
    pub fn all(&self) -> &[Arc<Reranker>] {
        &self.rerankers
    }

    /// The place of the default model.
    pub fn default(&self) -> usize {
        self.default
    }

    /// The models that are configured and not served.
    pub fn failed(&self) -> &[FailedModel] {
        &self.failed
    }

    /// All names and aliases of the models that are configured and not served.
    pub fn failed_names(&self) -> &[String] {
        &self.failed_names
    }

    /// Whether requests can choose between several models.
    pub fn are_several(&self) -> bool {
        self.rerankers.len() + self.failed.len() > 1
    }
}
