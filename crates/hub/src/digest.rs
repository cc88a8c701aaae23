//! Checksums of files, from the ETags of a hub.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use rerankd_model::names::is_hex;

/// Bytes hashed at a time.
const CHUNK: usize = 1 << 18;

/// A checksum, which is also the name of the blob in the cache.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Checksum {
    /// Git blob id of a small file: SHA-1 of its length and content.
    GitBlob(String),
    /// Git LFS id of a large file: SHA-256 of its content.
    Sha256(String),
}

impl Checksum {
    /// Parses an ETag; `None` if it is not a checksum.
    pub fn from_etag(etag: &str) -> Option<Self> {
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

    /// The checksum in hexadecimal.
    pub fn hex(&self) -> &str {
        match self {
            Self::GitBlob(digits) | Self::Sha256(digits) => digits,
        }
    }

    /// Whether the file at `path` has this checksum.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn matches(&self, path: &Path) -> io::Result<bool> {
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
        Ok(digits == self.hex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_are_parsed_strictly() {
        let (sha1, sha256) = ("a".repeat(40), "0".repeat(64));
        let git = Some(Checksum::GitBlob(sha1.clone()));
        assert_eq!(Checksum::from_etag(&format!("\"{sha1}\"")), git);
        assert_eq!(Checksum::from_etag(&format!("W/\"{sha1}\"")), git);
        assert_eq!(
            Checksum::from_etag(&format!("\"{sha256}\"")),
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
            assert_eq!(Checksum::from_etag(other), None, "{other}");
        }
    }

    /// Expected values are from `git hash-object` and `sha256sum`.
    #[test]
    fn files_are_verified_against_both_kinds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hello");
        std::fs::write(&path, "hello\n").unwrap();
        let git = Checksum::GitBlob("ce013625030ba8dba906f756967f9e9ca394464a".to_owned());
        let lfs = Checksum::Sha256(
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03".to_owned(),
        );
        assert!(git.matches(&path).unwrap() && lfs.matches(&path).unwrap());
        std::fs::write(&path, "hullo\n").unwrap();
        assert!(!git.matches(&path).unwrap() && !lfs.matches(&path).unwrap());
    }
}
