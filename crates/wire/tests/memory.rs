//! What reading a body costs in memory, to the byte: for every operation of every dialect, and bodies
//! made to hurt.

use bytes::Bytes;
use rerankd_core::Limits;
use rerankd_wire::Endpoint;
use rerankd_wire::registry::endpoints;
use rerankd_wire::schema::Schemas;
use rerankd_wire::{Body, Served, ServedModel};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const BODY_BYTES: usize = 256 * 1024;

/// Few, so that what a request may hold for good counts little.
const MAX_DOCUMENTS: usize = 100;

/// `start`, as many `item`s as fit, and `end`.
fn filled(start: &str, item: &str, end: &str) -> String {
    let count = (BODY_BYTES - start.len() - end.len()) / item.len();
    format!("{start}{}{end}", item.repeat(count))
}

/// Values that are large in memory, or small in the body.
fn values() -> Vec<String> {
    let object = |first: &str| format!(r#"{{"{first}":{{}},"":0}},"#);
    let lists = [
        "0,",
        "[],",
        "{},",
        r#""","#,
        r#"{"":0},"#,
        r#"["",""],"#,
        r#"[["",""]],"#,
        r#"[0],"#,
        r#"{"text":""},"#,
        r#"{"content":[]},"#,
        r#"{"content":[{"text":""}]},"#,
        r#"{"name":"scores"},"#,
        r#"{"name":"documents","datatype":"BYTES","shape":[0],"data":[]},"#,
        r#"1e15,"#,
        r#"{"text":[[]]},"#,
        &object("text"),
        r#""\u00e9","#,
    ];
    let end = |item: &str| item.trim_end_matches(',').to_owned();
    let mut values: Vec<String> = lists
        .iter()
        .map(|item| filled("[", item, &format!("{}]", end(item))))
        .collect();
    values.extend([
        filled(r#"[{"#, r#""":0,"#, r#""":0}]"#),
        filled(r#"[{"text":["#, "[],", "[]]}]"),
        filled(r#"[{"text":"#, r#"{"a":"#, ""),
        filled(r#"{"content":["#, r#"{"text":""},"#, r#"{"text":""}]}"#),
        filled(
            r#"[{"name":"documents","datatype":"BYTES","shape":["#,
            "1,",
            "1]}]",
        ),
        filled(
            r#"[{"name":"documents","datatype":"BYTES","data":["#,
            r#""","#,
            r#"""]}]"#,
        ),
        filled(
            r#"[{"name":"documents","datatype":"BYTES","data":["#,
            r#"[""],"#,
            r#"""]}]"#,
        ),
        filled("", "[", ""),
        filled("", r#"{"a":"#, ""),
        filled("\"", "a", "\""),
        filled("\"", r"\n", "\""),
        filled("\"", "\u{7f}", "\""),
        filled("[\"", "a", r#"\n"]"#),
        filled("{\"", "a", "\":0}"),
        filled("", "9", ""),
    ]);
    values
}

/// The fields of an operation's requests, as it describes them.
fn fields(endpoint: Endpoint) -> Vec<String> {
    let mut schemas = Schemas::new();
    let form = (endpoint.operation.form)(&mut schemas);
    let name = form.request["$ref"].as_str().unwrap();
    let schema = &schemas[name.rsplit('/').next().unwrap()];
    schema["properties"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect()
}

#[test]
fn reading_a_body_takes_no_more_than_three_times_its_size() {
    let values = values();
    let models = [ServedModel {
        name: "served".to_owned(),
        aliases: Vec::new(),
        labels: vec!["score".to_owned()],
    }];
    let served = Served {
        models: &models,
        failed: &[],
        chosen: 0,
        strict_model_name: true,
        return_documents: false,
        limits: Limits {
            max_documents: MAX_DOCUMENTS,
        },
    };
    let mut worst = (0, String::new());
    for endpoint in endpoints() {
        for field in fields(endpoint) {
            for value in &values {
                let body = format!(r#"{{"query":"q","rank_fields":["text"],"{field}":{value}}}"#);
                let size = body.len();
                let body = Body {
                    json: Bytes::from(body),
                    ..Body::default()
                };
                // Counts from here on: the body itself is not among it.
                let profiler = dhat::Profiler::builder()
                    .testing()
                    .trim_backtraces(Some(1))
                    .build();
                drop((endpoint.operation.read)(body, &served));
                let taken = dhat::HeapStats::get().max_bytes;
                drop(profiler);
                let shown = value.chars().take(40).collect::<String>();
                let case = format!("{} of {field}: {shown}", endpoint.operation.name);
                // Besides the body, a reader keeps a few names and counts.
                assert!(
                    taken <= 3 * size + 1024,
                    "{case} takes {taken} bytes for {size}"
                );
                worst = worst.max((taken * 100 / size, case));
            }
        }
    }
    println!("at worst {} percent of the body: {}", worst.0, worst.1);
}
