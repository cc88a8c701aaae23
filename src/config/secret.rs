//! Secrets as values of settings.

use std::path::Path;

pub use rerankd_core::Secret;

use super::setting::Kind;
use super::value::Value;

impl Value for Secret {
    type Bound = ();

    const KIND: Kind = Kind::Secret;

    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self::new(text.trim()))
    }

    fn read(path: &Path) -> Result<Self, String> {
        Self::parse(&super::value::secret_file(path)?)
    }

    fn show(&self) -> Option<String> {
        (!self.text().is_empty()).then(|| "hidden".to_owned())
    }
}
