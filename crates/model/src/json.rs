//! Reads fields of JSON configuration files, with errors that name the file and the field.

use serde_json::{Map, Value};

use super::{Files, ModelError};

/// A JSON object and its location. A `null` field counts as missing.
pub(super) struct Object {
    /// The file and the path in it, for messages.
    location: String,
    fields: Map<String, Value>,
}

impl Object {
    /// Reads a file with one object; `None` if it does not exist.
    pub(super) fn read(files: &Files, name: &str) -> Result<Option<Self>, ModelError> {
        let location = files.location(name);
        match read_value(files, name)? {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Self { location, fields })),
            Some(other) => Err(wrong_type(&location, "the file", "an object", &other)),
        }
    }

    /// An empty object, for an optional file that does not exist.
    pub(super) fn empty(location: String) -> Self {
        Self {
            location,
            fields: Map::new(),
        }
    }

    /// The object's name in messages.
    pub(super) fn location(&self) -> &str {
        &self.location
    }

    pub(super) fn value(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|v| !v.is_null())
    }

    /// Whether the field exists, `null` included.
    pub(super) fn contains(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    pub(super) fn text(&self, field: &str) -> Result<Option<&str>, ModelError> {
        self.typed(field, "a string", Value::as_str)
    }

    pub(super) fn flag(&self, field: &str) -> Result<Option<bool>, ModelError> {
        self.typed(field, "true or false", Value::as_bool)
    }

    pub(super) fn number(&self, field: &str) -> Result<Option<f64>, ModelError> {
        self.typed(field, "a number", Value::as_f64)
    }

    pub(super) fn list(&self, field: &str) -> Result<Option<&Vec<Value>>, ModelError> {
        self.typed(field, "a list", Value::as_array)
    }

    pub(super) fn object(&self, field: &str) -> Result<Option<Self>, ModelError> {
        let fields = self.typed(field, "an object", Value::as_object)?;
        Ok(fields.map(|fields| Self {
            location: format!("{}, `{field}`", self.location),
            fields: fields.clone(),
        }))
    }

    /// A positive integer. Tokenizers write "no limit" as `1e30`, which saturates.
    pub(super) fn count(&self, field: &str) -> Result<Option<usize>, ModelError> {
        let Some(number) = self.number(field)? else {
            return Ok(None);
        };
        if number >= 1.0 && number.fract() == 0.0 {
            return Ok(Some(number as usize));
        }
        Err(self.invalid(
            field,
            &format!("is {number}; it must be a positive integer"),
        ))
    }

    /// A required positive integer, at most `max`.
    pub(super) fn size(&self, field: &str, max: usize) -> Result<usize, ModelError> {
        let count = self.count(field)?.ok_or_else(|| {
            ModelError::new(
                format!("{}: `{field}` is missing", self.location),
                "download the file again from where the model was published",
            )
        })?;
        self.at_most(field, count, max)
    }

    /// A positive integer, at most `max`, with a default.
    pub(super) fn size_or(
        &self,
        field: &str,
        default: usize,
        max: usize,
    ) -> Result<usize, ModelError> {
        let count = self.count(field)?.unwrap_or(default);
        self.at_most(field, count, max)
    }

    fn at_most(&self, field: &str, count: usize, max: usize) -> Result<usize, ModelError> {
        if count <= max {
            return Ok(count);
        }
        Err(self.invalid(field, &format!("is {count}; the maximum is {max}")))
    }

    /// The error for an invalid field.
    pub(super) fn invalid(&self, field: &str, what: &str) -> ModelError {
        ModelError::new(
            format!("{}: `{field}` {what}", self.location),
            "check the file against the one the model was published with",
        )
    }

    /// The error for a field whose value this server does not implement.
    pub(super) fn unsupported(&self, field: &str, what: &str) -> ModelError {
        self.invalid(field, what).unsupported()
    }

    fn typed<'a, T>(
        &'a self,
        field: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.value(field) else {
            return Ok(None);
        };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(wrong_type(
                &self.location,
                &format!("`{field}`"),
                expected,
                value,
            )),
        }
    }
}

/// Reads a JSON file; `None` if it does not exist.
///
/// # Errors
/// [`ModelError`] if it cannot be read or is not JSON.
pub fn read_value(files: &Files, name: &str) -> Result<Option<Value>, ModelError> {
    let Some(bytes) = files.read(name)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        ModelError::new(
            format!("{} is not JSON", files.location(name)),
            "download the file again; an HTML page is a common cause",
        )
        .caused_by(error)
    })
}

fn wrong_type(location: &str, what: &str, expected: &str, value: &Value) -> ModelError {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    ModelError::new(
        format!("{location}: {what} is {kind}; it must be {expected}"),
        "check the file against the one the model was published with",
    )
}
