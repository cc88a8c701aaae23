//! Every route: what it takes, and all that it can answer.

use axum::http::Method;
use serde_json::{Map, Value, json};

use super::forms::{Form, Schemas, example, list, reference, rerank};
use crate::http::admin;
use crate::http::dialect::{Dialect, native, open_inference, tei, vllm};

/// The dialects that a body alone can tell, on every shared path.
const TOLD_BY_KEYS: [Dialect; 6] = [
    Dialect::Tei,
    Dialect::Mixedbread,
    Dialect::Weaviate,
    Dialect::Voyage,
    Dialect::Vllm,
    Dialect::Infinity,
];

/// What a request that reaches the model can meet. TEI's clients know 422 and 424.
const STATUSES: [(&str, &str); 13] = [
    (
        "400",
        "Something in the request is wrong; the text says what to change",
    ),
    (
        "401",
        "The server has keys, and the request shows none of them",
    ),
    (
        "403",
        "A page of another origin asks, and the server has no keys and does not allow it",
    ),
    (
        "404",
        "The model that was asked for is not served (`--strict-model-name`)",
    ),
    ("408", "The body did not arrive in time"),
    ("413", "The body is larger than `--max-body-bytes`"),
    ("415", "The body is packed in a way that is not read"),
    ("422", "TEI's name for a request that is wrong"),
    (
        "424",
        "TEI's name for what the model cannot do, or failed to do",
    ),
    (
        "429",
        "The queue is full, or the answer would come after the deadline; `Retry-After` says when a \
         retry can succeed",
    ),
    ("500", "The server failed; the request was not at fault"),
    ("503", "The model is loading, or the server is stopping"),
    (
        "504",
        "The time in `x-request-timeout-ms` passed while the request waited",
    ),
];

