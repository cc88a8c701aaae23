//! What each format publishes, and what its clients read of a response, against the responses in
//! `tests/compat/`.
//!
//! The contracts are data in `tests/contracts/`. A path such as `results[].index` leads into a response; a
//! kind is the name of a JSON type, a constant in JSON, or several with `|` between them, and `?` at its
//! end allows the field to be absent. `float` is a number that is written with a fraction or an exponent.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::compat::{self, cases, endpoint};
use rerankd_wire::registry::endpoints;
use rerankd_wire::schema::Schemas;
use rerankd_wire::{Endpoint, Kind};
use serde::Deserialize;
use serde_json::Value;

/// A published format of an operation. An operation may have several: Jina's clients send Cohere's bodies.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Contract {
    operation: String,
    #[expect(dead_code, reason = "it is for the reader")]
    source: String,
    /// Fields of requests.
    request: Vec<String>,
    /// Fields of responses: paths and kinds.
    response: BTreeMap<String, String>,
    /// Further fields of this server's responses, and why they are there.
    #[serde(default)]
    added: BTreeMap<String, String>,
    clients: BTreeMap<String, Parser>,
}

/// What a client does with a response.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parser {
    /// What it fails without: paths and kinds.
    reads: BTreeMap<String, String>,
    /// What it fails with: paths and kinds.
    #[serde(default)]
    rejects: BTreeMap<String, String>,
}

fn contracts() -> Vec<Contract> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contracts");
    let entries = std::fs::read_dir(root).unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    let read = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    files.map(read).collect()
}

/// The values at `path`, one for each item of the lists on the way; `None` where there is none.
fn values<'a>(value: Option<&'a Value>, path: &str) -> Vec<Option<&'a Value>> {
    let path = path.trim_start_matches('.');
    if path.is_empty() {
        return vec![value];
    }
    if let Some(rest) = path.strip_prefix("[]") {
        return match value {
            Some(Value::Array(items)) => items.iter().flat_map(|i| values(Some(i), rest)).collect(),
            _ => vec![None],
        };
    }
    let end = path.find(['.', '[']).unwrap_or(path.len());
    values(
        value.and_then(|value| value.get(&path[..end])),
        &path[end..],
    )
}

fn is_of_kind(value: &Value, kind: &str) -> bool {
    kind.split('|').any(|kind| match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "float" => value.is_f64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "list" => value.is_array(),
        "object" => value.is_object(),
        constant => serde_json::from_str::<Value>(constant).unwrap() == *value,
    })
}

/// What is at `path` and not as `kind` says.
fn wrong(body: &Value, path: &str, kind: &str) -> Option<String> {
    let (kind, optional) = match kind.strip_suffix('?') {
        Some(kind) => (kind, true),
        None => (kind, false),
    };
    values(Some(body), path)
        .into_iter()
        .find_map(|value| match value {
            None if optional => None,
            None => Some(format!("`{path}` is missing")),
            Some(value) if is_of_kind(value, kind) => None,
            Some(value) => Some(format!("`{path}` is {value}, not {kind}")),
        })
}

/// The paths of values that are not `declared`.
fn undeclared(value: &Value, path: &str, declared: &BTreeSet<&str>, found: &mut Vec<String>) {
    if declared.contains(path) {
        return;
    }
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                undeclared(value, &path, declared, found);
            }
        }
        Value::Array(items) => {
            for item in items {
                undeclared(item, &format!("{path}[]"), declared, found);
            }
        }
        _ => found.push(path.to_owned()),
    }
}

