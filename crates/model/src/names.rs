//! Names from a hub or a user, validated before they become part of a path or a URL.

use std::fmt;
use std::path::{Component, Path};
use std::str::FromStr;

use crate::ModelError;

/// The default revision.
pub const MAIN: &str = "main";
/// Longest owner or model name; hubs allow less.
const MAX_PART: usize = 96;

/// A model on a hub: `owner/name`, or `owner/name@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelId {
    owner: String,
    name: String,
    revision: Option<String>,
}

impl ModelId {
    /// `owner/name`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// The branch, tag or commit.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// Whether a revision was given.
    pub fn has_revision(&self) -> bool {
        self.revision.is_some()
    }

    /// The folder of the model in the cache.
    pub fn folder(&self) -> String {
        format!("models--{}--{}", self.owner, self.name)
    }

    /// Parses a folder name of the cache.
    pub fn from_folder(folder: &str) -> Option<Self> {
        let (owner, name) = folder.strip_prefix("models--")?.split_once("--")?;
        format!("{owner}/{name}").parse().ok()
    }

    /// Parses the path of a snapshot in the cache.
    pub fn from_snapshot(dir: &Path) -> Option<Self> {
        let snapshots = dir.parent()?;
        let commit = dir.file_name()?.to_str()?;
        if !is_commit(commit) || snapshots.file_name()? != "snapshots" {
            return None;
        }
        Self::from_folder(snapshots.parent()?.file_name()?.to_str()?)
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}/{}@{revision}", self.owner, self.name),
            None => write!(f, "{}/{}", self.owner, self.name),
        }
    }
}

impl FromStr for ModelId {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let (path, revision) = match text.split_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (text, None),
        };
        let refuse = |what: &str| {
            ModelError::new(
                format!("`{text}` {what}"),
                "write a hub model as `owner/name` or `owner/name@revision`, and a directory as `./DIR` or its absolute path",
            )
        };
        let (owner, name) = path
            .split_once('/')
            .filter(|(owner, name)| is_part(owner) && is_part(name))
            .ok_or_else(|| refuse("is neither a directory nor a model name"))?;
        if revision.is_some_and(|revision| !is_revision(revision)) {
            return Err(refuse("has an invalid revision"));
        }
        Ok(Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
            revision: revision.map(str::to_owned),
        })
    }
}

/// Whether `text` can name an owner or a model. `--` separates the two in the cache.
fn is_part(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let edge = |c: char| c == '-' || c == '.';
    (1..=MAX_PART).contains(&text.len())
        && text.chars().all(plain)
        && !text.starts_with(edge)
        && !text.ends_with(edge)
        && !text.contains("--")
        && !text.contains("..")
}

/// Whether `text` can be a branch, a tag or a commit; it becomes a path below `refs/`.
fn is_revision(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+/".contains(c);
    text.len() <= 250 && text.chars().all(plain) && is_inner_path(text)
}

/// Whether `text` is a full commit hash.
pub fn is_commit(text: &str) -> bool {
    is_hex(text, 40)
}

/// Whether `text` is a lower-case hash of so many digits.
pub fn is_hex(text: &str, digits: usize) -> bool {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == digits && text.bytes().all(digit)
}

/// Whether `name` is a relative path of ordinary components, which cannot leave its folder on any
/// platform.
pub fn is_inner_path(name: &str) -> bool {
    let ordinary = |part: &str| {
        let mut components = Path::new(part).components();
        matches!(components.next(), Some(Component::Normal(own)) if own == part)
            && components.next().is_none()
    };
    !name.contains('\\') && !name.chars().any(char::is_control) && name.split('/').all(ordinary)
}

/// Whether `name` is a file name without folders.
pub fn is_file_name(name: &str) -> bool {
    !name.contains('/') && is_inner_path(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_named_by_owner_name_and_revision() {
        for (text, path, revision) in [
            ("a/b", "a/b", "main"),
            (
                "cross-encoder/ms-marco-MiniLM-L6-v2",
                "cross-encoder/ms-marco-MiniLM-L6-v2",
                "main",
            ),
            ("a/b@v1.0", "a/b", "v1.0"),
            ("a/b@refs/pr/3", "a/b", "refs/pr/3"),
        ] {
            let id: ModelId = text.parse().unwrap();
            assert_eq!((id.path().as_str(), id.revision()), (path, revision));
            assert_eq!(id.to_string(), text);
        }
        let id: ModelId = "a/b-c_d.e".parse().unwrap();
        assert_eq!(id.folder(), "models--a--b-c_d.e");
        assert_eq!(ModelId::from_folder(&id.folder()), Some(id));
    }

    #[test]
    fn names_that_could_leave_the_cache_are_rejected() {
        for text in [
            "",
            "a",
            "/a",
            "a/",
            "/a/b",
            "a/b/c",
            "../b",
            "a/..",
            "./b",
            "a/b--c",
            "a--b/c",
            "a b/c",
            "a/b@",
            "a/b@..",
            "a/b@../x",
            "a/b@/x",
            "a/b@x/../y",
            "a/b@x//y",
            "a/b@x y",
            "a/b@x\\y",
            "a/-b",
            "a/.b",
            "a/b%2f",
            "a/b?x",
            "a\\b/c",
        ] {
            assert!(text.parse::<ModelId>().is_err(), "{text}");
        }
    }

    #[test]
    fn paths_that_leave_their_folder_are_rejected() {
        for inner in [
            "config.json",
            "onnx/model.onnx",
            "a/b/c.d",
            "..a",
            "a..",
            "a b",
            ".a",
        ] {
            assert!(is_inner_path(inner), "{inner}");
        }
        for outer in [
            "",
            "/",
            "/etc/passwd",
            "..",
            ".",
            "a/..",
            "../a",
            "a/../b",
            "a/./b",
            "./a",
            "a//b",
            "a/",
            "a\\b",
            "..\\a",
            "C:\\a",
            "a\0b",
            "a\nb",
        ] {
            assert!(!is_inner_path(outer), "{outer:?}");
        }
    }
}
