//! Compatibility cases of all dialects: a request as clients send it, and the exact response.
//!
//! The cases are data in `tests/compat/<dialect>/`. The fake model scores a document by its number of
//! words. `RERANKD_UPDATE=1` regenerates the responses; review the diff.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::support::fake::Model;
use crate::support::server::{Answer, TestApp};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request};
use rerankd::config::Config;
use rerankd::http::route::{self, Handler, Route};
use rerankd_core::Activation;
use rerankd_wire::Endpoint;
use rerankd_wire::detect::{detect, detect_by_headers};
use rerankd_wire::registry::endpoints;
use rerankd_wire::schema::Schemas;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A case.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    about: String,
    #[serde(default, skip_serializing_if = "Server::is_default")]
    pub server: Server,
    pub request: Sent,
    #[serde(default)]
    pub response: Received,
}

/// Non-default server settings.
#[derive(Serialize, Deserialize, Default, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    activation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_documents: Option<usize>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    strict_model_name: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rerank_document: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    return_documents: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    loading: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    failing: bool,
}

impl Server {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn start(&self) -> TestApp {
        let mut config = Config::default();
        let http = &mut config.http;
        http.max_documents = self.max_documents.unwrap_or(http.max_documents);
        http.strict_model_name = self.strict_model_name;
        http.return_documents = self.return_documents;
        if let Some(form) = &self.rerank_document {
            http.rerank_document = form.parse().unwrap();
        }
        let app = TestApp::starting(config);
        if !self.loading {
            app.load(Model {
                labels: self.labels.unwrap_or(1),
                activation: match self.activation.as_deref() {
                    Some("sigmoid") => Activation::Sigmoid,
                    _ => Activation::Identity,
                },
                logit: match self.failing {
                    true => |_| f32::NAN,
                    // So that no score is an integer or the number of words.
                    false => |words| words as f32 * 0.5 - 0.75,
                },
                ..Model::default()
            });
        }
        app
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sent {
    #[serde(default = "post", skip_serializing_if = "is_post")]
    method: String,
    path: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    /// JSON, or text sent verbatim.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    body: Value,
}

fn post() -> String {
    "POST".to_owned()
}

fn is_post(method: &str) -> bool {
    method == "POST"
}

impl Sent {
    async fn to(&self, app: &TestApp, body: &Value) -> Answer {
        let text = match body {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            body => body.to_string(),
        };
        let mut request = Request::builder()
            .method(self.method.as_str())
            .uri(&self.path)
            .header("x-request-id", "id-1");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        app.send(request.body(text.into()).unwrap()).await
    }
}

#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Received {
    pub status: u16,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub body: Value,
}

impl Received {
    fn of(answer: &Answer) -> Self {
        let told = ["retry-after", "retry-after-ms"];
        let header = |name: &&str| answer.headers.contains_key(*name);
        let mut body = match answer.body.is_empty() {
            true => Value::Null,
            false => answer.json(),
        };
        hide_time(&mut body);
        Self {
            status: answer.status.as_u16(),
            headers: told
                .into_iter()
                .filter(header)
                .map(|name| (name.to_owned(), answer.header(name).to_owned()))
                .collect(),
            body,
        }
    }
}

/// Replaces timestamps with a constant.
fn hide_time(body: &mut Value) {
    match body {
        Value::Object(object) => {
            for (key, value) in object {
                match key.as_str() {
                    "created" => *value = 0.into(),
                    _ => hide_time(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide_time),
        _ => {}
    }
}

/// Every case, with its file.
pub fn cases() -> Vec<(PathBuf, Case)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compat");
    let list = |dir: &Path| {
        let entries = std::fs::read_dir(dir).unwrap();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    };
    let files = list(&root).into_iter().flat_map(|dialect| list(&dialect));
    files
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let case = serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (path, case)
        })
        .collect()
}

#[tokio::test]
async fn every_case_gets_its_exact_answer() {
    let update = std::env::var_os("RERANKD_UPDATE").is_some();
    let mut failures = Vec::new();
    for (path, mut case) in cases() {
        let app = case.server.start();
        let received = Received::of(&case.request.to(&app, &case.request.body).await);
        if update {
            case.response = received;
            let text = serde_json::to_string_pretty(&case).unwrap() + "\n";
            std::fs::write(&path, text).unwrap();
            continue;
        }
        let (expected, received) = (
            serde_json::to_value(&case.response).unwrap(),
            serde_json::to_value(&received).unwrap(),
        );
        if expected != received {
            failures.push(format!(
                "{} ({})\nexpected {expected:#}\nreceived {received:#}",
                path.display(),
                case.about
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// The fields with lists of texts, over all dialects.
const LISTS: [&str; 9] = [
    "documents",
    "texts",
    "input",
    "pairs",
    "inputs",
    "text_2",
    "items",
    "data_2",
    "passages",
];

/// The texts of `body` in the field `list`, also of an object `input`; for tensors, those of `documents`.
fn texts<'a>(body: &'a mut Value, list: &str) -> Option<&'a mut Vec<Value>> {
    let body = match body.get("input") {
        Some(Value::Object(_)) => body.get_mut("input")?,
        _ => body,
    };
    let items = body.get_mut(list)?.as_array_mut()?;
    match items.iter().position(|item| item["name"] == "documents") {
        Some(tensor) => items[tensor].get_mut("data")?.as_array_mut(),
        None => Some(items),
    }
}

/// The cases would detect a server that ignores the order of texts or scores all alike: reversing the texts
/// changes the response.
#[tokio::test]
async fn no_case_is_blind_to_the_order_of_its_texts() {
    let mut checked = Vec::new();
    for (path, case) in cases() {
        if case.response.status != 200 {
            continue;
        }
        let mut body = case.request.body.clone();
        for list in LISTS {
            let Some(items) = texts(&mut body, list) else {
                continue;
            };
            if items.len() < 2 {
                continue;
            }
            items.reverse();
            let app = case.server.start();
            let turned = Received::of(&case.request.to(&app, &body).await);
            assert_eq!(turned.status, 200, "{}", path.display());
            assert_ne!(turned.body, case.response.body, "{}", path.display());
            checked.push(case.request.body.clone());
            break;
        }
    }
    // Each operation that scores shows such a case as its example.
    let mut schemas = Schemas::new();
    for endpoint in endpoints().filter(|endpoint| endpoint.operation.kind.scores()) {
        let example = (endpoint.operation.form)(&mut schemas).example;
        let body = &example["request"]["body"];
        assert!(checked.contains(body), "{}", endpoint.operation.name);
    }
}

/// The operation that reads the body of `sent`, where it is at one of the routes as it stands.
pub fn endpoint(sent: &Sent) -> Option<Endpoint> {
    let same = |route: &&Route| {
        let (own, asked) = (route.path.split('/'), sent.path.split('/'));
        route.method.as_str() == sent.method
            && own.clone().count() == asked.clone().count()
            && own
                .zip(asked)
                .all(|(own, asked)| own == asked || own.starts_with('{'))
    };
    let Handler::Operations(operations) = &route::all().find(same)?.handler else {
        return None;
    };
    let header = |(name, value): (&String, &String)| {
        let name = HeaderName::try_from(name).unwrap();
        (name, HeaderValue::try_from(value).unwrap())
    };
    let headers: HeaderMap = sent.headers.iter().map(header).collect();
    let told = detect_by_headers(operations, &headers);
    Some(told.unwrap_or_else(|| detect(operations, sent.body.to_string().as_bytes())))
}

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/clients.md");

/// What becomes of each field that a dialect has, as `docs/clients.md` tells it. `RERANKD_UPDATE=1` writes it.
#[test]
fn the_fields_of_requests_are_documented() {
    let mut table = String::from("| format | read | refused | ignored |\n|---|---|---|---|\n");
    for Endpoint { operation, .. } in endpoints() {
        let mut schemas = Schemas::new();
        let form = (operation.form)(&mut schemas);
        let (read, refused) = fields(&form.request, &schemas);
        for ignored in operation.ignored {
            assert!(!read.contains(&ignored.to_string()), "{ignored} is read");
        }
        let ignored: Vec<String> = operation
            .ignored
            .iter()
            .map(|name| name.to_string())
            .collect();
        let shown = |names: &[String]| {
            let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            names.join(", ")
        };
        let row = [&read, &refused, &ignored].map(|names| shown(names));
        table += &format!("| {} | {} |\n", operation.name, row.join(" | "));
    }
    let text = std::fs::read_to_string(CLIENTS).unwrap();
    let start = text.find("| format | read |").expect("the table is there");
    let end = start
        + text[start..]
            .find("\n\n")
            .map_or(text.len() - start, |end| end + 1);
    if std::env::var_os("RERANKD_UPDATE").is_some() {
        let text = format!("{}{table}{}", &text[..start], &text[end..]);
        std::fs::write(CLIENTS, text).unwrap();
        return;
    }
    assert_eq!(&text[start..end], table);
}

/// The fields of the object that `schema` is: those that are read, and those that are refused. Those of an
/// object in it follow its name and a dot.
pub fn fields(schema: &Value, schemas: &Schemas) -> (Vec<String>, Vec<String>) {
    let (mut read, mut refused) = (Vec::new(), Vec::new());
    collect_fields(schema, "", schemas, &mut read, &mut refused);
    (read, refused)
}

fn collect_fields(
    schema: &Value,
    prefix: &str,
    schemas: &Schemas,
    read: &mut Vec<String>,
    refused: &mut Vec<String>,
) {
    let named = |schema: &Value| {
        let name = schema["$ref"].as_str()?.rsplit('/').next()?;
        Some((name.to_owned(), &schemas[name]))
    };
    let Some((_, object)) = named(schema) else {
        return;
    };
    for (field, schema) in object["properties"].as_object().into_iter().flatten() {
        let field = format!("{prefix}{field}");
        let forms = schema["anyOf"].as_array();
        let forms = forms.map_or(std::slice::from_ref(schema), Vec::as_slice);
        match forms.iter().find_map(named) {
            Some((name, _)) if name == "Nothing" => refused.push(field),
            Some((_, object)) if object["properties"].is_object() => {
                let form = forms.iter().find(|form| named(form).is_some());
                let prefix = format!("{field}.");
                collect_fields(form.unwrap_or(schema), &prefix, schemas, read, refused);
            }
            _ => read.push(field),
        }
    }
}
