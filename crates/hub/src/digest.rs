//! What a file has to be: the checksum that a hub names it by.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use rerankd_model::names::is_hex;

/// Bytes that are read and hashed at a time.
const CHUNK: usize = 1 << 18;

/// A checksum, which is also the name of the file in a cache.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Checksum {
    /// Of a file that git holds itself: SHA-1 of its length and content.
    GitBlob(String),
    /// Of a large file: SHA-256 of its content.
    Sha256(String),
}

impl Checksum {
    /// The checksum that an ETag is; `None` where it is something else.
    pub fn of_etag(etag: &str) -> Option<Self> {
        let etag = etag.strip_prefix("W/").unwrap_or(etag);
        let etag = etag.trim_matches('"');
        if is_hex(etag, 64) {
            Some(Self::Sha256(etag.to_owned()))
        } else if is_hex(etag, 40) {
            Some(Self::GitBlob(etag.to_owned()))
        } else {
            None
        }
    }

    /// Its digits.
    pub fn digits(&self) -> &str {
        match self {
            Self::GitBlob(digits) | Self::Sha256(digits) => digits,
        }
    }

    /// Whether the file at `path` is what it should be.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn fits(&self, path: &Path) -> io::Result<bool> {
        let mut file = File::open(path)?;
        let mut context = match self {
            Self::Sha256(_) => Context::new(&SHA256),
            Self::GitBlob(_) => {
                let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {}\0", file.metadata()?.len()).as_bytes());
                context
            }
        };
        let mut chunk = vec![0; CHUNK];
        loop {
            match file.read(&mut chunk)? {
                0 => break,
                read => context.update(&chunk[..read]),
            }
        }
        let digits: String = context
            .finish()
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(digits == self.digits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_is_a_checksum_or_nothing() {
        let (sha1, sha256) = ("a".repeat(40), "0".repeat(64));
        let git = Some(Checksum::GitBlob(sha1.clone()));
        assert_eq!(Checksum::of_etag(&format!("\"{sha1}\"")), git);
        assert_eq!(Checksum::of_etag(&format!("W/\"{sha1}\"")), git);
        assert_eq!(
            Checksum::of_etag(&format!("\"{sha256}\"")),
            Some(Checksum::Sha256(sha256))
        );
        for other in [
            "",
            "\"\"",
            "\"abc\"",
            "\"../../etc\"",
            "\"ABCDEF\"",
            &"g".repeat(40),
        ] {
            assert_eq!(Checksum::of_etag(other), None, "{other}");
        }
    }

    /// The digits are those of `git hash-object` and `sha256sum`.
    #[test]
    fn a_file_is_held_against_either_kind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hello");
        std::fs::write(&path, "hello\n").unwrap();
        let git = Checksum::GitBlob("ce013625030ba8dba906f756967f9e9ca394464a".to_owned());
        let lfs = Checksum::Sha256(
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03".to_owned(),
        );
        assert!(git.fits(&path).unwrap() && lfs.fits(&path).unwrap());
        std::fs::write(&path, "hullo\n").unwrap();
        assert!(!git.fits(&path).unwrap() && !lfs.fits(&path).unwrap());
    }
}
