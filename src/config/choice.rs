//! Settings that are one of a few words.

pub use rerankd_core::Strategy;
pub use rerankd_engine::config::Precision;
pub use rerankd_wire::DocumentForm;
use strum::{EnumString, IntoStaticStr, VariantNames};

use super::setting::Kind;
use super::value::{Value, listed};

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// Text for people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Makes enums of words values of settings.
macro_rules! choices {
    ($($type:ty),+) => {$(
        impl Value for $type {
            type Bound = ();

            const KIND: Kind = Kind::Choice(<$type>::VARIANTS);

            fn parse(text: &str) -> Result<Self, String> {
                text.trim()
                    .parse()
                    .map_err(|_| format!("has to be one of {}", listed(<$type>::VARIANTS)))
            }

            fn show(&self) -> Option<String> {
                Some(<&str>::from(self).to_owned())
            }
        }
    )+};
}

choices!(Precision, LogFormat, DocumentForm, Strategy);
