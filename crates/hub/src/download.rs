//! Downloads a file into the cache. Interrupted downloads resume, and checksums are verified.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use ureq::Body;
use ureq::http::{HeaderMap, Response, StatusCode};

use super::cache::{RepoCache, cache_error};
use super::client::{AttemptError, Client, RequestError};
use super::digest::Checksum;
use super::{DownloadEvent, ProgressFn};
use rerankd_model::ModelError;
use rerankd_model::names::ModelId;

/// Bytes that are read and written at a time.
const CHUNK: usize = 1 << 16;
/// An attempt that receives this much does not count as failed.
const MIN_PROGRESS_BYTES: u64 = 1 << 20;
/// Limit for a file of unknown size; the hub declares the size of large files.
const MAX_UNSIZED_BYTES: u64 = 256 << 20;

/// A file on the hub.
#[derive(Debug)]
pub(super) struct RemoteFile {
    pub name: String,
    pub checksum: Checksum,
    pub size: Option<u64>,
}

/// Downloads files of one commit.
#[derive(Clone, Copy)]
pub(super) struct Downloader<'a> {
    pub client: &'a Client<'a>,
    pub id: &'a ModelId,
    pub repo: &'a RepoCache,
    pub commit: &'a str,
    pub progress: ProgressFn<'a>,
}

impl Downloader<'_> {
    /// Requests the checksum and size of a file.
    pub(super) fn metadata(self, name: String) -> Result<RemoteFile, RequestError> {
        let metadata = self.client.file_metadata(self.id, self.commit, &name)?;
        let invalid = |what: &str| {
            let error = self
                .client
                .invalid_response(&format!("for `{name}` {what}"));
            RequestError::Rejected(error)
        };
        if metadata
            .commit
            .as_deref()
            .is_some_and(|of| of != self.commit)
        {
            return Err(invalid("is for another commit"));
        }
        let etag = metadata.etag().unwrap_or("");
        let checksum = Checksum::from_etag(etag).ok_or_else(|| {
            invalid(&format!(
                "has the ETag `{}`, which is not a checksum",
                etag.escape_debug()
            ))
        })?;
        Ok(RemoteFile {
            name,
            checksum,
            size: metadata.size,
        })
    }

    /// Bytes of a file that are still to be downloaded.
    pub(super) fn remaining_bytes(self, file: &RemoteFile) -> u64 {
        let digest = file.checksum.hex();
        if self.repo.blob(digest).exists() {
            return 0;
        }
        let received = length(&self.repo.partial_blob(digest));
        file.size.unwrap_or(0).saturating_sub(received)
    }

    /// Downloads a file, unless it is cached, and links it into the snapshot.
    pub(super) fn fetch(self, file: &RemoteFile) -> Result<(), RequestError> {
        let digest = file.checksum.hex();
        let blob = self.repo.blob(digest);
        let io_error = |error| RequestError::Rejected(cache_error(&blob, error));
        let _lock = self.repo.lock(digest).map_err(io_error)?;
        if !blob.exists() {
            let part = self.repo.partial_blob(digest);
            self.fetch_verified(file, &part)?;
            File::open(&part)
                .and_then(|file| file.sync_all())
                .map_err(io_error)?;
            fs::rename(&part, &blob).map_err(io_error)?;
        }
        self.repo
            .link(self.commit, &file.name, digest)
            .map_err(io_error)
    }

    /// Downloads a file to `part` and verifies its checksum.
    fn fetch_verified(self, file: &RemoteFile, part: &Path) -> Result<(), RequestError> {
        let (mut retry_mismatch, mut received) = (true, length(part));
        self.client.with_retries(|| {
            self.receive(file, part).map_err(|mut error| {
                let now = length(part);
                if let AttemptError::Transient { progress, .. } = &mut error {
                    *progress = now >= received + MIN_PROGRESS_BYTES;
                }
                received = received.max(now);
                error
            })?;
            let io_error = |error| AttemptError::from(cache_error(part, error));
            if file.checksum.matches(part).map_err(io_error)? {
                return Ok(());
            }
            fs::remove_file(part).map_err(io_error)?;
            // The start may be from an earlier attempt; a second mismatch is final.
            if std::mem::take(&mut retry_mismatch) {
                let what = format!("checksum mismatch for `{}`", file.name);
                return Err(AttemptError::transient(what));
            }
            let error = ModelError::new(
                format!(
                    "checksum mismatch for `{}` of `{}`: expected `{}`",
                    file.name,
                    self.id,
                    file.checksum.hex()
                ),
                "check proxies and mirrors between the hub and this machine, one of which alters the file",
            );
            Err(error.into())
        })
    }

    /// Receives the rest of a file into `part`.
    fn receive(self, remote: &RemoteFile, part: &Path) -> Result<(), AttemptError> {
        let io_error = |error| AttemptError::from(cache_error(part, error));
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(part)
            .map_err(io_error)?;
        let mut received = file.metadata().map_err(io_error)?.len();
        if remote.size.is_some_and(|size| received > size) {
            file.set_len(0).map_err(io_error)?;
            received = 0;
        }
        if received > 0 && remote.size == Some(received) {
            return Ok(());
        }
        let mut response = self
            .client
            .content(self.id, self.commit, &remote.name, received)?;
        if received > 0 && !resumes_at(&response, received) {
            file.set_len(0).map_err(io_error)?;
            (self.progress)(DownloadEvent::Restarted(received));
            received = 0;
        }
        if received == 0 && response.status() != StatusCode::OK {
            return Err(AttemptError::transient(format!(
                "cannot restart the download of `{}`: the hub returned {}",
                remote.name,
                response.status()
            )));
        }
        let limit = remote.size.unwrap_or(MAX_UNSIZED_BYTES);
        let copied = self.copy(&mut response, &mut file, part, received, limit);
        let now = file.metadata().map_err(io_error)?.len();
        let why = match copied {
            Ok(()) if remote.size.is_none_or(|size| size == now) => return Ok(()),
            Ok(()) => "the response ended early".to_owned(),
            Err(AttemptError::Transient { what, .. }) => what,
            Err(error) => return Err(error),
        };
        Err(AttemptError::transient(format!(
            "the download of `{}` was interrupted after {now} bytes: {why}",
            remote.name
        )))
    }

    fn copy(
        self,
        response: &mut Response<Body>,
        file: &mut File,
        part: &Path,
        mut received: u64,
        limit: u64,
    ) -> Result<(), AttemptError> {
        let mut reader = response.body_mut().with_config().limit(u64::MAX).reader();
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = match reader.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(AttemptError::transient(error.to_string())),
            };
            received += read as u64;
            if received > limit {
                drop(fs::remove_file(part));
                let what = format!("is longer than the expected {limit} bytes");
                return Err(self.client.invalid_response(&what).into());
            }
            file.write_all(&chunk[..read])
                .map_err(|error| cache_error(part, error))?;
            (self.progress)(DownloadEvent::Received(read as u64));
        }
    }
}

/// The size of a file; 0 if it does not exist.
fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Whether a response contains the bytes from `offset` on.
fn resumes_at(response: &Response<Body>, offset: u64) -> bool {
    response.status() == StatusCode::PARTIAL_CONTENT
        && first_byte(response.headers()) == Some(offset)
}

/// `FIRST` of `content-range: bytes FIRST-LAST/TOTAL`.
fn first_byte(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get("content-range")?.to_str().ok()?;
    let (first, _) = range.strip_prefix("bytes ")?.split_once('-')?;
    first.parse().ok()
}
