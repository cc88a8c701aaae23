//! Paths as clients write them: some add what their user already wrote.

use axum::extract::Request;
use axum::http::Uri;

/// What clients put after their base URL, if the user's URL already ends in it.
const RERANK: &str = "/rerank";
const VERSIONS: [&str; 2] = ["/v1", "/v2"];

/// Paths of which every slash counts: files for browsers.
const FILES: [&str; 2] = ["/docs", "/page/"];

/// The request at the path that its client means.
pub async fn canonical(mut request: Request) -> Request {
    if let Some(path) = meant(request.uri().path()) {
        let mut parts = request.uri().clone().into_parts();
        let path = match request.uri().query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        parts.path_and_query = path.parse().ok();
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
    request
}

/// `path` without slashes that are too many, and without what stands in it twice; `None` where it is
/// already so.
fn meant(path: &str) -> Option<String> {
    if FILES.iter().any(|files| path.starts_with(files)) {
        return None;
    }
    let segments: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let mut short = format!("/{}", segments.join("/"));
    for version in VERSIONS {
        short = short.replacen(&format!("/v1{version}/"), &format!("{version}/"), 1);
    }
    if let Some(base) = short.strip_suffix(RERANK) {
        let version = VERSIONS.into_iter().find(|version| base.ends_with(version));
        let version = version.unwrap_or_default();
        if let Some(users) = base.strip_suffix(version)?.strip_suffix(RERANK) {
            short = match version {
                "" => base.to_owned(),
                // The client's version, and not the one that its user wrote.
                version => {
                    let own = VERSIONS.iter().find_map(|own| users.strip_suffix(own));
                    format!("{}{version}{RERANK}", own.unwrap_or(users))
                }
            };
        }
    }
    (short != path).then_some(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_twice_counts_once() {
        for (path, expected) in [
            ("/v1/rerank/", "/v1/rerank"),
            ("//v1/rerank", "/v1/rerank"),
            ("/v1//rerank//", "/v1/rerank"),
            ("/v1/v1/rerank", "/v1/rerank"),
            ("/v1/v2/rerank", "/v2/rerank"),
            ("/voyage/v1/v1/rerank", "/voyage/v1/rerank"),
            ("/rerank/rerank", "/rerank"),
            ("/v1/rerank/rerank", "/v1/rerank"),
            ("/v1/rerank/v1/rerank", "/v1/rerank"),
            ("/v1/rerank/v2/rerank", "/v2/rerank"),
            ("/vllm/v1/rerank/rerank", "/vllm/v1/rerank"),
            ("/v1/v1/models", "/v1/models"),
            ("/health/", "/health"),
            ("//", "/"),
        ] {
            assert_eq!(meant(path).as_deref(), Some(expected), "{path}");
        }
        for path in [
            "/",
            "/rerank",
            "/v1/rerank",
            "/v1/reranking",
            "/v2/models/v1/infer",
            "/docs/",
            "/page/page.js",
            "/api/v1/services/rerank/text-rerank/text-rerank",
        ] {
            assert_eq!(meant(path), None, "{path}");
        }
    }

    #[tokio::test]
    async fn the_query_stays() {
        let request = Request::get("/health/?a=b").body(Default::default());
        let request = canonical(request.unwrap()).await;
        assert_eq!(request.uri(), "/health?a=b");
        let request = Request::get("http://h/health/").body(Default::default());
        let request = canonical(request.unwrap()).await;
        assert_eq!(request.uri(), "http://h/health");
    }
}
