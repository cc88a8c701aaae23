//! Every route: what it takes, and all that it can answer.

use rerankd_wire::dialect::Endpoint;
use rerankd_wire::open_inference::{Model, OpenInferenceError, Ready, Server};
use rerankd_wire::schema::{Form, Schemas, reference};
use rerankd_wire::{Kind, NativeError};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::http::admin;
use crate::http::route::{self, Handler, REFUSALS, Route};

/// All paths; what they name is added to `schemas`.
pub fn all(schemas: &mut Schemas) -> Value {
    let mut paths = Map::new();
    for route in route::all().filter(|route| !route.is_method()) {
        let operation = describe(route, schemas);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_ascii_lowercase()] = operation;
    }
    Value::Object(paths)
}

fn describe(route: &Route, schemas: &mut Schemas) -> Value {
    let ready = "Whether new requests should be sent here";
    let mut operation = match &route.handler {
        Handler::Live => get(route, "health", "The process runs", None, schemas),
        Handler::Ready => get(route, "health", ready, None, schemas),
        Handler::SilentLive => silent(get(route, "health", "The process runs", None, schemas)),
        Handler::SilentReady => silent(get(route, "health", ready, None, schemas)),
        Handler::Page => page(route, schemas),
        Handler::Models => {
            let models = reference::<admin::ModelList>(schemas);
            get(
                route,
                "about",
                "The models that are served, the default one first",
                Some(models),
                schemas,
            )
        }
        Handler::Model => {
            let model = reference::<admin::Description>(schemas);
            let summary = "The model that is served";
            of_model::<NativeError>(get(route, "about", summary, Some(model), schemas), schemas)
        }
        Handler::NeedsKey => {
            let needs = reference::<admin::NeedsKey>(schemas);
            let summary = "Whether requests need a key";
            get(route, "about", summary, Some(needs), schemas)
        }
        Handler::Info => {
            let summary = "What is served, how, and within which limits";
            let info = reference::<admin::Info>(schemas);
            let mut operation = get(route, "about", summary, Some(info), schemas);
            operation["parameters"] = json!([{
                "name": "model", "in": "query", "required": false,
                "description": "Name or alias of a model, instead of the default one",
                "schema": { "type": "string" },
            }]);
            operation
        }
        Handler::Metrics => metrics(route),
        Handler::Reload => unreachable!("the description is of the routes at `listen`"),
        Handler::Grpc(_) => unreachable!("reflection describes the methods of gRPC"),
        Handler::InferenceServer => {
            let server = reference::<Server>(schemas);
            get(route, INFERENCE, "The server", Some(server), schemas)
        }
        Handler::InferenceModel => {
            let model = reference::<Model>(schemas);
            let summary = "What the model takes and gives";
            of_model::<OpenInferenceError>(
                get(route, INFERENCE, summary, Some(model), schemas),
                schemas,
            )
        }
        Handler::InferenceReady => {
            let ready = reference::<Ready>(schemas);
            let summary = "Whether the model is ready";
            of_model::<OpenInferenceError>(
                get(route, INFERENCE, summary, Some(ready), schemas),
                schemas,
            )
        }
        Handler::Operations(operations) => post(route, operations, schemas),
    };
    for name in route.parameters() {
        let description = match name {
            "model" => "Any name, unless the server is strict",
            _ => "Any name",
        };
        let name = json!({
            "name": name, "in": "path", "required": true,
            "description": description,
            "schema": { "type": "string" },
        });
        match &mut operation["parameters"] {
            Value::Array(parameters) => parameters.push(name),
            none => *none = json!([name]),
        }
    }
    operation
}

const INFERENCE: &str = "open inference";

/// The tag and the summary of an operation; `shared` says that bodies tell the dialect.
fn about(kind: Kind, shared: bool) -> (&'static str, &'static str) {
    match (kind, shared) {
        (Kind::Rerank, true) => (
            "rerank",
            "Rerank documents; the keys of the body tell the dialect",
        ),
        (Kind::Rerank, false) => ("rerank", "Rerank documents in one dialect"),
        (Kind::Predict, _) => (
            "score",
            "Every score of each pair, in the order of the request",
        ),
        (Kind::Score, _) => (
            "score",
            "Score texts against texts, in the order of the request",
        ),
        (Kind::Infer, _) => (INFERENCE, "Score documents, in the order of the request"),
        (Kind::Tokenize, _) => ("tei", "Show the tokens of texts"),
        (Kind::Decode, _) => ("tei", "Show the text of tokens"),
    }
}

/// An operation without a body.
fn silent(mut operation: Value) -> Value {
    let responses = operation["responses"].as_object_mut().expect("an object");
    responses.remove("200");
    responses.insert("204".into(), json!({ "description": "Yes" }));
    operation
}

fn metrics(route: &Route) -> Value {
    json!({
        "operationId": operation_id(route), "tags": ["about"],
        "summary": "Everything measured, as Prometheus reads it",
        "responses": { "200": {
            "description": "Metrics",
            "content": { "text/plain": { "schema": { "type": "string" } } },
        } },
    })
}

