//! What each dialect's bodies look like.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use utoipa::{PartialSchema, ToSchema};

use crate::http::dialect::{
    Dialect, cohere, infinity, llamacpp, mixedbread, native, nvidia, open_inference, tei, vllm,
    voyage, weaviate,
};

/// Schemas by name.
pub type Schemas = BTreeMap<String, Value>;

/// A reference to the schema of `T`, which is added to `schemas` with all that it names.
pub fn reference<T: ToSchema>(schemas: &mut Schemas) -> Value {
    let name = T::name().into_owned();
    if !schemas.contains_key(&name) {
        let mut named = vec![(name.clone(), <T as PartialSchema>::schema())];
        T::schemas(&mut named);
        for (name, schema) in named {
            let mut schema = serde_json::to_value(schema).expect("schemas are plain data");
            loosen(&mut schema);
            schemas.insert(name, schema);
        }
    }
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// Takes out what types say and bodies do not: how wide a number is in memory, as one that does not
/// fit is as large as can be, and that of several forms only one may hold.
fn loosen(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.retain(|key, value| key != "format" || !value.is_string());
            if let Some(forms) = fields.remove("oneOf") {
                fields.insert("anyOf".to_owned(), forms);
            }
            fields.values_mut().for_each(loosen);
        }
        Value::Array(items) => items.iter_mut().for_each(loosen),
        _ => {}
    }
}

/// The bodies of one operation in one dialect.
pub struct Form {
    /// Of the request.
    pub request: Value,
    /// Of the answer.
    pub response: Value,
    /// Of an error.
    pub error: Value,
    /// The name of the example.
    pub name: &'static str,
    /// A request and its answer, as the tests hold them.
    pub example: Value,
}

/// A case of the compatibility tests: what it shows is what the server does.
macro_rules! example {
    ($path:literal) => {
        serde_json::from_str(include_str!(concat!(
            "../../../tests/compat/",
            $path,
            ".json"
        )))
        .expect("cases are JSON")
    };
}

pub(super) use example;

/// A reranking in this dialect.
pub fn rerank(dialect: Dialect, schemas: &mut Schemas) -> Form {
    let name = dialect.name();
    match dialect {
        Dialect::Native => Form {
            request: reference::<native::RerankRequest>(schemas),
            response: reference::<native::RerankResponse>(schemas),
            error: reference::<native::ErrorBody>(schemas),
            example: example!("native/ranks"),
            name,
        },
        Dialect::CohereV1 | Dialect::CohereV2 => Form {
            request: reference::<cohere::Request>(schemas),
            response: reference::<cohere::Body>(schemas),
            error: reference::<cohere::ErrorBody>(schemas),
            example: match dialect {
                Dialect::CohereV1 => example!("cohere/v1_ranks"),
                _ => example!("cohere/v2_ranks"),
            },
            name,
        },
        Dialect::Infinity => Form {
            request: reference::<infinity::Request>(schemas),
            response: reference::<infinity::Body>(schemas),
            error: reference::<vllm::ErrorBody>(schemas),
            example: example!("infinity/ranks"),
            name,
        },
        Dialect::LlamaCpp => Form {
            request: reference::<llamacpp::Request>(schemas),
            response: reference::<llamacpp::Body>(schemas),
            error: reference::<llamacpp::ErrorBody>(schemas),
            example: example!("llamacpp/ranks"),
            name,
        },
        Dialect::Mixedbread => Form {
            request: reference::<mixedbread::Request>(schemas),
            response: reference::<mixedbread::Body>(schemas),
            error: reference::<native::ErrorBody>(schemas),
            example: example!("mixedbread/ranks"),
            name,
        },
        Dialect::Nvidia => Form {
            request: reference::<nvidia::Request>(schemas),
            response: reference::<nvidia::Body>(schemas),
            error: reference::<native::ErrorBody>(schemas),
            example: example!("nvidia/ranks"),
            name,
        },
        Dialect::OpenInference => Form {
            request: reference::<open_inference::Request>(schemas),
            response: reference::<open_inference::Body>(schemas),
            error: reference::<open_inference::ErrorBody>(schemas),
            example: example!("open_inference/scores"),
            name,
        },
        Dialect::Tei => Form {
            request: reference::<tei::RerankRequest>(schemas),
            response: list(reference::<tei::Rank>(schemas)),
            error: reference::<tei::ErrorBody>(schemas),
            example: example!("tei/ranks"),
            name,
        },
        Dialect::Vllm => Form {
            request: reference::<vllm::RerankRequest>(schemas),
            response: reference::<vllm::Body>(schemas),
            error: reference::<vllm::ErrorBody>(schemas),
            example: example!("vllm/ranks"),
            name,
        },
        Dialect::Voyage => Form {
            request: reference::<voyage::Request>(schemas),
            response: reference::<voyage::Body>(schemas),
            error: reference::<voyage::ErrorBody>(schemas),
            example: example!("voyage/ranks"),
            name,
        },
        Dialect::Weaviate => Form {
            request: reference::<weaviate::Request>(schemas),
            response: reference::<weaviate::Body>(schemas),
            error: reference::<weaviate::ErrorBody>(schemas),
            example: example!("weaviate/scores"),
            name,
        },
    }
}

/// A list of `items`.
pub fn list(items: Value) -> Value {
    json!({ "type": "array", "items": items })
}
