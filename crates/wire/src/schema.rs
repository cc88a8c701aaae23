//! What the bodies of dialects look like, in JSON Schema.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use utoipa::{PartialSchema, ToSchema};

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

/// The bodies of one operation of a dialect.
pub struct Form {
    /// Of the request.
    pub request: Value,
    /// Of the answer.
    pub response: Value,
    /// Of an error.
    pub error: Value,
    /// A request and its answer, as the tests hold them.
    pub example: Value,
}

impl Form {
    /// The forms of a request of type `Q`, which is answered with an `A` or fails with an `E`.
    pub fn of<Q: ToSchema, A: ToSchema, E: ToSchema>(
        schemas: &mut Schemas,
        example: Value,
    ) -> Self {
        Self {
            request: reference::<Q>(schemas),
            response: reference::<A>(schemas),
            error: reference::<E>(schemas),
            example,
        }
    }
}

/// A case of the compatibility tests: what it shows is what the server does. `compat` leads to `tests/compat`,
/// and is a folder of the published package.
macro_rules! example {
    ($path:literal) => {
        serde_json::from_str(include_str!(concat!("../compat/", $path, ".json")))
            .expect("cases are JSON")
    };
}

pub(crate) use example;

/// A list of `items`.
pub fn list(items: Value) -> Value {
    json!({ "type": "array", "items": items })
}
