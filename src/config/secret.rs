//! Texts that must not be seen.

use std::fmt;
use std::path::Path;

use super::setting::Kind;
use super::value::Value;

/// A text that is kept out of logs and messages.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Value for Secret {
    type Bound = ();

    const KIND: Kind = Kind::Secret;

    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self(text.trim().to_owned()))
    }

    fn read(path: &Path) -> Result<Self, String> {
        Self::parse(&super::value::secret_file(path)?)
    }

    fn show(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| "hidden".to_owned())
    }
}