/// All paths; what they name is added to `schemas`.
pub fn all(schemas: &mut Schemas) -> Value {
    let mut paths = Map::new();
    for (path, default) in [
        ("/rerank", Dialect::Native),
        ("/v1/rerank", Dialect::CohereV1),
        ("/v2/rerank", Dialect::CohereV2),
        ("/reranking", Dialect::LlamaCpp),
        ("/v1/reranking", Dialect::LlamaCpp),
    ] {
        let dialects = [&[default][..], &TOLD_BY_KEYS].concat();
        let forms = dialects.into_iter().map(|d| rerank(d, schemas)).collect();
        let summary = "Order documents; the keys of the body tell the dialect";
        paths.insert(
            path.into(),
            json!({ "post": post(path, "rerank", summary, forms) }),
        );
    }
    for (path, dialect) in [
        ("/infinity/rerank", Dialect::Infinity),
        ("/vllm/rerank", Dialect::Vllm),
        ("/vllm/v1/rerank", Dialect::Vllm),
        ("/vllm/v2/rerank", Dialect::Vllm),
        ("/voyage/v1/rerank", Dialect::Voyage),
        ("/ranking", Dialect::Nvidia),
        ("/v1/ranking", Dialect::Nvidia),
        ("/v1/retrieval/nvidia/reranking", Dialect::Nvidia),
    ] {
        let forms = vec![rerank(dialect, schemas)];
        let summary = "Order documents, for clients whose bodies do not tell their dialect";
        paths.insert(
            path.into(),
            json!({ "post": post(path, "rerank", summary, forms) }),
        );
    }
    for path in ["/score", "/v1/score", "/vllm/score", "/vllm/v1/score"] {
        let summary = "Score texts against texts, in the order of the request";
        let operation = post(path, "score", summary, vec![score(schemas)]);
        paths.insert(path.into(), json!({ "post": operation }));
    }
    let predictions = vec![native_prediction(schemas), tei_prediction(schemas)];
    let summary = "Every score of each pair, in the order of the request";
    let operation = post("/predict", "score", summary, predictions);
    paths.insert("/predict".into(), json!({ "post": operation }));

    let tei_alias = |path: &str, schemas: &mut Schemas| {
        let forms = vec![rerank(Dialect::Tei, schemas), tei_prediction(schemas)];
        post(
            path,
            "tei",
            "TEI's `/rerank` or `/predict`, as the body asks",
            forms,
        )
    };
    let root = json!({ "get": root(schemas), "post": tei_alias("/", schemas) });
    paths.insert("/".into(), root);
    let operation = tei_alias("/invocations", schemas);
    paths.insert("/invocations".into(), json!({ "post": operation }));
    let operation = post(
        "/tokenize",
        "tei",
        "Show the tokens of texts",
        vec![tokenize(schemas)],
    );
    paths.insert("/tokenize".into(), json!({ "post": operation }));
    let operation = post(
        "/decode",
        "tei",
        "Show the text of tokens",
        vec![decode(schemas)],
    );
    paths.insert("/decode".into(), json!({ "post": operation }));

    let ready = "Whether new requests should be sent here";
    let models = reference::<admin::Models>(schemas);
    let info = reference::<admin::Info>(schemas);
    for (path, tag, summary, body) in [
        ("/live", "health", "The process runs", None),
        ("/ready", "health", ready, None),
        ("/health", "health", ready, None),
        ("/infinity/health", "health", ready, None),
        ("/vllm/health", "health", ready, None),
        ("/ping", "health", ready, None),
        ("/v2/health/live", "health", "The process runs", None),
        ("/v2/health/ready", "health", ready, None),
        (
            "/models",
            "about",
            "The model that is served",
            Some(&models),
        ),
        (
            "/v1/models",
            "about",
            "The model that is served",
            Some(&models),
        ),
        (
            "/infinity/models",
            "about",
            "The model that is served",
            Some(&models),
        ),
        (
            "/vllm/v1/models",
            "about",
            "The model that is served",
            Some(&models),
        ),
        (
            "/info",
            "about",
            "What is served, how, and within which limits",
            Some(&info),
        ),
        (
            "/meta",
            "about",
            "What is served, where Weaviate asks for it",
            Some(&info),
        ),
    ] {
        let operation = get(path, tag, summary, body.cloned(), schemas);
        paths.insert(path.into(), json!({ "get": operation }));
    }
    for (path, summary) in [
        ("/.well-known/live", "The process runs"),
        ("/.well-known/ready", ready),
    ] {
        let mut operation = get(path, "health", summary, None, schemas);
        let responses = operation["responses"].as_object_mut().expect("an object");
        responses.remove("200");
        responses.insert("204".into(), json!({ "description": "Yes" }));
        paths.insert(path.into(), json!({ "get": operation }));
    }
    open_inference(&mut paths, schemas);
    let metrics = json!({
        "operationId": "get_metrics", "tags": ["about"],
        "summary": "Everything measured, as Prometheus reads it",
        "responses": { "200": {
            "description": "Metrics",
            "content": { "text/plain": { "schema": { "type": "string" } } },
        } },
    });
    paths.insert("/metrics".into(), json!({ "get": metrics }));
    Value::Object(paths)
}

/// What the Open Inference Protocol asks beyond health.
fn open_inference(paths: &mut Map<String, Value>, schemas: &mut Schemas) {
    let tag = "open inference";
    let server = reference::<open_inference::Server>(schemas);
    let operation = get("/v2", tag, "The server", Some(server), schemas);
    paths.insert("/v2".into(), json!({ "get": operation }));

    let name = json!([{
        "name": "model", "in": "path", "required": true,
        "description": "Any name, unless the server is strict",
        "schema": { "type": "string" },
    }]);
    let model = reference::<open_inference::Model>(schemas);
    let ready = reference::<open_inference::Ready>(schemas);
    let error = reference::<open_inference::ErrorBody>(schemas);
    for (path, summary, body) in [
        (
            "/v2/models/{model}",
            "What the model takes and gives",
            model,
        ),
        ("/v2/models/{model}/ready", "The model can be asked", ready),
    ] {
        let mut operation = get(path, tag, summary, Some(body), schemas);
        operation["parameters"] = name.clone();
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
        paths.insert(path.into(), json!({ "get": operation }));
    }
    let path = "/v2/models/{model}/infer";
    let forms = vec![rerank(Dialect::OpenInference, schemas)];
    let summary = "Score documents, in the order of the request";
    let mut operation = post(path, tag, summary, forms);
    let parameters = operation["parameters"].as_array_mut().expect("a list");
    parameters.extend(name.as_array().cloned().unwrap_or_default());
    paths.insert(path.into(), json!({ "post": operation }));
}

