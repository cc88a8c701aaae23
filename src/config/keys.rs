//! API keys, and the file they come from.

use std::fmt;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};

use super::value::{Kind, Value, ValueError};

/// Shortest key; shorter ones are easy to guess.
const MIN_CHARACTERS: usize = 8;
/// Longest key; comparing keys takes the same time for every length up to it.
pub const MAX_KEY_BYTES: usize = 256;

/// An API key and its name.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its name in logs: the given one, or `key-` and a fingerprint.
    pub name: String,
    /// The secret that clients send.
    pub key: String,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A list of API keys, and the file they were read from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ApiKeys {
    keys: Vec<ApiKey>,
    file: Option<PathBuf>,
}

impl ApiKeys {
    /// The keys.
    pub fn keys(&self) -> &[ApiKey] {
        &self.keys
    }

    /// The file to reload when it changes.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }
}

/// Why a text is not a list of API keys. Entries are named by their number: their text may be a key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// An entry has another form.
    #[error("must list entries `KEY` or `NAME: KEY`; entry {0} is neither")]
    Entry(usize),
    /// A key has characters that no header can carry.
    #[error("must list keys of printable ASCII characters; entry {0} has others")]
    Characters(usize),
    /// A key is too short or too long.
    #[error(
        "must list keys of {MIN_CHARACTERS} to {MAX_KEY_BYTES} characters; entry {entry} has {length}"
    )]
    Length {
        /// Number of the entry.
        entry: usize,
        /// Length of its key in bytes.
        length: usize,
    },
    /// A key or a name stands twice.
    #[error("must list every key and every name once; entry {entry} repeats `{name}`")]
    Repeated {
        /// Number of the later entry.
        entry: usize,
        /// Its name.
        name: String,
    },
    /// There is no key: a file that was emptied by mistake must not open the server to everyone.
    #[error("must list at least one key")]
    Empty,
}

/// Entries `KEY` or `NAME: KEY`, separated by commas or line breaks. A `#` at the start of a line or
/// after a space begins a comment; within a key it is part of the key. The colon is required so that a
/// key is never mistaken for a name and logged.
impl Value for ApiKeys {
    type Bound = ();

    const KIND: Kind = Kind::Secret;

    fn parse(text: &str) -> Result<Self, ValueError> {
        let lines = text.lines().map(without_comment);
        let entries = lines.flat_map(|line| line.split(','));
        let mut keys = Vec::<ApiKey>::new();
        for entry in entries.filter(|entry| !entry.trim().is_empty()) {
            let number = keys.len() + 1;
            let words: Vec<&str> = entry.split_whitespace().collect();
            let (name, key) = match words[..] {
                [key] => (fingerprint(key), key),
                [name, key] if name.len() > 1 && name.ends_with(':') => {
                    (name[..name.len() - 1].to_owned(), key)
                }
                _ => return Err(KeysError::Entry(number).into()),
            };
            if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(KeysError::Characters(number).into());
            }
            if !(MIN_CHARACTERS..=MAX_KEY_BYTES).contains(&key.len()) {
                let (entry, length) = (number, key.len());
                return Err(KeysError::Length { entry, length }.into());
            }
            if keys
                .iter()
                .any(|other| other.name == name || other.key == key)
            {
                let entry = number;
                return Err(KeysError::Repeated { entry, name }.into());
            }
            keys.push(ApiKey {
                name,
                key: key.to_owned(),
            });
        }
        if keys.is_empty() {
            return Err(KeysError::Empty.into());
        }
        Ok(Self { keys, file: None })
    }

    fn read(path: &Path) -> Result<Self, ValueError> {
        let text = std::fs::read_to_string(path)?;
        Ok(Self {
            file: Some(path.to_owned()),
            ..Self::parse(&text)?
        })
    }

    /// Names only.
    fn show(&self) -> Option<String> {
        let names: Vec<&str> = self.keys.iter().map(|key| key.name.as_str()).collect();
        match (&self.file, names.is_empty()) {
            (_, true) => None,
            (None, _) => Some(format!("{} (hidden)", names.join(", "))),
            (Some(file), _) => Some(format!("{} (in `{}`)", names.join(", "), file.display())),
        }
    }
}

/// The log name of a key that was given none: it does not depend on the other keys, and eight digits of
/// a digest are enough to tell keys apart and not enough to recover one.
fn fingerprint(key: &str) -> String {
    let digest = digest(&SHA256, key.as_bytes());
    let digits: String = digest.as_ref()[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("key-{digits}")
}

fn without_comment(line: &str) -> &str {
    let mut before = ' ';
    for (at, character) in line.char_indices() {
        if character == '#' && before.is_whitespace() {
            return &line[..at];
        }
        before = character;
    }
    line
}
