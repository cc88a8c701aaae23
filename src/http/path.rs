//! Paths as clients write them, below the server's prefix: some add what their user already wrote.

use axum::extract::Request;
use axum::http::Uri;

use super::route;
use crate::config::PathPrefix;

/// What clients put after their base URL, if the user's URL already ends in it.
const RERANK: &str = "/rerank";
const VERSIONS: [&str; 2] = ["/v1", "/v2"];

/// Paths of which a slash at the end counts: files for browsers.
const FILES: [&str; 2] = ["/docs", "/page/"];

/// Where no route is: every other path has its double slashes removed.
const NOWHERE: &str = "//";

/// The request at the path that its client means, without `prefix`.
pub fn canonical(mut request: Request, prefix: &PathPrefix) -> Request {
    let path = request.uri().path();
    let canonical = match prefix.rest(path) {
        // Clients of gRPC have no way to put a prefix before a method.
        _ if route::is_method(path) => return request,
        None => NOWHERE.to_owned(),
        Some("") => "/".to_owned(),
        Some(rest) => meant(rest).unwrap_or_else(|| rest.to_owned()),
    };
    if canonical != path {
        let path = canonical;
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
    let segments: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let mut short = format!("/{}", segments.join("/"));
    if FILES.iter().any(|files| short.starts_with(files)) {
        if path.ends_with('/') {
            short.push('/');
        }
        return (short != path).then_some(short);
    }
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
    use crate::config::Value;

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
            ("//docs", "/docs"),
            ("//docs/", "/docs/"),
            ("/docs//", "/docs/"),
            ("/docs//index.html", "/docs/index.html"),
            ("/page//page.js", "/page/page.js"),
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

    fn at(uri: &str, prefix: &str) -> String {
        let request = Request::get(uri).body(Default::default()).unwrap();
        let prefix = match prefix {
            "" => PathPrefix::default(),
            text => PathPrefix::parse(text).unwrap(),
        };
        canonical(request, &prefix).uri().to_string()
    }

    #[test]
    fn the_query_stays() {
        assert_eq!(at("/health/?a=b", ""), "/health?a=b");
        assert_eq!(at("http://h/health/", ""), "http://h/health");
        assert_eq!(at("/a/health/?a=b", "/a"), "/health?a=b");
    }

    #[test]
    fn only_what_is_below_the_prefix_is_there() {
        for (path, expected) in [
            ("/a/b", "/"),
            ("/a/b/", "/"),
            ("/a/b//", "/"),
            ("//a//b//v1//rerank/", "/v1/rerank"),
            ("/a/b/docs/", "/docs/"),
            ("/a//b//docs/", "/docs/"),
            ("/a/b//docs", "/docs"),
            ("/a/b//page/page.js", "/page/page.js"),
            ("/a/b/a/b", "/a/b"),
            ("/a/bc/rerank", "//"),
            ("/a", "//"),
            ("/rerank", "//"),
            ("/", "//"),
            ("/a/b%2Frerank", "//"),
        ] {
            assert_eq!(at(path, "/a/b/"), expected, "{path}");
        }
    }
}
