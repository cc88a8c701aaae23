//! Peak memory of a request is at most three times the size of its body, on every route.

use axum::body::Body;
use axum::http::{Method, Request, Version};
use http_body_util::BodyExt;
use rerankd::config::Config;
use rerankd::http::{openapi, route};
use rerankd_engine::metrics::resident_bytes;
use rerankd_grpc::METHODS;
use rerankd_grpc::frame::framed;
use serde_json::Value;
use tower::ServiceExt;

use crate::support::alone::{alone, peak_bytes};
use crate::support::fake::Model;
use crate::support::server::TestApp;

const BODY_BYTES: usize = 4 << 20;

/// Allowance for stacks, the runtime and the allocator.
const SLACK_BYTES: u64 = 2 << 20;

/// The list fields of requests to `path`, from the OpenAPI document.
fn lists(document: &Value, path: &str) -> Vec<String> {
    let request = &document["paths"][path]["post"]["requestBody"]["content"];
    let text = request["application/json"]["schema"].to_string();
    let names = text.split("#/components/schemas/").skip(1);
    let schemas =
        names.map(|rest| &document["components"]["schemas"][rest.split('"').next().unwrap()]);
    let mut lists: Vec<String> = schemas
        .flat_map(|schema| schema["properties"].as_object().unwrap())
        .filter(|(_, field)| {
            let text = field.to_string();
            text.contains(r#""array""#) || text.contains("$ref")
        })
        .map(|(name, _)| name.clone())
        .collect();
    lists.sort();
    lists.dedup();
    lists
}

/// `start`, as many `item`s as fit, and `end`.
fn filled(start: &str, item: &str, end: &str) -> String {
    let count = (BODY_BYTES - start.len() - end.len()) / (item.len() + 1);
    format!("{start}{}{end}", vec![item; count].join(","))
}

#[test]
fn a_body_of_many_small_items_costs_no_more_than_three_times_its_size() {
    alone(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let app = TestApp::new(Model::default(), Config::default());
            let document = openapi::value();
            let mut posted = 0;
            let routes = route::all().filter(|route| route.method == Method::POST);
            let routes = routes.filter(|route| !route.is_method());
            for route in routes {
                let lists = lists(&document, route.path);
                assert!(!lists.is_empty(), "{}", route.path);
                for (list, item) in lists.iter().flat_map(|list| {
                    let items = [r#"{"":0}"#, "[]", r#""""#];
                    items.into_iter().map(move |item| (list, item))
                }) {
                    let start = format!(r#"{{"query":"q","rank_fields":["a"],"{list}":["#);
                    let body = filled(&start, item, "]}");
                    let path = route.path.replace("{model}", "any");
                    let request = Request::post(path).body(Body::from(body)).unwrap();
                    let before = resident_bytes().unwrap();
                    peak_bytes();
                    let answer = app.send(request).await;
                    let grown = peak_bytes().saturating_sub(before);
                    // The body was allocated before.
                    let allowed = 2 * BODY_BYTES as u64 + SLACK_BYTES;
                    assert_ne!(answer.status, 200);
                    assert!(
                        grown <= allowed,
                        "{} took {grown} bytes for {list} of {item}: {}",
                        route.path,
                        answer.body
                    );
                    posted += 1;
                }
            }
            assert!(posted > 100, "{posted}");
        });
    });
}

/// The same in messages: an item of two bytes would take up to a hundred in a generated type.
#[test]
fn a_message_of_many_small_fields_costs_no_more_than_three_times_its_size() {
    alone(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let app = TestApp::new(Model::default(), Config::default());
            let item = |field: u8| [field << 3 | 2, 0];
            let many = |item: &[u8]| item.repeat((BODY_BYTES - 64) / item.len());
            // Inside a tensor, and inside its contents.
            let within = |field: u8, message: Vec<u8>| {
                let mut outer = vec![field << 3 | 2];
                prost::encode_length_delimiter(message.len(), &mut outer).unwrap();
                outer.extend(message);
                outer
            };
            let mut messages: Vec<Vec<u8>> = (1..8).map(|field| many(&item(field))).collect();
            messages.push(within(5, many(&item(3))));
            messages.push(within(5, within(3, many(&[1]))));
            messages.push(within(5, within(5, many(&item(8)))));
            let texts = within(5, within(5, item(8).repeat(1000)));
            messages.push(many(&texts));
            let methods = METHODS.iter().filter(|method| method.scores());
            for method in methods {
                let frames = messages.iter().map(|message| framed(message));
                for body in frames.chain([framed(b"").repeat(BODY_BYTES / 5)]) {
                    let request = Request::post(method.path)
                        .version(Version::HTTP_2)
                        .header("content-type", "application/grpc")
                        .body(Body::from(body))
                        .unwrap();
                    let before = resident_bytes().unwrap();
                    peak_bytes();
                    let response = app.router.clone().oneshot(request).await.unwrap();
                    response.into_body().collect().await.unwrap();
                    let grown = peak_bytes().saturating_sub(before);
                    let allowed = 2 * BODY_BYTES as u64 + SLACK_BYTES;
                    assert!(grown <= allowed, "{} took {grown} bytes", method.path);
                }
            }
        });
    });
}