fn score(schemas: &mut Schemas) -> Form {
    Form {
        request: reference::<vllm::ScoreRequest>(schemas),
        response: reference::<vllm::ScoreBody>(schemas),
        error: reference::<vllm::ErrorBody>(schemas),
        name: Dialect::Vllm.name(),
        example: example!("vllm/score_one_to_many"),
    }
}

fn native_prediction(schemas: &mut Schemas) -> Form {
    Form {
        request: reference::<native::PredictRequest>(schemas),
        response: reference::<native::PredictResponse>(schemas),
        error: reference::<native::ErrorBody>(schemas),
        name: Dialect::Native.name(),
        example: example!("native/predict"),
    }
}

fn tei_prediction(schemas: &mut Schemas) -> Form {
    Form {
        request: reference::<tei::PredictRequest>(schemas),
        response: reference::<tei::PredictBody>(schemas),
        error: reference::<tei::ErrorBody>(schemas),
        name: "tei_predict",
        example: example!("tei/predict_batch"),
    }
}

fn tokenize(schemas: &mut Schemas) -> Form {
    Form {
        request: reference::<tei::TokenizeRequest>(schemas),
        response: list(list(reference::<tei::Token>(schemas))),
        error: reference::<tei::ErrorBody>(schemas),
        name: Dialect::Tei.name(),
        example: example!("tei/tokenize"),
    }
}

fn decode(schemas: &mut Schemas) -> Form {
    Form {
        request: reference::<tei::DecodeRequest>(schemas),
        response: list(json!({ "type": "string" })),
        error: reference::<tei::ErrorBody>(schemas),
        name: Dialect::Tei.name(),
        example: example!("tei/decode"),
    }
}

/// The name of an operation, made of its method and path.
fn operation_id(method: &str, path: &str) -> String {
    let words = path
        .split(['/', '.', '-', '{', '}'])
        .filter(|word| !word.is_empty());
    std::iter::once(method)
        .chain(words)
        .collect::<Vec<_>>()
        .join("_")
}

/// An operation whose bodies are in any of `forms`.
fn post(path: &str, tag: &str, summary: &str, forms: Vec<Form>) -> Value {
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
    let schema = any_of(forms.iter().map(|form| &form.error));
    for (status, description) in STATUSES {
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
        "operationId": operation_id("post", path), "tags": [tag], "summary": summary,
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
fn get(path: &str, tag: &str, summary: &str, body: Option<Value>, schemas: &mut Schemas) -> Value {
    let body = body.unwrap_or_else(|| reference::<admin::Status>(schemas));
    let error = reference::<native::ErrorBody>(schemas);
    let mut operation = json!({
        "operationId": operation_id("get", path), "tags": [tag], "summary": summary,
        "responses": {
            "200": { "description": "Yes", "content": { "application/json": { "schema": body } } },
            "503": {
                "description": "The model is loading, or the server is stopping",
                "headers": retry_headers(),
                "content": { "application/json": { "schema": error } },
            },
        },
    });
    if !admin::is_open(&Method::GET, path) {
        let responses = operation["responses"].as_object_mut().expect("an object");
        for (status, description) in STATUSES {
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
fn root(schemas: &mut Schemas) -> Value {
    let summary = "A page to try rankings on, where `Accept` names `text/html`; otherwise whether new \
                   requests should be sent here";
    let mut operation = get("/", "health", summary, None, schemas);
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
    forms: &[Form],
    schema: impl Fn(&Form) -> &Value,
    example: impl Fn(&Form) -> &Value,
) -> Value {
    let examples: Map<String, Value> = forms
        .iter()
        .map(|form| (form.name.to_owned(), json!({ "value": example(form) })))
        .collect();
    json!({ "application/json": {
        "schema": any_of(forms.iter().map(schema)),
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
