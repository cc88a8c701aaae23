//! Pairs of two lists, of which the first may be a single query.

use std::sync::Arc;

use rerankd_core::{Pair, RerankError};

/// Pairs each query with the document at its place, or a single query with every document.
///
/// # Errors
/// If the lists do not fit together, with what `uneven` says of their lengths.
pub fn pairs(
    queries: Vec<String>,
    documents: Vec<String>,
    uneven: impl FnOnce(usize, usize) -> String,
) -> Result<Vec<Pair>, RerankError> {
    let mut queries: Vec<Arc<str>> = queries.into_iter().map(Arc::from).collect();
    match queries.len() {
        1 => queries = vec![queries[0].clone(); documents.len()],
        count if count == documents.len() => {}
        count => return Err(RerankError::invalid(uneven(count, documents.len()))),
    }
    let pair = |(query, document): (Arc<str>, String)| Pair {
        query,
        document: document.into(),
    };
    Ok(queries.into_iter().zip(documents).map(pair).collect())
}
