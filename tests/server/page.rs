//! The page at `/`: content negotiation and security policy. `tests/browser/` drives it.

use crate::support::server::{Answer, TestApp};
use axum::body::Body;
use axum::http::Request;
use rerankd::config::Config;
use rerankd::http::openapi;

const CHROMIUM: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,\
                        image/webp,image/apng,*/*;q=0.8";

async fn accepting(app: &TestApp, accept: &[&str]) -> Answer {
    let mut request = Request::get("/");
    for value in accept {
        request = request.header("accept", *value);
    }
    app.send(request.body(Body::empty()).unwrap()).await
}

/// The directives of a policy, by name.
fn policy(answer: &Answer) -> Vec<(&str, &str)> {
    let header = answer.header("content-security-policy");
    header
        .split("; ")
        .map(|directive| directive.split_once(' ').unwrap())
        .collect()
}

#[tokio::test]
async fn the_page_is_for_those_who_read_html() {
    let app = TestApp::default();
    for accept in [
        &[CHROMIUM][..],
        &["text/html"],
        &["TEXT/HTML"],
        &["application/json, text/html;level=1;q=0.2"],
        &["application/json", "text/html"],
    ] {
        let answer = accepting(&app, accept).await;
        assert_eq!(answer.status, 200, "{accept:?}");
        assert_eq!(answer.header("content-type"), "text/html; charset=utf-8");
        assert!(answer.body.contains("<title>rerankd</title>"), "{accept:?}");
        assert_eq!(answer.header("vary"), "accept");
    }
}

#[tokio::test]
async fn probes_of_the_root_get_what_health_answers() {
    let health = TestApp::default().get("/health").await;
    for accept in [
        &[][..],
        &["*/*"],
        &["text/*"],
        &["application/json"],
        &["text/html;q=0"],
        &["text/html; Q=0.000, */*"],
        &["application/xhtml+xml, x-text/html, text/htmlx"],
    ] {
        let answer = accepting(&TestApp::default(), accept).await;
        assert_eq!(answer.status, 200, "{accept:?}");
        assert_eq!(answer.body, health.body, "{accept:?}");
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.header("vary"), "accept");
    }
    let app = TestApp::starting(Config::default());
    accepting(&app, &["*/*"]).await.error(503, "not_ready");
}

/// The page shows the progress of loading, so it must be served before the model is ready.
#[tokio::test]
async fn the_page_is_there_while_the_model_loads() {
    let app = TestApp::starting(Config::default());
    let answer = accepting(&app, &[CHROMIUM]).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("<title>rerankd</title>"));
}

#[tokio::test]
async fn a_page_that_is_off_is_for_nobody() {
    let mut config = Config::default();
    config.http.page = false;
    let app = TestApp::starting(config);
    let answer = accepting(&app, &[CHROMIUM]).await;
    answer.error(503, "not_ready");
    app.load(crate::support::fake::Model::default());
    let answer = accepting(&app, &[CHROMIUM]).await;
    assert_eq!(answer.body, app.get("/health").await.body);
}

#[tokio::test]
async fn the_page_loads_and_asks_this_server_only() {
    let app = TestApp::default();
    let page = accepting(&app, &[CHROMIUM]).await;
    let policy = policy(&page);
    assert!(policy.contains(&("default-src", "'none'")));
    for directive in ["base-uri", "form-action", "frame-ancestors"] {
        assert!(policy.contains(&(directive, "'none'")), "{directive}");
    }
    for directive in ["script-src", "style-src", "img-src", "connect-src"] {
        assert!(policy.contains(&(directive, "'self'")), "{directive}");
    }
    assert!(policy.contains(&("require-trusted-types-for", "'script'")));
    assert_eq!(policy.len(), 9, "{policy:?}");
    for inline in [
        "<style",
        " style=",
        " onclick=",
        "javascript:",
        "http:",
        "https:",
        "//",
    ] {
        assert!(!page.body.contains(inline), "{inline}");
    }
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert_eq!(page.header("referrer-policy"), "no-referrer");
}

/// Every file referenced by the page or its scripts is served with its content type.
#[tokio::test]
async fn the_page_is_whole() {
    let app = TestApp::default();
    let page = accepting(&app, &[CHROMIUM]).await;
    let mut waiting: Vec<String> = page
        .body
        .split('"')
        .filter(|text| text.starts_with("page/"))
        .map(|name| format!("/{name}"))
        .collect();
    let mut seen = Vec::new();
    while let Some(path) = waiting.pop() {
        if seen.contains(&path) {
            continue;
        }
        let answer = app.get(&path).await;
        assert_eq!(answer.status, 200, "{path}");
        let kind = match path.rsplit_once('.').unwrap().1 {
            "css" => "text/css; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            "svg" => "image/svg+xml",
            other => panic!("{other}"),
        };
        assert_eq!(answer.header("content-type"), kind, "{path}");
        assert_eq!(
            answer.header("content-security-policy"),
            page.header("content-security-policy")
        );
        let imports = answer
            .body
            .lines()
            .filter(|line| line.starts_with("import "));
        waiting.extend(imports.map(|line| {
            let name = line
                .split("\"./")
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap();
            format!("/page/{name}")
        }));
        seen.push(path);
    }
    assert_eq!(seen.len(), 7, "{seen:?}");
}

#[tokio::test]
async fn the_page_of_the_description_loads_from_this_server_only() {
    let app = TestApp::default();
    for path in ["/docs/", "/docs/swagger-ui-bundle.js"] {
        let answer = app.get(path).await;
        let policy = policy(&answer);
        assert!(policy.contains(&("default-src", "'none'")), "{path}");
        assert!(policy.contains(&("script-src", "'self'")), "{path}");
        assert!(policy.contains(&("connect-src", "'self'")), "{path}");
    }
    let script = app.get("/docs/swagger-initializer.js").await;
    assert!(
        script.body.contains(r#""validatorUrl": "none""#),
        "{}",
        script.body
    );
}

#[test]
fn the_description_names_both_answers_of_the_root() {
    let content = &openapi::value()["paths"]["/"]["get"]["responses"]["200"]["content"];
    let kinds: Vec<&String> = content.as_object().unwrap().keys().collect();
    assert_eq!(kinds, ["application/json", "text/html"]);
}
