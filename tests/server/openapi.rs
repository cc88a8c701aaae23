//! The OpenAPI document matches the code and the routes.

use std::collections::BTreeSet;

use crate::support::fake::Model;
use crate::support::server::TestApp;
use axum::body::Body;
use axum::http::Request;
use rerankd::config::{ApiKeys, Config, Value};
use rerankd::http::{openapi, route};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml");

/// `RERANKD_UPDATE=1` regenerates the file.
#[test]
fn the_file_is_what_the_code_says() {
    let said = openapi::yaml();
    if std::env::var_os("RERANKD_UPDATE").is_some() {
        std::fs::write(FILE, &said).unwrap();
    }
    let held = std::fs::read_to_string(FILE).unwrap();
    assert!(
        held == said,
        "openapi.yaml is old; run `RERANKD_UPDATE=1 cargo test --test server openapi`"
    );
}

#[test]
fn every_reference_leads_somewhere() {
    let document = openapi::value();
    let text = document.to_string();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let mut seen = 0;
    for part in text.split("#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name}");
        seen += 1;
    }
    assert!(seen > 100, "{seen}");
}

/// Every route is documented and served, and its responses are documented.
#[tokio::test]
async fn routes_and_descriptions_are_the_same() {
    // Server reflection describes the methods of gRPC.
    let routes = route::all().filter(|route| !route.is_method());
    let routes: BTreeSet<&str> = routes.map(|route| route.path).collect();
    let document = openapi::value();
    let paths = document["paths"].as_object().unwrap();
    let described: BTreeSet<&str> = paths.keys().map(String::as_str).collect();
    assert_eq!(routes, described);

    let app = TestApp::default();
    for (path, item) in paths {
        for method in item.as_object().unwrap().keys() {
            let method = method.to_uppercase();
            let request = Request::builder().method(method.as_str()).uri(path);
            let answer = app.send(request.body(Body::empty()).unwrap()).await;
            let status = answer.status.as_u16();
            let described = &item[method.to_lowercase()]["responses"][status.to_string()];
            assert!(described.is_object(), "{method} {path} gave {status}");
        }
    }
}

/// Every protected route rejects unauthorized requests as documented.
#[tokio::test]
async fn refusals_of_keys_and_origins_are_described() {
    let mut config = Config::default();
    config.http.api_keys = ApiKeys::parse("a-key-of-somebody").unwrap();
    let (keyed, open) = (TestApp::new(Model::default(), config), TestApp::default());
    let document = openapi::value();
    let mut refused = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let request = |origin: &str| {
                Request::builder()
                    .method(method.to_uppercase().as_str())
                    .uri(path)
                    .header("origin", origin)
                    .body(Body::empty())
                    .unwrap()
            };
            for app in [&keyed, &open] {
                let answer = app.send(request("https://a.example")).await;
                let status = answer.status.as_u16();
                let described = &item[method]["responses"][status.to_string()];
                assert!(described.is_object(), "{method} {path} gave {status}");
                refused += usize::from(matches!(status, 401 | 403));
            }
        }
    }
    assert!(refused > 40, "{refused}");
}

#[tokio::test]
async fn the_description_and_its_page_are_served() {
    let app = TestApp::default();
    let answer = app.get("/openapi.json").await;
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.json(), openapi::value());
    let page = app.get("/docs/").await;
    assert_eq!(page.status, 200);
    assert!(page.body.contains("swagger-ui"), "{}", page.body);
    let script = app.get("/docs/swagger-ui-bundle.js").await;
    assert_eq!(script.status, 200);
    assert!(script.body.len() > 100_000);
    let script = app.get("/docs/swagger-initializer.js").await;
    assert!(script.body.contains("/openapi.json"), "{}", script.body);
}
