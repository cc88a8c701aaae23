//! Keys that clients show to be served.

use std::fmt;
use std::path::{Path, PathBuf};

use super::setting::Kind;
use super::value::Value;

/// Shorter keys can be guessed.
const MIN_CHARACTERS: usize = 8;
/// Longest key; comparing takes the same time for every length up to it.
pub const MAX_KEY_BYTES: usize = 256;

/// One key, and whose it is.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Whose it is, for logs; `key-1` and so on where nobody said.
    pub name: String,
    /// What the client shows.
    pub key: String,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Keys, and the file they were read from.
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

    /// The file to read again when it changes.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }
}

/// Entries `KEY` or `NAME: KEY`, divided by commas or line ends. A `#` at the beginning of a line or
/// behind a space begins a comment; within a key it is part of the key. The colon keeps a key from
/// being taken for a name, and shown.
impl Value for ApiKeys {
    type Bound = ();

    const KIND: Kind = Kind::Secret;

    fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(without_comment);
        let entries = lines.flat_map(|line| line.split(','));
        let mut keys = Vec::<ApiKey>::new();
        for entry in entries.filter(|entry| !entry.trim().is_empty()) {
            let number = keys.len() + 1;
            let words: Vec<&str> = entry.split_whitespace().collect();
            let (name, key) = match words[..] {
                [key] => (format!("key-{number}"), key),
                [name, key] if name.len() > 1 && name.ends_with(':') => {
                    (name[..name.len() - 1].to_owned(), key)
                }
                _ => {
                    return Err(format!(
                        "has to have `KEY` or `NAME: KEY` in entry {number}"
                    ));
                }
            };
            // The key itself is not for messages.
            if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(format!(
                    "has to have keys of printable ASCII; `{name}` is not"
                ));
            }
            if !(MIN_CHARACTERS..=MAX_KEY_BYTES).contains(&key.len()) {
                return Err(format!(
                    "has to have keys of {MIN_CHARACTERS} to {MAX_KEY_BYTES} characters; `{name}` has {}",
                    key.len()
                ));
            }
            if keys
                .iter()
                .any(|other| other.name == name || other.key == key)
            {
                return Err(format!(
                    "has to name every key once; `{name}` is there twice"
                ));
            }
            keys.push(ApiKey {
                name,
                key: key.to_owned(),
            });
        }
        match keys.is_empty() {
            // A file that was emptied by mistake must not open the server.
            true => Err("has to have at least one key".to_owned()),
            false => Ok(Self { keys, file: None }),
        }
    }

    fn read(path: &Path) -> Result<Self, String> {
        let text = super::value::secret_file(path)?;
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
