//! What runs the model.

use std::fmt;

use super::Value;
use super::setting::Kind;

/// What runs the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The NVIDIA GPU of this number.
    Cuda(u32),
    /// A GPU where one can be used, otherwise the processor.
    Auto,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl Value for Device {
    type Bound = ();

    const KIND: Kind = Kind::Text;

    fn parse(text: &str) -> Result<Self, String> {
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        match text.trim() {
            "cpu" => Ok(Self::Cpu),
            "auto" => Ok(Self::Auto),
            "cuda" => Ok(Self::Cuda(0)),
            text => text
                .strip_prefix("cuda:")
                .filter(|index| digits(index))
                .and_then(|index| index.parse().ok())
                .filter(|index| *index < 1024)
                .map(Self::Cuda)
                .ok_or("has to be `cpu`, `cuda`, `cuda:N` or `auto`".to_owned()),
        }
    }

    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written() {
        for (text, device) in [
            ("cpu", Device::Cpu),
            ("auto", Device::Auto),
            ("cuda", Device::Cuda(0)),
            ("cuda:3", Device::Cuda(3)),
        ] {
            assert_eq!(Device::parse(text), Ok(device));
            assert_eq!(Device::parse(&device.to_string()), Ok(device));
        }
        for text in [
            "",
            "gpu",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:99999",
            "CUDA:x",
        ] {
            assert!(Device::parse(text).is_err(), "{text}");
        }
    }
}
