//! How values of settings are parsed from text and written as text.

use std::io;
use std::net::SocketAddr;
use std::num::ParseIntError;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rerankd_runtime::UnknownDevice;

use super::keys::KeysError;

/// How a value is written, in a configuration file and in documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A whole number.
    Number,
    /// `500ms`, `10s`, `2m`, `1h`, or plain seconds.
    Time,
    /// `true` or `false`; a flag without a value is `true`.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Texts, separated by commas; in a file also an array.
    List,
    /// A secret. It has no flag of its own; `<name>_file` names a file with the secret.
    Secret,
}

/// Why a text is not a value of a setting: a predicate that follows the setting's name.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    /// It is not a whole number.
    #[error("must be a whole number")]
    Number(#[source] ParseIntError),
    /// It is neither of the words of a switch.
    #[error("must be `true` or `false`")]
    Switch,
    /// It is none of the words that the setting has.
    #[error("must be one of {}", listed(.0))]
    Choice(&'static [&'static str]),
    /// It is not a duration.
    #[error("must be a duration such as `500ms`, `10s`, `2m`, `1h`, or plain seconds")]
    Duration,
    /// It is outside the range of the setting, from the first to the last of these.
    #[error("must be from `{0}` to `{1}`")]
    Range(String, String),
    /// There is no text.
    #[error("must not be empty")]
    Empty,
    /// A text in the list is not the origin of a web page.
    #[error("must list origins such as `https://search.example`, or `*`; `{0}` is neither")]
    Origin(String),
    /// It is not a path of plain segments.
    #[error(
        "must be a path such as `/rerankd`: segments of letters, digits and `-._~`, each after a slash"
    )]
    PathPrefix,
    /// The path of a Unix socket is relative.
    #[error("must be an absolute path after `unix:`")]
    RelativeSocket,
    /// It is not an address to listen on.
    #[error(
        "must be `HOST:PORT`, such as `127.0.0.1:8080`, `0.0.0.0:8080` or `[::]:8080`, or `unix:/path`"
    )]
    Address,
    /// It is not a device.
    #[error(transparent)]
    Device(#[from] UnknownDevice),
    /// It is not a list of API keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The setting is not a secret.
    #[error("is not a secret and cannot be in a file of its own")]
    NotSecret,
    /// The file with a secret cannot be read.
    #[error("cannot be read: {0}")]
    File(#[from] io::Error),
}

/// The type of a setting's value.
pub trait Value: Sized + 'static {
    /// The type of a range's ends; `()` if values have no ranges.
    type Bound;

    /// How it is written.
    const KIND: Kind;

    /// Parses it.
    ///
    /// # Errors
    /// [`ValueError`] if it is not such a value.
    fn parse(text: &str) -> Result<Self, ValueError>;

    /// Reads a secret from a file.
    ///
    /// # Errors
    /// As [`Value::parse`], or why the file cannot be read.
    fn read(_path: &Path) -> Result<Self, ValueError> {
        Err(ValueError::NotSecret)
    }

    /// Writes it so that [`Value::parse`] can parse it, except for secrets; `None` if it is not set.
    fn show(&self) -> Option<String>;

    /// Whether it is within `range`.
    fn within(&self, _range: &RangeInclusive<Self::Bound>) -> bool {
        true
    }

    /// Writes an end of a range.
    fn show_bound(_bound: &Self::Bound) -> String {
        String::new()
    }
}

/// The ends of `range` as text.
pub(super) fn ends<T: Value>(range: &RangeInclusive<T::Bound>) -> (String, String) {
    (T::show_bound(range.start()), T::show_bound(range.end()))
}

/// Checks that `value` is within `range`.
///
/// # Errors
/// [`ValueError::Range`] if it is not.
pub(super) fn within<T: Value>(
    value: &T,
    range: &RangeInclusive<T::Bound>,
) -> Result<(), ValueError> {
    if value.within(range) {
        return Ok(());
    }
    let (first, last) = ends::<T>(range);
    Err(ValueError::Range(first, last))
}

/// Words as a list in a sentence.
pub(super) fn listed(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    words.join(", ")
}

impl Value for usize {
    type Bound = usize;

    const KIND: Kind = Kind::Number;

    fn parse(text: &str) -> Result<Self, ValueError> {
        let digits = text.trim().replace('_', "");
        digits.parse().map_err(ValueError::Number)
    }

    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }

    fn within(&self, range: &RangeInclusive<usize>) -> bool {
        range.contains(self)
    }

    fn show_bound(bound: &usize) -> String {
        bound.to_string()
    }
}

impl Value for bool {
    type Bound = ();

    const KIND: Kind = Kind::Switch;

    fn parse(text: &str) -> Result<Self, ValueError> {
        match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err(ValueError::Switch),
        }
    }

    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for String {
    type Bound = ();

    const KIND: Kind = Kind::Text;

    fn parse(text: &str) -> Result<Self, ValueError> {
        match text.trim() {
            "" => Err(ValueError::Empty),
            text => Ok(text.to_owned()),
        }
    }

    fn show(&self) -> Option<String> {
        Some(self.clone())
    }
}

impl Value for PathBuf {
    type Bound = ();

    const KIND: Kind = Kind::Text;

    fn parse(text: &str) -> Result<Self, ValueError> {
        match text {
            "" => Err(ValueError::Empty),
            text => Ok(text.into()),
        }
    }

    fn show(&self) -> Option<String> {
        Some(self.display().to_string())
    }
}

/// `500ms`, `10s`, `2m`, `1h`, or plain seconds.
impl Value for Duration {
    type Bound = Duration;

