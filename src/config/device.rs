//! Devices as values of settings.

pub use rerankd_runtime::Device;

use super::value::{Kind, Value, ValueError};

impl Value for Device {
    type Bound = ();

    const KIND: Kind = Kind::Text;

    fn parse(text: &str) -> Result<Self, ValueError> {
        Ok(text.trim().parse()?)
    }

    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}
