//! The page at `/`: a place to try a ranking, and to watch the server work. Its files are compiled in;
//! it loads nothing from elsewhere and talks to this server only.

use std::borrow::Cow;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::admin::{self, Verbose};
use super::state::AppState;
use crate::config::PathPrefix;

/// One file of the page.
struct File {
    path: &'static str,
    content_type: &'static str,
    text: &'static str,
}

macro_rules! file {
    ($name:literal, $content_type:literal) => {
        File {
            path: concat!("/page/", $name),
            content_type: $content_type,
            text: include_str!(concat!("page/", $name)),
        }
    };
}

const INDEX: File = file!("index.html", "text/html; charset=utf-8");
const PARTS: [File; 7] = [
    file!("page.css", "text/css; charset=utf-8"),
    file!("theme.js", "text/javascript; charset=utf-8"),
    file!("server.js", "text/javascript; charset=utf-8"),
    file!("ranking.js", "text/javascript; charset=utf-8"),
    file!("live.js", "text/javascript; charset=utf-8"),
    file!("page.js", "text/javascript; charset=utf-8"),
    file!("icon.svg", "image/svg+xml"),
];

/// Files and answers of this server and nothing else; no markup made of text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'";

impl File {
    fn answer(&self) -> Response {
        self.answer_with(self.text.into())
    }

    fn answer_with(&self, text: Cow<'static, str>) -> Response {
        let headers: [(HeaderName, &str); 5] = [
            (header::CONTENT_TYPE, self.content_type),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            // Another version of the server has other files under the same names.
            (header::CACHE_CONTROL, "no-cache"),
        ];
        (headers, text).into_response()
    }
}

/// What the page is made of, but for `/` itself.
pub fn routes() -> Router<AppState> {
    PARTS.iter().fold(Router::new(), |routes, part| {
        routes.route(part.path, get(async || part.answer()))
    })
}

/// The markup below `prefix`. Its links are relative, which leads astray where the page's own path is the prefix
/// without a slash at its end.
fn index(prefix: &PathPrefix) -> Cow<'static, str> {
    let prefix = prefix.as_str();
    if prefix.is_empty() {
        return INDEX.text.into();
    }
    let links = ["page/", "docs/", "metrics"];
    let text = links.iter().fold(INDEX.text.to_owned(), |text, link| {
        text.replace(&format!("=\"{link}"), &format!("=\"{prefix}/{link}"))
    });
    text.into()
}

/// `GET /`: the page for those who read HTML, [`admin::ready`] for everybody else: some clients probe it.
pub async fn root(state: State<AppState>, verbose: Verbose, headers: HeaderMap) -> Response {
    let config = &state.config().http;
    let mut response = if config.page && reads_html(&headers) {
        INDEX.answer_with(index(&config.path_prefix))
    } else {
        admin::ready(state, verbose).await.into_response()
    };
    let vary = HeaderValue::from_static("accept");
    response.headers_mut().append(header::VARY, vary);
    response
}

/// Whether `text/html` itself is among what is accepted. Probes send `*/*`, or nothing.
fn reads_html(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(is_html)
}

fn is_html(range: &str) -> bool {
    let mut parts = range.split(';').map(str::trim);
    let html = parts
        .next()
        .is_some_and(|kind| kind.eq_ignore_ascii_case("text/html"));
    // A weight of nothing means "not this".
    let refused = parts.any(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        name.trim().eq_ignore_ascii_case("q") && value.trim().parse() == Ok(0.0_f32)
    });
    html && !refused
}
