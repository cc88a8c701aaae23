//! Reading fields out of the JSON files of a model, with errors that name file and field.

use serde_json::{Map, Value};

use super::{Files, ModelError};

/// One JSON object and how messages name it. A field that is `null` counts as absent.
pub(super) struct Object {
    /// The file, and the path of the object in it.
    place: String,
    fields: Map<String, Value>,
}

impl Object {
    /// Reads a file that holds one object; `None` when there is no such file.
    pub(super) fn read(files: &Files, name: &str) -> Result<Option<Self>, ModelError> {
        let Some(value) = read_value(files, name)? else {
            return Ok(None);
        };
        match value {
            Value::Object(fields) => Ok(Some(Self {
                place: files.place(name),
                fields,
            })),
            other => Err(wrong(&files.place(name), "the file", "an object", &other)),
        }
    }

    /// An object with no fields, for an optional file that is not there.
    pub(super) fn empty(place: String) -> Self {
        Self {
            place,
            fields: Map::new(),
        }
    }

    /// How messages name this object.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) fn value(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|v| !v.is_null())
    }

    /// Whether the field is there at all, `null` included.
    pub(super) fn mentions(&self, field: &str) -> bool {
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
            place: format!("{}, `{field}`", self.place),
            fields: fields.clone(),
        }))
    }

    /// A whole number of at least 1. Tokenizers say "no limit" as `1e30`, which saturates.
    pub(super) fn count(&self, field: &str) -> Result<Option<usize>, ModelError> {
        let Some(number) = self.number(field)? else {
            return Ok(None);
        };
        if number >= 1.0 && number.fract() == 0.0 {
            return Ok(Some(number as usize));
        }
        Err(self.bad(
            field,
            &format!("is {number}; it must be a whole number above 0"),
        ))
    }

    /// As [`Object::count`], required and at most `max`.
    pub(super) fn size(&self, field: &str, max: usize) -> Result<usize, ModelError> {
        let count = self.count(field)?.ok_or_else(|| {
            ModelError::new(
                format!("{}: `{field}` is missing", self.place),
                "take the file from the place the model was published at",
            )
        })?;
        self.at_most(field, count, max)
    }

    /// As [`Object::size`], with a value for an absent field.
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
        Err(self.bad(
            field,
            &format!("is {count}; the most that is served is {max}"),
        ))
    }

    /// An error about one field of this object.
    pub(super) fn bad(&self, field: &str, what: &str) -> ModelError {
        ModelError::new(
            format!("{}: `{field}` {what}", self.place),
            "check the file against the one the model was published with",
        )
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
            None => Err(wrong(&self.place, &format!("`{field}`"), expected, value)),
        }
    }
}

/// Reads a JSON file; `None` when there is no such file.
pub fn read_value(files: &Files, name: &str) -> Result<Option<Value>, ModelError> {
    let Some(bytes) = files.read(name)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        ModelError::new(
            format!("{} is not JSON: {error}", files.place(name)),
            "download the file again; a Git LFS pointer or an HTML page is a common cause",
        )
    })
}

fn wrong(place: &str, what: &str, expected: &str, value: &Value) -> ModelError {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    ModelError::new(
        format!("{place}: {what} is {kind}; it must be {expected}"),
        "check the file against the one the model was published with",
    )
}
