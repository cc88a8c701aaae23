//! Devices as values of settings.

pub use rerankd_runtime::Device;

use super::Value;
use super::setting::Kind;

impl Value for Device {
    type Bound = ();

    const KIND: Kind = Kind::Text;

    fn parse(text: &str) -> Result<Self, String> {
        text.trim()
            .parse()
            .map_err(|error: rerankd_runtime::UnknownDevice| error.to_string())
    }

    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}