    const KIND: Kind = Kind::Time;

    fn parse(text: &str) -> Result<Self, ValueError> {
        let text = text.trim();
        let digits = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = match unit.trim() {
            "ms" => 1e-3,
            "" | "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(ValueError::Duration),
        };
        let number: f64 = number.parse().map_err(|_| ValueError::Duration)?;
        // Rounds to microseconds, so that `0.1s` is exactly 100 ms. Too large a number becomes the
        // largest one, which is beyond every range.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Ok(Self::from_micros((number * unit * 1e6).round() as u64))
    }

    fn show(&self) -> Option<String> {
        let milliseconds = self.as_millis();
        Some(match milliseconds {
            _ if !self.subsec_nanos().is_multiple_of(1_000_000) => {
                format!("{}s", self.as_secs_f64())
            }
            0 => "0s".to_owned(),
            _ if !milliseconds.is_multiple_of(1000) => format!("{milliseconds}ms"),
            _ if milliseconds.is_multiple_of(3_600_000) => format!("{}h", milliseconds / 3_600_000),
            _ if milliseconds.is_multiple_of(60_000) && milliseconds > 60_000 => {
                format!("{}m", milliseconds / 60_000)
            }
            _ => format!("{}s", milliseconds / 1000),
        })
    }

    fn within(&self, range: &RangeInclusive<Duration>) -> bool {
        range.contains(self)
    }

    fn show_bound(bound: &Duration) -> String {
        bound.show().unwrap_or_default()
    }
}

/// Origins of web pages as browsers send them; `*` stands for all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins(Vec<String>);

impl std::ops::Deref for Origins {
    type Target = [String];

    fn deref(&self) -> &[String] {
        &self.0
    }
}

impl Value for Origins {
    type Bound = ();

    const KIND: Kind = Kind::List;

    fn parse(text: &str) -> Result<Self, ValueError> {
        let texts = text.split(',').map(str::trim);
        let origins = texts.filter(|text| !text.is_empty()).map(|origin| {
            if origin != "*" && !is_origin(origin) {
                return Err(ValueError::Origin(origin.to_owned()));
            }
            Ok(origin.to_owned())
        });
        origins.collect::<Result<_, _>>().map(Self)
    }

    fn show(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| self.0.join(","))
    }
}

/// Whether a browser could send `text` as an origin: a scheme and a host in lower case, optionally a
/// port, and no path.
fn is_origin(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._~:[]+".contains(c);
    text.split_once("://").is_some_and(|(scheme, host)| {
        !scheme.is_empty() && !host.is_empty() && scheme.chars().chain(host.chars()).all(plain)
    })
}

/// The path below which a server is reached, such as `/rerankd`; empty for none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathPrefix(String);

impl PathPrefix {
    /// It as text, without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What follows the prefix in `path`: empty, or from a slash on. `None` if the path is not below it. Several
    /// slashes count as one.
    pub fn rest<'a>(&self, path: &'a str) -> Option<&'a str> {
        let mut rest = path;
        for segment in self.0.split('/').skip(1) {
            let below = rest.trim_start_matches('/');
            let found = below
                .strip_prefix(segment)
                .filter(|_| below.len() < rest.len())?;
            rest = Some(found).filter(|found| found.is_empty() || found.starts_with('/'))?;
        }
        Some(rest)
    }
}

impl Value for PathPrefix {
    type Bound = ();

    const KIND: Kind = Kind::Text;

    fn parse(text: &str) -> Result<Self, ValueError> {
        let path = text.trim().trim_end_matches('/');
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
        let is_segment = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(plain);
        let mut parts = path.split('/');
        if parts.next() != Some("") || !parts.all(is_segment) {
            return Err(ValueError::PathPrefix);
        }
        Ok(Self(path.to_owned()))
    }

    fn show(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| self.0.clone())
    }
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// An address and a port.
    Tcp(SocketAddr),
    /// `HOST:PORT`, with a name that is looked up when it is used.
    Name(String),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Name(name) => f.write_str(name),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// The prefix of Unix socket paths.
const UNIX: &str = "unix:";

/// `HOST:PORT` or `unix:/path`.
impl Value for Listen {
    type Bound = ();

    const KIND: Kind = Kind::Text;

    fn parse(text: &str) -> Result<Self, ValueError> {
        if let Some(path) = text.strip_prefix(UNIX) {
            if !Path::new(path).is_absolute() {
                return Err(ValueError::RelativeSocket);
            }
            return Ok(Self::Unix(path.into()));
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Tcp(address));
        }
        let is_name = text.rsplit_once(':').is_some_and(|(host, port)| {
            let in_name = |c: char| c.is_alphanumeric() || "-._".contains(c);
            !host.is_empty() && host.chars().all(in_name) && port.parse::<u16>().is_ok()
        });
        if !is_name {
            return Err(ValueError::Address);
        }
        Ok(Self::Name(text.to_owned()))
    }

    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl<T: Value> Value for Option<T> {
    type Bound = T::Bound;

    const KIND: Kind = T::KIND;

    fn parse(text: &str) -> Result<Self, ValueError> {
        T::parse(text).map(Some)
    }

    fn show(&self) -> Option<String> {
        self.as_ref().and_then(T::show)
    }

    fn within(&self, range: &RangeInclusive<T::Bound>) -> bool {
        self.as_ref().is_none_or(|value| value.within(range))
    }

    fn show_bound(bound: &T::Bound) -> String {
        T::show_bound(bound)
    }
}
