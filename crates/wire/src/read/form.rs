//! What the readers of single values take, for the API's description.

use std::borrow::Cow;

use serde_json::json;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// Declares forms: a name, the values in JSON, and the strings that spell them.
macro_rules! forms {
    ($($(#[$doc:meta])* $name:ident: $values:tt, $spelled:tt;)*) => {
        $(
            $(#[$doc])*
            pub struct $name;

            impl PartialSchema for $name {
                fn schema() -> RefOr<Schema> {
                    let forms = json!({ "anyOf": [$values, $spelled] });
                    serde_json::from_value(forms).expect("a schema")
                }
            }

            impl ToSchema for $name {
                fn name() -> Cow<'static, str> {
                    Cow::Borrowed(stringify!($name))
                }
            }
        )*
    };
}

forms! {
    /// True or false; some clients send it as a string.
    Flag:
        { "type": "boolean" },
        { "type": "string", "enum": ["true", "false", "True", "False", "TRUE", "FALSE"] };
    /// A number from 1; some clients send it as a string.
    Count:
        { "type": "integer", "minimum": 1 },
        { "type": "string", "pattern": "^0*[1-9][0-9]*$" };
    /// A number from 0.
    CountOrZero:
        { "type": "integer", "minimum": 0 },
        { "type": "string", "pattern": "^[0-9]+$" };
    /// A number from 0, or -1.
    CountOrMinusOne:
        { "type": "integer", "minimum": -1 },
        { "type": "string", "pattern": "^(-1|[0-9]+)$" };
    /// A number of parts of a document.
    Chunks:
        { "type": "integer", "minimum": 1, "maximum": 10000 },
        { "type": "string", "pattern": "^0*([1-9][0-9]{0,3}|10000)$" };
    /// A number from 0, the most urgent.
    Urgency:
        { "type": "integer", "minimum": 0, "maximum": 999 },
        { "type": "string", "pattern": "^0*[0-9]{1,3}$" };
}

/// Nothing, in any form: what asks for something is refused.
pub struct Nothing;

impl PartialSchema for Nothing {
    fn schema() -> RefOr<Schema> {
        let nothing = json!({ "anyOf": [
            { "type": "boolean", "enum": [false] },
            { "type": "number", "enum": [0] },
            { "type": "string", "maxLength": 0 },
            { "type": "array", "items": { "type": "null" }, "maxItems": 0 },
            { "type": "object", "maxProperties": 0 },
        ] });
        serde_json::from_value(nothing).expect("a schema")
    }
}

impl ToSchema for Nothing {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Nothing")
    }
}