/// Every response has what its format publishes and what the format's clients read, nothing that they
/// reject, and nothing that is not published or added for a reason.
#[test]
fn responses_are_as_published_and_as_clients_read_them() {
    let contracts = contracts();
    let (mut failures, mut seen) = (Vec::new(), BTreeSet::new());
    for (path, case) in cases() {
        let Some(Endpoint { operation, .. }) = endpoint(&case.request) else {
            continue;
        };
        if case.response.status != 200 {
            continue;
        }
        seen.insert(operation.name);
        let body = &case.response.body;
        let own = || {
            contracts
                .iter()
                .filter(|contract| contract.operation == operation.name)
        };
        let mut fail = |who: &str, what: String| {
            failures.push(format!("{}: {who}: {what}", path.display()));
        };
        let declared = own().flat_map(|own| own.response.keys().chain(own.added.keys()));
        let mut unknown = Vec::new();
        undeclared(
            body,
            "",
            &declared.map(String::as_str).collect(),
            &mut unknown,
        );
        if !unknown.is_empty() {
            fail("not published", unknown.join(", "));
        }
        for contract in own() {
            for (path, kind) in &contract.response {
                if let Some(what) = wrong(body, path, kind) {
                    fail("published", what);
                }
            }
            for (name, client) in &contract.clients {
                for (path, kind) in &client.reads {
                    if let Some(what) = wrong(body, path, kind) {
                        fail(name, what);
                    }
                }
                // An operator who sets the form of documents knows the clients.
                if case.server.rerank_document.is_some() {
                    continue;
                }
                for (path, kind) in &client.rejects {
                    let mut found = values(Some(body), path).into_iter().flatten();
                    if let Some(value) = found.find(|value| is_of_kind(value, kind)) {
                        fail(name, format!("`{path}` is {value}"));
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    for Endpoint { operation, .. } in endpoints() {
        assert!(seen.contains(operation.name), "{}", operation.name);
    }
}

/// Each operation has a contract, and what clients ask to rank, score or infer has two real ones.
#[test]
fn every_operation_is_held_against_two_clients() {
    let contracts = contracts();
    let known: BTreeSet<&str> = endpoints()
        .map(|endpoint| endpoint.operation.name)
        .collect();
    for contract in &contracts {
        assert!(
            known.contains(&*contract.operation),
            "{}",
            contract.operation
        );
    }
    for Endpoint { operation, .. } in endpoints() {
        let own = contracts
            .iter()
            .filter(|contract| contract.operation == operation.name);
        let clients: Vec<usize> = own.map(|contract| contract.clients.len()).collect();
        assert!(!clients.is_empty(), "{} has no contract", operation.name);
        if matches!(operation.kind, Kind::Rerank | Kind::Score | Kind::Infer) {
            assert!(clients.iter().sum::<usize>() >= 2, "{}", operation.name);
        }
    }
}

/// Every published field of a request is read, refused, or ignored as `docs/clients.md` says.
#[test]
fn every_published_field_of_a_request_is_accounted_for() {
    let mut failures = Vec::new();
    for contract in contracts() {
        let named = |endpoint: &Endpoint| endpoint.operation.name == contract.operation;
        let operation = endpoints().find(named).unwrap().operation;
        let mut schemas = Schemas::new();
        let form = (operation.form)(&mut schemas);
        let (read, refused) = compat::fields(&form.request, &schemas);
        for field in &contract.request {
            let ignored = operation.ignored.contains(&&**field);
            if !ignored && !read.contains(field) && !refused.contains(field) {
                failures.push(format!("{}: `{field}`", contract.operation));
            }
        }
    }
    assert!(failures.is_empty(), "dropped in silence: {failures:?}");
}

#[test]
fn kinds_and_paths_find_what_is_wrong() {
    let body = serde_json::json!({"a": [{"b": 1}, {"b": 1.5}], "c": null, "d": {"e": "list"}});
    for (path, kind, fine) in [
        ("a[].b", "number", true),
        ("a[].b", "integer", false),
        ("a[].x", "integer?", true),
        ("a[].x", "integer", false),
        ("c", "string|null", true),
        ("c", "string?", false),
        ("d.e", "\"list\"", true),
        ("d.e", "\"rerank\"", false),
    ] {
        assert_eq!(wrong(&body, path, kind).is_none(), fine, "{path} {kind}");
    }
    let mut found = Vec::new();
    undeclared(&body, "", &BTreeSet::from(["a", "d.e"]), &mut found);
    assert_eq!(found, ["c"]);
}