/// An operation about the model that the path names.
fn of_model<E: ToSchema>(mut operation: Value, schemas: &mut Schemas) -> Value {
    let error = reference::<E>(schemas);
    let content = json!({ "application/json": { "schema": error } });
    let responses = operation["responses"].as_object_mut().expect("an object");
    responses["503"]["content"] = content.clone();
    for (status, description) in [
        ("400", "The name in the path is not UTF-8"),
        ("404", "The model is not served (`--strict-model-name`)"),
    ] {
        let refusal = json!({ "description": description, "content": content });
        responses.insert(status.into(), refusal);
    }
    operation
}

/// The name of an operation, made of its method and path.
fn operation_id(route: &Route) -> String {
    let words = route
        .path
        .split(['/', '.', '-', '{', '}'])
        .filter(|word| !word.is_empty());
    let method = route.method.as_str().to_ascii_lowercase();
    std::iter::once(method.as_str())
        .chain(words)
        .collect::<Vec<_>>()
        .join("_")
}

/// An operation whose bodies are those of any of `operations`.
fn post(route: &Route, operations: &[Endpoint], schemas: &mut Schemas) -> Value {
    let form = |endpoint: &Endpoint| {
        let operation = endpoint.operation;
        (operation.name, (operation.form)(schemas))
    };
    let forms: Vec<(&str, Form)> = operations.iter().map(form).collect();
    let (tag, summary) = about(operations[0].operation.kind, operations.len() > 1);
    let mut responses = Map::new();
    let answers = content(
        &forms,
        |form| &form.response,
        |form| &form.example["response"]["body"],
    );
    responses.insert(
        "200".into(),
        json!({ "description": "The answer", "content": answers }),
    );
    let schema = any_of(forms.iter().map(|(_, form)| &form.error));
    for (status, description) in REFUSALS {
        let mut response = json!({
            "description": description,
            "content": { "application/json": { "schema": schema } },
        });
        if status == "401" {
            // Some dialects have another form for this one.
            response["content"] = json!({ "application/json": { "schema": { "type": "object" } } });
        }
        if matches!(status, "429" | "503") {
            response["headers"] = retry_headers();
        }
        responses.insert(status.into(), response);
    }
    json!({
        "operationId": operation_id(route), "tags": [tag], "summary": summary,
        "parameters": [{
            "name": "x-request-timeout-ms", "in": "header", "required": false,
            "description": "Milliseconds after which the answer is of no use. Instead of `--request-timeout`.",
            "schema": { "type": "integer", "minimum": 1 },
        }],
        "requestBody": {
            "required": true,
            "content": content(&forms, |form| &form.request, |form| &form.example["request"]["body"]),
        },
        "responses": responses,
    })
}

/// An operation that says something about the server.
fn get(
    route: &Route,
    tag: &str,
    summary: &str,
    body: Option<Value>,
    schemas: &mut Schemas,
) -> Value {
    let body = body.unwrap_or_else(|| reference::<admin::Status>(schemas));
    let error = reference::<NativeError>(schemas);
    let mut operation = json!({
        "operationId": operation_id(route), "tags": [tag], "summary": summary,
        "responses": {
            "200": { "description": "Yes", "content": { "application/json": { "schema": body } } },
            "503": {
                "description": "The model is loading, or the server is stopping",
                "headers": retry_headers(),
                "content": { "application/json": { "schema": error } },
            },
        },
    });
    if !route::is_open(&route.method, route.path) {
        let responses = operation["responses"].as_object_mut().expect("an object");
        for (status, description) in REFUSALS {
            if matches!(status, "401" | "403") {
                // Each dialect has a form of its own.
                let content = json!({ "application/json": { "schema": { "type": "object" } } });
                let refusal = json!({ "description": description, "content": content });
                responses.insert(status.into(), refusal);
            }
        }
    }
    operation
}

/// `GET /`: the page for browsers, an answer as that of `/health` for everybody else.
fn page(route: &Route, schemas: &mut Schemas) -> Value {
    let summary = "A page to try rankings on, where `Accept` names `text/html`; otherwise whether new \
                   requests should be sent here";
    let mut operation = get(route, "health", summary, None, schemas);
    operation["responses"]["200"]["content"]["text/html"] =
        json!({ "schema": { "type": "string" } });
    operation
}

fn retry_headers() -> Value {
    json!({
        "Retry-After": {
            "description": "Seconds until a retry can succeed",
            "schema": { "type": "integer", "minimum": 1 },
        },
        "retry-after-ms": {
            "description": "The same in milliseconds",
            "schema": { "type": "integer", "minimum": 1 },
        },
    })
}

fn content(
    forms: &[(&str, Form)],
    schema: impl Fn(&Form) -> &Value,
    example: impl Fn(&Form) -> &Value,
) -> Value {
    let examples: Map<String, Value> = forms
        .iter()
        .map(|(name, form)| ((*name).to_owned(), json!({ "value": example(form) })))
        .collect();
    json!({ "application/json": {
        "schema": any_of(forms.iter().map(|(_, form)| schema(form))),
        "examples": examples,
    } })
}

/// Any of `schemas`, each named once.
fn any_of<'a>(schemas: impl Iterator<Item = &'a Value>) -> Value {
    let mut some: Vec<&Value> = Vec::new();
    for schema in schemas {
        if !some.contains(&schema) {
            some.push(schema);
        }
    }
    match some[..] {
        [one] => one.clone(),
        _ => json!({ "anyOf": some }),
    }
}
