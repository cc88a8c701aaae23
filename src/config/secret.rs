//! Secrets as values of settings.

use std::path::Path;

pub use rerankd_core::Secret;

use super::value::{Kind, Value, ValueError};

impl Value for Secret {
    type Bound = ();

    const KIND: Kind = Kind::Secret;

    fn parse(text: &str) -> Result<Self, ValueError> {
        Ok(Self::new(text.trim()))
    }

    fn read(path: &Path) -> Result<Self, ValueError> {
        Self::parse(&std::fs::read_to_string(path)?)
    }

    fn show(&self) -> Option<String> {
        (!self.text().is_empty()).then(|| "hidden".to_owned())
    }
}
