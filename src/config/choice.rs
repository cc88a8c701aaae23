//! Settings with a fixed set of values.

pub use rerankd_core::TruncationStrategy;
pub use rerankd_engine::config::Precision;
pub use rerankd_wire::DocumentForm;
use strum::{EnumString, IntoStaticStr, VariantNames};

use super::value::{Kind, Value, ValueError};

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// Text.
    Human,
    /// One JSON object per line.
    Json,
}

/// Implements [`Value`] for enums of words.
macro_rules! choices {
    ($($type:ty),+) => {$(
        impl Value for $type {
            type Bound = ();

            const KIND: Kind = Kind::Choice(<$type>::VARIANTS);

            fn parse(text: &str) -> Result<Self, ValueError> {
                text.trim()
                    .parse()
                    .map_err(|_| ValueError::Choice(<$type>::VARIANTS))
            }

            fn show(&self) -> Option<String> {
                Some(<&str>::from(self).to_owned())
            }
        }
    )+};
}

choices!(Precision, LogFormat, DocumentForm, TruncationStrategy);
